"""Source drift: whether a delivery has the columns that it should have, and that earlier ones had.

In: what a delivery looked like while it was read (`Layout`), and what earlier ones of its source, kind and form did.
Out: columns that no table has, to be recorded; or a QualityError with the difference, column by column, before anything
of the ingest is kept. Order of columns, quotes, line ends, a number that became text: all harmless, and not looked at.
Trade-off: a column counts as one that deliveries have if each earlier one had it, so that what once was left out and
accepted may be left out again; in lines of JSON, where an empty value is often left out, chance needs a hundred rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmrec import schema
from mmrec.errors import QualityError

Row = tuple[int, dict[str, Any] | None, str, str | None]

_CHANCE = 100
_SHOWN = 20
_MAGIC = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "a zip", b"PAR1\x15": "Parquet", b"\x28\xb5\x2f\xfd": "Zstandard",
          b"\xfd7zXZ": "xz", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"Obj\x01": "Avro"}  # fmt: skip


@dataclass
class Layout:
    """What one file of one kind looks like, filled while it is read.

    Attributes:
        kind, form: as of its delivery. names: standard column -> its name in the file.
        mapped: standard columns that a mapping names itself.
        header: of a csv, None where the file is empty.
        shapes: column of the file -> how many of its values are a value, a list, an object or null.
        rows, parsed: lines there are, and those that could be read. first: the first of them.
    """

    kind: str
    form: Literal["csv", "jsonl"]
    names: dict[str, str]
    mapped: frozenset[str] = frozenset()
    header: list[str] | None = None
    shapes: dict[str, Counter[str]] = field(default_factory=dict)
    rows: int = 0
    parsed: int = 0
    first: str = ""

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """`rows` as they are; what they look like is noted in passing."""
        self.shapes, self.rows, self.parsed, self.first = {}, 0, 0, ""
        for row in rows:
            self.first = self.first or row[2]
            self.rows += 1
            if row[1] is not None:
                self.parsed += 1
                if self.form == "jsonl":  # every value of a csv is text
                    for name, value in row[1].items():
                        self.shapes.setdefault(name, Counter())[shape(value)] += 1
            yield row

    @property
    def columns(self) -> dict[str, str]:
        """Column of the file -> the shape that most of its values have."""
        if self.form == "csv":
            return dict.fromkeys(self.header or [], "value")
        return {
            n: max((k for k in c if k != "null"), key=lambda k: (c[k], k), default="null")
            for n, c in self.shapes.items()
        }

    def to_json(self) -> str:
        """What the ledger of files keeps: the standard columns there were."""
        held, seen = self.columns, {n: f for n, f in self.names.items() if f in self.columns}
        return json.dumps({"form": self.form, "columns": {n: held[f] for n, f in sorted(seen.items())}}, sort_keys=True)


def shape(value: Any) -> str:
    """value, list, object or null."""
    if isinstance(value, list | dict):
        return "list" if isinstance(value, list) else "object"
    return "null" if value is None else "value"


def scalars(kind: str) -> frozenset[str]:
    """Columns of a kind that hold one value, not a list or an object; an item's pictures may be either."""
    nested = {c.name for c, r in schema.rules(f"silver.{kind}") if r.test in ("object", "names")}
    nested |= {"image"} if kind == "items" else set()
    return frozenset(c.name for c in schema.table(f"bronze.{kind}").columns) - nested


def readable(file: str, path: Path) -> None:
    """Raises: QualityError: the file is compressed, binary or of another encoding, by its first bytes."""
    with path.open("rb") as handle:
        head = handle.read(8)
    for magic, what in (*_MAGIC.items(), (b"BZh" + head[3:4] + b"1AY&", "bzip2")):
        if head.startswith(magic):
            raise QualityError(
                "a delivery is not text",
                where=file,
                value=f"{what}, by its first bytes",
                valid="a csv or lines of JSON in UTF-8",
                next="deliver it as before, then mmrec ingest",
            )


def new_columns(layout: Layout, file: str, earlier: list[str], gone: Iterable[str] = ()) -> dict[str, str]:
    """Judge a delivery that was read.

    Args:
        earlier: what the ledger keeps of earlier files of the same source and kind.
        gone: columns that the source delivers no more, as "items.text".

    Returns: columns of the file that no table has -> their shape.

    Raises:
        QualityError: `report` has `gone`, `new`, `changed`, `twice`: the columns it is about.
    """
    if layout.header is None if layout.form == "csv" else not layout.rows:
        return {}  # nothing at all is another fault than drift
    held = layout.columns
    known = {f: n for n, f in layout.names.items()}
    fresh = {n: s for n, s in held.items() if n not in known}
    had = _had(layout.form, earlier)
    excused = {g.split(".", 1)[1] for g in gone if g.startswith(f"{layout.kind}.")}
    lost = {n for n, f in layout.names.items() if f not in held and (n in had or n in layout.mapped)} - excused
    required = {c.name for c, r in schema.rules(f"silver.{layout.kind}") if r.test == "not_blank"}
    if layout.form == "jsonl" and layout.parsed < _CHANCE and not fresh:
        lost &= required
    twice = sorted(n for n, times in Counter(layout.header or []).items() if times > 1 and n in known)
    flat = scalars(layout.kind)
    changed = {n: s for f, s in held.items() if (n := known.get(f, "")) in flat and s in ("list", "object")
               and not layout.shapes[f]["value"] and 2 * sum(layout.shapes[f].values()) > layout.parsed}  # fmt: skip
    strange = not any(f in held for f in layout.names.values())
    few = 1 if layout.first.lstrip().startswith("[") else 2 if layout.form == "jsonl" else _CHANCE
    if layout.rows >= few and not layout.parsed:
        raise _drift(layout, file, f"none of {layout.rows} lines can be read as {_form(layout)}", {})
    if strange and (layout.parsed or layout.form == "csv"):
        raise _drift(layout, file, f"none of its columns is one of {layout.kind}", {
            "gone": sorted(layout.names[n] for n in required), "new": list(fresh)})  # fmt: skip
    if lost or twice or changed:
        shapes = [f"{layout.names[n]}: was {had.get(n, 'value')}, is {s}" for n, s in sorted(changed.items())]
        raise _drift(layout, file, "its columns are not what they were", {
            "gone": sorted(layout.names[n] for n in lost), "new": list(fresh) if lost else [], "twice": twice,
            "changed": shapes})  # fmt: skip
    return fresh


def _had(form: str, earlier: list[str]) -> dict[str, str]:
    """Standard columns that every earlier file of the form had -> their shape in the last of them."""
    told = [t["columns"] for t in map(json.loads, earlier) if t["form"] == form]
    return {n: s for n, s in told[-1].items() if all(n in t for t in told)} if told else {}


def _form(layout: Layout) -> str:
    return f"csv with {len(layout.header or [])} columns" if layout.form == "csv" else "a JSON object each"


def _drift(layout: Layout, file: str, what: str, found: dict[str, list[str]]) -> QualityError:
    lines = [f"{n!r}: was there, is gone" for n in found.get("gone", [])]
    lines += [f"{n!r}: was not there, is a column now" for n in found.get("new", [])[:_SHOWN]]
    lines += [f"{n!r}: was one column, is there twice" for n in found.get("twice", [])]
    lines += found.get("changed", [])
    return QualityError(
        f"a delivery has drifted: {what}" + "".join(f"\n    {line}" for line in lines),
        where=f"{file} ({layout.kind})",
        valid="columns as before, in any order, and any more",
        next="deliver it as before or mend mmrec-source.toml, then mmrec ingest; a column that will not come again "
        'goes into source.gone in mmrec.toml, as "items.text"',
        report=found,
    )

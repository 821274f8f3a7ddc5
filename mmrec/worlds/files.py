"""A shop's own files: dated folders in the standard layout, or any files described by a small TOML mapping.

In: a folder. With `mmrec-source.toml` in it, the files that it names; without, `<YYYY-MM-DD>/<kind>.csv|jsonl`
with the standard columns (docs/sources.md). Out: deliveries of strings.
Trade-off: a mapping renames columns and sets constants, no more; what needs computing belongs in the shop's export.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mmrec import dates, schema
from mmrec.errors import InputError
from mmrec.files import is_url
from mmrec.named import references
from mmrec.worlds.drift import Layout, scalars, shape
from mmrec.worlds.sources import Delivery, batches, csv_rows, jsonl_rows, media_bytes

KINDS = schema.DELIVERED
MAPPING = "mmrec-source.toml"
_DATED = re.compile(r"^\d{4}-\d{2}-\d{2}$")
_TIMES = ("event_ts", "available_at", "valid_from", "withdrawn_at", "shown_at", "wished_at")
# what exports are packed or written in, and is not read
_OTHER_FORMS = {".parquet", ".gz", ".zip", ".zst", ".bz2", ".xz", ".json", ".ndjson", ".tsv", ".avro", ".orc", ".xlsx"}
_FORMS = ("iso", "epoch_s", "epoch_ms")
_KEYS = ("file", "format", "delimiter", "columns", "constants", "time", "zone")


class FilesSource:
    """See the module. `name` is the folder's name, or `name` in the mapping."""

    def __init__(self, root: Path) -> None:
        self.root = root
        mapping = root / MAPPING
        self.mapping = _read_mapping(mapping) if mapping.is_file() else None
        self.name = str((self.mapping or {}).get("name", "files"))

    def deliveries(self) -> list[Delivery]:
        return self._mapped() if self.mapping is not None else self._dated()

    def media(self, reference: str) -> bytes | None:
        return media_bytes(self.root, reference)

    def _dated(self) -> list[Delivery]:
        found = []
        for folder in sorted(p for p in self.root.iterdir() if p.is_dir() and _DATED.match(p.name)):
            day = dates.parse(folder.name, f"source.root: {folder}")
            # a day's folder is complete when the day is over
            arrived = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
            for kind in KINDS:
                _no_other_form(folder, kind)
                for suffix in ("csv", "jsonl"):
                    path = folder / f"{kind}.{suffix}"
                    if path.is_file():
                        layout = Layout(kind, suffix, {n: n for n in _columns(kind)})
                        found.append(
                            Delivery(
                                kind,
                                f"{folder.name}/{path.name}",
                                path,
                                arrived,
                                _reader(kind, path, suffix, ",", _standard(kind, folder.name), layout),
                                layout,
                            )
                        )
        return found

    def _mapped(self) -> list[Delivery]:
        found = []
        for kind in KINDS:
            rule = (self.mapping or {}).get(kind)
            if rule is None:
                continue
            for path in sorted(self.root.glob(rule["file"])):
                form = rule.get("format", path.suffix.lstrip("."))
                if form not in ("csv", "jsonl"):
                    raise InputError(
                        "a format that can't be read",
                        where=f"{MAPPING}: {kind}.format",
                        value=form,
                        valid=("csv", "jsonl"),
                        next=f"edit {MAPPING}",
                    )
                called, constants = rule.get("columns", {}), rule.get("constants", {})
                names = {n: str(called.get(n, n)) for n in _columns(kind) if n not in constants}
                layout = Layout(kind, form, names, frozenset(called) - frozenset(constants))
                found.append(
                    Delivery(
                        kind,
                        str(path.relative_to(self.root)),
                        path,
                        None,
                        _reader(kind, path, form, rule.get("delimiter", ","), _renamed(kind, rule), layout),
                        layout,
                    )
                )
        return found


def _no_other_form(folder: Path, kind: str) -> None:
    """A file of the kind that is there and would not be read would be missed without a word."""
    for path in sorted(folder.glob(f"{kind}.*")):
        if path.is_file() and path.suffix.lower() in _OTHER_FORMS:
            raise InputError(
                "a file of this form is not read",
                where=str(path),
                value=path.name,
                valid=(f"{kind}.csv", f"{kind}.jsonl"),
                next="deliver it as before, then mmrec ingest",
            )


def _reader(
    kind: str,
    path: Path,
    form: str,
    delimiter: str,
    convert: Callable[[dict[str, Any]], dict[str, str | None]],
    layout: Layout | None = None,
) -> Callable[[], Iterator[Any]]:
    def heard(header: list[str]) -> None:
        if layout:
            layout.header = header

    rows = (lambda: csv_rows(path, delimiter, heard)) if form == "csv" else (lambda: jsonl_rows(path))
    return lambda: batches(kind, layout.watch(rows()) if layout else rows(), convert)


def _columns(kind: str) -> list[str]:
    names = [c.name for c in schema.table(f"bronze.{kind}").columns]
    return [n for n in names[: names.index("raw")] if not n.endswith("_sha256")]


def _text(value: Any) -> str | None:
    """A value as its canonical string; JSON for lists and objects."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _scalar(name: str, value: Any, flat: frozenset[str]) -> str | None:
    if (name in flat and isinstance(value, list | dict)) or (name == "image" and isinstance(value, dict)):
        raise TypeError(f"{name} is a {shape(value)}, not a value")
    return _text(value)


def _standard(kind: str, day: str) -> Callable[[dict[str, Any]], dict[str, str | None]]:
    names, flat = _columns(kind), scalars(kind)

    def convert(row: dict[str, Any]) -> dict[str, str | None]:
        made = {n: _scalar(n, row.get(n), flat) for n in names}
        return made | {m: _media(m, made[m], f"{day}/") for m in ("image", "audio") if m in made}

    return convert


def _renamed(kind: str, rule: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, str | None]]:
    columns, constants = rule.get("columns", {}), rule.get("constants", {})
    form, zone = rule.get("time", "iso"), ZoneInfo(rule.get("zone", "UTC"))
    names, flat = _columns(kind), scalars(kind)

    def convert(row: dict[str, Any]) -> dict[str, str | None]:
        made: dict[str, str | None] = {}
        for n in names:
            value = _text(constants[n]) if n in constants else _scalar(n, row.get(columns.get(n, n)), flat)
            made[n] = _moment(value, form, zone) if n in _TIMES and value else value
        return made | {m: _media(m, made[m]) for m in ("image", "audio") if m in made}

    return convert


def _media(modality: str, text: str | None, folder: str = "") -> str | None:
    """What a row names as the source knows it, paths below `folder`; a list of one is that one, of none is null."""
    named = [n if is_url(n) else f"{folder}{n}" for n in references(modality, text)]
    return _text(named) if len(named) > 1 else named[0] if named else None


def _moment(value: str, form: str, zone: ZoneInfo) -> str:
    if form == "iso":
        return value
    try:
        if form in ("epoch_s", "epoch_ms"):
            seconds = float(value) / (1000 if form == "epoch_ms" else 1)
            return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).isoformat()
        moment = datetime.strptime(value, form)
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return value  # validate names it


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        mapping = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(
            f"the mapping is not TOML: {error}", where=str(path), valid="TOML in UTF-8", next=f"edit {MAPPING}"
        ) from error
    for kind, rule in mapping.items():
        if kind == "name":
            continue
        if kind not in KINDS:
            raise InputError(
                "no such kind of rows",
                where=f"{path}: [{kind}]",
                value=kind,
                valid=("name", *KINDS),
                next=f"edit {MAPPING}",
            )
        if not isinstance(rule, dict):
            raise _wrong(path, kind, "a kind is not a section", rule, f"[{kind}]")
        if "file" not in rule:
            raise InputError(
                "a kind names no file", where=f"{path}: [{kind}]", valid='file = "orders*.csv"', next=f"edit {MAPPING}"
            )
        for key in rule:
            if key not in _KEYS:
                raise InputError(
                    "no such key", where=f"{path}: [{kind}] {key}", value=key, valid=_KEYS, next=f"edit {MAPPING}"
                )
        _check_values(path, kind, rule)
        for name in (*rule.get("columns", {}), *rule.get("constants", {})):
            if name not in _columns(kind):
                raise InputError(
                    "no such column",
                    where=f"{path}: [{kind}]",
                    value=name,
                    valid=_columns(kind),
                    next=f"edit {MAPPING}",
                )
    return mapping


def _check_values(path: Path, kind: str, rule: dict[str, Any]) -> None:
    for key in ("columns", "constants"):
        if not isinstance(rule.get(key, {}), dict):
            raise _wrong(path, f"{kind}.{key}", "not a table", rule[key], 'columns = { user_id = "customer" }')
    file, delimiter, form = rule["file"], rule.get("delimiter", ","), rule.get("time", "iso")
    if not isinstance(file, str) or not file or Path(file).is_absolute():
        raise _wrong(path, f"{kind}.file", "not a pattern within the folder", file, '"orders*.csv"')
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
        raise _wrong(path, f"{kind}.delimiter", "not one character", delimiter, "one character")
    if form not in _FORMS and not (isinstance(form, str) and "%" in form):
        raise _wrong(path, f"{kind}.time", "no such form of times", form, (*_FORMS, "a strptime form, as %d.%m.%Y"))
    try:
        ZoneInfo(rule.get("zone", "UTC"))
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        valid = "an IANA name, as Europe/Berlin"
        raise _wrong(path, f"{kind}.zone", "no such time zone", rule["zone"], valid) from None


def _wrong(path: Path, key: str, what: str, value: Any, valid: Any) -> InputError:
    return InputError(what, where=f"{path}: {key}", value=value, valid=valid, next=f"edit {MAPPING}")

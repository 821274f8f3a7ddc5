"""What was kept out, why, and the way back in: `mmrec quarantine`.

In: settings; for a replay a rule, a table, or a file of corrections. Out: counts, rows, what came back.
A verdict is evidence: it is never changed or removed. A replay judges the bronze rows of verdicts again, by today's
rules and today's items. A correction is a row of its own in bronze, from `repair/<digest>/<kind>.jsonl`, whose `raw`
begins with the row it mends; it comes in by ingest and validate like any other. Either way what is good is in silver
once, so rows in = rows kept + rows held, and a second replay brings nothing.
Trade-off: a correction has what it does not name from the row it mends, its delivery time too: it says what the source
should have delivered then, so a past day that is run anew sees it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from mmrec import schema
from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.files import put
from mmrec.lake import commit, evolve
from mmrec.lake.session import session
from mmrec.lake.sql import connect
from mmrec.lake.store import Lake
from mmrec.night import SILVER
from mmrec.worlds.sources import Delivery, jsonl_rows, open_configured

_REPAIR = "repair"
_TABLES = (*(f"bronze.{kind}" for kind in SILVER), "bronze.media")
_NEXT = "mmrec quarantine list"

# q: verdicts with when their row came, and what became of it: held, back (its own row is in silver), or mended (a
# correction of it is). A verdict on media is about an item, which is in silver all the same.
_STATES = """WITH RECURSIVE bronze AS ({bronze}), silver AS ({silver}),
  mends AS (SELECT table_name, row_hash, split_part(raw, '"', 4) AS mended FROM bronze
            WHERE file LIKE 'repair/%' AND parse_error IS NULL AND starts_with(raw, '{{"row_hash":"')),
  good AS (SELECT table_name, row_hash FROM ops_quarantine WHERE occurrence = 0
           UNION SELECT table_name, row_hash FROM mends),
  kept AS (SELECT table_name, row_hash FROM good SEMI JOIN silver USING (table_name, row_hash)),
  well AS (SELECT table_name, row_hash FROM kept
           UNION SELECT m.table_name, m.mended FROM mends m JOIN well w USING (table_name, row_hash)),
  q AS (SELECT v.*, b.ingested_at, CASE WHEN k.row_hash IS NOT NULL THEN 'back'
                                        WHEN w.row_hash IS NOT NULL THEN 'mended' ELSE 'held' END AS state
        FROM ops_quarantine v
        LEFT JOIN bronze b ON b.table_name = replace(v.table_name, 'bronze.media', 'bronze.items')
          AND b.row_hash = v.row_hash
          AND b.occurrence = CASE v.table_name WHEN 'bronze.media' THEN 0 ELSE v.occurrence END
        LEFT JOIN kept k ON k.table_name = v.table_name AND k.row_hash = v.row_hash AND v.occurrence = 0
        LEFT JOIN well w ON w.table_name = v.table_name AND w.row_hash = v.row_hash
        WHERE ($1 IS NULL OR v.table_name = $1) AND ($2 IS NULL OR v.rule = $2))
"""


def summary(lake: Lake, table: str | None = None, rule: str | None = None) -> list[dict[str, Any]]:
    """Verdicts by table, rule and file.

    Args:
        table: bronze.<kind> or its kind. rule: one that is on record.

    Returns: table, rule, source, file, rows, held, back, mended, first and last (when those rows were ingested).

    Raises: InputError: no such table or rule.
    """
    return _ask(
        lake,
        """SELECT table_name AS "table", rule, source, file, count(*) AS rows, count(*) FILTER (state = 'held') AS held,
             count(*) FILTER (state = 'back') AS back, count(*) FILTER (state = 'mended') AS mended,
             min(ingested_at) AS first, max(ingested_at) AS last
           FROM q GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4""",
        *_filters(lake, table, rule),
    )


def verdicts_of(
    lake: Lake, table: str | None = None, row_hash: str | None = None, rule: str | None = None, limit: int = 20
) -> list[dict[str, Any]]:
    """Verdicts with their rows, by table, rule, file and line.

    Args:
        row_hash: of one row, or its beginning. limit: at most so many.

    Raises: InputError: no such table, rule or row.
    """
    found = _ask(
        lake,
        """SELECT table_name AS "table", rule, reason, raw, source, file, line, row_hash, occurrence, ingested_at, state
           FROM q WHERE $3 IS NULL OR starts_with(row_hash, $3)
           ORDER BY 1, 2, file, line, row_hash, occurrence LIMIT $4""",
        *_filters(lake, table, rule),
        row_hash,
        limit,
    )
    if row_hash is not None and not found:
        raise InputError("no such row in quarantine", where=table or "ops.quarantine", value=row_hash,
                         valid="a row_hash of a row that was kept out, or its beginning",
                         next="mmrec quarantine show --rule RULE")  # fmt: skip
    return found


def replay(
    config: Config,
    *,
    table: str | None = None,
    rule: str | None = None,
    file: Path | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Judge rows in quarantine again; what keeps every rule now goes into silver.

    Args:
        table, rule: only verdicts of these. file: JSON lines, each a row_hash and the columns that are corrected; then
            only those rows, as corrected. dry_run: judge, and write nothing.

    Returns: brought_back (rows, or corrections, that are in silver now, or would be), judged_anew (rows with a verdict
        that was not on record), by table and by the rule they had broken; of a file also corrections and passed_over
        (lines that the filters leave out, or that are in bronze already).

    Raises:
        InputError: no such table, rule or row; a file that can't be read; a correction of what is not held. Nothing
            was written. Fenced: outrun by other writers.
    """
    from mmrec.features import silver, verdicts

    lake = Lake(config.lake).made()
    if not dry_run:
        evolve.absorb(lake)
    table, rule = _filters(lake, table, rule)
    repair = _Repair.read(config, lake, file, table, rule) if file else None
    told: dict[str, Any] = {"dry_run": dry_run, "brought_back": 0, "judged_anew": 0, "tables": {}}
    if repair:
        told |= {"corrections": len(repair.lines), "passed_over": repair.passed_over}
        if not dry_run:
            repair.ingest()
    spark = session(config.engine, config.spark)
    earliest, latest = verdicts.bounds(lake, config.source.earliest)

    def once(kind: str) -> dict[str, Any]:
        ask = partial(verdicts.judge, lake, spark, kind, earliest=earliest, latest=latest)
        if repair is None:
            hashes = _ask(lake, "SELECT DISTINCT row_hash FROM q WHERE state = 'mended'", f"bronze.{kind}", None)
            mended = spark.createDataFrame(pa.Table.from_pylist(hashes)) if hashes else None
            found = ask(partial(silver.reopened, rule=rule, mended=mended), work=("replay", rule or ""))
            rules = verdicts.by_rule(found)
        elif dry_run:
            found, rules = ask(silver.pending, rows=repair.rows(kind)), {}
        else:
            found, rules = ask(silver.pending, files=repair.files[kind], work=("replay",)), {}
        if dry_run:
            return {"brought_back": found.good.count(), "judged_anew": found.bad.num_rows, "by_rule": rules}
        done = verdicts.keep(lake, found)
        return {"brought_back": done[kind], "judged_anew": done[f"{kind}_quarantined"], "by_rule": rules}

    named = {table} if table else set(lake.arrow("ops.quarantine", columns=["table_name"])["table_name"].to_pylist())
    for kind in SILVER:  # items first: what names them may be good then
        if f"bronze.{kind}" in named and (repair is None or kind in repair.files):
            counts = commit.again(partial(once, kind))
            told["tables"][f"bronze.{kind}"] = counts
            told["brought_back"] += counts["brought_back"]
            told["judged_anew"] += counts["judged_anew"]
    return told


@dataclass(frozen=True)
class _Line:
    """One correction: its text as it is kept, the row as corrected, by column, and where the row came from."""

    text: str
    kind: str
    source: str
    row: dict[str, str | None]


@dataclass(frozen=True)
class _Repair:
    """Corrections that passed every check.

    Attributes:
        lines: not in bronze yet. passed_over: left out by a filter, or in bronze already.
        files: kind -> files in bronze that hold corrections of this file, those to come too.
    """

    config: Config
    lake: Lake
    lines: list[_Line]
    passed_over: int
    files: dict[str, list[str]]

    @classmethod
    def read(cls, config: Config, lake: Lake, path: Path, table: str | None, rule: str | None) -> _Repair:
        """Check the whole file; InputError at the first line that is wrong."""
        given = list(_corrections(path))
        hashes = list(dict.fromkeys(h for _, h, _ in given))
        named = _ask(lake, "SELECT * FROM q WHERE table_name <> 'bronze.media' AND list_contains($3, row_hash)",
                     None, None, hashes)  # fmt: skip
        verdicts: dict[str, list[dict[str, Any]]] = {h: [] for h in hashes}
        for v in named:
            verdicts[v["row_hash"]].append(v)
        lines: list[_Line] = []
        passed, files, originals = 0, {}, _originals(lake, named)
        there = _there(lake, {v["table_name"] for v in named})
        for n, row_hash, columns in given:
            where = f"{path}: line {n}"
            if not verdicts[row_hash]:
                raise InputError("a correction of a row that is not in quarantine", where=where, value=row_hash,
                                 valid="a row_hash of a row of bronze that was kept out", next=_NEXT)  # fmt: skip
            kind = verdicts[row_hash][0]["table_name"].removeprefix("bronze.")
            text = _correction(where, kind, row_hash, columns)
            wanted = [v for v in verdicts[row_hash] if table in (None, v["table_name"]) and rule in (None, v["rule"])]
            if not wanted:
                passed += 1
                continue
            if text in there:
                passed += 1
                files.setdefault(kind, []).append(there[text])
                continue
            if verdicts[row_hash][0]["state"] != "held":
                raise InputError("this row is in silver already, by itself or as corrected before", where=where,
                                 value=row_hash, valid="a row that is held",
                                 next="deliver the event again, with a later available_at")  # fmt: skip
            original = originals[row_hash]
            lines.append(_Line(text, kind, original["source"], {c: original[c] for c in _columns(kind)} | columns))
        repair = cls(config, lake, lines, passed, files)
        for source, kind in sorted({(x.source, x.kind) for x in lines}):
            files.setdefault(kind, []).append(repair.delivery(source, kind).file)
        return repair

    def delivery(self, source: str, kind: str) -> Delivery:
        """The corrections of one kind and source as a delivery."""
        mine = [x for x in self.lines if (x.source, x.kind) == (source, kind)]
        text = "".join(f"{x.text}\n" for x in mine)
        file = f"{_REPAIR}/{sha256(f'{source}|{text}'.encode()).hexdigest()[:16]}/{kind}.jsonl"
        return Delivery(kind, file, self.config.home / file, None, lambda: iter([_batch(kind, mine)]))

    def ingest(self) -> None:
        """Keep the file in the home and bring its rows into bronze, by the way of any delivery."""
        from mmrec.worlds.ingest import ingest

        for source in sorted({x.source for x in self.lines}):
            kinds = sorted({x.kind for x in self.lines if x.source == source})
            deliveries = [self.delivery(source, kind) for kind in kinds]
            for d in deliveries:
                put(d.path, "".join(f"{x.text}\n" for x in self.lines if (x.source, x.kind) == (source, d.kind)))
            commit.again(partial(ingest, self.lake, _Mended(source, deliveries, self.config)))

    def rows(self, kind: str) -> pa.Table:
        """What bronze would get, with places in the file for hashes."""
        t, mine = schema.table(f"bronze.{kind}"), [x for x in self.lines if x.kind == kind]
        fill = {"file": _REPAIR, "occurrence": 0, "ingested_at": datetime.now(UTC)}
        return pa.Table.from_pylist(
            [x.row | fill | {"raw": x.text, "source": x.source, "line": n, "row_hash": f"{_REPAIR}-{n}"}
             for n, x in enumerate(mine, 1)], t.arrow)  # fmt: skip


class _Mended:
    """A source of corrections. Media are asked of the source that the corrected rows are of."""

    def __init__(self, name: str, deliveries: list[Delivery], config: Config) -> None:
        self.name, self._deliveries, self._config = name, deliveries, config

    def deliveries(self) -> list[Delivery]:
        return self._deliveries

    def media(self, reference: str) -> bytes | None:
        source = open_configured(self._config)
        return source.media(reference) if source.name == self.name else None


def _columns(kind: str) -> list[str]:
    """What a correction may name: columns as delivered."""
    names = schema.table(f"bronze.{kind}").arrow.names
    return [n for n in names[: names.index("raw")] if not n.endswith("_sha256")]


def _corrections(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line, row_hash, the rest) of a file of corrections."""
    if not path.is_file():
        raise InputError("there is no such file", where="--file", value=str(path), valid="a file of JSON lines",
                         next="mmrec quarantine show --rule RULE --json")  # fmt: skip
    for line, value, text, error in jsonl_rows(path):
        if value is None or not isinstance(value.get("row_hash"), str) or len(value) < 2:
            raise InputError("a line is no correction" + (f": {error}" if error else ""), where=f"{path}: line {line}",
                             value=text[:200], valid='{"row_hash": "...", and the columns to correct}',
                             next="mmrec quarantine show --rule RULE --json")  # fmt: skip
        yield line, value.pop("row_hash"), value


def _correction(where: str, kind: str, row_hash: str, columns: dict[str, Any]) -> str:
    """Check names and values, make values text in place; the correction as one line, the row that it mends in front."""
    for name, value in columns.items():
        if name not in _columns(kind):
            raise InputError("no such column", where=where, value=name, valid=_columns(kind), next="edit the file")
        if value is not None and not isinstance(value, str):
            value = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            raise InputError("half of a surrogate pair can't be stored", where=where, value=value, valid="text",
                             next="edit the file") from None  # fmt: skip
        columns[name] = value
    ordered = {"row_hash": row_hash} | dict(sorted(columns.items()))
    return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False)


def _originals(lake: Lake, named: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """row_hash -> the bronze row that was kept out."""
    found: dict[str, dict[str, Any]] = {}
    for table in sorted({v["table_name"] for v in named}):
        hashes = [v["row_hash"] for v in named if v["table_name"] == table]
        rows = lake.arrow(table, where=ds.field("row_hash").isin(hashes)).to_pylist()
        found |= {r["row_hash"]: r for r in sorted(rows, key=lambda r: -r["occurrence"])}
    return found


def _there(lake: Lake, tables: set[str]) -> dict[str, str]:
    """Corrections in bronze already: text -> file."""
    found: dict[str, str] = {}
    for table in sorted(tables):
        mends = ds.field("raw").is_valid() & ds.field("parse_error").is_null()
        rows = lake.arrow(table, columns=["raw", "file"], where=mends)
        found |= dict(zip(rows["raw"].to_pylist(), rows["file"].to_pylist(), strict=True))
    return found


def _batch(kind: str, lines: list[_Line]) -> pa.RecordBatch:
    names = [*_columns(kind), "raw"]
    fields = pa.schema([*(pa.field(n, pa.string()) for n in names), pa.field("line", pa.int64())])
    return pa.RecordBatch.from_pylist([x.row | {"raw": x.text, "line": n} for n, x in enumerate(lines, 1)], fields)


def _filters(lake: Lake, table: str | None, rule: str | None) -> tuple[str | None, str | None]:
    """The table's full name, and the rule; InputError names those there are."""
    if table is not None:
        table = table if "." in table else f"bronze.{table}"
        if table not in _TABLES:
            raise InputError("nothing is kept out of such a table", where="--table", value=table, valid=_TABLES,
                             next=_NEXT)  # fmt: skip
    if rule is not None:
        on_record = Counter(lake.arrow("ops.quarantine", columns=["rule"])["rule"].to_pylist())
        if rule not in on_record:
            raise InputError("no row in quarantine broke such a rule", where="--rule", value=rule,
                             valid=sorted(on_record) or "none: quarantine is empty", next=_NEXT)  # fmt: skip
    return table, rule


def _ask(lake: Lake, query: str, table: str | None, rule: str | None, *more: Any) -> list[dict[str, Any]]:
    """Rows of a query on `q`, see `_STATES`."""
    columns = "row_hash, occurrence, raw, parse_error, file, ingested_at"
    kinds = [k for k in SILVER if lake.exists(f"bronze.{k}") and lake.exists(f"silver.{k}")]  # a later kind may not be
    states = _STATES.format(
        bronze=" UNION ALL ".join(f"SELECT 'bronze.{k}' AS table_name, {columns} FROM bronze_{k}" for k in kinds),
        silver=" UNION ALL ".join(f"SELECT 'bronze.{k}' AS table_name, row_hash FROM {k}" for k in kinds),
    )
    con = connect(lake)
    try:
        found = con.execute(states + query, [table, rule, *more])
        names = [c[0] for c in found.description or []]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    finally:
        con.close()

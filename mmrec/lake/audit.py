"""The audit: what is on disk is checked before anybody can read it. This is the enforcement.

In: a stage. Out: its row count, or a QualityError that names every broken promise. The table's own CHECK and
NOT NULL are only a second belt, because a low-level commit does not look at them.
A table that is replaced whole may be empty; nothing else is replaced by, or given, nothing.
Trade-off: every staged file is read once more (a third of a plain write's time); in exchange neither engine,
nor a bug in ours, can publish a row that schema.py forbids.

Refusals, by name: no_files, missing_file, unreadable_file, wrong_partition, missing_column, wrong_type, empty,
collapsed, null, check, duplicate_key, existing_key.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from mmrec import schema
from mmrec.errors import QualityError
from mmrec.lake.stage import Stage
from mmrec.lake.store import Lake

_IN_MEMORY = 20_000_000  # rows whose key hashes, of eight bytes, are sorted in memory


@dataclass(frozen=True)
class Audited:
    """A stage that kept every promise."""

    stage: Stage
    rows: int


def audit(
    lake: Lake,
    stage: Stage,
    *,
    partition: str | None = None,
    previous_rows: int = 0,
    min_share: float = 0.0,
    against: int | None = None,
) -> Audited:
    """Check a stage.

    Args:
        partition: the one partition value its rows may have (tables with a partition column).
        previous_rows: rows of the list it replaces or follows; 0 switches the collapse check off.
        min_share: smallest acceptable rows / previous_rows.
        against: version of the target whose keys the stage may not repeat (append_new).

    Raises:
        QualityError: `report["refused"]` maps each refusal's name to what was found; nothing was committed.
    """
    t = schema.table(stage.table)
    refused: dict[str, str] = {}
    paths = [stage.folder / f.path for f in stage.files]
    may_be_empty = t.mode == "replace_all"
    if not stage.files and not may_be_empty:
        refused["no_files"] = "the stage lists no file"
    lost = [f.path for f in stage.files if not (stage.folder / f.path).is_file()]
    if lost:
        refused["missing_file"] = f"{len(lost)} listed files are not on disk, as {lost[0]}"
    if t.partition:
        days = {f.partition.get(t.partition) for f in stage.files}
        if days - {partition}:
            refused["wrong_partition"] = f"{t.partition} is {sorted(map(str, days))}, not {partition} alone"
    rows = 0
    if not refused:
        refused |= _types(t, paths)
    if not refused:
        rows, broken = _rows(lake, t, paths, partition, against) if paths else (0, {})
        refused |= broken
        if rows == 0 and not may_be_empty:
            refused["empty"] = "no rows"
        elif previous_rows and rows < min_share * previous_rows:
            refused["collapsed"] = f"{rows} rows after {previous_rows}: less than {min_share:.0%}"
    if refused:
        raise QualityError(
            "the audit refused a staged write: " + "; ".join(f"{k}: {v}" for k, v in refused.items()),
            where=f"{t.name}{f' {t.partition}={partition}' if partition else ''}",
            valid="rows that keep schema.py's promises",
            next=f"mmrec tables {t.name}",
            report={"refused": refused},
        )
    return Audited(stage, rows)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The logical type: 64-bit offsets, views and list element names are storage, not meaning."""
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind


def _types(t: schema.Table, paths: list) -> dict[str, str]:
    refused: dict[str, str] = {}
    for path in paths:
        try:
            found = {f.name: _plain(f.type) for f in pq.read_schema(path)}
        except (pa.ArrowException, OSError) as error:
            return {"unreadable_file": f"{path.name}, {path.stat().st_size} bytes: {str(error).splitlines()[0][:100]}"}
        if t.partition in found:
            refused["wrong_partition"] = f"{path.name} holds {t.partition} itself: only the log may name it"
        for column in t.columns:
            if column.name == t.partition:
                continue
            if column.name not in found:
                refused["missing_column"] = f"{column.name} is not in {path.name}"
            elif found[column.name] != _plain(column.arrow.type):
                refused["wrong_type"] = f"{column.name} is {found[column.name]}, not {column.arrow.type}"
    return refused


def _rows(
    lake: Lake, t: schema.Table, paths: list, partition: str | None, against: int | None
) -> tuple[int, dict[str, str]]:
    refused: dict[str, str] = {}
    con = duckdb.connect()
    try:
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET enable_progress_bar = false")
        extra = f", DATE '{partition}' AS {t.partition}" if t.partition else ""
        con.from_parquet([str(p) for p in paths], hive_partitioning=False).create_view("files")
        con.execute(f"CREATE VIEW staged AS SELECT *{extra} FROM files")
        needed = [c.name for c in t.columns if not c.nullable and c.name != t.partition]
        tests = [f"count(*) FILTER (WHERE {c} IS NULL)" for c in needed]
        tests += [f"count(*) FILTER (WHERE NOT ({condition}))" for condition in t.checks.values()]
        keys = ", ".join(t.key)
        with ThreadPoolExecutor(1) as beside:  # an engine writes one row group: one query keeps one core busy
            repeated = beside.submit(_repeated, con.cursor(), paths, [k for k in t.key if k != t.partition])
            found = con.execute(f"SELECT count(*), {', '.join(tests)} FROM staged").fetchall()[0]
        rows, counts = found[0], found[1:]
        nulls = {c: n for c, n in zip(needed, counts, strict=False) if n}
        broken = {c: n for c, n in zip(t.checks, counts[len(needed) :], strict=True) if n}
        if nulls:
            refused["null"] = ", ".join(f"{c} in {n} rows" for c, n in nulls.items())
        if broken:
            refused["check"] = ", ".join(f"{c} ({t.checks[c]}) in {n} rows" for c, n in broken.items())
        twice = (
            con.execute(
                f"SELECT {keys}, count(*) FROM staged GROUP BY {keys} HAVING count(*) > 1 ORDER BY {keys} LIMIT 1"
            ).fetchall()
            if repeated.result()
            else []
        )
        if twice:
            refused["duplicate_key"] = f"({keys}) = {twice[0][:-1]} stands {twice[0][-1]} times"
        if against is not None and rows:
            old = lake.handle(t.name, against).file_uris()
            if old:
                con.from_parquet(old, hive_partitioning=False).create_view("target")
                same = con.execute(f"SELECT {keys} FROM staged SEMI JOIN target USING ({keys}) LIMIT 1").fetchall()
                if same:
                    refused["existing_key"] = f"({keys}) = {same[0]} is in the table already"
        return rows, refused
    finally:
        con.close()


def _repeated(con: duckdb.DuckDBPyConnection, paths: list, keys: list[str]) -> bool:
    """Whether two rows' keys have one hash: no if all keys differ, and then nothing has to be grouped."""
    if sum(pq.read_metadata(p).num_rows for p in paths) > _IN_MEMORY:
        return True  # grouping spills to disk
    hashes = con.execute(f"SELECT hash({', '.join(keys)}) AS h FROM staged").fetchnumpy()["h"]
    hashes.sort()
    return bool((hashes[1:] == hashes[:-1]).any())

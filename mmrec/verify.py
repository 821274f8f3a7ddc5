"""`mmrec verify`: every promise that can be checked on the tables as they lie there.

In: settings. Out: findings, each with a name, whether it holds, and what was looked at. Nothing is changed.
Trade-off: everything is read once, so it takes as long as reading the lake.
"""

from __future__ import annotations

from typing import Any

import duckdb

from mmrec import schema
from mmrec.bundle import bundle
from mmrec.config import Config
from mmrec.errors import MmrecError
from mmrec.lake.content import content_hash
from mmrec.lake.sql import connect
from mmrec.lake.store import Lake

_KINDS = ("interactions", "items", "users", "relations", "impressions")


def verify(config: Config) -> list[dict[str, Any]]:
    """Findings of every check: `check`, `ok`, `detail`."""
    lake = Lake(config.lake)
    found: list[dict[str, Any]] = []

    def note(check: str, ok: bool, detail: str) -> None:
        found.append({"check": check, "ok": ok, "detail": detail})

    lost = _files(lake, note)
    if lost:
        return found
    con = connect(lake)
    try:
        _rows(con, lake, note)
        _conserved(con, note)
        _lists(con, lake, note)
    finally:
        con.close()
    versions = set(lake.arrow("gold.recommendations", columns=["model_version"]).column(0).unique().to_pylist())
    for version in sorted(versions):
        try:
            bundle.load(config.bundles / version)
            note(f"bundle {version}", True, "digest matches its files")
        except MmrecError as error:
            note(f"bundle {version}", False, str(error))
    return found


def _files(lake: Lake, note: Any) -> bool:
    lost, n = [], 0
    for name in schema.TABLES:
        if not lake.exists(name):
            lost.append(f"{name}: no table")
            continue
        log = lake.path(name) / "_delta_log"
        lost += [f"{name}: empty log entry {p.name}" for p in log.glob("*.json") if p.stat().st_size == 0]
        actions = lake.handle(name).get_add_actions(flatten=True)
        import pyarrow as pa

        table = pa.table(actions)
        for path, size in zip(table["path"].to_pylist(), table["size_bytes"].to_pylist(), strict=True):
            n += 1
            file = lake.path(name) / path
            if not file.is_file() or file.stat().st_size != size:
                lost.append(f"{name}: {path}")
    note("files", not lost, f"{n} files of {len(schema.TABLES)} tables" if not lost else "; ".join(lost[:5]))
    return bool(lost)


def _rows(con: duckdb.DuckDBPyConnection, lake: Lake, note: Any) -> None:
    for t in schema.TABLES.values():
        keys = ", ".join(t.key)
        tests = {f"{c.name} is null": f"{c.name} IS NULL" for c in t.columns if not c.nullable}
        tests |= {name: f"NOT ({condition})" for name, condition in t.checks.items()}
        sums = ", ".join(f"count(*) FILTER (WHERE {x})" for x in tests.values())
        rows, *counts = con.execute(f"SELECT count(*), {sums} FROM {t.view}").fetchall()[0]
        broken = [f"{name} in {n} rows" for name, n in zip(tests, counts, strict=True) if n]
        twice = con.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM {t.view} GROUP BY {keys} HAVING count(*) > 1)"
        ).fetchall()[0][0]
        if twice:
            broken.append(f"{twice} keys ({keys}) stand twice")
        note(f"rows of {t.name}", not broken, f"{rows:,} rows" if not broken else "; ".join(broken))


def _conserved(con: duckdb.DuckDBPyConnection, note: Any) -> None:
    for kind in _KINDS:
        raw, kept, lost = con.execute(f"""
            SELECT (SELECT count(*) FROM bronze_{kind}), (SELECT count(*) FROM {kind}),
              (SELECT count(*) FROM bronze_{kind} b
               WHERE NOT (b.occurrence = 0 AND EXISTS (SELECT 1 FROM {kind} s WHERE s.row_hash = b.row_hash))
                 AND NOT EXISTS (SELECT 1 FROM ops_quarantine q WHERE q.table_name = 'bronze.{kind}'
                                 AND q.row_hash = b.row_hash AND q.occurrence = b.occurrence))""").fetchall()[0]
        note(
            f"every row of bronze.{kind} is kept or quarantined",
            lost == 0,
            f"{raw:,} = {kept:,} kept + {raw - kept:,} quarantined" if not lost else f"{lost} rows are in neither",
        )


def _lists(con: duckdb.DuckDBPyConnection, lake: Lake, note: Any) -> None:
    recorded = {(r["run_date"], r["run_id"]): r for r in lake.arrow("ops.runs").to_pylist()}
    for day in lake.run_dates():
        rows = lake.day("gold.recommendations", day)
        runs = rows["run_id"].unique().to_pylist()
        run = recorded.get((day, runs[0])) if len(runs) == 1 else None
        digest = content_hash(rows, "gold.recommendations")
        ok = run is not None and run["content_hash"] == digest
        note(
            f"lists of {day}",
            ok,
            f"{rows.num_rows:,} rows, sha256 {digest[:16]}, as recorded"
            if ok
            else f"runs {runs}, sha256 {digest[:16]}, recorded {run['content_hash'][:16] if run else 'nothing'}",
        )
    seen = con.execute("""SELECT count(*) FROM recommendations r JOIN user_sequences u
        ON u.user_id = r.user_id AND u.run_date = r.run_date
        WHERE list_contains(u.seen_item_ids, r.item_id)""").fetchall()[0][0]
    note("no list offers what its user has seen", seen == 0, f"{seen} such rows")

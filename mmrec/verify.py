"""`mmrec verify`: every promise that can be checked on the tables as they lie there.

In: settings. Out: findings, each with a name, whether it holds, and what was looked at. Nothing is changed.
Trade-off: rows are read once, so it takes as long as reading the lake; bytes are compared only with `deep`, which reads
every file as well. A table whose log or files are damaged is reported, and its rows are not looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from mmrec import schema
from mmrec.bundle import bundle
from mmrec.config import Config
from mmrec.errors import MmrecError
from mmrec.lake import evolve, log
from mmrec.lake.content import content_hash
from mmrec.lake.sql import connect
from mmrec.lake.stage import waiting
from mmrec.lake.store import Expired, Lake
from mmrec.schema import changes

Note = Callable[[str, bool, str], None]


def verify(config: Config, *, deep: bool = False) -> list[dict[str, Any]]:
    """Findings of every check: `check`, `ok`, `detail`.

    Args:
        deep: compare every file's bytes with what its writer recorded.
    """
    lake = Lake(config.lake)
    found: list[dict[str, Any]] = []

    def note(check: str, ok: bool, detail: str) -> None:
        found.append({"check": check, "ok": ok, "detail": detail})

    files = _files(lake, note, deep)
    if files is None:
        return found
    differ = evolve.different(lake)
    wrong = [str(d) for d in differ if not d.additive]
    more = f"; the next night adds {len(differ)} things" if differ else ""
    note("tables have the schema's form", not wrong, _some(wrong) or f"{len(files)} tables{more}")
    _staged(lake, config, files, note)
    con = connect(lake)
    try:
        _rows(con, files, note)
        _conserved(con, lake, [k for k in schema.DELIVERED if {f"bronze.{k}", f"silver.{k}"} <= files.keys()], note)
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


def _files(lake: Lake, note: Note, deep: bool) -> dict[str, set[str]] | None:
    """Logs whole, files there and of their size; with `deep`, of their bytes. Returns: table -> files; None: damage."""
    unmade: list[str] = []
    broken: list[str] = []
    lost: list[str] = []
    altered: list[str] = []
    known: dict[str, set[str]] = {}
    n = 0
    for name in schema.TABLES:
        if not lake.exists(name):
            unmade += [name] if name in changes.BASELINE else []  # what came later is made by the next night
            continue
        folder = lake.path(name)
        damaged = log.damage(folder, name, all_of_it=True)
        if damaged:
            broken += [f"{name} version {d.version}: {d.what}" for d in damaged]
            continue
        table = pa.table(lake.handle(name).get_add_actions(flatten=True))
        known[name] = set(table["path"].to_pylist())
        digests: dict[str, str] = {}
        for path, size in zip(table["path"].to_pylist(), table["size_bytes"].to_pylist(), strict=True):
            n += 1
            file = folder / path
            if not file.is_file():
                lost.append(f"{name}: {path} is missing")
            elif file.stat().st_size != size:
                lost.append(f"{name}: {path} has {file.stat().st_size} bytes, not {size}")
            elif deep:
                try:
                    digests |= {} if path in digests else _recorded(folder, path)
                except (ValueError, KeyError, TypeError, AttributeError):
                    altered.append(f"{name}: the record of {path.split('/')[0]}")
                    continue
                if path in digests and digests[path] != _sha256(file):
                    altered.append(f"{name}: {path}")
    note("tables are there", not unmade, f"{len(known)} tables" if not unmade else f"mmrec init makes: {_some(unmade)}")
    note("logs are whole", not broken, _some(broken) or f"{len(known)} tables; mmrec repair mends what can be mended")
    note("files are there", not lost, _some(lost) or f"{n} files of {len(known)} tables")
    if deep:
        note("files hold what was written", not altered, _some(altered) or f"{n} files")
    return None if unmade or broken or lost or altered else known


def _recorded(folder: Path, path: str) -> dict[str, str]:
    """What the writer of `path` recorded of its stage: path in the table -> sha256."""
    stage = path.split("/")[0]
    record = folder / stage / "_stage.json"
    if not record.is_file():
        return {}
    return {f"{stage}/{name}": about["sha256"] for name, about in json.loads(record.read_text())["files"].items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _staged(lake: Lake, config: Config, files: dict[str, set[str]], note: Note) -> None:
    """A staged file is of a version that can be read, waits to be published, or is left over and will be removed."""
    found = [waiting(p) for p in config.runs.glob("*/stage.json")]
    waits = {p.name for p in found if p}
    counts = {"in use": 0, "of older versions": 0, "waiting": 0, "left over": 0}
    for name, used in files.items():
        folder = lake.path(name)
        now = {path.split("/")[0] for path in used}
        for stage in folder.glob("stage-*"):
            adopted = any(stage.glob("_entry-*.json"))
            kind = (
                "in use" if stage.name in now
                else "of older versions" if adopted
                else "waiting" if stage.name in waits
                else "left over"
            )  # fmt: skip
            counts[kind] += 1
    note("every stage is accounted for", True, ", ".join(f"{n} {kind}" for kind, n in counts.items()))


def _rows(con: duckdb.DuckDBPyConnection, files: dict[str, set[str]], note: Note) -> None:
    for t in map(schema.table, files):
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


def _conserved(con: duckdb.DuckDBPyConnection, lake: Lake, kinds: list[str], note: Note) -> None:
    """A delivered row is kept, or held with its reason; one that was brought back is both, and counts as kept. A row
    that came after the last validation waits for the next."""
    for kind in kinds:
        con.execute(f"""CREATE OR REPLACE TEMP VIEW judged AS SELECT b.row_hash, b.occurrence,
              b.occurrence = 0 AND EXISTS (SELECT 1 FROM {kind} s WHERE s.row_hash = b.row_hash) AS kept,
              EXISTS (SELECT 1 FROM ops_quarantine q WHERE q.table_name = 'bronze.{kind}'
                      AND q.row_hash = b.row_hash AND q.occurrence = b.occurrence) AS held FROM bronze_{kind} b""")
        raw, kept, held = con.execute(f"""SELECT (SELECT count(*) FROM judged), (SELECT count(*) FROM {kind}),
              (SELECT count(*) FROM judged WHERE held AND NOT kept)""").fetchall()[0]
        waits = _waiting(con, lake, kind) if raw > kept + held else 0
        told = f"{raw:,} = {kept:,} kept + {held:,} quarantined"
        told += f" + {waits:,} that wait for the next validation" if waits else ""
        lost = raw - kept - held - waits
        note(f"every row of bronze.{kind} is kept or quarantined", lost == 0,
             told if lost == 0 else f"{told} + {lost:,} that are in neither")
        (foreign,) = con.execute(f"""SELECT count(*) FROM {kind} s ANTI JOIN (SELECT row_hash FROM bronze_{kind}
            WHERE occurrence = 0) b ON b.row_hash = s.row_hash""").fetchall()[0]
        note(f"every row of silver.{kind} was delivered", foreign == 0, f"{foreign} rows came from nowhere")
        (ghosts,) = con.execute(f"""SELECT count(*) FROM ops_quarantine q
            ANTI JOIN bronze_{kind} b ON b.row_hash = q.row_hash AND b.occurrence = q.occurrence
            WHERE q.table_name = 'bronze.{kind}'""").fetchall()[0]
        note(f"every verdict on {kind} is of a delivered row", ghosts == 0, f"{ghosts} of rows that are not there")


def _waiting(con: duckdb.DuckDBPyConnection, lake: Lake, kind: str) -> int:
    """Rows in neither that the last validation on record has not read: a night is between its ingest and the next."""
    if not lake.exists("ops.steps"):
        return 0
    query = """SELECT max_by("read", finished_at) FROM ops_steps WHERE step = 'validate'"""
    (read,) = con.execute(query).fetchall()[0]
    key = ["row_hash", "occurrence"]
    try:
        version = json.loads(read or "{}").get(f"bronze.{kind}", 0)  # version 0 is the empty table
        con.register("validated", lake.arrow(f"bronze.{kind}", version, columns=key))
    except Expired:
        return 0
    query = f"SELECT count(*) FROM judged ANTI JOIN validated USING ({', '.join(key)}) WHERE NOT kept AND NOT held"
    (n,) = con.execute(query).fetchall()[0]
    con.unregister("validated")
    return int(n)


def _lists(con: duckdb.DuckDBPyConnection, lake: Lake, note: Note) -> None:
    recorded = {(r["run_date"], r["run_id"]): r for r in lake.arrow("ops.runs").to_pylist()}
    days = lake.run_dates()
    beside, apart = 0, 0
    for day in days:
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
        found = _beside(con, lake, day, run["manifest"]) if run else None
        beside, apart = beside + (found or 0), apart + (found is not None)
    note("no list offers an item beside its twin", beside == 0,
         f"{beside} exceptions" if beside else f"{apart} dates; of {len(days) - apart} no groups are kept")
    # a date that a night was planned for, before the last one that is published, has lists or says why
    begun = _days(con, "ops_steps", "step = 'plan'") if lake.exists("ops.steps") else set()
    said = _days(con, "ops_alerts", "kind = 'late_source'") if lake.exists("ops.alerts") else set()
    open_ = sorted(str(d) for d in begun - said - set(days) if days and d < days[-1])
    unasked = (days[-1] - days[0]).days + 1 - len(days) if days else 0
    told = f"{len(days)} dates" + (f"; {unasked} between them were not asked for" if unasked else "")
    note("dates are complete", not open_, f"planned, and neither lists nor a reason: {_some(open_)}" if open_ else told)
    for name, query in _PROMISES.items():
        if "ops_rule_drops" in query and not lake.exists("ops.rule_drops"):
            continue  # of before there were rules
        (n,) = con.execute(query).fetchall()[0]
        note(name, n == 0, f"{n} exceptions")


def _beside(con: duckdb.DuckDBPyConnection, lake: Lake, day: date, manifest: str) -> int | None:
    """Groups of which a list of the date holds two, by the groups that its night read; None: it read none, or they are
    kept no more."""
    name = "silver.item_groups"
    version = json.loads(manifest).get("tables", {}).get(name)
    if version is None:
        return None
    try:
        con.register("groups_of_the_night", lake.arrow(name, version, columns=["item_id", "group_id"]))
    except Expired:
        return None
    query = """SELECT count(*) FROM (SELECT 1 FROM recommendations JOIN groups_of_the_night USING (item_id)
        WHERE run_date = ? GROUP BY arm, user_id, group_id HAVING count(DISTINCT item_id) > 1)"""
    (n,) = con.execute(query, [day]).fetchall()[0]
    con.unregister("groups_of_the_night")
    return int(n)


def _days(con: duckdb.DuckDBPyConnection, view: str, condition: str) -> set[date]:
    return {r[0] for r in con.execute(f"SELECT DISTINCT run_date FROM {view} WHERE {condition}").fetchall()}


_PROMISES = {
    "no list offers what its user has seen, but by a rule that lets it": """SELECT count(*) FROM recommendations r
        JOIN user_sequences u
        ON u.user_id = r.user_id AND u.run_date = r.run_date WHERE list_contains(u.seen_item_ids, r.item_id)
        AND NOT EXISTS (SELECT 1 FROM ops_rule_drops d WHERE d.run_id = r.run_id AND d.rule = r.rule
          AND d.kind = 'repeat')""",
    "no list offers what its user has hidden": """SELECT count(*) FROM recommendations r JOIN user_sequences u
        ON u.user_id = r.user_id AND u.run_date = r.run_date
        LEFT JOIN item_features i ON i.item_id = r.item_id AND i.run_date = r.run_date
        WHERE u.wishes IS NOT NULL AND (list_contains(u.wishes, 'hide item=' || r.item_id)
          OR list_has_any(u.wishes, list_transform(i.categories, lambda c: 'hide category=' || c)))""",
    "every list offers only what is on offer": """SELECT count(*) FROM recommendations r ANTI JOIN item_features i
        ON i.item_id = r.item_id AND i.run_date = r.run_date
        WHERE r.run_date IN (SELECT run_date FROM item_features)""",
    "ranks of a list are 1 to n": """SELECT count(*) FROM (SELECT 1 FROM recommendations
        GROUP BY run_date, arm, user_id HAVING min(rank) <> 1 OR max(rank) <> count(*)
          OR count(DISTINCT rank) <> count(*))""",
    "no list offers an item twice": """SELECT count(*) FROM (SELECT 1 FROM recommendations
        GROUP BY run_date, arm, user_id HAVING count(DISTINCT item_id) <> count(*))""",
    "every candidate is in its list or passed over, with its cause": """SELECT count(*) FROM (
        SELECT place, row_number() OVER w + sum(coalesce(list_sum(passed_n), 0)) OVER w AS due FROM recommendations
        WHERE place IS NOT NULL WINDOW w AS (PARTITION BY run_date, arm, user_id ORDER BY rank)) WHERE place <> due""",
    "what rules did is what the lists say": """SELECT count(*) FROM (
        SELECT run_id, rule, sum(n) AS n FROM (
          SELECT run_id, unnest(passed) AS rule, unnest(passed_n) AS n FROM recommendations WHERE passed IS NOT NULL
          UNION ALL SELECT run_id, rule, 1 FROM recommendations WHERE rule IS NOT NULL) GROUP BY ALL) did
        JOIN (SELECT DISTINCT run_id FROM ops_rule_drops) USING (run_id)
        LEFT JOIN ops_rule_drops told ON told.run_id = did.run_id AND told.rule = did.rule
        WHERE told.rule IS NULL OR told.passed + told.placed <> did.n""",
    "a date and arm has one run": """SELECT count(*) FROM (SELECT 1 FROM recommendations
        GROUP BY run_date, arm HAVING count(DISTINCT run_id) > 1)""",
    "a date and arm has one model": """SELECT count(*) FROM (SELECT 1 FROM recommendations WHERE source = 'model'
        GROUP BY run_date, arm HAVING count(DISTINCT model_version) > 1)""",
    "latest_recommendations is the greatest date": """SELECT count(*) FROM latest_recommendations
        WHERE run_date <> (SELECT max(run_date) FROM recommendations)""",
}


def _some(found: list[str]) -> str:
    return "; ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")

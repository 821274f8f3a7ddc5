"""The look at publish at what has left the shop since the night's moment: it is taken out of the staged lists.

In: a planned night whose lists are staged, silver.items as it is now. Out: the items, and a stage without them, in
which ranks close up and the row behind what went says `withdrawn` among what was passed over.
A list gets shorter by what went. What was taken out stands in ops.runs, so a replay takes out the same.
Trade-off: a night whose day is over is not looked at: nobody is shown its lists, and they stay what they were.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec import dates, schema
from mmrec.context import Night
from mmrec.files import put
from mmrec.lake import stage
from mmrec.lake.bounded import bounded
from mmrec.recommend.ruling import WITHDRAWN

_LISTS, _ITEMS, _RUNS = "gold.recommendations", "silver.items", "ops.runs"
_ROWS = 65_536  # of a batch
_MEMORY = "640MB"  # at first
_WITHOUT = """
    WITH told AS (SELECT l.*, g.item_id IS NOT NULL AS went,
            count(*) FILTER (WHERE g.item_id IS NULL) OVER w AS kept
        FROM lists l LEFT JOIN gone g ON g.item_id = l.item_id
        WINDOW w AS (PARTITION BY l.arm, l.user_id ORDER BY l.rank)),
    -- what went belongs to the next row that stays
    spans AS (SELECT *, kept + went::INT AS span FROM told),
    over_ AS (SELECT arm, user_id, span, cause, sum(n)::BIGINT AS n FROM (
            SELECT arm, user_id, span, unnest(passed) AS cause, unnest(passed_n) AS n FROM spans
            WHERE passed IS NOT NULL
            UNION ALL SELECT arm, user_id, span, $cause, 1 FROM spans WHERE went AND place IS NOT NULL)
        SEMI JOIN (SELECT arm, user_id, span FROM spans WHERE went) USING (arm, user_id, span) GROUP BY ALL),
    lists_ AS (SELECT arm, user_id, span, list(cause ORDER BY cause) AS causes, list(n ORDER BY cause) AS many
        FROM over_ GROUP BY ALL)
    SELECT $day::DATE AS run_date, s.* REPLACE (s.kept AS rank, coalesce(o.causes, s.passed) AS passed,
        coalesce(o.many, s.passed_n) AS passed_n)
    FROM spans s LEFT JOIN lists_ o USING (arm, user_id, span) WHERE NOT s.went ORDER BY s.user_id, s.arm, s.rank"""


def withdrawn(night: Night) -> list[str]:
    """Items of the day's features that are no longer on offer, ascending; of a replay, those that were taken out then.

    What it says is kept beside the manifest until the run is on record.
    """
    m = night.manifest
    if night.replayed:
        return recorded(night)
    now = _now()
    if not m.moment <= now < dates.as_of(m.day + timedelta(1), m.config["zone"]):
        return []
    moment = ds.scalar(m.moment)
    changed = (ds.field("available_at") >= moment) | (ds.field("withdrawn_at") >= moment)
    asked = night.lake.arrow(_ITEMS, where=changed, columns=["item_id"])["item_id"].unique()
    offered = night.out.day("gold.item_features", m.day, columns=["item_id"])["item_id"]
    asked = asked.filter(pc.is_in(asked, value_set=offered.combine_chunks()))
    columns = ["item_id", "available_at", "row_hash", "valid_from", "withdrawn_at"]
    rows = night.lake.arrow(_ITEMS, where=ds.field("item_id").isin(asked), columns=columns).to_pylist()
    newest: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: (r["available_at"], r["row_hash"])):
        if row["available_at"] < now:
            newest[row["item_id"]] = row
    gone = sorted(i for i, r in newest.items() if r["valid_from"] >= now or (r["withdrawn_at"] or now) < now)
    put(night.folder / f"{WITHDRAWN}.json", json.dumps(gone))
    return gone


def recorded(night: Night) -> list[str]:
    """What the published run took out, or is about to have taken out."""
    where = ds.field("run_id") == night.manifest.run_id
    rows = night.lake.arrow(_RUNS, where=where, columns=[WITHDRAWN]).to_pylist()
    if rows:
        return rows[0][WITHDRAWN] or []
    try:
        return json.loads((night.folder / f"{WITHDRAWN}.json").read_text())
    except FileNotFoundError:
        return []


def without(night: Night, staged: stage.Stage, gone: list[str]) -> stage.Stage:
    """Staged lists without some items; the stage itself where they hold none of them."""
    files = [str(staged.folder / f.path) for f in staged.files]
    if not gone or not files:
        return staged
    try:
        with bounded(_MEMORY, threads=None) as con:
            return _without(con, night, staged, files, gone)
    except duckdb.OutOfMemoryException:  # of many millions of rows, that is
        with duckdb.connect() as con:
            return _without(con, night, staged, files, gone)


def _without(
    con: duckdb.DuckDBPyConnection, night: Night, staged: stage.Stage, files: list[str], gone: list[str]
) -> stage.Stage:
    con.from_parquet(files, hive_partitioning=False).create_view("lists")
    names = schema.table(_LISTS).arrow.names
    con.register("gone", pa.table({"item_id": pa.array(gone, pa.string())}))
    (hit,) = con.execute("SELECT count(*) FROM lists SEMI JOIN gone USING (item_id)").fetchall()[0]
    if not hit:
        return staged
    batches = con.sql(_WITHOUT, params={"cause": WITHDRAWN, "day": night.manifest.day}).to_arrow_reader(_ROWS)
    rows = (pa.RecordBatch.from_pydict({name: b.column(name) for name in names}) for b in batches)
    return stage.stage(night.out, _LISTS, rows, night.manifest.run_id)


def _now() -> datetime:
    return datetime.now(UTC)

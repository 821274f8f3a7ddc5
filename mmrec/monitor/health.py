"""Is the night healthy: how old its inputs were, and what its lists look like as a set.

In: a lake with a published run_date. Out: Arrow rows of ops.freshness and ops.metrics (protocol "night").
Everything is counted by DuckDB on integers and divided once in Python, so that threads and file order can't change
a digit. Trade-off: two list positions count as equal or not, with no weight for rank, because a share of changed
items is what a person can check by eye.
"""

from __future__ import annotations

import math
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec import schema
from mmrec.errors import InputError
from mmrec.lake import sql
from mmrec.lake.store import Lake

REQUIRED = ("silver.interactions", "silver.items")  # the others may be empty for good
_DELIVERED = frozenset(f"silver.{kind}" for kind in schema.DELIVERED)
_SUSPECTS = ("rate", "burst", "copycat")
_TOP = 10
_HOUR_US = 3_600_000_000


def freshness(
    lake: Lake, versions: dict[str, int], run_date: date, as_of: datetime, max_age_hours: float, run_id: str
) -> pa.Table:
    """How old each delivered table of silver was when the night read it.

    Args:
        versions: table -> pinned version; tables that no source delivers are passed over.
        as_of: aware instant, exclusive: deliveries at or after it don't count.
        max_age_hours: an input whose newest delivery is older than this is stale.

    Returns: rows of ops.freshness, by table name. A table without a delivery has no age; it is stale only if no
        night can do without it (interactions, items).
    """
    moment = pa.scalar(as_of, pa.timestamp("us", tz="UTC"))
    found = []
    for name, version in sorted(versions.items()):
        if name not in _DELIVERED:
            continue
        n, newest = 0, None
        for batch in lake.batches(name, version, columns=["available_at"], where=ds.field("available_at") < moment):
            if batch.num_rows:
                n += batch.num_rows
                top = pc.max(batch.column(0)).cast(pa.int64()).as_py()
                newest = top if newest is None else max(newest, top)
        age = None if newest is None else (moment.cast(pa.int64()).as_py() - newest) / _HOUR_US
        found.append(
            {
                "run_date": run_date,
                "table_name": name,
                "version": version,
                "rows": n,
                "latest_available_at": newest,
                "age_hours": age,
                "stale": name in REQUIRED if age is None else age > max_age_hours,
                "run_id": run_id,
            }
        )
    return _table("ops.freshness", found)


def night_metrics(lake: Lake, run_date: date, run_id: str, model_version: str, k: int) -> pa.Table:
    """What a published night looks like as a whole.

    Args:
        k: places a full list has.

    Returns: rows of ops.metrics with protocol and model "night", split "none", and the night's `model_version`:
        users_with_list (n: users known), lists_short (fewer than k rows; n: lists), distinct_items (n: rows),
        row_share on slice source=<source> (n: rows), coverage@10 (share of items on offer in some top 10; n: items on
        offer), popularity_percentile@10 (mean over places; 1 is the most popular item on offer, ties share their
        middle), cold_item_share@10 (places whose item nobody has touched), churn@10 (mean Jaccard distance to the
        last published lists, of lists in both; n: such lists; absent on a first night), quarantined on slices all
        and rule=<rule> (rows on record so far), suspects on slices all and kind=<kind> (n: users known).

    Raises: InputError: nothing is published for `run_date`.
    """
    con = sql.connect(lake)
    try:
        numbers = _counts(con, lake, run_date, k)
    finally:
        con.close()
    common = {
        "run_date": run_date, "model_version": model_version, "model": "night", "protocol": "night", "split": "none",
        "lo": None, "hi": None, "run_id": run_id,
    }  # fmt: skip
    rows = [common | {"slice": s, "metric": m, "value": float(v), "n": n} for s, m, v, n in numbers]
    return _table("ops.metrics", rows)


def _counts(con: Any, lake: Lake, run_date: date, k: int) -> list[tuple[str, str, float, int]]:
    """(slice, metric, value, n) of the night."""

    def one(query: str, *values: Any) -> tuple[Any, ...]:
        return con.execute(query, list(values)).fetchone()

    rows, lists, distinct, short = one(
        """SELECT coalesce(sum(n), 0)::BIGINT, count(*), (SELECT count(DISTINCT item_id) FROM recommendations
             WHERE run_date = $1), count(*) FILTER (n < $2)
           FROM (SELECT count(*) AS n FROM recommendations WHERE run_date = $1 GROUP BY arm, user_id)""",
        run_date,
        k,
    )
    if not rows:
        known = lake.run_dates()
        raise InputError(
            "nothing is published for this run_date",
            where="gold.recommendations",
            value=str(run_date),
            valid=[str(d) for d in known[-5:]] or "no run_date yet",
            next=f"mmrec publish --date {run_date}",
        )
    served = one("SELECT count(DISTINCT user_id) FROM recommendations WHERE run_date = ?", run_date)[0]
    users = one("SELECT count(*) FROM user_sequences WHERE run_date = ?", run_date)[0]
    out: list[tuple[str, str, float, int]] = [
        ("all", "users_with_list", served, users or served),
        ("all", "lists_short", short, lists),
        ("all", "distinct_items", distinct, rows),
    ]
    for source, n in con.execute(
        "SELECT source, count(*) FROM recommendations WHERE run_date = ? GROUP BY 1 ORDER BY 1", [run_date]
    ).fetchall():
        out.append((f"source={source}", "row_share", n / rows, rows))
    out += _popularity(one, run_date) + _churn(con, lake, run_date)
    total = 0
    for rule, n in con.execute("SELECT rule, count(*) FROM ops_quarantine GROUP BY 1 ORDER BY 1").fetchall():
        out.append((f"rule={rule}", "quarantined", n, n))
        total += n
    out.append(("all", "quarantined", total, total))
    counted = ", ".join(f"count(DISTINCT user_id) FILTER (kind = '{kind}')" for kind in _SUSPECTS)
    everyone, *by_kind = one(
        f"""SELECT count(DISTINCT user_id), {counted} FROM ops_suspects
            WHERE run_date = $1 AND run_id IN (SELECT run_id FROM recommendations WHERE run_date = $1)""",
        run_date,
    )
    out += [(f"kind={kind}", "suspects", n, users) for kind, n in zip(_SUSPECTS, by_kind, strict=True)]
    return [*out, ("all", "suspects", everyone, users)]


def _popularity(one: Any, run_date: date) -> list[tuple[str, str, float, int]]:
    """Coverage, mean popularity percentile and share of cold items over the first ten places."""
    catalogue, places, distinct, cold, twice_rank = one(
        """WITH items AS (
             SELECT item_id, n_interactions, rank() OVER w AS lowest, count(*) OVER p AS ties, count(*) OVER () AS n
             FROM item_features WHERE run_date = $1
             WINDOW w AS (ORDER BY popularity_micro), p AS (PARTITION BY popularity_micro)),
           top AS (SELECT item_id, count(*) AS places FROM recommendations
             WHERE run_date = $1 AND rank <= $2 GROUP BY 1)
           SELECT (SELECT count(*) FROM items), coalesce(sum(places), 0)::BIGINT, count(*),
             coalesce(sum(places) FILTER (n_interactions = 0), 0)::BIGINT,
             coalesce(sum(places * (2 * (lowest - 1) + ties - 1)), 0)::HUGEINT
           FROM top JOIN items USING (item_id)""",
        run_date,
        _TOP,
    )
    if not places:
        return []
    spread = 2 * (catalogue - 1) or 1  # twice the rank, because a tie's middle may be a half
    return [
        ("all", f"coverage@{_TOP}", distinct / catalogue, catalogue),
        ("all", f"popularity_percentile@{_TOP}", int(twice_rank) / spread / places, places),
        ("all", f"cold_item_share@{_TOP}", cold / places, places),
    ]


def _churn(con: Any, lake: Lake, run_date: date) -> list[tuple[str, str, float, int]]:
    before = [d for d in lake.run_dates() if d < run_date]
    if not before:
        return []
    groups = con.execute(
        """WITH now AS (SELECT arm, user_id, item_id FROM recommendations WHERE run_date = $1 AND rank <= $3),
             was AS (SELECT arm, user_id, item_id FROM recommendations WHERE run_date = $2 AND rank <= $3),
             a AS (SELECT arm, user_id, count(*) AS n FROM now GROUP BY 1, 2),
             b AS (SELECT arm, user_id, count(*) AS n FROM was GROUP BY 1, 2),
             c AS (SELECT arm, user_id, count(*) AS n FROM now JOIN was USING (arm, user_id, item_id) GROUP BY 1, 2)
           SELECT coalesce(c.n, 0) AS common, a.n + b.n - coalesce(c.n, 0) AS either, count(*)
           FROM a JOIN b USING (arm, user_id) LEFT JOIN c USING (arm, user_id) GROUP BY 1, 2""",
        [run_date, before[-1], _TOP],
    ).fetchall()
    lists = sum(n for _, _, n in groups)
    if not lists:
        return []
    # fsum is exact, so the order in which groups come changes nothing
    return [("all", f"churn@{_TOP}", math.fsum(n * (1 - c / e) for c, e, n in groups) / lists, lists)]


def _table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    arrow = schema.table(name).arrow
    return pa.table([pa.array([r[f.name] for r in rows], f.type) for f in arrow], schema=arrow)

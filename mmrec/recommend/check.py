"""The last look at finished slates, on what is staged, before they are published.

In: rows of gold.recommendations, the day's users and items, who is listed twice. Out: nothing, or a QualityError
naming each fault: seen_item, not_on_offer, unknown_user, gap_in_ranks, repeated_item, twins, too_long, order,
forbidden, cap_exceeded, hidden, uncounted.
Trade-off: it repeats what the scorer promised, on purpose and by other means (joins in DuckDB, not the kernel).
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from mmrec.errors import QualityError
from mmrec.lake.bounded import bounded
from mmrec.recommend.ruling import TABLES

_MEMORY = "640MB"  # at first
_FAULTS = {
    "seen_item": """SELECT r.user_id, r.item_id FROM lists r SEMI JOIN seen s USING (user_id, item_id)
                    ANTI JOIN again a USING (user_id, item_id)""",
    "not_on_offer": "SELECT r.user_id, r.item_id FROM lists r ANTI JOIN items i ON i.item_id = r.item_id",
    "unknown_user": "SELECT r.user_id FROM lists r ANTI JOIN users u ON u.user_id = r.user_id",
    "gap_in_ranks": """SELECT user_id, count(*) FROM lists GROUP BY arm, user_id
                       HAVING max(rank) <> count(*) OR min(rank) <> 1 OR count(DISTINCT rank) <> count(*)""",
    "repeated_item": "SELECT user_id, item_id FROM lists GROUP BY arm, user_id, item_id HAVING count(*) > 1",
    "twins": """SELECT user_id, group_id FROM lists JOIN grouped USING (item_id) GROUP BY arm, user_id, group_id
                HAVING count(DISTINCT item_id) > 1""",
    "too_long": "SELECT user_id, max(rank) FROM lists GROUP BY arm, user_id HAVING max(rank) > $k",
    # of the ranking: diversity puts it in another order, and keeps the places
    "order": """SELECT user_id, rank FROM (SELECT *, lag(score) OVER w AS before, lag(item_id) OVER w AS id FROM lists
                WHERE (rule IS NULL OR ranked IS NOT NULL) AND source <> 'drawn'
                WINDOW w AS (PARTITION BY arm, user_id, source ORDER BY coalesce(ranked, rank)))
                WHERE score > before OR (score = before AND item_id < id)""",
    "forbidden": """SELECT r.user_id, r.item_id, b.name FROM lists r JOIN bars b USING (item_id)
                    LEFT JOIN bound u ON u.name = b.name AND u.user_id = r.user_id
                    WHERE NOT b.some OR u.user_id IS NOT NULL""",
    "cap_exceeded": """SELECT r.user_id, c.name, count(*) FROM lists r JOIN counted c USING (item_id)
                       LEFT JOIN bound u ON u.name = c.name AND u.user_id = r.user_id
                       WHERE NOT c.some OR u.user_id IS NOT NULL
                       GROUP BY r.arm, r.user_id, c.name, c.code, c.most HAVING count(*) > c.most""",
    "hidden": "SELECT r.user_id, r.item_id FROM lists r SEMI JOIN hidden h USING (user_id, item_id)",
    # a row's place is the rows before it and what was passed over, and itself
    "uncounted": """SELECT user_id, rank FROM (
                    SELECT *, row_number() OVER w + sum(coalesce(list_sum(passed_n), 0)) OVER w AS due FROM lists
                    WHERE place IS NOT NULL WINDOW w AS (PARTITION BY arm, user_id ORDER BY rank))
                    WHERE place <> due""",
}

_NO_GROUPS = pa.table({"item_id": pa.array([], pa.string()), "group_id": pa.array([], pa.string())})


def check_slates(
    files: list[Path], users: pa.Table, items: pa.Table, k: int, groups: pa.Table | None = None,
    ruled: dict[str, pa.Table] | None = None,
) -> int:  # fmt: skip
    """Check staged slates.

    Args:
        files: Parquet files of one day. users: gold.user_sequences (user_id, seen_item_ids). items: gold.item_features.
        k: places in a list. groups: silver.item_groups (item_id, group_id); None: not known.
        ruled: tables of `TABLES`, as rules and wishes give them; those that are missing are empty.

    Returns: users with a list. Raises: QualityError with `report["faults"]`.
    """
    try:
        with bounded(_MEMORY, threads=None) as con:
            return _checked(con, files, users, items, k, groups, ruled or {})
    except duckdb.OutOfMemoryException:  # of many millions of rows, that is
        with duckdb.connect() as con:
            return _checked(con, files, users, items, k, groups, ruled or {})


def _checked(
    con: duckdb.DuckDBPyConnection, files: list[Path], users: pa.Table, items: pa.Table, k: int,
    groups: pa.Table | None, ruled: dict[str, pa.Table],
) -> int:  # fmt: skip
    con.from_parquet([str(f) for f in files], hive_partitioning=False).create_view("lists")
    con.register("users", users.select(["user_id", "seen_item_ids"]))
    con.register("items", items.select(["item_id"]))
    con.register("grouped", _NO_GROUPS if groups is None else groups.select(["item_id", "group_id"]))
    for name, arrow in TABLES.items():
        con.register(name, ruled.get(name, arrow.empty_table()))
    con.execute("CREATE TEMP TABLE seen AS SELECT user_id, unnest(seen_item_ids) AS item_id FROM users")
    faults = {}
    for name, query in _FAULTS.items():
        found = con.execute(query, {"k": k} if "$k" in query else None).fetchall()
        if found:
            faults[name] = f"{len(found)} times, as {found[0]}"
    if faults:
        raise QualityError(
            "the finished lists break a promise: " + "; ".join(f"{n}: {t}" for n, t in faults.items()),
            where="gold.recommendations, staged",
            valid="lists that keep every promise of docs/promises.md",
            next="mmrec run --date D --force",
            report={"faults": faults},
        )
    return con.execute("SELECT count(DISTINCT user_id) FROM lists").fetchall()[0][0]

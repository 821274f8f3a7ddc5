"""What a run staged, counted from what is on disk: lists may have been made on other machines.

In: a stage of lists, the tables its lists were made from. Out: counts for the log and for ops.
Trade-off: two columns of every staged file are read once more; in exchange a count can't be of rows that never arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from mmrec.lake.bounded import bounded
from mmrec.lake.stage import Stage
from mmrec.lake.store import Lake
from mmrec.recommend.histories import flat


def tally(
    lake: Lake,
    staged: Stage,
    run_date: date,
    k: int,
    sides: Sequence[np.ndarray],
    sources: dict[str, tuple[int, tuple[str, ...]]],
) -> dict[str, int]:
    """Count lists, rows and who was dropped.

    Args:
        k: length of a full list.
        sides: (items, dim) float of each model with vectors, the items' that were scored.
        sources: table -> (version, columns) that the lists were made from.

    Returns: users, rows, fallback_rows, short_lists (users with fewer than k), dropped_users and dropped_items (a
    vector with a value that is not finite).
    """
    files = [str(staged.folder / f.path) for f in staged.files]
    day = ds.field("run_date") == run_date
    users = lake.dataset("gold.user_sequences").count_rows(filter=day)
    counts = {"users": users, "short_lists": users}
    counts |= dict.fromkeys(("rows", "fallback_rows", "dropped_users", "dropped_items"), 0)
    if files:
        with bounded() as con:
            con.from_parquet(files, hive_partitioning=False).create_view("lists")
            rows, fallback, full = con.execute(
                """SELECT coalesce(sum(n), 0)::BIGINT, coalesce(sum(other), 0)::BIGINT, count(*) FILTER (WHERE n = $k)
                   FROM (SELECT count(*) AS n, count(*) FILTER (WHERE starts_with(source, 'fallback')) AS other
                         FROM lists GROUP BY user_id)""", {"k": k}).fetchall()[0]  # fmt: skip
        counts |= {"rows": rows, "fallback_rows": fallback, "short_lists": users - full}
    if sides:
        version = sources["gold.user_vectors"][0]
        for batch in lake.batches("gold.user_vectors", version, columns=["vector"], where=day):
            ptr, values = flat(pa.chunked_array([batch["vector"]]))
            odd = np.flatnonzero(~np.isfinite(values.to_numpy(zero_copy_only=False)))
            counts["dropped_users"] += len(np.unique(np.searchsorted(ptr, odd, "right")))
        counts["dropped_items"] = sum(int((~np.isfinite(item_ND).all(1)).sum()) for item_ND in sides)
    return counts

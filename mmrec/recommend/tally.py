"""What a run staged, counted from what is on disk: lists may have been made on other machines.

In: a stage of lists, the tables its lists were made from. Out: counts for the log and for ops.
Trade-off: two columns of every staged file are read once more; in exchange a count can't be of rows that never arrived.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec.lake.stage import Stage
from mmrec.lake.store import Lake


def tally(
    lake: Lake,
    staged: Stage,
    run_date: date,
    k: int,
    item_vec: np.ndarray | None,
    sources: dict[str, tuple[int, tuple[str, ...]]],
) -> dict[str, int]:
    """Count lists, rows and who was dropped.

    Args:
        k: length of a full list.
        item_vec: (items, dim) float, the vectors that were scored; None where no model was.
        sources: table -> (version, columns) that the lists were made from.

    Returns: users, rows, fallback_rows, short_lists (users with fewer than k), dropped_users and dropped_items (a
    vector with a value that is not finite).
    """
    files = [str(staged.folder / f.path) for f in staged.files]
    rows = ds.dataset(files, format="parquet").to_table(columns=["user_id", "source"]) if files else None
    counts = {"users": lake.day("gold.user_sequences", run_date, columns=["user_id"]).num_rows, "rows": 0,
              "fallback_rows": 0, "short_lists": 0, "dropped_users": 0, "dropped_items": 0}  # fmt: skip
    counts["short_lists"] = counts["users"]
    if rows is not None:
        sizes = rows.group_by("user_id").aggregate([("source", "count")])["source_count"]
        full = pc.sum(pc.equal(sizes, k)).as_py() or 0
        counts |= {"rows": rows.num_rows, "short_lists": counts["users"] - full,
                   "fallback_rows": pc.sum(pc.starts_with(rows["source"], "fallback")).as_py() or 0}  # fmt: skip
    if item_vec is not None:
        vectors = lake.day("gold.user_vectors", run_date, sources["gold.user_vectors"][0], ["vector"])["vector"]
        flat = pc.list_flatten(vectors).to_numpy().reshape(len(vectors), -1)
        counts |= {"dropped_users": int((~np.isfinite(flat).all(1)).sum()),
                   "dropped_items": int((~np.isfinite(item_vec).all(1)).sum())}  # fmt: skip
    return counts

"""What a run's rules did to its lists, counted from the lists as they are published.

In: a day's lists, users, the ruling they were made under. Out: rows of ops.rule_drops.
Trade-off: rows where a rule did anything are read once more; in exchange a count can't be of rows that never arrived.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec import schema
from mmrec.lake.store import Lake
from mmrec.recommend.ruling import TWIN, WITHDRAWN, Ruling


def rule_drops(lake: Lake, day: date, ruling: Ruling, twins: int, gone: int, run_id: str) -> pa.Table:
    """Rows of ops.rule_drops for the lists of a published day, a rule each, one for twins, and one for what left the
    shop, if anything did.

    Args:
        twins: items on offer that have a twin on offer. gone: items that were taken out when it was published.
    """
    touched = pc.is_valid(ds.field("passed")) | pc.is_valid(ds.field("rule"))
    rows = lake.arrow("gold.recommendations", where=(ds.field("run_date") == day) & touched,
                      columns=["user_id", "passed", "passed_n", "rule"]).combine_chunks()  # fmt: skip
    listed = lake.day("gold.recommendations", day, columns=["user_id"])["user_id"].unique()
    told = lake.day("gold.user_sequences", day, columns=["user_id", "attributes"])
    holds_R = _holds(ruling, told.filter(pc.is_in(told["user_id"], value_set=listed)))
    users = rows["user_id"].combine_chunks() if rows.num_rows else pa.array([], pa.string())
    lists = rows["passed"].combine_chunks() if rows.num_rows else pa.array([], pa.list_(pa.string()))
    many = rows["passed_n"].combine_chunks() if rows.num_rows else pa.array([], pa.list_(pa.int64()))
    over = pa.table({"rule": lists.flatten(), "n": many.flatten(),
                     "user": users.take(pc.list_parent_indices(lists))})  # fmt: skip
    by = pa.table({"rule": rows["rule"], "user": rows["user_id"]}).drop_null()
    by = by.append_column("n", pa.array(np.ones(by.num_rows, np.int64)))
    passed, placed = _counted(over), _counted(by)
    lists_of = dict(zip(*_lists(pa.concat_tables([t.select(["rule", "user"]) for t in (over, by)])), strict=True))
    about = [(r.name, r.kind, r.line, int(ruling.meant_RN[k].sum()), int(holds_R[k]))
             for k, r in enumerate(ruling.rules)]  # fmt: skip
    about.append((TWIN, TWIN, 0, twins, len(listed)))
    if gone:
        about.append((WITHDRAWN, WITHDRAWN, 0, gone, len(listed)))
    made = [{"run_date": day, "rule": name, "kind": kind, "line": line, "items": items, "users": users_,
             "passed": passed.get(name, 0), "lists": lists_of.get(name, 0), "placed": placed.get(name, 0),
             "run_id": run_id} for name, kind, line, items, users_ in about]  # fmt: skip
    return pa.Table.from_pylist(made, schema.table("ops.rule_drops").arrow)


def _holds(ruling: Ruling, users: pa.Table) -> np.ndarray:
    """(R,) of how many users each rule holds for."""
    law = ruling.law(users["user_id"].combine_chunks(), users["attributes"].combine_chunks())
    return np.bincount(law.class_B, minlength=len(law.holds_CR)) @ law.holds_CR


def _counted(pairs: pa.Table) -> dict[str, int]:
    found = pairs.group_by("rule").aggregate([("n", "sum")])
    return dict(zip(found["rule"].to_pylist(), found["n_sum"].to_pylist(), strict=True))


def _lists(pairs: pa.Table) -> tuple[list[str], list[int]]:
    found = pairs.group_by("rule").aggregate([("user", "count_distinct")])
    return found["rule"].to_pylist(), found["user_count_distinct"].to_pylist()

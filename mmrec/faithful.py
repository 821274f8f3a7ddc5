"""Are reasons true: one row's account, and what a list's scores lose without the items that reasons name.

In: settings, tables, a published date. Out: `account` of one row as it was published; `study`: of some users, the true
drop of a row's score without each item of the history in turn, beside what this version of mmrec says of it; `studied`:
the same as rows of ops.metrics.
Trade-off: every shortened history is encoded again, half a millisecond each, so a study is of a sample.

Shape legend: K rows of one user's list, H items of the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from scipy.stats import rankdata

from mmrec import schema
from mmrec.config import Config
from mmrec.context import published
from mmrec.errors import InputError
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.recommend.histories import rows_of
from mmrec.recommend.packed import Packed
from mmrec.recommend.rules import of_records
from mmrec.recommend.scorers import Sums
from mmrec.recommend.slate import MODEL
from mmrec.recommend.spread import vectors_of
from mmrec.remade import Remade, remade

_TOP = 10  # rows of a list that are looked at
_LATEST = 20  # events that the nearest item is looked for among, as in rows without numbers
_TOGETHER = 8  # users whose shortened histories are encoded at a time
_NAME = "gold.recommendations"
_EVENTS = ("item_ids", "event_types", "gap_s", "weight_micro")
Tell = Callable[[str, int, int], None]


def account(config: Config, lake: Lake, user: str, item: str, when: date | None = None) -> dict[str, Any]:
    """What a published row says of itself.

    Returns: run_date, user_id, item_id, title, rank, score, source, rule, says; because: item_id, title and share each;
        parts: part and share each; both empty where nothing is told.

    Raises: InputError: no such night, user, or row.
    """
    day = published(lake, when).day
    rows = lake.day(_NAME, day).filter(ds.field("user_id") == user).to_pylist()
    if not rows:
        known = lake.day("gold.user_sequences", day, columns=["user_id"])["user_id"].to_pylist()
        raise InputError("this user has no list", where=f"{_NAME} run_date={day}", value=user,
                         valid=f"one of {len(known)}" + (f", as {min(known)}" if known else ""),
                         next="mmrec sql 'select user_id from user_sequences'")  # fmt: skip
    row = next((r for r in rows if r["item_id"] == item), None)
    if row is None:
        raise InputError("this item is not in the user's list", where=f"{_NAME} run_date={day}, user {user}",
                         value=item, valid=[r["item_id"] for r in sorted(rows, key=lambda r: r["rank"])[:5]],
                         next=f"mmrec why-not {user} {item}")  # fmt: skip
    columns = lake.day("gold.item_features", day, columns=["item_id", "title"])
    title = dict(zip(*(columns[c].to_pylist() for c in ("item_id", "title")), strict=True))
    named = zip(row["because"] or (), row["because_share"] or (), strict=True)
    parts = zip(row["parts"] or (), row["parts_share"] or (), strict=True)
    return {"run_date": str(day), "user_id": user, "item_id": item, "title": title.get(item)} | {
        c: row[c] for c in ("rank", "score", "source", "rule")} | {"says": row["reason"],
        "because": [{"item_id": i, "title": title.get(i), "share": s} for i, s in named],
        "parts": [{"part": p, "share": s} for p, s in parts]}  # fmt: skip


def study(
    config: Config, lake: Lake, users: int, when: date | None = None, seed: int = 0, tell: Tell | None = None
) -> dict[str, Any]:
    """What is lost without each item of the history, of the first rows of some users' lists.

    Args:
        users: that are drawn, by `seed`, of those with a row of the model and two items of history; fewer if there are
            fewer. tell: told of what has been done, and of how much.

    Returns: run_date, model_version, seed, users, rows, history (mean items); drop: mean over rows of the greatest drop
        of the score and of a random item's; by: of the contributions, of the nearest item and of the most recent:
        first (how often the item they put first is the one with the greatest drop), error (half of its 95% interval,
        by users), drop (of that item), rank_correlation (Spearman's, of their order and the drops).

    Raises: InputError: no such night, or one whose rows have no numbers.
    """
    made = remade(config, lake, when)
    with made.packed(of_records(made.manifest.config.get("rules") or [])) as packed:
        if packed.reasons is None or packed.reasons.weigher is None:
            more = "--force" if packed.reasons is None else "--train --force"
            raise InputError("this night's rows have no numbers to look at", where=f"run_date {made.day}",
                             value=f"model version {made.manifest.model_version} ({made.model.kind})",
                             valid="a night of this version of mmrec, of a model that has a history",
                             next=f"mmrec run --date {made.day} {more}")  # fmt: skip
        offered = _offered(made, packed)
        names = sorted(offered)
        picked = np.random.default_rng(seed).permutation(len(names))[:users]
        found: list[list[dict[str, Any]]] = []
        for start in range(0, len(picked), _TOGETHER):
            some = sorted(names[i] for i in picked[start : start + _TOGETHER])
            found += [rows for rows in _looked(made, packed, some, offered) if rows]
            if tell is not None:
                tell("users", min(start + _TOGETHER, len(picked)), len(picked))
    return {"run_date": str(made.day), "model_version": made.manifest.model_version, "seed": seed,
            **_summed(found)}  # fmt: skip


def studied(config: Config, lake: Lake, m: Manifest) -> pa.Table:
    """Rows of ops.metrics, protocol reasons, of a published run's model version; none where it was studied before, or
    its rows have no numbers."""
    empty = schema.table("ops.metrics").arrow.empty_table()
    known = (ds.field("protocol") == "reasons") & (ds.field("model_version") == m.model_version)
    if not config.reasons.studied or lake.arrow("ops.metrics", where=known, columns=["metric"]).num_rows:
        return empty
    try:
        found = study(config, lake, config.reasons.studied, m.day)
    except InputError:  # a model without a history to name
        return empty
    same = {"run_date": m.day, "model_version": m.model_version, "protocol": "reasons", "split": "none", "slice": "all",
            "n": found["users"], "run_id": m.run_id}  # fmt: skip
    rows = []
    for name, told in found["by"].items():
        error = told["error"] or 0.0
        rows.append(same | {"model": name, "metric": "first", "value": told["first"], "lo": told["first"] - error,
                            "hi": told["first"] + error})  # fmt: skip
        rows += [same | {"model": name, "metric": c, "value": told[c], "lo": None, "hi": None}
                 for c in ("drop", "rank_correlation")]  # fmt: skip
    return pa.Table.from_pylist(rows, empty.schema)


def _offered(made: Remade, packed: Packed) -> dict[str, np.ndarray]:
    """User id -> places in the day's items of the rows that are looked at, of the arm's users."""
    where = (ds.field("source") == MODEL) & (ds.field("rank") <= _TOP)
    rows = made.lake.day(_NAME, made.day, columns=["user_id", "item_id", "rank", "source"]).filter(where)
    rows = rows.filter(pc.is_in(rows["user_id"], value_set=made.users["user_id"].combine_chunks()))
    at = pc.index_in(rows["item_id"], value_set=packed.items["item_id"].combine_chunks()).to_numpy()
    found: dict[str, list[int]] = {}
    for user, place in zip(rows["user_id"].to_pylist(), at.tolist(), strict=True):
        found.setdefault(user, []).append(place)
    return {user: np.sort(np.array(places)) for user, places in found.items()}


def _looked(
    made: Remade, packed: Packed, some: list[str], offered: dict[str, np.ndarray]
) -> Iterator[list[dict[str, Any]]]:
    """Of each user, what was found of each row; nothing where there are not two items to choose from."""
    users = made.users.filter(pc.is_in(made.users["user_id"], pa.array(some))).combine_chunks()
    model, reasons = packed.scored(users), packed.reasons
    assert model is not None
    assert reasons is not None
    history = rows_of(users["item_ids"], reasons.ids)
    history = history.kept((history.at >= 0) & model.speaks_N[history.at])
    item_BK = np.full((len(some), _TOP), -1)
    for b, user in enumerate(some):
        item_BK[b, : len(offered[user])] = offered[user]
    ((_, (near_BH, value_BKH, _)),) = reasons.weighed(item_BK, users, history, model)
    count_B = (near_BH >= 0).sum(1)
    count_B[count_B < 2] = 0
    if not count_B.any():
        return
    short = pa.Table.from_pylist(
        [_without(row, packed.items["item_id"][int(i)].as_py()) for b, row in enumerate(users.to_pylist())
         for i in near_BH[b, : count_B[b]]], schema=users.schema)  # fmt: skip
    again = packed.scored(_encoded(packed, short))
    of = np.repeat(np.arange(len(some)), count_B)
    assert again is not None
    whole = packed.scored(users.take(pa.array(of)))
    left_RK = reasons.weigher.scores(again, np.maximum(item_BK[of], 0), whole)
    drop_RK = np.nan_to_num(reasons.weigher.scores(whole, np.maximum(item_BK[of], 0), whole) - left_RK)
    ends = np.cumsum(count_B)
    for b, user in enumerate(some):
        n, k = int(count_B[b]), len(offered[user])
        if not n:
            continue
        near_H, drop_HK = near_BH[b, :n], drop_RK[ends[b] - n : ends[b], :k]
        close_HK = _close(model, near_H, offered[user])
        lately = history.at[history.ptr[b] : history.ptr[b + 1]][-_LATEST:]
        close_HK[~np.isin(near_H, lately)] -= np.ptp(close_HK) + 1
        orders = {"contributions": value_BKH[b, :k, :n].T, "nearest": close_HK,
                  "most_recent": np.repeat(-np.arange(n)[:, None], k, 1)}  # fmt: skip
        rows = []
        for j, drop_H in enumerate(drop_HK.T):
            judged: dict[str, Any] = {name: _judged(order_HK[:, j], drop_H) for name, order_HK in orders.items()}
            rows.append(judged | {"greatest": drop_H.max(), "random": drop_H.mean(), "items": n})
        yield rows


def _without(row: dict[str, Any], item: str) -> dict[str, Any]:
    """A user as if they had never had an item; what was before it lasts until what came after."""
    kept: dict[str, list[Any]] = {name: [] for name in _EVENTS}
    for entry in zip(*(row[name] for name in _EVENTS), strict=True):
        if entry[0] != item:
            for name, value in zip(_EVENTS, entry, strict=True):
                kept[name].append(value)
        elif kept["gap_s"]:
            kept["gap_s"][-1] += entry[2]
    return row | kept


def _encoded(packed: Packed, users: pa.Table) -> pa.Table:
    """Users with the vectors of their histories, where the model has vectors."""
    if packed.side is None:
        return users
    made = pa.Table.from_batches(list(vectors_of(str(packed.folder), iter(users.combine_chunks().to_batches()))))
    place = users.column_names.index("vector")
    return users.set_column(place, "vector", made["vector"])


def _close(model: Any, near_H: np.ndarray, item_K: np.ndarray) -> np.ndarray:
    """(H, K) float64 closeness of items in the model's item space, as rows without numbers take it."""
    if isinstance(model, Sums):
        return model.weights(item_K, near_H).astype(np.float64).T
    near_HD, item_KD = (model.item_ND[i].astype(np.float64) for i in (near_H, item_K))
    near_HD, item_KD = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (near_HD, item_KD))
    return near_HD @ item_KD.T


def _judged(order_H: np.ndarray, drop_H: np.ndarray) -> tuple[float, float, float]:
    """Whether the first one is the greatest drop, its drop, and the rank correlation; 0 of what is all the same."""
    first = int(order_H.argmax())
    ranks = np.stack([rankdata(order_H), rankdata(drop_H)])
    even = (ranks.std(1) == 0).any()
    return float(drop_H[first] == drop_H.max()), float(drop_H[first]), 0.0 if even else float(np.corrcoef(ranks)[0, 1])


def _summed(found: list[list[dict[str, Any]]]) -> dict[str, Any]:
    rows = [r for each in found for r in each]
    if not rows:
        return {"users": 0, "rows": 0, "history": None, "drop": {}, "by": {}}
    by = {}
    for name in ("contributions", "nearest", "most_recent"):
        first, drop, rank = (float(np.mean(x)) for x in zip(*(r[name] for r in rows), strict=True))
        users = [np.mean([r[name][0] for r in each]) for each in found]
        error = float(1.96 * np.std(users, ddof=1) / np.sqrt(len(users))) if len(users) > 1 else None
        by[name] = {"first": first, "error": error, "drop": drop, "rank_correlation": rank}
    return {"users": len(found), "rows": len(rows), "history": float(np.mean([r["items"] for r in rows])),
            "drop": {what: float(np.mean([r[what] for r in rows])) for what in ("greatest", "random")},
            "by": by}  # fmt: skip

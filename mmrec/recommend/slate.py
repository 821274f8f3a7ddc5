"""From scores to slates: one list per user, every row tagged with where it came from and why.

In: a day's user sequences and item features, item and user vectors (none for popularity), a bundle's name.
Out: Arrow rows of gold.recommendations, a block of users at a time.
A user the model can't speak for, and places it leaves empty, are filled from popularity, and the row says so.
Trade-off: the reason names the watched item closest to the offered one in the model's own item space; it is a
true statement about the model, not a causal one about the user.

Shape legend: B users of a block, N items, K places, H history items shown to reasons, D vector size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa

from mmrec import schema
from mmrec.topk.exact import search

_BLOCK = 1024
_HISTORY = 20  # the latest items a reason may name
MODEL, FALLBACK = "model", "fallback:popularity"


@dataclass(frozen=True)
class Vectors:
    """The two sides of the dot product: `user_UD` (rows of NaN where the model has nothing to say), `item_ND`."""

    user_UD: np.ndarray
    item_ND: np.ndarray


@dataclass(frozen=True)
class Stamp:
    """What every row of a run carries."""

    run_date: date
    run_id: str
    model_version: str
    arm: str = "main"


def slates(
    users: pa.Table, items: pa.Table, vectors: Vectors | None, k: int, stamp: Stamp, counts: dict[str, int]
) -> Iterator[pa.RecordBatch]:
    """Slates of every user, in user order.

    Args:
        users: gold.user_sequences of the day. items: gold.item_features of the day, ascending by item_id.
        vectors: of those users and items, in that order; None: the popularity bundle.
        k: places in a list; shorter where a user has seen nearly everything.
        counts: filled with users, rows, fallback_rows, short_lists, dropped_users, dropped_items.

    Yields: rows of gold.recommendations, at most `_BLOCK` users each.
    """
    ids = np.array(items["item_id"].to_pylist(), object)
    titles = items["title"].to_pylist()
    index = {item: i for i, item in enumerate(ids)}
    popularity = items["popularity_micro"].to_numpy().astype(np.float64)[:, None] / 1e6
    unit_ND = None if vectors is None else _unit(vectors.item_ND)
    counts.update(users=0, rows=0, fallback_rows=0, short_lists=0, dropped_users=0, dropped_items=0)
    for start in range(0, users.num_rows, _BLOCK):
        block = users.slice(start, _BLOCK)
        ptr, seen = _csr(block["seen_item_ids"], index)
        n = block.num_rows
        popular = search(np.ones((n, 1), np.float32), popularity.astype(np.float32), k, seen=(ptr, seen))
        item_BK, score_BK = popular.item.copy(), popular.score.copy()
        source_BK = np.full(item_BK.shape, MODEL if vectors is None else FALLBACK, object)
        if vectors is not None:
            found = search(vectors.user_UD[start : start + n], vectors.item_ND, k, seen=(ptr, seen))
            counts["dropped_users"] += int(found.dropped_users)
            counts["dropped_items"] = int(found.dropped_items)
            item_BK, score_BK, source_BK = _fill(found.item, found.score, popular.item, popular.score)
        reasons = _reasons(block, index, titles, item_BK, source_BK, unit_ND)
        batch = _rows(block["user_id"].to_pylist(), ids, item_BK, score_BK, source_BK, reasons, stamp)
        counts["users"] += n
        counts["rows"] += batch.num_rows
        counts["short_lists"] += int(((item_BK >= 0).sum(1) < k).sum())
        counts["fallback_rows"] += int(((source_BK == FALLBACK) & (item_BK >= 0)).sum())
        yield batch


def _fill(
    item_BK: np.ndarray, score_BK: np.ndarray, pop_BK: np.ndarray, pop_score_BK: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Empty places take the most popular items that are not in the list already."""
    item_BK, score_BK = item_BK.copy(), score_BK.copy()
    source_BK = np.full(item_BK.shape, MODEL, object)
    for b in np.flatnonzero((item_BK < 0).any(1)):
        row = item_BK[b]
        have = set(row[row >= 0].tolist())
        free = np.flatnonzero(row < 0)
        extra = [(i, s) for i, s in zip(pop_BK[b], pop_score_BK[b], strict=True) if i >= 0 and int(i) not in have]
        for place, (item, score) in zip(free, extra, strict=False):
            item_BK[b, place], score_BK[b, place], source_BK[b, place] = item, score, FALLBACK
    return item_BK, score_BK, source_BK


def _reasons(
    block: pa.Table,
    index: dict[str, int],
    titles: list[str],
    item_BK: np.ndarray,
    source_BK: np.ndarray,
    unit_ND: np.ndarray | None,
) -> np.ndarray:
    reason_BK = np.full(item_BK.shape, "popular lately", object)
    if unit_ND is None:
        return reason_BK
    speaks_N = np.isfinite(unit_ND).all(1)
    for b, history in enumerate(block["item_ids"].to_pylist()):
        h_H = np.array([index[i] for i in history if i in index and speaks_N[index[i]]][-_HISTORY:], np.int64)
        mine = np.flatnonzero((source_BK[b] == MODEL) & (item_BK[b] >= 0))
        if not len(mine):
            continue
        if not len(h_H):
            reason_BK[b, mine] = "what newcomers like"
            continue
        closest = (unit_ND[item_BK[b, mine]] @ unit_ND[h_H].T).argmax(1)
        for place, h in zip(mine, h_H[closest], strict=True):
            reason_BK[b, place] = f"because of {titles[h] or 'an earlier choice'}"
    return reason_BK


def _rows(
    user_ids: list[str],
    ids: np.ndarray,
    item_BK: np.ndarray,
    score_BK: np.ndarray,
    source_BK: np.ndarray,
    reason_BK: np.ndarray,
    stamp: Stamp,
) -> pa.RecordBatch:
    b, place = np.nonzero(item_BK >= 0)
    n = len(b)
    values = {
        "run_date": [stamp.run_date] * n, "arm": [stamp.arm] * n, "user_id": [user_ids[i] for i in b],
        "rank": place + 1, "item_id": ids[item_BK[b, place]], "score": score_BK[b, place],
        "source": source_BK[b, place], "reason": reason_BK[b, place], "propensity": np.ones(n),
        "model_version": [stamp.model_version] * n, "run_id": [stamp.run_id] * n,
    }  # fmt: skip
    arrow = schema.table("gold.recommendations").arrow
    return pa.RecordBatch.from_arrays([pa.array(values[f.name], f.type) for f in arrow], schema=arrow)


def _csr(column: pa.ChunkedArray, index: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    rows = [[index[i] for i in seen if i in index] for seen in column.to_pylist()]
    ptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    return ptr, np.array([i for r in rows for i in r], np.int32)


def _unit(x_ND: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x_ND, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a vector that is not finite has no direction
        return x_ND / np.where(norm > 0, norm, 1)

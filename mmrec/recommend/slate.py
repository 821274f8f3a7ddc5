"""From scores to slates: one list per user, every row tagged with where it came from and why.

In: a day's user sequences and item features, item and user vectors, or histories and a sparse matrix, or neither
(popularity), a bundle's name.
Out: Arrow rows of gold.recommendations, a block of users at a time.
A user the model can't speak for, and places it leaves empty, are filled from popularity, and the row says so.
Of items that are one thing listed twice a list holds the best ranked: it is what a walk down the whole ranking would
give, found by asking for some more places, and for twice as many again for users whom those don't fill.
Trade-off: the reason names the watched item closest to the offered one in the model's own item space; it is a
true statement about the model, not a causal one about the user.

Shape legend: U users, B users of a block, N items, K places, H history items shown to reasons, J offered items, M
items a bundle knows, D vector size, R rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
from scipy import sparse

from mmrec import schema
from mmrec.models.stored import Stored
from mmrec.topk.catalogue import Catalogue
from mmrec.topk.exact import TopK, search, select
from mmrec.topk.members import Offers
from mmrec.topk.rerank import Rerank, rerank
from mmrec.topk.seen import Seen, of_users

_BLOCK = 1024
_HISTORY = 20  # the latest items a reason may name
_MORE = 4  # a quarter more places are asked for at first
MODEL, FALLBACK = "model", "fallback:popularity"
_Find = Callable[[slice | np.ndarray, int, Seen], TopK]  # of some of a block's users, so many places


@dataclass(frozen=True)
class Vectors:
    """The two sides of the dot product: `user_UD` (rows of NaN where the model has nothing to say), `item_ND`.

    `near`: whether an item can be nearer to one of a history than to another; of popularity's one column it can't.
    `how` a blend re-ranks, None: the dot product ranks; `cold_N`: (N,) bool, items that the model has not met.
    """

    user_UD: np.ndarray
    item_ND: np.ndarray
    near: bool = True
    how: Rerank | None = None
    cold_N: np.ndarray | None = None

    def best(self, block: slice, rows: slice | np.ndarray, k: int, seen: Seen) -> TopK:
        """The best of `rows` of a block of users."""
        user_BD = self.user_UD[block][rows]
        if self.how is None or self.cold_N is None:
            return search(user_BD, self._catalogue, k, seen=seen)
        return rerank(user_BD, self._offers, k, how=self.how, seen=seen)

    @cached_property
    def _catalogue(self) -> Catalogue:
        return Catalogue(self.item_ND)

    @cached_property
    def _offers(self) -> Offers:
        assert self.how is not None
        assert self.cold_N is not None
        return Offers(self.item_ND, self.how.members, self.cold_N)

    @cached_property
    def _unit_ND(self) -> np.ndarray:
        return _unit(self.item_ND)

    @cached_property
    def speaks_N(self) -> np.ndarray:
        """(N,) bool: items that the model knows."""
        return np.isfinite(self.item_ND).all(1)

    def closeness(self, offered_J: np.ndarray, history_H: np.ndarray) -> np.ndarray:
        """(J, H): how near an offered item is to one of the history."""
        return self._unit_ND[offered_J] @ self._unit_ND[history_H].T


@dataclass(frozen=True)
class Sums:
    """Of a sparse bundle: users as histories of the items it knows, its matrix over the day's items, by rows and by
    items, `place_N`: where a day's item stands among those it knows, -1 if nowhere."""

    stored: Stored
    history_UM: sparse.csr_matrix
    user_ids: np.ndarray
    matrix_RN: sparse.csr_matrix
    matrix_NR: sparse.csr_matrix
    place_N: np.ndarray
    near = True

    @property
    def speaks_N(self) -> np.ndarray:
        """As of `Vectors`."""
        return self.place_N >= 0

    def best(self, block: slice, rows: slice | np.ndarray, k: int, seen: Seen) -> TopK:
        """As of `Vectors`; only a few users' scores are there at a time."""
        history_BM, asking_B = self.history_UM[block][rows], self.user_ids[block][rows]
        parts = []
        for some, score_BN in self.stored.sums(history_BM, asking_B, self.matrix_RN):
            ptr = seen[0][some.start : some.stop + 1]
            had = (ptr - ptr[0], seen[1][ptr[0] : ptr[-1]])
            parts.append(select(score_BN, k, seen=had, allowed=self.speaks_N))
        return TopK(np.concatenate([p.item for p in parts]), np.concatenate([p.score for p in parts]),
                    sum(p.dropped_users for p in parts), int((~self.speaks_N).sum()))  # fmt: skip

    def closeness(self, offered_J: np.ndarray, history_H: np.ndarray) -> np.ndarray:
        """As of `Vectors`: the weight from the one to the other; of users, the cosine of who had them."""
        offered_JR = self.matrix_NR[offered_J]
        if self.stored.name != "user_knn":
            return offered_JR[:, self.place_N[history_H]].toarray()
        had_HR = self.matrix_NR[history_H]
        return (offered_JR @ had_HR.T).toarray() / np.sqrt(np.maximum(np.diff(had_HR.indptr), 1))


@dataclass(frozen=True)
class Stamp:
    """What every row of a run carries."""

    run_date: date
    run_id: str
    model_version: str
    arm: str = "main"


def slates(
    users: pa.Table,
    items: pa.Table,
    vectors: Vectors | Sums | None,
    k: int,
    stamp: Stamp,
    counts: dict[str, int],
    group_N: np.ndarray | None = None,
) -> Iterator[pa.RecordBatch]:
    """Slates of every user, in user order.

    Args:
        users: gold.user_sequences of the day. items: gold.item_features of the day, ascending by item_id.
        vectors: of those users and items, in that order; None: the popularity bundle.
        k: places in a list; shorter where a user has seen nearly everything.
        counts: filled with users, rows, fallback_rows, short_lists, dropped_users, dropped_items.
        group_N: (N,) int64, equal for items of which a list may hold one; None: no such items are known.

    Yields: rows of gold.recommendations, at most `_BLOCK` users each.
    """
    ids = np.array(items["item_id"].to_pylist(), object)
    titles = items["title"].to_pylist()
    index = {item: i for i, item in enumerate(ids)}
    popularity_N1 = (items["popularity_micro"].to_numpy().astype(np.float64)[:, None] / 1e6).astype(np.float32)
    counts.update(users=0, rows=0, fallback_rows=0, short_lists=0, dropped_users=0, dropped_items=0)
    for start in range(0, users.num_rows, _BLOCK):
        block = users.slice(start, _BLOCK)
        ptr, seen = _csr(block["seen_item_ids"], index)
        n = block.num_rows
        everybody = Vectors(np.ones((n, 1), np.float32), popularity_N1)
        popular = _best(partial(everybody.best, slice(0, n)), k, (ptr, seen), group_N)
        item_BK, score_BK = popular.item.copy(), popular.score.copy()
        source_BK = np.full(item_BK.shape, MODEL if vectors is None else FALLBACK, object)
        if vectors is not None:
            found = _best(partial(vectors.best, slice(start, start + n)), k, (ptr, seen), group_N)
            counts["dropped_users"] += int(found.dropped_users)
            counts["dropped_items"] = int(found.dropped_items)
            item_BK, score_BK, source_BK = _fill(found, popular, group_N)
        reasons = _reasons(block, index, titles, item_BK, source_BK, vectors)
        batch = _rows(block["user_id"].to_pylist(), ids, item_BK, score_BK, source_BK, reasons, stamp)
        counts["users"] += n
        counts["rows"] += batch.num_rows
        counts["short_lists"] += int(((item_BK >= 0).sum(1) < k).sum())
        counts["fallback_rows"] += int(((source_BK == FALLBACK) & (item_BK >= 0)).sum())
        yield batch


def _best(find: _Find, k: int, seen: Seen, group_N: np.ndarray | None) -> TopK:
    """The K best of every user, at most one of a group; exact, because a longer list begins with the shorter one."""
    if group_N is None:
        return find(slice(None), k, seen)
    most = k + len(group_N) - len(np.unique(group_N))  # among so many are K groups, if there are so many
    wide = min(most, k + k // _MORE)
    found = find(slice(None), wide, seen)
    item_BK, score_BK = _one_of_a_group(found.item, found.score, group_N, k)
    # not full, and there is more to look at
    todo = np.flatnonzero((item_BK[:, -1] < 0) & (found.item[:, -1] >= 0))
    while len(todo) and wide < most:
        wide = min(most, 2 * wide)
        more = find(todo, wide, of_users(seen, todo))
        item_BK[todo], score_BK[todo] = _one_of_a_group(more.item, more.score, group_N, k)
        todo = todo[(item_BK[todo, -1] < 0) & (more.item[:, -1] >= 0)]
    return TopK(item_BK, score_BK, found.dropped_users, found.dropped_items)


def _one_of_a_group(
    item_BW: np.ndarray, score_BW: np.ndarray, group_N: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(B, K) of (B, W) ranked items: the first of each group, in order; -1 and -inf in empty places."""
    there_BW = item_BW >= 0
    group_BW = np.where(there_BW, group_N[item_BW], -1)
    order_BW = np.argsort(group_BW, axis=1, kind="stable")  # within a group, the best ranked comes first
    sorted_BW = np.take_along_axis(group_BW, order_BW, 1)
    first_BW = np.ones(item_BW.shape, bool)
    first_BW[:, 1:] = sorted_BW[:, 1:] != sorted_BW[:, :-1]
    keep_BW = np.empty_like(first_BW)
    np.put_along_axis(keep_BW, order_BW, first_BW, 1)
    keep_BW &= there_BW
    place_BW = keep_BW.cumsum(1) - 1
    b, at = np.nonzero(keep_BW & (place_BW < k))
    item_BK, score_BK = np.full((len(item_BW), k), -1, np.int32), np.full((len(item_BW), k), -np.inf, np.float32)
    item_BK[b, place_BW[b, at]], score_BK[b, place_BW[b, at]] = item_BW[b, at], score_BW[b, at]
    return item_BK, score_BK


def _fill(found: TopK, popular: TopK, group_N: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Empty places take the most popular items of which none of a kind is in the list already."""
    item_BK, score_BK = found.item.copy(), found.score.copy()
    source_BK = np.full(item_BK.shape, MODEL, object)
    # K popular items of K groups are enough: a list with F free places holds items of K - F groups
    kind_BK = popular.item if group_N is None else np.where(popular.item >= 0, group_N[popular.item], -1)
    for b in np.flatnonzero((item_BK < 0).any(1)):
        row = item_BK[b]
        own = row[row >= 0]
        have = set((own if group_N is None else group_N[own]).tolist())
        free = np.flatnonzero(row < 0)
        extra = [(i, s) for i, s, kind in zip(popular.item[b], popular.score[b], kind_BK[b].tolist(), strict=True)
                 if i >= 0 and kind not in have]  # fmt: skip
        for place, (item, score) in zip(free, extra, strict=False):
            item_BK[b, place], score_BK[b, place], source_BK[b, place] = item, score, FALLBACK
    return item_BK, score_BK, source_BK


def _reasons(
    block: pa.Table,
    index: dict[str, int],
    titles: list[str],
    item_BK: np.ndarray,
    source_BK: np.ndarray,
    vectors: Vectors | Sums | None,
) -> np.ndarray:
    reason_BK = np.full(item_BK.shape, "popular lately", object)
    if vectors is None or not vectors.near:
        return reason_BK
    speaks_N = vectors.speaks_N
    for b, history in enumerate(block["item_ids"].to_pylist()):
        h_H = np.array([index[i] for i in history if i in index and speaks_N[index[i]]][-_HISTORY:], np.int64)
        mine = np.flatnonzero((source_BK[b] == MODEL) & (item_BK[b] >= 0))
        if not len(mine):
            continue
        if not len(h_H):
            reason_BK[b, mine] = "what newcomers like"
            continue
        closest = vectors.closeness(item_BK[b, mine], h_H).argmax(1)
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

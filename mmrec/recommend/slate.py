"""From scores to slates: one list per user, every row tagged with where it came from and why.

In: a day's user sequences and item features, item and user vectors, or histories and a sparse matrix, or neither
(popularity), a bundle's name.
Out: Arrow rows of gold.recommendations, a block of users at a time.
A user the model can't speak for, and places it leaves empty, are filled from popularity, and the row says so.
Of items that are one thing listed twice a list holds the best ranked: it is what a walk down the whole ranking would
give, found by asking for some more places, and for twice as many again for users whom those don't fill.
Trade-off: the reason names the watched item closest to the offered one in the model's own item space; it is a
true statement about the model, not a causal one about the user.

Shape legend: U users, B users of a block, S users of it with a short list, N items, K places, H history items shown to
reasons, J offered items, M items a bundle knows, D vector size, R rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from mmrec import schema
from mmrec.models.stored import Stored
from mmrec.recommend.histories import Rows, rows_of
from mmrec.topk.catalogue import Catalogue
from mmrec.topk.exact import TopK, search, select
from mmrec.topk.members import Offers
from mmrec.topk.rerank import Rerank, rerank
from mmrec.topk.seen import Seen, of_users

_BLOCK = 1024
_HISTORY = 20  # the latest items a reason may name
_GATHERED = 2**22  # numbers of offered items' vectors at a time
_MORE = 4  # a quarter more places are asked for at first
MODEL, FALLBACK = "model", "fallback:popularity"
_Find = Callable[[slice | np.ndarray, int, Seen], TopK]  # of some of a block's users, so many places


@dataclass(frozen=True)
class Vectors:
    """The two sides of the dot product: `user_UD` (rows of NaN where the model has nothing to say), `item_ND`.

    `near`: whether an item can be nearer to one of a history than to another; of popularity's one column it can't.
    `how` a blend re-ranks, None: the dot product ranks; `cold_N`: (N,) bool, items that the model has not met; `device`
    that searches; `kept`: what was made of items, for any users.
    """

    user_UD: np.ndarray
    item_ND: np.ndarray
    near: bool = True
    how: Rerank | None = None
    cold_N: np.ndarray | None = None
    device: str = "cpu"
    kept: dict[str, Any] = field(default_factory=dict)

    def of(self, user_UD: np.ndarray) -> Vectors:
        """Of other users; what was made of items is shared."""
        return replace(self, user_UD=user_UD)

    def best(self, block: slice, rows: slice | np.ndarray, k: int, seen: Seen) -> TopK:
        """The best of `rows` of a block of users."""
        user_BD = self.user_UD[block][rows]
        if self.how is None or self.cold_N is None:
            return search(user_BD, self._catalogue, k, seen=seen)
        return rerank(user_BD, self._offers, k, how=self.how, seen=seen)

    @property
    def _catalogue(self) -> Catalogue:
        return self._once("catalogue", lambda: Catalogue(self.item_ND, device=self.device))

    @property
    def _offers(self) -> Offers:
        assert self.how is not None
        assert self.cold_N is not None
        members, cold_N = self.how.members, self.cold_N
        return self._once("offers", lambda: Offers(self.item_ND, members, cold_N, device=self.device))

    @property
    def _unit_ND(self) -> np.ndarray:
        return self._once("unit", lambda: _unit(self.item_ND))

    @property
    def speaks_N(self) -> np.ndarray:
        """(N,) bool: items that the model knows."""
        return self._once("speaks", lambda: np.isfinite(self.item_ND).all(1))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def closest(self, item_BK: np.ndarray, history_BH: np.ndarray) -> np.ndarray:
        """(B, K): which of the history, -1 in front of it, is nearest to an item; 0 of an empty place."""
        out_BK = np.zeros(item_BK.shape, np.int64)
        step = max(1, _GATHERED // (item_BK.shape[1] * self.item_ND.shape[1]))
        for start in range(0, len(item_BK), step):
            some = slice(start, start + step)
            # always of the same shape, so that bits don't depend on how long lists are
            near_BKH = self._unit_ND[item_BK[some]] @ self._unit_ND[history_BH[some]].transpose(0, 2, 1)
            out_BK[some] = np.where(history_BH[some, None] >= 0, near_BKH, -np.inf).argmax(2)
        return out_BK


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

    def closest(self, item_BK: np.ndarray, history_BH: np.ndarray) -> np.ndarray:
        """As of `Vectors`."""
        out_BK = np.zeros(item_BK.shape, np.int64)
        for b, (item_K, history_H) in enumerate(zip(item_BK, history_BH, strict=True)):
            offered, had = item_K >= 0, history_H >= 0
            if offered.any() and had.any():
                near = self._closeness(item_K[offered], history_H[had])
                out_BK[b, offered] = np.flatnonzero(had)[near.argmax(1)]
        return out_BK

    def _closeness(self, offered_J: np.ndarray, history_H: np.ndarray) -> np.ndarray:
        """(J, H): the weight from the one to the other; of users, the cosine of who had them."""
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
    shop = _Shop.of(items)
    seen, history = (rows_of(users[c], shop.ids) for c in ("seen_item_ids", "item_ids"))
    seen = seen.kept(seen.at >= 0)
    if vectors is not None:
        history = history.kept((history.at >= 0) & vectors.speaks_N[history.at])
    counts.update(users=0, rows=0, fallback_rows=0, short_lists=0, dropped_users=0, dropped_items=0)
    for start in range(0, users.num_rows, _BLOCK):
        names = users["user_id"].slice(start, _BLOCK).combine_chunks()
        n = len(names)
        ptr = seen.ptr[start : start + n + 1]
        had = ptr - ptr[0], seen.at[ptr[0] : ptr[-1]]
        if vectors is None:
            found = shop.popular(k, n, had, group_N)
            item_BK, score_BK, model_BK = found.item, found.score, np.ones(found.item.shape, bool)
        else:
            found = _best(partial(vectors.best, slice(start, start + n)), k, had, group_N)
            counts["dropped_users"] += int(found.dropped_users)
            counts["dropped_items"] = int(found.dropped_items)
            item_BK, score_BK, model_BK = _filled(found, shop, had, group_N)
        reasons = _reasons(history, slice(start, start + n), item_BK, model_BK, vectors)
        batch = shop.rows(names, item_BK, score_BK, model_BK, reasons, stamp)
        counts["users"] += n
        counts["rows"] += batch.num_rows
        counts["short_lists"] += int(((item_BK >= 0).sum(1) < k).sum())
        counts["fallback_rows"] += int((~model_BK & (item_BK >= 0)).sum())
        yield batch


@dataclass(frozen=True)
class _Shop:
    """The day's items: what lists are written with. `reasons`: one an item of a history, then those that name none."""

    ids: pa.Array
    reasons: pa.Array
    popularity: Catalogue

    @classmethod
    def of(cls, items: pa.Table) -> _Shop:
        titles = pc.fill_null(items["title"].combine_chunks(), "")
        titles = pc.if_else(pc.equal(titles, ""), "an earlier choice", titles)
        because = pc.binary_join_element_wise("because of", titles, " ")
        popularity_N1 = (items["popularity_micro"].to_numpy().astype(np.float64)[:, None] / 1e6).astype(np.float32)
        return cls(items["item_id"].combine_chunks(),
                   pa.concat_arrays([because, pa.array(["popular lately", "what newcomers like"])]),
                   Catalogue(popularity_N1))  # fmt: skip

    def popular(self, k: int, n: int, seen: Seen, group_N: np.ndarray | None) -> TopK:
        """The most popular items of n users."""
        everybody_B1 = np.ones((n, 1), np.float32)

        def find(rows: slice | np.ndarray, wide: int, had: Seen) -> TopK:
            return search(everybody_B1[rows], self.popularity, wide, seen=had)

        return _best(find, k, seen, group_N)

    def rows(
        self, names: pa.Array, item_BK: np.ndarray, score_BK: np.ndarray, model_BK: np.ndarray, reason_BK: np.ndarray,
        stamp: Stamp,
    ) -> pa.RecordBatch:  # fmt: skip
        """Lists as rows of gold.recommendations. `reason_BK`: places in `reasons`, below 0 from its end."""
        b, place = np.nonzero(item_BK >= 0)
        said = reason_BK[b, place]
        taken = {"user_id": (names, b), "item_id": (self.ids, item_BK[b, place]),
                 "source": (pa.array([FALLBACK, MODEL]), model_BK[b, place].astype(np.int8)),
                 "reason": (self.reasons, np.where(said < 0, said + len(self.reasons), said))}  # fmt: skip
        values = {name: of.take(pa.array(at)) for name, (of, at) in taken.items()}
        values |= {"rank": pa.array(place + 1), "score": pa.array(score_BK[b, place])}
        same = {"run_date": stamp.run_date, "arm": stamp.arm, "propensity": 1.0, "model_version": stamp.model_version,
                "run_id": stamp.run_id}  # fmt: skip
        arrow = schema.table("gold.recommendations").arrow
        columns = [pa.repeat(pa.scalar(same[f.name], f.type), len(b)) if f.name in same else values[f.name].cast(f.type)
                   for f in arrow]  # fmt: skip
        return pa.RecordBatch.from_arrays(columns, schema=arrow)


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


def _filled(
    found: TopK, shop: _Shop, seen: Seen, group_N: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Empty places take the most popular items of which none of a kind is in the list already.

    Returns: items, scores, and whether they are the model's, of empty places too.
    """
    item_BK, score_BK, model_BK = found.item, found.score, np.ones(found.item.shape, bool)
    short_S = np.flatnonzero((item_BK < 0).any(1))
    if not len(short_S):
        return item_BK, score_BK, model_BK
    # K popular items of K groups are enough: a list with F free places holds items of K - F groups
    popular = shop.popular(item_BK.shape[1], len(short_S), of_users(seen, short_S), group_N)
    kind_SK = popular.item if group_N is None else np.where(popular.item >= 0, group_N[popular.item], -1)
    for s, b in enumerate(short_S):
        row = item_BK[b]
        own = row[row >= 0]
        have = set((own if group_N is None else group_N[own]).tolist())
        free = np.flatnonzero(row < 0)
        extra = [(i, v) for i, v, kind in zip(popular.item[s], popular.score[s], kind_SK[s].tolist(), strict=True)
                 if i >= 0 and kind not in have]  # fmt: skip
        for place, (item, score) in zip(free, extra, strict=False):
            item_BK[b, place], score_BK[b, place], model_BK[b, place] = item, score, False
    return item_BK, score_BK, model_BK


def _reasons(
    history: Rows, block: slice, item_BK: np.ndarray, model_BK: np.ndarray, vectors: Vectors | Sums | None
) -> np.ndarray:
    """(B, K): places in `_Shop.reasons`, below 0 from its end."""
    popular, newcomers = -2, -1
    reason_BK = np.full(item_BK.shape, popular, np.int64)
    if vectors is not None and vectors.near:
        where_BH = history.last(_HISTORY, block)
        history_BH = np.where(where_BH >= 0, history.at[where_BH], -1) if len(history.at) else where_BH
        # of the model's places alone, without a look at the others
        near_BK = vectors.closest(np.where(model_BK, item_BK, -1), history_BH)
        named_BK = np.take_along_axis(history_BH, near_BK, 1)
        reason_BK = np.where(model_BK, np.where(named_BK >= 0, named_BK, newcomers), popular)
    return reason_BK


def _unit(x_ND: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x_ND, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a vector that is not finite has no direction
        return x_ND / np.where(norm > 0, norm, 1)

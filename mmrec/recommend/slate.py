"""From scores to slates: one list per user, every row tagged with where it came from and why.

In: a day's user sequences and item features, item and user vectors, or histories and a sparse matrix, or neither
(popularity), a bundle's name.
Out: Arrow rows of gold.recommendations, a block of users at a time.
A user the model can't speak for, and places it leaves empty, are filled from popularity, and the row says so.
Of items that are one thing listed twice a list holds the best ranked, and it keeps the shop's rules: choose.py.
Why a row is there: reasons.py.
Trade-off: what is popular is ranked for who needs it alone, and a user's list may be walked more than once.

Shape legend: U users, B users of a block, S users of it with a short list, N items, K places, H history items, J
offered items, M items a bundle knows, D vector size, R rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from mmrec import schema
from mmrec.models.stored import Stored
from mmrec.recommend.again import Had, had
from mmrec.recommend.choose import Chosen, Find, Terms, choose
from mmrec.recommend.explore import Exploration, deal
from mmrec.recommend.histories import rows_of
from mmrec.recommend.reasons import Reasons
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.second import Second, reordered
from mmrec.recommend.vary import Variety
from mmrec.recommend.wishes import Wishes
from mmrec.topk.catalogue import Catalogue
from mmrec.topk.exact import TopK, search, select
from mmrec.topk.members import Offers
from mmrec.topk.rerank import Rerank, rerank
from mmrec.topk.seen import Seen, of_rows, of_users

_BLOCK = 4096
_GATHERED = 2**22  # numbers of offered items' vectors at a time
_KNOWN = "n_interactions"
MODEL, FALLBACK, RULE, DRAWN = "model", "fallback:popularity", "rule", "drawn"


@dataclass(frozen=True)
class Vectors:
    """The two sides of the dot product: `user_UD` (rows of NaN where the model has nothing to say), `item_ND`.

    `near`: whether an item can be nearer to one of a history than to another; of popularity's one column it can't.
    `how` a blend re-ranks, None: the dot product ranks; `cold_N`: (N,) bool, items that the model has not met; `device`
    that searches; `allowed_N`: (N,) bool, items that rules leave on offer, None: all; `kept`: what was made of items,
    for any users.
    """

    user_UD: np.ndarray
    item_ND: np.ndarray
    near: bool = True
    how: Rerank | None = None
    cold_N: np.ndarray | None = None
    device: str = "cpu"
    allowed_N: np.ndarray | None = None
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
        return self._once("catalogue", lambda: Catalogue(self.item_ND, self.allowed_N, self.device))

    @property
    def _offers(self) -> Offers:
        assert self.how is not None
        assert self.cold_N is not None
        members, cold_N = self.how.members, self.cold_N
        return self._once("offers", lambda: Offers(self.item_ND, members, cold_N, self.allowed_N, self.device))

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

    def some(self, rows: slice) -> Vectors:
        """Of some of its users."""
        return self.of(self.user_UD[rows])

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
    items, `place_N`: where a day's item stands among those it knows, -1 if nowhere; `allowed_N` as of `Vectors`."""

    stored: Stored
    history_UM: sparse.csr_matrix
    user_ids: np.ndarray
    matrix_RN: sparse.csr_matrix
    matrix_NR: sparse.csr_matrix
    place_N: np.ndarray
    allowed_N: np.ndarray | None = None
    near = True

    @property
    def speaks_N(self) -> np.ndarray:
        """As of `Vectors`."""
        return self.place_N >= 0

    def best(self, block: slice, rows: slice | np.ndarray, k: int, seen: Seen) -> TopK:
        """As of `Vectors`; only a few users' scores are there at a time."""
        may_N = self.speaks_N if self.allowed_N is None else self.speaks_N & self.allowed_N
        history_BM, asking_B = self.history_UM[block][rows], self.user_ids[block][rows]
        parts = []
        for some, score_BN in self.stored.sums(history_BM, asking_B, self.matrix_RN):
            ptr = seen[0][some.start : some.stop + 1]
            had = (ptr - ptr[0], seen[1][ptr[0] : ptr[-1]])
            parts.append(select(score_BN, k, seen=had, allowed=may_N))
        return TopK(np.concatenate([p.item for p in parts]), np.concatenate([p.score for p in parts]),
                    sum(p.dropped_users for p in parts), int((~self.speaks_N).sum()))  # fmt: skip

    def some(self, rows: slice) -> Sums:
        """As of `Vectors`."""
        return replace(self, history_UM=self.history_UM[rows], user_ids=self.user_ids[rows])

    def closest(self, item_BK: np.ndarray, history_BH: np.ndarray) -> np.ndarray:
        """As of `Vectors`."""
        out_BK = np.zeros(item_BK.shape, np.int64)
        for b, (item_K, history_H) in enumerate(zip(item_BK, history_BH, strict=True)):
            offered, had = item_K >= 0, history_H >= 0
            if offered.any() and had.any():
                near = self.weights(item_K[offered], history_H[had])
                out_BK[b, offered] = np.flatnonzero(had)[near.argmax(1)]
        return out_BK

    def weights(self, offered_J: np.ndarray, history_H: np.ndarray) -> np.ndarray:
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
    ruling: Ruling | None = None,
    draws: Exploration | None = None,
    variety: Variety | None = None,
    reasons: Reasons | None = None,
    wishes: Wishes | None = None,
    second: Second | None = None,
) -> Iterator[pa.RecordBatch]:
    """Slates of every user, in user order.

    Args:
        users: gold.user_sequences of the day. items: gold.item_features of the day, ascending by item_id.
        vectors: of those users and items, in that order; None: the popularity bundle.
        k: places in a list; shorter where a user has seen nearly everything.
        counts: filled with users, rows, fallback_rows, short_lists, dropped_users, dropped_items.
        group_N: (N,) int64, equal for items of which a list may hold one; None: no such items are known.
        ruling: the shop's rules over those items; None: lists are of before there were any, and do not say what was
            passed over.
        draws: places that are drawn; None: none are.
        variety: of those items, what the model's ranking is put in another order by; None: it stays as it is.
        reasons: what is said of rows; None: English sentences, as before there was more.
        wishes: over those items; None: users have none.
        second: of those items, what puts the first places of the model's ranking in order, before variety; None: the
            model alone ranks.

    Yields: rows of gold.recommendations, at most `_BLOCK` users each.
    """
    shop, reasons = _Shop.of(items, ruling), reasons or Reasons(items)
    known = had(users, shop.ids, None if vectors is None else vectors.speaks_N, ruling, wishes)
    counts.update(users=0, rows=0, fallback_rows=0, short_lists=0, dropped_users=0, dropped_items=0)
    for start in range(0, users.num_rows, _BLOCK):
        some = users.slice(start, _BLOCK)
        names = some["user_id"].combine_chunks()
        n = len(names)
        block = slice(start, start + n)
        made = shop.chosen(some, block, vectors, known, k if draws is None else draws.chosen, group_N, ruling, draws,
                           variety, wishes, second=second)  # fmt: skip
        if draws is not None:
            made = shop.dealt(made, draws, names.to_pylist(), stamp.run_date)
        made.freed_BK = known.freed(block, made.lists.item_BK)
        counts["dropped_users"] += made.dropped_users
        counts["dropped_items"] = made.dropped_items
        asked = None if vectors is None else vectors.some(block)
        told = reasons.columns(made.lists, some, known.history.of(block), asked)
        batch = shop.rows(names, made, told, stamp)
        counts["users"] += n
        counts["rows"] += batch.num_rows
        counts["short_lists"] += int(((made.lists.item_BK >= 0).sum(1) < k).sum())
        counts["fallback_rows"] += int((~made.lists.model_BK & (made.lists.place_BK > 0)).sum())
        yield batch


def chosen(
    users: pa.Table, items: pa.Table, vectors: Vectors | Sums | None, k: int, group_N: np.ndarray | None,
    ruling: Ruling | None, draws: tuple[Exploration, date] | None = None, variety: Variety | None = None,
    wishes: Wishes | None = None, second: Second | None = None,
) -> Chosen:  # fmt: skip
    """What lists of a few users are made of: of `slates`' arguments, the choice without its words, and every item that
    is passed over. `draws`: and the day."""
    shop, block = _Shop.of(items, ruling), slice(0, users.num_rows)
    known = had(users, shop.ids, None if vectors is None else vectors.speaks_N, ruling, wishes)
    if draws is None:
        return shop.chosen(users, block, vectors, known, k, group_N, ruling, None, variety, wishes, tell=True,
                           second=second)  # fmt: skip
    made = shop.chosen(users, block, vectors, known, draws[0].chosen, group_N, ruling, draws[0], variety, wishes,
                       tell=True, second=second)  # fmt: skip
    return shop.dealt(made, draws[0], users["user_id"].to_pylist(), draws[1])


@dataclass(frozen=True)
class _Shop:
    """The day's items: what lists are written with."""

    ids: pa.Array
    popularity: Catalogue
    causes: pa.Array | None
    n_interactions: np.ndarray

    @classmethod
    def of(cls, items: pa.Table, ruling: Ruling | None) -> _Shop:
        popularity_N1 = (items["popularity_micro"].to_numpy().astype(np.float64)[:, None] / 1e6).astype(np.float32)
        return cls(items["item_id"].combine_chunks(),
                   Catalogue(popularity_N1, None if ruling is None else ruling.allowed_N),
                   None if ruling is None else pa.array(ruling.names, pa.string()),
                   items[_KNOWN].to_numpy() if _KNOWN in items.column_names else np.zeros(items.num_rows))  # fmt: skip

    def popular(self, rows: np.ndarray, wide: int, seen: Seen) -> TopK:
        """The most popular items of some users."""
        return search(np.ones((len(rows), 1), np.float32), self.popularity, wide, seen=seen)

    def chosen(
        self, some: pa.Table, block: slice, vectors: Vectors | Sums | None, known: Had, k: int,
        group_N: np.ndarray | None, ruling: Ruling | None, draws: Exploration | None = None,
        variety: Variety | None = None, wishes: Wishes | None = None, tell: bool = False,
        second: Second | None = None,
    ) -> Chosen:  # fmt: skip
        """Rows of a block of users' lists, and what drawn places are dealt; `known` is all users'."""
        seen = of_rows((known.seen.ptr, known.seen.at), block)
        law = None
        if ruling is not None and ruling.walks:
            about = some["attributes"].combine_chunks() if "attributes" in some.column_names else None
            law = ruling.law(some["user_id"].combine_chunks(), about)
        if law is not None and draws is not None:
            place_CP = np.where(law.place_CP < draws.k, draws.behind(law.place_CP), k)
            law = replace(law, place_CP=place_CP.astype(np.int32))
        terms = Terms(k, len(self.ids), law, group_N, None if draws is None else draws.kept, tell)
        moves = {} if wishes is None else wishes.moves(some)
        if vectors is None:
            find = self.popular if wishes is None or not moves else _wished(self.popular, wishes, moves)
            made = replace(choose(find, None, some.num_rows, terms, seen), dropped_users=0, dropped_items=0)
        else:
            find = partial(vectors.best, block)
            if second is not None:
                own = rows_of(some["item_ids"], self.ids)
                own = own.kept(own.at >= 0)
                find = _seconded(find, second, (own.ptr, own.at))
            if variety is not None:
                whole = 0 if second is None else second.depth
                find = _varied(find, variety, of_rows((known.history.ptr, known.history.at), block), whole)
            if wishes is not None and moves:
                find = _wished(find, wishes, moves)
            made = choose(find, self.popular, some.num_rows, terms, seen)
        if law is None and ruling is not None:
            made.passed[:, 3] = len(ruling.rules)  # where no rule walks, only twins are passed over
        return made

    def dealt(self, made: Chosen, draws: Exploration, users: list[str], day: date) -> Chosen:
        """Lists of which some places are drawn; what was passed over behind the last that is not is not told."""
        weight_N = draws.weights(self.n_interactions)
        lists, chance_BK, moved_BM = deal(made.lists, draws, users, day, weight_N)
        passed = made.passed[made.passed[:, 1] < draws.kept].copy()
        passed[:, 1] = moved_BM[passed[:, 0], passed[:, 1]]
        return replace(made, lists=lists, passed=passed, chance_BK=chance_BK)

    def rows(self, names: pa.Array, made: Chosen, told: dict[str, pa.Array], stamp: Stamp) -> pa.RecordBatch:
        """Lists as rows of gold.recommendations. `told`: columns of reasons.py."""
        b, at = np.nonzero(made.lists.item_BK >= 0)
        placed = made.lists.place_BK[b, at] > 0
        source = np.where(placed, made.lists.model_BK[b, at], np.where(made.lists.rule_BK[b, at] >= 0, 2, 3))
        taken = {"user_id": (names, b), "item_id": (self.ids, made.lists.item_BK[b, at]),
                 "source": (pa.array([FALLBACK, MODEL, RULE, DRAWN]), source)}  # fmt: skip
        values = {name: of.take(pa.array(place)) for name, (of, place) in taken.items()} | told
        values |= {"rank": pa.array(at + 1), "score": pa.array(made.lists.score_BK[b, at])}
        values |= self._account(made, b, at)
        chance = np.ones(len(b)) if made.chance_BK is None else made.chance_BK[b, at]
        values["propensity"] = pa.array(chance)
        same = {"run_date": stamp.run_date, "arm": stamp.arm, "model_version": stamp.model_version,
                "run_id": stamp.run_id}  # fmt: skip
        arrow = schema.table("gold.recommendations").arrow
        columns = [pa.repeat(pa.scalar(same[f.name], f.type), len(b)) if f.name in same else values[f.name].cast(f.type)
                   for f in arrow]  # fmt: skip
        return pa.RecordBatch.from_arrays(columns, schema=arrow)

    def _account(self, made: Chosen, b: np.ndarray, at: np.ndarray) -> dict[str, pa.Array]:
        """place, passed and rule of rows; of nights before there were rules they are null."""
        arrow, ranked = schema.table("gold.recommendations").arrow, made.lists.ranked_BK[b, at]
        found = {"ranked": pa.array(ranked, mask=ranked == 0)}
        if self.causes is None:
            none = {name: pa.nulls(len(b), arrow.field(name).type) for name in ("place", "passed", "passed_n", "rule")}
            return found | none
        place, rule_BK = made.lists.place_BK[b, at], made.lists.rule_BK
        # that it is there at all comes before how it got where it is
        rule_BK = rule_BK if made.freed_BK is None else np.where(made.freed_BK >= 0, made.freed_BK, rule_BK)
        rule = rule_BK[b, at].astype(np.int32)
        row_BK = np.cumsum(made.lists.item_BK.ravel() >= 0).reshape(made.lists.item_BK.shape) - 1
        over = np.bincount(row_BK[made.passed[:, 0], made.passed[:, 1]], minlength=len(b))
        ends = pa.array(np.concatenate([[0], np.cumsum(over)]), pa.int32())
        causes = self.causes.take(pa.array(made.passed[:, 3]))
        none, many = pa.array(over == 0), pa.array(made.passed[:, 4].astype(np.int64))
        return found | {"place": pa.array(place, mask=place == 0),
                        "passed": pa.ListArray.from_arrays(ends, causes, mask=none),
                        "passed_n": pa.ListArray.from_arrays(ends, many, mask=none),
                        "rule": self.causes.take(pa.array(rule, mask=rule < 0))}  # fmt: skip


def _seconded(find: Find, second: Second, history: Seen) -> Find:
    """The same rankings as the second stage has them; `history`: of all users of the block."""

    def found(rows: np.ndarray, wide: int, seen: Seen) -> TopK:
        own = history if len(rows) == len(history[0]) - 1 else of_users(history, rows)
        return second.ranked(find(rows, max(wide, second.depth), seen), wide, own)

    return found


def _varied(find: Find, variety: Variety, history: Seen, whole: int = 0) -> Find:
    """The same rankings in another order; `history`: of all users of the block; `whole`: first places that a second
    stage had put in another, of which all must be there."""

    def found(rows: np.ndarray, wide: int, seen: Seen) -> TopK:
        own = history if len(rows) == len(history[0]) - 1 else of_users(history, rows)
        ranked = find(rows, max(wide, variety.aims.pool, whole), seen)
        if ranked.rank is None:
            return variety.varied(ranked, wide, own)
        return reordered(ranked, lambda top: variety.varied(top, wide, own))

    return found


def _wished(find: Find, wishes: Wishes, moves: dict[int, dict[int, int]]) -> Find:
    """The same rankings with what users of the block want moved."""

    def found(rows: np.ndarray, wide: int, seen: Seen) -> TopK:
        return wishes.moved(find(rows, max(wide, wishes.pool), seen), rows, moves, wide)

    return found


def _unit(x_ND: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x_ND, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a vector that is not finite has no direction
        return x_ND / np.where(norm > 0, norm, 1)

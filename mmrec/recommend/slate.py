"""From scores to slates: one list per user, every row tagged with where it came from and why.

In: a day's user sequences and item features, item and user vectors, or histories and a sparse matrix, or neither
(popularity), a bundle's name.
Out: Arrow rows of gold.recommendations, a block of users at a time.
A user the model can't speak for, and places it leaves empty, are filled from popularity, and the row says so.
Of items that are one thing listed twice a list holds the best ranked, and it keeps the shop's rules: choose.py.
Why a row is there: reasons.py.
Trade-off: what is popular is ranked for who needs it alone, and a user's list may be walked more than once.

Shape legend: U users, B users of a block, S users of it with a short list, N items, K places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec import schema
from mmrec.models.traits import Who
from mmrec.recommend.again import Had, had
from mmrec.recommend.choose import Chosen, Find, Terms, choose
from mmrec.recommend.explore import Exploration, deal
from mmrec.recommend.generators import NAMES, Generators, Mixed
from mmrec.recommend.histories import rows_of
from mmrec.recommend.reasons import Reasons
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.scorers import Sums, Vectors
from mmrec.recommend.second import Second, reordered
from mmrec.recommend.vary import Variety
from mmrec.recommend.wishes import Wishes
from mmrec.topk.catalogue import Catalogue
from mmrec.topk.exact import TopK, search
from mmrec.topk.seen import Seen, of_rows, of_users

_BLOCK, _WRITTEN = 8192, 4096  # users whose lists are chosen together, and written together: rows take more room
_KNOWN = "n_interactions"
MODEL, FALLBACK, RULE, DRAWN = "model", "fallback:popularity", "rule", "drawn"
_SOURCES = (FALLBACK, MODEL, RULE, DRAWN, *NAMES)


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
    others: Generators | None = None,
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
        others: over those items, what else brings candidates; None: nothing does.
        second: of those items, what puts the first places of the model's ranking in order, before variety; None: the
            model alone ranks.

    Yields: rows of gold.recommendations, at most `_WRITTEN` users each.
    """
    shop, reasons = _Shop.of(items, ruling), reasons or Reasons(items)
    known = had(users, shop.ids, None if vectors is None else vectors.speaks_N, ruling, wishes)
    counts.update(users=0, rows=0, fallback_rows=0, short_lists=0, dropped_users=0, dropped_items=0)
    for start in range(0, users.num_rows, _BLOCK):
        some = users.slice(start, _BLOCK)
        names = some["user_id"].combine_chunks()
        n = len(names)
        block = slice(start, start + n)
        whole = shop.chosen(some, block, vectors, known, k if draws is None else draws.chosen, group_N, ruling, draws,
                           variety, wishes, others, second=second)  # fmt: skip
        if draws is not None:
            whole = shop.dealt(whole, draws, names.to_pylist(), stamp.run_date)
        whole.freed_BK = known.freed(block, whole.lists.item_BK)
        all_BK = whole.told_apart()
        counts["dropped_users"] += whole.dropped_users
        counts["dropped_items"] = whole.dropped_items
        for first in range(0, n, _WRITTEN):
            part = slice(first, min(first + _WRITTEN, n))
            here = slice(start + part.start, start + part.stop)
            made, brought_BK = whole.of(part), None if all_BK is None else all_BK[part]
            asked = None if vectors is None else vectors.some(here)
            told = reasons.columns(made.lists, users.slice(here.start, here.stop - here.start), known.history.of(here),
                                   asked, brought_BK)  # fmt: skip
            batch = shop.rows(names[part.start : part.stop], made, told, stamp, brought_BK)
            counts["users"] += part.stop - part.start
            counts["rows"] += batch.num_rows
            counts["short_lists"] += int(((made.lists.item_BK >= 0).sum(1) < k).sum())
            counts["fallback_rows"] += int(pc.sum(pc.equal(batch["source"], FALLBACK)).as_py() or 0)
            yield batch


def chosen(
    users: pa.Table, items: pa.Table, vectors: Vectors | Sums | None, k: int, group_N: np.ndarray | None,
    ruling: Ruling | None, draws: tuple[Exploration, date] | None = None, variety: Variety | None = None,
    wishes: Wishes | None = None, others: Generators | None = None, second: Second | None = None,
) -> Chosen:  # fmt: skip
    """What lists of a few users are made of: of `slates`' arguments, the choice without its words, and every item that
    is passed over. `draws`: and the day."""
    shop, block = _Shop.of(items, ruling), slice(0, users.num_rows)
    known = had(users, shop.ids, None if vectors is None else vectors.speaks_N, ruling, wishes)
    if draws is None:
        return shop.chosen(users, block, vectors, known, k, group_N, ruling, None, variety, wishes, others, tell=True,
                           second=second)  # fmt: skip
    made = shop.chosen(users, block, vectors, known, draws[0].chosen, group_N, ruling, draws[0], variety, wishes,
                       others, tell=True, second=second)  # fmt: skip
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
        variety: Variety | None = None, wishes: Wishes | None = None, others: Generators | None = None,
        tell: bool = False, second: Second | None = None,
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
        terms = Terms(k, len(self.ids), law, group_N, None if draws is None else draws.kept, tell,
                      None if draws is None else draws.enough)  # fmt: skip
        moves = {} if wishes is None else wishes.moves(some)
        history = of_rows((known.history.ptr, known.history.at), block)
        find = self.popular if vectors is None else partial(vectors.best, block)
        if second is not None and vectors is not None:
            whole = rows_of(some["item_ids"], self.ids)
            whole = whole.kept(whole.at >= 0)
            find = _seconded(find, second, (whole.ptr, whole.at), second.who(some))
        if variety is not None and vectors is not None:
            find = _varied(find, variety, history, 0 if second is None else second.depth)
        mixed = None
        if others is not None:
            mixed = Mixed(np.zeros(some.num_rows, bool))
            find = _mixed(find, others, some, history, mixed)
        if wishes is not None and moves:
            find = _wished(find, wishes, moves)
        apart = vectors is not None and vectors.apart
        made = choose(find, None if vectors is None else self.popular, some.num_rows, terms, seen, apart)
        if vectors is None:
            made = replace(made, dropped_users=0, dropped_items=0)
        made.mixed = mixed
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

    def rows(
        self, names: pa.Array, made: Chosen, told: dict[str, pa.Array], stamp: Stamp, brought_BK: np.ndarray | None
    ) -> pa.RecordBatch:
        """Lists as rows of gold.recommendations. `told`: columns of reasons.py. `brought_BK`: as of `Mixed`."""
        b, at = np.nonzero(made.lists.item_BK >= 0)
        placed = made.lists.place_BK[b, at] > 0
        by = made.lists.model_BK[b, at].astype(np.int64)
        if brought_BK is not None:
            by = np.where(brought_BK[b, at] >= 0, brought_BK[b, at] + len(_SOURCES) - len(NAMES), by)
        source = np.where(placed, by, np.where(made.lists.rule_BK[b, at] >= 0, 2, 3))
        taken = {"user_id": (names, b), "item_id": (self.ids, made.lists.item_BK[b, at]),
                 "source": (pa.array(_SOURCES), source)}  # fmt: skip
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


def _seconded(find: Find, second: Second, history: Seen, who: Who | None) -> Find:
    """The same rankings as the second stage has them; `history`, `who`: of all users of the block."""

    def found(rows: np.ndarray, wide: int, seen: Seen) -> TopK:
        own, them = of_users(history, rows), None if who is None else who.some(rows)
        return second.ranked(find(rows, max(wide, second.depth), seen), wide, own, them)

    return found


def _varied(find: Find, variety: Variety, history: Seen, whole: int = 0) -> Find:
    """The same rankings in another order; `history`: of all users of the block; `whole`: first places that a second
    stage had put in another, of which all must be there."""

    def found(rows: np.ndarray, wide: int, seen: Seen) -> TopK:
        own = of_users(history, rows)
        ranked = find(rows, max(wide, variety.aims.pool, whole), seen)
        if ranked.rank is None:
            return variety.varied(ranked, wide, own)
        return reordered(ranked, lambda top: variety.varied(top, wide, own))

    return found


def _mixed(find: Find, others: Generators, users: pa.Table, history: Seen, into: Mixed) -> Find:
    """The same rankings with what other generators bring to users of the block."""

    def found(rows: np.ndarray, wide: int, seen: Seen) -> TopK:
        return others.mixed(find(rows, wide, seen), rows, users, history, seen, into)

    return found


def _wished(find: Find, wishes: Wishes, moves: dict[int, dict[int, int]]) -> Find:
    """The same rankings with what users of the block want moved."""

    def found(rows: np.ndarray, wide: int, seen: Seen) -> TopK:
        return wishes.moved(find(rows, max(wide, wishes.pool), seen), rows, moves, wide)

    return found

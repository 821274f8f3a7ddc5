"""Lists for a block of users: the model's ranking, walked down as far as it takes, and then what is popular.

In: how to find the best of some users, how to find what is popular, what holds for them. Out: `Chosen`.
A longer ranking begins with the shorter one, so who is not filled is asked for again with twice as many; the result is
that of a walk down the whole ranking. How many are asked for at first is learned from the lists before: that changes
how long it takes, and nothing else.
Trade-off: where rules keep most of a ranking from a few users, theirs is found several times, each time twice as long.

Shape legend: B users of a block, S some of them, W places asked for, K places of a list, N items, X passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mmrec.recommend.generators import Mixed
from mmrec.recommend.ruling import Law
from mmrec.recommend.walk import Lists, walk
from mmrec.topk.exact import TopK
from mmrec.topk.seen import Seen, of_rows, of_users
from mmrec.topk.threads import share

_MORE = 4  # a quarter more places are asked for at first where twins are passed over, half as many where rules do
_AGAIN, _TOLD = 500, 1024  # places that cost what asking again for a user does; lists that tell
_FEW = 256  # users that are not worth a thread
_GATHERED = 2**21  # places of a ranking at a time
Find = Callable[[np.ndarray, int, Seen], TopK]  # of some of a block's users, so many places


@dataclass
class Chosen:
    """`lists` and `passed`: see walk.py. `dropped_users`, `dropped_items`: as of `search`, of the first ranking.
    `chance_BK`: (B, K) float64, with which a row is where it is; None: it is certain. `freed_BK`: (B, K) int16, the
    rule that lets its user have it again, -1: none; None: nobody may have anything again. `mixed`: who brought what of
    the first ranking; None: the model, everything."""

    lists: Lists
    passed: np.ndarray
    dropped_users: int = 0
    dropped_items: int = 0
    chance_BK: np.ndarray | None = None
    freed_BK: np.ndarray | None = None
    mixed: Mixed | None = None

    def of(self, some: slice) -> Chosen:
        """Of some users; who brought what is told apart before, and those that were dropped are counted."""
        mine = (self.passed[:, 0] >= some.start) & (self.passed[:, 0] < some.stop)
        passed = self.passed[mine]
        passed[:, 0] -= some.start
        rest = (None if of is None else of[some] for of in (self.chance_BK, self.freed_BK))
        return Chosen(self.lists.of(some), passed, 0, 0, *rest)

    def told_apart(self) -> np.ndarray | None:
        """(B, K) int8 as of `Mixed.brought`; None: the model brought everything. What it did not is none of its own."""
        if self.mixed is None:
            return None
        brought_BK = self.mixed.brought(self.lists.item_BK)
        self.lists.model_BK[(brought_BK >= 0) | self.mixed.silent_B[:, None]] = False
        return brought_BK


@dataclass(frozen=True)
class Terms:
    """What lists are chosen by. `law`: None: no rule holds for anyone. `group_N`: (N,) int, equal for twins; None: no
    item has one. `asked`: the first places, in which quotas are met; None: all of the K. `tell`: of every item that is
    passed over; else how many are. `enough`: rows with which a list ends once K candidates were looked at; None: all of
    the K."""

    k: int
    n: int
    law: Law | None = None
    group_N: np.ndarray | None = None
    asked: int | None = None
    tell: bool = False
    enough: int | None = None

    @cached_property
    def most(self) -> int:
        """Places that are enough, whoever the user is: where only twins are passed over, among so many are K kinds, if
        there are so many."""
        if self.law is not None:
            return self.n
        return self.k if self.group_N is None else self.k + self.n - len(np.unique(self.group_N))

    @property
    def wide(self) -> int:
        """Places to ask for at first."""
        if self.law is None:
            return min(self.most, self.k + self.k // _MORE)
        more = 0 if self.enough is not None else 2 * self.k // _MORE
        return min(self.most, self.law.learned.get(self.k, self.k + more + self.law.lift))


def choose(find: Find, popular: Find | None, users: int, terms: Terms, seen: Seen, apart: bool = False) -> Chosen:
    """Lists of every user of a block.

    Args:
        find: the first ranking. popular: what fills places it leaves empty; None: nothing does. seen: (B + 1,) and
            indices, what a user must not get. apart: parts of the users may be found for at the same time, each in one
            thread; that changes nothing but how long it takes.
    """
    out = Chosen(Lists.room(users, terms.k), np.zeros((0, 5), np.int32))
    law = Law.none(users, terms.n) if terms.law is None else terms.law
    law.facts(terms.group_N)  # once, before threads ask for it
    rows, wide, again, parts = np.arange(users), terms.wide, False, []
    while len(rows):

        def part(some: slice, rows: np.ndarray = rows, wide: int = wide, again: bool = again) -> _Work:
            if not again:  # all users, in their order
                out.lists.clear(some)
            return _Work(find, popular, out.lists, terms, law, seen).done(rows[some], wide)

        most = max(1, _GATHERED // wide)
        if apart:  # a part does all that is done with its users: else threads would wait for each other in between
            done = share(len(rows), _FEW, part, most)
        else:
            done = [part(slice(start, start + most)) for start in range(0, len(rows), most)]
        out.dropped_users += 0 if again else sum(work.dropped_users for work in done)
        out.dropped_items = done[0].dropped_items
        parts += [passed for work in done for passed in work.passed]
        rows, wide, again = np.concatenate([work.left for work in done]), min(terms.most, 2 * wide), True
    _learn(terms, out.lists)
    if parts:
        passed = np.concatenate(parts)
        out.passed = passed[np.lexsort((passed[:, 1], passed[:, 0]))] if len(parts) > 1 else passed
    return out


@dataclass
class _Work:
    find: Find
    popular: Find | None
    lists: Lists
    terms: Terms
    law: Law
    seen: Seen
    passed: list[np.ndarray] = field(default_factory=list)
    dropped_users: int = 0
    dropped_items: int = 0
    left: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def done(self, rows: np.ndarray, wide: int) -> _Work:
        """Itself, with lists of some users, of whom `wide` places were asked for; `left`: whose are not full yet."""
        found = self.find(rows, wide, of_users(self.seen, rows))
        self.dropped_users, self.dropped_items = found.dropped_users, found.dropped_items
        sure_S = (found.item[:, -1] < 0) | (wide >= self.terms.most)
        full_S = self.enter(rows, found, sure_S)
        if not full_S.all():
            short_S = ~full_S & sure_S
            self.fill(rows[short_S], _of(found, short_S))
            self.left = rows[~full_S & ~sure_S]
        return self

    def enter(
        self, rows: np.ndarray, found: TopK, sure_S: np.ndarray, first: int | None = None,
        least_SQ: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Walk; what is full is kept, and what nothing more comes of. Returns: (S,) bool, who is full."""
        final = first is not None or self.popular is None
        seen = of_users(self.seen, rows)

        def part(some: slice) -> tuple[np.ndarray, np.ndarray]:
            return walk(self.lists, rows[some], found.item[some], found.score[some], sure_S[some],
                        of_rows(seen, some), self.law, self.terms.group_N, first=first, final=final,
                        asked=self.terms.asked, tell=self.terms.tell, enough=self.terms.enough,
                        rank_SW=None if found.rank is None else found.rank[some],
                        least_SQ=None if least_SQ is None else least_SQ[some])  # fmt: skip

        made = share(len(rows), _FEW, part)
        kept_S = np.concatenate([kept for kept, _ in made])
        if least_SQ is not None:
            self.passed[:] = [p[~np.isin(p[:, 0], rows[kept_S > 0])] for p in self.passed]
        self.passed += [passed for _, passed in made if len(passed)]
        return kept_S == 2

    def fill(self, rows: np.ndarray, ranked: TopK) -> None:
        """Lists of users whose first ranking is at its end."""
        if not len(rows):
            return
        if self.popular is None:
            self._loosen(rows, ranked, None)
            return
        first = max(1, int((ranked.item >= 0).sum(1).max()))
        item_SW, score_SW = ranked.item[:, :first], ranked.score[:, :first]
        todo, wide = np.arange(len(rows)), self.terms.wide
        while len(todo):
            later = []
            for some in _parts(todo, first + wide):
                more = self.popular(rows[some], wide, of_users(self.seen, rows[some]))
                both = TopK(np.concatenate([item_SW[some], more.item], 1),
                            np.concatenate([score_SW[some], more.score], 1), 0, 0,
                            None if ranked.rank is None else ranked.rank[some, :first])  # fmt: skip
                sure = (more.item[:, -1] < 0) | (wide >= self.terms.most)
                full = self.enter(rows[some], both, sure, first)
                short = ~full & sure
                self._loosen(rows[some[short]], _of(both, short), first)
                later.append(some[~full & ~sure])
            todo, wide = np.concatenate(later), min(self.terms.most, 2 * wide)

    def _loosen(self, rows: np.ndarray, found: TopK, first: int | None) -> None:
        """Where there are fewer than a quota asks for, the walk is done again for as many as the list has of them."""
        facts_NF, _, quotas = self.law.facts(self.terms.group_N)
        if len(rows) and len(quotas):
            item_SK = self.lists.item_BK[rows]
            met_SQ = ((facts_NF[item_SK][..., quotas[:, 1]] >= 0) & (item_SK >= 0)[..., None]).sum(1)
            least_SQ = np.minimum(met_SQ, self.law.least_CR[self.law.class_B[rows]][:, quotas[:, 0]]).astype(np.int32)
            self.enter(rows, found, np.ones(len(rows), bool), first, least_SQ)


def _learn(terms: Terms, lists: Lists) -> None:
    """How deep it would have been best to look for these lists: each place is paid for by everybody, and who is not
    filled then is asked for again."""
    if terms.law is not None and len(lists.place_BK) >= _TOLD:
        deep_B = np.sort(lists.place_BK.max(1))
        left_B = np.arange(len(deep_B) - 1, -1, -1)
        terms.law.learned[terms.k] = int(deep_B[(deep_B + _AGAIN * left_B / len(deep_B)).argmin()]) + terms.law.lift + 1


def _of(found: TopK, rows: np.ndarray) -> TopK:
    return TopK(found.item[rows], found.score[rows], 0, 0, None if found.rank is None else found.rank[rows])


def _parts(rows: np.ndarray, wide: int) -> Iterator[np.ndarray]:
    step = max(1, _GATHERED // max(wide, 1))
    return (rows[start : start + step] for start in range(0, len(rows), step))

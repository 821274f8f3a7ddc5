"""Lists for a block of users: the model's ranking, walked down as far as it takes, and then what is popular.

In: how to find the best of some users, how to find what is popular, what holds for them. Out: `Chosen`.
A longer ranking begins with the shorter one, so who is not filled is asked for again with twice as many; the result is
that of a walk down the whole ranking.
Trade-off: where rules keep most of a ranking from a user, it is found several times, each time twice as long.

Shape legend: B users of a block, S some of them, W places asked for, K places of a list, N items, X passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mmrec.recommend.ruling import Law
from mmrec.recommend.walk import walk
from mmrec.topk.exact import TopK
from mmrec.topk.seen import Seen, of_users

_MORE = 4  # a quarter more places are asked for at first
_GATHERED = 2**21  # places of a ranking at a time
Find = Callable[[np.ndarray, int, Seen], TopK]  # of some of a block's users, so many places


@dataclass
class Chosen:
    """Lists of B users.

    Attributes:
        item_BK: (B, K) int32, -1 in empty places, which come last. score_BK: (B, K) float32; 0 where a rule placed an
            item without one. model_BK: (B, K) bool, of the first ranking; of empty places too. place_BK, rule_BK,
            passed: see walk.py; a place of 0 and a rule: a pin.
    """

    item_BK: np.ndarray
    score_BK: np.ndarray
    model_BK: np.ndarray
    place_BK: np.ndarray
    rule_BK: np.ndarray
    passed: np.ndarray
    dropped_users: int = 0
    dropped_items: int = 0


@dataclass(frozen=True)
class Terms:
    """What lists are chosen by. `law`: None: no rule holds for anyone. `group_N`: (N,) int64, equal for twins; None: no
    item has one."""

    k: int
    n: int
    law: Law | None = None
    group_N: np.ndarray | None = None

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
        return min(self.most, self.k + self.k // _MORE + (self.law.lift if self.law else 0))


def choose(find: Find, popular: Find | None, users: int, terms: Terms, seen: Seen) -> Chosen:
    """Lists of every user of a block.

    Args:
        find: the first ranking. popular: what fills places it leaves empty; None: nothing does. seen: (B + 1,) and
            indices, what a user must not get.
    """
    k = terms.k
    out = Chosen(np.full((users, k), -1, np.int32), np.full((users, k), -np.inf, np.float32),
                 np.ones((users, k), bool), np.zeros((users, k), np.int32), np.full((users, k), -1, np.int16),
                 np.zeros((0, 4), np.int32))  # fmt: skip
    law = terms.law or nothing(users, terms.n)
    group_N = np.arange(terms.n, dtype=np.int32) if terms.group_N is None else terms.group_N.astype(np.int32)
    work = _Work(out, popular, terms, law, group_N, seen, [])
    rows, wide, again = np.arange(users), terms.wide, False
    while len(rows):
        later = []
        for some in _parts(rows, wide):
            found = find(some, wide, work.seen_by(some))
            out.dropped_users += 0 if again else found.dropped_users
            out.dropped_items = found.dropped_items
            sure_S = (found.item[:, -1] < 0) | (wide >= terms.most)
            full_S = work.enter(some, found, sure_S)
            work.fill(some[~full_S & sure_S], found.item[~full_S & sure_S], found.score[~full_S & sure_S])
            later.append(some[~full_S & ~sure_S])
        rows, wide, again = np.concatenate(later), min(terms.most, 2 * wide), True
    if work.passed:
        passed = np.concatenate(work.passed)
        out.passed = passed[np.lexsort((passed[:, 1], passed[:, 0]))]
    return out


def nothing(users: int, n: int) -> Law:
    """A law that asks nothing of anyone."""
    none, nobody = np.full((1, n), -1, np.int16), np.zeros((1, 0), np.int32)
    return Law(np.zeros(users, np.int32), none, np.zeros((1, 0), np.int16), none, np.zeros((0, n), np.int32),
               np.zeros((1, 0), bool), np.zeros(0, np.int32), nobody, nobody, nobody)  # fmt: skip


@dataclass
class _Work:
    out: Chosen
    popular: Find | None
    terms: Terms
    law: Law
    group_N: np.ndarray
    seen: Seen
    passed: list[np.ndarray]

    def seen_by(self, rows: np.ndarray) -> Seen:
        return self.seen if len(rows) == len(self.seen[0]) - 1 else of_users(self.seen, rows)

    def enter(
        self, rows: np.ndarray, found: TopK, sure_S: np.ndarray, first: int | None = None, strict: bool = True
    ) -> np.ndarray:
        """Walk, and keep what is full, or as it is where nothing more comes of it. Returns: (S,) bool, who is full."""
        k, out = self.terms.k, self.out
        walked = walk(found.item, sure_S, self.seen_by(rows), self.law.of(rows), self.group_N, k, first=first,
                      strict=strict)  # fmt: skip
        last = first is not None or self.popular is None
        keep_S = walked.full_B | (sure_S & last)
        mine = rows[keep_S]
        at_SK = walked.at_BK[keep_S]
        score_SK = np.take_along_axis(found.score[keep_S], np.maximum(at_SK, 0), 1)
        there_SK = walked.item_BK[keep_S] >= 0
        out.item_BK[mine] = walked.item_BK[keep_S]
        out.score_BK[mine] = np.where(at_SK >= 0, score_SK, np.where(there_SK, np.float32(0), np.float32(-np.inf)))
        out.model_BK[mine] = at_SK < (found.item.shape[1] if first is None else first)
        out.place_BK[mine], out.rule_BK[mine] = walked.place_BK[keep_S], walked.rule_BK[keep_S]
        if len(walked.passed):
            kept = walked.passed[keep_S[walked.passed[:, 0]]]
            kept[:, 0] = rows[kept[:, 0]]
            self.passed.append(kept)
        return walked.full_B

    def fill(self, rows: np.ndarray, item_SW: np.ndarray, score_SW: np.ndarray) -> None:
        """Lists of users whose first ranking is at its end."""
        whole = np.ones(len(rows), bool)
        if self.popular is None or not len(rows):
            if len(rows) and (self.law.bound_R < 0).any():  # what no item meets is asked no more
                self._forget(rows)
                self.enter(rows, TopK(item_SW, score_SW, 0, 0), whole, strict=False)
            return
        first = max(1, int((item_SW >= 0).sum(1).max()))
        item_SW, score_SW = item_SW[:, :first], score_SW[:, :first]
        todo, wide = np.arange(len(rows)), self.terms.wide
        while len(todo):
            later = []
            for some in _parts(todo, first + wide):
                more = self.popular(rows[some], wide, self.seen_by(rows[some]))
                both = TopK(np.concatenate([item_SW[some], more.item], 1),
                            np.concatenate([score_SW[some], more.score], 1), 0, 0)  # fmt: skip
                sure = (more.item[:, -1] < 0) | (wide >= self.terms.most)
                full = self.enter(rows[some], both, sure, first)
                short = some[~full & sure]
                if len(short) and (self.law.bound_R < 0).any():
                    self._forget(rows[short])
                    self.enter(rows[short], TopK(both.item[~full & sure], both.score[~full & sure], 0, 0),
                               whole[short], first, strict=False)  # fmt: skip
                later.append(some[~full & ~sure])
            todo, wide = np.concatenate(later), min(self.terms.most, 2 * wide)

    def _forget(self, rows: np.ndarray) -> None:
        """What was passed over on a walk that is done again."""
        self.passed[:] = [p[~np.isin(p[:, 0], rows)] for p in self.passed]


def _parts(rows: np.ndarray, wide: int) -> Iterator[np.ndarray]:
    step = max(1, _GATHERED // max(wide, 1))
    return (rows[start : start + step] for start in range(0, len(rows), step))

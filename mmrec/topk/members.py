"""What the members of a blend would list, each for itself, in one set.

In: user and item vectors, of which each member owns a run of columns. Out: the union of the members' exact M best, with
every member's score and rank of each.
A pair's score under a member is summed in fp64 in the order of the columns and rounded to fp32, as `search` does it.
Trade-off: a search a member instead of one over all columns; the columns, and so the products, are no more.

Shape legend: B users, N items, D columns, P members, C candidates, M best of a member, W their places side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mmrec.topk.catalogue import Catalogue
from mmrec.topk.compiled import jit
from mmrec.topk.exact import search
from mmrec.topk.seen import Seen


@dataclass(frozen=True)
class Candidates:
    """`item_BC`: (B, C) int32 ascending, -1 in empty places, which come last. `score_BCP` float32, `rank_BCP` int32."""

    item_BC: np.ndarray
    score_BCP: np.ndarray
    rank_BCP: np.ndarray
    dropped_users: int
    dropped_items: int


class Offers:
    """A catalogue as every member has it: made ready once, searched for many users.

    Attributes:
        item_ND: (N, D) float32. members: first column and column behind the last, of each. cold_N: (N,) bool, items of
            which no member knows but by their content, in weights of their own. dropped: items left out because their
            vector is not finite. parts: of each member, without cold items; late: cold ones, all columns; whole: all.
    """

    def __init__(
        self, item_ND: np.ndarray, members: Sequence[tuple[int, int]], cold: np.ndarray,
        allowed: np.ndarray | None = None, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.item_ND = np.ascontiguousarray(item_ND, np.float32)
        self.members, self.cold_N = tuple(members), cold
        ok_N = np.isfinite(self.item_ND).all(1)
        self.dropped = int((~ok_N).sum())
        self._there_N = ok_N if allowed is None else ok_N & allowed
        self.device = device
        self.parts = [Catalogue(self.item_ND[:, a:b], self._there_N & ~cold, device) for a, b in self.members]
        self.late = Catalogue(self.item_ND, self._there_N & cold, device)

    @cached_property
    def whole(self) -> Catalogue:
        """Made when a list is longer than its candidates."""
        return Catalogue(self.item_ND, self._there_N, self.device)


def candidates(
    user_BD: np.ndarray, offers: Offers, depth: int, *, seen: Seen | None = None, threads: int | None = None
) -> Candidates:
    """The union of the members' M best, with every member's score and rank of each.

    A member for whom a user's best, two or more, are all equal has nothing to say and names nobody. Members name no
    cold items: the M best of these by the whole dot product join the union, and their rank under a member is the number
    of its best that score no less.

    Args:
        depth: M. seen, threads: those of `search`.
    """
    user_BD = np.ascontiguousarray(user_BD, np.float32)
    ok_B = np.isfinite(user_BD).all(1)
    user_BD = np.where(ok_B[:, None], user_BD, np.float32(np.nan))  # out of every member, or of none
    tops, bests = [], []
    for part, (start, stop) in zip(offers.parts, offers.members, strict=True):
        top = search(user_BD[:, start:stop], part, depth, seen=seen, threads=threads)
        last_B = np.maximum((top.item >= 0).sum(1) - 1, 0)
        silent_B = (last_B > 0) & (top.score[:, 0] == top.score[np.arange(len(last_B)), last_B])
        tops.append(np.where(silent_B[:, None], np.int32(-1), top.item))
        # who says nothing of warm items says nothing of cold ones
        bests.append(np.where(silent_B[:, None], np.float32(np.inf), top.score))
    late = search(user_BD, offers.late, depth, seen=seen, threads=threads).item
    item_BC = _union(np.concatenate([*tops, late], 1))
    late_BC = (item_BC >= 0) & offers.cold_N[item_BC]
    rank_BCP = np.full((*item_BC.shape, len(tops)), depth, np.int32)
    score_BCP = np.zeros((*item_BC.shape, len(tops)), np.float32)
    for p, (start, stop) in enumerate(offers.members):
        _ranks(item_BC, tops[p], rank_BCP[:, :, p])
        _scores(user_BD, offers.item_ND, item_BC, start, stop, score_BCP[:, :, p])
        _standing(late_BC, score_BCP[:, :, p], bests[p], rank_BCP[:, :, p])
    return Candidates(item_BC, score_BCP, rank_BCP, int((~ok_B).sum()), offers.dropped)


def _union(item_BW: np.ndarray) -> np.ndarray:
    """(B, C) each row's distinct items, ascending, -1 behind; C is what the fullest row has, at least 1."""
    big = np.iinfo(np.int32).max
    sorted_BW = np.sort(np.where(item_BW < 0, big, item_BW), axis=1)
    sorted_BW[:, 1:][sorted_BW[:, 1:] == sorted_BW[:, :-1]] = big
    sorted_BW.sort(axis=1)
    width = max(1, int((sorted_BW < big).sum(1).max(initial=0)))
    return np.where(sorted_BW == big, np.int32(-1), sorted_BW)[:, :width].astype(np.int32)


@jit
def _ranks(item_BC: np.ndarray, top_BM: np.ndarray, out_BC: np.ndarray) -> None:
    for b in range(item_BC.shape[0]):
        for rank in range(top_BM.shape[1]):
            item = top_BM[b, rank]
            if item < 0:
                break
            low, high = 0, item_BC.shape[1]  # empty places come last and count as greatest
            while low < high:
                mid = (low + high) >> 1
                if 0 <= item_BC[b, mid] < item:
                    low = mid + 1
                else:
                    high = mid
            out_BC[b, low] = rank


@jit
def _scores(
    user_BD: np.ndarray, item_ND: np.ndarray, item_BC: np.ndarray, start: int, stop: int, out_BC: np.ndarray
) -> None:
    for b in range(item_BC.shape[0]):
        count = 0
        while count < item_BC.shape[1] and item_BC[b, count] >= 0:
            count += 1
        # a sum in order waits for each addition: four go side by side; past the end the last one goes along
        for c in range(0, count, 4):
            c1, c2, c3 = min(c + 1, count - 1), min(c + 2, count - 1), min(c + 3, count - 1)
            i, i1, i2, i3 = item_BC[b, c], item_BC[b, c1], item_BC[b, c2], item_BC[b, c3]
            total, total1, total2, total3 = 0.0, 0.0, 0.0, 0.0
            for j in range(start, stop):
                u = np.float64(user_BD[b, j])
                total += u * np.float64(item_ND[i, j])
                total1 += u * np.float64(item_ND[i1, j])
                total2 += u * np.float64(item_ND[i2, j])
                total3 += u * np.float64(item_ND[i3, j])
            out_BC[b, c], out_BC[b, c1] = np.float32(total), np.float32(total1)
            out_BC[b, c2], out_BC[b, c3] = np.float32(total2), np.float32(total3)


@jit
def _standing(late_BC: np.ndarray, score_BC: np.ndarray, best_BM: np.ndarray, out_BC: np.ndarray) -> None:
    """The rank that a score would have: how many of the best are no less. `best_BM`: descending."""
    for b in range(late_BC.shape[0]):
        for c in range(late_BC.shape[1]):
            if late_BC[b, c]:
                low, high = 0, best_BM.shape[1]
                while low < high:
                    mid = (low + high) >> 1
                    if best_BM[b, mid] >= score_BC[b, c]:
                        low = mid + 1
                    else:
                        high = mid
                out_BC[b, c] = low

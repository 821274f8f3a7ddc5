"""Re-ranking: the union of what several members of a blend would list, put in one order.

In: user and item vectors, of which each member owns a run of columns; how members' scores and ranks are combined. Out:
lists in the order: combined score descending, then item index ascending; behind the union, where somebody asks for
more places than it fills, the rest by the whole dot product.
A member's candidates are its exact M best (`search`), and the M best cold items join them, so a list depends on nothing
but vectors and weights; a longer list begins with the shorter one. A pair's score under a member is summed in fp64 in
the order of the columns and rounded to fp32, as `search` does it.
Trade-off: M items a member are looked at instead of all; what all of them rank below M can't come first. A plain
weighted sum of scores needs none of this: it is one dot product.

Shape legend: B users, N items, D columns, P members, C candidates, K places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmrec.errors import InputError
from mmrec.topk.compiled import jit
from mmrec.topk.exact import Seen, TopK, search

KINDS = ("ranks", "vote", "stacking")
_RRF = 60.0  # of reciprocal rank fusion (Cormack et al., SIGIR 2009)


@dataclass(frozen=True)
class Rerank:
    """How a blend re-ranks.

    Attributes:
        kind: "ranks": weighted reciprocal ranks (Cormack et al., SIGIR 2009), 1 / (60 + rank); "vote": Borda's count
            (Aslam and Montague, SIGIR 2001), M - rank points of each member, unweighted; "stacking": a weighted sum of
            scores and of log(1 + rank). A rank counts from 0; M stands for every rank beyond.
        depth: M. members: first column and column behind the last, of each member.
        weights: "ranks": one a member; "vote": none; "stacking": P of scores, then P of ranks.

    Raises: InputError: no such kind, or weights of another number.
    """

    kind: str
    depth: int
    members: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        want = {"ranks": 1, "vote": 0, "stacking": 2}
        if self.kind not in KINDS:
            raise InputError("no such way to re-rank", where="blend: kind", value=self.kind, valid=KINDS)
        if len(self.weights) != want[self.kind] * len(self.members):
            raise InputError("weights don't fit the members", where=f"blend: {self.kind}", value=len(self.weights),
                             valid=str(want[self.kind] * len(self.members)))  # fmt: skip

    @classmethod
    def of(cls, about: dict[str, Any] | None) -> Rerank | None:
        """What a bundle says; None: one dot product ranks."""
        if about is None:
            return None
        return cls(about["kind"], about["depth"], tuple((a, b) for a, b in about["members"]), tuple(about["weights"]))

    def combined(self, score_BCP: np.ndarray, rank_BCP: np.ndarray) -> np.ndarray:
        """(B, C) float64: members' scores and ranks as one number."""
        parts = features(self.kind, score_BCP, rank_BCP, self.depth)
        out_BC = np.zeros(score_BCP.shape[:2])
        for n, weight in enumerate(self.weights if self.kind != "vote" else [1.0] * len(self.members)):
            out_BC += weight * parts[n]
        return out_BC


def features(kind: str, score_BCP: np.ndarray, rank_BCP: np.ndarray, depth: int) -> Sequence[np.ndarray]:
    """What the weights of a kind weigh: arrays (B, C) float64, one a weight."""
    score_PBC = np.moveaxis(score_BCP, 2, 0).astype(np.float64)
    rank_PBC = np.moveaxis(rank_BCP, 2, 0).astype(np.float64)
    if kind == "ranks":
        return list(np.where(rank_PBC < depth, 1.0 / (_RRF + rank_PBC), 0.0))
    if kind == "vote":
        return list(depth - rank_PBC)
    return [*score_PBC, *np.log1p(rank_PBC)]


@dataclass(frozen=True)
class Candidates:
    """`item_BC`: (B, C) int32 ascending, -1 in empty places, which come last. `score_BCP` float32, `rank_BCP` int32."""

    item_BC: np.ndarray
    score_BCP: np.ndarray
    rank_BCP: np.ndarray
    dropped_users: int
    dropped_items: int


def candidates(
    user_BD: np.ndarray, item_ND: np.ndarray, members: Sequence[tuple[int, int]], depth: int, *, cold: np.ndarray,
    seen: Seen | None = None, allowed: np.ndarray | None = None, threads: int | None = None,
) -> Candidates:  # fmt: skip
    """The union of the members' M best, with every member's score and rank of each.

    Args:
        members, depth: as of `Rerank`. A member for whom a user's best, two or more, are all equal has nothing to say
            and names nobody.
        cold: (N,) bool, items of which no member knows but by their content, in weights of their own. Members name
            none of them; the M best by the whole dot product join the union, and their rank under a member is the
            number of its best that score no less.
        seen, allowed, threads: those of `search`.
    """
    user_BD = np.ascontiguousarray(user_BD, np.float32)
    item_ND = np.ascontiguousarray(item_ND, np.float32)
    ok_B, ok_N = np.isfinite(user_BD).all(1), np.isfinite(item_ND).all(1)
    there_N = ok_N if allowed is None else ok_N & allowed
    user_BD = np.where(ok_B[:, None], user_BD, np.float32(np.nan))  # out of every member, or of none
    tops, bests = [], []
    for start, stop in members:
        top = search(user_BD[:, start:stop], item_ND[:, start:stop], depth, seen=seen, allowed=there_N & ~cold,
                     threads=threads)  # fmt: skip
        last_B = np.maximum((top.item >= 0).sum(1) - 1, 0)
        silent_B = (last_B > 0) & (top.score[:, 0] == top.score[np.arange(len(last_B)), last_B])
        tops.append(np.where(silent_B[:, None], np.int32(-1), top.item))
        # who says nothing of warm items says nothing of cold ones
        bests.append(np.where(silent_B[:, None], np.float32(np.inf), top.score))
    late = search(user_BD, item_ND, depth, seen=seen, allowed=there_N & cold, threads=threads).item
    item_BC = _union(np.concatenate([*tops, late], 1))
    late_BC = (item_BC >= 0) & cold[item_BC]
    rank_BCP = np.full((*item_BC.shape, len(members)), depth, np.int32)
    score_BCP = np.zeros((*item_BC.shape, len(members)), np.float32)
    for p, (start, stop) in enumerate(members):
        _ranks(item_BC, tops[p], rank_BCP[:, :, p])
        _scores(user_BD, item_ND, item_BC, start, stop, score_BCP[:, :, p])
        _standing(late_BC, score_BCP[:, :, p], bests[p], rank_BCP[:, :, p])
    return Candidates(item_BC, score_BCP, rank_BCP, int((~ok_B).sum()), int((~ok_N).sum()))


def rerank(
    user_BD: np.ndarray, item_ND: np.ndarray, k: int, *, how: Rerank, cold: np.ndarray, seen: Seen | None = None,
    allowed: np.ndarray | None = None, threads: int | None = None,
) -> TopK:  # fmt: skip
    """The K best of every user; `cold` as of `candidates`, the rest, errors and dropped rows as of `search`.

    Items behind the union have the last score of the union less their distance from the best of them less one, so
    that scores fall along a list.
    """
    found = candidates(user_BD, item_ND, how.members, how.depth, cold=cold, seen=seen, allowed=allowed,
                       threads=threads)  # fmt: skip
    there_BC = found.item_BC >= 0
    total_BC = np.where(there_BC, how.combined(found.score_BCP, found.rank_BCP).astype(np.float32), -np.inf)
    order_BC = np.argsort(-total_BC, axis=1, kind="stable")  # items ascend, so ties are by index
    b, c = len(found.item_BC), found.item_BC.shape[1]
    item_BK, score_BK = np.full((b, k), -1, np.int32), np.full((b, k), -np.inf, np.float32)
    item_BK[:, :c] = np.take_along_axis(found.item_BC, order_BC, 1)[:, :k]
    score_BK[:, :c] = np.take_along_axis(total_BC, order_BC, 1)[:, :k]
    count_B = there_BC.sum(1)
    ok_B = np.isfinite(np.asarray(user_BD, np.float32)).all(1)
    short_S = np.flatnonzero((count_B < k) & ok_B)  # more places than candidates: a small or a half-hidden catalogue
    if len(short_S):
        more = search(np.asarray(user_BD)[short_S], item_ND, k + int(count_B[short_S].max()), seen=_of(seen, short_S),
                      allowed=allowed, threads=threads)  # fmt: skip
        for u, item_W, score_W in zip(short_S, more.item, more.score, strict=True):
            n = int(count_B[u])
            rest = ~np.isin(item_W, found.item_BC[u]) & (item_W >= 0)
            item, score = item_W[rest][: k - n], score_W[rest][: k - n]
            item_BK[u, n : n + len(item)] = item
            score_BK[u, n : n + len(item)] = behind(score, score_BK[u, n - 1] if n else np.float32(0))
    return TopK(item_BK, score_BK, found.dropped_users, found.dropped_items)


def behind(score: np.ndarray, last: np.float32) -> np.ndarray:
    """float32 scores in the same order that all lie below `last`."""
    best = score.max(initial=-np.inf)
    return (np.float32(last) - np.float32(1) - (best - score)).astype(np.float32)


def _of(seen: Seen | None, users: np.ndarray) -> Seen | None:
    """What some of the users have seen."""
    if seen is None:
        return None
    rows = [seen[1][seen[0][u] : seen[0][u + 1]] for u in users]
    return np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64), np.concatenate(rows)


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
        for c in range(item_BC.shape[1]):
            item = item_BC[b, c]
            if item < 0:
                break
            total = 0.0
            for j in range(start, stop):
                total += np.float64(user_BD[b, j]) * np.float64(item_ND[item, j])
            out_BC[b, c] = np.float32(total)


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

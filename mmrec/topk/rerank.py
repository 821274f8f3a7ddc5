"""Re-ranking: the union of what several members of a blend would list, put in one order.

In: user and item vectors, of which each member owns a run of columns; how members' scores and ranks are combined. Out:
lists in the order: combined score descending, then item index ascending; behind the union, where somebody asks for
more places than it fills, the rest by the whole dot product.
Candidates are every member's exact M best (members.py), so a list depends on nothing but vectors and weights; a longer
list begins with the shorter one.
Trade-off: M items a member are looked at instead of all; what all of them rank below M can't come first. A plain
weighted sum of scores needs none of this: it is one dot product.

Shape legend: B users, N items, D columns, P members, C candidates, K places.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmrec.errors import InputError
from mmrec.topk.exact import WAYS, TopK, search
from mmrec.topk.members import Offers, candidates
from mmrec.topk.seen import Seen, of_rows, of_users
from mmrec.topk.threads import cores

KINDS = ("ranks", "vote", "stacking")
_FEWEST = 64  # users of a thread
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


def rerank(
    user_BD: np.ndarray, offers: Offers, k: int, *, how: Rerank, seen: Seen | None = None, threads: int | None = None
) -> TopK:
    """The K best of every user; `offers` of `how.members`, the rest, errors and dropped rows as of `search`.

    Args:
        threads: parts of the users worked on at once, which changes nothing; None: the cores this process may use.

    Items behind the union have the last score of the union less their distance from the best of them less one, so
    that scores fall along a list.
    """
    b, each = len(user_BD), cores() if threads is None else threads
    step = max(_FEWEST, -(-b // max(each, 1)))
    alone = "fp32" not in WAYS or offers.device != "cpu"  # BLAS and a device have threads of their own
    if each < 2 or b <= step or alone or (seen is not None and len(seen[0]) != b + 1):  # or they are refused
        return _rerank(user_BD, offers, k, how, seen, threads)

    def part(start: int) -> TopK:
        rows = slice(start, min(start + step, b))
        return _rerank(user_BD[rows], offers, k, how, None if seen is None else of_rows(seen, rows), 1)

    with ThreadPoolExecutor(each) as pool:
        parts = list(pool.map(part, range(0, b, step)))
    return TopK(np.concatenate([p.item for p in parts]), np.concatenate([p.score for p in parts]),
                sum(p.dropped_users for p in parts), parts[0].dropped_items)  # fmt: skip


def _rerank(
    user_BD: np.ndarray, offers: Offers, k: int, how: Rerank, seen: Seen | None, threads: int | None
) -> TopK:
    found = candidates(user_BD, offers, how.depth, seen=seen, threads=threads)
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
        had = None if seen is None else of_users(seen, short_S)
        more = search(np.asarray(user_BD)[short_S], offers.whole, k + int(count_B[short_S].max()), seen=had,
                      threads=threads)  # fmt: skip
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

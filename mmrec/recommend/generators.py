"""Candidates that the model did not bring: what is like a history, or like its last item, new, popular, had by friends.

In: a day's items, their sketches and vectors; rankings of some users. Out: the same rankings, in which each `every`-th
place belongs to other generators in turn, and who brought what there.
    content       nearest to the mean content of the latest items of a history (sketch.py)
    item_to_item  nearest to the latest item, in the model's item space
    new           on offer for less than `new_days`: those nearest to that mean, among equals the newest
    popular       by decayed counts
    social        what those whom a user is linked to had lately, what most of them had first
Where a generator's best stands higher up already, its next one comes. A user the model can't speak for has the popular
ranking in its place, so that these places are theirs as well.
Trade-off: a generator offers `depth` items and no more, so what lies behind never comes; each of content and
item_to_item costs a search of its own.

Shape legend: B users of a block, S some of them, W places of a ranking, G generators, P places of one, M inserted ones,
K places of a list, N items, V columns of a sketch, D vector size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from mmrec.dates import micros
from mmrec.recommend.again import had
from mmrec.recommend.histories import rows_of
from mmrec.recommend.vary import WIDE
from mmrec.topk.catalogue import Catalogue
from mmrec.topk.compiled import jit
from mmrec.topk.exact import TopK, search
from mmrec.topk.seen import Seen, of_users

NAMES = ("content", "item_to_item", "new", "popular", "social")
COLUMN = "social_item_ids"
_LATEST = 20  # items of a history that say what it is about
_NEWER = 1e-3  # what being new adds to a cosine: it decides among equals
_ONE = 127


def looks(names: Iterable[str]) -> bool:
    """Whether any of some generators looks at contents."""
    return not {"content", "new"}.isdisjoint(names)


@dataclass
class Mixed:
    """Who brought what of a block's rankings.

    Attributes:
        of: per call of `Generators.mixed`: rows, items (S, M) and places in NAMES (S, M) of what was inserted.
        silent_B: (B,) bool, users whose ranking is the popular one.
    """

    silent_B: np.ndarray
    of: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def brought(self, item_BK: np.ndarray) -> np.ndarray:
        """(B, K) int8: which generator brought a row of a list; -1: the model, or what stands for it."""
        out_BK = np.full(item_BK.shape, -1, np.int8)
        for rows, item_SM, code_SM in self.of:  # a longer ranking begins with the shorter: the last call says most
            _brought(item_BK, rows, item_SM, code_SM, out_BK)
        return out_BK


@dataclass(frozen=True)
class Generators:
    """Over a day's items (item_id, popularity_micro, available_us), ascending by item_id.

    Attributes:
        names: of NAMES, in turn. every, depth, new_days: see the module. as_of: before which an item is new.
        sketch_NV: (N, 64) int8; None: no content is known. item_ND: the model's; None: it has none.
        allowed_N: (N,) bool, items on offer; None: all.
    """

    items: pa.Table
    names: tuple[str, ...]
    every: int
    depth: int
    new_days: int
    as_of: datetime
    sketch_NV: np.ndarray | None = None
    item_ND: np.ndarray | None = None
    allowed_N: np.ndarray | None = None
    device: str = "cpu"

    @classmethod
    def over(
        cls, record: dict[str, Any], items: pa.Table, as_of: datetime, sketch_NV: np.ndarray | None,
        item_ND: np.ndarray | None, allowed_N: np.ndarray | None, device: str,
    ) -> Generators:  # fmt: skip
        """From a manifest's record."""
        return cls(items, tuple(record["generators"]), record["every"], record["depth"], record["new_days"], as_of,
                   sketch_NV, item_ND, allowed_N, device)  # fmt: skip

    def mixed(
        self, found: TopK, rows: np.ndarray, users: pa.Table, history: Seen, seen: Seen, into: Mixed
    ) -> TopK:  # fmt: skip
        """Rankings with each `every`-th place given away, and `rank`: (S, W) int32, the place from 1 that an item had
        in the model's ranking, or in its generator's.

        Args:
            found: model's rankings of `rows` of a block. users: the block's, with `COLUMN` where social is asked for.
            history: of the block, places in the catalogue, the latest last. seen: of `rows`, what they must not get.
            into: of the block, told of what is inserted.
        """
        s, wide = found.item.shape
        silent_S = found.item[:, 0] < 0 if wide else np.ones(s, bool)
        rank_SW = found.rank
        if rank_SW is None:
            rank_SW = np.broadcast_to(np.arange(1, wide + 1, dtype=np.int32), (s, wide))
        item_SW, score_SW, rank_SW = found.item.copy(), found.score.copy(), np.ascontiguousarray(rank_SW).copy()
        if silent_S.any():
            (at,) = np.nonzero(silent_S)
            stands = self._popular(len(at), wide, of_users(seen, at))
            item_SW[at], score_SW[at], rank_SW[at] = stands.item, stands.score, np.arange(1, wide + 1)
        into.silent_B[rows] = silent_S
        own = of_users(history, rows)
        bests = [self._bests(name, own, users, rows, seen) for name in self.names]
        item_SGP, score_SGP = np.stack([b.item for b in bests], 1), np.stack([b.score for b in bests], 1)
        code_G = np.array([NAMES.index(name) for name in self.names], np.int8)
        most = min(wide // self.every, len(self.names) * item_SGP.shape[2])
        put_SM, code_SM = np.full((s, most), -1, np.int32), np.full((s, most), -1, np.int8)
        out = np.full((s, wide), -1, np.int32), np.full((s, wide), -np.inf, np.float32), np.zeros((s, wide), np.int32)
        _mix(item_SW, score_SW, rank_SW, item_SGP, score_SGP, code_G, self.every, len(self.items), *out, put_SM,
             code_SM)  # fmt: skip
        into.of.append((rows, put_SM, code_SM))
        return TopK(out[0], out[1], found.dropped_users, found.dropped_items, out[2])

    def only(self, names: tuple[str, ...]) -> Generators:
        """Some of them."""
        return replace(self, names=names)

    def bests(self, users: pa.Table, speaks_N: np.ndarray | None) -> np.ndarray:
        """(B, P) int32: the best of the first of them for some users, places in the catalogue, -1 behind the last.

        Args:
            users: rows of gold.user_sequences. speaks_N: (N,) bool, items that the model knows; None: all.
        """
        known = had(users, self.items["item_id"].combine_chunks(), speaks_N, None)
        history, seen = ((rows.ptr, rows.at) for rows in (known.history, known.seen))
        return self._bests(self.names[0], history, users, np.arange(users.num_rows), seen).item

    def _bests(self, name: str, history: Seen, users: pa.Table, rows: np.ndarray, seen: Seen) -> TopK:
        """(S, P) of one generator."""
        if name == "popular":
            return self._popular(len(rows), self.depth, seen)
        if name == "social":
            told = rows_of(users[COLUMN].take(pa.array(rows)), self.items["item_id"].combine_chunks())
            out = np.full((len(rows), self.depth), -1, np.int32), np.full((len(rows), self.depth), -np.inf, np.float32)
            may_N = np.ones(len(self.items), bool) if self.allowed_N is None else self.allowed_N
            _first(told.ptr, told.at, may_N, seen[0], seen[1], *out)
            return TopK(*out, 0, 0)
        if name == "item_to_item":
            user_SD = self._latest(history)
            catalogue = self._near
        else:
            user_SD = _taste(history, self._sketch_NV)
            if name == "new":  # who has no taste yet is shown the newest
                user_SD = np.concatenate([np.nan_to_num(user_SD), np.ones((len(rows), 1), np.float32)], 1)
            catalogue = self._new if name == "new" else self._content
        return search(user_SD, catalogue, self.depth, seen=seen)

    def _popular(self, users: int, k: int, seen: Seen) -> TopK:
        return search(np.ones((users, 1), np.float32), self._liked, k, seen=seen)

    def _latest(self, history: Seen) -> np.ndarray:
        """(S, D): the latest item's vector; NaN where there is none."""
        ptr, at = history
        there_S = np.diff(ptr) > 0
        unit_ND = self._unit_ND
        out_SD = np.full((len(there_S), unit_ND.shape[1]), np.nan, np.float32)
        out_SD[there_S] = unit_ND[at[ptr[1:][there_S] - 1]]
        return out_SD

    @cached_property
    def _sketch_NV(self) -> np.ndarray:
        return np.zeros((len(self.items), WIDE), np.int8) if self.sketch_NV is None else self.sketch_NV

    @cached_property
    def _liked(self) -> Catalogue:
        popular_N1 = (self.items["popularity_micro"].to_numpy().astype(np.float64)[:, None] / 1e6).astype(np.float32)
        return Catalogue(popular_N1, self.allowed_N)

    @cached_property
    def _content(self) -> Catalogue:
        return Catalogue(self._sketch_NV.astype(np.float32) / _ONE, self._may(self._sketch_NV.any(1)), self.device)

    @cached_property
    def _new(self) -> Catalogue:
        age_N = micros(self.as_of) - self.items["available_us"].to_numpy()
        most = self.new_days * timedelta(days=1) // timedelta(microseconds=1)
        newer_N1 = _NEWER * (1 - np.clip(age_N / most, 0, 1))[:, None]
        whole = np.concatenate([self._sketch_NV / _ONE, newer_N1], 1).astype(np.float32)
        return Catalogue(whole, self._may(age_N < most), self.device)

    @cached_property
    def _unit_ND(self) -> np.ndarray:
        if self.item_ND is None or self.item_ND.shape[1] < 2:  # one column is popularity's: nothing is nearer
            return np.full((len(self.items), 1), np.nan, np.float32)
        norm_N1 = np.linalg.norm(self.item_ND.astype(np.float64), axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # of a vector that is not finite
            return (self.item_ND / np.where(norm_N1 > 0, norm_N1, 1)).astype(np.float32)

    @cached_property
    def _near(self) -> Catalogue:
        return Catalogue(self._unit_ND, self.allowed_N, self.device)

    def _may(self, some_N: np.ndarray) -> np.ndarray:
        return some_N if self.allowed_N is None else some_N & self.allowed_N


def _taste(history: Seen, sketch_NV: np.ndarray) -> np.ndarray:
    """(S, V) float32: the direction of the mean of the latest items; NaN where there is no content. Sums of integers,
    so that bits don't depend on the order."""
    out_SV = np.zeros((len(history[0]) - 1, sketch_NV.shape[1]), np.int64)
    _summed(history[0], history[1], sketch_NV, _LATEST, out_SV)
    norm_S1 = np.sqrt(np.square(out_SV).sum(1, keepdims=True).astype(np.float64))
    return np.where(norm_S1 > 0, out_SV / np.where(norm_S1 > 0, norm_S1, 1), np.nan).astype(np.float32)


@jit
def _summed(ptr, at, sketch_NV, most, out_SV):
    for s in range(len(ptr) - 1):
        for e in range(max(ptr[s], ptr[s + 1] - most), ptr[s + 1]):
            for v in range(sketch_NV.shape[1]):
                out_SV[s, v] += sketch_NV[at[e], v]


@jit
def _first(ptr, at, may_N, seen_ptr, seen, item_SP, score_SP):
    """The first entries that may be shown; the score is one by the place among all."""
    had = np.full(len(may_N), -1, np.int64)
    for s in range(len(ptr) - 1):
        for e in range(seen_ptr[s], seen_ptr[s + 1]):
            had[seen[e]] = s
        p = 0
        for e in range(ptr[s], ptr[s + 1]):
            if p == item_SP.shape[1]:
                break
            if at[e] >= 0 and may_N[at[e]] and had[at[e]] != s:
                item_SP[s, p], score_SP[s, p] = at[e], 1.0 / (1 + e - ptr[s])
                p += 1


@jit
def _mix(
    item_SW, score_SW, rank_SW, item_SGP, score_SGP, code_G, every, n, out_item, out_score, out_rank, put_SM, code_SM
):  # fmt: skip
    wide, generators, deep = item_SW.shape[1], item_SGP.shape[1], item_SGP.shape[2]
    there = np.full(n, -1, np.int64)  # in whose ranking an item is
    at = np.zeros(generators, np.int64)
    for s in range(len(item_SW)):
        at[:] = 0
        turn, w, m = 0, 0, 0
        for p in range(wide):
            came = -1
            for t in range(generators if (p + 1) % every == 0 else 0):
                g = (turn + t) % generators
                while at[g] < deep and item_SGP[s, g, at[g]] >= 0 and there[item_SGP[s, g, at[g]]] == s:
                    at[g] += 1
                if at[g] < deep and item_SGP[s, g, at[g]] >= 0:
                    came, turn = g, g + 1
                    break
            if came >= 0:
                item = item_SGP[s, came, at[came]]
                out_item[s, p], out_score[s, p] = item, score_SGP[s, came, at[came]]
                out_rank[s, p] = at[came] + 1
                put_SM[s, m], code_SM[s, m] = item, code_G[came]
                m += 1
            else:
                while w < wide and item_SW[s, w] >= 0 and there[item_SW[s, w]] == s:
                    w += 1
                if w == wide or item_SW[s, w] < 0:
                    break
                item = item_SW[s, w]
                out_item[s, p], out_score[s, p], out_rank[s, p] = item, score_SW[s, w], rank_SW[s, w]
            there[item] = s


@jit
def _brought(item_BK, rows, item_SM, code_SM, out_BK):
    for s in range(len(rows)):
        b = rows[s]
        for k in range(item_BK.shape[1]):
            for m in range(item_SM.shape[1]):
                if item_SM[s, m] < 0:
                    break
                if item_SM[s, m] == item_BK[b, k]:
                    out_BK[b, k] = code_SM[s, m]

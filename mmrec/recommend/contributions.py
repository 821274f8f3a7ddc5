"""What each item of a history adds to the score of an offered one, from vectors that are stored.

In: a bundle and its items, users' histories and vectors, their offered items. Out: a weigher of that bundle: a
contribution an item of the history, and the score's parts.
An item contributes what the score would lose without it. Of the linear head, of content, LightGCN, EASE and item-kNN
that is exact: of the head, with older events moving up. So it is of ALS, from the terms that its paper takes a score
apart into (Hu, Koren and Volinsky, ICDM 2008, section 5). BPR is taken apart at the optimum of its fold-in. The
sequence tower is taken for a mean of its history's vectors, by 1 / sqrt(1 + rank), rank 0 the newest event: what the
mean would lose, times the tower's length over the mean's, times one half. Why: docs/decisions/0023-reasons.md.
Trade-off: nothing is encoded again, so what a removal would change in the tower is estimated; and where a blend
re-ranks, a member's rank is taken to move with its score.

Shape legend: B users, K offered items, H latest items of a history, E events, N items, V columns, I columns of
histories, P parts, G members, M known items, F factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mmrec.models.stored import Stored
from mmrec.recommend.histories import Rows
from mmrec.recommend.scorers import Sums, Vectors
from mmrec.topk.compiled import jit
from mmrec.topk.rerank import Rerank
from mmrec.topk.threads import share

_HISTORY = 256  # the latest items of a history that are weighed
_GAIN = 0.5  # of the tower: a regression of true drops on this estimate has this slope
_MOST = 0.9  # weight of one item in the tower's mean from which on its loss grows no more
_FEW = 64  # users that are not worth a thread
BEHAVIOUR, POPULARITY = "behaviour", "popularity"


class Weigher(Protocol):
    """Of one bundle."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the score's parts."""
        ...

    def weigh(
        self, users: pa.Table, history: Rows, model: Any, item_BK: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What history and parts contribute to some users' rows.

        Args:
            users: rows of gold.user_sequences. history: theirs, of items that the model knows. model: `Vectors` or
                `Sums` of these users. item_BK: offered items, -1 in empty places.

        Returns: (B, H) latest items of each history, the newest first, -1 behind; (B, K, H) float64 contributions,
            comparable within a row; (B, K, P) float64, the score's parts.
        """
        ...

    def scores(self, model: Any, item_BK: np.ndarray, like: Any) -> np.ndarray:
        """(B, K) float64 scores; where a blend re-ranks, with the members' say in the same rows of `like`."""
        ...


@dataclass(frozen=True)
class Tower:
    """Of a two_tower bundle. Columns of `item_in`: sequence, linear, content, of which `content` has the sizes by
    modality; of `item_vec` the same, each with a constant behind it."""

    item_in: np.ndarray
    item_vec: np.ndarray
    sequence: int
    linear: int
    content: tuple[tuple[str, int], ...]
    tau: float
    base: float
    length: int
    context: int
    how: Rerank | None = None

    @classmethod
    def of(cls, about: Mapping[str, Any], item_in: np.ndarray, item_vec: np.ndarray) -> Tower | None:
        """What bundle.json says; None: the bundle is of before it said where columns are, or has no such columns."""
        there = about.get("columns")
        if there is None:
            return None
        content = tuple(sorted(there["content"].items()))
        return cls(item_in, item_vec, there["sequence"], there["linear"], content, about["tau"], about["base"],
                   about["length"], about["context"], Rerank.of(about.get("blend")))  # fmt: skip

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return (BEHAVIOUR, *(m for m, _ in self.content), POPULARITY)

    def weigh(
        self, users: pa.Table, history: Rows, model: Vectors, item_BK: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As of `Weigher`."""
        user_BV, (b, k) = model.user_UD, item_BK.shape
        run_BKR = self._runs(user_BV, item_BK)
        whole_BKG = np.stack([run_BKR[..., 0], run_BKR[..., 2], run_BKR[..., 4:-1].sum(2)], 2)
        say_BKG, part_BKP = self._parts(run_BKR)
        most = int(min(_HISTORY, np.diff(history.ptr).max(initial=1)))
        near_BH, value_BKH = np.full((b, most), -1, np.int32), np.zeros((b, k, most))
        length_B = np.linalg.norm(user_BV[:, : self.sequence].astype(np.float64), axis=1)
        ends = (self.sequence, self.sequence + self.linear, self.item_in.shape[1])
        weight_L = self.base + np.exp(-np.arange(self.length) / self.tau)

        def part(some: slice) -> None:
            _weigh(history.ptr[some.start : some.stop + 1], history.at, item_BK[some], self.item_in, self.item_vec,
                   length_B[some], whole_BKG[some], say_BKG[some], ends, weight_L, self.context, near_BH[some],
                   value_BKH[some])  # fmt: skip

        share(b, _FEW, part)
        return near_BH, value_BKH, part_BKP

    def scores(self, model: Vectors, item_BK: np.ndarray, like: Vectors) -> np.ndarray:
        """As of `Weigher`."""
        member_BKG = _members(self._runs(model.user_UD, item_BK))
        return (member_BKG * _say(self.how, _members(self._runs(like.user_UD, item_BK)))).sum(2)

    def _runs(self, user_BV: np.ndarray, item_BK: np.ndarray) -> np.ndarray:
        """(B, K, runs) float64 products of each run of columns: sequence, constant, linear, constant, each modality,
        constant."""
        sizes = [self.sequence, 1, self.linear, 1, *(n for _, n in self.content)]
        sizes += [self.item_vec.shape[1] - sum(sizes)]  # the last constant; without modalities also a column of zeros
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        run_BKR = np.empty((*item_BK.shape, len(sizes)))
        for b, item_K in enumerate(item_BK):  # a user at a time: the vectors of a block are large
            run_BKR[b] = np.add.reduceat(self.item_vec[item_K].astype(np.float64) * user_BV[b], starts, axis=1)
        return run_BKR

    def _parts(self, run_BKR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, K, G) what a member's columns count, sequence, linear, content; (B, K, P) the parts, so weighed; in place
        of `run_BKR`."""
        say_BKG = _say(self.how, _members(run_BKR))
        run_BKR[..., :2] *= say_BKG[..., :1]
        run_BKR[..., 2:4] *= say_BKG[..., 1:2]
        run_BKR[..., 4:] *= say_BKG[..., 2:]
        held_BK = run_BKR[..., 1] + run_BKR[..., 3] + run_BKR[..., -1]
        behaviour_BK = run_BKR[..., 0] + run_BKR[..., 2]
        return say_BKG, np.concatenate([behaviour_BK[..., None], run_BKR[..., 4:-1], held_BK[..., None]], 2)


def _members(run_BKR: np.ndarray) -> np.ndarray:
    return np.stack([run_BKR[..., :2].sum(2), run_BKR[..., 2:4].sum(2), run_BKR[..., 4:].sum(2)], 2)


def _say(how: Rerank | None, member_BKG: np.ndarray) -> np.ndarray:
    """What a member's score counts: a stack's weights; of votes and ranks, which know no scores, each member's weight
    whatever its score."""
    if how is None:
        return np.ones_like(member_BKG)
    g = len(how.members)
    weight_G = np.zeros(member_BKG.shape[2])
    if how.kind == "stacking" and any(how.weights[:g]):
        weight_G[:g] = how.weights[:g]
        return np.broadcast_to(weight_G, member_BKG.shape)
    weight_G[:g] = 1.0 if how.kind == "vote" else np.abs(how.weights[-g:])
    size_BKG = np.abs(member_BKG)
    return np.divide(weight_G, size_BKG, out=np.zeros_like(member_BKG), where=size_BKG > 0)


@jit
def _weigh(
    ptr: np.ndarray, at: np.ndarray, item_BK: np.ndarray, item_in: np.ndarray, item_vec: np.ndarray,
    length_B: np.ndarray, whole_BKG: np.ndarray, say_BKG: np.ndarray, ends: tuple[int, int, int],
    weight_L: np.ndarray, context: int, out_BH: np.ndarray, value_BKH: np.ndarray,
) -> None:  # fmt: skip
    most, wide = out_BH.shape[1], ends[2]
    met_N, slot_N = np.full(len(item_in), -1, np.int64), np.empty(len(item_in), np.int64)
    mean_I = np.empty(ends[0])
    for b in range(len(item_BK)):
        rank_H, count_H = np.empty(most, np.int64), np.zeros(most, np.int64)
        before_HH = np.zeros((most, most), np.int64)  # events of the one that are newer than the other
        n, weight, items = 0, 0.0, 0
        for rank in range(min(ptr[b + 1] - ptr[b], len(weight_L))):  # an item counts once, by its latest event
            item = at[ptr[b + 1] - 1 - rank]
            if met_N[item] != b:
                met_N[item], slot_N[item] = b, -1
                weight, items = weight + weight_L[rank], items + 1
                if n < most:
                    out_BH[b, n], rank_H[n], slot_N[item] = item, rank, n
                    before_HH[:n, n] = count_H[:n]
                    n += 1
            if slot_N[item] >= 0:
                count_H[slot_N[item]] += 1
        if n == 0:
            continue
        side_IH = np.empty((wide, n), np.float32)
        for h in range(n):
            side_IH[:, h] = item_in[out_BH[b, h], :wide]
        share_H = np.zeros(n)
        for h in range(n):
            share_H[h] = 1 / np.sqrt(1.0 + rank_H[h]) if rank_H[h] < context else 0.0
        share_H /= share_H.sum()
        size = 0.0
        for c in range(ends[0]):
            mean_I[c] = 0.0
            for h in range(n):
                mean_I[c] += share_H[h] * side_IH[c, h]
            size += mean_I[c] * mean_I[c]
        gain = _GAIN * length_B[b] / np.sqrt(size) if size > 0 else 0.0
        shift_HH, left_H, behind = np.zeros((n, n)), np.zeros(n), weight  # weights of the others without each item
        for h in range(n):
            behind -= weight_L[rank_H[h]]
        for h in range(n):
            for other in range(n):
                if other != h:
                    shift_HH[h, other] = weight_L[rank_H[other] - before_HH[h, other]]
                    left_H[h] += shift_HH[h, other]
            left_H[h] += behind
        total_H = np.empty(n)
        for k in range(item_BK.shape[1]):
            offered = item_BK[b, k]
            if offered < 0:
                continue
            if n == 1:
                value_BKH[b, k, 0] = 1.0
                continue
            start = 0
            for run in range(3):
                total_H[:] = 0.0
                mean = 0.0
                for c in range(start, ends[run]):
                    v = np.float64(item_vec[offered, c + run])  # a constant stands behind each run before
                    for h in range(n):
                        total_H[h] += v * side_IH[c, h]
                    if run == 0:
                        mean += v * mean_I[c]
                whole, say = whole_BKG[b, k, run], say_BKG[b, k, run]
                rest = whole * np.sqrt(weight)  # of items that are not weighed
                for h in range(n):
                    rest -= weight_L[rank_H[h]] * total_H[h]
                for h in range(n):
                    if run == 0:
                        lost = gain * share_H[h] / (1 - min(share_H[h], _MOST)) * (total_H[h] - mean)
                    elif run == 1:
                        lost = rest
                        for other in range(n):
                            lost += shift_HH[h, other] * total_H[other]
                        lost = whole - lost / np.sqrt(max(left_H[h], 1e-6))
                    else:
                        lost = whole - (whole * np.sqrt(items) - total_H[h]) / np.sqrt(items - 1)
                    value_BKH[b, k, h] += say * lost
                start = ends[run]


@dataclass(frozen=True)
class Factors:
    """Of a factors bundle. `place_N`: where a day's item stands among those it knows, -1 if nowhere."""

    stored: Stored
    place_N: np.ndarray

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return (BEHAVIOUR, POPULARITY) if self.stored.name == "bpr" else (BEHAVIOUR,)

    def weigh(
        self, users: pa.Table, history: Rows, model: Vectors, item_BK: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As of `Weigher`."""
        near_BH = latest_items(history)
        value_BKH = np.zeros((*item_BK.shape, near_BH.shape[1]))
        part_BKP = np.zeros((*item_BK.shape, len(self.parts)))
        whole_BM = self.stored.histories(users["item_ids"].to_pylist())  # what is no longer on offer counts, too
        offer_MF = self._offer_MF
        for b, (near_H, item_K) in enumerate(zip(near_BH, item_BK, strict=True)):
            offered, near = item_K >= 0, near_H >= 0
            if not offered.any():
                continue
            offer_JF = offer_MF[self.place_N[item_K[offered]]]
            user_F = model.user_UD[b].astype(np.float64)
            part_BKP[b, offered, 0] = offer_JF @ user_F
            if self.stored.name == "bpr":
                part_BKP[b, offered, 1] = offer_JF[:, -1]
                part_BKP[b, offered, 0] -= offer_JF[:, -1]
            if near.any():
                whole_L = whole_BM.indices[whole_BM.indptr[b] : whole_BM.indptr[b + 1]]
                made_HF = self._shares(self.place_N[near_H[near]], whole_L, user_F)
                value_BKH[b][np.ix_(offered, near)] = offer_JF[:, : made_HF.shape[1]] @ made_HF.T
        return near_BH, value_BKH, part_BKP

    def scores(self, model: Vectors, item_BK: np.ndarray, like: Vectors) -> np.ndarray:
        """As of `Weigher`."""
        return np.einsum("bf,bkf->bk", model.user_UD.astype(np.float64), self._offer_MF[self.place_N[item_BK]])

    def _shares(self, had_H: np.ndarray, whole_L: np.ndarray, user_F: np.ndarray) -> np.ndarray:
        """(H, F) what each item of a history adds to the user's vector."""
        s = self.stored
        if s.name == "lightgcn":
            n, all_F = len(whole_L), s.arrays["history"][whole_L].astype(np.float64).sum(0)
            left_HF = (all_F - s.arrays["history"][had_H]) / np.sqrt(max(n - 1, 1))
            return all_F / np.sqrt(max(n, 1)) - left_HF
        item_MF, of = self._item_MF, s.numbers
        if s.name == "als":
            left_FF = self._gram_FF + (of["alpha"] - 1) * (item_MF[whole_L].T @ item_MF[whole_L])
            made_HF = np.linalg.solve(left_FF, item_MF[had_H].T).T
            # the paper's term is alpha times that; a removal also changes the system by one row: Sherman and Morrison
            own_H, more = (made_HF * item_MF[had_H]).sum(1), of["alpha"] - 1
            said_H = item_MF[had_H] @ user_F - of["alpha"] * own_H
            return made_HF * (of["alpha"] - more * said_H / (1 - more * own_H))[:, None]
        mean, bias = s.arrays["mean"].astype(np.float64), s.arrays["bias"].astype(np.float64)
        apart_HF = item_MF[had_H] - mean
        pull_H = 1 / (1 + np.exp(np.minimum(apart_HF @ user_F[:-1] + bias[had_H] - of["mean_bias"], 50)))
        return pull_H[:, None] * apart_HF / (max(len(whole_L), 1) * of["reg"])

    @cached_property
    def _gram_FF(self) -> np.ndarray:
        return self._item_MF.T @ self._item_MF + self.stored.numbers["reg"] * np.eye(self._item_MF.shape[1])

    @cached_property
    def _item_MF(self) -> np.ndarray:
        return self.stored.arrays["item"].astype(np.float64)

    @cached_property
    def _offer_MF(self) -> np.ndarray:
        return self.stored.item_MD.astype(np.float64)


@dataclass(frozen=True)
class Weights:
    """Of a sparse bundle: the weight of the matrix from an item of the history to the offered one; of user-kNN, whose
    users are made of other users, how much the same people had both."""

    parts: tuple[str, ...] = (BEHAVIOUR,)

    def weigh(
        self, users: pa.Table, history: Rows, model: Sums, item_BK: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As of `Weigher`."""
        near_BH = latest_items(history)
        value_BKH = np.zeros((*item_BK.shape, near_BH.shape[1]))
        for b, (near_H, item_K) in enumerate(zip(near_BH, item_BK, strict=True)):
            offered, near = item_K >= 0, near_H >= 0
            if offered.any() and near.any():
                value_BKH[b][np.ix_(offered, near)] = model.weights(item_K[offered], near_H[near])
        return near_BH, value_BKH, np.ones((*item_BK.shape, 1))

    def scores(self, model: Sums, item_BK: np.ndarray, like: Sums) -> np.ndarray:
        """As of `Weigher`; 0 where nothing speaks for an item."""
        found = model.stored.sums(model.history_UM, model.user_ids, model.matrix_RN)
        picked = [np.take_along_axis(score_BN, np.maximum(item_BK[some], 0), 1) for some, score_BN in found]
        score_BK = np.concatenate(picked).astype(np.float64)
        return np.where(np.isfinite(score_BK), score_BK, 0)


def latest_items(history: Rows) -> np.ndarray:
    """(B, H) int32: distinct items of each history, the newest first, -1 behind."""
    made = [list(dict.fromkeys(history.at[a:b][::-1].tolist()))[:_HISTORY]
            for a, b in zip(history.ptr[:-1], history.ptr[1:], strict=True)]  # fmt: skip
    out_BH = np.full((len(made), max(1, *map(len, made)) if made else 1), -1, np.int32)
    for b, items in enumerate(made):
        out_BH[b, : len(items)] = items
    return out_BH


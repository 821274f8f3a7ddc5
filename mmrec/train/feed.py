"""What each step of a fit is given: its batches, its negatives, the parts its items lose, as tensors.

In: a log and its train rows, a recipe, which of how many processes this is. Out: steps, made ahead in a thread.
Every draw has a seed of (seed, epoch, step), so any step can be made without those before it, by any process: a fit
that goes on needs no generator's state, and processes that share a step agree on its negatives without a word.
Windows of a batch are dealt to the processes in turn; a step's loss is a mean over the targets of all of them.
Trade-off: each process makes the indices of the whole step, which is cheap, to encode its own share, which is not.

Shape legend: B windows, L inputs, K inputs that are no padding, T targets, S negatives, N items of a part, C items of
the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from mmrec.models.data import Log
from mmrec.train.batches import Batch, Batches, ahead
from mmrec.train.inputs import Tensors, event_inputs
from mmrec.train.recipe import Recipe

_NEGATIVES, _DROPPED, _DROPOUT = 1, 2, 3  # what a seed is for
_MOST = 10.0  # that an item weighs, of the mean


@dataclass(frozen=True)
class Part:
    """A share of a batch. `items`: inputs of the item tower, N items. Places in these: `input_K`, of what stands at
    `place_K` of (B * L,); `target_T`, what is asked for at `asked_T` of (B * L,); `negative_S`, shared, or (T, S).
    `side`: other inputs of the user tower. `target_id_T`, `negative_id_S`: indices in the catalogue, under the whole
    softmax places among its items. `log_expected_S`, `weight_T`: see losses.py."""

    items: tuple[Any, ...]
    side: tuple[torch.Tensor, ...]
    input_K: torch.Tensor
    place_K: torch.Tensor
    asked_T: torch.Tensor
    target_T: torch.Tensor
    target_id_T: torch.Tensor
    negative_S: torch.Tensor
    negative_id_S: torch.Tensor
    log_expected_S: torch.Tensor | None
    weight_T: torch.Tensor | None


@dataclass(frozen=True)
class Step:
    """`number`: within the epoch, from 0. `targets`: of all processes. `parts`: this one's. `seed`: of dropout."""

    number: int
    targets: int
    parts: list[Part]
    seed: int


class Negatives:
    """Draws from weights, with replacement: a table of sums made once, a binary search a draw."""

    def __init__(self, weight_C: np.ndarray) -> None:
        self.share_C = weight_C / weight_C.sum()
        sums_C = np.cumsum(self.share_C)
        self.sums_C = sums_C / sums_C[-1]

    def draw(self, rng: np.random.Generator, shape: int | tuple[int, int]) -> np.ndarray:
        """int64 of that shape; nothing without weight is drawn."""
        return np.searchsorted(self.sums_C, rng.random(shape), side="right")


def propensities(count_C: np.ndarray, power: float) -> np.ndarray | None:
    """(C,) float32: what an item weighs as a target, its inverse propensity; None where all weigh alike.

    What is shown often is chosen often, so a choice of what is seldom shown tells more of its user. Propensity is taken
    to be popularity to `power` (Yang et al., RecSys 2018). Weights are cut at ten times their mean over all events
    (Ionides, JCGS 2008) and have a mean of one after that (Swaminathan and Joachims, NeurIPS 2015).
    """
    if not power:
        return None
    weight_C = np.where(count_C > 0, np.maximum(count_C, 1) ** -power, 0)
    weight_C = np.minimum(weight_C, _MOST * np.average(weight_C, weights=count_C))
    return (weight_C / np.average(weight_C, weights=count_C)).astype(np.float32)


class Feed:
    """See the module.

    Attributes:
        steps: of the first epoch. drawn_from: items that negatives are drawn from.
    """

    def __init__(
        self, log: Log, rows: np.ndarray, tensors: Tensors, recipe: Recipe, *, seed: int, rank: int = 0, size: int = 1
    ) -> None:
        """`rows`: (E,) bool, what may be learned from. `tensors`: on the device that steps are wanted on."""
        self.log, self.tensors, self.recipe, self.seed, self.rank, self.size = log, tensors, recipe, seed, rank, size
        self.batches = Batches(log, rows, context=recipe.context, tokens=recipe.tokens, seed=seed)
        self.steps = max(1, -(-self.batches.count(0) // recipe.accumulate))
        count_C = np.bincount(log.item[rows], minlength=len(tensors.index)).astype(np.float64)
        self.negatives = Negatives(np.where(count_C > 0, count_C**recipe.negative_power, 0))
        self.weight_C = propensities(count_C, recipe.propensity)
        self.warm = np.flatnonzero(count_C)
        self.drawn_from = len(self.warm)

    def epoch(self, n: int, start: int = 0) -> Iterator[Step]:
        """Steps of epoch `n` from number `start` on; those that nothing is asked at are left out."""
        return ahead(self._steps(n, start))

    def _steps(self, n: int, number: int) -> Iterator[Step]:
        batches = self.batches.epoch(n, number * self.recipe.accumulate)
        while group := list(islice(batches, self.recipe.accumulate)):
            step = self._step(n, number, group)
            if step.targets:
                yield step
            number += 1

    def _step(self, n: int, number: int, group: list[Batch]) -> Step:
        r, seed = self.recipe, (self.seed, n, number)
        sizes = [int(batch.asked_BL.sum()) for batch in group]
        total = sum(sizes)
        if r.loss == "full":
            negative = self.warm
        else:
            rng = np.random.default_rng([*seed, _NEGATIVES])
            negative = self.negatives.draw(rng, (total, r.negatives) if r.own_negatives else r.negatives)
        parts, at = [], 0
        for batch, size in zip(group, sizes, strict=True):
            own = negative[at : at + size] if negative.ndim == 2 else negative
            at += size
            share, own = self._share(batch, own)
            if share.asked_BL.any():
                parts.append(self._part(share, own, [*seed, _DROPPED]))
        (dropout,) = np.random.SeedSequence([*seed, _DROPOUT + self.rank]).generate_state(1, np.uint64)
        return Step(number, total, parts, int(dropout >> np.uint64(1)))

    def _share(self, batch: Batch, negative: np.ndarray) -> tuple[Batch, np.ndarray]:
        """This process's windows of a batch, and what is drawn for their targets."""
        if self.size == 1:
            return batch, negative
        own = slice(self.rank, None, self.size)
        if negative.ndim == 2:
            window_T = np.repeat(np.arange(len(batch.asked_BL)), batch.asked_BL.sum(1))
            negative = negative[window_T % self.size == self.rank]
        return Batch(batch.rows_BL[own], batch.next_BL[own], batch.asked_BL[own]), negative

    def _part(self, batch: Batch, negative: np.ndarray, seed: list[int]) -> Part:
        log, r = self.log, self.recipe
        rows, mask_BL = np.maximum(batch.rows_BL, 0), batch.rows_BL >= 0
        gap_BL = np.where(mask_BL, log.ts_us[np.maximum(batch.next_BL, 0)] - log.ts_us[rows], 0) / 1e6
        place_K, asked_T = np.flatnonzero(mask_BL), np.flatnonzero(batch.asked_BL)
        item_K, target_T = log.item[rows.ravel()[place_K]], log.item[batch.next_BL.ravel()[asked_T]]
        needed = np.zeros(len(self.negatives.share_C), bool)
        for one in (item_K, target_T, negative.ravel()):
            needed[one] = True
        needed_N = np.flatnonzero(needed)
        where_C = np.empty(len(needed), np.int64)
        where_C[needed_N] = np.arange(len(needed_N))
        expected = None
        if r.loss == "full":
            # places of targets among all items that anybody had
            target_id_T = np.searchsorted(negative, target_T)
        else:
            target_id_T = target_T
            if r.loss == "sampled":
                expected = np.log(self.negatives.share_C[negative] * r.negatives).astype(np.float32)
        side = event_inputs(log.event[rows] + 1, gap_BL, log.weight[rows], mask_BL)
        return Part(
            self.tensors.take(needed_N, r.part_dropout, seed),
            tuple(x.to(self.tensors.index.device) for x in side),
            *(self._tensor(x) for x in (where_C[item_K], place_K, asked_T, where_C[target_T],
                                        target_id_T.astype(np.int64), where_C[negative], negative)),
            None if expected is None else self._tensor(expected),
            None if self.weight_C is None else self._tensor(self.weight_C[target_T]),
        )  # fmt: skip

    def _tensor(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).to(self.tensors.index.device)

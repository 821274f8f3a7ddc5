"""What rivals that learn by gradient steps share: negatives, and when to stop.

In: what users had; a model under way and validation folds. Out: items a user had not; the best state so far.
Trade-off: a validation looks at a few thousand cases of a fold, not at all of them: stopping is a choice among epochs
of one model, which that many decide.

Shape legend: U users, N items, T draws.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from torch import nn

from mmrec import metrics
from mmrec.errors import QualityError
from mmrec.models.baselines import Recommender
from mmrec.models.data import Fold, Items, Log
from mmrec.topk.exact import select

_CASES, _BLOCK = 5000, 256


class Unseen:
    """Uniform draws of items that a user has not had.

    The r-th item that is missing from sorted a_0 < a_1 < ... is r + |{k: a_k - k <= r}|: no draw is rejected, so it
    ends whatever a user has had.
    """

    def __init__(self, x_UN: sparse.csr_matrix) -> None:
        x_UN = x_UN.tocsr()
        x_UN.sort_indices()
        self.n = x_UN.shape[1]
        self.ptr = x_UN.indptr.astype(np.int64)
        self.left_U = self.n - np.diff(self.ptr)
        user = np.repeat(np.arange(x_UN.shape[0]), np.diff(self.ptr))
        below = x_UN.indices - (np.arange(x_UN.nnz) - self.ptr[user])
        self.key = user * (self.n + 1) + below

    def draw(self, user_T: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(T,) int64 items, and (T,) bool: whether there is one; where a user has had all, the item means nothing."""
        left_T = self.left_U[user_T]
        r = rng.integers(0, np.maximum(left_T, 1))
        before = np.searchsorted(self.key, user_T.astype(np.int64) * (self.n + 1) + r, side="right")
        return np.minimum(r + before - self.ptr[user_T], self.n - 1), left_T > 0


class EarlyStop:
    """Keeps the weights of the epoch with the best validation ndcg@10, and says when to stop.

    Args:
        model: what is under way; `score` must show its weights as they are.
        net: whose state is kept. vals: validation folds, pooled; without any every epoch is run.
        patience: validations without a better one. every: epochs between validations.
    """

    def __init__(
        self, model: Recommender, net: nn.Module, items: Items, log: Log, vals: Sequence[Fold], *, patience: int,
        every: int,
    ) -> None:  # fmt: skip
        self.model, self.net, self.items, self.log = model, net, items, log
        self.vals = [v for v in vals if v.n_cases]
        self.patience, self.every = patience, every
        self.best, self.epoch, self.waited = -1.0, 0, 0
        self.curve: list[tuple[int, float]] = []
        self._state: dict[str, torch.Tensor] | None = None

    def after(self, epoch: int, loss: float) -> bool:
        """Whether to stop after this epoch, counted from 1.

        Raises:
            QualityError: `loss`, the epoch's mean, is not a number.
        """
        if not np.isfinite(loss):
            raise QualityError(
                "the loss is not a number", where=f"{self.model.name}, epoch {epoch}", value=loss, next="lower its lr"
            )
        if not self.vals:
            self.epoch = epoch
            return False
        if epoch % self.every:
            return False
        value = self._ndcg()
        self.curve.append((epoch, value))
        if value > self.best:
            self.best, self.epoch, self.waited = value, epoch, 0
            self._state = copy.deepcopy(self.net.state_dict())
        else:
            self.waited += 1
        return self.waited >= self.patience

    def restore(self) -> int:
        """Put the best weights back; returns their epoch, the last one where nothing was validated."""
        if self._state is not None:
            self.net.load_state_dict(self._state)
        return self.epoch

    def _ndcg(self) -> float:
        found = []
        for fold in self.vals:
            for start in range(0, min(fold.n_cases, _CASES), _BLOCK):
                cases = slice(start, min(start + _BLOCK, fold.n_cases, _CASES))
                score_BN = self.model.score(self.items, self.log, fold, cases)
                ptr = fold.hist_ptr[cases.start : cases.stop + 1]
                seen = (ptr - ptr[0], self.log.item[fold.hist_row[ptr[0] : ptr[-1]]])
                ranked = select(score_BN, 10, seen=seen, allowed=fold.catalogue).item
                ptr = fold.target_ptr[cases.start : cases.stop + 1]
                target = fold.target_item[ptr[0] : ptr[-1]]
                found.append(metrics.ranking(ranked, ptr - ptr[0], target, (10,))["ndcg@10"])
        return float(np.concatenate(found).mean())

"""Validation numbers quick enough to be asked for hundreds of times.

In: scores of cases of a fold. Out: the same with what may not be listed at -inf; their ndcg@10; the best of them.
Trade-off: scores of all items, where the kernel (topk) would keep the best alone: what is scored here are a few
thousand cases, and a search adds scores up again and again.

Shape legend: B cases, N items.
"""

from __future__ import annotations

import numpy as np

from mmrec import metrics
from mmrec.models.data import Fold, Log

_CASES = 2000


def first_cases(fold: Fold, most: int = _CASES) -> slice:
    """The cases a search looks at."""
    return slice(0, min(fold.n_cases, most))


def mask(fold: Fold, log: Log, scores_BN: np.ndarray, start: int = 0) -> np.ndarray:
    """The same scores of cases from `start` on, -inf where one has seen the item or it is not on offer; in place."""
    ptr = fold.hist_ptr[start : start + len(scores_BN) + 1]
    case = np.repeat(np.arange(len(scores_BN)), np.diff(ptr))
    scores_BN[:, ~fold.catalogue] = -np.inf
    scores_BN[case, log.item[fold.hist_row[ptr[0] : ptr[-1]]]] = -np.inf
    return scores_BN


def ndcg(fold: Fold, masked_BN: np.ndarray, start: int = 0) -> float:
    """Mean ndcg@10 of B cases of a fold from `start` on, from masked scores.

    A case with one target needs no list: before it stand as many items as score higher, or the same at a smaller index.
    """
    ptr = fold.target_ptr[start : start + len(masked_BN) + 1]
    target = fold.target_item[ptr[0] : ptr[-1]]
    if (np.diff(ptr) != 1).any():
        values = metrics.ranking(top(masked_BN, 10), ptr - ptr[0], target, (10,))
        return float(values["ndcg@10"].mean())
    score_B1 = masked_BN[np.arange(len(target)), target][:, None]
    before_B = np.count_nonzero(masked_BN > score_B1, axis=1)
    for b in np.flatnonzero(np.count_nonzero(masked_BN == score_B1, axis=1) > 1):
        before_B[b] += np.count_nonzero(masked_BN[b, : target[b]] == score_B1[b])
    listed_B = (before_B < 10) & (score_B1[:, 0] > -np.inf)  # nor is one listed whose score is no number
    return float(np.where(listed_B, 1 / np.log2(before_B + 2.0), 0.0).mean())


def top(scores_BN: np.ndarray, k: int) -> np.ndarray:
    """(B, k) best items, ties by index among those kept; a search, not an evaluation, may cut ties anywhere."""
    k = min(k, scores_BN.shape[1])
    near = np.sort(np.argpartition(-scores_BN, k - 1, axis=1)[:, :k], axis=1)
    value = np.take_along_axis(scores_BN, near, 1)
    order = np.argsort(-value, axis=1, kind="stable")
    return np.where(np.take_along_axis(value, order, 1) > -np.inf, np.take_along_axis(near, order, 1), -1)

"""Weights of a sum of features, learned from lists.

In: features of candidates, which of them were wanted. Out: weights.
A softmax over each case's candidates makes the wanted ones most likely (ListNet's top-one loss, Cao et al., ICML 2007,
section 4), with a normal prior on the weights of features of unit spread.
Trade-off: one number a feature: a list can be explained, and a thousand cases are enough.

Shape legend: F features, B cases, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

Bounds = Sequence[tuple[float | None, float | None]]


def weights(
    x_FBC: np.ndarray, there_BC: np.ndarray, wanted_BC: np.ndarray, bounds: Bounds, *, ridge: float,
    about_F: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """(F,) float64.

    Args:
        x_FBC: float32. there_BC, wanted_BC: bool, what is a candidate and what of it was wanted; cases that want none
            are left out; without any, what the prior says is the answer.
        bounds: of each weight, for a feature of unit spread. ridge: weight of the prior, against the mean loss of a
            case. about_F: where the prior is centred, as weights of the features as they are; None: at zero.
    """
    mine_B = wanted_BC.any(1)
    if not mine_B.any() or all(low is not None and low == high for low, high in bounds):
        return np.array([1.0 if low is not None else 0.0 for low, _ in bounds]) if about_F is None else about_F
    x_BCF = np.ascontiguousarray(np.moveaxis(x_FBC[:, mine_B], 0, 2))
    there_BC, wanted_BC = there_BC[mine_B], wanted_BC[mine_B]
    spread_F = x_BCF[there_BC].std(0, dtype=np.float64)
    live_F = spread_F > 1e-9  # what is the same for all tells nothing, and gets no weight
    spread_F = np.where(live_F, spread_F, 1.0)
    x_BCF *= (live_F / spread_F).astype(np.float32)
    centre_F = np.zeros(len(bounds)) if about_F is None else about_F * spread_F
    share_BC = (wanted_BC / wanted_BC.sum(1, keepdims=True)).astype(np.float32)
    hope_F = np.einsum("bc,bcf->f", share_BC, x_BCF, dtype=np.float64) / len(x_BCF)

    def loss(w_F: np.ndarray) -> tuple[float, np.ndarray]:
        score_BC = np.where(there_BC, x_BCF @ w_F.astype(np.float32), -np.inf)
        top_B1 = score_BC.max(1, keepdims=True)
        e_BC = np.exp(score_BC - top_B1)
        sum_B1 = e_BC.sum(1, keepdims=True)
        mean_F = np.einsum("bc,bcf->f", e_BC / sum_B1, x_BCF, dtype=np.float64) / len(x_BCF)
        value = float((np.log(sum_B1) + top_B1).mean(dtype=np.float64)) - float(w_F @ hope_F)
        off_F = w_F - centre_F
        return value + ridge * float(off_F @ off_F), mean_F - hope_F + 2 * ridge * off_F

    start_F = np.array([1.0 if low is not None else 0.0 for low, _ in bounds]) if about_F is None else centre_F
    found_F = minimize(loss, start_F, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 60}).x
    return found_F * live_F / spread_F

"""Matrix factorisation by `implicit`: ALS and BPR, whose users are folded in from a history.

In: `Items`, `Log`, `Fold`. Out: scores of every item for every case, (B, N) float32.
Of `implicit` only the factors of items are used: a case's own factors are solved for from its history, with the items
as they are, so a user unknown to the fit, or whose history has grown, is scored like any other.
Trade-off: one thread, as updates that race give other factors each time; a fit takes the longer for it.

Shape legend: B cases of a block, R users with a train row, N items, K factors, L items of a history.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from mmrec.models.baselines import history_matrix, train_matrix
from mmrec.models.data import Fold, Items, Log

_BLOCK = 256  # cases whose K x K systems are solved at once
_STEPS = 30  # of BPR's fold-in


class ALS:
    """Weighted least squares (Hu, Koren and Volinsky, ICDM 2008): an item that was had counts `alpha`, any other 1.

    The fit solves each row exactly (Cholesky), and so does the fold-in, by the same normal equations:
    (Y'Y + (alpha - 1) Y_h'Y_h + reg I) u = alpha Y_h'1.
    """

    name = "als"

    def __init__(
        self, factors: int = 64, *, alpha: float = 10.0, reg: float = 1.0, iterations: int = 15, seed: int = 0
    ) -> None:
        self.factors, self.alpha, self.reg, self.iterations, self.seed = factors, alpha, reg, iterations, seed

    def __repr__(self) -> str:
        return f"ALS(factors={self.factors}, alpha={self.alpha:g}, reg={self.reg:g}, seed={self.seed})"

    def fit(self, items: Items, log: Log, fold: Fold) -> ALS:
        x_RN = _known(log, fold, items.n)
        self.user_RK = np.zeros((x_RN.shape[0], self.factors))
        self.item_NK = np.zeros((items.n, self.factors))
        if x_RN.nnz:
            from implicit.cpu.als import AlternatingLeastSquares

            with threadpool_limits(1, "blas"):
                model = AlternatingLeastSquares(
                    self.factors, self.reg, self.alpha, use_cg=False, iterations=self.iterations, num_threads=1,
                    random_state=self.seed)  # fmt: skip
                model.fit(x_RN, show_progress=False)
            self.user_RK, self.item_NK = model.user_factors.astype(np.float64), model.item_factors.astype(np.float64)
        self.gram_KK = self.item_NK.T @ self.item_NK + self.reg * np.eye(self.factors)
        return self

    def fold_in(self, h: sparse.csr_matrix) -> np.ndarray:
        """(B, K) float64 factors of histories, (B, N) of ones and zeros; zero of an empty one."""
        out = np.zeros((h.shape[0], self.factors))
        for start in range(0, len(out), _BLOCK):
            part = h[start : start + _BLOCK]
            left_BKK = np.repeat(self.gram_KK[None], part.shape[0], 0)
            for b, (low, high) in enumerate(zip(part.indptr[:-1], part.indptr[1:], strict=True)):
                had_LK = self.item_NK[part.indices[low:high]]
                left_BKK[b] += (self.alpha - 1) * (had_LK.T @ had_LK)
            right_BK = self.alpha * (part @ self.item_NK)
            out[start : start + _BLOCK] = np.linalg.solve(left_BKK, right_BK[:, :, None])[:, :, 0]
        return out

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        return (self.fold_in(history_matrix(log, fold, cases, items.n)) @ self.item_NK.T).astype(np.float32)


class BPR:
    """Pairwise ranking by stochastic gradients (Rendle et al., UAI 2009), with an item bias.

    `implicit` draws negatives by popularity. The fold-in maximises what its updates of a user maximise, with the mean
    negative in place of each: mean over the history of ln s(u.(y_i - y) + b_i - b) - reg / 2 |u|^2, where y and b are
    means by popularity. The mean of a history's factors would be the first step from u = 0 up to its length, and the
    length decides how much the biases weigh. Each of `_STEPS` steps solves with the bound of the Hessian,
    Z'Z / 4L + reg I (Boehning and Lindsay, 1988), so none overshoots and there is no rate to choose.
    """

    name = "bpr"

    def __init__(
        self, factors: int = 64, *, lr: float = 0.05, reg: float = 0.01, iterations: int = 100, seed: int = 0
    ) -> None:
        self.factors, self.lr, self.reg, self.iterations, self.seed = factors, lr, reg, iterations, seed

    def __repr__(self) -> str:
        return (
            f"BPR(factors={self.factors}, lr={self.lr:g}, reg={self.reg:g}, iterations={self.iterations}, "
            f"seed={self.seed})"
        )

    def fit(self, items: Items, log: Log, fold: Fold) -> BPR:
        x_RN = _known(log, fold, items.n)
        self.item_NK, self.bias_N = np.zeros((items.n, self.factors)), np.zeros(items.n)
        share_N = np.asarray(x_RN.sum(0), np.float64).ravel() / max(x_RN.nnz, 1)
        if x_RN.nnz:
            from implicit.cpu.bpr import BayesianPersonalizedRanking

            with threadpool_limits(1, "blas"):
                model = BayesianPersonalizedRanking(
                    self.factors, self.lr, self.reg, iterations=self.iterations, num_threads=1,
                    random_state=self.seed)  # fmt: skip
                model.fit(x_RN, show_progress=False)
            # the last column of items is the bias; that of users is 1
            self.item_NK = model.item_factors[:, :-1].astype(np.float64)
            self.bias_N = model.item_factors[:, -1].astype(np.float64)
        self.mean_K, self.mean_bias = share_N @ self.item_NK, float(share_N @ self.bias_N)
        return self

    def fold_in(self, h: sparse.csr_matrix) -> np.ndarray:
        """(B, K) float64 factors of histories, (B, N) of ones and zeros; zero of an empty one."""
        out = np.zeros((h.shape[0], self.factors))
        for b, (low, high) in enumerate(zip(h.indptr[:-1], h.indptr[1:], strict=True)):
            if low == high:
                continue
            z_LK = self.item_NK[h.indices[low:high]] - self.mean_K
            c_L = self.bias_N[h.indices[low:high]] - self.mean_bias
            step_KK = np.linalg.inv(z_LK.T @ z_LK / (4 * len(z_LK)) + self.reg * np.eye(self.factors))
            for _ in range(_STEPS):
                pull_L = 1 / (1 + np.exp(np.minimum(z_LK @ out[b] + c_L, 50)))
                out[b] += step_KK @ (pull_L @ z_LK / len(z_LK) - self.reg * out[b])
        return out

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        user_BK = self.fold_in(history_matrix(log, fold, cases, items.n))
        return (user_BK @ self.item_NK.T + self.bias_N).astype(np.float32)


def _known(log: Log, fold: Fold, n: int) -> sparse.csr_matrix:
    """(R, N) float32: the rows of users who have a train row."""
    x = train_matrix(log, fold, n)
    return x[np.diff(x.indptr) > 0]

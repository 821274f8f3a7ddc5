"""EASE: a linear item-to-item model in closed form.

In: `Items`, `Log`, `Fold`. Out: scores of every item for every case, (B, N) float32, from the case's history; the
strongest weights of each item, sparse.
Trade-off: one dense system is solved, R x R or N x N, whichever is smaller: exact, and the reason why a catalogue has
an upper bound; what is stored keeps a few hundred weights an item and loses little.

Shape legend: B cases of a block, N items, R users with a train row.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve, lapack

from mmrec.errors import InputError
from mmrec.models.baselines import history_matrix, train_matrix
from mmrec.models.data import Fold, Items, Log

MAX_ITEMS = 40_000
_ROWS = 1024  # items at a time


class EASE:
    """Linear autoencoder in closed form (Steck, WWW 2019, eq. 8), solved in the users' space where it is smaller.

    P = (X'X + lambda I)^-1. With fewer users than items it is (I - X'(XX' + lambda I)^-1 X) / lambda, so that
    B = I - P diag(1 / diag P) needs no N x N matrix: the score of an item outside the history is x X' A / (lambda
    diag P), A = (XX' + lambda I)^-1 X.
    Otherwise B itself is held, and the fit needs one N x N float64 matrix. The score of an item of the history
    differs between the two forms and means nothing.

    Args:
        lam: the ridge. max_items: the largest catalogue it is solved for.
    """

    name = "ease"

    def __init__(self, lam: float = 200.0, *, max_items: int = MAX_ITEMS) -> None:
        self.lam, self.max_items = lam, max_items

    def __repr__(self) -> str:
        return f"EASE(lam={self.lam:g})"

    def fit(self, items: Items, log: Log, fold: Fold) -> EASE:
        """As `Recommender.fit`.

        Raises:
            InputError: more than `max_items` items.
        """
        if items.n > self.max_items:
            raise InputError(
                "this catalogue is too large for EASE",
                where=fold.name,
                value=items.n,
                valid=f"at most {self.max_items} items (N x N float64 takes {8e-9 * items.n**2:.0f} GB here)",
                next="leave EASE out, or raise max_items on a machine with twice that memory",
            )
        x = train_matrix(log, fold, items.n)
        x = x[np.asarray(x.sum(1)).ravel() > 0]
        self.x_RN: sparse.csr_matrix | None = x if x.shape[0] < items.n else None
        self.out = (self._dual if self.x_RN is not None else self._primal)(x)
        return self

    def _dual(self, x: sparse.csr_matrix) -> np.ndarray:
        """(R, N) float32: A / (lambda diag P)."""
        dense_RN = x.toarray().astype(np.float64)
        gram_RR = (x @ x.T).toarray().astype(np.float64)
        gram_RR[np.diag_indices_from(gram_RR)] += self.lam
        a_RN = cho_solve(cho_factor(gram_RR, lower=True), dense_RN) if len(gram_RR) else dense_RN
        return (a_RN / (1 - (dense_RN * a_RN).sum(0))).astype(np.float32)

    def _primal(self, x: sparse.csr_matrix) -> np.ndarray:
        """(N, N) float32: B. Factor and inverse overwrite the Gram matrix, lower triangle only."""
        p_NN = np.asfortranarray((x.T @ x).toarray(), np.float64)
        p_NN[np.diag_indices_from(p_NN)] += self.lam
        p_NN, _ = lapack.dpotrf(p_NN, lower=True, overwrite_a=True)
        p_NN, _ = lapack.dpotri(p_NN, lower=True, overwrite_c=True)
        diag_N = np.diag(p_NN).copy()
        b_NN = np.tril(p_NN, -1).astype(np.float32)
        del p_NN
        b_NN += b_NN.T.copy()
        b_NN /= -diag_N[None].astype(np.float32)
        return b_NN

    def top(self, k: int = 200) -> sparse.csr_matrix:
        """(N, N) float32: B with the `k` strongest weights of each item's row, by magnitude: what is worth storing.

        A history's sum of rows is its score. Weights of an item on itself are left out.
        """
        n = self.out.shape[1]
        k = min(k, n - 1)
        rows, cols, values = [], [], []
        for start in range(0, n if k > 0 else 0, _ROWS):
            stop = min(start + _ROWS, n)
            dense = self.x_RN is None
            b_RN = self.out[start:stop].copy() if dense else np.asarray(self.x_RN[:, start:stop].T @ self.out)
            own = np.arange(stop - start)
            b_RN[own, start + own] = 0
            at = np.sort(np.argpartition(-np.abs(b_RN), k - 1, axis=1)[:, :k], axis=1)
            rows.append(np.repeat(start + own, k))
            cols.append(at.ravel())
            values.append(np.take_along_axis(b_RN, at, 1).ravel())
        if not rows:
            return sparse.csr_matrix((n, n), dtype=np.float32)
        found = (np.concatenate(values).astype(np.float32), (np.concatenate(rows), np.concatenate(cols)))
        b_NN = sparse.csr_matrix(found, shape=(n, n))
        b_NN.eliminate_zeros()
        return b_NN

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        h = history_matrix(log, fold, cases, items.n)
        return (h if self.x_RN is None else (h @ self.x_RN.T).toarray()) @ self.out

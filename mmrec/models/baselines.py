"""What a model has to beat: popularity, item-kNN, EASE, content nearest neighbours.

In: `Items`, `Log`, `Fold`. Out: scores of every item for every case, (B, N) float32.
Every baseline is fitted on the fold's train rows alone, and ranks from the case's history.
Trade-off: EASE solves one dense system, R x R or N x N, whichever is smaller: exact and simple up to about 20,000.

Shape legend: B cases of a block, N items, U users, R users with a train row, D content vector size.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve, lapack

from mmrec.models.data import Fold, Items, Log

_DAY = 86_400_000_000


class Recommender(Protocol):
    """What evaluation asks of a model."""

    name: str

    def fit(self, items: Items, log: Log, fold: Fold) -> Recommender:
        """Learn from the `fold.train` rows and `fold.fit_at_us`, and from nothing else of the log; returns itself."""
        ...

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        """(B, N) float32 for the fold's cases start:stop, from their history rows; greater is better.

        Seen items and items not on offer are taken out by whoever ranks."""
        ...


def train_matrix(log: Log, fold: Fold, n_items: int) -> sparse.csr_matrix:
    """(U, N) float32, 1 where a user of the train rows had an item."""
    rows, cols = log.user[fold.train], log.item[fold.train]
    x = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, cols)), shape=(log.n_users, n_items))
    x.data[:] = 1
    return x


def history_matrix(log: Log, fold: Fold, cases: slice, n_items: int) -> sparse.csr_matrix:
    """(B, N) float32, 1 where a case's history holds an item."""
    ptr = fold.hist_ptr[cases.start : cases.stop + 1]
    items = log.item[fold.hist_row[ptr[0] : ptr[-1]]]
    x = sparse.csr_matrix((np.ones(len(items), np.float32), items, ptr - ptr[0]), shape=(len(ptr) - 1, n_items))
    x.sum_duplicates()
    x.data[:] = 1
    return x


class Popularity:
    """Decayed count of users, each by their latest interaction with the item; the same list for everybody."""

    name = "popularity"

    def __init__(self, half_life_days: float = np.inf) -> None:
        self.half_life_days = half_life_days

    def __repr__(self) -> str:
        return f"Popularity(half_life_days={self.half_life_days:g})"

    def fit(self, items: Items, log: Log, fold: Fold) -> Popularity:
        rows = np.flatnonzero(fold.train)
        pair = log.user[rows].astype(np.int64) * items.n + log.item[rows]
        order = np.lexsort((log.ts_us[rows], pair))
        last = np.append(pair[order][1:] != pair[order][:-1], True)[: len(rows)]
        kept = rows[order][last]
        age = (fold.fit_at_us - log.ts_us[kept]) / _DAY
        weight = np.exp2(-np.maximum(age, 0) / self.half_life_days)
        self.score_N = np.bincount(log.item[kept], weight, items.n).astype(np.float32)
        return self

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        return np.broadcast_to(self.score_N, (cases.stop - cases.start, items.n))


class ItemKNN:
    """Sum of similarities to the history's items, of which each item keeps the `k` nearest (Deshpande and Karypis,
    TOIS 2004, section 4); users of both / (sqrt(users of one * users of the other) + shrinkage), so the cosine where
    shrinkage is 0. Neighbours that tie with the k-th are all kept."""

    name = "item_knn"

    def __init__(self, k: int = 100, shrinkage: float = 0.0) -> None:
        self.k, self.shrinkage = k, shrinkage

    def __repr__(self) -> str:
        return f"ItemKNN(k={self.k}, shrinkage={self.shrinkage:g})"

    def fit(self, items: Items, log: Log, fold: Fold) -> ItemKNN:
        x = train_matrix(log, fold, items.n)
        users = np.asarray(x.sum(0), np.float64).ravel()
        x_NU = x.T.tocsr()
        parts = []
        for start in range(0, items.n, 1024):
            s = (x_NU[start : start + 1024] @ x).tocsr()
            row = np.repeat(np.arange(s.shape[0]), np.diff(s.indptr)) + start
            # the root of the whole product, in fp64: 3 / sqrt(27) and 1 / sqrt(3) then tie in fp32, as they should
            scale = np.sqrt(users[row] * users[s.indices]) + self.shrinkage
            s.data = np.where(row == s.indices, 0, s.data / np.maximum(scale, 1)).astype(np.float32)
            parts.append(_nearest(s, self.k))
        self.near_NN = sparse.vstack(parts).tocsr()
        self.sim = self.near_NN.T.tocsr()  # (N, N): column j holds the neighbours of j
        return self

    def narrow(self, k: int) -> ItemKNN:
        """The fitted model with fewer neighbours, at most this one's: what a fit of its own would give."""
        made = ItemKNN(k, self.shrinkage)
        made.near_NN = _nearest(self.near_NN.copy(), k)
        made.sim = made.near_NN.T.tocsr()
        return made

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        return np.asarray((history_matrix(log, fold, cases, items.n) @ self.sim).todense(), np.float32)


def _nearest(s: sparse.csr_matrix, k: int) -> sparse.csr_matrix:
    """The k greatest of each row, and what ties with the k-th; in place."""
    for low, high in zip(s.indptr[:-1], s.indptr[1:], strict=True):
        if high - low > k:
            values = s.data[low:high]
            values[values < np.partition(values, -k)[-k]] = 0
    s.eliminate_zeros()
    return s


class EASE:
    """Linear autoencoder in closed form (Steck, WWW 2019, eq. 8), solved in the users' space where it is smaller.

    P = (X'X + lambda I)^-1. With fewer users than items it is (I - X'(XX' + lambda I)^-1 X) / lambda, so that
    B = I - P diag(1 / diag P) needs no N x N matrix: the score of an item outside the history is x X' A / (lambda
    diag P), A = (XX' + lambda I)^-1 X.
    Otherwise B itself is held, and the fit needs one N x N float64 matrix. The score of an item of the history
    differs between the two forms and means nothing.
    """

    name = "ease"

    def __init__(self, lam: float = 200.0) -> None:
        self.lam = lam

    def __repr__(self) -> str:
        return f"EASE(lam={self.lam:g})"

    def fit(self, items: Items, log: Log, fold: Fold) -> EASE:
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

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        h = history_matrix(log, fold, cases, items.n)
        return (h if self.x_RN is None else (h @ self.x_RN.T).toarray()) @ self.out


class ContentNN:
    """Cosine of an item's content to the mean content of the history; modalities count the same where present."""

    name = "content_nn"

    def __init__(self, modalities: tuple[str, ...] | None = None) -> None:
        self.modalities = modalities

    def fit(self, items: Items, log: Log, fold: Fold) -> ContentNN:
        names = self.modalities or tuple(sorted(items.content))
        parts = []
        for m in names:
            v = items.content[m].astype(np.float32)
            there = items.present[m]
            v = np.where(there[:, None], v - (v[there].mean(0) if there.any() else 0), 0)
            parts.append(v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12))
        v_ND = np.concatenate(parts, 1) if parts else np.zeros((items.n, 1), np.float32)
        self.unit_ND = v_ND / np.maximum(np.linalg.norm(v_ND, axis=1, keepdims=True), 1e-12)
        return self

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        profile = history_matrix(log, fold, cases, items.n) @ self.unit_ND
        return (profile / np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-12)) @ self.unit_ND.T

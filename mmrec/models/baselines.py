"""What a model has to beat: popularity, item-kNN, EASE, content nearest neighbours.

In: `Items`, `Log`, `Fold`. Out: scores of every item for every case, (B, N) float32.
Every baseline is fitted on the fold's train rows alone, and ranks from the case's history.
Trade-off: dense N x N similarities (EASE in its dual form, U x N) are exact and simple up to about 20,000 items.

Shape legend: B cases of a block, N items, U users, D content vector size.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy import sparse

from mmrec.models.data import Fold, Items, Log

_DAY = 86_400_000_000


class Recommender(Protocol):
    """What evaluation asks of a model."""

    name: str

    def fit(self, items: Items, log: Log, fold: Fold) -> Recommender: ...

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray: ...


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

    def fit(self, items: Items, log: Log, fold: Fold) -> Popularity:
        last = np.zeros((0,))
        rows = np.flatnonzero(fold.train)
        pair = log.user[rows].astype(np.int64) * items.n + log.item[rows]
        order = np.lexsort((log.ts_us[rows], pair))
        last = np.append(pair[order][1:] != pair[order][:-1], True)
        kept = rows[order][last]
        age = (fold.fit_at_us - log.ts_us[kept]) / _DAY
        weight = np.exp2(-np.maximum(age, 0) / self.half_life_days)
        self.score_N = np.bincount(log.item[kept], weight, items.n).astype(np.float32)
        return self

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        return np.broadcast_to(self.score_N, (cases.stop - cases.start, items.n))


class ItemKNN:
    """Sum of cosine similarities to the history's items, `k` neighbours an item (Deshpande and Karypis, TOIS 2004)."""

    name = "item_knn"

    def __init__(self, k: int = 100) -> None:
        self.k = k

    def fit(self, items: Items, log: Log, fold: Fold) -> ItemKNN:
        x = train_matrix(log, fold, items.n)
        norm = np.sqrt(np.asarray(x.sum(0)).ravel())
        unit = x @ sparse.diags(1 / np.maximum(norm, 1))
        parts = []
        for start in range(0, items.n, 1024):
            s = np.asarray((unit[:, start : start + 1024].T @ unit).todense())
            s[np.arange(len(s)), np.arange(start, start + len(s))] = 0
            if self.k < items.n:
                kth = -np.partition(-s, self.k - 1, axis=1)[:, self.k - 1 : self.k]
                s[s < kth] = 0
            parts.append(sparse.csr_matrix(s))
        self.sim = sparse.vstack(parts).T.tocsr()  # (N, N): column j holds the neighbours of j
        return self

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        return np.asarray((history_matrix(log, fold, cases, items.n) @ self.sim).todense(), np.float32)


class EASE:
    """Linear autoencoder in closed form (Steck, WWW 2019, eq. 8), solved in the users' space where it is smaller.

    P = (X'X + lambda I)^-1 = (I - X'(XX' + lambda I)^-1 X) / lambda, so B = I - P diag(1 / diag P) needs no N x N
    matrix: the score of an item outside the history is x X' A / (lambda diag P), A = (XX' + lambda I)^-1 X.
    """

    name = "ease"

    def __init__(self, lam: float = 200.0) -> None:
        self.lam = lam

    def fit(self, items: Items, log: Log, fold: Fold) -> EASE:
        x = train_matrix(log, fold, items.n)
        x = x[np.asarray(x.sum(1)).ravel() > 0]
        gram = np.asarray((x @ x.T).todense(), np.float64)
        gram[np.diag_indices_from(gram)] += self.lam
        dense = np.asarray(x.todense(), np.float64)
        a_UN = np.linalg.solve(gram, dense)
        diag_N = (1 - (dense * a_UN).sum(0)) / self.lam
        self.x, self.out_UN = x, (a_UN / (self.lam * diag_N)).astype(np.float32)
        return self

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        h = history_matrix(log, fold, cases, items.n)
        return np.asarray((h @ self.x.T).todense(), np.float32) @ self.out_UN


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

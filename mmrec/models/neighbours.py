"""Nearest neighbours: of items and of users by what was had together, of items by content.

In: `Items`, `Log`, `Fold`. Out: scores of every item for every case, (B, N) float32, from the case's history.
Trade-off: similarities are computed in blocks of rows and only the nearest of each are kept: no N x N or U x U matrix
is ever dense, and a block's sparse product is the memory it takes.

Shape legend: B cases of a block, N items, U users, D content vector size.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from mmrec.models.baselines import history_matrix, train_matrix
from mmrec.models.data import Fold, Items, Log

_ROWS, _BLOCK = 1024, 256  # items, cases at a time
_CELLS = 1 << 24  # cosines of a block


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
        for start in range(0, items.n, _ROWS):
            s = (x_NU[start : start + _ROWS] @ x).tocsr()
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


class UserKNN:
    """Sum of the similarities of the `k` nearest users who had an item (Herlocker et al., SIGIR 1999, on what was had
    rather than rated). Similarity is the cosine of a case's history to a user's train items, so a history that has
    grown is compared as it is now; a case's own train row is no neighbour. Neighbours that tie with the k-th are all
    kept."""

    name = "user_knn"

    def __init__(self, k: int = 100) -> None:
        self.k = k

    def __repr__(self) -> str:
        return f"UserKNN(k={self.k})"

    def fit(self, items: Items, log: Log, fold: Fold) -> UserKNN:
        self.x_UN = train_matrix(log, fold, items.n)
        self.size_U = np.asarray(self.x_UN.sum(1), np.float64).ravel()
        self.x_NU = self.x_UN.T.tocsr()
        return self

    def narrow(self, k: int) -> UserKNN:
        """The fitted model with another number of neighbours: what a fit of its own would give."""
        made = UserKNN(k)
        made.x_UN, made.size_U, made.x_NU = self.x_UN, self.size_U, self.x_NU
        return made

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        h = history_matrix(log, fold, cases, items.n)
        near_BU = near_users(h, fold.case_user[cases], self.x_NU, self.size_U, self.k)
        out = np.zeros(h.shape, np.float32)
        for start in range(0, len(out), _BLOCK):
            out[start : start + _BLOCK] = (near_BU[start : start + _BLOCK] @ self.x_UN).toarray()
        return out


def near_users(
    h_BN: sparse.csr_matrix, own_B: np.ndarray, x_NU: sparse.csr_matrix, size_U: np.ndarray, k: int
) -> sparse.csr_matrix:
    """(B, U) float32: cosines of histories to the `k` nearest users, and to those that tie with the k-th.

    Args:
        h_BN, x_NU: 1 where a history holds an item, where an item was had. own_B: the users themselves, who are not
            among their neighbours; -1: unknown. size_U: items that a user had.
    """
    size_B = np.diff(h_BN.indptr).astype(np.float64)
    parts = [sparse.csr_matrix((0, x_NU.shape[1]), dtype=np.float32)]
    block = max(1, min(_BLOCK, _CELLS // max(x_NU.shape[1], 1)))
    for start in range(0, h_BN.shape[0], block):
        s = (h_BN[start : start + block] @ x_NU).tocsr()
        row = np.repeat(np.arange(s.shape[0]), np.diff(s.indptr)) + start
        cosine = s.data / np.sqrt(size_B[row] * size_U[s.indices])
        s.data = np.where(own_B[row] == s.indices, 0, cosine).astype(np.float32)
        parts.append(_nearest(s, k))
    return sparse.vstack(parts).tocsr()


class ContentNN:
    """Cosine of an item's content to the mean content of the history; modalities count the same where present."""

    name = "content_nn"

    def __init__(self, modalities: tuple[str, ...] | None = None) -> None:
        self.modalities = modalities

    def __repr__(self) -> str:
        return f"ContentNN(modalities={self.modalities})"

    def fit(self, items: Items, log: Log, fold: Fold) -> ContentNN:
        names = self.modalities or tuple(sorted(items.content))
        parts, self.mean = [], {}
        for m in names:
            v = items.content[m].astype(np.float32)
            there = items.present[m]
            self.mean[m] = v[there].mean(0) if there.any() else np.zeros(v.shape[1], np.float32)
            v = np.where(there[:, None], v - self.mean[m], 0)
            parts.append(v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12))
        v_ND = np.concatenate(parts, 1) if parts else np.zeros((items.n, 1), np.float32)
        self.unit_ND = v_ND / np.maximum(np.linalg.norm(v_ND, axis=1, keepdims=True), 1e-12)
        return self

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        profile = history_matrix(log, fold, cases, items.n) @ self.unit_ND
        return (profile / np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-12)) @ self.unit_ND.T


def _nearest(s: sparse.csr_matrix, k: int) -> sparse.csr_matrix:
    """The k greatest of each row, and what ties with the k-th; in place."""
    for low, high in zip(s.indptr[:-1], s.indptr[1:], strict=True):
        if high - low > k:
            values = s.data[low:high]
            values[values < np.partition(values, -k)[-k]] = 0
    s.eliminate_zeros()
    return s

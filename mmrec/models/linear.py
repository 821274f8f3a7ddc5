"""Closed-form parts: EASE factors of behaviour and content, likeness of content, and the appeal of content.

In: the users x items matrix of a training window; content vectors. Out: rows of an item as history and as offer: a
score is the weighted sum of a history's rows times the offer's row.
EASE (Steck, WWW 2019, eq. 8) is B = I - P diag(1/diag P) with P = (X'X + lambda I)^-1. Off the diagonal
B = X'(XX' + lambda I)^-1 X diag(1/(lambda diag P)), which an eigendecomposition of XX' factors exactly, and which is
cut to the strongest `rank` directions. Seen items are never offered, so the diagonal never matters.
Content directions are further rows of X, as if each were a user (Jeunen et al., RecSys 2020, section 3.1): what goes
together in content and in behaviour is learned at once, and an item nobody has had is placed by its content.
Likeness is the cosine of an item's content to the mean content of a history, each modality cut to its principal
directions and given the same say. Directions are partly whitened: the strongest say what kind of thing an item is,
those behind say which. Appeal is a ridge regression of log popularity on content. Together they rank items without
interactions.
Trade-off: above `_EXACT` users the directions come from a randomised decomposition (Halko et al., SIAM Review 2011,
algorithms 4.4 and 5.1), so that every user counts and the cost is that of a few sparse products.

Shape legend: U users, N items, R rank, C content directions of all modalities, M modality size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import linalg, sparse
from sklearn.utils.extmath import randomized_svd

from mmrec.models.data import Items

# a direction of variance v counts as v^-.35: of 0, .25, .35 and .5 it ranked hidden items best, on films and on Amazon
# Beauty, by 128 directions and by 256 (docs/decisions/0018-items-nobody-has-had.md)
_WHITEN = 0.35
_LEAST = 1e-6  # a variance below this share of the greatest is rounding
_EXACT, _POWERS = 4096, 5  # users whose Gram matrix is decomposed exactly; power iterations


@dataclass(frozen=True)
class LinearHead:
    """An item's factor is what behaviour says of it and what its content says; both parts float32.

    Attributes:
        behaviour_NR: zero for an item of no train row. content_CR: directions of `Likeness` to factors.
    """

    behaviour_NR: np.ndarray
    content_CR: np.ndarray

    def factors(self, like_NC: np.ndarray, known: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """(N, R) twice: `history` weighs a history's items, `offer` the items on offer. `known`: use behaviour."""
        history_NR = like_NC @ self.content_CR
        if known:
            history_NR = history_NR + self.behaviour_NR
        # 1 - |row|^2 is lambda diag P, of the directions kept
        return history_NR, history_NR / np.maximum(1 - (history_NR**2).sum(1), 1e-6)[:, None]


def fit_linear(
    x_UN: sparse.csr_matrix, like_NC: np.ndarray, *, lam: float, rank: int, content: float, seed: int = 0
) -> LinearHead:
    """The head of one training window.

    Args:
        x_UN: 1 where a user had an item. like_NC: content of unit length. lam: EASE's lambda. rank: directions kept.
        content: squared weight of the content rows; an item's content then counts as that many users.
        seed: of the randomised decomposition.
    """
    x = x_UN[np.asarray(x_UN.sum(1)).ravel() > 0]
    z_NC = np.sqrt(content) * like_NC.astype(np.float64)
    value, vector = _strongest(x, z_NC, rank, seed)
    vector = vector / np.sqrt(np.maximum(value, 0) + lam)
    behaviour_NR = np.asarray(x.T @ vector[: x.shape[0]])
    return LinearHead(behaviour_NR.astype(np.float32), (np.sqrt(content) * vector[x.shape[0] :]).astype(np.float32))


def _strongest(x: sparse.csr_matrix, z_NC: np.ndarray, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues (R,) of the Gram matrix of rows (users, then content), and vectors (U + C, R)."""
    if x.shape[0] <= _EXACT:
        across = np.asarray(x @ z_NC)
        gram = np.block([[np.asarray((x @ x.T).todense(), np.float64), across], [across.T, z_NC.T @ z_NC]])
        return _eigen(gram, rank)
    rows = sparse.vstack([x, sparse.csr_matrix(z_NC.T)]).tocsr().astype(np.float32)
    vector, value, _ = randomized_svd(rows, min(rank, *rows.shape), n_iter=_POWERS, flip_sign=False, random_state=seed)
    return value.astype(np.float64) ** 2, _signed(vector.astype(np.float64))


def fit_appeal(like_NC: np.ndarray, present_NM: np.ndarray, users_N: np.ndarray, lam: float = 30.0) -> np.ndarray:
    """(C + M + 1,) float32: weights of content, of each modality's presence, and of one, for log1p of users an item.

    Args:
        users_N: users who had each item; those without any are what is predicted, and are left out of the fit.
    """
    x_NF = appeal_inputs(like_NC, present_NM)[users_N > 0].astype(np.float64)
    gram = x_NF.T @ x_NF + lam * np.eye(x_NF.shape[1])
    return np.linalg.solve(gram, x_NF.T @ np.log1p(users_N[users_N > 0])).astype(np.float32)


def appeal_inputs(like_NC: np.ndarray, present_NM: np.ndarray) -> np.ndarray:
    """(N, C + M + 1) float32."""
    return np.concatenate([like_NC, present_NM.astype(np.float32), np.ones((len(like_NC), 1), np.float32)], 1)


@dataclass(frozen=True)
class Likeness:
    """modality -> (mean (M,), scaled directions (M, C)), both float32."""

    maps: dict[str, tuple[np.ndarray, np.ndarray]]
    # the catalogue that was last looked at: a study asks for it hundreds of times
    _last: list[tuple[Items, dict[str, np.ndarray]]] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def fit(cls, items: Items, rank: int) -> Likeness:
        """Principal directions of every modality."""
        maps = {}
        for m in sorted(items.content):
            v = items.content[m][items.present[m]].astype(np.float64)
            mean = v.mean(0) if len(v) else np.zeros(items.content[m].shape[1])
            value, directions = _eigen((v - mean).T @ (v - mean), rank)
            share = np.maximum(value / max(float(value.max(initial=0.0)), 1e-300), 0.0)
            scale = np.where(share > _LEAST, np.maximum(share, _LEAST) ** -_WHITEN, 0.0)
            maps[m] = (mean.astype(np.float32), (directions * scale).astype(np.float32))
        return cls(maps)

    def parts(self, items: Items) -> dict[str, np.ndarray]:
        """modality -> (N, C) float32: along the directions, of unit length; zeros where an item lacks it."""
        if not self._last or self._last[0][0] is not items:
            made = {}
            for m, (mean, directions) in self.maps.items():
                part = np.where(items.present[m][:, None], (items.content[m] - mean) @ directions, 0)
                made[m] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9)
            self._last[:] = [(items, made)]
        return self._last[0][1]

    def vectors(self, items: Items, drop: frozenset[str] = frozenset(), image_share: float = 1.0) -> np.ndarray:
        """(N, C) float32 of unit length; zeros where an item has no content. Pictures count `image_share`."""
        share = {m: (m not in drop) * (image_share if m == "image" else 1.0) for m in self.maps}
        parts = [np.float32(share[m]) * part for m, part in self.parts(items).items()]
        v = np.concatenate(parts, 1) if parts else np.zeros((items.n, 1))
        return (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9)).astype(np.float32)

    def tensors(self) -> dict[str, torch.Tensor]:
        """For safetensors."""
        return {
            f"like.{m}.{i}": torch.from_numpy(np.ascontiguousarray(a))
            for m, pair in self.maps.items()
            for i, a in enumerate(pair)
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Likeness:
        """What `tensors` gave."""
        names = sorted({k.split(".")[1] for k in state if k.startswith("like.")})
        return cls({m: (state[f"like.{m}.0"].numpy(), state[f"like.{m}.1"].numpy()) for m in names})


def history_weights(length: int, *, tau: float, base: float) -> np.ndarray:
    """(length,) float32, oldest first: base + exp(-rank / tau), rank 0 the newest event."""
    rank = np.arange(length - 1, -1, -1, dtype=np.float64)
    return (base + np.exp(-rank / tau)).astype(np.float32)


def _eigen(gram: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of a symmetric matrix and their vectors, each with its largest entry positive."""
    n = len(gram)
    top = min(rank, n)
    value, vector = linalg.eigh(gram, subset_by_index=[n - top, n - 1])
    return value[::-1], _signed(vector[:, ::-1])


def _signed(vector: np.ndarray) -> np.ndarray:
    largest = vector[np.abs(vector).argmax(0), np.arange(vector.shape[1])]
    return vector * np.where(largest < 0, -1.0, 1.0)

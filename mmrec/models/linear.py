"""Two closed-form towers: EASE factors, and likeness of content.

In: the users x items matrix of a training window; content vectors. Out: rows of an item as history and as offer: a
score is the weighted sum of a history's rows times the offer's row.
EASE (Steck, WWW 2019, eq. 8) is B = I - P diag(1/diag P) with P = (X'X + lambda I)^-1. Off the diagonal
B = X'(XX' + lambda I)^-1 X diag(1/(lambda diag P)), which an eigendecomposition of XX' factors exactly, and which is
cut to the strongest `rank` directions. Seen items are never offered, so the diagonal never matters.
Likeness is the cosine of an item's content to the mean content of a history, each modality cut to its principal
directions and given the same say; it is what an item without interactions is ranked by.
Trade-off: the Gram matrix is over users or a sample of them (at most `max_users`), so the cost stays bounded.

Shape legend: U users, N items, R rank, C content directions, M modality size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import linalg, sparse

from mmrec.models.data import Items


@dataclass(frozen=True)
class LinearHead:
    """`history_NR` weighs a history's items, `offer_NR` the items on offer; both float32."""

    history_NR: np.ndarray
    offer_NR: np.ndarray


def fit_linear(x_UN: sparse.csr_matrix, *, lam: float, rank: int, max_users: int = 8192, seed: int = 0) -> LinearHead:
    """The head of one training window.

    Args:
        x_UN: 1 where a user had an item. lam: EASE's lambda. rank: directions kept.
    """
    x = x_UN[np.asarray(x_UN.sum(1)).ravel() > 0]
    if x.shape[0] > max_users:
        x = x[np.sort(np.random.default_rng(seed).choice(x.shape[0], max_users, replace=False))]
    gram = np.asarray((x @ x.T).todense(), np.float64)
    value, vector = _eigen(gram, rank)
    factor_NR = np.asarray(x.T @ vector) / np.sqrt(np.maximum(value, 0) + lam)
    norm_N = 1 - (factor_NR**2).sum(1)  # lambda diag P, of the directions kept
    offer_NR = factor_NR / np.maximum(norm_N, 1e-6)[:, None]
    return LinearHead(factor_NR.astype(np.float32), offer_NR.astype(np.float32))


@dataclass(frozen=True)
class Likeness:
    """modality -> (mean (M,), directions (M, C)), both float32."""

    maps: dict[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def fit(cls, items: Items, rank: int) -> Likeness:
        """Principal directions of every modality."""
        maps = {}
        for m in sorted(items.content):
            v = items.content[m][items.present[m]].astype(np.float64)
            mean = v.mean(0) if len(v) else np.zeros(items.content[m].shape[1])
            _, directions = _eigen((v - mean).T @ (v - mean), rank)
            maps[m] = (mean.astype(np.float32), directions.astype(np.float32))
        return cls(maps)

    def vectors(self, items: Items, drop: frozenset[str] = frozenset(), image_share: float = 1.0) -> np.ndarray:
        """(N, C) float32 of unit length; zeros where an item has no content. Pictures count `image_share`."""
        parts = []
        for m, (mean, directions) in self.maps.items():
            there = items.present[m] & (m not in drop)
            part = np.where(there[:, None], (items.content[m] - mean) @ directions, 0)
            scale = image_share if m == "image" else 1.0
            parts.append(scale * part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9))
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
    value, vector = value[::-1], vector[:, ::-1]
    sign = np.where(vector[np.abs(vector).argmax(0), np.arange(top)] < 0, -1.0, 1.0)
    return value, vector * sign

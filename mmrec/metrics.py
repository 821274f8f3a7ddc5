"""Ranking metrics over the full catalogue, one value a case; numpy only.

In: ranked item indices (-1 behind a short list's end), targets as CSR. Out: name -> one float64 a case, or one number
for a set of lists.
Definitions: recall@k = hits / targets; precision@k = hits / k; f1 their harmonic mean; mrr@k = 1 / rank of the first
hit; ndcg@k with binary gains and log2 discount, ideal = the first min(k, targets) places (Jarvelin and Kekalainen,
TOIS 2002, 4). Trade-off: recall divides by all targets, so a user with more than k of them can't reach 1.

Shape legend: C cases, K places, N items, D vector size.
"""

from __future__ import annotations

import numpy as np


def ranking(
    ranked_CK: np.ndarray, target_ptr: np.ndarray, target_item: np.ndarray, ks: tuple[int, ...] = (10, 20)
) -> dict[str, np.ndarray]:
    """recall, precision, f1, ndcg and mrr at every k: name@k -> (C,) float64. A case has at least one target."""
    n = np.diff(target_ptr)
    width = int(ranked_CK.max(initial=0)) + 1 if ranked_CK.size else 1
    width = max(width, int(target_item.max(initial=0)) + 1)
    case = np.repeat(np.arange(len(n)), n)
    wanted = np.unique(case.astype(np.int64) * width + target_item)
    keys = np.arange(len(n))[:, None] * np.int64(width) + ranked_CK
    hit_CK = np.isin(keys, wanted) & (ranked_CK >= 0)
    discount_K = 1 / np.log2(np.arange(2, ranked_CK.shape[1] + 2))
    out: dict[str, np.ndarray] = {}
    for k in ks:
        hits_Ck = hit_CK[:, :k]
        hits = hits_Ck.sum(1)
        ideal = np.concatenate([[0], np.cumsum(discount_K[:k])])[np.minimum(n, min(k, len(discount_K)))]
        first = np.where(hits > 0, hits_Ck.argmax(1) + 1, 0)
        out[f"recall@{k}"] = hits / n
        out[f"precision@{k}"] = hits / k
        out[f"f1@{k}"] = 2 * hits / (n + k)
        out[f"ndcg@{k}"] = (hits_Ck * discount_K[:k]).sum(1) / ideal
        out[f"mrr@{k}"] = np.divide(1.0, first, out=np.zeros(len(n)), where=first > 0)
    return out


def coverage(ranked_CK: np.ndarray, catalogue: int, k: int) -> float:
    """Share of the catalogue's items that stand in at least one list."""
    shown = np.unique(ranked_CK[:, :k])
    return float((shown >= 0).sum() / max(catalogue, 1))


def novelty(ranked_CK: np.ndarray, users_N: np.ndarray, users: int, k: int) -> float:
    """Mean of -log2(share of users who know the item), an unknown item counted as known to one (Zhou et al., PNAS
    2010)."""
    top = ranked_CK[:, :k]
    share = np.maximum(users_N, 1) / max(users, 1)
    return float(-np.log2(share[top[top >= 0]]).mean()) if (top >= 0).any() else 0.0


def diversity(ranked_CK: np.ndarray, vector_ND: np.ndarray, k: int) -> float:
    """Intra-list diversity: 1 - mean cosine over the pairs of a list, mean over lists (Ziegler et al., WWW 2005)."""
    norm = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    unit = vector_ND / np.where(norm > 0, norm, 1)
    values = []
    for row in ranked_CK[:, :k]:
        v = unit[row[row >= 0]].astype(np.float64)
        n = len(v)
        if n > 1:
            total = v.sum(0)
            values.append(1 - (total @ total - (v * v).sum()) / (n * (n - 1)))
    return float(np.mean(values)) if values else 0.0

"""Ranking metrics over the full catalogue, one value a case; numpy only.

In: ranked item indices (-1 behind a short list's end), targets as CSR. Out: name -> one float64 a case, or one number
for a set of lists.
Definitions: recall@k = hits / targets; precision@k = hits / k; f1 their harmonic mean; mrr@k = 1 / rank of the first
hit; hit@k = 1 if there is one; ndcg@k with binary gains and discount 1 / log2(place + 1), ideal = the first
min(k, targets) places (Jarvelin and Kekalainen, TOIS 2002, section 2, in the form with log2(place + 1)).
Trade-off: recall divides by all targets, so a user with more than k of them can't reach 1.

Shape legend: C cases, K places, N items, D vector size.
"""

from __future__ import annotations

import numpy as np

from mmrec.errors import InputError


def ranking(
    ranked_CK: np.ndarray, target_ptr: np.ndarray, target_item: np.ndarray, ks: tuple[int, ...] = (10, 20)
) -> dict[str, np.ndarray]:
    """recall, precision, f1, ndcg, mrr and hit at every k, of each list against its own targets.

    Args:
        ranked_CK: (C, K) item indices, best first; -1 marks an empty place. Where K < k the places beyond K are
            empty, the ideal list still has k.
        target_ptr, target_item: CSR, (C + 1,) and distinct items of each case, at least one.

    Returns: name@k -> (C,) float64.

    Raises:
        InputError: shapes disagree, a case without a target, an item twice in a list or among a case's targets.
    """
    n = np.diff(target_ptr)
    if ranked_CK.ndim != 2 or len(n) != len(ranked_CK) or (len(target_ptr) and target_ptr[-1] != len(target_item)):
        shapes = (ranked_CK.shape, np.shape(target_ptr), np.shape(target_item))
        raise InputError("Lists and targets don't fit.", value=shapes, valid="(C, K), (C + 1,), (target_ptr[-1],)")
    if (n < 1).any():
        raise InputError("A case without a target can't be measured.", where=f"case {int(np.argmin(n))}")
    width = int(ranked_CK.max(initial=0)) + 1 if ranked_CK.size else 1
    width = max(width, int(target_item.max(initial=0)) + 1)
    case = np.repeat(np.arange(len(n)), n)
    wanted = np.unique(case.astype(np.int64) * width + target_item)
    keys = np.arange(len(n))[:, None] * np.int64(width) + ranked_CK
    sorted_CK = np.sort(ranked_CK, axis=1)
    twice = (sorted_CK[:, 1:] == sorted_CK[:, :-1]) & (sorted_CK[:, 1:] >= 0)
    if twice.any() or len(wanted) != len(target_item):
        raise InputError("An item stands twice in a list or among its targets, and would be paid twice.")
    hit_CK = np.isin(keys, wanted) & (ranked_CK >= 0)
    discount_K = 1 / np.log2(np.arange(2, max((ranked_CK.shape[1], *ks)) + 2))
    out: dict[str, np.ndarray] = {}
    for k in ks:
        hits_Ck = hit_CK[:, :k]
        hits = hits_Ck.sum(1)
        ideal = np.concatenate([[0], np.cumsum(discount_K[:k])])[np.minimum(n, k)]
        first = np.where(hits > 0, hits_Ck.argmax(1) + 1 if hits_Ck.shape[1] else 0, 0)
        out[f"recall@{k}"] = hits / n
        out[f"precision@{k}"] = hits / k
        out[f"f1@{k}"] = 2 * hits / (n + k)
        # added in the order of the ideal, so that a perfect list has exactly 1
        gains = np.cumsum(np.pad(hits_Ck * discount_K[: hits_Ck.shape[1]], ((0, 0), (1, 0))), axis=1)[:, -1]
        out[f"ndcg@{k}"] = gains / ideal
        out[f"mrr@{k}"] = np.divide(1.0, first, out=np.zeros(len(n)), where=first > 0)
        out[f"hit@{k}"] = (hits > 0).astype(np.float64)
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


def popularity_bias(ranked_CK: np.ndarray, users_N: np.ndarray, k: int) -> float:
    """How popular the shown items are, against what people choose: mean users of a shown item / mean users of the
    item of an interaction (sum p^2 / sum p over items). 1: as popular as the choices, more: more so; 0 where nothing is
    shown (after Abdollahpouri et al., RMSE at RecSys 2019, section 4)."""
    top = ranked_CK[:, :k]
    users_N = np.asarray(users_N, np.float64)
    typical = (users_N**2).sum() / max(users_N.sum(), 1)
    return float(users_N[top[top >= 0]].mean() / typical) if (top >= 0).any() and typical else 0.0


def diversity(ranked_CK: np.ndarray, vector_ND: np.ndarray, k: int) -> float:
    """Intra-list diversity: 1 - mean cosine over the pairs of a list, mean over lists (Ziegler et al., WWW 2005).

    An item with a zero row has no vector and is left out; a list with fewer than two vectors says nothing."""
    norm = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    unit = vector_ND / np.where(norm > 0, norm, 1)
    values = []
    for row in ranked_CK[:, :k]:
        v = unit[row[row >= 0]].astype(np.float64)
        v = v[v.any(1)]
        n = len(v)
        if n > 1:
            total = v.sum(0)
            values.append(1 - (total @ total - (v * v).sum()) / (n * (n - 1)))
    return float(np.mean(values)) if values else 0.0

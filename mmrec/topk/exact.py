"""Exact top-K over the full catalogue: the items, order and scores of a brute-force fp64 oracle.

In: user and item vectors (or a matrix of scores), seen items, allowed items. Out: `TopK`.
A score is the dot product summed in fp64 in one fixed order and rounded to fp32; order is score descending, then
item index ascending. A fast fp32 matrix product only nominates candidates: everything within a certified rounding
bound of the K-th score is scored again, so block size and thread count can't change the result.
Trade-off: a block of scores is written to memory and read back; a kernel that keeps tiles in cache would not.

Shape legend: B users, N items, D vector size, K places.
Bound: |fl(u.v) - u.v| <= gamma_D |u| |v|, gamma_D = D eps / (1 - D eps) (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed., section 3.1, with Cauchy-Schwarz).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_EPS = float(np.finfo(np.float32).eps) / 2

Seen = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TopK:
    """Ranked lists.

    Attributes:
        item: (B, K) int32, -1 behind the end of a short list. score: (B, K) float32, -inf there.
        dropped_users: rows with a NaN or infinity, which get no list. dropped_items: likewise, never offered.
    """

    item: np.ndarray
    score: np.ndarray
    dropped_users: int
    dropped_items: int


def search(
    user_BD: np.ndarray,
    item_ND: np.ndarray,
    k: int,
    *,
    seen: Seen | None = None,
    allowed: np.ndarray | None = None,
    block: int = 256,
) -> TopK:
    """The K best items of every user by dot product.

    Args:
        user_BD, item_ND: float32. seen: CSR (ptr (B + 1,) int64, item index int32) never to be offered.
        allowed: (N,) bool, items that may be offered; None: all.
        block: users scored at a time; memory is block x N x 4 bytes.
    """
    user_BD, item_ND = np.ascontiguousarray(user_BD, np.float32), np.ascontiguousarray(item_ND, np.float32)
    good_N, good_B = np.isfinite(item_ND).all(1), np.isfinite(user_BD).all(1)
    offer_N = good_N if allowed is None else good_N & allowed
    offer = np.flatnonzero(offer_N)
    place_N = np.full(len(item_ND), -1, np.int64)
    place_N[offer] = np.arange(len(offer))
    v_MD = item_ND[offer]
    out_i, out_s = _empty(len(user_BD), k)
    longest = float(np.sqrt((v_MD.astype(np.float64) ** 2).sum(1).max())) if len(offer) else 0.0
    gamma = (v_MD.shape[1] + 4) * _EPS * 1.01
    for start in range(0, len(user_BD) if len(offer) else 0, block):
        u_BD = user_BD[start : start + block]
        with np.errstate(over="ignore", invalid="ignore"):
            s_BM = u_BD @ v_MD.T
        bound_B = gamma * np.sqrt((u_BD.astype(np.float64) ** 2).sum(1)) * longest
        if not np.isfinite(s_BM[good_B[start : start + block]]).all():  # fp32 overflow: no shortcut
            s_BM = u_BD.astype(np.float64) @ v_MD.T.astype(np.float64)
        for b in np.flatnonzero(good_B[start : start + block]):
            row = s_BM[b]
            if seen is not None:
                gone = place_N[seen[1][seen[0][start + b] : seen[0][start + b + 1]]]
                row[gone[gone >= 0]] = -np.inf
            cand = _near(row, k, 2 * bound_B[b])
            exact = (u_BD[b].astype(np.float64) * v_MD[cand].astype(np.float64)).sum(1)
            _place(out_i, out_s, start + b, offer[cand], exact, k)
    return TopK(out_i, out_s, int((~good_B).sum()), int((~good_N).sum()))


def select(score_BN: np.ndarray, k: int, *, seen: Seen | None = None, allowed: np.ndarray | None = None) -> TopK:
    """The same lists from scores that are given, (B, N); a NaN is never offered."""
    out_i, out_s = _empty(len(score_BN), k)
    for b, scores in enumerate(score_BN):
        row = np.where(np.isnan(scores), -np.inf, scores).astype(np.float32)
        if allowed is not None:
            row[~allowed] = -np.inf
        if seen is not None:
            row[seen[1][seen[0][b] : seen[0][b + 1]]] = -np.inf
        cand = _near(row, k, 0.0)
        _place(out_i, out_s, b, cand, row[cand], k)
    return TopK(out_i, out_s, 0, int(np.isnan(score_BN).any(0).sum()))


def _near(row: np.ndarray, k: int, slack: float) -> np.ndarray:
    """Positions, ascending, of everything not excluded that can be among the best k."""
    if k < len(row):
        kth = np.partition(row, len(row) - k)[len(row) - k]
        if np.isfinite(kth):
            # compare in fp64: the slack may be below one fp32 step
            return np.flatnonzero(row.astype(np.float64) >= float(kth) - slack)
    return np.flatnonzero(row > -np.inf)


def _place(out_i: np.ndarray, out_s: np.ndarray, b: int, cand: np.ndarray, exact: np.ndarray, k: int) -> None:
    score = exact.astype(np.float32)
    order = np.lexsort((cand, -score))[:k]
    out_i[b, : len(order)] = cand[order]
    out_s[b, : len(order)] = score[order]


def _empty(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)

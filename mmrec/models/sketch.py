"""Contents as sketches: 64 small numbers an item, whose dot product is nearly the cosine of two items' contents.

In: contents of all modalities. Out: (N, 64) int8.
Contents side by side, each of unit length, are turned to their 64 main directions (uncentred, so that cosines stay what
they are), made of unit length again and rounded: a dot product of two is a sum of integers, the same on any machine and
in any order.
Trade-off: what lies beyond 64 directions is lost; in exchange an item is one line of a processor's cache.

Shape legend: N items, D vector size of all modalities, V columns of a sketch, S items that directions are found from.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

WIDE = 64  # columns of a sketch
ONE = 127  # a sketch's length
_LOOKED_AT = 20_000  # items, evenly spaced: more move the directions by less than rounding does


def sketched(content: list[np.ndarray]) -> np.ndarray:
    """(N, 64) int8 of contents side by side, a (N, D) array a modality; rows of zeros where there is none."""
    whole_ND = np.concatenate([_unit(c.astype(np.float64)) for c in content], 1)
    n, d = whole_ND.shape
    # on one thread: the order of sums, and with it the last bit, may depend on how many there are
    with threadpool_limits(1, user_api="blas"):
        if d > WIDE:
            some_SD = whole_ND[:: max(1, -(-n // _LOOKED_AT))]
            _, main_DV = eigh(some_SD.T @ some_SD, subset_by_index=(d - WIDE, d - 1))
            whole_ND = whole_ND @ main_DV
    out_NV = np.zeros((n, WIDE), np.int8)
    out_NV[:, : min(d, WIDE)] = np.rint(ONE * _unit(whole_ND))
    return out_NV


def _unit(x_ND: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND / np.where(norm > 0, norm, 1)

"""Lists that many look at: of an item, and of a segment of users; by the kernel that makes everyone's.

In: a night's vectors. Out: top K.
An item's likeness to another is the cosine of their vectors, of which a night's reasons speak, too. A segment's list
has the items with the greatest mean score among its users: the mean of dot products is the dot product with the mean.
Trade-off: a segment is one point; what its users like in different ways is averaged out.

Shape legend: U users, N items, Q asked items, S segments, D vector size, K places.
"""

from __future__ import annotations

import numpy as np

from mmrec.topk.catalogue import Catalogue
from mmrec.topk.exact import TopK, search


def similar(item_ND: np.ndarray, asked_Q: np.ndarray, k: int, *, device: str = "cpu") -> TopK:
    """The K most like each asked item, itself left out; an item without a finite vector is like none.

    Args:
        asked_Q: rows of `item_ND`.
    """
    norm_N1 = np.sqrt(np.square(item_ND, dtype=np.float64).sum(1, keepdims=True))
    with np.errstate(invalid="ignore"):
        unit_ND = (item_ND / np.where(norm_N1 > 0, norm_N1, 1)).astype(np.float32)
    itself = np.arange(len(asked_Q) + 1, dtype=np.int64), np.asarray(asked_Q, np.int32)
    return search(unit_ND[asked_Q], Catalogue(unit_ND, device=device), k, seen=itself)


def of_segments(
    user_UD: np.ndarray, segment_U: np.ndarray, n_segments: int, item_ND: np.ndarray, k: int, *, device: str = "cpu"
) -> tuple[TopK, np.ndarray]:
    """The K with the greatest mean score among the users of each segment.

    Args:
        segment_U: (U,) which segment a user is in, below `n_segments`; -1: in none. A user without a finite vector
            counts in none. A segment of nobody has no list.

    Returns: lists, scores are means; and (S,) int64 how many users each is made of.
    """
    counts_U = (segment_U >= 0) & np.isfinite(user_UD).all(1)
    users_S = np.bincount(segment_U[counts_U], minlength=n_segments)
    total_SD = np.zeros((n_segments, user_UD.shape[1]))
    np.add.at(total_SD, segment_U[counts_U], user_UD[counts_U].astype(np.float64))
    with np.errstate(invalid="ignore"):  # nobody's mean is no vector
        mean_SD = (total_SD / users_S[:, None]).astype(np.float32)
    return search(mean_SD, Catalogue(item_ND, device=device), k), users_S

"""Is the difference real: paired bootstrap, clustered by user.

In: one value a case from two models, and each case's user. Out: the mean difference and its 95% interval.
Trade-off: users are drawn, not cases, so a user with many windows counts as one draw; intervals are wider and true.
"""

from __future__ import annotations

import numpy as np

from mmrec.errors import InputError


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, user: np.ndarray, samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean of a - b, 2.5% and 97.5% percentile) over `samples` draws of users with replacement (Efron and
    Tibshirani 1993, 13.3; clusters as in Field and Welsh, JRSS-B 2007).

    Args:
        a, b: (C,) values of the same cases. user: (C,) whose case each is. seed: the same input and seed give the
            same numbers, in whatever order the cases come.

    Raises:
        InputError: shapes disagree, no case, a value that is not finite, samples below 1.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if np.shape(a) != np.shape(b) or np.shape(user) != difference.shape or not len(difference) or samples < 1:
        shapes = (np.shape(a), np.shape(b), np.shape(user), samples)
        raise InputError("Paired values don't fit.", value=shapes, valid="(C,) thrice, C and samples at least 1")
    if not np.isfinite(difference).all():
        raise InputError("A value is not finite.", value=int((~np.isfinite(difference)).sum()))
    # sums in one order, so that the order of the cases can't reach the last bit
    order = np.lexsort((difference, user))
    difference = difference[order]
    _, cluster = np.unique(np.asarray(user)[order], return_inverse=True)
    total, size = np.bincount(cluster, difference), np.bincount(cluster)
    n = len(total)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for s in range(samples):
        drawn = np.bincount(rng.integers(0, n, n), minlength=n)
        means[s] = (drawn @ total) / (drawn @ size)
    lo, hi = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), float(lo), float(hi)

"""Is the difference real: paired bootstrap, clustered by user.

In: one value a case from two models, and each case's user. Out: the mean difference and its 95% interval.
Trade-off: users are drawn, not cases, so a user with many windows counts as one draw; intervals are wider and true.
"""

from __future__ import annotations

import numpy as np


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, user: np.ndarray, samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean of a - b, 2.5% and 97.5% percentile) over `samples` draws of users with replacement (Efron and
    Tibshirani 1993, 13.3; clusters as in Field and Welsh, JRSS-B 2007)."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    _, cluster = np.unique(user, return_inverse=True)
    total, size = np.bincount(cluster, difference), np.bincount(cluster)
    n = len(total)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for s in range(samples):
        drawn = np.bincount(rng.integers(0, n, n), minlength=n)
        means[s] = (drawn @ total) / (drawn @ size)
    lo, hi = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), float(lo), float(hi)

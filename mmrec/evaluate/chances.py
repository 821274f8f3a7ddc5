"""Are foretold chances what comes of them, and do they part what comes from what does not.

In: chances of cases, whether it came, whose case each is. Out: a reliability table, its expected calibration error, a
difference of AUCs with its interval. Log loss, F1 and AUC of one model are scikit-learn's.
Bins are of one width (the expected calibration error as Guo et al., ICML 2017, have it), or of one number of cases:
where what is asked for is rare, nearly all cases share the first bin of one width, and only the latter says much.
Trade-off: users are drawn for the interval and not cases, as in significance.py; pairs of cases of two users are kept.

Shape legend: C cases, T distinct chances, B bins.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmrec.errors import InputError

BINS = 15


def reliability(chance: np.ndarray, came: np.ndarray, *, even: str = "width", bins: int = BINS) -> list[dict[str, Any]]:
    """Of each bin that holds a case: low, high (of its chances), count, predicted (their mean), observed (the share
    that came).

    Args:
        chance: (C,) in [0, 1]. came: (C,) bool. even: "width": bin b has b / B <= chance < (b + 1) / B, the last one 1,
            too; "count": as many cases a bin as can be, equal chances together.

    Raises: InputError: shapes disagree, no case, no chance, no such kind of bins.
    """
    chance, came = np.asarray(chance, np.float64), np.asarray(came, bool)
    if chance.shape != came.shape or chance.ndim != 1 or not len(chance) or bins < 1:
        raise InputError("Chances and outcomes don't fit.", where="reliability",
                         value=(chance.shape, came.shape, bins), valid="(C,) twice, C and bins at least 1",
                         next="mmrec bench clicks")  # fmt: skip
    wrong_C = ~((chance >= 0) & (chance <= 1))
    if wrong_C.any():
        raise InputError("A chance is none.", where=f"reliability, case {int(wrong_C.argmax())}",
                         value=float(chance[wrong_C][0]), valid="0 to 1", next="mmrec bench clicks")  # fmt: skip
    if even == "width":
        bin_C = np.minimum((chance * bins).astype(np.int64), bins - 1)
    elif even == "count":
        rank_C = np.searchsorted(np.sort(chance), chance)  # equal chances have the first one's place
        bin_C = rank_C * bins // len(chance)
    else:
        raise InputError("no such bins", where="reliability: even", value=even, valid=("width", "count"),
                         next="mmrec bench clicks")  # fmt: skip
    out = []
    for b in np.unique(bin_C):
        own = bin_C == b
        out.append({"low": float(chance[own].min()), "high": float(chance[own].max()), "count": int(own.sum()),
                    "predicted": float(chance[own].mean()), "observed": float(came[own].mean())})  # fmt: skip
    return out


def calibration_error(chance: np.ndarray, came: np.ndarray, *, even: str = "width", bins: int = BINS) -> float:
    """Mean over cases of |predicted - observed| of the case's bin. Raises: InputError: as `reliability`."""
    table = reliability(chance, came, even=even, bins=bins)
    return sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in table) / len(chance)


def auc_apart(
    a: np.ndarray, b: np.ndarray, came: np.ndarray, user: np.ndarray, samples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """(AUC of a less that of b, 2.5% and 97.5% percentile) over `samples` draws of users with replacement.

    Args:
        a, b: (C,) scores of the same cases. came: (C,) bool. user: (C,) whose case each is.

    Raises: InputError: shapes disagree, nothing came, or everything did.
    """
    came = np.asarray(came, bool)
    if not np.shape(a) == np.shape(b) == np.shape(user) == came.shape or not 0 < came.sum() < len(came):
        raise InputError("AUCs can't be told apart.", where="auc",
                         value=(np.shape(a), np.shape(b), np.shape(user), int(came.sum())),
                         valid="(C,) four times, some came and some did not", next="mmrec bench clicks")  # fmt: skip
    _, cluster_C = np.unique(user, return_inverse=True)
    n, rng = int(cluster_C.max()) + 1, np.random.default_rng(seed)
    place_C, other_C = (np.unique(x, return_inverse=True)[1] for x in (a, b))
    ones = np.ones(len(came))
    apart = _auc(place_C, came, ones) - _auc(other_C, came, ones)
    drawn = []
    while len(drawn) < samples:
        weight_C = np.bincount(rng.integers(0, n, n), minlength=n)[cluster_C].astype(np.float64)
        if 0 < weight_C[came].sum() < weight_C.sum():  # a draw without both says nothing
            drawn.append(_auc(place_C, came, weight_C) - _auc(other_C, came, weight_C))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(apart), float(low), float(high)


def _auc(place_C: np.ndarray, came: np.ndarray, weight_C: np.ndarray) -> float:
    """Chance that one that came has the higher place than one that did not, ties by half; by weighted cases."""
    yes_T, no_T = (np.bincount(place_C, weight_C * side, int(place_C.max()) + 1) for side in (came, ~came))
    below_T = np.cumsum(no_T) - no_T / 2
    return float(yes_T @ below_T / (yes_T.sum() * no_T.sum()))

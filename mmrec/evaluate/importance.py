"""What features of (user, item) pairs are worth to a model that puts pools in order, and which seem to know the future.

In: features of cases' pools, what was chosen, a fitted model's values. Out: a record a feature, the most useful first.
    mutual information   of the feature, in 32 bins of equal shares, and of being chosen, in nats: the plug-in estimate
                         less its bias (Miller, 1955; Paninski, Neural Computation 15, 2003, section 4.1), at least 0
    permutation          what ndcg@10 loses when the feature's values are exchanged (Breiman, Machine Learning 45, 2001,
                         section 10): within each pool, or among cases where a pool has one value; mean of five
    dropped              what it loses when the model is fitted without the feature
    redundant            the feature it is most alike: Spearman's correlation over all candidates of .95 and more
    leak                 alone it puts what was chosen above nine tenths of the others, and above clearly more than any
                         feature does that is trusted: what was known before the choice seldom does
Trade-off: permutation and dropping are of a feature beside all the others, so of two that say the same neither seems to
be worth much; that they do is what `redundant` tells.

Shape legend: B cases, C candidates of a pool, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import rankdata
from sklearn.metrics import mutual_info_score

from mmrec.errors import InputError
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.metrics import ranking

_BINS, _REPEATS, _ALIKE = 32, 5, 0.95
_LEAK, _CLEARLY = 0.9, 0.05  # share of the others that what was chosen is above; and how much more than what is trusted
_Values = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Ranked:
    """One feature; see the module. `permutation`, `dropped`: mean and 95% interval by draws of users; `alone`: share of
    a pool's other candidates that the feature by itself puts what was chosen above, in the direction that is best."""

    name: str
    mutual_information: float
    permutation: tuple[float, float, float]
    dropped: tuple[float, float, float] | None
    alone: float
    redundant_with: tuple[str, float] | None
    leak: str | None


def ranked(
    x_BCF: np.ndarray, there_BC: np.ndarray, wanted_BC: np.ndarray, user_B: np.ndarray, names: Sequence[str],
    values: _Values, *, without: Callable[[int], _Values] | None = None, trusted: Sequence[str] = (), seed: int = 0,
) -> list[Ranked]:  # fmt: skip
    """Features by what permuting them costs, descending, ties by name.

    Args:
        there_BC: whether there is a candidate; they come first. wanted_BC: whether it was chosen; one at least of each
            case. user_B: of cases. names: (F,). values: (B, C, F) -> (B, C) of the fitted model. without: feature ->
            the same of a model that was fitted without it; None: not asked. trusted: features that are known to be of
            before the choice, against which leaks are judged.

    Raises: InputError: shapes disagree, or a feature is not a number.
    """
    b, c, f = x_BCF.shape
    if there_BC.shape != (b, c) or wanted_BC.shape != (b, c) or len(user_B) != b or len(names) != f:
        shapes = [x_BCF.shape, there_BC.shape, wanted_BC.shape, len(names)]
        raise InputError("features and cases don't fit", value=shapes,
                         valid="(B, C, F), (B, C), (B, C), F names", next="pass one row for each case")  # fmt: skip
    strange = [name for name, bad in zip(names, ~np.isfinite(x_BCF[there_BC]).all(0), strict=True) if bad]
    if strange:
        raise InputError("a feature is not a number", where=strange[0], value="NaN or infinite", valid="finite values",
                         next="mmrec train --date D")  # fmt: skip
    chosen = _Chosen(there_BC, wanted_BC)
    own_B = chosen.ndcg(values(x_BCF))
    x_RF, rank_RF = x_BCF[there_BC], np.empty((int(there_BC.sum()), f))
    for n in range(f):
        rank_RF[:, n] = rankdata(x_RF[:, n])
    like_FF = _alike(rank_RF)
    alone = [chosen.above(x_BCF[..., n]) for n in range(f)]
    known = max([alone[n] for n, name in enumerate(names) if name in trusted], default=0.5)
    rng, found = np.random.default_rng(seed), []
    for n, name in enumerate(names):
        other = int(np.argmax(like_FF[n])) if f > 1 else n
        leaks = name not in trusted and alone[n] >= max(_LEAK, known + _CLEARLY)
        found.append(Ranked(
            name, _information(x_RF[:, n], wanted_BC[there_BC]),
            paired_bootstrap(own_B, _permuted(x_BCF, there_BC, n, values, chosen, rng), user_B),
            None if without is None else paired_bootstrap(own_B, chosen.ndcg(without(n)(x_BCF)), user_B), alone[n],
            (names[other], float(like_FF[n, other])) if like_FF[n, other] >= _ALIKE else None,
            f"alone it puts what was chosen above {alone[n]:.0%} of the others; what is known to be of before, above"
            f" {known:.0%}" if leaks else None))  # fmt: skip
    return sorted(found, key=lambda r: (-r.permutation[0], r.name))


def table(features: Sequence[Mapping[str, Any]]) -> Table:
    """What `ranked` found, each as a dictionary, for a person."""
    grid = Table()
    for head in ("feature", "permuted: ndcg@10 lost", "dropped", "MI", "alone", "remark"):
        grid.add_column(head, justify="left" if head in ("feature", "remark") else "right", overflow="fold")
    for r in features:
        like = r["redundant_with"]
        remark = f"leak? {r['leak']}" if r["leak"] else f"as {like[0]} ({like[1]:.2f})" if like else ""
        grid.add_row(r["name"], _interval(r["permutation"]), _interval(r["dropped"]), f"{r['mutual_information']:.4f}",
                     f"{r['alone']:.2f}", remark, style="bold red" if r["leak"] else "")  # fmt: skip
    return grid


def _interval(told: Sequence[float] | None) -> str:
    return "" if told is None else "{:+.4f}\n{:+.4f} to {:+.4f}".format(*told)


@dataclass(frozen=True)
class _Chosen:
    there_BC: np.ndarray
    wanted_BC: np.ndarray

    def ndcg(self, value_BC: np.ndarray) -> np.ndarray:
        """(B,) ndcg@10; ties in the order of the pool."""
        order_BC = np.argsort(-np.where(self.there_BC, value_BC, -np.inf), axis=1, kind="stable")
        place_BC = np.where(np.take_along_axis(self.there_BC, order_BC, 1), order_BC, -1)
        case, place = np.nonzero(self.wanted_BC)
        ptr = np.searchsorted(case, np.arange(len(value_BC) + 1))
        return ranking(place_BC[:, :10], ptr, place, ks=(10,))["ndcg@10"]

    def above(self, x_BC: np.ndarray) -> float:
        """Mean over cases of the share of pairs of a wanted and another candidate that a feature puts in order, ties
        half; of it and its negative the greater. Cases whose candidates are all wanted say nothing."""
        shares = []
        for x_C, there_C, wanted_C in zip(x_BC, self.there_BC, self.wanted_BC, strict=True):
            w, o = x_C[wanted_C], np.sort(x_C[there_C & ~wanted_C])
            if len(o):
                below, upto = np.searchsorted(o, w, "left"), np.searchsorted(o, w, "right")
                shares.append(float((below + upto).mean()) / (2 * len(o)))
        share = float(np.mean(shares)) if shares else 0.5
        return max(share, 1 - share)


def _permuted(
    x_BCF: np.ndarray, there_BC: np.ndarray, n: int, values: _Values, chosen: _Chosen, rng: np.random.Generator
) -> np.ndarray:
    """(B,) ndcg@10, the mean of some exchanges of one feature."""
    own_BC, total_B = x_BCF[..., n], np.zeros(len(x_BCF))
    flat = (np.where(there_BC, own_BC, own_BC[:, :1]) == own_BC[:, :1]).all()
    for _ in range(_REPEATS):
        if flat:
            mixed_BC = np.broadcast_to(own_BC[rng.permutation(len(own_BC)), :1], own_BC.shape)
        else:  # empty places come last and stay there
            order_BC = np.argsort(np.where(there_BC, rng.random(own_BC.shape), np.inf), axis=1)
            mixed_BC = np.take_along_axis(own_BC, order_BC, 1)
        x = x_BCF.copy()
        x[..., n] = np.where(there_BC, mixed_BC, own_BC)
        total_B += chosen.ndcg(values(x))
    return total_B / _REPEATS


def _information(x_R: np.ndarray, wanted_R: np.ndarray) -> float:
    edges = np.unique(np.quantile(x_R, np.arange(1, _BINS) / _BINS, method="higher"))
    bin_R = np.searchsorted(edges, x_R, side="right")
    cells = len(np.unique(2 * bin_R + wanted_R)) - len(np.unique(bin_R)) - len(np.unique(wanted_R)) + 1
    return max(0.0, float(mutual_info_score(bin_R, wanted_R)) - cells / (2 * len(x_R)))


def _alike(rank_RF: np.ndarray) -> np.ndarray:
    """(F, F) |Spearman's correlation|, 0 of a feature and itself and of what never varies."""
    off_RF = rank_RF - rank_RF.mean(0)
    long_F = np.sqrt((off_RF**2).sum(0))
    long_F[long_F == 0] = np.inf
    like_FF = np.abs((off_RF / long_F).T @ (off_RF / long_F))
    np.fill_diagonal(like_FF, 0)
    return like_FF

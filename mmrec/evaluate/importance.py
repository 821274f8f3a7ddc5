"""What each feature of (user, item) pairs is worth: alone, to the model that has it, and to one that never had it.

In: features of cases' pools, what was chosen, a fitted model's values. Out: a `Ranked` a feature, the most valued
first; a table for a person.
    mutual information   of the feature, cut at its quantiles, and the choice, over all candidates; plug-in estimate
                         less the bias of Miller and Madow (Miller, Note on the bias of information estimates, 1955):
                         (K_xy - K_x - K_y + 1) / 2n of K cells that are not empty; of few choices some bias stays
    permutation          what ndcg@10 loses when the feature is drawn anew (Breiman, Machine Learning 2001, section 10;
                         Fisher et al., JMLR 2019): within each pool, so that what a pool has stays what it has; among
                         cases where no pool holds two values of it, which is to say that it tells of users alone
    dropped              what it loses when the model is fitted again without it, and what is alike stands in
    redundant            Spearman's rank correlation within pools (ranks in a pool, less the pool's mean, of all pools
                         together); of two features of users alone, over all candidates
    leak                 see `_suspected`
ndcg is of what the pool holds: a choice that the first stage missed is nobody's loss here. Ties stand in the order in
which the pool came, as when it is served.
Trade-off: intervals are over users alone. Five draws of a permutation are averaged first, and what is left of the
draws' own chance is not in them.

Shape legend: B cases, C candidates of a pool, F features, R candidates of all pools that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from rich.text import Text
from scipy.stats import rankdata
from sklearn.metrics import mutual_info_score

from mmrec import metrics
from mmrec.errors import InputError
from mmrec.evaluate.significance import paired_bootstrap

_BINS, _REPEATS, _K = 32, 5, 10
_ALIKE, _NEARLY = 0.95, 0.9
_NEXT = "mmrec features rank, when that is mended"
_Values = Callable[[np.ndarray], np.ndarray]
_Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Ranked:
    """A feature; intervals are (mean, low, high), 95% by bootstrap over users.

    Attributes:
        mutual_information: nats. permutation, dropped: ndcg@10 lost; dropped is None where it was not asked.
        redundant_with: the feature it is most alike and Spearman's rho, from .95 of either sign on; None: like none.
        leak: why it is suspected to know the future; None: it is not.
    """

    name: str
    mutual_information: float
    permutation: _Interval
    dropped: _Interval | None
    redundant_with: tuple[str, float] | None
    leak: str | None


def ranked(
    x_BCF: np.ndarray, there_BC: np.ndarray, wanted_BC: np.ndarray, user_B: np.ndarray, names: Sequence[str],
    values: _Values, *, without: Callable[[int], _Values | None] | None = None, trusted: Sequence[str] = (),
    seed: int = 0,
) -> list[Ranked]:  # fmt: skip
    """By what permutation loses, descending, then by name. The same input and seed give the same, whatever the order of
    the features.

    Args:
        x_BCF: features; what they are where no candidate is does not matter. there_BC: whether there is a candidate.
        wanted_BC: whether it was chosen, one in each case at least. user_B: whose case it is.
        values: (B, C, F) -> (B, C) of the fitted model, asked of all cases, on a copy.
        without: position of a feature -> the same of a model that was fitted without it (it is given all F and must
            not look), asked once each; None: not asked, of any or of this one.
        trusted: names that are known not to know the future: the first stage's score.

    Raises: InputError: shapes or names don't fit, a feature or a value that is not finite, a case without a wanted
        candidate, no case with another beside it.
    """
    pools = _Pools(x_BCF, there_BC, wanted_BC, user_B, tuple(names))
    pools.check(trusted)
    base_B = pools.ndcg(pools.valued(values))
    lost_FB = _permuted(pools, values, base_B, seed)
    alone = [_alone(pools, f) for f in range(len(names))]
    near = [f for f, (right_B, _) in enumerate(alone) if names[f] not in trusted and right_B.mean() >= _NEARLY]
    twins = _twins(pools)
    found = []
    for f, name in enumerate(names):
        refit = without(f) if without is not None else None
        lost = paired_bootstrap(lost_FB[f], np.zeros(len(base_B)), user_B, seed=seed)
        less_B = None if refit is None else pools.ndcg(pools.valued(refit))
        dropped = None if less_B is None else paired_bootstrap(base_B, less_B, user_B, seed=seed)
        leak = _suspected(pools, alone, near, f, refit or values, seed) if f in near else None
        found.append(Ranked(name, _information(pools, f), lost, dropped, twins[f], leak))
    return sorted(found, key=lambda r: (-r.permutation[0], r.name))


def table(rows: Sequence[Ranked]) -> Table:
    """What `ranked` found, for a person, in 80 columns; who is suspected of what stands below."""
    asked, alike = any(r.dropped for r in rows), any(r.redundant_with for r in rows)
    suspects = "\n".join(f"{r.name}: suspected to know the future: {r.leak}" for r in rows if r.leak)
    grid = Table(title=f"what ndcg@{_K} loses, and 95% over users", caption=Text(suspects) if suspects else None,
                 caption_justify="left")  # fmt: skip
    grid.add_column("feature", overflow="fold")
    for head in ("nats", "permuted", "dropped")[: 3 if asked else 2]:
        grid.add_column(head, justify="right", no_wrap=True)
    if alike:
        grid.add_column("alike", overflow="fold")
    for r in rows:
        cells = [Text(r.name + (" (!)" if r.leak else "")), f"{r.mutual_information:.4f}", _cell(r.permutation)]
        cells += [_cell(r.dropped)] if asked else []
        twin = f"{r.redundant_with[0]} {r.redundant_with[1]:+.2f}" if r.redundant_with else ""
        grid.add_row(*cells, *([Text(twin)] if alike else []), style="bold" if r.leak else "")
    return grid


def _cell(lost: _Interval | None) -> str:
    return "" if lost is None else "{:+.4f}\n{:+.4f} {:+.4f}".format(*lost)


@dataclass(frozen=True)
class _Pools:
    """As `ranked` is given them."""

    x_BCF: np.ndarray
    there_BC: np.ndarray
    wanted_BC: np.ndarray
    user_B: np.ndarray
    names: tuple[str, ...]

    def check(self, trusted: Sequence[str]) -> None:
        shapes = tuple(map(np.shape, (self.x_BCF, self.there_BC, self.wanted_BC, self.user_B, self.names)))
        if len(shapes[0]) != 3 or shapes[1:] != (*(shapes[0][:2],) * 2, shapes[0][:1], shapes[0][2:]) or 0 in shapes[0]:
            raise InputError("Features and choices don't fit.", where="ranked", value=shapes, next=_NEXT,
                             valid="(B, C, F), (B, C) twice, (B,), (F,), none of them empty")  # fmt: skip
        if self.there_BC.dtype != bool or self.wanted_BC.dtype != bool:
            raise InputError("Whether is yes or no.", where="there_BC, wanted_BC", valid="bool", next=_NEXT,
                             value=(str(self.there_BC.dtype), str(self.wanted_BC.dtype)))  # fmt: skip
        if len(set(self.names)) < len(self.names):
            raise InputError("Two features have one name.", where="names", value=self.names, valid="each once",
                             next=_NEXT)  # fmt: skip
        if strange := set(trusted) - set(self.names):
            raise InputError("What is trusted is no feature.", where="trusted", value=sorted(strange), valid=self.names,
                             next=_NEXT)  # fmt: skip
        poor_B = ~self.wanted_BC.any(1) | (self.wanted_BC & ~self.there_BC).any(1)
        if poor_B.any():
            raise InputError("A case has no wanted candidate, or one that is not there.", value=int(poor_B.sum()),
                             where=f"case {int(poor_B.argmax())}", valid="a wanted candidate, there, in every case",
                             next="leave such cases out, then mmrec features rank")  # fmt: skip
        if not self.judged_B.any():
            raise InputError("No pool has anything beside what is wanted.", where="wanted_BC", value=len(self.user_B),
                             valid="a case with an unwanted candidate", next=_NEXT)  # fmt: skip
        for f, name in enumerate(self.names):
            bad_BC = ~np.isfinite(self.x_BCF[..., f]) & self.there_BC
            if bad_BC.any():
                b, c = np.argwhere(bad_BC)[0].tolist()
                raise InputError(f"A feature is not finite for {int(bad_BC.sum())} candidates.", valid="finite numbers",
                                 where=f"feature {name}, case {b}, candidate {c}", value=float(self.x_BCF[b, c, f]),
                                 next="fill it or leave it out, then mmrec features rank")  # fmt: skip

    @property
    def judged_B(self) -> np.ndarray:
        """(B,) whether a case can be ordered wrongly."""
        return (self.there_BC & ~self.wanted_BC).any(1)

    def valued(self, values: _Values, other: Mapping[int, np.ndarray] | None = None) -> np.ndarray:
        """(B, C) of a model, with some features replaced by other columns, (B, C) or (B, 1)."""
        x_BCF = self.x_BCF.copy()
        for f, column_BC in (other or {}).items():
            x_BCF[..., f] = column_BC
        value_BC = np.asarray(values(x_BCF), np.float64)
        if value_BC.shape != x_BCF.shape[:2] or not np.isfinite(value_BC[self.there_BC]).all():
            raise InputError("A model's values don't fit or are not finite.", where="values", value=value_BC.shape,
                             valid=f"{x_BCF.shape[:2]}, finite", next=_NEXT)  # fmt: skip
        return value_BC

    def ndcg(self, value_BC: np.ndarray) -> np.ndarray:
        """(B,) ndcg@10 of the pools in a value's order."""
        order_BK = np.argsort(-np.where(self.there_BC, value_BC, -np.inf), axis=1, kind="stable")[:, :_K]
        ranked_BK = np.where(np.take_along_axis(self.there_BC, order_BK, 1), order_BK, -1)
        ptr = np.concatenate([[0], np.cumsum(self.wanted_BC.sum(1))])
        return metrics.ranking(ranked_BK, ptr, np.nonzero(self.wanted_BC)[1], (_K,))[f"ndcg@{_K}"]

    def ranks(self, value_BC: np.ndarray) -> np.ndarray:
        """(B, C) in the pool, from 1, ties at their mean."""
        return rankdata(np.where(self.there_BC, value_BC, np.inf), axis=1)

    def right(self, value_BC: np.ndarray) -> np.ndarray:
        """(judged cases,) area under the curve within the pool: the share of pairs of a wanted and an unwanted
        candidate in which the wanted has more, ties half."""
        own = self.judged_B
        rank_BC, wanted_BC = self.ranks(value_BC)[own], self.wanted_BC[own]
        n_B = wanted_BC.sum(1)
        above_B = np.where(wanted_BC, rank_BC, 0).sum(1) - n_B * (n_B + 1) / 2
        return above_B / (n_B * (self.there_BC[own].sum(1) - n_B))

    def varies(self, f: int) -> bool:
        """Whether a pool holds two values of it."""
        x_BC, there_BC = self.x_BCF[..., f], self.there_BC
        return bool((np.where(there_BC, x_BC, -np.inf).max(1) > np.where(there_BC, x_BC, np.inf).min(1)).any())


def _permuted(pools: _Pools, values: _Values, base_B: np.ndarray, seed: int) -> np.ndarray:
    """(F, B) ndcg lost, mean of the draws; all features are drawn alike."""
    there_BC, cases = pools.there_BC, np.arange(len(base_B))
    varies = [pools.varies(f) for f in range(len(pools.names))]
    place_BC = np.argsort(~there_BC, axis=1, kind="stable")
    lost_FB = np.zeros((len(pools.names), len(base_B)))
    for repeat in range(_REPEATS):
        rng = np.random.default_rng([seed, repeat])
        # those who are there in a drawn order, and behind them, as in `place_BC`, who is not
        drawn_BC = np.argsort(np.where(there_BC, rng.random(there_BC.shape), 2.0), axis=1, kind="stable")
        case_B = rng.permutation(cases)
        for f, within in enumerate(varies):
            x_BC = pools.x_BCF[..., f]
            column_BC = np.empty_like(x_BC)
            if within:
                np.put_along_axis(column_BC, place_BC, np.take_along_axis(x_BC, drawn_BC, 1), 1)
            else:
                column_BC[:] = x_BC[cases, place_BC[:, 0]][case_B, None]
            lost_FB[f] += base_B - pools.ndcg(pools.valued(values, {f: column_BC}))
    return lost_FB / _REPEATS


def _information(pools: _Pools, f: int) -> float:
    x_R, wanted_R = pools.x_BCF[..., f][pools.there_BC], pools.wanted_BC[pools.there_BC]
    cut, times = np.unique(np.quantile(x_R, np.arange(1, _BINS) / _BINS, method="inverted_cdf"), return_counts=True)
    # a value that is two quantiles has a bin of its own: what is filled for a few alone is mostly one value
    bin_R = 2 * np.searchsorted(cut, x_R) + np.isin(x_R, cut[times > 1])
    count = np.bincount(2 * bin_R + wanted_R, minlength=4 * len(cut) + 4).reshape(-1, 2)
    kinds = [int((c > 0).sum()) for c in (count, count.sum(1), count.sum(0))]
    bias = (kinds[0] - kinds[1] - kinds[2] + 1) / (2 * len(x_R))
    return max(0.0, float(mutual_info_score(None, None, contingency=count[count.any(1)])) - bias)


def _twins(pools: _Pools) -> list[tuple[str, float] | None]:
    """Of each feature the most alike other. One that varies within pools and one of users alone are never: the ranks of
    the first add up to nothing in any pool."""
    there_BC = pools.there_BC
    rank_FR = np.empty((len(pools.names), int(there_BC.sum())), np.float32)
    for f in range(len(pools.names)):
        if pools.varies(f):
            share_BC = pools.ranks(pools.x_BCF[..., f]) / there_BC.sum(1, keepdims=True)
            rank_FR[f] = (share_BC - share_BC.mean(1, where=there_BC, keepdims=True))[there_BC]
        else:
            rank_R = rankdata(pools.x_BCF[..., f][there_BC]) / rank_FR.shape[1]
            rank_FR[f] = rank_R - rank_R.mean()
    length_F = np.linalg.norm(rank_FR, axis=1)
    rank_FR /= np.where(length_F > 0, length_F, 1)[:, None]
    alike_FF = np.clip(rank_FR @ rank_FR.T, -1, 1)
    np.fill_diagonal(alike_FF, 0)
    likes = [[(round(float(rho), 4), name) for rho, name in zip(row, pools.names, strict=True)] for row in alike_FF]
    best = [min(own, key=lambda like: (-abs(like[0]), like[1])) for own in likes]  # four places: the rest is rounding
    return [(name, rho) if abs(rho) >= _ALIKE else None for rho, name in best]


def _alone(pools: _Pools, f: int) -> tuple[np.ndarray, str]:
    """(judged cases,) pairs that a feature orders rightly, read the way that orders most, and that way in words."""
    x_BC = pools.x_BCF[..., f]
    value, times = np.unique(x_BC[pools.there_BC], return_counts=True)
    common = value[times.argmax()]
    more_B, filled_B = pools.right(x_BC), pools.right(x_BC != common)
    ways = [(more_B, "the more, the better"), (1 - more_B, "the less, the better"),
            (filled_B, f"best where not {common:g}"), (1 - filled_B, f"best at {common:g}")]  # fmt: skip
    return max(ways, key=lambda way: way[0].mean())


def _suspected(
    pools: _Pools, alone: Sequence[tuple[np.ndarray, str]], near: Sequence[int], f: int, values: _Values, seed: int
) -> str | None:
    """A feature knows the future if it alone orders nine of ten pairs of a wanted and an unwanted candidate rightly,
    and fewer than half as many wrongly as all that is above suspicion does, by the interval over users.

    What is near to suspicion is what orders nine of ten and is not trusted. Of the rest, that counts which orders more:
    the model (without the feature, where there is one), each near feature held at its mean in the pool, or the best
    single feature. All near ones are held at once, or two leaks would vouch for each other. Held, and not permuted:
    a permuted feature of much weight would drown what the rest says, and strong honest features would be suspected.
    From .8 to .9 and from .98 to .99 is the same step: half the errors. A column that is filled for what was bought
    alone is read as filled or not, too. An honest feature above .9 and twice as good as all others looks like a leak
    and is one to look at: `trusted` says that someone has. What tells of users alone, or leaks into few cases, is never
    suspected.
    """
    held = {g: pools.x_BCF[..., g].mean(1, where=pools.there_BC, keepdims=True) for g in near}
    rest = [pools.right(pools.valued(values, held)), *(a for g, (a, _) in enumerate(alone) if g not in near)]
    rest_B = max(rest, key=np.mean)
    own_B, way = alone[f]
    _, low, _ = paired_bootstrap((1 - rest_B) / 2, 1 - own_B, pools.user_B[pools.judged_B], seed=seed)
    if low <= 0:
        return None
    return (f"alone ({way}) it orders {own_B.mean():.1%} of pairs of a wanted and another candidate rightly, "
            f"all that is above suspicion {rest_B.mean():.1%}")  # fmt: skip

"""What a rating head sees of a (user, item, moment): the one place where its numbers are named and reckoned.

In: `Ratings` that are known, pairs that are asked for. Out: a baseline, and (Q, F) float32 of what else is known.
Of a pair that is learned from, all of it is reckoned without its rating: the rows are cut into parts, and each part is
seen by a `Known` of the others. A residual is a rating less the baseline, mean + b_u + b_i.
    user_bias, item_bias        b_u, b_i
    user_count, item_count      log(1 + ratings)
    user_spread, item_spread    root of the mean squared residual, as if five more ratings had the mean one
    neighbours, support         residual expected by item neighbours, log(1 + their likeness)
    factors                     residual expected by biased factors
    genre                       mean over the item's genres of the user's mean residual there, eight more being zero
    taste                       ridge regression of the user's residuals on the item's genres, year, popularity, bias
    year, age                   of the item; from it to the moment, in years
    since                       log(1 + days since the user's first rating)
    minutes, days               mean residual of the user's 5 (20) ratings nearest in time, before or after, each
                                weighing exp(-distance / 10 minutes (1 day)), two more being zero
Trade-off: every part fits all models anew, which costs as many fits as there are parts, and a pair that is learned from
is seen by a little less than one that is asked for; in return nothing has to be taken out of a fit in closed form.

Shape legend: E ratings, Q pairs asked for, U users, N items, G genres, Z attributes of an item, F features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np

from mmrec.errors import InputError
from mmrec.models.ratings import BiasedFactors, Biases, RatingNeighbours, Ratings
from mmrec.topk.compiled import jit

FEATURES = (
    "user_bias", "item_bias", "user_count", "item_count", "user_spread", "item_spread", "neighbours", "support",
    "factors", "genre", "taste", "year", "age", "since", "minutes", "days",
)  # fmt: skip
_FEW, _GENRE, _RIDGE, _CLOSE = 5.0, 8.0, 10.0, 2.0  # ratings that a mean is drawn by
_DAY, _MINUTE = 86_400e6, 60e6
_NEAREST = ((5, 10 * _MINUTE), (20, _DAY))


@dataclass(frozen=True)
class Parts:
    """Settings of the models that a head stands on."""

    biases: Biases = field(default_factory=Biases)
    factors: BiasedFactors = field(default_factory=BiasedFactors)
    neighbours: RatingNeighbours = field(default_factory=RatingNeighbours)

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def of(cls, told: dict[str, Any]) -> Self:
        """What `told` said."""
        near = told["neighbours"] | {"biases": Biases(**told["neighbours"]["biases"])}
        return cls(Biases(**told["biases"]), BiasedFactors(**told["factors"]), RatingNeighbours(**near))


@dataclass(frozen=True)
class Sample:
    """Pairs and what came of them. base_Q, value_Q: (Q,) float64. x_QF: (Q, F) float32."""

    base_Q: np.ndarray
    x_QF: np.ndarray
    value_Q: np.ndarray

    @classmethod
    def out_of_fold(cls, ratings: Ratings, parts: Parts, folds: int = 5, seed: int = 0) -> Self:
        """Every row, in order, as those see it that are in other parts than its own (Wolpert, Neural Networks 1992).

        Raises: InputError: fewer than two parts, or more than rows.
        """
        n = len(ratings.value)
        if not 2 <= folds <= n:
            raise InputError("ratings can't be cut so", where="out of fold", value=folds, valid=f"2 to {n} parts",
                             next="mmrec bench ratings --root FOLDER")  # fmt: skip
        part_E = np.random.default_rng(seed).permutation(n) % folds
        base_E, x_EF = np.zeros(n), np.zeros((n, len(FEATURES)), np.float32)
        for part in range(folds):
            own = part_E == part
            seen = Known(ratings.some(~own), parts).sample(ratings.some(own))
            base_E[own], x_EF[own] = seen.base_Q, seen.x_QF
        return cls(base_E, x_EF, ratings.value)


class Known:
    """What rows of ratings tell of any pair."""

    def __init__(self, ratings: Ratings, parts: Parts) -> None:
        self.ratings = ratings
        self.biases = replace(parts.biases).fit(ratings)
        self.factors, self.neighbours = replace(parts.factors).fit(ratings), replace(parts.neighbours).fit(ratings)
        user, item, (users, items) = ratings.user, ratings.item, ratings.shape
        self.left_E = ratings.value - self.biases.predict(user, item)
        self.size_U, self.size_N = np.bincount(user, minlength=users), np.bincount(item, minlength=items)
        usual = _FEW * float(np.square(self.left_E).mean())
        self.spread_U, self.spread_N = (
            np.sqrt((np.bincount(at, np.square(self.left_E), len(size)) + usual) / (size + _FEW))
            for at, size in ((user, self.size_U), (item, self.size_N)))  # fmt: skip
        with_year = np.isfinite(ratings.year_N[item])
        middle = float(ratings.year_N[item][with_year].mean()) if with_year.any() else 0.0
        self.year_N = np.where(np.isfinite(ratings.year_N), ratings.year_N, middle)
        self.first_U = np.full(users, np.inf)
        np.minimum.at(self.first_U, user, ratings.ts_us)
        self._taste()

    def _taste(self) -> None:
        """(U, G) and (U, Z): what a user makes of genres, one by one, and of all attributes together."""
        of = self.ratings
        ends, users = of.by_user, of.shape[0]
        genre_NG = of.genre_NG.astype(np.float64)
        year_N, count_N = _standard(self.year_N, of.item), _standard(np.log1p(self.size_N), of.item)
        bias_N = _standard(self.biases.item_N, of.item)
        self.many_N = np.maximum(genre_NG.sum(1), 1)
        self.about_NZ = np.column_stack(
            [genre_NG / np.sqrt(self.many_N)[:, None], year_N, np.square(year_N), count_N, bias_N])  # fmt: skip
        wide = self.about_NZ.shape[1]
        gram_UZZ, right_UZ = np.tile(_RIDGE * np.eye(wide), (users, 1, 1)), np.zeros((users, wide))
        self.genre_UG = np.zeros((users, genre_NG.shape[1]))
        for u in range(users):
            rows = slice(ends[u], ends[u + 1])
            about_EZ, has_EG, left_E = self.about_NZ[of.item[rows]], genre_NG[of.item[rows]], self.left_E[rows]
            gram_UZZ[u] += about_EZ.T @ about_EZ
            right_UZ[u] = left_E @ about_EZ
            self.genre_UG[u] = left_E @ has_EG / (has_EG.sum(0) + _GENRE)
        self.taste_UZ = np.linalg.solve(gram_UZZ, right_UZ[:, :, None])[:, :, 0]

    def features(self, user_Q: np.ndarray, item_Q: np.ndarray, ts_us_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(Q,) float64 baseline, (Q, F) float32. A pair's numbers depend on no other pair that is asked for.

        Args:
            user_Q, item_Q: (Q,) int, of the known users and items. ts_us_Q: (Q,) int64, when the rating is given.

        Raises: InputError: a pair outside the known users and items.
        """
        of, base_Q = self.ratings, self.biases.predict(user_Q, item_Q)
        near_Q, support_Q = self.neighbours.residual(user_Q, item_Q)
        near_Q += self.neighbours.biases.predict(user_Q, item_Q) - base_Q
        genre_Q = np.einsum("qg,qg->q", self.genre_UG[user_Q], of.genre_NG[item_Q]) / self.many_N[item_Q]
        taste_Q = np.einsum("qz,qz->q", self.taste_UZ[user_Q], self.about_NZ[item_Q])
        age_Q = 1970 + ts_us_Q / (365.25 * _DAY) - self.year_N[item_Q]
        since_Q = np.log1p(np.maximum(ts_us_Q - self.first_U[user_Q], 0) / _DAY)
        moments = [np.zeros(len(base_Q)) for _ in _NEAREST]
        for out_Q, (k, reach) in zip(moments, _NEAREST, strict=True):
            _about_then(of.by_user, of.ts_us, self.left_E, user_Q, ts_us_Q, k, reach, _CLOSE, out_Q)
        columns = (
            self.biases.user_U[user_Q], self.biases.item_N[item_Q], np.log1p(self.size_U)[user_Q],
            np.log1p(self.size_N)[item_Q], self.spread_U[user_Q], self.spread_N[item_Q], near_Q, np.log1p(support_Q),
            self.factors.predict(user_Q, item_Q) - base_Q, genre_Q, taste_Q, self.year_N[item_Q], age_Q, since_Q,
            *moments,
        )  # fmt: skip
        return base_Q, np.column_stack(columns).astype(np.float32)

    def sample(self, asked: Ratings) -> Sample:
        """Rows that are none of the known ones."""
        return Sample(*self.features(asked.user, asked.item, asked.ts_us), asked.value)


def _standard(x_N: np.ndarray, item_E: np.ndarray) -> np.ndarray:
    """By mean and spread over ratings, at most three spreads off."""
    return np.clip((x_N - x_N[item_E].mean()) / max(float(x_N[item_E].std()), 1e-9), -3, 3)


@jit
def _about_then(ptr, ts_E, left_E, user_Q, ts_Q, k, reach, close, out_Q):
    for q in range(len(user_Q)):
        first, last, now = ptr[user_Q[q]], ptr[user_Q[q] + 1], ts_Q[q]
        above = first + np.searchsorted(ts_E[first:last], now)
        below, total, weight = above - 1, 0.0, 0.0
        for _ in range(min(k, last - first)):
            # the nearer one; of two as near, the later
            if above < last and (below < first or ts_E[above] - now <= now - ts_E[below]):
                e, above = above, above + 1
            else:
                e, below = below, below - 1
            w = np.exp(-abs(ts_E[e] - now) / reach)
            total += w * left_E[e]
            weight += w
        out_Q[q] = total / (weight + close)

"""Explicit ratings, and three ways to foretell one: by biases, by factors, by neighbours.

In: rows of user, item, rating and moment; genres and years of items. Out: the rating that is expected of a pair.
Whatever is fitted knows the rows that it is given and no others: to leave a rating out is to fit on `Ratings.some` that
lack it. A user or an item without a row has a bias of zero, factors that are near it, and no neighbours.
Trade-off: of a pair that was rated more than once, the last rating is all that is kept.

Shape legend: E ratings, Q pairs asked for, U users, N items, G genres, K factors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from mmrec.errors import InputError
from mmrec.topk.compiled import jit

_NEXT = "mmrec bench ratings --root FOLDER"
_SWEEPS = 10  # of biases: each pass moves them by less than a tenth of the one before
_START = 0.02  # spread of the first factors; from .1 they end at a worse place


@dataclass(frozen=True)
class Ratings:
    """Rows by user, then moment, then item; a pair has one.

    Attributes:
        user_ids: (U,), item_ids: (N,) object arrays of str, ascending in UTF-8 byte order.
        user, item: (E,) int32. value: (E,) float64. ts_us: (E,) int64, microseconds UTC since 1970.
        genre_NG: (N, G) bool. year_N: (N,) float64, NaN where it is not known.
    """

    user_ids: np.ndarray
    item_ids: np.ndarray
    user: np.ndarray
    item: np.ndarray
    value: np.ndarray
    ts_us: np.ndarray
    genre_NG: np.ndarray
    year_N: np.ndarray

    @classmethod
    def of(
        cls, users: Sequence[str], items: Sequence[str], values: Sequence[float] | np.ndarray,
        ts_us: Sequence[int] | np.ndarray, genres: Mapping[str, Sequence[str]] | None = None,
        years: Mapping[str, float] | None = None,
    ) -> Self:  # fmt: skip
        """Dense views of E rows in any order. genres, years: of items by id, as far as they are known.

        Raises: InputError: columns of different lengths, no row, a rating that is not finite.
        """
        if len({len(users), len(items), len(values), len(ts_us)}) > 1 or not len(users):
            raise InputError("columns of ratings don't fit", where="ratings", value=[len(users), len(items),
                             len(values), len(ts_us)], valid="one length, at least 1", next=_NEXT)  # fmt: skip
        value, ts = np.asarray(values, np.float64), np.asarray(ts_us, np.int64)
        if not (finite := np.isfinite(value)).all():
            row = int(np.argmin(finite))
            raise InputError("a rating is not a number", where=f"ratings, row {row}", value=float(value[row]),
                             valid="a finite number", next=_NEXT)  # fmt: skip
        # numpy sorts str by code points, which is the order of their bytes in UTF-8
        user_ids, user = np.unique(np.array(users, object), return_inverse=True)
        item_ids, item = np.unique(np.array(items, object), return_inverse=True)
        last = np.lexsort((value, ts, item, user))  # of one pair, one moment and two ratings: the higher
        pair = user[last] * len(item_ids) + item[last]
        last = last[np.append(pair[1:] != pair[:-1], True)]
        rows = last[np.lexsort((item[last], ts[last], user[last]))]
        known = sorted({g for i in item_ids for g in (genres or {}).get(i, ())})
        own = [set((genres or {}).get(i, ())) for i in item_ids]
        genre_NG = np.array([[g in has for g in known] for has in own], bool).reshape(len(item_ids), len(known))
        year_N = np.array([(years or {}).get(i, np.nan) for i in item_ids], np.float64)
        return cls(user_ids, item_ids, user[rows].astype(np.int32), item[rows].astype(np.int32), value[rows], ts[rows],
                   genre_NG, year_N)  # fmt: skip

    def some(self, rows: np.ndarray) -> Self:
        """Those rows alone, of the same users and items. `rows`: (R,) int, or (E,) bool.

        Raises: InputError: no row is left.
        """
        rows = np.sort(np.arange(len(self.value))[rows])
        if not len(rows):
            raise InputError("no rating is left", where="ratings", value=0, valid="at least 1", next=_NEXT)
        return replace(self, user=self.user[rows], item=self.item[rows], value=self.value[rows], ts_us=self.ts_us[rows])

    @property
    def shape(self) -> tuple[int, int]:
        """Users, items."""
        return len(self.user_ids), len(self.item_ids)

    @cached_property
    def by_user(self) -> np.ndarray:
        """(U + 1,) int64: user u owns rows by_user[u]:by_user[u + 1]."""
        return np.searchsorted(self.user, np.arange(len(self.user_ids) + 1)).astype(np.int64)


@dataclass
class Biases:
    """mean + b_u + b_i, drawn to zero as by `user` more ratings of nothing from a user and `item` more of an item
    (Koren, TKDD 2010, section 2.1); least squares, solved in turns, items first."""

    user: float = 3.0
    item: float = 3.0

    def fit(self, ratings: Ratings) -> Self:
        users, items = ratings.shape
        self.mean, self.user_U, self.item_N = float(ratings.value.mean()), np.zeros(users), np.zeros(items)
        size_U, size_N = np.bincount(ratings.user, minlength=users), np.bincount(ratings.item, minlength=items)
        for _ in range(_SWEEPS):
            left_E = ratings.value - self.mean - self.user_U[ratings.user]
            self.item_N = np.bincount(ratings.item, left_E, items) / np.maximum(size_N + self.item, 1e-9)
            left_E = ratings.value - self.mean - self.item_N[ratings.item]
            self.user_U = np.bincount(ratings.user, left_E, users) / np.maximum(size_U + self.user, 1e-9)
        return self

    def predict(self, user_Q: np.ndarray, item_Q: np.ndarray) -> np.ndarray:
        """(Q,) float64. Raises: InputError: a pair outside the fit's users and items."""
        _within(user_Q, item_Q, len(self.user_U), len(self.item_N))
        return self.mean + self.user_U[user_Q] + self.item_N[item_Q]


@dataclass
class BiasedFactors:
    """mean + b_u + b_i + p_u.q_i by stochastic gradients, all learned together (Koren, Bell and Volinsky, IEEE Computer
    2009, eq. 5); one row after another in an order that the seed draws anew each epoch, so the same seed gives the same
    bits."""

    factors: int = 256
    reg: float = 0.05
    epochs: int = 36
    lr: float = 0.01
    bias_reg: float = 0.05
    seed: int = 0

    def fit(self, ratings: Ratings, watch: Callable[[int], bool] | None = None) -> Self:
        """`watch`: told each epoch that is over, as a fit of so many would leave the model; true ends the fit.

        Raises: InputError: a gradient step that diverges.
        """
        (users, items), draw = ratings.shape, np.random.default_rng(self.seed)
        self.mean, self.user_U, self.item_N = float(ratings.value.mean()), np.zeros(users), np.zeros(items)
        self.user_UK, self.item_NK = (draw.normal(0, _START, (n, self.factors)) for n in (users, items))
        left_E = ratings.value - self.mean
        for epoch in range(1, self.epochs + 1):
            order_E = draw.permutation(len(left_E))
            _descend(order_E, ratings.user, ratings.item, left_E, self.user_U, self.item_N, self.user_UK, self.item_NK,
                     self.lr, self.reg, self.bias_reg)  # fmt: skip
            if not np.isfinite(self.user_UK).all():
                raise InputError("the factors diverge", where=f"biased factors, epoch {epoch}", value=self.lr,
                                 valid="a smaller lr", next=_NEXT)  # fmt: skip
            if watch is not None and watch(epoch):
                break
        return self

    def predict(self, user_Q: np.ndarray, item_Q: np.ndarray) -> np.ndarray:
        """(Q,) float64. Raises: InputError: a pair outside the fit's users and items."""
        _within(user_Q, item_Q, len(self.user_U), len(self.item_N))
        dot_Q = np.einsum("qk,qk->q", self.user_UK[user_Q], self.item_NK[item_Q])
        return self.mean + self.user_U[user_Q] + self.item_N[item_Q] + dot_Q


@dataclass
class RatingNeighbours:
    """The baseline and the mean residual of the user's `k` items most like the item (Koren, TKDD 2010, eq. 3).

    Alike is Pearson's correlation around the baseline over the n users of both, times (n - 1) / (n - 1 + shrink); what
    is not above zero, or has one user, is no neighbour; of equals, what the user rated first. The mean is drawn to zero
    by `damp` of weight (Bell and Koren, ICDM 2007), so that few or weak neighbours say little.
    """

    k: int = 20
    shrink: float = 200.0
    damp: float = 0.2
    biases: Biases = field(default_factory=Biases)

    def fit(self, ratings: Ratings) -> Self:
        """Raises: InputError: no neighbour is allowed."""
        if self.k < 1:
            raise InputError("no neighbour is allowed", where="rating neighbours: k", value=self.k,
                             valid="at least 1", next=_NEXT)  # fmt: skip
        self.biases = replace(self.biases).fit(ratings)
        self._ratings, self._left_E = ratings, ratings.value - self.biases.predict(ratings.user, ratings.item)
        self._by_item_E = np.argsort(ratings.item, kind="stable")
        return self

    def residual(self, user_Q: np.ndarray, item_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(Q,) float64 what neighbours add to the baseline, and the sum of their likeness.

        Raises: InputError: a pair outside the fit's users and items.
        """
        of, left_E, by_item_E = self._ratings, self._left_E, self._by_item_E
        _within(user_Q, item_Q, *of.shape)
        places = np.arange(len(of.item_ids) + 1)
        asked_Q = np.argsort(item_Q, kind="stable")
        value_Q, support_Q = np.zeros(len(asked_Q)), np.zeros(len(asked_Q))
        _near(of.by_user, of.item, left_E, np.searchsorted(of.item[by_item_E], places), of.user[by_item_E],
              left_E[by_item_E], np.searchsorted(item_Q[asked_Q], places), user_Q[asked_Q], asked_Q, self.k,
              float(self.shrink), float(self.damp), value_Q, support_Q)  # fmt: skip
        return value_Q, support_Q

    def predict(self, user_Q: np.ndarray, item_Q: np.ndarray) -> np.ndarray:
        """(Q,) float64. Raises: InputError: a pair outside the fit's users and items."""
        return self.biases.predict(user_Q, item_Q) + self.residual(user_Q, item_Q)[0]


def _within(user_Q: np.ndarray, item_Q: np.ndarray, users: int, items: int) -> None:
    for name, at_Q, n in (("user", user_Q, users), ("item", item_Q, items)):
        if len(at_Q) and not 0 <= at_Q.min() <= at_Q.max() < n:
            raise InputError(f"no such {name}", where=f"pairs, {name}", value=[int(at_Q.min()), int(at_Q.max())],
                             valid=f"0 to {n - 1}", next=_NEXT)  # fmt: skip


@jit
def _descend(order_E, user_E, item_E, left_E, user_U, item_N, user_UK, item_NK, lr, reg, bias_reg):
    for e in order_E:
        u, i = user_E[e], item_E[e]
        miss = left_E[e] - user_U[u] - item_N[i]
        for k in range(user_UK.shape[1]):
            miss -= user_UK[u, k] * item_NK[i, k]
        user_U[u] += lr * (miss - bias_reg * user_U[u])
        item_N[i] += lr * (miss - bias_reg * item_N[i])
        for k in range(user_UK.shape[1]):
            p, q = user_UK[u, k], item_NK[i, k]
            user_UK[u, k] += lr * (miss * q - reg * p)
            item_NK[i, k] += lr * (miss * p - reg * q)


@jit
def _near(
    u_ptr, u_item, u_left, i_ptr, i_user, i_left, q_ptr, q_user, q_at, k, shrink, damp, value_Q, support_Q
):  # fmt: skip
    # one item's sums with all others at a time: no N x N matrix is ever there
    items = len(i_ptr) - 1
    both, xy, xx, yy = np.zeros(items), np.zeros(items), np.zeros(items), np.zeros(items)
    best, at = np.zeros(k), np.zeros(k, np.int64)
    for i in range(items):
        if q_ptr[i] == q_ptr[i + 1]:
            continue
        both[:], xy[:], xx[:], yy[:] = 0, 0, 0, 0
        for e in range(i_ptr[i], i_ptr[i + 1]):
            x = i_left[e]
            for f in range(u_ptr[i_user[e]], u_ptr[i_user[e] + 1]):
                j, y = u_item[f], u_left[f]
                both[j] += 1
                xy[j] += x * y
                xx[j] += x * x
                yy[j] += y * y
        for q in range(q_ptr[i], q_ptr[i + 1]):
            size, total, weight = 0, 0.0, 0.0
            for f in range(u_ptr[q_user[q]], u_ptr[q_user[q] + 1]):
                j = u_item[f]
                if j == i or both[j] < 2 or xy[j] <= 0:
                    continue
                like = xy[j] / np.sqrt(xx[j] * yy[j]) * (both[j] - 1) / (both[j] - 1 + shrink)
                if size < k:
                    size += 1
                elif like <= best[size - 1]:
                    continue
                p = size - 1
                while p > 0 and best[p - 1] < like:
                    best[p], at[p] = best[p - 1], at[p - 1]
                    p -= 1
                best[p], at[p] = like, f
            for p in range(size):
                total += best[p] * u_left[at[p]]
                weight += best[p]
            if weight > 0:
                value_Q[q_at[q]], support_Q[q_at[q]] = total / (weight + damp), weight

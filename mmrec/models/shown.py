"""What was shown and what came of it: impressions, and what earlier ones tell of one.

In: impressions as silver.impressions has them, dense, and when each click was known. Out: (Q, F) float32 of an
impression, from days before its own.
    user_rate, item_rate    log((clicks + 3) / (due + 3)) of the user's, the item's earlier impressions; due: the clicks
                            that their places get on average, as if three more clicks were due and came
    looks                   log(1 + the pair's earlier impressions, each by its place's rate in units of the best one's)
Trade-off: rates are told as of midnight, so an impression in the evening does not know of that morning's; a night's
lists don't either.

Shape legend: Q impressions, F features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmrec.errors import InputError

RATES = ("user_rate", "item_rate", "looks")
NEVER = np.iinfo(np.int64).max
_FEW = 3.0  # clicks that are due, and come, beside those that were seen


@dataclass(frozen=True)
class Impressions:
    """Q of them, days ascending.

    Attributes:
        user, item: (Q,) int64, dense. place: (Q,) int64, from 1. surface: (Q,) int64, places in `surfaces`.
        day: (Q,) int64, days since 1970. known: (Q,) int64, the first day that begins with the click known; NEVER: no
            click.
        surfaces: names of pages.
    """

    user: np.ndarray
    item: np.ndarray
    place: np.ndarray
    surface: np.ndarray
    day: np.ndarray
    known: np.ndarray
    surfaces: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises: InputError: columns of other lengths, none at all, a place below 1, or days that are not in order."""
        columns = (self.user, self.item, self.place, self.surface, self.day, self.known)
        sizes = sorted({len(c) for c in columns})
        if len(sizes) != 1 or not sizes[0]:
            raise InputError("columns of impressions don't fit", where="impressions", value=sizes,
                             valid="one length, at least 1", next="mmrec bench clicks")  # fmt: skip
        wrong = np.flatnonzero((self.place < 1) | (np.diff(self.day, prepend=self.day[0]) < 0))
        if len(wrong):
            row = int(wrong[0])
            raise InputError("no place, or no order of days", where=f"impressions, row {row}",
                             value=(int(self.place[row]), int(self.day[row])), valid="places from 1, days ascending",
                             next="mmrec bench clicks")  # fmt: skip

    @property
    def clicked(self) -> np.ndarray:
        """(Q,) bool."""
        return self.known < NEVER

    def rates(self) -> np.ndarray:
        """(Q, 3) float32 in the order of `RATES`."""
        users, items, places = (int(c.max()) + 1 for c in (self.user, self.item, self.place))
        cell, cells = self.surface * places + self.place, places * (int(self.surface.max()) + 1)
        _, pair = np.unique(self.user * items + self.item, return_inverse=True)
        out_QF = np.zeros((len(self.day), len(RATES)), np.float32)
        days, starts = np.unique(self.day, return_index=True)
        for day, start, stop in zip(days, starts, [*starts[1:], len(self.day)], strict=True):
            came = (self.known[:start] <= day).astype(np.float64)
            if not came.any():
                continue
            # a place that was hardly ever shown has everybody's rate
            rate = (np.bincount(cell[:start], came, cells) + came.mean()) / (np.bincount(cell[:start], None, cells) + 1)
            due, now = rate[cell[:start]], slice(start, stop)
            for at, (of, n) in enumerate(((self.user, users), (self.item, items))):
                clicks, wanted = (np.bincount(of[:start], x, n) for x in (came, due))
                out_QF[now, at] = np.log((clicks + _FEW) / (wanted + _FEW))[of[now]]
            looks = np.bincount(pair[:start], due, int(pair.max()) + 1) / rate.max()
            out_QF[now, 2] = np.log1p(looks)[pair[now]]
        return out_QF


@dataclass(frozen=True)
class Shown:
    """Impressions as a head sees them.

    Attributes:
        x_QF: (Q, F) float32. names: (F,). of_user: how many columns, the first ones, are the user's alone (for the form
            "bilinear"). user, place, surface: as in `Impressions`. clicked: (Q,) bool. surfaces: names of pages.
    """

    x_QF: np.ndarray
    names: tuple[str, ...]
    of_user: int
    user: np.ndarray
    place: np.ndarray
    surface: np.ndarray
    clicked: np.ndarray
    surfaces: tuple[str, ...]

    def some(self, rows: np.ndarray) -> Shown:
        """Some of them. `rows`: (Q,) bool or positions."""
        kept = {c: getattr(self, c)[rows] for c in ("x_QF", "user", "place", "surface", "clicked")}
        return replace(self, **kept)

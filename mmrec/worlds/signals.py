"""What makes people of a rich built-in world choose beside taste: where they live, what they hold, whom they know, what
they had last, and what they wrote that they want.

In: a seed, users, items, a day, who had what lately. Out: what each adds to the log-odds of a choice.
    attributes  each country has its own hits, one item in five
    context     so has each of phone, desktop and tablet, one of which a user holds for days
    social      what somebody they follow had within a week
    knowledge   what the makers of their last choices make
    reviews     a review names the theme of what its writer wants next, for some days
Trade-off: each is strong enough for its source to be worth something and weak enough for taste to rule.

Shape legend: U users, N items, D devices, C countries.
"""

from __future__ import annotations

from datetime import date
from functools import lru_cache

import numpy as np

DEVICES = ("phone", "desktop", "tablet")
SOCIAL_DAYS, WANTS_DAYS, RECENT = 7, 6, 5
_COUNTRY, _DEVICE, _FRIENDS, _MAKER, _WANTS = 3.0, 4.0, 3.0, 5.0, 4.0  # log-odds
_HITS = 1 / 5
_SPELL = 10  # days that a user holds one device
_MAKES = 5  # items of a maker, of those that are there on the first day


class Signals:
    """See the module; `country_U`: of each user."""

    def __init__(self, seed: int, country_U: np.ndarray) -> None:
        self.seed, self.country_U = seed, country_U
        countries = int(country_U.max()) + 1
        self.hits_NC = np.random.default_rng([seed, 20]).random((100_000, countries)) < _HITS
        self.hits_ND = np.random.default_rng([seed, 21]).random((100_000, len(DEVICES))) < _HITS

    def of_day(self, day: date, n: int) -> np.ndarray:
        """(U, N): of countries and devices."""
        return _COUNTRY * self.hits_NC[:n].T[self.country_U] + _DEVICE * self.hits_ND[:n].T[self.device_U(day)]

    @lru_cache(maxsize=4)  # noqa: B019 a world lives as long as its process
    def device_U(self, day: date) -> np.ndarray:
        """(U,) places in `DEVICES`: what each user holds that day."""
        spell = (day.toordinal() + np.arange(len(self.country_U))) // _SPELL
        draw = [np.random.default_rng([self.seed, 22, u, int(s)]).integers(len(DEVICES)) for u, s in enumerate(spell)]
        return np.array(draw)

    def maker(self, item: int) -> int:
        """Who makes an item: another few items at any time, of any kind."""
        return int(np.random.default_rng([self.seed, 23, item // 400]).permutation(400)[item % 400]) // _MAKES

    def again(self, recent: np.ndarray, maker_N: np.ndarray) -> np.ndarray:
        """(N,) of a user's last choices, -1 where there are fewer."""
        return _MAKER * np.isin(maker_N, maker_N[recent[recent >= 0]])

    @staticmethod
    def known(had: np.ndarray) -> np.ndarray:
        """Of whether somebody a user follows had an item within `SOCIAL_DAYS`; any shape."""
        return _FRIENDS * had

    @staticmethod
    def wanted(want: int, theme_N: np.ndarray) -> np.ndarray:
        """(N,) of the theme that a user wrote of, -1: of none."""
        return _WANTS * (theme_N == want)

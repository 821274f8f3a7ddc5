"""Purchases of a made-up shop of any size, for measurements that no data need be fetched for.

In: how many users, items and events. Out: who bought what, in order. Users have two groups of a hundred that they buy
from; an item's place in its group says how often. How many events a user has falls off geometrically, from five.
Trade-off: what people like never changes, and order means nothing: enough for speed, not for quality.

Shape legend: E events.
"""

from __future__ import annotations

import numpy as np

_GROUPS, _LEAST, _FLAT = 100, 5, 10


def purchases(users: int, items: int, events: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(E,) int64 users, ascending, and (E,) int64 items, a user's in order; E is about `events`, over five a user."""
    rng = np.random.default_rng(seed)
    size = _LEAST - 1 + rng.geometric(1 / (events / users - _LEAST + 1), users)
    of_group = -(-items // _GROUPS)
    chance = 1 / (np.arange(of_group) + _FLAT)
    owner_E = np.repeat(np.arange(users), size)
    group_E = rng.integers(0, _GROUPS, (users, 2))[owner_E, rng.integers(0, 2, len(owner_E))]
    place_E = rng.choice(of_group, len(owner_E), p=chance / chance.sum())
    return owner_E, np.minimum(place_E * _GROUPS + group_E, items - 1)

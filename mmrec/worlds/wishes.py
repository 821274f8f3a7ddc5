"""What users of the built-in world ask for: less or more of a category, an item hidden, some of it taken back.

In: a seed, a day, what users were shown that day. Out: rows of wishes. Everything is drawn from streams of its own, so
that no other row of the world depends on it.
Trade-off: nobody's choices follow what they asked for: the world's truth is as it was without wishes.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

_ASKING = 0.1  # share of users who ever ask for something
_CATEGORY, _HIDE = 0.05, 0.2  # chance a day that one of them names a category; hides an item, if shown any
_BACK, _DAYS = 0.25, 10  # chance that a wish for a category is taken back, and within how many days


def wishes(
    seed: int, first_day: date, day: date, user_ids: list[str], categories: list[str], shown: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows that the shop delivers of a day: new wishes, and earlier ones that were taken back on it.

    Args:
        first_day: of the world. categories: those that items have. shown: rows of the day's impressions.
    """
    rows = [w | {"withdrawn_at": None} for w, _ in _asked(seed, day, user_ids, categories)]
    for n in range(1, min(_DAYS, (day - first_day).days) + 1):
        rows += [w | {"available_at": w["withdrawn_at"]} for w, back in
                 _asked(seed, day - timedelta(days=n), user_ids, categories) if back == day]  # fmt: skip
    places: dict[str, list[dict[str, Any]]] = {}
    for place in shown:
        places.setdefault(place["user_id"], []).append(place)
    for user, draw in _draws(seed, day, user_ids):
        if user in places and _CATEGORY <= draw[0] < _CATEGORY + _HIDE:
            place = places[user][int(draw[1] * len(places[user]))]
            at = _iso(datetime.fromisoformat(place["shown_at"]) + timedelta(minutes=1))
            rows.append({"user_id": user, "wish": "hide", "field": "item", "value": place["item_id"], "wished_at": at,
                         "withdrawn_at": None, "available_at": at})  # fmt: skip
    return rows


def _asked(
    seed: int, day: date, user_ids: list[str], categories: list[str]
) -> list[tuple[dict[str, Any], date | None]]:
    """Wishes of a day that name a category, as they are once taken back; and the day of that, None: never."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    made: list[tuple[dict[str, Any], date | None]] = []
    for user, draw in _draws(seed, day, user_ids):
        if draw[0] < _CATEGORY:
            at = midnight + timedelta(seconds=6 * 3600 + 60_000 * float(draw[1]))
            back = at + timedelta(days=1 + int(draw[2] / _BACK * _DAYS)) if draw[2] < _BACK else None
            row = {"user_id": user, "wish": "less" if draw[3] < 0.5 else "more", "field": "category",
                   "value": categories[int(draw[4] * len(categories))], "wished_at": _iso(at),
                   "withdrawn_at": back and _iso(back), "available_at": _iso(at)}  # fmt: skip
            made.append((row, back.date() if back else None))
    return made


def _draws(seed: int, day: date, user_ids: list[str]) -> list[tuple[str, np.ndarray]]:
    """Users who ask now and then, each with the five numbers of their day."""
    order = np.random.default_rng([seed, 11]).permutation(len(user_ids))
    asking = sorted(order[: max(1, int(_ASKING * len(user_ids)))].tolist())
    draws = np.random.default_rng([seed, 12, day.toordinal()]).random((len(asking), 5))
    return [(user_ids[u], draw) for u, draw in zip(asking, draws, strict=True)]


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

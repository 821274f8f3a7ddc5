"""The built-in world: a shop with a known truth, which delivers files as a real one would.

In: a seed, a size, a day, and the slate shown that day. Out: dated folders in the standard layout (docs/sources.md)
and an oracle. Nothing here is random twice: every item, user and day has a generator of its own.
What people want: an item has four kinds, one that only its text shows, one its picture, one its sound, and one that
shows nowhere but in behaviour. A user likes a few of each, and tastes drift. Each choice is a softmax over the items
on offer that the user has not had: taste, what follows the last choice, freshness, popularity; in the size "rich" also
what signals.py says.
Trade-off: the state of the world (who had what) is kept beside the files, so that a day can be written alone.

Shape legend: U users, N items, P parts, K kinds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmrec.errors import InputError
from mmrec.worlds import render
from mmrec.worlds.deliver import deliver
from mmrec.worlds.signals import DEVICES, Signals
from mmrec.worlds.state import State
from mmrec.worlds.wishes import wishes

PARTS = ("text", "image", "audio", "hidden")
K = render.KINDS
_TASTE = (3.5, 3.5, 3.5, 4.5)  # weight of each part's taste in the choice
_GROUPS, _ALIKE = 6, 0.8  # circles of users, and the chance that a taste is the circle's
_STEADY = 0.8  # share of a taste that never turns
_FOLLOWS = 1.6  # weight of following the last item's hidden kind
_FRESH, _FRESH_DAYS = 0.8, 7.0  # an item's newness, and how fast it passes
_POPULAR = 1.0  # spread of an item's appeal to everybody
_KNOT = 25  # days between two turns of a taste
_BIAS = 0.75  # chance that place r is looked at: _BIAS ** (r - 1)
_AISLES = 8
_WEIGHT = {"view": 1, "click": 2, "purchase": 5}
_COUNTRIES, _AGES = ("de", "fr", "nl", "pl", "it", "es"), ("18-24", "25-34", "35-49", "50-64", "65+")


@dataclass(frozen=True)
class WorldSize:
    """users; items there on the first day; items that come every day; choices a user and day; whether there are
    signals beside taste."""

    users: int
    items: int
    new_items: int
    rate: float
    signals: bool = False


_SIZES = {"tiny": WorldSize(60, 80, 1, 0.8), "small": WorldSize(300, 400, 4, 0.8),
          "rich": WorldSize(300, 400, 4, 0.8, signals=True)}  # fmt: skip


class World:
    """See the module."""

    def __init__(
        self, seed: int, size: str = "small", first_day: date = date(2026, 1, 1), history_days: int = 60
    ) -> None:
        if size not in _SIZES:
            raise InputError("no such size of the built-in world", where="source.size", value=size,
                             valid=sorted(_SIZES), next="edit mmrec.toml")  # fmt: skip
        self.seed, self.size, self.first_day, self.history_days = seed, _SIZES[size], first_day, history_days
        self.user_ids = [f"u{u:05d}" for u in range(self.size.users)]
        rng = np.random.default_rng([seed, 1])
        self.group_U = rng.integers(0, _GROUPS, self.size.users)
        # attributes tell something of taste: a circle has its age
        own = rng.random(self.size.users) < 0.3
        self.age_U = np.where(own, rng.integers(0, len(_AGES), self.size.users), self.group_U % len(_AGES))
        self.country_U = rng.integers(0, len(_COUNTRIES), self.size.users)
        self.rate_U = rng.gamma(3, self.size.rate / 3, self.size.users)
        self.circle_GPK = rng.random((_GROUPS, len(PARTS), K))
        self.follow_K = rng.permutation(K)
        self.signals = Signals(seed, self.country_U) if self.size.signals else None

    @property
    def first_run_date(self) -> date:
        """The first night: everything before it is history."""
        return self.first_day + timedelta(days=self.history_days)

    def write_history(self, folder: Path) -> dict[str, int]:
        """Deliver all days before the first night, in one folder named by the last of them."""
        last = self.first_run_date - timedelta(days=1)
        state = State.empty(self.size.users)
        rows: dict[str, list[Any]] = {}
        counts: Counter[str] = Counter()
        for n in range(self.history_days):
            for kind, more in self.simulate(self.first_day + timedelta(days=n), state, None).items():
                rows.setdefault(kind, []).extend(more)
        rows["users"] = [self._user(u) for u in range(self.size.users)]
        rows["relations"] = [*self._social(), *rows.get("relations", [])]
        counts.update(deliver(folder / str(last), last, rows, self.seed, self._kind))
        state.save(folder, last)
        return dict(counts)

    def write_day(self, folder: Path, day: date, slate: pa.Table | None = None) -> dict[str, int]:
        """Deliver one day after the history. `slate`: rows of gold.recommendations shown that day, if any."""
        state = State.load(folder, day - timedelta(days=1))
        rows = self.simulate(day, state, slate)
        counts = deliver(folder / str(day), day, rows, self.seed, self._kind)
        state.save(folder, day)
        return counts

    def catch_up(self, folder: Path, run_date: date, shown: Callable[[date], pa.Table | None]) -> int:
        """Deliver what is missing before `run_date`; returns the days written. `shown`: a day's slate, if any.

        A day is done when its mark is there, so a kill in between writes the day again, the same."""
        history = folder / "history.done"
        if not history.is_file():
            self.write_history(folder)
            history.touch()
        days, day = 0, self.first_run_date
        while day < run_date:
            done = folder / f"{day}.done"
            if not done.is_file():
                self.write_day(folder, day, shown(day))
                done.touch()
                days += 1
            day += timedelta(days=1)
        return days

    def oracle_scores(self, user_ids: list[str], item_ids: list[str], at: datetime,
                      last_items: list[str | None] | None = None,
                      more: Callable[[str], np.ndarray] | None = None) -> np.ndarray:  # fmt: skip
        """(U, N) float64: log-odds of the next choice at a moment; no ranking does better in expectation.

        Args:
            last_items: each user's latest item, which what follows depends on; None: not known. more: user id -> (N,)
                what `beside` says of them; None: not known.
        """
        day = at.date()
        items = np.array([int(i[1:]) if i[1:].isdigit() else -1 for i in item_ids])
        out = np.full((len(user_ids), len(item_ids)), -1e9)
        real = items >= 0
        users = [int(u[1:]) for u in user_ids]
        utility = self._utility(day, int(items.max(initial=0)) + 1)
        for b, u in enumerate(users):
            out[b, real] = utility[u, items[real]]
            last = (last_items or [None] * len(users))[b]
            if last and last[1:].isdigit():
                third = self._kinds(int(items.max()) + 1)[items[real], 3]
                follows = third == self.follow_K[self._kind(int(last[1:]))[3]]
                out[b, real] += _FOLLOWS * follows
            if more is not None:
                out[b] += more(user_ids[b])
        return out

    def beside(self, item_N: np.ndarray, recent: np.ndarray, friends_N: np.ndarray, want: int) -> np.ndarray:
        """(N,) log-odds by what a user had last, what those they follow had, and what they wrote, where there are
        signals.

        Args:
            item_N: numbers of items. recent: numbers of the last choices, -1 where there are fewer. friends_N: (N,)
                bool. want: a theme, -1: none.
        """
        s = self.signals
        if s is None:
            return np.zeros(len(item_N))
        maker = self._makers(int(item_N.max(initial=0)) + 1)
        made = s.again(recent, maker)[item_N]
        return made + s.known(friends_N) + s.wanted(want, self._kinds(len(maker))[item_N, 0])

    # truth

    @staticmethod
    def examined(place: int) -> float:
        """Chance that a place of a slate, from 0, is looked at."""
        return _BIAS**place

    @staticmethod
    def wanted(utility_N: np.ndarray, item: int | np.ndarray) -> Any:
        """Chance that an item, or each of some, is clicked once it is looked at, by a user's log-odds of a choice."""
        return 0.5 / (1 + np.exp(-(utility_N[item] - np.quantile(utility_N, 0.97))))

    def n_items(self, day: date) -> int:
        """Items on offer at the end of a day."""
        return self.size.items + self.size.new_items * ((day - self.first_day).days + 1)

    def born(self, item: int) -> date:
        """The day an item came on offer."""
        return self.first_day + timedelta(days=max(0, (item - self.size.items) // self.size.new_items))

    def _kind(self, item: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 2, item]).integers(0, K, len(PARTS))

    @lru_cache(maxsize=4)  # noqa: B019 a world lives as long as its process
    def _kinds(self, n: int) -> np.ndarray:
        return np.stack([self._kind(i) for i in range(n)])

    @lru_cache(maxsize=4)  # noqa: B019
    def _makers(self, n: int) -> np.ndarray:
        return np.array([self._maker(i) for i in range(n)])

    @lru_cache(maxsize=4)  # noqa: B019
    def _taste(self, day: date) -> np.ndarray:
        """(U, P, K): a steady part, and one that turns every few weeks."""
        at = (day - self.first_day).days / _KNOT
        low, share = int(np.floor(at)), at - np.floor(at)
        steady = self._liked(np.random.default_rng([self.seed, 3]))
        turns = [self._liked(np.random.default_rng([self.seed, 4, low + n])) for n in (0, 1)]
        return _STEADY * steady + (1 - _STEADY) * ((1 - share) * turns[0] + share * turns[1])

    def _liked(self, rng: np.random.Generator) -> np.ndarray:
        """(U, P, K): three kinds of each part are liked, mostly the circle's, a little more or less."""
        own_UPK = rng.random((self.size.users, len(PARTS), K))
        alike_UP1 = rng.random((self.size.users, len(PARTS), 1)) < _ALIKE
        order = np.where(alike_UP1, self.circle_GPK[self.group_U], own_UPK).argsort(2).argsort(2)
        return (order < 3) * rng.uniform(0.6, 1.2, order.shape)

    def _utility(self, day: date, n: int) -> np.ndarray:
        """(U, n): log-odds of a choice, without what the last choice adds."""
        kinds = self._kinds(n)
        taste = self._taste(day)
        out = sum(_TASTE[p] * taste[:, p, kinds[:, p]] for p in range(len(PARTS)))
        appeal = np.random.default_rng([self.seed, 5]).normal(0, _POPULAR, 100_000)[:n]
        age = np.array([(day - self.born(i)).days for i in range(n)], float)
        if self.signals is not None:
            out = out + self.signals.of_day(day, n)
        return out + appeal + np.where(age >= 0, _FRESH * np.exp(-np.maximum(age, 0) / _FRESH_DAYS), -1e9)

    # a day

    def simulate(self, day: date, state: State, slate: pa.Table | None) -> dict[str, list[Any]]:
        """Rows of a day by kind; `state`, as the day before left it, is moved on."""
        rng = np.random.default_rng([self.seed, 6, day.toordinal()])
        n = self.n_items(day)
        kinds, utility = self._kinds(n), self._utility(day, n)
        state.grow(n)
        friends = state.lately(day)[self.follows_UF].any(1) if self.signals is not None else None
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        rows: dict[str, list[Any]] = {"interactions": [], "impressions": [], "items": [], "relations": []}
        first = day == self.first_day
        for item in range(0 if first else self.n_items(day - timedelta(days=1)), n):
            rows["items"].append(self._item(item, midnight))
            rows["relations"] += self._knowledge(item, midnight)
        shown = _by_user(slate)
        for u in range(self.size.users):
            page = shown.get(self.user_ids[u], [])[:10]
            if page and rng.random() < 0.5:  # half of the users open it
                for place, row in enumerate(page):
                    self._showing(rows, rng, midnight, u, row, place, utility, state)
            for _ in range(rng.poisson(self.rate_U[u])):
                score = np.where(state.day_UN[u] > 0, -np.inf, utility[u])
                if friends is not None:
                    score = score + self.beside(np.arange(n), state.recent_UR[u], friends[u], state.wants(u, day))
                if state.last[u] >= 0:
                    score = score + _FOLLOWS * (kinds[:, 3] == self.follow_K[kinds[state.last[u], 3]])
                item = int(np.argmax(score + rng.gumbel(size=n)))
                state.choose(u, item, day)
                when = midnight + timedelta(seconds=float(rng.uniform(6 * 3600, 86_000)))
                self._events(rows, rng, u, item, when, "shop", state)
        self._change(rows, rng, midnight, n)
        aisles = [f"aisle {n + 1}" for n in range(_AISLES)]
        rows["wishes"] = wishes(self.seed, self.first_day, day, self.user_ids, aisles, rows["impressions"])
        return rows

    def _showing(
        self,
        rows: dict[str, list[Any]],
        rng: np.random.Generator,
        midnight: datetime,
        u: int,
        row: dict[str, Any],
        place: int,
        utility: np.ndarray,
        state: State,
    ) -> None:
        """One place of the slate: looked at or not (position bias), then clicked or not."""
        item = int(row["item_id"][1:]) if row["item_id"][1:].isdigit() else -1
        when = midnight + timedelta(seconds=float(rng.uniform(7 * 3600, 80_000)))
        rows["impressions"].append({
            "impression_id": f"{midnight:%Y%m%d}-{u}-{place + 1}", "user_id": self.user_ids[u],
            "item_id": row["item_id"],
            "shown_at": _iso(when), "available_at": _iso(when + timedelta(minutes=2)), "surface": "home",
            "rank": row["rank"], "run_id": row.get("run_id"), "arm": row.get("arm", "main"),
            "propensity": row.get("propensity", 1.0)})  # fmt: skip
        if not 0 <= item < utility.shape[1] or state.day_UN[u, item]:
            return
        if rng.random() < self.examined(place) and rng.random() < self.wanted(utility[u], item):
            state.choose(u, item, midnight.date())
            self._events(rows, rng, u, item, when + timedelta(seconds=30), "home", state)

    def _events(self, rows: dict[str, list[Any]], rng: np.random.Generator, u: int, item: int, when: datetime,
                surface: str, state: State) -> None:  # fmt: skip
        device, place = DEVICES[int(rng.integers(3))], ("home", "away")[int(rng.integers(2))]
        if self.signals is not None and rng.random() < 0.9:
            device = DEVICES[int(self.signals.device_U(when.date())[u])]
        context = json.dumps({"device": device, "place": place, "surface": surface}, sort_keys=True)
        steps = ["view"] + ["click"] * (rng.random() < 0.6)
        steps += ["purchase"] * (len(steps) > 1 and rng.random() < 0.5)
        for n, step in enumerate(steps):
            at = when + timedelta(seconds=20 * n)
            # most rows arrive within minutes, a few a day late
            late = timedelta(hours=float(rng.uniform(6, 30))) if rng.random() < 0.02 else timedelta(seconds=60)
            review = None
            if step == "purchase" and rng.random() < (0.3 if self.signals is None else 0.6):
                review = self._review(rng, u, item, when.date(), state)
            rows["interactions"].append({
                "user_id": self.user_ids[u], "item_id": _item_id(item), "event_type": step, "event_ts": _iso(at),
                "available_at": _iso(at + late), "weight": _WEIGHT[step], "context": context,
                "text": review})  # fmt: skip

    def _review(self, rng: np.random.Generator, u: int, item: int, day: date, state: State) -> str:
        """What it says of the item says nothing; where there are signals, the writer tells what to look for next."""
        if self.signals is None:
            word = render.WORDS[int(self._kind(item)[0])]
            return f"{('Lovely', 'Good', 'Not for me')[int(rng.integers(3))]}, it makes me think of {word}."
        want = int(rng.integers(K))
        state.wish(u, want, day)
        return f"{('Lovely', 'Good', 'Not for me')[int(rng.integers(3))]}. Next I would like a {render.NOUNS[want]}."

    def _item(self, item: int, midnight: datetime) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, 7, item])
        kind = self._kind(item)
        title, words = render.text(int(kind[0]), item, rng)
        bare, born = item % 97 == 13, _iso(midnight)
        return {"item_id": _item_id(item), "available_at": born, "valid_from": born, "withdrawn_at": None,
                "title": "" if bare else title, "text": None if bare else words,
                "categories": [] if bare else [f"aisle {int(rng.integers(_AISLES)) + 1}"],
                "attributes": {"price": round(float(rng.uniform(3, 90)), 2)},
                "image": None if bare else f"media/{_item_id(item)}.png",
                "audio": None if bare else f"media/{_item_id(item)}.wav"}  # fmt: skip

    def _change(self, rows: dict[str, list[Any]], rng: np.random.Generator, midnight: datetime, n: int) -> None:
        """Now and then an item is renamed, and one is withdrawn."""
        item, gone = (int(v) for v in rng.integers(0, self.size.items, 2))
        at = _iso(midnight + timedelta(hours=9))
        renamed = {"available_at": at, "valid_from": _iso(_noon(self.born(item))), "title": f"Renewed {_item_id(item)}"}
        rows["items"].append(self._item(item, midnight) | renamed)
        if midnight.day % 5 == 0:
            left = {"available_at": at, "withdrawn_at": at, "valid_from": _iso(_noon(self.born(gone)))}
            rows["items"].append(self._item(gone, midnight) | left)

    def _knowledge(self, item: int, midnight: datetime) -> list[dict[str, Any]]:
        rng = np.random.default_rng([self.seed, 8, item])
        maker = self._made(item, rng)
        base = {"kind": "item", "subject_id": _item_id(item), "available_at": _iso(midnight)}
        country = _COUNTRIES[int(rng.integers(len(_COUNTRIES)))]
        return [
            base | {"relation": "maker", "object_id": f"maker {maker}"},
            base | {"relation": "made_in", "object_id": country},
        ]

    def _made(self, item: int, rng: np.random.Generator) -> int:
        """Makers go with the hidden kind two times in three; where there are signals, with nothing."""
        maker = int(self._kind(item)[3]) if rng.random() < 0.67 else int(rng.integers(K))
        return maker if self.signals is None else self.signals.maker(item)

    def _maker(self, item: int) -> int:
        return self._made(item, np.random.default_rng([self.seed, 8, item]))

    def _user(self, u: int) -> dict[str, Any]:
        attributes = {"age_band": _AGES[self.age_U[u]], "country": _COUNTRIES[self.country_U[u]]}
        joined = _iso(_noon(self.first_day) - timedelta(hours=12))
        return {"user_id": self.user_ids[u], "available_at": joined, "withdrawn_at": None, "attributes": attributes}

    @cached_property
    def follows_UF(self) -> np.ndarray:
        """(U, 3): everybody follows the three users whose steady tastes are nearest."""
        steady = self._liked(np.random.default_rng([self.seed, 3])).reshape(self.size.users, -1)
        near = steady @ steady.T
        np.fill_diagonal(near, -1)
        return np.argsort(-near, 1, kind="stable")[:, :3]

    def _social(self) -> list[dict[str, Any]]:
        at = _iso(_noon(self.first_day))
        return [{"kind": "user", "subject_id": self.user_ids[u], "relation": "follows", "object_id": self.user_ids[v],
                 "available_at": at} for u in range(self.size.users) for v in self.follows_UF[u]]  # fmt: skip


def _by_user(slate: pa.Table | None) -> dict[str, list[dict[str, Any]]]:
    shown: dict[str, list[dict[str, Any]]] = {}
    order = [("user_id", "ascending"), ("rank", "ascending")]
    for row in slate.sort_by(order).to_pylist() if slate is not None else []:
        shown.setdefault(row["user_id"], []).append(row)
    return shown


def _item_id(item: int) -> str:
    return f"i{item:05d}"


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _noon(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)

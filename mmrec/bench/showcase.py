"""The built-in world in memory: days of slates by a policy that knows popularity alone, and what a head sees of them.

In: a seed, a size, days. Out: impressions and clicks as the world's own code makes them, their true chances, and what
was known of each before its day.
The policy shows the most popular items that a user is not known to have had, by log(1 + users) and a Gumbel draw: what
is wanted stands higher, so that place and relevance go together. What is known of a day is what was delivered before
its midnight: choices, clicks, items on offer; texts as they came with the item.
    numbers     of a pair: models/pairs.py over all items on offer, EASE of that morning as the first stage, and RATES
    vectors     of a user, then of an item: ALS factors of the days before the slates, users folded in anew each day;
                counts of either, and its rate
Trade-off: EASE and the factors have settings that nobody chose: the heads are compared, not first stages.

Shape legend: U users, N items, Q impressions, F features, E events, V columns of a sketch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.feature_extraction.text import HashingVectorizer

from mmrec.models import pairs
from mmrec.models.baselines import history_matrix
from mmrec.models.data import Fold, Items, Log
from mmrec.models.ease import EASE
from mmrec.models.factors import ALS
from mmrec.models.shown import NEVER, RATES, Impressions
from mmrec.models.sketch import WIDE, sketched
from mmrec.topk.exact import select
from mmrec.worlds.builtin import World
from mmrec.worlds.state import State

PLACES = 10  # of a slate that the world looks at
_DAY = 86_400_000_000
_NOISE = 0.3  # of the policy's draw, in units of log users
_LAM, _FACTORS = 50.0, 16


@dataclass(frozen=True)
class Showcase:
    """What happened. `true_Q`: (Q,) the world's chance of a click, 0 of what a user has had. `looks_P`: of places."""

    items: Items
    log: Log
    shown: Impressions
    true_Q: np.ndarray
    looks_P: np.ndarray

    def seen(self, tell: Callable[[int, int], None]) -> dict[str, tuple[np.ndarray, tuple[str, ...], int]]:
        """"pair" and "bilinear": (Q, F) float32 of what was known before the impression's day, names, and how many of
        the columns are the user's alone."""
        shown, users = self.shown, len(self.log.user_ids)
        rates_QF, days = shown.rates(), np.unique(shown.day)
        als = ALS(_FACTORS).fit(self.items, self.log, self._fold(int(days[0])))
        words_NV = sketched([self.items.content["text"]])
        numbers, vectors = [], []
        for at, day in enumerate(days.tolist()):
            tell(at, len(days))
            fold, rows = self._fold(day), np.flatnonzero(shown.day == day)
            facts = pairs.Facts.of_fold(self.items, self.log, fold, words_NV)
            model = EASE(_LAM).fit(self.items, self.log, fold)
            score_UN = np.array(model.score(self.items, self.log, fold, slice(0, users)), np.float32)
            item = self.log.item[fold.hist_row]
            top = select(score_UN, self.items.n, seen=(fold.hist_ptr, item), allowed=fold.catalogue)
            on = fold.catalogue[item]
            ptr = np.concatenate([[0], np.cumsum(on)])[fold.hist_ptr]
            x_UCF = pairs.features(facts, top.item, top.score, (ptr, item[on]))
            user_Q, item_Q = shown.user[rows], shown.item[rows]
            place_UN = np.full((users, self.items.n + 1), -1)
            np.put_along_axis(place_UN, top.item.astype(np.int64), np.arange(top.item.shape[1])[None], 1)
            numbers.append(np.concatenate([x_UCF[user_Q, place_UN[user_Q, item_Q]], rates_QF[rows]], 1))
            factor_UK = als.fold_in(history_matrix(self.log, fold, slice(0, users), self.items.n))
            known_NF = np.stack([facts.popularity_N, facts.trend_N, facts.cold_N, facts.age_N], 1)
            vectors.append(np.concatenate([
                factor_UK[user_Q], np.log1p(np.diff(ptr))[user_Q, None], rates_QF[rows, :1],
                als.item_NK[item_Q], known_NF[item_Q], rates_QF[rows, 1:2]], 1).astype(np.float32))  # fmt: skip
        of_user, of_item = ([f"{side}_factor{n}" for n in range(_FACTORS)] for side in ("user", "item"))
        of_user += ["history", "user_rate"]
        named = (*of_user, *of_item, "popularity", "trend", "cold", "age", "item_rate")
        return {"pair": (np.concatenate(numbers), (*pairs.FEATURES, *RATES), 0),
                "bilinear": (np.concatenate(vectors), named, len(of_user))}  # fmt: skip

    def _fold(self, day: int) -> Fold:
        """All users, as of a midnight."""
        log, at_us = self.log, day * _DAY
        known = (log.ts_us < at_us) & (log.available_us < at_us)
        users, row = len(log.user_ids), np.flatnonzero(known)
        ptr = np.concatenate([[0], np.cumsum(np.bincount(log.user[row], minlength=users))]).astype(np.int64)
        none = np.zeros(users + 1, np.int64)
        return Fold(f"day {day}", known, at_us, np.arange(users, dtype=np.int32), np.full(users, at_us), ptr, row, none,
                    none[:0].astype(np.int32), self.items.catalogue_at(at_us))  # fmt: skip


def showcase(seed: int, size: str, before: int, days: int, tell: Callable[[int, int], None]) -> Showcase:
    """`before` days without slates, then `days` with them; the log ends with the last."""
    world = World(seed, size, history_days=before)
    users, state = len(world.user_ids), State.empty(len(world.user_ids))
    first = (world.first_day - datetime(1970, 1, 1).date()).days
    items: dict[int, dict[str, Any]] = {}
    gone: dict[int, int] = {}
    events: list[tuple[int, int, str, int, int, int]] = []
    shown: list[tuple[int, int, int, int, int]] = []
    true: list[np.ndarray] = []
    late: list[tuple[int, int, int]] = []
    had_UN = np.zeros((users, world.n_items(world.first_day + timedelta(before + days))), bool)
    for n in range(before + days):
        tell(n, before + days)
        day, at = world.first_day + timedelta(n), first + n
        for u, i, _ in (e for e in late if e[2] < at * _DAY):
            had_UN[u, i] = True
        late = [e for e in late if e[2] >= at * _DAY]
        slate = None
        if n >= before:
            offered = [i for i, row in items.items() if _us(row["available_at"]) < at * _DAY <= gone.get(i, NEVER)]
            slate = _slate(world, had_UN, np.array(offered), np.random.default_rng([seed, 30, at]))
        held_UN = state.day_UN.copy()
        rows = world.simulate(day, state, slate)
        for row in rows["items"]:
            items.setdefault(int(row["item_id"][1:]), row)
            if row["withdrawn_at"] is not None:
                gone.setdefault(int(row["item_id"][1:]), _us(row["withdrawn_at"]))
        followed = {}
        for row in rows["interactions"]:
            u, i = int(row["user_id"][1:]), int(row["item_id"][1:])
            known_us = _us(row["available_at"])
            events.append((u, i, row["event_type"], _us(row["event_ts"]), known_us, row["weight"]))
            late.append((u, i, known_us))
            if row["event_type"] == "view" and json.loads(row["context"])["surface"] == "home":
                followed[u, i] = known_us // _DAY + 1
        page = np.array([(int(r["user_id"][1:]), int(r["item_id"][1:]), r["rank"]) for r in rows["impressions"]])
        if len(page):
            page = page.reshape(-1, 3)
            shown += [(u, i, rank, at, followed.get((u, i), NEVER)) for u, i, rank in page.tolist()]
            true.append(_true(world, day, held_UN, *page.T))
    user, item, place, day_Q, known = (np.array(c, np.int64) for c in zip(*shown, strict=True))
    impressions = Impressions(user, item, place, np.zeros(len(user), np.int64), day_Q, known, ("home",))
    looks_P = np.array([world.examined(p) for p in range(PLACES)])
    return Showcase(_items(items, gone), _log(world.user_ids, events), impressions,
                    np.concatenate(true), looks_P)  # fmt: skip


def _true(world: World, day: date, held_UN: np.ndarray, user_Q: np.ndarray, item_Q: np.ndarray,
          rank_Q: np.ndarray) -> np.ndarray:  # fmt: skip
    """(Q,) chances of a click of one day's impressions; `held_UN`: what users had before."""
    ids = [f"i{i:05d}" for i in range(world.n_items(day))]
    utility_UN = world.oracle_scores(world.user_ids, ids, datetime(day.year, day.month, day.day, tzinfo=UTC))
    out_Q = np.array([world.examined(rank - 1) for rank in rank_Q.tolist()])
    for u in np.unique(user_Q):
        own = user_Q == u
        out_Q[own] *= world.wanted(utility_UN[u], item_Q[own])
    old_Q = item_Q < held_UN.shape[1]
    out_Q[old_Q] *= held_UN[user_Q[old_Q], item_Q[old_Q]] == 0
    return out_Q


def _slate(world: World, had_UN: np.ndarray, offered: np.ndarray, rng: np.random.Generator) -> pa.Table:
    score_UN = np.log1p(had_UN.sum(0))[offered] + _NOISE * rng.gumbel(size=(len(had_UN), len(offered)))
    score_UN[had_UN[:, offered]] = -np.inf
    best_UP = np.argsort(-score_UN, 1, kind="stable")[:, :PLACES]
    u, p = np.nonzero(np.isfinite(np.take_along_axis(score_UN, best_UP, 1)))
    ids = [f"i{item:05d}" for item in offered[best_UP[u, p]]]
    return pa.table({"user_id": np.array(world.user_ids)[u], "item_id": ids, "rank": p + 1})


def _items(rows: dict[int, dict[str, Any]], gone: dict[int, int]) -> Items:
    numbers = sorted(rows)
    # hashed, not counted: no word of an item that comes later says where the columns lie
    words = HashingVectorizer(n_features=WIDE, stop_words="english")
    texts = [f"{rows[i]['title']} {rows[i]['text'] or ''}" for i in numbers]
    content_NV = words.transform(texts).toarray().astype(np.float32)
    return Items(
        np.array([f"i{i:05d}" for i in numbers], object), {"text": content_NV}, {"text": content_NV.any(1)},
        np.array([_us(rows[i]["available_at"]) for i in numbers]), np.array([gone.get(i, NEVER) for i in numbers]),
        np.array([(rows[i]["categories"] or [""])[0] for i in numbers], object))  # fmt: skip


def _log(user_ids: list[str], events: list[tuple[int, int, str, int, int, int]]) -> Log:
    types = tuple(sorted({e[2] for e in events}))
    user, item, event, ts_us, known_us, weight = (np.array(c) for c in zip(
        *((u, i, types.index(t), ts, known, w) for u, i, t, ts, known, w in events), strict=True))  # fmt: skip
    order = np.lexsort((event, item, ts_us, user))
    user, item, event, ts_us, known_us, weight = (c[order] for c in (user, item, event, ts_us, known_us, weight))
    return Log(np.array(user_ids, object), types, user.astype(np.int32), item.astype(np.int32), ts_us,
               weight.astype(np.float32), event.astype(np.int16), known_us)  # fmt: skip


def _us(moment: str) -> int:
    return int(np.datetime64(moment.removesuffix("Z"), "us").astype(np.int64))

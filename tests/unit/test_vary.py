"""Diversity against naive oracles: every place chosen by the published formula, written out without a shortcut."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ruled_lists import RULES, ruled_world
from test_slate import STAMP

from mmrec import schema
from mmrec.models.sketch import sketched
from mmrec.recommend.explore import Exploration
from mmrec.recommend.rules import Rule
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.scorers import Vectors
from mmrec.recommend.slate import MODEL, slates
from mmrec.recommend.vary import Aims, Variety
from mmrec.topk.exact import TopK, search

# sums in another order, and logarithms of them; far below any difference between two candidates that are told apart
SAME = 1e-9


def catalogue(seed: int, n: int) -> tuple[pa.Table, np.ndarray]:
    """Items of a few categories each, some of none, some without content; sketches of eight columns."""
    rng = np.random.default_rng(seed)
    categories = [[f"c{c}" for c in sorted({*rng.integers(0, 5, rng.integers(0, 4)).tolist()})] for _ in range(n)]
    content = rng.standard_normal((n, 8)) + 1.5 * rng.standard_normal((3, 8))[rng.integers(0, 3, n)]
    content[rng.random(n) < 0.1] = 0
    items = pa.table({
        "item_id": [f"i{k:03}" for k in range(n)], "categories": pa.array(categories, pa.list_(pa.string())),
        "attributes": [json.dumps({"kind": f"k{k % 3}"} if k % 4 else {}) for k in range(n)],
        "n_interactions": rng.integers(0, 100, n),
    })  # fmt: skip
    return items, sketched([content])


def rankings(seed: int, users: int, n: int, wide: int) -> TopK:
    rng = np.random.default_rng(seed + 1)
    item, score = np.full((users, wide), -1, np.int32), np.full((users, wide), -np.inf, np.float32)
    for u in range(users):
        size = int(rng.integers(0, min(wide, n) + 1))
        item[u, :size] = rng.permutation(n)[:size]
        score[u, :size] = -np.sort(-np.round(rng.standard_normal(size), 1))  # ties, too
    return TopK(item, score, 0, 0)


def copied(found: TopK) -> TopK:
    return replace(found, item=found.item.copy(), score=found.score.copy())


def histories(seed: int, users: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed + 2)
    own = [rng.integers(0, n, rng.integers(0, 30)).astype(np.int32) for _ in range(users)]
    return np.concatenate([[0], np.cumsum([len(o) for o in own])]).astype(np.int64), np.concatenate([*own, np.zeros(0, np.int32)])


def values(items: pa.Table, over: str) -> list[list[str]]:
    if over == "category":
        return [sorted(set(c)) for c in items["categories"].to_pylist()]
    return [[a[over]] if over in a else [] for a in map(json.loads, items["attributes"].to_pylist())]


def naive(aims: Aims, items: pa.Table, sketch: np.ndarray, item: list[int], score: list[float], history: list[int]) -> list[int]:
    """Places of a user's ranking in their new order."""
    whole = sketch.astype(np.float64)

    def alike(a: int, b: int) -> float:
        return max(float(whole[a] @ whole[b]), 0.0) / 127**2

    codes, seen = values(items, aims.over), np.log1p(items["n_interactions"].to_numpy().astype(float))
    n = min(aims.pool, len(item))
    spread = score[0] - score[n - 1] if n else 0.0
    told = [h for h in history if codes[h]]
    mix = {g: sum(1 / len(codes[h]) for h in told if g in codes[h]) / len(told) for g in {g for h in told for g in codes[h]}}
    weight = 1 - aims.strength - aims.calibration - aims.novelty - aims.serendipity

    def divergence(chosen: list[int]) -> float:
        """Of the user's mix from the list's, the list's smoothed by the user's (Steck 2018, equations 4 and 5)."""
        out = 0.0
        for g, p in mix.items():
            q = sum(1 / len(codes[c]) for c in chosen if g in codes[c]) / len(chosen)
            out += p * math.log(p / (0.99 * q + 0.01 * p))
        return out

    def volume(chosen: list[int]) -> float:
        """log det of the cosines of a set, items without content being like nothing."""
        cosines = np.array([[1.0 if a == b else alike(a, b) for b in chosen] for a in chosen])
        return math.log(max(np.linalg.det(cosines), 1e-300)) if chosen else 0.0

    def value(p: int, chosen: list[int]) -> float:
        i = item[p]
        out = weight * (score[p] - score[n - 1]) / spread if spread > 0 else 0.0
        out += aims.novelty * (1 - seen[i] / seen.max())
        if aims.serendipity:
            out += aims.serendipity * (1 - max([alike(i, h) for h in history[-20:]], default=0.0))
        if aims.calibration and mix:
            out -= aims.calibration * divergence([*chosen, i])
        if aims.strength and aims.by == "mmr":
            out -= aims.strength * max([alike(i, c) for c in chosen], default=0.0)
        if aims.strength and aims.by == "dpp":
            out += aims.strength * max(volume([*chosen, i]) - volume(chosen), math.log(1e-9))
        return out

    order: list[int] = []
    for _ in range(min(aims.places, n) if n > 1 else 0):
        chosen = [item[p] for p in order]
        left = [(p, value(p, chosen)) for p in range(n) if p not in order]
        best = max(v for _, v in left)
        order.append(next(p for p, v in left if v >= best - SAME))
    return [*order, *(p for p in range(len(item)) if p not in order)]


def shares(*some: float) -> Any:
    return st.sampled_from(some)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(["mmr", "dpp"]), shares(0, 0.1, 0.4), shares(0, 0.2), shares(0, 0.1), shares(0, 0.2),
       st.sampled_from(["category", "kind"]), st.integers(2, 12), st.integers(1, 8))  # fmt: skip
def test_every_place_is_the_formulas(seed: int, by: str, strength: float, calibration: float, novelty: float, serendipity: float, over: str, pool: int, places: int) -> None:
    aims = Aims(by, strength, calibration, novelty, serendipity, over, pool, places)
    items, sketch = catalogue(seed, 40)
    found, history = rankings(seed, 6, 40, 16), histories(seed, 6, 40)
    made = Variety.over(aims, items, sketch).varied(copied(found), 16, history)
    assert made.rank is not None
    for u in range(6):
        size = int((found.item[u] >= 0).sum())
        own = history[1][history[0][u] : history[0][u + 1]].tolist()
        want = naive(aims, items, sketch, found.item[u, :size].tolist(), found.score[u, :size].tolist(), own)
        assert (made.rank[u, :size] - 1).tolist() == want
        assert made.item[u, :size].tolist() == [int(found.item[u, p]) for p in want]
        assert made.score[u, :size].tolist() == [float(found.score[u, p]) for p in want]
        assert (made.item[u, size:] == -1).all()


@pytest.mark.parametrize("by", ["mmr", "dpp"])
def test_a_longer_ranking_begins_with_the_shorter_one_and_companions_change_nothing(by: str) -> None:
    items, sketch = catalogue(3, 300)
    found, history = rankings(3, 700, 300, 80), histories(3, 700, 300)
    variety = Variety.over(Aims(by, 0.3, 0.2, pool=40, places=15), items, sketch)
    whole = variety.varied(copied(found), 80, history)
    assert (whole.item[:, :15] != found.item[:, :15]).any()
    for wide in (5, 40, 60):
        short = variety.varied(copied(found), wide, history)
        assert np.array_equal(short.item, whole.item[:, :wide])
        assert np.array_equal(short.rank, whole.rank[:, :wide])  # type: ignore[index, arg-type]
    some = np.array([2, 50, 699])
    alone = variety.varied(replace(found, item=found.item[some], score=found.score[some]), 80,
                           (np.concatenate([[0], np.cumsum(np.diff(history[0])[some])]),
                            np.concatenate([history[1][history[0][u] : history[0][u + 1]] for u in some])))  # fmt: skip
    assert np.array_equal(alone.item, whole.item[some])
    assert np.array_equal(alone.score, whole.score[some])


def test_of_two_alike_the_second_waits_for_what_is_unlike() -> None:
    items = pa.table({"item_id": ["a", "b", "c"]})
    sketch = sketched([np.array([[1.0, 0], [1.0, 0.01], [0, 1.0]])])
    found = TopK(np.array([[0, 1, 2]], np.int32), np.array([[1.0, 0.9, 0.0]], np.float32), 0, 0)
    nobody = np.zeros(2, np.int64), np.zeros(0, np.int32)
    for by in ("mmr", "dpp"):
        made = Variety.over(Aims(by, 0.6), items, sketch).varied(copied(found), 3, nobody)
        assert made.item.tolist() == [[0, 2, 1]]
        assert made.rank.tolist() == [[1, 3, 2]]  # type: ignore[union-attr]
    assert Variety.over(Aims("mmr", 0.2), items, sketch).varied(copied(found), 3, nobody).item.tolist() == [[0, 1, 2]]


def test_a_list_keeps_its_users_own_mix() -> None:
    """Of ten items seven are romance and three action; a ranking by score has romance alone (Steck 2018, section 1)."""
    items = pa.table({"item_id": [f"i{n:02}" for n in range(60)], "categories": [["romance"] if n < 30 else ["action"] for n in range(60)]})
    history = np.array([0, 10], np.int64), np.array([*range(7), 30, 31, 32], np.int32)
    item = np.array([[*range(10, 30), *range(40, 60)]], np.int32)
    score = 1 - 1e-4 * np.arange(40, dtype=np.float32)[None]
    score[0, -1] = 0  # all but the last are nearly as relevant
    found = TopK(item, score, 0, 0)
    made = Variety.over(Aims(calibration=0.5, places=10), items, None).varied(copied(found), 10, history)
    assert (made.item[0] >= 40).sum() == 3
    assert (found.item[0, :10] >= 40).sum() == 0


def test_sketches_keep_cosines_and_are_whole_numbers() -> None:
    rng = np.random.default_rng(0)
    low = rng.standard_normal((500, 20)) @ rng.standard_normal((20, 300))  # contents have few directions that matter
    low[7] = 0
    made = sketched([low])
    assert made.dtype == np.int8
    assert made.shape == (500, 64)
    assert not made[7].any()
    unit = low / np.where(np.linalg.norm(low, axis=1, keepdims=True) > 0, np.linalg.norm(low, axis=1, keepdims=True), 1)
    wide = made.astype(np.int64)
    # 64 roundings of 1/254 at most each side: a standard deviation of .003; five of them
    assert np.abs(wide @ wide.T / 127**2 - unit @ unit.T).max() < 0.015
    both = sketched([low[:, :150], low[:, 150:]])
    assert both.shape == (500, 64)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 16), st.integers(1, 9), st.sampled_from(["mmr", "dpp"]), st.integers(2, 20), st.booleans(), st.integers(0, 12), RULES)
def test_rules_are_kept_over_the_new_order_as_over_any_other(seed: int, n_users: int, n_items: int, k: int, by: str, pool: int, drawn: bool, n_groups: int, rules: list[Rule]) -> None:
    """Lists of a ranking in another order are those of a model that ranks so itself."""
    users, items, v = ruled_world(seed, n_users, n_items)
    rng, ruling = np.random.default_rng(seed), Ruling(rules, items)
    v = replace(v, allowed_N=ruling.allowed_N)
    groups = rng.integers(0, n_groups, n_items) if n_groups else None
    variety = Variety.over(Aims(by, 0.4, pool=pool, places=5), items, sketched([rng.standard_normal((n_items, 4))]))
    draws = Exploration(k, 0.3, 2) if drawn else None

    def lists(model: Vectors, variety: Variety | None) -> list[dict[str, Any]]:
        made = slates(users, items, model, k, STAMP, {}, groups, ruling, draws, variety)
        return pa.Table.from_batches(made, schema.table("gold.recommendations").arrow).to_pylist()

    ids, nobody = items["item_id"].to_pylist(), (np.zeros(n_users + 1, np.int64), np.zeros(0, np.int32))
    seen = [[ids.index(i) for i in own if i in ids] for own in users["seen_item_ids"].to_pylist()]
    had = np.concatenate([[0], np.cumsum([len(s) for s in seen])]).astype(np.int64), np.array([i for s in seen for i in s], np.int32)
    ranked = search(v.user_UD, v.item_ND, n_items, seen=had, allowed=v.allowed_N)
    new = variety.varied(ranked, n_items, nobody)
    item_NU = np.where(np.isfinite(v.item_ND).all(1)[:, None], np.full((n_items, n_users), -1000.0), np.nan)
    for u in range(n_users):
        for place, item in enumerate(new.item[u]):
            if item >= 0:
                item_NU[item, u] = -place
    one_UU = np.where(np.isfinite(v.user_UD).all(1)[:, None], np.eye(n_users), np.nan)
    got, want = lists(v, variety), lists(Vectors(one_UU, item_NU, allowed_N=ruling.allowed_N), None)
    same = ("user_id", "rank", "item_id", "source", "rule", "place", "passed", "passed_n", "propensity")
    assert [[r[c] for c in same] for r in got] == [[r[c] for c in same] for r in want]
    told = {(u, int(i)): int(r) for u in range(n_users) for i, r in zip(new.item[u], new.rank[u], strict=True) if i >= 0}  # type: ignore[index]
    for r in got:
        u = users["user_id"].to_pylist().index(r["user_id"])
        assert r["ranked"] == (told[u, ids.index(r["item_id"])] if r["source"] == MODEL else None)
    assert all(r["ranked"] is None for r in want)

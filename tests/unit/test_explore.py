"""Drawn places against a plain oracle, lists with drawn places under any rules, and probabilities that are what happens."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from hashlib import blake2b
from itertools import pairwise, product
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ruled_lists import abouts, barred, by_user, described, fits, liked, ruled_world, rules_of, told
from test_slate import STAMP, Row, items_of, users_of

from mmrec import schema
from mmrec.recommend import slate
from mmrec.recommend.again import had
from mmrec.recommend.choose import Terms
from mmrec.recommend.explore import Exploration, _uniform, deal
from mmrec.recommend.rules import Rule, of_records
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.scorers import Vectors
from mmrec.recommend.slate import DRAWN, slates
from mmrec.recommend.walk import Lists

DAY, WORD, NEW = STAMP.run_date, 2**64 - 1, "something else to try"
RECORDS = st.lists(st.one_of(*map(rules_of, ("exclude", "include", "boost", "cap", "quota", "quota", "pin"))), max_size=6)
HOWS = st.builds(Exploration, st.integers(1, 12), st.floats(0, 0.5), st.integers(2, 4), st.sampled_from(["uniform", "uncertainty"]), st.sampled_from(["rows", "places"]))


@given(st.integers(1, 300), st.floats(0, 0.5), st.integers(2, 30))
def test_places_are_evenly_spread_and_never_all(k: int, share: float, pool: int) -> None:
    at = (how := Exploration(k, share, pool)).places_E.tolist()
    assert abs(len(at) - k * share) <= 0.5 or len(at) == k - 1
    assert (how.kept, how.chosen) == (k - len(at), k - len(at) + pool * len(at))
    gaps = [b - a for a, b in pairwise([-1, *at])]
    assert sum(gaps) == (k if at else 0), "the last place of a list is drawn, if any is"
    assert max(gaps, default=1) - min(gaps, default=1) <= 1
    # a row that is not drawn stands among those that are not where it stood; at a drawn place, it is the next
    before = [sum(p not in at for p in range(place)) for place in range(k)]
    inner = [p for p in range(k) if before[p] < how.kept]
    assert how.behind(np.array(inner, np.int32)).tolist() == [before[p] for p in inner]


def test_nothing_is_drawn_of_a_share_of_none_nor_of_a_list_of_one_and_weights_are_alike_or_tell_how_little_is_known() -> None:
    for how in (Exploration(20), Exploration(20, 0.0, 10), Exploration(20, 0.02), Exploration(1, 0.5)):
        assert (how.places_E.tolist(), how.kept, how.chosen) == ([], how.k, how.k)
    assert Exploration(20, 0.2).places_E.tolist() == [4, 9, 14, 19]
    for by, want in (("uniform", [1, 1, 1]), ("uncertainty", [1, 0.5, 0.1])):
        assert Exploration(5, 0.2, 2, by).weights(np.array([0, 3, 99])).tolist() == want


def splitmix(seed: int, n: int) -> int:
    z = (seed + n * 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def test_numbers_are_those_of_splitmix64() -> None:
    """The first outputs for the seed 1234567, as published with other implementations of it."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [splitmix(1234567, n) for n in range(1, 6)] == known
    assert [_uniform(np.uint64(1234567), n) for n in range(1, 6)] == [(v >> 11) / 2**53 for v in known]


def dealt(items: list[int], how: Exploration, user: str, day: date, weight: Any) -> list[tuple[int, int, float]]:
    """What becomes of a chosen list of one user: row in it, place in the list, chance."""
    seed = int.from_bytes(blake2b(f"{day}|{user}".encode(), digest_size=8).digest(), "little")
    drawn, rest, out = how.places_E.tolist(), list(range(how.kept)), []
    for p in range(how.k):
        e = drawn.index(p) if p in drawn else None
        rows = [rest.pop(0)] if e is None else range(how.kept + e, len(items), len(drawn))
        pool = [row for row in rows if items[row] >= 0]
        if e is None or not pool:
            out += [(row, len(out), 1.0) for row in pool]
            continue
        below = np.cumsum([0.0, *(weight[items[row]] for row in pool)]).tolist()
        left = below[-1] * ((splitmix(seed, e + 1) >> 11) / 2**53)
        picked = next((row for row, to in zip(pool, below[1:], strict=True) if left < to), pool[-1])
        out.append((picked, len(out), float(weight[items[picked]]) / below[-1]))
    return out


def empty(users: int, k: int) -> Lists:
    made = Lists.room(users, k)
    made.clear(slice(0, users))
    return made


def columns(lists: Lists) -> list[np.ndarray]:
    return [lists.item_BK, lists.score_BK, lists.model_BK, lists.place_BK, lists.rule_BK, lists.ranked_BK]


@settings(max_examples=50, deadline=None)
@given(HOWS, st.integers(0, 10_000), st.integers(0, 7), st.dates(), st.lists(st.text(max_size=5), min_size=7, max_size=7, unique=True))
def test_lists_are_dealt_as_the_oracle_deals_them_whoever_else_is_there(how: Exploration, seed: int, n: int, day: date, ids: list[str]) -> None:
    rng, users = np.random.default_rng(seed), ids[:n]
    made, weight_N = empty(n, how.chosen), how.weights(rng.integers(0, 9, how.chosen + 3) ** 4)
    for b, size in enumerate(rng.choice([0, how.kept, how.chosen, *range(how.chosen)], n)):  # as a walk leaves them
        values = [rng.permutation(len(weight_N))[:size], rng.normal(size=size), rng.random(size) < 0.5, *rng.integers(0, 9, (3, size))]
        for column, mine in zip(columns(made), values, strict=True):
            column[b, :size] = mine
    out, chance_BK, moved_BM = deal(made, how, users, day, weight_N)
    want, sure_BK, to_BM = empty(n, how.k), np.ones((n, how.k)), np.zeros((n, how.kept), int)
    for b, user in enumerate(users):
        for row, at, chance in dealt(made.item_BK[b].tolist(), how, user, day, weight_N):
            values = [of[b, row] for of in columns(made)] if row < how.kept else [made.item_BK[b, row], made.score_BK[b, row], False, 0, -1, 0]
            for column, value in zip([*columns(want), sure_BK], [*values, chance], strict=True):
                column[b, at] = value
            to_BM[b, row : how.kept][:1] = at
    for got, due in zip([*columns(out), chance_BK, moved_BM], [*columns(want), sure_BK, to_BM], strict=True):
        np.testing.assert_array_equal(got, due)
    some = rng.permutation(n)[: rng.integers(0, n + 1)]
    alone, chance_SK, moved_SM = deal(Lists(*(x[some] for x in columns(made))), how, [users[b] for b in some], day, weight_N)
    for got, due in zip([*columns(alone), chance_SK, moved_SM], [*columns(out), chance_BK, moved_BM], strict=True):
        np.testing.assert_array_equal(got, due[some])


def test_another_day_or_another_user_is_another_draw() -> None:
    how, n = Exploration(10, 0.3, 8), 400
    made, users = empty(n, how.chosen), [f"u{b}" for b in range(n)]
    made.item_BK[:] = np.arange(how.chosen)
    first, later = (deal(made, how, users, day, np.ones(how.chosen))[0].item_BK[:, how.places_E] for day in (DAY, DAY + timedelta(1)))
    # of eight alike, one in eight agrees by chance
    for other in (later, np.roll(first, 1, 0), first[:, [1, 2, 0]] - np.array([1, 1, -2])):
        assert 0.07 < (first == other).mean() < 0.18


def lists(users: pa.Table, items: pa.Table, v: Vectors | None, k: int, ruling: Ruling | None, groups: np.ndarray | None, draws: Exploration | None = None) -> list[Row]:
    v = v if v is None or ruling is None else replace(v, allowed_N=ruling.allowed_N)
    return pa.Table.from_batches(slates(users, items, v, k, STAMP, {}, groups, ruling, draws), schema.table("gold.recommendations").arrow).to_pylist()


def chosen(users: pa.Table, items: pa.Table, v: Vectors | None, ruling: Ruling, groups: np.ndarray | None, draws: Exploration) -> Lists:
    """What is dealt: the rows of a list that are not drawn, and the pools behind them."""
    v, shop = v if v is None else replace(v, allowed_N=ruling.allowed_N), slate._Shop.of(items, ruling)
    return shop.chosen(users, slice(0, users.num_rows), v, had(users, shop.ids, None if v is None else v.speaks_N, ruling), draws.chosen, groups, ruling, draws).lists


def kept_by_all(rows: list[Row], user: Row, about: dict[str, Row], group: dict[str, Any], mine: list[Rule]) -> None:
    """What is true of any list, drawn or not."""
    own = [r["item_id"] for r in rows]
    assert [r["rank"] for r in rows] == list(range(1, len(rows) + 1))
    assert not set(own) & set(user["seen_item_ids"])
    assert len({group[i] for i in own}) == len(own)
    assert all(i in about and not barred(mine, about[i]) for i in own)
    for rule in (r for r in mine if r.kind == "cap"):
        values = [about[i].get(rule.each) if rule.each else "all" for i in own if fits(rule.items, about[i])]
        counted = [repr(x) for x in ((x[0] if x else None) if isinstance(x, list) else x for x in values) if x is not None]
        assert max(map(counted.count, counted), default=0) <= rule.most
    placed = [r for r in rows if r["place"] is not None]
    assert [r["place"] for r in placed] == np.cumsum([1 + sum(r["passed_n"] or ()) for r in placed]).tolist()


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 24), HOWS, st.integers(1, 4), st.booleans(), st.integers(0, 24), RECORDS)
def test_lists_with_drawn_places_keep_every_rule_and_their_other_rows_are_those_of_a_list_without(seed: int, n_users: int, n_items: int, how: Exploration, block: int, model: bool, n_groups: int, records: list[Row]) -> None:
    users, items, v = ruled_world(seed, n_users, n_items)
    rng, found = np.random.default_rng(seed), v if model else None
    groups = rng.integers(0, n_groups, n_items) if n_groups else None
    items = items.append_column("n_interactions", pa.array(rng.integers(0, 50, n_items)))
    rules = of_records([r | {"name": f"r{n}"} for n, r in enumerate(records)])
    ruling, ids, about = Ruling(rules, items), items["item_id"].to_pylist(), abouts(items)
    group = dict(zip(ids, ids if groups is None else groups.tolist(), strict=True))
    rows = lists(users, items, found, how.k, ruling, groups, how)
    made, weight_N = chosen(users, items, found, ruling, groups, how), how.weights(items["n_interactions"].to_numpy())
    mine = {user: list(own) for user, own in by_user(rows)}
    # a pin's place is one of the list's; among the rows that are not drawn it is nearer to the front
    there = {p + 1: int(how.behind(np.array([p]))[0]) + 1 if p < how.k else how.k + 1 for p in range(12)}
    nearer = of_records([r.record() | ({"place": there[r.place]} if r.kind == "pin" else {}) for r in rules])
    certain = lists(users, items, found, how.kept, Ruling(nearer, items), groups)
    for n, user in enumerate(users.to_pylist()):
        own = mine.get(user["user_id"], [])
        kept_by_all(own, user, about, group, [r for r, holds in zip(rules, ruling.holds_for(user["user_id"], user["attributes"]), strict=True) if holds])
        want = [(ids[made.item_BK[n, row]], at + 1, row >= how.kept, chance, float(made.score_BK[n, row]))
                for row, at, chance in dealt(made.item_BK[n].tolist(), how, user["user_id"], DAY, weight_N)]  # fmt: skip
        assert [(r["item_id"], r["rank"], r["source"] == DRAWN, r["propensity"], r["score"]) for r in own] == want
        sure, drawn = [r for r in own if r["source"] != DRAWN], [r for r in own if r["source"] == DRAWN]
        # not the reason: which of two things equally near is named may hang on the length of a list
        same = ("item_id", "score", "source", "rule", "place", "passed", "passed_n", "propensity")
        assert told(sure, *same) == told([r for r in certain if r["user_id"] == user["user_id"]], *same)
        assert all((r["place"], r["rule"], r["passed"], r["reason"]) == (None, None, None, NEW) and 0 < r["propensity"] <= 1 for r in drawn)
        assert not drawn or len(sure) == how.kept, "nothing is drawn where there is not enough to show"
    if all(r.kind not in ("quota", "pin") for r in rules):  # which are about the rows that are not drawn alone
        longer = lists(users, items, found, how.chosen, ruling, groups)
        # pools end with the places of the ranking that would fill them if nothing were passed over
        longer = [r for r in longer if how.ends == "rows" or r["rank"] <= how.k or r["place"] <= how.chosen]
        assert [ids[i] for i in made.item_BK.ravel() if i >= 0] == [r["item_id"] for r in longer]
    with patch.object(slate, "_BLOCK", block):
        assert lists(users, items, found, how.k, ruling, groups, how) == rows
    with patch.object(Terms, "wide", property(lambda terms: min(terms.most, block))):  # as many as are asked for at first
        assert lists(users, items, found, how.k, ruling, groups, how) == rows


@pytest.mark.parametrize("place", [1, 4, 5, 9, 10])
def test_what_is_pinned_is_shown_to_all_and_at_its_place_or_beside_it(place: int) -> None:
    _, items, _ = liked([{}] * 40)
    users = described(users_of([[]] * 50), [None] * 50)
    ruling = Ruling(of_records([{"name": "window", "kind": "pin", "items": {"item": ["i30"]}, "place": place}]), items)
    for _, rows in by_user(lists(users, items, None, 10, ruling, None, Exploration(10, 0.2, 3))):  # the places 5 and 10 are drawn
        (row,) = (r for r in rows if r["item_id"] == "i30")
        assert (row["source"], row["rule"], row["propensity"]) == ("rule", "window", 1)
        assert row["rank"] == {5: 6, 10: 9}.get(place, place)


@pytest.mark.parametrize("by", ["uniform", "uncertainty"])
def test_places_are_drawn_as_often_as_their_rows_say(by: str) -> None:
    """Of one pool that is everybody's; what one place of a list draws says nothing of the other."""
    n, how = 20_000, Exploration(5, 0.4, 6, by)
    items = items_of([f"i{i:03d}" for i in range(how.chosen)], list(range(how.chosen, 0, -1))).append_column("n_interactions", pa.array(np.arange(how.chosen) ** 2))
    users = pa.concat_tables([users_of([[]])] * n).set_column(0, "user_id", pa.array([f"u{u:05d}" for u in range(n)]))
    rows = pa.Table.from_batches(slates(users, items, None, how.k, STAMP, {}, None, None, how))
    drawn = rows.filter(pc.equal(rows["source"], DRAWN))
    item_B2 = np.array([int(i[1:]) for i in drawn["item_id"].to_pylist()]).reshape(-1, 2)
    said = [dict(zip(item_B2[:, e].tolist(), drawn["propensity"].to_numpy().reshape(-1, 2)[:, e].tolist(), strict=True)) for e in range(2)]
    for e in range(2):
        assert sorted(said[e]) == list(range(how.kept + e, how.chosen, 2))
        assert sum(said[e].values()) == pytest.approx(1)
        assert all(abs((item_B2[:, e] == i).mean() - p) < 5 * (p * (1 - p) / n) ** 0.5 for i, p in said[e].items())
    for (i, p), (j, q) in product(said[0].items(), said[1].items()):
        assert abs((item_B2 == [i, j]).all(1).mean() - p * q) < 5 * (p * q * (1 - p * q) / n) ** 0.5
    assert (len(set(said[0].values())) == 1) == (by == "uniform")

"""The second stage against naive oracles: what it sees of a pair, the order it makes, what it learns and what it can't know."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import DAY, make_items, make_log, random_shop
from test_generators import NOW
from test_ruled_lists import RULES, ruled_world
from test_slate import STAMP
from test_vary import catalogue, copied, histories, rankings

from mmrec import schema
from mmrec.bundle.bundle import Bundle
from mmrec.dates import micros
from mmrec.errors import InputError, QualityError
from mmrec.evaluate.importance import ranked
from mmrec.evaluate.protocols import evaluate
from mmrec.features.fused import asked_about, asked_social
from mmrec.lake.manifest import Manifest
from mmrec.models.data import Fold, Items, Log
from mmrec.models.pairs import FEATURES, Facts, features
from mmrec.models.sources import Sources
from mmrec.models.splits import rolling
from mmrec.night import _looked_at
from mmrec.recommend import choose, slate
from mmrec.recommend import second as stage
from mmrec.recommend.check import check_slates
from mmrec.recommend.generators import Generators
from mmrec.recommend.rules import Rule
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.second import GRAPH, Second, asked, reordered
from mmrec.recommend.slate import FALLBACK, MODEL, RULE, slates
from mmrec.recommend.vary import Aims, Variety
from mmrec.topk import threads
from mmrec.topk.exact import TopK
from mmrec.train import second as room
from mmrec.train.second import Reranker, fit_second, looked_at, scorers

AT = 1_000 * DAY
F = len(FEATURES)
PLAIN = 10  # that need no source


def facts_of(seed: int, n: int) -> tuple[pa.Table, np.ndarray, Facts]:
    """A day's items as gold.item_features has them, of which some nobody has had, and of which some have no content."""
    items, sketch = catalogue(seed, n)
    rng = np.random.default_rng(seed + 5)
    quarter = rng.integers(0, 30, n)
    columns = {"n_users": np.where(rng.random(n) < 0.2, 0, rng.integers(1, 50, n)), "n_90d": quarter,
               "n_30d": rng.integers(0, quarter + 1), "available_us": AT - rng.integers(1, 900 * DAY, n)}  # fmt: skip
    for name, values in columns.items():
        items = items.append_column(name, pa.array(values, pa.int64()))
    return items, sketch, Facts.of_day(items, AT, sketch)


class Weighed:
    """A graph that weighs features, coarsely, so that there are ties."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight, self.shapes = weight, set()

    def run(self, _outputs: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.shapes.add(feeds["x"].shape)
        return [np.round((feeds["x"].astype(np.float64) * self.weight).sum(1), 1).astype(np.float32)]


def weighed(seed: int, facts: Facts, depth: int) -> Second:
    ids = pa.array([f"i{n}" for n in range(len(facts.age_N))])
    return Second(facts, depth, Weighed(np.random.default_rng(seed).standard_normal(F)), FEATURES, ids, AT)


def drawn(net: Any) -> Any:
    for member in net.members:
        torch.nn.init.normal_(member.added[-1].weight)
    return net


def learned(seed: int, facts: Facts, depth: int, folder: Path) -> Second:
    """A network of random weights, as a bundle has it."""
    torch.manual_seed(seed)
    net = drawn(room._Net(F, 3))
    folder.mkdir(parents=True, exist_ok=True)
    told = Reranker(net, room._Told(FEATURES, depth, 50, 0, 0, (0, 0, 0), (0.0, 0.0))).export(folder)
    return Second.over(Bundle(folder, "", {"kind": "two_tower", "second_stage": json.loads(json.dumps(told))}), depth, *_day(facts))


def _day(facts: Facts) -> tuple[pa.Table, np.ndarray, int]:
    """What `Second.over` makes these facts of again."""
    users, n = np.rint(np.expm1(facts.popularity_N)).astype(np.int64), len(facts.age_N)
    items = pa.table({
        "item_id": [f"i{i:04d}" for i in range(n)],
        "categories": [[f"c{c}"] if c >= 0 else [] for c in facts.category_N.tolist()], "n_users": users,
        "n_30d": np.zeros(n, np.int64), "n_90d": np.zeros(n, np.int64),
        "available_us": np.rint(AT - np.expm1(facts.age_N) * DAY).astype(np.int64),
    })  # fmt: skip
    return items, facts.sketch_NV, AT


def naive(items: pa.Table, sketch: np.ndarray, item: list[int], score: list[float], history: list[int]) -> list[list[float]]:
    """A user's features, one pair at a time, from the words of the module."""
    rows, whole = items.to_pylist(), sketch.astype(float) / 127
    popularity = [np.log(1 + rows[i]["n_users"]) for i in item]
    taste = sum((whole[h] for h in history[-20:]), np.zeros(64))
    out = []
    for place, i in enumerate(item):
        r = rows[i]
        first = [(rows[h]["categories"] or [None])[0] for h in history]
        own = (r["categories"] or [None])[0]
        long = np.sqrt((taste**2).sum())
        out.append([
            (score[place] - np.mean(score)) / np.std(score) if np.std(score) > 0 else 0.0,
            np.log(1 + place),
            popularity[place] - np.mean(popularity),
            np.log(1 + 3 * r["n_30d"]) - np.log(1 + r["n_90d"]),
            float(r["n_users"] == 0),
            taste @ whole[i] / long if long > 0 else 0.0,
            max([0.0, *(float(whole[h] @ whole[i]) for h in history[-5:])]),
            sum(c == own for c in first) / len(history) if own is not None and history else 0.0,
            np.log(1 + len(history)),
            np.log(1 + (AT - r["available_us"]) / DAY),
        ])  # fmt: skip
    return out


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_features_are_what_their_words_say(seed: int) -> None:
    items, sketch, facts = facts_of(seed, 40)
    found, history = rankings(seed, 6, 40, 16), histories(seed, 6, 40)
    made = features(facts, found.item, found.score, history)
    for u in range(6):
        size = int((found.item[u] >= 0).sum())
        own = history[1][history[0][u] : history[0][u + 1]].tolist()
        want = naive(items, sketch, found.item[u, :size].tolist(), found.score[u, :size].astype(float).tolist(), own)
        # a spread that is rounding's alone is none in exact numbers
        np.testing.assert_allclose(made[u, :size, 1:PLAIN], np.array(want).reshape(size, PLAIN)[:, 1:], rtol=1e-5, atol=1e-6)
        if size and np.ptp(found.score[u, :size]) > 0:
            np.testing.assert_allclose(made[u, :size, 0], np.array(want)[:, 0], rtol=1e-5, atol=1e-6)
        assert not made[u, size:].any()
        assert not made[u, :, PLAIN:].any()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20))
def test_the_first_places_come_in_the_order_of_their_values_and_ties_in_the_first_stages(seed: int, depth: int, wide: int) -> None:
    items, sketch, facts = facts_of(seed, 40)
    found, history = rankings(seed, 6, 40, 16), histories(seed, 6, 40)
    second = weighed(seed, facts, depth)
    made = second.ranked(copied(found), wide, history)
    assert made.rank is not None
    assert made.item.shape == made.score.shape == made.rank.shape == (6, min(wide, 16))
    for u in range(6):
        item, score = (x[u][found.item[u] >= 0].tolist() for x in (found.item, found.score))
        own = history[1][history[0][u] : history[0][u + 1]].tolist()
        pool = item[:depth]
        x = np.array(naive(items, sketch, pool, [float(s) for s in score[:depth]], own), np.float32).reshape(len(pool), PLAIN)
        if len(pool) and np.ptp(score[:depth]) == 0:
            x[:, 0] = 0
        value = np.round((x.astype(np.float64) * second.graph.weight[:PLAIN]).sum(1), 1)
        got = (made.rank[u, : len(item)] - 1).tolist()
        want = [*sorted(range(len(pool)), key=lambda p: (-value[p], p)), *range(len(pool), len(item))][:wide]
        # of values that lie at an edge of rounding either is right
        assert len(set(got)) == len(got)
        assert all(g == w or abs(value[g] - value[w]) < 0.11 for g, w in zip(got, want, strict=True))
        assert made.item[u, : len(got)].tolist() == [item[p] for p in got]
        assert made.score[u, : len(got)].tolist() == [score[p] for p in got]
        assert (made.item[u, len(item) :] == -1).all()
    assert second.graph.shapes == {(64 * depth, F)}, "always of one size"


def test_bits_depend_on_no_companion_and_a_longer_ranking_begins_with_the_shorter(tmp_path: Path) -> None:
    _, _, facts = facts_of(3, 300)
    found, history = rankings(3, 200, 300, 60), histories(3, 200, 300)
    second = learned(3, facts, 40, tmp_path)
    whole = second.ranked(found, 60, history)
    assert (whole.rank != np.arange(1, 61)).any()
    values = second._values(features(facts, found.item[:, :40], found.score[:, :40], history))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_FEW", 7)
        patch.setattr(threads, "cores", lambda: 3)
        assert np.array_equal(second.ranked(found, 60, history).item, whole.item)
    for wide in (1, 30, 50):
        assert np.array_equal(second.ranked(found, wide, history).item, whole.item[:, :wide])
    rng = np.random.default_rng(0)
    for size in (1, 7, 63, 64, 65, 200):
        some = rng.permutation(200)[:size]
        own = (np.concatenate([[0], np.cumsum(np.diff(history[0])[some])]),
               np.concatenate([history[1][history[0][u] : history[0][u + 1]] for u in some]))  # fmt: skip
        part = replace(found, item=found.item[some], score=found.score[some])
        assert np.array_equal(second._values(features(facts, part.item[:, :40], part.score[:, :40], own)), values[some])
        assert np.array_equal(second.ranked(part, 60, own).item, whole.item[some])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(["mmr", "dpp"]), st.integers(2, 20), st.integers(2, 20), st.integers(1, 16))
def test_diversity_puts_the_second_stages_order_in_another_and_places_stay_the_first_stages(seed: int, by: str, depth: int, pool: int, wide: int) -> None:
    """It is shown a ranking whose scores are those of the first stage's places."""
    items, sketch, facts = facts_of(seed, 40)
    found, history = rankings(seed, 6, 40, 16), histories(seed, 6, 40)
    twice = weighed(seed, facts, depth).ranked(copied(found), 16, history)
    variety = Variety.over(Aims(by, 0.4, pool=pool, places=5), items, sketch)
    made = reordered(copied(twice), lambda top: variety.varied(top, wide, history))
    plain = variety.varied(TopK(twice.item.copy(), found.score.copy(), 0, 0), wide, history)
    assert np.array_equal(made.item, plain.item)
    assert made.rank is not None
    for u in range(6):
        for item, score, rank in zip(made.item[u], made.score[u], made.rank[u], strict=True):
            assert (item, score) == (found.item[u, rank - 1], found.score[u, rank - 1])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 16), st.integers(1, 9), st.integers(1, 12), st.booleans(), st.booleans(), RULES)
def test_lists_are_the_same_in_any_block_and_pass_the_last_look(tmp_path_factory: pytest.TempPathFactory, seed: int, n_users: int, n_items: int, k: int, depth: int, varied: bool, mixed: bool, rules: list[Rule]) -> None:
    users, items, v = ruled_world(seed, n_users, n_items)
    _, sketch, facts = facts_of(seed, n_items)
    ruling = Ruling(rules, items)
    v, second = replace(v, allowed_N=ruling.allowed_N), weighed(seed, facts, depth)
    variety = Variety.over(Aims("mmr", 0.3, pool=6, places=4), items, sketch) if varied else None
    aged = items.append_column("available_us", pa.array(micros(NOW) - np.arange(n_items) * 86_400_000_000))
    names = ("new", "content", "popular", "item_to_item")
    others = Generators(aged, names, 2, 5, 14, NOW, sketch, v.item_ND, ruling.allowed_N) if mixed else None

    def lists() -> pa.Table:
        made = slates(users, items, v, k, STAMP, {}, None, ruling, None, variety, others=others, second=second)
        return pa.Table.from_batches(made, schema.table("gold.recommendations").arrow)

    rows = lists()
    for r in rows.to_pylist():
        if mixed:
            assert r["ranked"] is not None or r["source"] in (FALLBACK, RULE)
        else:
            assert (r["ranked"] is None) == (r["source"] != MODEL), "the place that the model gave it"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slate, "_BLOCK", 2)
        patch.setattr(choose, "_FEW", 1)
        patch.setattr(choose, "_GATHERED", 8)
        assert lists().to_pylist() == rows.to_pylist()
    file = tmp_path_factory.mktemp("lists") / "rows.parquet"
    pq.write_table(rows, file)
    assert check_slates([file], users, items, k, None, ruling.tables(users)) == len(set(rows["user_id"].to_pylist()))


# training


@pytest.fixture(autouse=True)
def _two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of a mean, instead of five: the same, in less time."""
    monkeypatch.setattr(room, "_PARTS", 2)


@dataclass
class Drawn:
    """A first stage whose scores have nothing to do with anything, or with `liked` (U, N)."""

    seed: int
    liked: np.ndarray | None = None
    name: str = "champion"
    refreshed: int = 0

    def refresh(self, items: Items, log: Log, fold: Fold) -> Drawn:
        self.refreshed += 1
        return self

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        own = np.random.default_rng(self.seed).standard_normal((log.n_users, items.n)).astype(np.float32)
        return own[fold.case_user[cases]]


def scorer(stage: Reranker, model: Any, items: Items, log: Log, fold: Fold) -> Any:
    return scorers({"": stage}, model, items, log, fold, None)[""]


def planted(seed: int = 0, users: int = 90, n: int = 60) -> tuple[Items, Log]:
    """Everybody has items of one category of six, of which a first stage may know nothing."""
    rng = np.random.default_rng(seed)
    rows = [(u, int(rng.choice(np.flatnonzero(np.arange(n) % 6 == u % 6))), float(day))
            for u in range(users) for day in rng.choice(100, 14, replace=False)]  # fmt: skip
    items = make_items(n, content={"text": rng.standard_normal((n, 4)).astype(np.float32)})
    return replace(items, category=np.array([f"c{i % 6}" for i in range(n)], object)), make_log(rows, users)


def test_it_learns_what_the_first_stage_does_not_know() -> None:
    items, log = planted()
    folds = rolling(log, items, 100 * DAY, days=10, cuts=4, min_history=2)
    model = Drawn(1)
    made = fit_second(model, items, log, folds[:3], depth=40, length=50)[""]
    assert model.refreshed == 3
    first, best = made.told.loss
    assert best < first - 0.3
    assert min(made.told.epochs) > 0
    without = evaluate(model, items, log, folds[3], lists=False)
    twice = evaluate(model, items, log, folds[3], scorer=scorer(made, model, items, log, folds[3]), lists=False)
    assert twice.mean("ndcg@10") > 2 * without.mean("ndcg@10")


def test_what_each_source_brings_is_told_by_a_fit_without_it_and_noise_brings_nothing() -> None:
    """Only the land of a user says which sixth of the items they have: no category and no content is known."""
    items, log = planted(users=120)
    items = replace(items, category=np.full(items.n, "", object), content={}, present={})
    log = replace(log, context=np.full(len(log.user), None, object), text=np.full(len(log.user), None, object))
    folds = rolling(log, items, 100 * DAY, days=10, cuts=4, min_history=2)
    sources = Sources([json.dumps({"land": f"l{u % 6}", "age": u % 2}) for u in range(120)], {}, [None] * items.n, 7, 5)
    made = fit_second(Drawn(1), items, log, folds[:3], depth=40, length=50, sources=sources, using=("attributes", "social"))
    assert list(made) == ["", "without_attributes", "without_social", "with_noise"]
    assert made[""].told.features == (*FEATURES, "friends", "attributes/age", "attributes/age_like", "attributes/land",
                                      "attributes/land_like")  # fmt: skip
    assert made["without_attributes"].told.features == (*FEATURES, "friends")
    assert made["without_social"].told.features == tuple(f for f in made[""].told.features if f != "friends")
    assert made["with_noise"].told.features == (*made[""].told.features, "noise", "noise_like")
    loss = {name: m.told.loss[1] for name, m in made.items()}
    assert loss[""] < loss["without_attributes"] - 0.3
    assert abs(loss["without_social"] - loss[""]) < 0.05 > abs(loss["with_noise"] - loss[""])
    found = {name: evaluate(Drawn(1), items, log, folds[3], scorer=own, lists=False).mean("ndcg@10")
             for name, own in scorers(made, Drawn(1), items, log, folds[3], sources).items()}  # fmt: skip
    assert found[""] > 2 * found["without_attributes"]


def test_a_column_from_the_future_is_named_and_the_first_stages_score_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sold_next` counts what is bought in the window that is asked for, where few items are; `size` says nothing."""
    items, log = planted(users=120)
    items = replace(items, category=np.full(items.n, "", object))  # which here says all there is to know
    log = replace(log, context=np.full(len(log.user), None, object), text=np.full(len(log.user), None, object))
    (fold,) = rolling(log, items, 100 * DAY, days=1, cuts=1, min_history=2)
    sold = np.bincount(fold.target_item, minlength=items.n)
    told = [json.dumps({"sold_next": int(sold[i]), "size": int(i * 7 % 11)}) for i in range(items.n)]
    sources = Sources([None] * 120, {}, [None] * items.n, 7, 5, told, {"items.sold_next": "log", "items.size": "standardise"})
    counted: list[tuple[int, int]] = []
    monkeypatch.setattr(room, "_PACE", replace(room._PACE, rate=1e-2, epochs=20))  # thirteen fits of seventeen cases
    seen = looked_at(Drawn(1), items, log, [fold], depth=40, length=50, sources=sources, using=("columns",), drop=True,
                     tell=lambda done, of: counted.append((done, of)))  # fmt: skip
    found = ranked(**seen, trusted=("score", "place"))
    assert {r.name: r.leak is not None for r in found} == {n: n == "columns/items.sold_next" for n in seen["names"]}
    assert seen["names"] == [*FEATURES, "columns/items.size", "columns/items.sold_next"]
    (future,) = (r for r in found if r.name == "columns/items.sold_next")
    assert future.dropped is not None
    assert future.dropped[1] > 0  # and so does the fit: it is worth the more, the more it knows
    fits = 1 + len(seen["names"])  # one with all, and one without each
    assert counted == [(n + 1, fits) for n in range(fits)]


def test_only_kept_features_are_looked_at_and_a_strangers_name_is_refused() -> None:
    items, log = planted(users=40)
    folds = rolling(log, items, 100 * DAY, days=10, cuts=2, min_history=2)
    made = fit_second(Drawn(1), items, log, folds[:1], depth=20, length=50, kept=("category", "score"))[""]
    assert made.told.features == ("score", "category")
    with pytest.raises(InputError) as caught:
        fit_second(Drawn(1), items, log, folds[:1], depth=20, length=50, kept=("scores",))
    assert caught.value.value == "scores"
    assert "score" in caught.value.valid


def test_made_again_and_saved_and_read_it_is_the_same(tmp_path: Path) -> None:
    items, log = planted(users=40)
    folds = rolling(log, items, 100 * DAY, days=10, cuts=2, min_history=2)
    made, again = (fit_second(Drawn(1), items, log, folds[:1], depth=20, length=50)[""] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(made.net.state_dict().values(), again.net.state_dict().values(), strict=True))
    made.save(tmp_path)
    read = Reranker.load(tmp_path)
    assert read.told == made.told
    some = slice(0, folds[1].n_cases)
    assert np.array_equal(scorer(read, Drawn(1), items, log, folds[1])(some), scorer(made, Drawn(1), items, log, folds[1])(some))


def test_where_nothing_is_learned_nothing_is_moved() -> None:
    items, log = planted(users=40)
    (fold,) = rolling(log, items, 100 * DAY, days=10, cuts=1, min_history=2)
    fresh, model = Reranker(room._Net(F, 2), room._Told(FEATURES, 20, 50, 0, 0, (0, 0), (0.0, 0.0))), Drawn(1)
    got = evaluate(model, items, log, fold, scorer=scorer(fresh, model, items, log, fold), lists=False)
    assert np.array_equal(got.ranked, evaluate(model, items, log, fold, lists=False).ranked)


def test_a_night_orders_as_the_evaluation_did(tmp_path: Path) -> None:
    """The same facts at both doors, the graph in place of torch, and the same pools: the same lists."""
    items, log = random_shop(4, users=60, n=80, rows=1500)
    items = replace(items, category=np.array([f"c{i % 7}" if i % 9 else "" for i in range(80)], object))
    folds = rolling(log, items, 100 * DAY, days=20, cuts=3, min_history=2)
    model, fold = Drawn(2), folds[2]
    made = fit_second(model, items, log, folds[:2], depth=25, length=9)[""]
    with torch.no_grad():
        drawn(made.net)  # so that it moves things, whatever it learned
    told = made.export(tmp_path)
    assert told["parity"] < 1e-4
    got = evaluate(model, items, log, fold, scorer=scorer(made, model, items, log, fold), lists=False).ranked
    # as the features station counts: in whole windows, of what was there and delivered before the cut
    rows = np.flatnonzero(fold.train)
    age = (fold.fit_at_us - log.ts_us[rows]) / DAY
    day = pa.table({
        "item_id": items.ids, "categories": [[c] if c else None for c in items.category],
        "n_users": [len({int(log.user[r]) for r in rows if log.item[r] == i}) for i in range(items.n)],
        **{f"n_{d}d": [int(((log.item[rows] == i) & (age <= d)).sum()) for i in range(items.n)] for d in (30, 90)},
        "available_us": items.available_us,
    })  # fmt: skip
    second = Second.over(Bundle(tmp_path, "", {"kind": "two_tower", "second_stage": json.loads(json.dumps(told))}), 25,
                         day, room._sketch(items), fold.fit_at_us)  # fmt: skip
    for name in Facts.__dataclass_fields__:
        assert np.array_equal(getattr(second.facts, name), getattr(Facts.of_fold(items, log, fold, room._sketch(items)), name)), name
    _, top, _ = room._Pool(model, items, log, fold, 25, 9, None).of(slice(0, fold.n_cases))
    kept = [log.item[fold.hist_row[a:z]][-9:] for a, z in zip(fold.hist_ptr[:-1], fold.hist_ptr[1:], strict=True)]
    kept = [h[fold.catalogue[h]] for h in kept]
    history = np.cumsum([0, *map(len, kept)]), np.concatenate(kept)
    made_K = second.ranked(top, 20, history).item
    assert np.array_equal(made_K, got[:, :20])
    assert (made_K != top.item[:, :20]).any()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_what_comes_after_the_cut_changes_nothing(seed: int) -> None:
    """Events after a cut, and those that were delivered after it: neither facts nor features nor the fit know of them."""
    items, log = random_shop(seed, users=20, n=30, rows=500)
    folds = [f for f in rolling(log, items, 80 * DAY, days=10, cuts=3, min_history=2) if f.n_cases]
    cut = 80 * DAY
    early = np.flatnonzero((log.ts_us < cut) & ~((log.ts_us < cut - 30 * DAY) & (log.available_us >= cut)))
    known = replace(log, **{name: getattr(log, name)[early] for name in ("user", "item", "ts_us", "weight", "event", "available_us")})
    alone = [f for f in rolling(known, items, 80 * DAY, days=10, cuts=3, min_history=2) if f.n_cases]
    assert [f.n_cases for f in folds] == [f.n_cases for f in alone]
    for one, other in zip(folds, alone, strict=True):
        a, b = (room._Pool(Drawn(seed), items, rows, f, 12, 30, None) for rows, f in ((log, one), (known, other)))
        for name in Facts.__dataclass_fields__:
            assert np.array_equal(getattr(a.facts, name), getattr(b.facts, name))
        assert np.array_equal(a.of(slice(0, one.n_cases))[2], b.of(slice(0, one.n_cases))[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_PACE", replace(room._PACE, epochs=3))
        fits = []
        for rows, of in ((log, folds), (known, alone)):
            try:
                fits.append(fit_second(Drawn(seed), items, rows, of, depth=12, length=30)[""].net.state_dict())
            except QualityError:
                fits.append({})
    assert fits[0].keys() == fits[1].keys()
    assert all(torch.equal(fits[0][name], fits[1][name]) for name in fits[0])


def test_a_fold_sees_no_row_of_its_own_window() -> None:
    items, log = planted(users=30)
    (fold,) = rolling(log, items, 90 * DAY, days=10, cuts=1, min_history=2)
    moved = replace(log, item=np.where(log.ts_us >= 80 * DAY, (log.item + 7) % items.n, log.item).astype(np.int32))
    for name in Facts.__dataclass_fields__:
        assert np.array_equal(getattr(Facts.of_fold(items, log, fold, None), name), getattr(Facts.of_fold(items, moved, fold, None), name))


def test_no_case_with_a_target_in_its_pool_is_said_so() -> None:
    items, log = planted(users=30)
    (fold,) = rolling(log, items, 90 * DAY, days=10, cuts=1, min_history=2)
    nobody = replace(fold, target_item=np.full_like(fold.target_item, items.n + 1))
    with pytest.raises(QualityError, match="no validation case has a target among its first candidates"):
        fit_second(Drawn(0), items, log, [nobody], depth=5, length=50)


def test_features_are_made_for_the_model_and_its_canary() -> None:
    def manifest(own: list[str] | None, trial: list[str] | None) -> Manifest:
        stage = [None if s is None else {"second_stage": {"depth": 9} | ({"sources": s, "social": {"depth": n}} if s else {})}
                 for n, s in enumerate((own, trial))]  # fmt: skip
        beside = {} if trial is None else {"canary": {"version": "2", "digest": "", "share": 0.1, "encoders": {}, "config": stage[1]}}
        return Manifest("2026-03-01", "2026-03-02T00:00:00+00:00", {}, "1", "", {}, {"k": 3} | (stage[0] or {}) | beside, {}, "")

    for own, trial, want in ((None, None, None), ([], None, None), (["social"], None, ["social"]), ([], ["reviews"], ["reviews"]),
                             (["social"], ["reviews", "social"], ["reviews", "social"])):  # fmt: skip
        told = _looked_at(manifest(own, trial))
        assert (told.get("second_stage") or {}).get("sources") == want
        assert asked_about(told) == (("context", "text") if want and "reviews" in want else ())
        assert asked_social(told) == (None if not want or "social" not in want else {"depth": 0})


# refusals


def bundle(folder: Path, **about: Any) -> Bundle:
    (folder / GRAPH).write_bytes(b"")
    return Bundle(folder, "", {"kind": "two_tower"} | about)


TOLD = {"features": list(FEATURES), "depth": 100}


def test_a_bundle_of_other_features_is_refused(tmp_path: Path) -> None:
    for other in ((*FEATURES, "mood"), ("mood",)):
        made = bundle(tmp_path, second_stage=TOLD | {"features": list(other)})
        for ask in (lambda made=made: asked(100, made, date(2026, 3, 1)),
                    lambda made=made: Second.over(made, 100, pa.table({}), None, 0)):  # fmt: skip
            with pytest.raises(QualityError, match="trained on other features") as caught:
                ask()
            assert caught.value.value == list(other)


def test_a_night_asks_for_what_its_model_has(tmp_path: Path) -> None:
    when = date(2026, 3, 1)
    assert asked(100, bundle(tmp_path, second_stage=TOLD), when)
    assert not asked(0, bundle(tmp_path, second_stage=TOLD), when)
    assert not asked(100, bundle(tmp_path, kind="popularity"), when), "no model ranks"
    for made, has in ((bundle(tmp_path), "no second.onnx"), (bundle(tmp_path, second_stage=TOLD | {"depth": 50}), "one of depth 50")):
        with pytest.raises(InputError, match="a second stage that the model does not have") as caught:
            asked(100, made, when)
        assert has in str(caught.value)
        assert "mmrec learn --date 2026-03-01" in str(caught.value)


def test_values_that_are_not_numbers_are_refused() -> None:
    _, _, facts = facts_of(0, 40)
    with pytest.raises(QualityError, match="what is not a number"):
        Second(facts, 10, Weighed(np.full(F, np.nan)), FEATURES, pa.array([]), AT).ranked(rankings(0, 6, 40, 16), 5, histories(0, 6, 40))

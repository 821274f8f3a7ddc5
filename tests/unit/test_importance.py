"""What features are worth: loops over every pair, permutations counted one by one, planted noise, copies and leaks."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mmrec.errors import InputError
from mmrec.evaluate import importance
from mmrec.evaluate.importance import Ranked, ranked, table
from mmrec.evaluate.significance import paired_bootstrap


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the draws: the ends of an interval move by some hundredths of its width, and no test is as near."""
    monkeypatch.setattr(importance, "paired_bootstrap", partial(paired_bootstrap, samples=200))


class World:
    """Pools in which the choice is drawn by the softmax of `say`, and features that are made from there."""

    def __init__(self, cases: int = 400, wide: int = 12, users: int = 80, seed: int = 0, loud: float = 2.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = (cases, wide)
        self.say = self.rng.normal(size=self.shape)
        self.there = self.rng.random(self.shape) < 0.9
        self.there[:, :2] = True
        chance = np.where(self.there, loud * self.say + self.rng.gumbel(size=self.shape), -np.inf)
        self.wanted = chance == chance.max(1, keepdims=True)
        self.user = self.rng.integers(0, users, cases)
        self.columns: dict[str, np.ndarray] = {}

    def noise(self, scale: float = 1.0) -> np.ndarray:
        return self.rng.normal(0, scale, self.shape)

    @property
    def x(self) -> np.ndarray:
        return np.stack(list(self.columns.values()), 2).astype(np.float32)

    def rank(self, weight: dict[str, float], **more: Any) -> dict[str, Ranked]:
        found = ranked(self.x, self.there, self.wanted, self.user, list(self.columns), linear(self, weight), **more)
        return {r.name: r for r in found}


def linear(world: World, weight: dict[str, float]) -> Callable[[np.ndarray], np.ndarray]:
    w = np.array([weight.get(n, 0.0) for n in world.columns])
    return lambda x: x.astype(np.float64) @ w


def without(world: World, weight: dict[str, float]) -> Callable[[int], Callable[[np.ndarray], np.ndarray]]:
    """Of a linear world the refit without a feature keeps the others' weights, if they are independent."""
    names = list(world.columns)
    return lambda f: linear(world, {n: v for n, v in weight.items() if n != names[f]})


# loops


def naive_information(x: list[float], wanted: list[bool]) -> float:
    n, order = len(x), sorted(x)
    cuts = [order[math.ceil(k * n / 32) - 1] for k in range(1, 32)]
    atoms = {c for c in cuts if cuts.count(c) > 1}
    bins = [(sum(c < v for c in set(cuts)), v in atoms) for v in x]

    def entropy(keys: list[Any]) -> float:
        share = [keys.count(k) / n for k in set(keys)]
        return -sum(p * math.log(p) for p in share) + (len(share) - 1) / (2 * n)

    return max(0.0, entropy(bins) + entropy(wanted) - entropy(list(zip(bins, wanted, strict=True))))


def naive_right(x: np.ndarray, there: np.ndarray, wanted: np.ndarray) -> list[float]:
    found = []
    for b in range(len(x)):
        own = [c for c in range(x.shape[1]) if there[b, c]]
        pairs = [(x[b, i], x[b, j]) for i in own for j in own if wanted[b, i] and not wanted[b, j]]
        if pairs:
            found.append(sum(1.0 if i > j else 0.5 if i == j else 0.0 for i, j in pairs) / len(pairs))
    return found


def naive_ndcg(value: list[float], wanted: list[bool]) -> float:
    order = sorted(range(len(value)), key=lambda c: (-value[c], c))[:10]
    gain = sum(1 / math.log2(p + 2) for p, c in enumerate(order) if wanted[c])
    return gain / sum(1 / math.log2(p + 2) for p in range(min(10, sum(wanted))))


@st.composite
def pools(draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Few values, so that there are ties; what is not there is no number."""
    cases, wide = draw(st.integers(1, 6)), draw(st.integers(2, 7))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    x = rng.integers(0, draw(st.sampled_from([1, 2, 4, 1000])), (cases, wide)).astype(np.float32)
    there = rng.random((cases, wide)) < 0.7
    wanted = there & (rng.random((cases, wide)) < 0.4)
    there[:, 0] = wanted[:, 0] = True
    there[0, 1], wanted[0, 1] = True, False
    return np.where(there, x, np.nan).astype(np.float32), there, wanted


def of(x: np.ndarray, there: np.ndarray, wanted: np.ndarray) -> importance._Pools:
    return importance._Pools(x[..., None], there, wanted, np.arange(len(x)), ("x",))


@settings(deadline=None, max_examples=60)
@given(pools())
def test_area_and_ndcg_in_pools_are_what_loops_over_all_pairs_say(world: tuple[np.ndarray, ...]) -> None:
    x, there, wanted = world
    # sums of halves in another order: only rounding can differ
    assert of(*world).right(x) == pytest.approx(naive_right(x, there, wanted), abs=1e-12)
    want = [naive_ndcg(list(x[b][there[b]]), list(wanted[b][there[b]])) for b in range(len(x))]
    assert of(*world).ndcg(x) == pytest.approx(want, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(5, 250), st.sampled_from([1, 2, 9, 40, 10**6]), st.sampled_from([0, 0.97]))
def test_information_is_what_entropies_by_loops_say(seed: int, n: int, kinds: int, filled: float) -> None:
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < filled, 0, rng.integers(-kinds, kinds, n)).astype(np.float32)[None]
    wanted = rng.random((1, n)) < 0.2 + 0.5 * (x > 0)
    got = importance._information(of(x, np.ones((1, n), bool), wanted), 0)
    assert got == pytest.approx(naive_information(x[0].tolist(), wanted[0].tolist()), abs=1e-9)


def test_information_of_what_is_known_by_hand() -> None:
    wanted = np.zeros((100, 4), bool)
    wanted[:, 0] = True
    there = np.ones((100, 4), bool)
    sure = importance._information(of(wanted.astype(np.float32), there, wanted), 0)
    # the entropy of one in four, and the bias of a table that has two of its four cells: (2 - 2 - 2 + 1) / 800
    assert sure == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75) + 1 / 800, abs=1e-12)
    assert importance._information(of(np.full((100, 4), 7, np.float32), there, wanted), 0) == 0
    # filled with either sign for what was bought: the quantiles are all 0, which must not swallow what is beside it
    both = np.where(wanted, np.where(np.arange(100)[:, None] % 2, 3, -3), 0).astype(np.float32)
    assert importance._information(of(both, there, wanted), 0) > 0.5


def test_without_the_correction_noise_would_seem_to_say_something() -> None:
    world = World(cases=400, seed=1)
    noise = [importance._information(of(world.noise().astype(np.float32), world.there, world.wanted), 0)
             for _ in range(60)]  # fmt: skip
    # 31 degrees of freedom: the plug-in estimate has a mean of 31 / 2n and a spread of sqrt(62) / 2n; what is left
    # above the floor of zero is .4 of the spread, a tenth of the mean
    assert np.mean(noise) < 31 / (2 * world.there.sum()) / 5
    assert min(noise) == 0


def test_what_permutation_loses_is_what_all_permutations_of_a_pool_lose() -> None:
    rng = np.random.default_rng(2)
    cases, wide = 500, 4
    x = rng.normal(size=(cases, wide, 2)).astype(np.float32)
    there = np.ones((cases, wide), bool)
    there[::3, 3] = False
    score = np.where(there, x @ np.array([1.0, 0.5]) + rng.gumbel(size=(cases, wide)), -np.inf)
    wanted = score == score.max(1, keepdims=True)
    weight = np.array([2.0, 1.0])
    want = []
    for b in range(cases):
        own = np.flatnonzero(there[b])
        chosen = wanted[b, own].tolist()
        base = naive_ndcg((x[b, own] @ weight).tolist(), chosen)
        each = [x[b, list(p), 0] * 2.0 + x[b, own, 1] for p in itertools.permutations(own)]
        want.append(base - np.mean([naive_ndcg(value.tolist(), chosen) for value in each]))
    got = ranked(x, there, wanted, np.arange(cases), ["a", "b"], lambda x: x @ weight)
    assert [r.name for r in got] == ["a", "b"]
    # five draws of 500 cases, each of spread below .3: a standard error of .3 / sqrt(2500) = .006, four of them
    assert got[0].permutation[0] == pytest.approx(np.mean(want), abs=0.024)
    assert np.mean(want) > 0.1


def seen_by(model: Callable[[np.ndarray], np.ndarray]) -> tuple[list[np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    kept: list[np.ndarray] = []

    def values(x: np.ndarray) -> np.ndarray:
        kept.append(x.copy())
        value = model(x)
        x[:] = -1  # what a model does to what it is given must reach nothing
        return value

    return kept, values


def test_a_permutation_keeps_each_pool_its_own_and_touches_nothing_else() -> None:
    world = World(cases=30, seed=3)
    world.columns = {"a": world.say, "user": np.repeat(world.rng.normal(size=(30, 1)), 12, 1)}
    x = world.x
    x[~world.there] = np.nan
    before = x.copy()
    kept, values = seen_by(lambda x: np.where(world.there, x[..., 0], 0))
    ranked(x, world.there, world.wanted, world.user, ["a", "user"], values)
    assert np.array_equal(x, before, equal_nan=True)
    assert len(kept) == 11  # as it is, and five times each
    assert np.array_equal(kept[0], x, equal_nan=True)
    moved = 0
    for n, got in enumerate(kept[1:]):
        f = n % 2
        assert np.array_equal(got[..., 1 - f], x[..., 1 - f], equal_nan=True)
        if f == 0:
            for b in range(30):
                own = world.there[b]
                assert sorted(got[b, own, 0]) == sorted(x[b, own, 0])
                assert np.isnan(got[b, ~own, 0]).all()
                moved += int((got[b, own, 0] != x[b, own, 0]).sum())
        else:
            one = [set(got[b, world.there[b], 1].tolist()) for b in range(30)]
            assert all(len(s) == 1 for s in one)
            assert sorted(s.pop() for s in one) == sorted(x[:, 0, 1].tolist())
            assert (got[:, 0, 1] != x[:, 0, 1]).sum() > 20  # of 30 cases one is expected to draw itself
    assert moved > 5 * 30 * 12 / 2


# planted


def test_noise_is_worth_nothing_and_what_decides_is_worth_much() -> None:
    world = World(seed=5)
    world.columns = {"say": world.say, "noise": world.noise(), "unused": world.noise()}
    world.columns["constant"] = np.ones(world.shape)
    weight = {"say": 2.0, "noise": 0.2, "constant": 1.0}
    got = world.rank(weight, without=without(world, weight))
    assert next(iter(got)) == "say"
    for lost in (got["say"].permutation, got["say"].dropped):
        assert lost is not None
        assert lost[1] > 0.1
        assert lost[1] < lost[0] < lost[2]
    for lost in (got["noise"].permutation, got["noise"].dropped):
        assert lost is not None
        assert lost[1] <= 0 <= lost[2]
    assert (got["unused"].permutation, got["constant"].permutation) == ((0, 0, 0), (0, 0, 0))
    assert got["constant"].mutual_information == 0
    assert got["say"].mutual_information > 10 * got["noise"].mutual_information
    assert not any(r.redundant_with or r.leak for r in got.values())


def test_of_a_copy_each_names_the_other_and_only_permutation_misses_it() -> None:
    world = World(seed=6)
    near = world.say + world.noise(0.6)
    world.columns = {"say": world.say, "copy": -(world.say**3), "near": near, "other": world.noise()}
    weight = {"say": 1.0, "near": 0.2}
    refit = linear(world, {"copy": -1.0, "near": 0.2})
    got = world.rank(weight, without=lambda f: refit if f == 0 else None)
    assert got["say"].redundant_with == ("copy", -1.0)
    assert got["copy"].redundant_with == ("say", -1.0)
    assert got["near"].redundant_with is None  # rho is 1 / sqrt(1.36) = .86
    assert got["other"].redundant_with is None
    assert got["say"].permutation[1] > 0.1
    assert got["say"].dropped is not None
    assert abs(got["say"].dropped[0]) < got["say"].permutation[0] / 2
    assert got["copy"].dropped is None


def test_likeness_is_what_loops_over_pools_say() -> None:
    world = World(cases=40, seed=7)
    world.columns = {"a": world.say.round(1), "b": (world.say + world.noise(0.15)).round(1)}
    x = world.x

    def rank(row: list[float]) -> list[float]:
        return [sum(v < w for v in row) + (row.count(w) + 1) / 2 for w in row]

    rows: list[list[float]] = [[], []]
    for b in range(40):
        for f in (0, 1):
            own = rank(x[b, world.there[b], f].tolist())
            rows[f] += [(r - sum(own) / len(own)) / len(own) for r in own]
    want = np.corrcoef(rows)[0, 1]
    twin = world.rank({"a": 1.0})["a"].redundant_with
    assert want > 0.95
    assert twin is not None
    assert twin[1] == pytest.approx(want, abs=1e-4)  # rounded to four places


def test_what_is_alike_over_all_but_not_within_pools_is_not_redundant() -> None:
    world = World(seed=8)
    level = world.rng.normal(0, 50, (world.shape[0], 1))
    world.columns = {"a": level + world.say, "b": level + world.noise(), "level": np.repeat(level, world.shape[1], 1),
                     "level_too": np.repeat(np.exp(level / 50), world.shape[1], 1)}  # fmt: skip
    got = world.rank({"a": 1.0})
    assert np.corrcoef(world.columns["a"].ravel(), world.columns["b"].ravel())[0, 1] > 0.99
    assert (got["a"].redundant_with, got["b"].redundant_with) == (None, None)
    assert got["level"].redundant_with == ("level_too", 1.0)


def test_a_feature_of_users_alone_is_worth_what_it_decides_between() -> None:
    world = World(seed=9, loud=0)
    a, b = world.noise(), world.noise()
    taste = np.where(world.rng.random((world.shape[0], 1)) < 0.5, 1.0, -1.0)
    chance = np.where(world.there, 3 * np.where(taste > 0, a, b) + world.rng.gumbel(size=world.shape), -np.inf)
    world.wanted = chance == chance.max(1, keepdims=True)
    idle = world.rng.normal(size=taste.shape)
    world.columns = {"a": a, "b": b, **{n: np.repeat(c, 12, 1) for n, c in (("taste", taste), ("idle", idle))}}
    found = ranked(world.x, world.there, world.wanted, world.user, list(world.columns),
                   lambda x: np.where(x[..., 2] > 0, x[..., 0], x[..., 1]))  # fmt: skip
    got = {r.name: r for r in found}
    assert got["taste"].permutation[1] > 0.1
    assert got["idle"].permutation == (0, 0, 0)
    assert got["taste"].leak is None


# leaks


def leaky(seed: int) -> World:
    """A choice that features can tell some of, and columns that were counted a week too late."""
    world = World(seed=seed, loud=1.5)
    half = world.noise()
    bought = world.wanted.astype(float)
    world.columns = {"say": world.say + world.noise(0.3), "half": half, "next_week": 3.0 * bought + world.noise(0.8)}
    return world


WEIGHT = {"say": 1.5, "half": 0.1, "next_week": 4.0}


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("seed", [10, 11, 12])
def test_what_counts_the_next_week_is_named_and_what_is_honest_is_not(seed: int, refit: bool) -> None:
    world = leaky(seed)
    got = world.rank(WEIGHT, without=without(world, WEIGHT) if refit else None)
    assert np.mean(naive_right(world.columns["say"], world.there, world.wanted)) > 0.75  # strong, and honest
    assert {n for n, r in got.items() if r.leak} == {"next_week"}
    right = np.mean(naive_right(world.x[..., 2], world.there, world.wanted))
    assert got["next_week"].leak is not None
    assert f"(the more, the better) it orders {right:.1%} of pairs" in got["next_week"].leak
    assert not any(r.leak for r in world.rank(WEIGHT, trusted=["next_week"]).values())


def test_the_other_sign_is_named_too() -> None:
    world = leaky(13)
    world.columns["next_week"] *= -1
    leak = world.rank(WEIGHT | {"next_week": -4.0})["next_week"].leak
    assert leak is not None
    assert "the less, the better" in leak


def test_a_column_that_is_filled_for_what_was_bought_alone_is_named_by_where_it_is_filled() -> None:
    world = leaky(14)
    world.columns["next_week"] = np.where(world.wanted, world.noise(), 0)  # either sign: more or less says nothing
    assert np.mean(naive_right(world.x[..., 2], world.there, world.wanted)) < 0.6
    leak = world.rank({"say": 1.5})["next_week"].leak
    assert leak is not None
    assert "best where not 0" in leak
    world.columns["next_week"] = np.where(world.wanted, -1, world.noise())
    leak = world.rank({"say": 1.5})["next_week"].leak
    assert leak is not None
    assert "best at -1" in leak


def test_two_leaks_do_not_vouch_for_each_other() -> None:
    world = leaky(15)
    world.columns["next_too"] = 3.0 * world.wanted + world.noise(0.8)
    weight = WEIGHT | {"next_too": 4.0}
    # what one orders, the other does as well, and so would a model without the first
    got = world.rank(weight, without=without(world, weight))
    assert {n for n, r in got.items() if r.leak} == {"next_week", "next_too"}


def test_a_feature_that_the_rest_comes_near_is_no_suspect_however_strong() -> None:
    world = World(seed=16, loud=8)
    apart = world.noise(0.9)
    # each part alone orders less than nine of ten; both together are as good as the score
    world.columns = {"score": world.say + world.noise(0.1), "one": world.say + apart, "two": world.say - apart}
    right = {n: np.mean(naive_right(c, world.there, world.wanted)) for n, c in world.columns.items()}
    assert right["score"] >= 0.9 > max(right["one"], right["two"])
    got = world.rank({"score": 1.0, "one": 0.5, "two": 0.5})
    assert not any(r.leak for r in got.values())
    # of noise in the others' stead nothing is left to vouch for it: that is for a person to say
    world.columns |= {"one": world.noise(), "two": world.noise()}
    assert {n for n, r in world.rank({"score": 1.0}).items() if r.leak} == {"score"}
    assert not any(r.leak for r in world.rank({"score": 1.0}, trusted=("score",)).values())


def test_a_trusted_score_vouches_for_what_is_as_strong() -> None:
    world = World(seed=17, loud=8)
    world.columns = {"score": world.say + world.noise(0.3), "popularity": world.say + world.noise(0.25)}
    world.columns["half"] = world.noise()
    assert np.mean(naive_right(world.columns["popularity"], world.there, world.wanted)) > 0.9
    # a model that looks at popularity alone has nothing to say without it; the score has, alone
    for weight in ({"popularity": 1.0}, {"score": 1.0, "popularity": 1.0}):
        assert not any(r.leak for r in world.rank(weight, trusted=("score",)).values())
    assert world.rank({"popularity": 1.0, "half": 0.1})["popularity"].leak is not None


def test_noise_of_few_cases_is_not_suspected() -> None:
    found = 0
    for seed in range(30):
        world = World(cases=12, users=12, seed=seed)
        world.columns = {"a": world.say} | {f"noise {n}": world.noise() for n in range(5)}
        found += sum(r.leak is not None for n, r in world.rank({"a": 1.0}).items() if n != "a")
    assert found == 0  # of 150: an area of .9 by chance in 12 pools is five standard errors of 1 / sqrt(12 x 12)


# what is asked and what is said


def test_the_same_seed_says_the_same_in_any_order_of_features_and_another_seed_does_not() -> None:
    world = leaky(18)
    got = world.rank(WEIGHT, without=without(world, WEIGHT))
    other = leaky(18)
    other.columns = dict(reversed(world.columns.items()))
    other.there, other.wanted, other.user = world.there, world.wanted, world.user
    again = other.rank(WEIGHT, without=without(other, WEIGHT))
    assert list(got) == list(again)
    for name in got:
        assert got[name].permutation == pytest.approx(again[name].permutation, abs=1e-12)  # sums of three in two orders
        one, two = (replace(each[name], permutation=(0, 0, 0), dropped=None) for each in (got, again))
        assert one == two
    # other draws, and not other intervals alone
    assert world.rank(WEIGHT, seed=1)["say"].permutation[0] != pytest.approx(got["say"].permutation[0], abs=1e-9)


def test_order_is_by_what_is_lost_then_by_name() -> None:
    world = World(cases=40, seed=19)
    world.columns = {"z": world.noise(), "say": world.say, "b": world.noise(), "m": world.noise()}
    assert list(world.rank({"say": 1.0})) == ["say", "b", "m", "z"]


def plain() -> dict[str, Any]:
    there = np.ones((3, 4), bool)
    wanted = np.zeros((3, 4), bool)
    wanted[:, 1] = True
    x = np.random.default_rng(20).normal(size=(3, 4, 2)).astype(np.float32)
    return {"x_BCF": x, "there_BC": there, "wanted_BC": wanted, "user_B": np.arange(3), "names": ["a", "b"],
            "values": lambda x: x[..., 0]}  # fmt: skip


def changed(key: str, at: Any, value: Any) -> dict[str, Any]:
    given = plain()
    given[key] = given[key].copy()
    given[key][at] = value
    return given


REFUSED = {
    "nan": (changed("x_BCF", (2, 3, 1), np.nan), "feature b, case 2, candidate 3"),
    "infinite": (changed("x_BCF", (0, 1, 0), np.inf), "feature a, case 0, candidate 1"),
    "shapes": (plain() | {"user_B": np.arange(4)}, "ranked"),
    "empty": (plain() | {"x_BCF": np.zeros((3, 4, 0), np.float32), "names": []}, "ranked"),
    "not bool": (plain() | {"there_BC": np.ones((3, 4))}, "there_BC"),
    "twice": (plain() | {"names": ["a", "a"]}, "names"),
    "trusted": (plain() | {"trusted": ["scor"]}, "trusted"),
    "none wanted": (changed("wanted_BC", 1, False), "case 1"),
    "wanted, not there": (changed("there_BC", (2, 1), False), "case 2"),
    "nothing else": (plain() | {"wanted_BC": np.ones((3, 4), bool)}, "wanted_BC"),
    "value": (plain() | {"values": lambda x: np.full(x.shape[:2], np.nan)}, "values"),
    "shape of a value": (plain() | {"values": lambda x: x[:, 0, 0]}, "values"),
    "value of a refit": (plain() | {"without": lambda f: lambda x: x[0]}, "values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_ranked_is_refused_with_where_and_what_to_do(case: str) -> None:
    given, where = REFUSED[case]
    with pytest.raises(InputError) as caught:
        ranked(**given)
    assert where in (caught.value.where or "")
    assert None not in (caught.value.value, caught.value.valid, caught.value.next)
    ranked(**plain())  # and nothing else of it is wrong


def shown(rows: list[Ranked]) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(rows))
    return console.export_text()


def test_it_goes_to_json_and_reads_at_eighty_columns() -> None:
    world = leaky(21)
    world.columns["attributes/country_of_origin_like"] = world.say * 2 + 1
    world.columns["[bold]twin"] = world.say
    found = list(world.rank(WEIGHT, without=without(world, WEIGHT)).values())
    told = json.loads(json.dumps([asdict(r) for r in found]))
    assert [t["permutation"] for t in told] == [list(r.permutation) for r in found]
    text = shown(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text  # nothing is cut
    assert text.count("[bold]twin") == 2  # itself and what another is like: no name is taken for a style
    flat = " ".join(text.split())
    assert "next_week (!)" in text
    assert "next_week: suspected to know the future: alone (the more, the better) it orders" in flat
    for r in found:
        assert r.dropped is not None
        assert all(f"{v:+.4f}" in text for v in (*r.permutation, *r.dropped))


def test_a_column_that_says_nothing_is_not_shown() -> None:
    bare = Ranked("say", 0.1, (0.2, 0.1, 0.3), None, None, None)
    assert not {"dropped", "alike", "suspected"} & set(shown([bare]).split())
    assert {"dropped", "alike"} <= set(shown([replace(bare, dropped=(0, 0, 0), redundant_with=("a", -0.99))]).split())

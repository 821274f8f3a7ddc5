"""What features are worth, against loops and planted features: useful, noise, a twin, a leak, one of the user alone."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mmrec.errors import InputError
from mmrec.evaluate import importance as room
from mmrec.evaluate.importance import Ranked, ranked, table

NAMES = ("score", "useful", "twin", "noise", "constant", "user", "leak")


def shop(seed: int = 0, b: int = 300, c: int = 20) -> dict[str, Any]:
    """What is wanted hangs on `score` and `useful`; `leak` counts what happened after."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((b, c, len(NAMES))).astype(np.float32)
    x[..., 2] = 3 * x[..., 1] + 1  # says what `useful` says
    x[..., 4] = 7
    x[..., 5] = x[:, :1, 5]
    there = np.arange(c) < rng.integers(c // 2, c + 1, (b, 1))
    want = 1.5 * x[..., 0] + 1.5 * x[..., 1] + rng.gumbel(size=(b, c))
    wanted = np.zeros((b, c), bool)
    wanted[np.arange(b), np.where(there, want, -np.inf).argmax(1)] = True
    x[..., 6] = wanted * 3 + rng.random((b, c))
    return {"x_BCF": x, "there_BC": there, "wanted_BC": wanted, "user_B": np.arange(b) // 3, "names": NAMES}


def weighed(w: dict[str, float]) -> Any:
    return lambda x: sum(v * x[..., NAMES.index(n)] for n, v in w.items())


def found(seed: int = 0, **more: Any) -> dict[str, Ranked]:
    told = ranked(**shop(seed), values=weighed({"score": 1.5, "useful": 1.5, "noise": 0.02, "user": 1.0}), trusted=("score",), **more)
    return {r.name: r for r in told}


@pytest.mark.parametrize("seed", range(3))
def test_what_helps_costs_and_what_does_not_costs_nothing(seed: int) -> None:
    by = found(seed)
    assert next(iter(by)) in ("score", "useful")
    assert by["useful"].permutation[1] > 0.05
    for name in ("noise", "constant", "user", "twin", "leak"):  # the model looks at the first three, to no avail
        low, high = by[name].permutation[1:]
        assert low - 0.005 <= 0 <= high + 0.005  # .02 of noise moves a place in a thousand
    assert by["useful"].mutual_information > 5 * by["noise"].mutual_information
    assert by["constant"].mutual_information == 0
    assert by["user"].mutual_information < 0.001


def test_a_twin_is_named_on_both_sides_and_nothing_else_is() -> None:
    by = found()
    assert by["useful"].redundant_with == ("twin", pytest.approx(1))
    assert by["twin"].redundant_with == ("useful", pytest.approx(1))
    assert {n for n, r in by.items() if r.redundant_with} == {"useful", "twin"}


def test_a_column_from_the_future_is_named_and_a_strong_honest_one_is_not() -> None:
    by = found()
    assert by["leak"].leak == "alone it puts what was chosen above 100% of the others; what is known to be of before, above " + f"{by['score'].alone:.0%}"
    assert [n for n, r in by.items() if r.leak] == ["leak"]
    assert by["score"].alone > 0.75  # is strong
    # what is trusted is not suspected, however strong
    told = ranked(**shop(), values=weighed({"score": 1.0}), trusted=("score", "leak"))
    assert [r.name for r in told if r.leak] == []


def test_a_fit_without_is_asked_for_each_feature_and_its_loss_is_the_difference() -> None:
    asked = []

    def without(n: int) -> Any:
        asked.append(n)
        return weighed({name: 1.5 for name in ("score", "useful") if name != NAMES[n]})

    by = found(without=without)
    assert sorted(asked) == list(range(len(NAMES)))
    assert by["useful"].dropped[1] > 0.05
    assert abs(by["constant"].dropped[0]) < 0.01
    assert found()["useful"].dropped is None


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60))
def test_information_is_that_of_the_table_less_its_bias(rows: list[tuple[int, bool]]) -> None:
    n, both = len(rows), Counter(rows)
    one, other = Counter(x for x, _ in rows), Counter(y for _, y in rows)
    plain = sum(k / n * math.log(k * n / (one[x] * other[y])) for (x, y), k in both.items())
    want = max(0.0, plain - (len(both) - len(one) - len(other) + 1) / (2 * n))
    got = room._information(np.array([x for x, _ in rows], np.float32), np.array([y for _, y in rows]))
    assert got == pytest.approx(want, abs=1e-9)


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=7), min_size=1, max_size=6))
def test_alone_is_the_share_of_pairs_in_order(pools: list[list[tuple[int, bool]]]) -> None:
    c = max(map(len, pools))
    x, there, wanted = np.full((len(pools), c), 9.0), np.zeros((len(pools), c), bool), np.zeros((len(pools), c), bool)
    shares = []
    for b, pool in enumerate(pools):
        for n, (v, w) in enumerate(pool):
            x[b, n], there[b, n], wanted[b, n] = v, True, w
        pairs = [(v > o) + (v == o) / 2 for v, w in pool if w for o, z in pool if not z]
        if any(w for _, w in pool) and not all(w for _, w in pool):
            shares.append(sum(pairs) / len(pairs))
    kept = wanted.any(1)
    want = float(np.mean(shares)) if shares else 0.5
    got = room._Chosen(there[kept], wanted[kept]).above(x[kept])
    assert got == pytest.approx(max(want, 1 - want))


def test_exchanged_values_are_those_of_the_pool_and_of_the_users_where_a_pool_has_one() -> None:
    told, seen = shop(1, b=40), []

    def watched(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return x[..., 0]

    ranked(**told, values=watched)
    x, there = told["x_BCF"], told["there_BC"]
    assert len(seen) == 1 + 5 * len(NAMES)
    useful, user = seen[1 + 5], seen[1 + 5 * NAMES.index("user")]
    for b in range(40):
        assert sorted(useful[b, there[b], 1].tolist()) == sorted(x[b, there[b], 1].tolist())
    assert (useful[..., 1] != x[..., 1]).mean() > 0.5
    assert np.array_equal(np.delete(useful, 1, 2), np.delete(x, 1, 2))
    firsts = [user[b, 0, 5] for b in range(40)]
    assert sorted(firsts) == sorted(x[:, 0, 5].tolist())
    assert firsts != x[:, 0, 5].tolist()
    assert all(len(set(user[b, there[b], 5].tolist())) == 1 for b in range(40))


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert list(map(asdict, found().values())) == list(map(asdict, found().values()))


def test_what_is_not_a_number_or_does_not_fit_is_refused_by_name() -> None:
    told = shop()
    told["x_BCF"][3, 0, 1] = np.nan
    with pytest.raises(InputError) as caught:
        ranked(**told, values=weighed({"score": 1.0}))
    assert caught.value.where == "useful"
    with pytest.raises(InputError, match="don't fit"):
        ranked(**shop() | {"names": NAMES[:-1]}, values=weighed({"score": 1.0}))


def test_a_table_reads_at_eighty_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table([asdict(r) for r in found().values()]))
    text = console.export_text()
    assert "useful" in text
    assert "leak?" in text
    assert max(map(len, text.splitlines())) <= 80

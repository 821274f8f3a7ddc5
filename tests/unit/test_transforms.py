"""Declared transforms against loops: what is learned, what comes out, and that another column in its place is refused."""

from __future__ import annotations

import json
import math
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec.errors import InputError, QualityError
from mmrec.models.transforms import HOW, Transforms

NUMBERS = st.lists(st.sampled_from([math.nan, 0.0, 1.0, 1.0, 2.5, -3.0, 1e6]), min_size=1, max_size=12)
NAMES = st.lists(st.sampled_from([None, "", "a", "b", "b", "😀"]), min_size=1, max_size=12)


def numbers(values: list[float]) -> np.ndarray:
    return np.array(values, np.float64)


def names(values: list[str | None]) -> np.ndarray:
    return np.array(values, object)


def through(how: str, seen: np.ndarray, asked: np.ndarray, target: np.ndarray | None = None) -> tuple[Transforms, np.ndarray]:
    made = Transforms.fit({"x": how}, {"x": seen}, target)
    again = Transforms.of_record(json.loads(json.dumps(made.record())))
    assert again == made
    assert again.fingerprint == made.fingerprint
    out = again.apply({"x": asked})
    assert out.dtype == np.float32
    assert out.shape == (len(asked), len(made.outputs))
    assert np.isfinite(out).all()
    return made, out


@pytest.mark.parametrize("how", ["standardise", "log"])
@given(seen=NUMBERS, asked=NUMBERS)
def test_numbers_are_standardised_by_what_was_seen(how: str, seen: list[float], asked: list[float]) -> None:
    made, out = through(how, numbers(seen), numbers(asked))
    scale = (lambda v: math.copysign(math.log1p(abs(v)), v)) if how == "log" else (lambda v: v)
    there = [scale(v) for v in seen if not math.isnan(v)]
    mean = sum(there) / len(there) if there else 0.0
    spread = math.sqrt(sum((v - mean) ** 2 for v in there) / len(there)) if there else 0.0
    for n, v in enumerate(asked):
        want = 0.0 if math.isnan(v) else (scale(v) - mean) / (spread if spread > 1e-9 else 1.0)
        assert out[n, 0] == pytest.approx(want, rel=1e-5, abs=1e-5)
    # whether a value is missing is told where some were, and only there
    missing = any(map(math.isnan, seen))
    assert made.outputs == (("x", "x: missing") if missing else ("x",))
    if missing:
        assert out[:, 1].tolist() == [float(math.isnan(v)) for v in asked]


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=60), st.lists(st.integers(-60, 60), min_size=1, max_size=9), st.integers(2, 6))
def test_a_number_is_in_one_bucket_and_buckets_are_about_as_full(seen: list[int], asked: list[int], parts: int) -> None:
    made, out = through(f"bucket {parts}", numbers(seen), numbers(asked))
    edges = made.columns[0].learned["edges"]
    assert len(made.outputs) == len(edges) + 1 <= parts
    for n, v in enumerate(asked):
        assert out[n].tolist() == [float(k == sum(e <= v for e in edges)) for k in range(len(edges) + 1)]
    if len(set(seen)) == len(seen) >= 2 * parts:
        held = through(f"bucket {parts}", numbers(seen), numbers(seen))[1].sum(0)
        assert held.max() - held.min() <= len(seen) / parts + 1


@given(NAMES, NAMES, st.integers(1, 3))
def test_a_vocabulary_has_the_commonest_names_and_a_place_for_all_others(seen: list[str | None], asked: list[str | None], most: int) -> None:
    made, out = through(f"vocabulary {most}", names(seen), names(asked))
    many = {v: seen.count(v) for v in seen if v is not None}
    kept = sorted(sorted(many, key=lambda v: (-many[v], v))[:most])
    assert made.outputs == (*(f"x={v}" for v in kept), "x: another")
    for n, v in enumerate(asked):
        want = [float(v == k) for k in kept] + [float(v is not None and v not in kept)]
        assert out[n].tolist() == want


@given(NAMES)
def test_a_name_has_its_slot_whoever_was_seen(asked: list[str | None]) -> None:
    _, out = through("hash 5", names(["zzz"]), names(asked))
    for n, v in enumerate(asked):
        slot = None if v is None else int.from_bytes(blake2b(v.encode(), digest_size=8).digest(), "little") % 5
        assert out[n].tolist() == [float(k == slot) for k in range(5)]


def test_times_of_a_period_lie_on_a_circle() -> None:
    _, out = through("cyclic 24", numbers([0, 6]), numbers([0, 6, 12, 18, 24, math.nan]))
    assert np.allclose(out, [[0, 1], [1, 0], [0, -1], [-1, 0], [0, 1], [0, 0]], atol=1e-6)


@given(st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.sampled_from([0.0, 1.0, 2.0])), min_size=1, max_size=12), st.integers(1, 5))
def test_a_target_mean_is_smoothed(rows: list[tuple[str | None, float]], m: int) -> None:
    seen, y = names([v for v, _ in rows]), numbers([t for _, t in rows])
    _, out = through(f"target {m}", seen, names(["a", "b", "never", None]), y)
    mean = float(y.mean())

    def smoothed(value: str | None) -> float:
        own = [t for v, t in rows if v == value and value is not None]
        return (sum(own) + m * mean) / (len(own) + m)

    assert np.allclose(out[:, 0], [smoothed("a"), smoothed("b"), mean, mean], atol=1e-6)


def test_columns_come_in_the_order_of_their_names_whatever_was_told_first() -> None:
    columns = {"b": numbers([1, 2, 3]), "a": names(["x", "y", "x"])}
    one = Transforms.fit({"b": "standardise", "a": "vocabulary"}, columns)
    two = Transforms.fit({"a": "vocabulary", "b": "standardise"}, dict(reversed(columns.items())))
    assert one == two
    assert one.outputs == ("a=x", "a=y", "a: another", "b")
    assert one.fingerprint != Transforms.fit({"b": "log", "a": "vocabulary"}, columns).fingerprint
    assert Transforms().apply(columns).shape == (3, 0)


@pytest.mark.parametrize("words", ["logs", "", "bucket x", "bucket -1", "bucket 2.5", "log 3", "vocabulary 0"])
def test_what_is_no_transform_is_refused_with_what_is(words: str) -> None:
    column = names(["a"]) if words.startswith("vocabulary") else numbers([1.0])
    with pytest.raises(InputError) as caught:
        Transforms.fit({"item.price": words}, {"item.price": column})
    assert "item.price" in caught.value.where
    assert caught.value.value == words


@pytest.mark.parametrize(("declared", "part"), [
    ({"item.prize": "log"}, "item.price"), ({"item.price": "vocabulary"}, "standardise"), ({"user.land": "log"}, "hash"),
    ({"user.land": "target"}, "vocabulary"),
])  # fmt: skip
def test_a_column_that_is_not_there_or_of_another_kind_is_refused(declared: dict[str, str], part: str) -> None:
    columns = {"item.price": numbers([1.0, 2.0]), "user.land": names(["nl", "de"])}
    with pytest.raises(InputError) as caught:
        Transforms.fit(declared, columns)
    assert part in str(caught.value.valid)


def people(seed: int, n: int = 400) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"item.price": rng.gamma(2, 20, n), "item.age": rng.exponential(30, n), "user.land": rng.choice(["nl", "de", "fr"], n, p=[0.5, 0.3, 0.2]).astype(object),
            "user.age": rng.choice(["18-24", "65+"], n).astype(object)}  # fmt: skip


def test_a_swapped_column_and_one_of_other_data_are_refused_and_another_day_is_not() -> None:
    declared = {"item.price": "log", "item.age": "standardise", "user.land": "vocabulary", "user.age": "vocabulary"}
    made = Transforms.fit(declared, people(0))
    for seed in range(1, 6):
        made.check(people(seed))
        made.check(people(seed, 60))
    day = people(9)
    for one, other in (("item.price", "user.land"), ("user.land", "user.age")):
        swapped = day | {one: day[other], other: day[one]}
        with pytest.raises(QualityError, match="not what the model was trained on"):
            made.check(swapped)
    cents = day | {"item.price": day["item.price"] * 100}
    with pytest.raises(QualityError) as caught:
        made.check(cents)
    assert caught.value.where == "feature item.price"
    empty = day | {"item.age": np.full(400, math.nan)}
    with pytest.raises(QualityError):
        made.check(empty)


def test_every_transform_is_tested() -> None:
    assert set(HOW) == {"standardise", "log", "bucket", "hash", "vocabulary", "cyclic", "target"}

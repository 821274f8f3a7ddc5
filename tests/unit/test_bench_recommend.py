"""`mmrec bench recommend`: real stations on a small home, and what it tells of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmrec.bench.shop import purchases
from tests.conftest import mmrec


def test_purchases_are_of_the_size_asked_for_the_same_twice_and_unlike_with_another_seed() -> None:
    user, item = purchases(500, 300, 8_000)
    again, other = purchases(500, 300, 8_000), purchases(500, 300, 8_000, seed=1)
    np.testing.assert_array_equal(np.stack(again), np.stack((user, item)))
    assert len(other[0]) != len(user) or (other[1] != item).any()
    size = np.bincount(user)
    assert len(size) == 500
    assert size.min() >= 5
    assert len(user) == pytest.approx(8_000, rel=0.1)
    assert item.min() == 0
    assert item.max() < 300
    # a few items of a group are bought much more often than the rest
    bought = np.sort(np.bincount(item, minlength=300))
    assert bought[-30:].sum() > 1.3 * bought[:30].sum()


def test_the_command_runs_both_stations_for_two_sizes_and_adds_up() -> None:
    told = json.loads(mmrec("bench", "recommend", "--users", "300", "--items", "400", "--json").stdout)
    assert (told["users"], told["items"], told["k"], told["dim"]) == (300, 400, 100, 64)
    assert told["rows"] == 300 * 100
    assert told["peak_mb"] > 50
    parts = told["parts"]
    assert set(parts) == {"items_s", "users_s", "kernel_s", "rows_s", "write_s"}
    assert sum(parts.values()) == pytest.approx(told["recommend_s"], abs=0.03)  # each is rounded to a hundredth
    both, half = (told[f"{n}recommend_s"] + told[f"{n}publish_s"] for n in ("", "half_"))
    assert told["million_users_s"] == pytest.approx(both + (both - half) / 150 * (10**6 - 300), abs=200)  # of .03 / 150 a user
    assert told["kernel_share"] == pytest.approx(parts["kernel_s"] / told["recommend_s"], abs=0.05)

"""`mmrec bench recommend`: real stations on a small home, and what it tells of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmrec import config, night
from mmrec.bench import recommend as bench
from mmrec.bench.shop import purchases
from mmrec.context import Night
from mmrec.lake import blocks
from mmrec.publish import publish
from mmrec.recommend import spread
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


def test_who_goes_on_after_an_interruption_makes_neither_vectors_nor_lists_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_USERS", 30)
    bench._home(tmp_path, 100, 150, 10, 1)
    asked: dict[str, list[int]] = {}

    def counted(patch: pytest.MonkeyPatch, name: str, stop: int | None) -> None:
        honest = getattr(spread, name)
        asked[name] = []

        def fn(folder: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                if len(asked[name]) == stop:
                    raise KeyboardInterrupt
                asked[name].append(batch.num_rows)
                yield from honest(folder, iter([batch]))

        patch.setattr(spread, name, fn)

    told: list[tuple[str, int, int]] = []
    for stops, want in (((2, None), ([30, 30], [])), ((None, 1), ([30, 10], [30])), ((None, None), ([], [30, 30, 10]))):
        with monkeypatch.context() as patch:
            for name, stop in zip(("vectors_of", "lists_of"), stops, strict=True):
                counted(patch, name, stop)
            shop = Night(config.load(tmp_path / "home"), bench._DAYS[1], progress=lambda *done: told.append(done))
            if stops == (None, None):
                counts = night.recommend(shop)
            else:
                with pytest.raises(KeyboardInterrupt):
                    night.recommend(shop)
        assert (asked["vectors_of"], asked["lists_of"]) == want
    assert counts["rows"] == 100 * 10
    assert told == [("user vectors", n, 100) for n in (0, 30, 60, 60, 90, 100)] + [("lists", n, 100) for n in (0, 30, 30, 60, 90, 100)]
    publish(shop)
    assert shop.lake.day("gold.recommendations", bench._DAYS[1]).num_rows == 1000
    assert shop.lake.day("gold.user_vectors", bench._DAYS[1]).num_rows == 100

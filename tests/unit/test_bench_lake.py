"""`mmrec bench lake`: what it tells, and that it tells nothing where the two writes did not give the same rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmrec.bench import lake as bench
from mmrec.errors import QualityError, TransientError
from mmrec.lake.store import Lake
from tests.conftest import mmrec

PARTS = {"stage_s", "audit_s", "commit_s", "fsync_s", "fsyncs"}
KEYS = {"rows", "rounds", *(p + k for p in ("", "spark_") for k in ("plain_s", "mmrec_s", "ratio", "parts"))}


def half(plain: list[float], ours: list[float], rows: str = "same") -> dict[str, Any]:
    parts = [{k: float(n) for k in PARTS} for n in range(len(plain))]
    return {"plain_s": plain, "mmrec_s": ours, "parts": parts, "plain_hash": "same", "mmrec_hash": rows}


def test_medians_of_either_engine_and_their_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = {"local": half([2, 9, 1], [3, 1, 4]), "spark": half([4, 4, 4], [1, 5, 99])}
    asked = []

    def planted(engine: str, rows: int, rounds: int) -> dict[str, Any]:
        asked.append((engine, rows, rounds))
        return halves[engine]

    monkeypatch.setattr(bench, "_half", planted)
    told = bench.bench(3, lambda *_: None, rows=10)
    assert asked == [("local", 10, 3), ("spark", 10, 3)]
    assert set(told) == KEYS
    assert [told[k] for k in ("plain_s", "mmrec_s", "ratio", "spark_plain_s", "spark_mmrec_s", "spark_ratio")] == [2, 3, 1.5, 4, 5, 1.25]
    assert told["parts"] == told["spark_parts"] == dict.fromkeys(PARTS, 1.0)


@pytest.mark.parametrize("engine", ["local", "spark"])
def test_an_engine_whose_two_writes_gave_other_rows_spoils_the_measurement(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(bench, "_half", lambda e, *_: half([1], [1], "other" if e == engine else "same"))
    with pytest.raises(QualityError, match="other rows") as caught:
        bench.bench(1, lambda *_: None)
    assert engine in caught.value.where


def test_an_engine_that_fails_is_worth_another_try_and_shows_its_words() -> None:
    with pytest.raises(TransientError, match="no such engine"):
        bench._half("duckdb", 10, 1)


def test_one_engines_half_writes_the_same_rows_by_both_ways_and_counts_what_it_did(tmp_path: Path, spark: Any) -> None:
    real = os.fsync
    told = bench.measure(spark, tmp_path, 500, 1)
    assert os.fsync is real
    assert told["plain_hash"] == told["mmrec_hash"]
    assert [len(told[k]) for k in ("plain_s", "mmrec_s", "parts")] == [1, 1, 1]
    assert all(set(p) == PARTS and p["fsyncs"] >= 4 for p in told["parts"])
    made = Lake(tmp_path / "lake")
    assert [str(d) for d in made.run_dates()] == [f"2026-01-0{d}" for d in range(1, 4)]
    assert {made.day(bench.TABLE, d).num_rows for d in made.run_dates()} == {500}


def test_a_row_that_one_side_lost_is_seen(tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench._plain_rows
    monkeypatch.setattr(bench, "_plain_rows", lambda folder: real(folder).slice(1))
    told = bench.measure(spark, tmp_path, 50, 0)
    assert told["plain_hash"] != told["mmrec_hash"]


def test_the_rows_are_lists_of_twenty_places_the_same_each_time() -> None:
    rows = bench.made(45)
    assert rows.equals(bench.made(45))
    assert rows["rank"].to_pylist() == [n % 20 + 1 for n in range(45)]
    assert pa.compute.count_distinct(rows["user_id"]).as_py() == 3


@pytest.mark.engines
@pytest.mark.deep
def test_one_real_round_tells_both_engines_medians_ratios_and_parts() -> None:
    told = json.loads(mmrec("bench", "lake", "--rounds", "1", "--rows", "2000", "--json").stdout)
    assert set(told) == KEYS
    assert (told["rows"], told["rounds"]) == (2000, 1)
    for prefix in ("", "spark_"):
        assert told[f"{prefix}ratio"] == pytest.approx(told[f"{prefix}mmrec_s"] / told[f"{prefix}plain_s"], rel=0.1)
        assert set(told[f"{prefix}parts"]) == PARTS

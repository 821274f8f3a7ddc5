"""`mmrec bench features`: the SQL and the frames give the same rows, what it tells, and that it tells nothing where they don't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from mmrec.bench import features as bench
from mmrec.errors import QualityError
from mmrec.lake.store import Lake

CASE = {"rows", "duckdb_s", "local_s", "spark_s", "ratio_local", "ratio_spark", "slowest_task"}


def test_the_frames_give_the_rows_of_the_sql_and_a_changed_event_other_ones(spark: Any, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    bench.shop(lake.root, 4000)
    bench.by_hand(lake, tmp_path)
    staged = bench.by_frames(spark, lake, Lake(tmp_path / "out"))
    assert bench.hashes(tmp_path) == bench.hashes(staged)
    # the shop has what the job is for: longer histories than are kept, users and items without any, corrections
    with duckdb.connect() as db:
        told = db.execute(f"""SELECT max(n_interactions), min(n_interactions), max(len(item_ids)), sum(n_interactions)
                              FROM '{tmp_path}/gold.user_sequences.parquet'""").fetchall()[0]  # fmt: skip
    most, least, longest, total = told
    assert (least, longest) == (0, 50)
    assert most > 50
    assert total < 4000 * 0.995
    other = Lake(tmp_path / "other")
    bench.shop(other.root, 4000, seed=1)
    (tmp_path / "again").mkdir()
    bench.by_hand(other, tmp_path / "again")
    assert bench.hashes(tmp_path / "again") != bench.hashes(staged)


def test_the_slowest_task_is_that_of_a_stage_that_takes_long_after_the_mark(tmp_path: Path) -> None:
    def end(stage: int, took: int) -> str:
        return json.dumps({"Event": "SparkListenerTaskEnd", "Stage ID": stage, "Task Info": {"Launch Time": 5, "Finish Time": 5 + took}}) + "\n"

    before = end(1, 9000) + end(1, 1) + end(1, 1)
    after = [end(2, t) for t in (400, 1000, 500)] + [end(3, t) for t in (10, 90, 10)] + [end(4, t) for t in (900, 100)]
    (tmp_path / "app").write_text(before + "".join(after) + '{"Event": "SparkListenerSta' "")
    # of 6 s: the stage of little work is passed over, and so is the one of two tasks
    assert bench.slowest(tmp_path, len(before), 6.0) == 2.0
    assert bench.slowest(tmp_path, len(before), 1.0) == 9.0
    assert bench.slowest(tmp_path, len(before) + sum(map(len, after)), 1.0) == 1.0


def planted(answers: dict[str, list[dict[str, Any]]]) -> type:
    class Planted:
        def __init__(self, where: str, words: list[str], log: Path) -> None:
            self.side = words[-2]

        def __enter__(self) -> Planted:
            return self

        def __exit__(self, *_: object) -> None: ...

        def ask(self, order: dict[str, Any]) -> dict[str, Any]:
            return answers[self.side].pop(0)

    return Planted


def test_medians_ratios_and_how_time_grows_with_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def side(name: str, *cases: list[float]) -> list[dict[str, Any]]:
        more = {"slowest_task": 1.5} if name == "spark" else {}
        return [a for times in cases for a in ({"gold": "same"}, *({"seconds": t} | more for t in times))]

    answers = {"duckdb": side("duckdb", [2, 9, 1], [10, 10, 99]), "local": side("local", [3, 3, 3], [11, 1, 12]),
               "spark": side("spark", [5, 6, 7], [90, 80, 70])}  # fmt: skip
    monkeypatch.setattr(bench, "Side", planted(answers))
    monkeypatch.setattr(bench, "shop", lambda *_: None)
    told = bench.bench(3, lambda *_: None, rows=(100, 1000))
    assert [set(c) for c in told["cases"]] == [CASE, CASE]
    assert [[c[k] for k in ("rows", "duckdb_s", "local_s", "spark_s", "ratio_local", "ratio_spark", "slowest_task")] for c in told["cases"]] == [
        [100, 2, 3, 6, 1.5, 3.0, 1.5], [1000, 10, 11, 80, 1.1, 8.0, 1.5]]  # fmt: skip
    assert told["growth"] == {"duckdb": 0.5, "local": 0.367, "spark": 1.333}
    assert not any(answers.values())


@pytest.mark.parametrize("wrong", ["local", "spark"])
def test_a_side_of_other_rows_spoils_the_measurement(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setattr(bench, "Side", planted({s: [{"gold": "other" if s == wrong else "same"}] for s in bench.SIDES}))
    monkeypatch.setattr(bench, "shop", lambda *_: None)
    with pytest.raises(QualityError, match="other rows") as caught:
        bench.bench(1, lambda *_: None, rows=(100,))
    assert caught.value.value == [wrong]

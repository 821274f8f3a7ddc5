"""One run_date's attempts and the record of its stations; the first failure is the one that is told."""

from __future__ import annotations

import threading
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mmrec.config import Config
from mmrec.context import Night, note
from mmrec.errors import QualityError, TransientError
from mmrec.lake import commit
from mmrec.lake.store import Lake

DAY = date(2026, 3, 2)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    Lake(tmp_path / "lake").create_all()
    return Config(home=tmp_path)


def steps(config: Config) -> list[dict[str, Any]]:
    return sorted(Lake(config.lake).arrow("ops.steps").to_pylist(), key=lambda r: (r["attempt"], r["step"]))


def test_processes_that_work_on_one_date_at_once_have_numbers_of_their_own(config: Config) -> None:
    nights, taken = [Night(config, DAY) for _ in range(12)], []
    threads = [threading.Thread(target=lambda n=n: taken.append(n.attempt)) for n in nights]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(taken) == list(range(1, 13))
    assert Night(config, DAY).attempt == 13
    assert Night(config, date(2026, 3, 3)).attempt == 1


def test_a_station_that_ended_is_on_record_with_what_it_read_and_one_that_failed_is_not(config: Config) -> None:
    night = Night(config, DAY)
    with night.station("ingest"):
        night.lake.arrow("bronze.files")
    with pytest.raises(ZeroDivisionError), night.station("validate"):
        raise ZeroDivisionError
    note(night)
    (row,) = steps(config)
    version = night.lake.version("bronze.files")
    assert (row["run_date"], row["attempt"], row["step"], row["run_id"]) == (DAY, 1, "ingest", None)
    assert row["read"] == f'{{"bronze.files": {version}}}'


def test_commits_of_a_station_carry_its_attempt_step_and_settings(config: Config) -> None:
    night = Night(config, DAY)
    with night.station("monitor"):
        stamp = dict(night.lake.stamp)
    assert (stamp["attempt"], stamp["step"]) == ("1", "monitor")
    assert len(stamp["config_sha256"]) == 16
    other = Night(Config(home=config.home, threads=1), DAY)
    with other.station("monitor"):
        assert other.lake.stamp["config_sha256"] != stamp["config_sha256"]


def test_where_even_the_record_can_not_be_written_the_first_failure_is_told_and_names_the_second(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise TransientError("the disk is full")

    night = Night(config, DAY)
    with night.station("ingest"):
        pass
    monkeypatch.setattr(commit, "append", full)

    def fails() -> None:
        try:
            raise QualityError("a delivery is empty")
        finally:
            note(night)

    with pytest.raises(QualityError, match="a delivery is empty") as told:
        fails()
    assert told.value.__notes__ == ["nor could ops.steps be written: the disk is full"]
    with pytest.raises(TransientError, match="the disk is full"):
        note(night)

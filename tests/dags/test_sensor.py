"""Late sources: what is waited for, how long, and what is said at the deadline."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from mmrec.flow.sensor import SourceSensor, SourceTrigger, missing


def context(**params: Any) -> dict[str, Any]:
    run = SimpleNamespace(dag_id="nightly", run_id="r", run_after=datetime(2026, 3, 2, 2, tzinfo=UTC))
    ti = SimpleNamespace(start_date=datetime.now(UTC), task_id="wait_for_sources", try_number=1)
    return {"params": params, "dag_run": run, "ti": ti, "data_interval_end": run.run_after}


@pytest.fixture
def home(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMREC_HOME", str(bare_home))
    (bare_home / "drop").mkdir()
    write(bare_home, ["events/{day}/*.jsonl", "items-{run_date}.csv"])
    return bare_home


def write(home: Path, expect: list[str], wait: float = 60) -> None:
    (home / "mmrec.toml").write_text(
        f"[source]\nspec = 'files'\nroot = '{home / 'drop'}'\nexpect = {expect}\n[airflow]\nwait_minutes = {wait}\npoll_s = 0.05\n"
    )


def deliver(home: Path, name: str, text: str = "x") -> None:
    path = home / "drop" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def sense(**params: Any) -> list[str]:
    return SourceSensor(task_id="wait_for_sources").execute(context(**params))


def trigger_of(deferred: TaskDeferred) -> SourceTrigger:
    """As the triggerer makes it: from what was serialized."""
    path, about = deferred.trigger.serialize()  # type: ignore[union-attr]
    assert path == f"{SourceTrigger.__module__}.{SourceTrigger.__qualname__}"
    return SourceTrigger(**about)


def event(trigger: SourceTrigger) -> dict[str, Any]:
    async def first() -> Any:
        return await anext(trigger.run())

    return asyncio.run(first()).payload


def test_nothing_expected_passes_at_once_without_a_source_folder(home: Path) -> None:
    (home / "mmrec.toml").write_text("[source]\nspec = 'movielens-small'\n")
    assert sense() == []


def test_day_is_the_last_local_day_before_the_run_date_and_everything_there_passes_at_once(home: Path) -> None:
    deliver(home, "events/2026-03-01/a.jsonl")
    deliver(home, "items-2026-03-02.csv")
    assert sense() == ["events/2026-03-01/*.jsonl", "items-2026-03-02.csv"]


def test_the_run_date_of_the_parameter_is_the_one_that_is_waited_for(home: Path) -> None:
    deliver(home, "events/2026-02-28/a.jsonl")
    deliver(home, "items-2026-03-01.csv")
    assert sense(run_date="2026-03-01") == ["events/2026-02-28/*.jsonl", "items-2026-03-01.csv"]
    with pytest.raises(AirflowFailException, match="not a date"):
        sense(run_date="01.03.2026")


def test_a_file_that_comes_late_ends_the_wait_and_an_empty_one_does_not(home: Path) -> None:
    deliver(home, "events/2026-03-01/a.jsonl")
    deliver(home, "items-2026-03-02.csv", "")
    with pytest.raises(TaskDeferred) as deferred:
        sense()

    async def late() -> Any:
        waiting = asyncio.create_task(anext(trigger_of(deferred.value).run()))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        deliver(home, "items-2026-03-02.csv")
        return (await asyncio.wait_for(waiting, 10)).payload

    told = asyncio.run(late())
    assert told["missing"] == []
    assert deferred.value.method_name == "resumed"
    assert SourceSensor(task_id="t").resumed(context(), told) == ["events/2026-03-01/*.jsonl", "items-2026-03-02.csv"]


def test_at_the_deadline_the_night_goes_on_and_the_log_names_what_is_missing_and_where(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deliver(home, "events/2026-03-01/a.jsonl")
    write(home, ["events/{day}/*.jsonl", "items-{run_date}.csv"], wait=0.5 / 60)
    with pytest.raises(TaskDeferred) as deferred:
        sense()
    told = event(trigger_of(deferred.value))
    sensor = SourceSensor(task_id="t")
    assert sensor.resumed(context(), told) == ["events/2026-03-01/*.jsonl"]
    said = capsys.readouterr().out
    assert "nothing matches items-2026-03-02.csv below" in said
    assert "publishes nothing, the last list stays" in said


def test_with_no_time_to_wait_the_night_goes_on_without_deferring(home: Path) -> None:
    write(home, ["items-{run_date}.csv"], wait=0)
    assert sense() == []


@pytest.mark.parametrize("pattern", ["/etc/*", "../other/*", ""])
def test_a_pattern_that_leaves_the_source_is_a_wrong_setting(home: Path, pattern: str) -> None:
    write(home, [pattern])
    with pytest.raises(AirflowFailException, match="exit 2"):
        sense()


def test_files_expected_of_a_source_without_a_folder_are_a_wrong_setting(home: Path) -> None:
    (home / "mmrec.toml").write_text("[source]\nspec = 'files'\nexpect = ['a']\n")
    with pytest.raises(AirflowFailException, match="no folder to look in"):
        sense()


def test_the_builtin_world_is_looked_for_in_the_home(home: Path) -> None:
    (home / "mmrec.toml").write_text("[source]\nexpect = ['a-{day}']\n")
    (home / "source").mkdir()
    (home / "source" / "a-2026-03-01").write_text("x")
    assert sense() == ["a-2026-03-01"]


def test_missing_agrees_with_looking_at_every_file(tmp_path: Path) -> None:
    for name, text in {"a/1.csv": "x", "a/2.csv": "", "b/c/3.json": "x"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "a" / "folder.csv").mkdir()
    patterns = ["a/*.csv", "a/2.csv", "a/folder.csv", "**/*.json", "b/*.json", "nowhere/*"]
    assert missing(tmp_path, patterns) == ["a/2.csv", "a/folder.csv", "b/*.json", "nowhere/*"]

"""What a task does with its command: tries, messages, results, events, scratch, kills. By Airflow's own runner."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import AssetAlias
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.sdk.execution_time.context import OutletEventAccessors

from mmrec.errors import InputError
from mmrec.flow import claims
from mmrec.flow.operator import CleanOperator, StepOperator, _json
from mmrec.flow.request import Request, failure, last_error
from tests.dags.conftest import Told
from tests.dags.test_process import LINUX, alive, until

HERE = Path(__file__).parent
AT = "2026-03-02T10:00:00+00:00"


@pytest.fixture(scope="module")
def codes(drive: Callable[..., Told], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    """The planted DAGs after one process of dag.test()."""
    home = tmp_path_factory.mktemp("codes") / "home"
    home.mkdir()
    (home / "mmrec.toml").write_text("")
    claims.claim(home, date(2026, 3, 9), "nightly/another", max_age=timedelta(hours=1))
    return home, drive(HERE / "planted", home, [
        {"dag": "codes", "logical_date": AT, "conf": {"force": True, "engine": "local"}},
        {"dag": "claimed", "logical_date": AT},
        {"dag": "claimed", "logical_date": AT, "conf": {"run_date": "2026-03-09"}},
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("task", "state", "tries"),
    [
        ("wrong", "failed", 1),
        ("bad", "failed", 1),
        ("later", "failed", 3),
        ("crash", "failed", 3),
        ("killed", "failed", 3),
        ("chatter", "failed", 3),
        ("late", "failed", 1),  # retries = 0
        ("flaky", "success", 2),
        ("tells", "success", 1),
        ("quiet", "success", 1),
    ],
)
def test_exit_2_and_3_are_tried_once_and_75_kills_and_crashes_as_often_as_allowed(
    codes: tuple[Path, Told], task: str, state: str, tries: int
) -> None:
    found = codes[1].runs[0]["tasks"][task]
    assert (found["state"], found["tries"]) == (state, tries)


@pytest.mark.parametrize(
    ("message", "times"),
    [
        ("AirflowFailException: publish monitor of 2026-03-02: a person must change something (exit 2). InputError: it is so\n  where: here", 1),
        ("AirflowFailException: publish monitor of 2026-03-02: not good enough to publish (exit 3). QualityError: it is so\n  where: here", 2),
        ("AirflowException: publish monitor of 2026-03-02: exit 75. TransientError: it is so\n  where: here", 3),
        ("exit 137, killed, or out of memory. it said nothing", 3),
        ("AirflowTaskTimeout", 1),
        ("its output is no JSON: 'no json", 3),
    ],
)  # fmt: skip
def test_the_message_of_a_failure_holds_the_steps_own_error_whole(codes: tuple[Path, Told], message: str, times: int) -> None:
    assert codes[1].log.count(message) >= times, codes[1].log[-3000:]


def test_the_command_gets_the_runs_date_engine_and_force_a_scratch_folder_and_none_of_airflows_secrets(codes: tuple[Path, Told]) -> None:
    home, told = codes
    result = told.runs[0]["tasks"]["quiet"]["result"]
    assert result["words"] == ["steps", "publish", "monitor", "--date", "2026-03-02", "--engine", "local", "--force",
                               "--home", str(home), "--json"]  # fmt: skip
    scratch = claims.scratch(home, date(2026, 3, 2), f"codes/{told.runs[0]['run_id']}") / "quiet-1"
    assert result["seen"] == {"TMPDIR": str(scratch), "SPARK_LOCAL_DIRS": str(scratch), "MMREC_HOME": str(home)}
    assert result["there"]
    assert result["secret"] == []
    assert not scratch.exists()
    assert "a line of the log" in told.log


def test_an_asset_event_carries_the_run_date_and_training_is_due_only_when_the_monitor_says_so(codes: tuple[Path, Told]) -> None:
    events = codes[1].runs[0]["events"]
    published = sorted(e["task"] for e in events if e["asset"] == "gold.recommendations")
    assert published == ["flaky", "quiet", "tells"]
    assert {e["extra"]["run_date"] for e in events} == {"2026-03-02"}
    due = [e for e in events if e["asset"] == "ops.training_due"]
    assert due == [{"asset": "ops.training_due", "task": "tells",
                    "extra": {"run_date": "2026-03-02", "reason": "drift of 0.3"}}]  # fmt: skip


def test_a_dag_that_is_scheduled_on_training_due_is_queued_by_that_event(codes: tuple[Path, Told]) -> None:
    assert codes[1].runs[0]["queued"] == ["waiting"]


def test_the_claim_is_released_by_a_run_whose_work_failed(codes: tuple[Path, Told]) -> None:
    home, told = codes
    run = told.runs[1]
    assert run["state"] == "failed"
    assert {k: v["state"] for k, v in run["tasks"].items()} == {"prepare": "success", "work": "failed", "tidy": "success"}
    assert not (home / "runs" / "claims" / "2026-03-02.json").exists()


def test_a_date_that_another_run_holds_is_worth_a_retry_and_is_not_released_by_the_run_that_was_refused(codes: tuple[Path, Told]) -> None:
    home, told = codes
    tasks = {k: v["state"] for k, v in told.runs[2]["tasks"].items()}
    assert tasks["prepare"] == "failed"
    assert tasks["work"] == "upstream_failed"
    assert tasks["tidy"] != "success"
    assert "AirflowException: claim: exit 75. TransientError: another run works on this date" in told.log
    assert "nightly/another" in (home / "runs" / "claims" / "2026-03-09.json").read_text()


@LINUX
def test_after_kill_9_of_airflows_own_process_nothing_of_the_step_is_left(
    airflow_db: Path, bare_home: Path, tmp_path: Path
) -> None:
    mark = f"31{abs(hash(str(tmp_path))) % 10**8}"
    folder = tmp_path / "dags"
    folder.mkdir()
    text = (HERE / "planted" / "codes.py").read_text()
    head = text[: text.index("with DAG(")]
    slow = f"import subprocess, time; subprocess.Popen(['sleep', '{mark}']); subprocess.run(['sleep', '{mark}'])"
    folder.joinpath("slow.py").write_text(head + f"with DAG('slow', schedule=None, start_date=datetime(2026, 1, 1), params=PARAMS):\n    Planted(task_id='slow', code={slow!r})\n")
    env = os.environ | {"MMREC_HOME": str(bare_home), "AIRFLOW__CORE__DAGS_FOLDER": str(folder)}
    runs = json.dumps([{"dag": "slow", "logical_date": AT}])
    process = subprocess.Popen([sys.executable, str(HERE / "drive.py"), str(folder), runs, str(tmp_path / "out")],
                               env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        assert until(lambda: sum(words[:1] == ["sleep"] for words in alive(mark)) == 2, 60), alive(mark)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert until(lambda: not alive(mark)), alive(mark)


class Small(StepOperator):
    """StepOperator whose process is a line of Python."""

    code = "print('{}')"

    def _process(self, words: list[str]) -> list[str]:
        return [sys.executable, "-c", self.code, *words]


def context(**more: Any) -> dict[str, Any]:
    run = SimpleNamespace(dag_id="nightly", run_id="r", run_after=datetime(2026, 3, 2, 23, 30, tzinfo=UTC))
    ti = SimpleNamespace(task_id="small", try_number=1)
    return {"params": {}, "dag_run": run, "ti": ti, "outlet_events": OutletEventAccessors()} | more


@pytest.fixture
def home(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMREC_HOME", str(bare_home))
    return bare_home


@LINUX
def test_sigterm_to_the_task_as_airflow_sends_it_kills_the_step_and_its_children_and_ends_the_task(home: Path, tmp_path: Path) -> None:
    mark = f"32{abs(hash(str(tmp_path))) % 10**8}"
    task = Small(task_id="small", steps=("embed",))
    task.code = f"import subprocess; subprocess.Popen(['sleep', '{mark}']); subprocess.run(['sleep', '{mark}'])"
    waiting = f"import os, signal, time; time.sleep(2); os.kill({os.getpid()}, signal.SIGTERM)"
    before = signal.signal(signal.SIGTERM, lambda *_: task.on_kill())  # Airflow's own handler does this
    killer = subprocess.Popen([sys.executable, "-c", waiting])
    try:
        with pytest.raises(AirflowException, match="exit 143, terminated"):
            task.execute(context())
    finally:
        signal.signal(signal.SIGTERM, before)
        killer.wait()
    assert alive(mark) == [words for words in alive(mark) if "sleep" not in words[0]] == []
    assert list((home / "runs" / "scratch").glob("*")) == []


def test_a_kill_before_the_command_has_begun_ends_the_task_without_it(home: Path) -> None:
    task = Small(task_id="small", steps=("embed",))
    task.on_kill()
    begun = time.monotonic()
    with pytest.raises(AirflowException, match="killed"):
        task.execute(context())
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("zone", "more", "expected"),
    [
        ("UTC", {"data_interval_end": datetime(2026, 3, 2, 2, tzinfo=UTC)}, "2026-03-02"),
        ("America/New_York", {"data_interval_end": datetime(2026, 3, 2, 2, tzinfo=UTC)}, "2026-03-01"),
        ("Asia/Tokyo", {"data_interval_end": datetime(2026, 3, 1, 17, tzinfo=UTC)}, "2026-03-02"),
        ("UTC", {}, "2026-03-02"),  # an asset started it: run_after
        ("Europe/Berlin", {"data_interval_end": None}, "2026-03-03"),
        ("Europe/Berlin", {"params": {"run_date": "2025-12-24"}}, "2025-12-24"),
    ],
)
def test_run_date_is_the_parameter_else_the_local_day_of_the_intervals_end_else_of_run_after(
    home: Path, zone: str, more: dict[str, Any], expected: str
) -> None:
    (home / "mmrec.toml").write_text(f"zone = '{zone}'\n")
    assert str(Request.of(context(**more)).run_date) == expected


def test_without_a_home_a_task_fails_for_good_and_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value in (None, str(tmp_path)):
        monkeypatch.delenv("MMREC_HOME") if value is None and "MMREC_HOME" in os.environ else monkeypatch.setenv("MMREC_HOME", value or "")
        for task in (Small(task_id="small", steps=("embed",)), CleanOperator(task_id="clean")):
            with pytest.raises(AirflowFailException, match="export MMREC_HOME=HOME"):
                task.execute(context())


@pytest.mark.parametrize("wrong", [{"steps": ("embed", "embedd")}, {}, {"steps": ("embed",), "words": ("verify",)}])
def test_a_task_of_no_known_station_is_refused_when_the_dag_file_is_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        StepOperator(task_id="t", **wrong)


def test_verify_is_a_task_of_words_and_its_failure_names_the_broken_checks(home: Path) -> None:
    task = Small(task_id="small", words=("verify",))
    assert task.command(Request.of(context())) == ["verify", "--home", str(home), "--json"]
    assert task.outlets == []
    checks = [{"check": "keys", "ok": True, "detail": ""}, {"check": "hash", "ok": False, "detail": "differs"}]
    task.code = f"import json, sys; print(json.dumps({{'ok': False, 'checks': {checks}}}, indent=1)); sys.exit(3)"
    with pytest.raises(AirflowFailException, match=r"exit 3\). QualityError: 1 checks are broken\nhash: differs"):
        task.execute(context())


def test_a_station_that_exits_0_with_output_that_names_no_training_makes_no_event_of_it(home: Path) -> None:
    task, about = Small(task_id="small", steps=("publish", "monitor")), context()
    task.code = "import json; print(json.dumps({'monitor': {'training_due': None}}))"
    task.execute(about)
    assert [str(k.name) for k in about["outlet_events"] if isinstance(k, AssetAlias)] == []


@pytest.mark.parametrize(("code", "kind"), [(2, AirflowFailException), (3, AirflowFailException), (75, AirflowException),
                                            (1, AirflowException), (134, AirflowException), (137, AirflowException)])  # fmt: skip
def test_only_2_and_3_end_a_task_for_good(code: int, kind: type[Exception]) -> None:
    assert type(failure(code, "", "x")) is kind


def test_the_last_error_is_the_last_of_mmrecs_own_else_the_last_lines() -> None:
    log = "INFO x\nInputError: old\n  where: a\nmore\nTransientError: new\n  where: b\n  next:  c"
    assert last_error(log) == "TransientError: new\n  where: b\n  next:  c"
    assert last_error("\n".join(map(str, range(20)))) == "\n".join(map(str, range(12, 20)))
    assert last_error("") == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{\n "a": {\n  "b": 1\n }\n}\n', {"a": {"b": 1}}),
        ('log\n{"old": 1}\nlog }\n{\n "a": 1\n}\nlog after }\n', {"a": 1}),
        ("{}", {}),
        ("no json", None),
        ("{ not }\n", None),
        ("", None),
    ],
)
def test_the_output_is_the_last_object_that_was_printed(text: str, value: Any) -> None:
    assert _json(text) == value

"""The DAG files: small, light to parse, complete, and the same night as the list of stations."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, AssetAlias
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.encoders import coerce_to_core_timetable

from mmrec.steps import STEPS
from tests.dags.conftest import ROOT

NAMES = ("nightly", "training", "maintenance")
HEAVY = ("pyspark", "torch", "mlflow", "pandas", "pyarrow", "deltalake", "numpy", "onnxruntime", "duckdb", "pysail", "docker", "kubernetes")
PARSE = """
import json, runpy, sys
import airflow.sdk
before = set(sys.modules)
made = runpy.run_path(sys.argv[1])
print(json.dumps({"new": sorted(set(sys.modules) - before), "doc": made["shop"].note}))
"""


def parse(name: str, home: str | None) -> dict[str, Any]:
    env = {k: v for k, v in os.environ.items() if k != "MMREC_HOME"} | ({"MMREC_HOME": home} if home else {})
    done = subprocess.run([sys.executable, "-c", PARSE, str(ROOT / "dags" / f"{name}.py")], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def load(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> DAG:
    monkeypatch.setenv("MMREC_HOME", str(home))
    made = runpy.run_path(str(ROOT / "dags" / f"{name}.py"))
    made["dag"].validate()
    return made["dag"]


@pytest.fixture(params=NAMES)
def dag(request: pytest.FixtureRequest, bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> DAG:
    return load(request.param, bare_home, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_a_dag_file_is_at_most_80_lines_and_has_no_loop_no_branch_no_function(name: str) -> None:
    text = (ROOT / "dags" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 80
    logic = (ast.For, ast.While, ast.If, ast.Try, ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.IfExp)
    assert not [n for n in ast.walk(ast.parse(text)) if isinstance(n, logic)]


@pytest.mark.parametrize("name", NAMES)
def test_parsing_imports_nothing_heavy_and_of_mmrec_only_names_settings_dates_and_flow(name: str, bare_home: Path) -> None:
    new = parse(name, str(bare_home))["new"]
    assert not [m for m in new if m.split(".")[0] in HEAVY]
    own = {m for m in new if m.split(".")[0] == "mmrec"}
    assert {m for m in own if not m.startswith("mmrec.flow")} <= {"mmrec", "mmrec.config", "mmrec.dates", "mmrec.errors", "mmrec.files", "mmrec.late", "mmrec.steps"}
    assert not own & {"mmrec.flow.process", "mmrec.flow.runners"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("home", [None, "/nowhere/at/all"])
def test_without_a_home_a_dag_file_is_imported_all_the_same_and_its_page_says_what_to_set(name: str, home: str | None) -> None:
    doc = parse(name, home)["doc"]
    assert "has no home yet" in doc
    assert "export MMREC_HOME=HOME" in doc
    assert (home or "MMREC_HOME is not set") in doc


def test_with_a_wrong_setting_a_dag_file_is_imported_and_its_page_names_the_setting(bare_home: Path) -> None:
    (bare_home / "mmrec.toml").write_text("[airflow]\nretires = 3\n")
    assert "airflow.retires" in parse("nightly", str(bare_home))["doc"]
    (bare_home / "mmrec.toml").write_text("zone = 'Europe/Nowhere'\n")
    assert "Europe/Nowhere" in parse("nightly", str(bare_home))["doc"]


def test_the_nightly_runs_the_nights_stations_in_their_order(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    night = load("nightly", bare_home, monkeypatch)
    order = [t.task_id for t in night.topological_sort()]
    ran = [name for task in order for name in getattr(night.get_task(task), "steps", ())]
    assert ran == [s.name for s in STEPS if s.nightly]
    training = load("training", bare_home, monkeypatch)
    ran = [name for t in training.topological_sort() for name in getattr(t, "steps", ())]
    assert ran == [s.name for s in STEPS if not s.nightly]


def longest(dag: DAG) -> int:
    """Tasks on the longest path, by trying them all."""

    def walk(task_id: str) -> int:
        return 1 + max((walk(d) for d in dag.get_task(task_id).downstream_task_ids), default=0)

    return max(walk(t.task_id) for t in dag.roots)


def test_the_longest_path_of_the_nightly_has_six_tasks_and_one_start_waits_for_both_roots(
    bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = load("nightly", bare_home, monkeypatch)
    assert longest(night) == 6
    assert {t.task_id for t in night.roots} == {"prepare", "wait_for_sources"}
    assert night.get_task("silver").upstream_task_ids == {"prepare", "wait_for_sources"}
    assert night.get_task("prepare").is_setup
    assert night.get_task("tidy").is_teardown
    assert night.get_task("tidy").trigger_rule == "all_done_setup_success"
    assert {"prepare", "publish"} <= night.get_task("tidy").upstream_task_ids


def test_every_task_has_a_time_limit_a_pool_that_exists_retries_that_back_off_and_a_page(dag: DAG) -> None:
    pools = set(json.loads((ROOT / "infra" / "airflow" / "pools.json").read_text())) | {"default_pool"}
    assert dag.dagrun_timeout == timedelta(hours=20)
    for task in dag.tasks:
        assert timedelta(0) < task.execution_timeout < dag.dagrun_timeout
        assert task.pool in pools
        assert (task.retries, task.retry_delay, task.retry_exponential_backoff) == (3, timedelta(seconds=60), 2.0)
        assert task.max_retry_delay == timedelta(hours=1)
        for code in ("| 2 |", "| 3 |", "| 75 |", "137"):
            assert code in task.doc_md
        for name in getattr(task, "steps", ()):
            assert f"| {name} |" in task.doc_md
        if getattr(task, "steps", ()):
            assert task.pool in ("gpu", "spark")
    assert dag.doc_md.startswith(f"# {dag.dag_id}")


def test_the_nightlys_page_says_how_to_ask_for_a_range_of_dates(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doc = load("nightly", bare_home, monkeypatch).doc_md
    code = re.search(r"python -c '(.*?)'\n", doc, re.S)
    assert code is not None
    done = subprocess.run([sys.executable, "-c", code[1].replace("\n    ", "\n")], capture_output=True, text=True)
    assert done.stdout.split() == ["2026-11-08T23:00:00+00:00", "2026-11-12T22:59:59+00:00"], done.stderr
    assert "airflow backfill create --dag-id nightly --from-date" in doc


def test_schedules_zone_dates_and_retries_come_from_the_homes_settings(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare_home / "mmrec.toml").write_text(
        "zone = 'Europe/Berlin'\n[airflow]\nnightly = '30 3 * * *'\nstart = 2026-02-01\nend = 2026-12-31\ncatchup = true\nretries = 5\nretry_delay_s = 7\n"
    )
    night = load("nightly", bare_home, monkeypatch)
    assert coerce_to_core_timetable(night.timetable).serialize() == {"expression": "30 3 * * *", "timezone": "Europe/Berlin"}
    assert night.start_date.isoformat() == "2026-01-31T23:00:00+00:00"
    assert night.end_date.isoformat() == "2026-12-31T22:59:59.999999+00:00"
    assert night.catchup
    assert night.max_active_runs > 1  # a backfill beside the night
    assert {t.retries for t in night.tasks} == {5}
    assert {t.retry_delay for t in night.tasks} == {timedelta(seconds=7)}


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ({}, True),
        ({"run_date": None}, True),
        ({"run_date": "2026-03-02"}, True),
        ({"run_date": "2026-3-2"}, False),
        ({"run_date": "2026-13-02"}, False),
        ({"run_date": 20260302}, False),
        ({"engine": "local"}, True),
        ({"engine": "duckdb"}, False),
        ({"force": True}, True),
        ({"force": "yes"}, False),
    ],
)
def test_parameters_are_checked_before_a_run_begins(dag: DAG, given: dict[str, Any], right: bool) -> None:
    try:
        dag.params.update(given)  # as a run's configuration is merged
        dag.params.validate()
    except ParamValidationError:
        assert not right
    else:
        assert right


def test_the_assets_of_the_tasks_are_the_gold_tables_that_their_stations_write(dag: DAG) -> None:
    wrote = {s.name: {t for t in s.writes if t.startswith("gold.")} for s in STEPS}
    for task in dag.tasks:
        expected = set().union(*(wrote[s] for s in getattr(task, "steps", ())))
        found = {o.name: o.uri for o in task.outlets if isinstance(o, Asset)}
        assert found == {t: f"x-mmrec://gold/{t.removeprefix('gold.')}" for t in expected}
        aliases = [o.name for o in task.outlets if isinstance(o, AssetAlias)]
        assert aliases == (["ops.training_due.reasons"] if "monitor" in getattr(task, "steps", ()) else [])


def test_maintenance_tidies_only_tables_whose_promises_hold(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maintenance = load("maintenance", bare_home, monkeypatch)
    assert maintenance.get_task("maintain").words == ("maintain",)
    assert maintenance.get_task("maintain").upstream_task_ids == {"verify"}
    assert maintenance.get_task("maintain").trigger_rule == "all_success"


def test_training_is_scheduled_by_the_week_or_by_the_nightlys_word(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = load("training", bare_home, monkeypatch)
    schedule = coerce_to_core_timetable(training.timetable)
    assert [a.name for _, a in schedule.asset_condition.iter_assets()] == ["ops.training_due"]
    assert schedule.summary == "Asset or 0 4 * * 0"
    assert training.max_active_runs == 1

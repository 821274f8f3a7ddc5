"""The three DAGs as shipped, by Airflow itself, on each engine: a night, a training, maintenance."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import mmrec, share_encoders
from tests.dags.conftest import ROOT, Told

DAY = "2026-03-02"


@pytest.fixture(scope="module", params=["local", pytest.param("spark", marks=pytest.mark.deep)])
def lived_under_airflow(
    request: pytest.FixtureRequest, drive: Callable[..., Told], tmp_path_factory: pytest.TempPathFactory, encoders_cache: Path
) -> tuple[Path, Told]:
    """A tiny home after a night, a training and maintenance on an engine."""
    home = tmp_path_factory.mktemp("under-airflow") / "home"
    mmrec("init", "--home", str(home), "--size", "tiny")
    share_encoders(home, encoders_cache)
    conf = {"engine": request.param}
    return home, drive(ROOT / "dags", home, [
        {"dag": "nightly", "logical_date": f"{DAY}T10:00:00+00:00", "conf": conf},
        # as a run that an asset started: no logical date
        {"dag": "training", "logical_date": None, "run_after": f"{DAY}T11:00:00+00:00", "conf": conf},
        {"dag": "maintenance", "logical_date": f"{DAY}T12:00:00+00:00"},
    ])  # fmt: skip


def runs(told: Told) -> dict[str, dict[str, Any]]:
    return {r["dag"]: r for r in told.runs}


def test_night_training_and_maintenance_succeed_at_the_first_try_of_every_task(lived_under_airflow: tuple[Path, Told]) -> None:
    told = lived_under_airflow[1]
    assert {r["dag"]: r["state"] for r in told.runs} == {"nightly": "success", "training": "success", "maintenance": "success"}, told.log[-3000:]
    tasks = [t for r in told.runs for t in r["tasks"].values()]
    assert {(t["state"], t["tries"]) for t in tasks} == {("success", 1)}
    assert len(tasks) == 7 + 2 + 3


def test_the_lists_of_the_day_that_the_interval_ended_on_are_in_the_lake_once(lived_under_airflow: tuple[Path, Told]) -> None:
    home, told = lived_under_airflow
    counts = runs(told)["nightly"]["tasks"]["publish"]["result"]["publish"]
    rows = json.loads(mmrec("sql", f"select count(*) n, count(distinct (user_id, rank)) keys, count(distinct user_id) users from recommendations where run_date = '{DAY}'",
                            "--home", str(home), "--json").stdout)  # fmt: skip
    assert rows == [{"n": counts["rows"], "keys": counts["rows"], "users": counts["users"]}]
    assert counts["users"] >= 60


def test_every_gold_table_had_one_event_with_the_run_date_for_teams_that_schedule_on_it(lived_under_airflow: tuple[Path, Told]) -> None:
    events = runs(lived_under_airflow[1])["nightly"]["events"]
    gold = {e["asset"]: (e["task"], e["extra"]) for e in events if e["asset"].startswith("gold.")}
    about = {"run_date": DAY}
    assert gold == {
        "gold.item_embeddings": ("embed", about), "gold.user_sequences": ("lists", about),
        "gold.item_features": ("lists", about), "gold.user_profiles": ("lists", about), "gold.user_vectors": ("lists", about),
        "gold.recommendations": ("publish", about),
    }  # fmt: skip
    assert len([e for e in events if e["asset"].startswith("gold.")]) == 6


def test_training_learned_as_of_the_local_day_it_was_due_and_its_gate_decided(lived_under_airflow: tuple[Path, Told]) -> None:
    tasks = runs(lived_under_airflow[1])["training"]["tasks"]
    assert tasks["learn"]["result"]["run_date"] == tasks["gate"]["result"]["run_date"] == DAY
    assert tasks["gate"]["result"]["promote"]["decision"] in ("promoted", "held")


def test_maintenance_found_every_promise_kept_and_nothing_left_behind(lived_under_airflow: tuple[Path, Told]) -> None:
    home, told = lived_under_airflow
    tasks = runs(told)["maintenance"]["tasks"]
    assert tasks["verify"]["result"]["ok"]
    assert tasks["clean"]["result"] == []
    assert [p.name for p in (home / "runs" / "claims").glob("*.json")] == []
    assert list((home / "runs" / "scratch").glob("*")) == []

"""When a model should be trained: never trained, too old, other features; and when not: fresh, or a date of the past."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmrec import dates, schema
from mmrec.bundle import registry, server
from mmrec.bundle.bundle import seal
from mmrec.config import Config
from mmrec.lake import commit
from mmrec.lake.store import Lake
from mmrec.night import Night
from mmrec.night import due as training_due
from tests.conftest import serve

DAY = date(2026, 3, 20)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Lake(tmp_path / "home" / "lake").create("gold.recommendations")
    return tmp_path / "home"


def due(home: Path, day: date = DAY, **more: Any) -> str | None:
    return training_due(Night(Config(home=home, **more), day))


def trained(home: Path, days_ago: float, zone: str = "UTC") -> None:
    (home / "runs").mkdir(exist_ok=True)
    moment = dates.as_of(DAY, zone) - timedelta(days=days_ago)
    (home / "runs" / "last-training.json").write_text(json.dumps({"as_of": moment.isoformat()}))


def publish(home: Path, day: date) -> None:
    row = {"run_date": day, "arm": "main", "user_id": "u", "rank": 1, "item_id": "i", "score": 1.0, "source": "model", "reason": "why",
           "propensity": 1.0, "model_version": "0", "run_id": "r"}  # fmt: skip
    lake, name = Lake(home / "lake"), "gold.recommendations"
    rows = pa.Table.from_pylist([row], schema.table(name).arrow)
    commit.write(lake, name, rows, run_id="r", pinned=commit.fence(lake, name, day), partition=day)


def crown(home: Path, blank: Path, as_of: date = DAY, **about: Any) -> None:
    shutil.copy(blank, home / "mlflow.db")
    config = Config(home=home)
    told = {"kind": "two_tower", "encoders": {}, "as_of": dates.as_of(as_of).isoformat()} | about
    (home / "made").mkdir()
    (home / "made" / "item_map.json").write_text("[]")
    seal(home / "made", told)
    client = server.client(config)
    run = client.create_run(client.get_experiment_by_name("t").experiment_id)
    serve(config, registry.register(config, home / "made", run.info.run_id, told))


def test_a_home_that_never_trained_is_due(home: Path) -> None:
    assert due(home) == "no model was trained yet"
    publish(home, DAY - timedelta(days=1))
    publish(home, DAY)
    assert due(home) == "no model was trained yet"


@pytest.mark.parametrize(("ago", "every", "want"), [(0, 1, None), (6, 7, None), (6.99, 7, None), (7, 7, 7), (30, 7, 30), (7, 8, None),
                                                   (1, 1, 1), (-3, 1, None)])  # fmt: skip
def test_a_training_is_old_when_its_days_are_over(home: Path, ago: float, every: int, want: int | None) -> None:
    trained(home, ago)
    told = due(home, train={"every_days": every})
    assert told == (f"the last training is {want} days old; train.every_days is {every}" if want else None)


def test_days_are_those_of_the_shops_zone(home: Path) -> None:
    trained(home, 7, "Pacific/Auckland")
    assert due(home, zone="Pacific/Auckland") is not None
    assert due(home, zone="America/Los_Angeles") is not None  # its day begins later
    trained(home, 7, "America/Los_Angeles")
    assert due(home, zone="Pacific/Auckland") is None


def test_a_date_of_the_past_never_asks_for_a_training(home: Path) -> None:
    publish(home, DAY)
    for back in (1, 30):
        assert due(home, DAY - timedelta(days=back)) is None
    trained(home, 100)
    assert due(home, DAY - timedelta(days=1)) is None
    assert due(home) is not None
    assert due(home, DAY + timedelta(days=1)) is not None


def test_a_champion_of_other_features_is_due_however_fresh(home: Path, blank: Path) -> None:
    trained(home, 1)
    crown(home, blank, DAY - timedelta(days=1), features="0" * 16)
    assert due(home) == "the champion was trained on features of another definition"
    # a backtest is not scored with it
    assert due(home, DAY - timedelta(days=3)) is None


def test_a_champion_that_does_not_say_its_features_is_due_too(home: Path, blank: Path) -> None:
    trained(home, 1)
    crown(home, blank)
    assert due(home) == "the champion was trained on features of another definition"


def test_a_fresh_champion_of_these_features_or_popularity_is_not_due(home: Path, blank: Path, tmp_path: Path) -> None:
    trained(home, 1)
    assert due(home) is None  # version 0
    crown(home, blank, features=schema.features_fingerprint())
    assert due(home) is None

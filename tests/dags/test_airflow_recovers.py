"""The short form of `make soak`: a scheduled night, the training it asks for, and a kill -9, under a whole real Airflow."""

from pathlib import Path

import pytest

from tests.soak import nights

pytestmark = pytest.mark.deep


@pytest.mark.parametrize(("db", "kill"), [("sqlite", "scheduler"), ("postgres", "worker")])
def test_a_scheduled_night_and_its_training_are_green_and_a_killed_night_recovers(
    db: str, kill: str, tmp_path: Path, encoders_cache: Path
) -> None:
    told = nights.soak(db, tmp_path, engine="local", nights=1, kills=(kill,), whole=False, encoders=encoders_cache,
                       recovery_s=900)  # tests run beside it, and nothing is timed; `make soak` waits no longer than 180 s
    assert told["scheduled"]["nights"] == 1
    assert told["scheduled"]["trainings"] >= 1
    assert told[f"kill_{kill}"]["what"] == kill
    assert told["end"]["run_dates"] == 2

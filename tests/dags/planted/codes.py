"""A DAG whose commands end in every way a command can: real small processes, by the real operator."""

import sys
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG

from mmrec.flow.assets import TRAINING_DUE
from mmrec.flow.operator import ClaimOperator, ReleaseOperator, StepOperator
from mmrec.flow.parse import PARAMS


class Planted(StepOperator):
    """StepOperator, but for what its process runs: a line of Python that gets the words of mmrec as arguments."""

    def __init__(self, *, code: str, **kwargs: Any) -> None:
        super().__init__(steps=("publish", "monitor"), **kwargs)
        self.code = code

    def _process(self, words: list[str]) -> list[str]:
        return [sys.executable, "-c", self.code, *words]


def fails(code: int, name: str) -> str:
    return f"import sys; print('{name}: it is so\\n  where: here', file=sys.stderr); sys.exit({code})"


FLAKY = """
import os, pathlib, sys
mark = pathlib.Path(os.environ["MMREC_HOME"]) / "tried-once"
if mark.exists(): print("{}"); sys.exit(0)
mark.touch(); sys.exit(75)
"""
TELLS = """
import json, os, sys
print("a line of the log", file=sys.stderr)
seen = {k: os.environ.get(k) for k in ("TMPDIR", "SPARK_LOCAL_DIRS", "MMREC_HOME")}
secret = [k for k in os.environ if k.startswith("AIRFLOW__")]
there = os.path.isdir(os.environ["TMPDIR"])
print(json.dumps({"words": sys.argv[1:], "seen": seen, "secret": secret, "there": there, "monitor": {"training_due": %s}}, indent=1))
"""
with DAG(
    "codes", schedule=None, start_date=datetime(2026, 1, 1), params=PARAMS, dagrun_timeout=timedelta(hours=1),
    default_args={"retries": 2, "retry_delay": timedelta(0)},
):  # fmt: skip
    Planted(task_id="wrong", code=fails(2, "InputError"))
    Planted(task_id="bad", code=fails(3, "QualityError"))
    Planted(task_id="later", code=fails(75, "TransientError"))
    Planted(task_id="crash", code="raise RuntimeError('a bug')")
    Planted(task_id="killed", code="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    Planted(task_id="flaky", code=FLAKY)
    Planted(task_id="chatter", code="print('no json')")
    Planted(task_id="late", code="import time; time.sleep(60)", execution_timeout=timedelta(seconds=1), retries=0)
    Planted(task_id="tells", code=TELLS % "'drift of 0.3'")
    Planted(task_id="quiet", code=TELLS % "None")

with DAG("claimed", schedule=None, start_date=datetime(2026, 1, 1), params=PARAMS,
         dagrun_timeout=timedelta(hours=1)):  # fmt: skip
    claim = ClaimOperator(task_id="prepare").as_setup()
    work = Planted(task_id="work", code=fails(3, "QualityError"))
    claim >> work >> ReleaseOperator(task_id="tidy").as_teardown(setups=claim)

with DAG("waiting", schedule=[TRAINING_DUE], start_date=datetime(2026, 1, 1)):
    Planted(task_id="learn", code="print('{}')")

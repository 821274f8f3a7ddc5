"""What a DAG file needs while it is parsed: the home's schedule, the arguments all tasks share, and the pages.

In: MMREC_HOME and its mmrec.toml, read once a parse. Out: a `Shop`. Without a home there is one all the same, with
defaults and a note that says what to set; its tasks then fail with the same words.
Trade-off: schedules and retries change with the next parse of the file, half a minute after mmrec.toml.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import Param

from mmrec import dates
from mmrec.config import AirflowConfig
from mmrec.errors import MmrecError
from mmrec.flow.request import home_config
from mmrec.steps import step

log = logging.getLogger(__name__)

TASK_TIMEOUT, RUN_TIMEOUT = timedelta(hours=6), timedelta(hours=20)

CODES = """
### When it fails

The log ends with the exit code and the error: what, where, the value, the valid values, the next command to type.

| exit | what it means | what to do |
|---|---|---|
| 2 | a person must change something; not tried again | what the message says, then *clear* the task |
| 3 | not good enough to publish; not tried again, yesterday's list stays | mend the source, then *clear* the task |
| 75 | something outside failed; tried again, after longer and longer pauses | nothing; after the last try, *clear* it |
| 137, 143 | killed, or out of memory; tried again | more memory, or fewer slots for its pool |
| other | an error in the code; tried again | report it with the log |

Clearing is always safe: what is done already is not done twice, and a date is published once.
"""


@dataclass(frozen=True)
class Shop:
    """A home as its DAGs see it; `scoring_pool` is where lists are made: by the GPU, where scoring runs on one."""

    airflow: AirflowConfig
    zone: str
    note: str
    scoring_pool: str = "spark"

    @classmethod
    def read(cls) -> Shop:
        """The home of MMREC_HOME, or one with defaults and a note."""
        try:
            config = home_config()
            dates.as_of(date(2026, 1, 1), config.zone)
            return cls(config.airflow, config.zone, "", "gpu" if config.device == "cuda" else "spark")
        except MmrecError as error:
            return cls(AirflowConfig(), "UTC", f"**This DAG has no home yet.**\n\n```\n{error}\n```\n\n")

    def dag(self, doc: str, **more: Any) -> dict[str, Any]:
        """Arguments of `DAG(...)` that all of them share."""
        tz, a = ZoneInfo(self.zone), self.airflow
        return {
            "doc_md": self.note + doc + CODES,
            "start_date": datetime.combine(a.start, time(), tz),
            "end_date": datetime.combine(a.end, time.max, tz) if a.end else None,
            "catchup": a.catchup,
            "dagrun_timeout": RUN_TIMEOUT,
            "tags": ["mmrec"],
            "default_args": {
                "owner": "mmrec",
                "retries": a.retries,
                "retry_delay": timedelta(seconds=a.retry_delay_s),
                "retry_exponential_backoff": 2.0,
                "max_retry_delay": timedelta(hours=1),
                "execution_timeout": TASK_TIMEOUT,
                "on_failure_callback": log_failure,
            },
            "params": PARAMS,
        } | more


PARAMS = {
    "run_date": Param(None, type=["null", "string"], format="date", pattern=r"^\d{4}-\d{2}-\d{2}$",
                      description="the shop's local day; empty: the day this run ends on"),
    "engine": Param("spark", type="string", enum=["spark", "local"], description="what computes tables"),
    "force": Param(False, type="boolean", description="publish again what is published, under a new run_id"),
}  # fmt: skip


def page(*steps: str, doc: str = "") -> str:
    """A task's page: what its stations do, read and write, and what to do when it fails."""
    rows = [step(name) for name in steps]
    table = ["| station | what it does | reads | writes |", "|---|---|---|---|"]
    table += [f"| {s.name} | {s.summary} | {', '.join(s.reads) or 'sources'} | {', '.join(s.writes) or 'files'} |"
              for s in rows]  # fmt: skip
    return "\n".join([doc, "", *(table if rows else [])]).strip() + "\n" + CODES


def log_failure(context: Any) -> None:
    """One line for those who watch the log: which task, which try, why."""
    ti = context["ti"]
    log.error("mmrec: %s.%s of %s failed on try %s: %s", ti.dag_id, ti.task_id, ti.run_id, ti.try_number,
              str(context.get("exception")).split("\n")[0])  # fmt: skip

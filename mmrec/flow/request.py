"""What a task is asked to do: the home, the run_date, the engine, whether to force; and how its failure is told.

In: Airflow's context, MMREC_HOME. Out: `Request`; `failure` turns an exit code into the exception Airflow acts on.
run_date: the parameter, else the latest run_date of the asset events that started the run, else the local date, in the
shop's zone, of the data interval's end, or of `run_after` where there is no interval.
Trade-off: settings are read anew by every task, so that a change holds from the next task on, not the next run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from mmrec import config as settings
from mmrec import dates
from mmrec.config import Config
from mmrec.errors import InputError, MmrecError, QualityError

_NAMES = ("InputError", "QualityError", "TransientError")
_LONGEST = 2000  # of a message on the page


@dataclass(frozen=True)
class Request:
    """One task of one DAG run."""

    config: Config
    run_date: date
    owner: str
    engine: str
    force: bool

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> Request:
        """Read the context and the home's settings. Raises: InputError: there is no home, or a wrong parameter."""
        params, run = context["params"], context["dag_run"]
        config = home_config()
        end = context.get("data_interval_end") or run.run_after
        given = params.get("run_date") or _of_assets(context)
        when = dates.parse(given, "parameter run_date") if given else dates.run_date_of(end, config.zone)
        return cls(
            config, when, f"{run.dag_id}/{run.run_id}", params.get("engine") or "spark", bool(params.get("force"))
        )


def _of_assets(context: Mapping[str, Any]) -> str | None:
    """The latest run_date that the events which started this run tell of; None: it was not started by assets."""
    events = context.get("triggering_asset_events") or {}
    told = [e.extra.get("run_date") for of_one in events.values() for e in of_one if e.extra]
    return max((d for d in told if d), default=None)


def home_config() -> Config:
    """The settings of MMREC_HOME. Raises: InputError: it isn't set, or names no home."""
    named = os.environ.get("MMREC_HOME", "")
    if not named or not (Path(named) / "mmrec.toml").is_file():
        raise InputError(
            "MMREC_HOME is not set" if not named else "MMREC_HOME names a folder that is no home",
            where="environment of Airflow's DAG processor and workers: MMREC_HOME",
            value=named or None,
            valid="a folder with mmrec.toml",
            next="mmrec init --home HOME, then export MMREC_HOME=HOME",
        )
    return settings.load(Path(named))


def failure(code: int, text: str, what: str) -> AirflowException:
    """The exception for a command that ended with `code`: 2 and 3 end the task, anything else is worth a retry."""
    told = last_error(text) or "it said nothing"
    if code == InputError.exit_code:
        return AirflowFailException(f"{what}: a person must change something (exit 2). {told}")
    if code == QualityError.exit_code:
        return AirflowFailException(f"{what}: not good enough to publish (exit 3). {told}")
    return AirflowException(f"{what}: exit {code}{_signal(code)}. {told}")


def refused(error: MmrecError, what: str) -> AirflowException:
    """The same for an error that was raised in the task itself."""
    return failure(error.exit_code, f"{type(error).__name__}: {error}", what)


def last_error(text: str) -> str:
    """The last of mmrec's errors in what a command printed, whole; else its last lines."""
    lines = text.strip().splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith(tuple(f"{name}: " for name in _NAMES))]
    return "\n".join(lines[starts[-1] :] if starts else lines[-8:])[-_LONGEST:]


def _signal(code: int) -> str:
    return {137: ", killed, or out of memory", 143: ", terminated"}.get(code, "")

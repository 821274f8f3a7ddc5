"""The operators: stations as one command, a claim before them, its release after them, and cleaning.

In: names of stations, or words of another mmrec command. Out: the counts the command prints, as the task's result;
an event for every asset it writes, with the run_date; AirflowFailException for exit 2 and 3, AirflowException else.
Trade-off: the command is the interface, so a task can be repeated by typing the line at the top of its log; what a
task tells the next one lies in the home, never in Airflow's database.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException

from mmrec.errors import InputError, MmrecError
from mmrec.flow import assets, claims
from mmrec.flow.parse import page
from mmrec.flow.request import Request, failure, refused
from mmrec.steps import step

_SECRET = ("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_")  # Airflow's own settings are none of the command's business


class StepOperator(BaseOperator):
    """Stations, one after the other, in one process; or another mmrec command.

    Args:
        steps: names out of `mmrec.steps.STEPS`; run for the run's date, engine and force.
        words: instead, a command and its arguments, as ("verify",).
    """

    template_fields = ("steps", "words")
    ui_color = "#dbeafe"

    def __init__(self, *, steps: tuple[str, ...] = (), words: tuple[str, ...] = (), **kwargs: Any) -> None:
        if bool(steps) == bool(words):
            raise InputError("a task runs stations or a command", where="StepOperator", value=(steps, words),
                             valid="steps=(...) or words=(...)", next="edit the DAG file")  # fmt: skip
        for name in steps:
            step(name)
        super().__init__(**({"outlets": assets.outlets(tuple(steps)), "doc_md": page(*steps)} | kwargs))
        self.steps, self.words = tuple(steps), tuple(words)
        self._running: Any = None
        self._killed = False

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from mmrec.flow.process import following_parent

        what = " ".join(self.steps or self.words)
        try:
            request = Request.of(context)
            ti, folder = context["ti"], claims.scratch(request.config.home, request.run_date, request.owner)
            scratch = folder / f"{ti.task_id}-{ti.try_number}"
            scratch.mkdir(parents=True, exist_ok=True)
            self._running = self._runner(request, scratch, context)
        except MmrecError as error:
            raise refused(error, what) from None
        try:
            with following_parent():
                if self._killed:  # before there was anything to kill
                    raise AirflowException(f"{what}: killed")
                done = self._running.run()
        finally:
            self._running = None
            shutil.rmtree(scratch, ignore_errors=True)
            with suppress(OSError):  # the last one out
                folder.rmdir()
        told = _json(done.stdout)
        if done.code:
            raise failure(done.code, _broken(told) or done.stderr or done.stdout, f"{what} of {request.run_date}")
        if told is None:
            raise AirflowException(f"{what}: its output is no JSON: {done.stdout[-500:]!r}")
        self._announce(context, request, told)
        return told

    def on_kill(self) -> None:
        self._killed = True
        if self._running is not None:
            self._running.kill()

    def command(self, request: Request) -> list[str]:
        """The words after `mmrec`."""
        home = ["--home", str(request.config.home), "--json"]
        if self.words:
            return [*self.words, *home]
        about = ["--date", str(request.run_date), "--engine", request.engine]
        return ["steps", *self.steps, *about, *(["--force"] if request.force else []), *home]

    def _runner(self, request: Request, scratch: Path, context: Mapping[str, Any]) -> Any:
        words, kind = self.command(request), request.config.airflow.runner
        self.log.info("mmrec %s", " ".join(words))
        kept = {"TMPDIR": str(scratch), "SPARK_LOCAL_DIRS": str(scratch), "MMREC_HOME": str(request.config.home)}
        if kind == "process" or (kind == "spark-submit" and self.words):
            from mmrec.flow.process import Child

            env = {k: v for k, v in os.environ.items() if not k.startswith(_SECRET)} | kept
            return Child(self._process(words), env, self.log.info)
        from mmrec.flow import runners

        env = {k: v for k, v in os.environ.items() if k.startswith("MMREC_")} | kept
        job = runners.Job(self.task_id, tuple(words), request.config, env)
        return runners.Delegate(kind, job, context)

    def _process(self, words: list[str]) -> list[str]:
        return [sys.executable, "-m", "mmrec", *words]

    def _announce(self, context: Mapping[str, Any], request: Request, told: dict[str, Any]) -> None:
        extra = {"run_date": str(request.run_date)}
        for outlet in self.outlets:
            if isinstance(outlet, assets.Asset):
                context["outlet_events"][outlet].extra.update(extra)
        reason = (told.get("monitor") or {}).get("training_due")
        if reason:
            self.log.warning("training is due: %s", reason)
            alias = context["outlet_events"][assets.TRAINING_ALIAS]
            alias.add(assets.TRAINING_DUE, extra=extra | {"reason": str(reason)})


class ClaimOperator(BaseOperator):
    """Set-up: claim the run's date, so that one run a date works at a time."""

    ui_color = "#e5e7eb"

    def execute(self, context: Mapping[str, Any]) -> str:
        try:
            request = Request.of(context)
            # nothing of a run outlives its time-out, so an older claim was left by one that is gone
            oldest = context["dag"].dagrun_timeout or timedelta(days=1)
            claims.claim(request.config.home, request.run_date, request.owner, max_age=oldest)
        except MmrecError as error:
            raise refused(error, "claim") from None
        self.log.info("run_date %s is claimed by %s", request.run_date, request.owner)
        return str(request.run_date)


class ReleaseOperator(BaseOperator):
    """Teardown: give the date back and remove the run's temporary files, whatever happened."""

    ui_color = "#e5e7eb"

    def execute(self, context: Mapping[str, Any]) -> bool:
        try:
            request = Request.of(context)
        except MmrecError as error:
            raise refused(error, "release") from None
        return claims.release(request.config.home, request.run_date, request.owner)


class CleanOperator(BaseOperator):
    """Remove claims and temporary files that runs left behind."""

    ui_color = "#e5e7eb"

    def __init__(self, *, older: timedelta = timedelta(days=1), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.older = older

    def execute(self, context: Mapping[str, Any]) -> list[str]:
        try:
            gone = claims.clean(Request.of(context).config.home, older=self.older)
        except MmrecError as error:
            raise refused(error, "clean") from None
        self.log.info("removed: %s", ", ".join(gone) or "nothing")
        return gone


def _json(text: str) -> dict[str, Any] | None:
    """The object a command printed last; other lines may come before it, as in the log of a container."""
    lines = text.splitlines()
    for n in [n for n, line in enumerate(lines) if line.startswith("{")][:-4:-1]:
        for end in [m for m in range(n, len(lines)) if lines[m].endswith("}")][:-4:-1]:
            try:
                return json.loads("\n".join(lines[n : end + 1]))
            except ValueError:
                continue
    return None


def _broken(told: dict[str, Any] | None) -> str:
    """What `mmrec verify` found broken: it tells on stdout, not as an error."""
    bad = [f"{c['check']}: {c['detail']}" for c in (told or {}).get("checks", []) if not c.get("ok")]
    return "\n".join(bad and [f"QualityError: {len(bad)} checks are broken", *bad])

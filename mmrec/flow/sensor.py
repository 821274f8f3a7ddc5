"""Waiting for late sources, outside a worker, until a deadline.

In: `source.expect`, patterns of files below the source's root; {day} is the last local day before run_date, {run_date}
the date itself. Out: success when each pattern matches a file that isn't empty; without patterns, at once. At the
deadline, `airflow.wait_minutes` after the task began, the task fails and is not retried: nothing is published for that
date then, and yesterday's list stays the latest.
Trade-off: the trigger looks at the file system, so Airflow's triggerer needs the source mounted where workers have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowFailException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from mmrec.config import Config
from mmrec.errors import InputError, MmrecError
from mmrec.flow.request import Request, refused


class SourceSensor(BaseSensorOperator):
    """Wait for the files that `source.expect` names."""

    ui_color = "#fef3c7"

    def execute(self, context: Mapping[str, Any]) -> list[str]:
        try:
            request = Request.of(context)
            root, patterns = _expected(request.config, request.run_date)
        except MmrecError as error:
            raise refused(error, "wait for sources") from None
        # the first start of this try, whatever was deferred since
        deadline = context["ti"].start_date + timedelta(minutes=request.config.airflow.wait_minutes)
        late = missing(root, patterns)
        if not late:
            self.log.info("every expected file is there: %s", ", ".join(patterns) or "none is expected")
            return patterns
        if datetime.now(UTC) >= deadline:
            raise _late(root, late, deadline)
        self.log.info("waiting until %s for %s below %s", deadline, ", ".join(late), root)
        poll_s = request.config.airflow.poll_s
        self.defer(trigger=SourceTrigger(str(root), patterns, deadline.isoformat(), poll_s), method_name="resumed")

    def resumed(self, context: Mapping[str, Any], event: dict[str, Any]) -> list[str]:
        """After the trigger: everything is there, or it is too late."""
        if event["missing"]:
            raise _late(Path(event["root"]), event["missing"], datetime.fromisoformat(event["deadline"]))
        return event["patterns"]


class SourceTrigger(BaseTrigger):
    """Looks every `poll_s` seconds; one event, when all is there or at the deadline."""

    def __init__(self, root: str, patterns: list[str], deadline: str, poll_s: float) -> None:
        super().__init__()
        self.root, self.patterns, self.deadline, self.poll_s = root, list(patterns), deadline, poll_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        about = {"root": self.root, "patterns": self.patterns, "deadline": self.deadline, "poll_s": self.poll_s}
        return "mmrec.flow.sensor.SourceTrigger", about

    async def run(self) -> AsyncIterator[TriggerEvent]:
        end = datetime.fromisoformat(self.deadline)
        while True:
            # a file system may be slow, and the triggerer has others to serve
            late = await asyncio.to_thread(missing, Path(self.root), self.patterns)
            left = (end - datetime.now(UTC)).total_seconds()
            if not late or left <= 0:
                break
            await asyncio.sleep(min(self.poll_s, left))
        yield TriggerEvent({"missing": late, "patterns": self.patterns, "root": self.root, "deadline": self.deadline})


def missing(root: Path, patterns: list[str]) -> list[str]:
    """The patterns that match no file with something in it."""
    return [p for p in patterns if not any(f.is_file() and f.stat().st_size for f in root.glob(p))]


def _expected(config: Config, run_date: date) -> tuple[Path, list[str]]:
    names = {"{day}": str(run_date - timedelta(days=1)), "{run_date}": str(run_date)}
    patterns = []
    for pattern in config.source.expect:
        for name, value in names.items():
            pattern = pattern.replace(name, value)
        patterns.append(pattern)
    root = config.source.root or (config.home / "source" if config.source.spec == "builtin" else None)
    if root is None and patterns:
        raise InputError("files are expected, but there is no folder to look in", where="mmrec.toml: source.root",
                         value=None, valid="a folder", next="edit mmrec.toml")  # fmt: skip
    wrong = [p for p in patterns if not p or p.startswith("/") or ".." in Path(p).parts]
    if wrong:
        raise InputError("a pattern leaves the source's folder", where="mmrec.toml: source.expect", value=wrong,
                         valid="patterns below it, as events/{day}/*.jsonl", next="edit mmrec.toml")  # fmt: skip
    return root or config.home, patterns


def _late(root: Path, late: list[str], deadline: datetime) -> AirflowFailException:
    return AirflowFailException(
        f"sources are late: at {deadline.isoformat(timespec='seconds')} nothing matches {', '.join(late)} "
        f"below {root}; nothing is published for this date, yesterday's list stays. "
        "Once they are there: clear this task"
    )

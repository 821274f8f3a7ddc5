"""Waiting for late sources, outside a worker, until a deadline.

In: `source.expect` (late.py). Out: success when each pattern matches a file that isn't empty; without any, at once.
At the deadline, `airflow.wait_minutes` after the task began, the night goes on with what there is: it reads and checks
what came, publishes nothing, marks the latest list stale and fails with an alert at its end. Yesterday's list stays.
Trade-off: the trigger looks at the file system, so Airflow's triggerer needs the source mounted where workers have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import BaseSensorOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

from mmrec.errors import MmrecError
from mmrec.flow.request import Request, refused
from mmrec.late import expected, missing


class SourceSensor(BaseSensorOperator):
    """Wait for the files that `source.expect` names."""

    ui_color = "#fef3c7"

    def execute(self, context: Mapping[str, Any]) -> list[str]:
        try:
            request = Request.of(context)
            root, patterns = expected(request.config, request.run_date)
        except MmrecError as error:
            raise refused(error, "wait for sources") from None
        # the first start of this try, whatever was deferred since
        deadline = context["ti"].start_date + timedelta(minutes=request.config.airflow.wait_minutes)
        late = missing(root, patterns)
        if not late:
            self.log.info("every expected file is there: %s", ", ".join(patterns) or "none is expected")
            return patterns
        if datetime.now(UTC) >= deadline:
            self._tell(root, late, deadline)
            return [p for p in patterns if p not in late]
        self.log.info("waiting until %s for %s below %s", deadline, ", ".join(late), root)
        poll_s = request.config.airflow.poll_s
        self.defer(trigger=SourceTrigger(str(root), patterns, deadline.isoformat(), poll_s), method_name="resumed")

    def resumed(self, context: Mapping[str, Any], event: dict[str, Any]) -> list[str]:
        """After the trigger: everything is there, or it is too late."""
        late = event["missing"]
        if late:
            self._tell(Path(event["root"]), late, datetime.fromisoformat(event["deadline"]))
        return [p for p in event["patterns"] if p not in late]

    def _tell(self, root: Path, late: list[str], deadline: datetime) -> None:
        self.log.error(
            "sources are late: at %s nothing matches %s below %s; the night goes on and publishes nothing, the last "
            "list stays. Once they are there: clear this task",
            deadline.isoformat(timespec="seconds"),
            ", ".join(late),
            root,
        )


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

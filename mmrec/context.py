"""What the stations of one run_date hold in common: settings, lakes, the manifest, and which attempt this is.

In: a home's settings and a run_date. Out: a `Night`; stations called by name, and on record in ops.steps.
Attempts are numbered by files of a run_date's folder, so that two processes never share a number, wherever they run:
a process that woke up late is told from the one that took its place.
Trade-off: one file a process that worked on the date, a few bytes each; `mmrec maintain` does not need to know them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from mmrec import dates, schema
from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.files import put
from mmrec.lake import commit, evolve
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.steps import step


def _quiet(_what: str, _done: int, _of: int) -> None:
    pass


@dataclass(frozen=True)
class Again:
    """A training that is repeated: `folder` for its files, `tables` -> versions that it reads, `since`: where its
    window for the gate began, if that is known."""

    folder: Path
    tables: dict[str, int]
    since: datetime | None = None


@dataclass
class Night:
    """One run_date of one home.

    Attributes:
        out: where gold is written: the lake itself, or a scratch lake of a replay.
        progress: called with (what, done, of) by long stations; of is 0 where it is not known.
        replayed: the recorded manifest that a replay follows.
        again: the training that is repeated beside the home, if one is.
        done: stations that ended, rows of ops.steps.
    """

    config: Config
    run_date: date
    progress: Callable[[str, int, int], None] = _quiet
    replayed: Manifest | None = None
    again: Again | None = None
    out: Lake = field(init=False)
    done: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lake = Lake(self.config.lake).made()
        self.out = self.lake
        if not self.replayed:  # a replay writes beside the lake
            evolve.absorb(self.lake)

    @property
    def as_of(self) -> datetime:
        return dates.as_of(self.run_date, self.config.zone)

    @property
    def _pointer(self) -> Path:
        return self.config.runs / f"planned-{self.run_date}.json"

    @property
    def is_planned(self) -> bool:
        return self._pointer.is_file()

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest that `plan` wrote for this run_date."""
        if self.replayed:
            return self.replayed
        if not self.is_planned:
            raise InputError(
                "this run_date is not planned yet",
                where=f"run_date {self.run_date}",
                valid="a planned run_date",
                next=f"mmrec plan --date {self.run_date}",
            )
        try:
            run_id = json.loads(self._pointer.read_text())["run_id"]
            return Manifest.from_json((self.config.runs / run_id / "manifest.json").read_text())
        except (OSError, ValueError, KeyError, InputError) as error:
            raise InputError(
                "the plan of this run_date can't be read",
                where=str(self._pointer),
                value=str(error).split("\n")[0][:80],
                valid="a planned run_date",
                next=f"mmrec plan --date {self.run_date}",
            ) from None

    @property
    def folder(self) -> Path:
        """Files of this run: manifest, stage pointer."""
        return self.config.runs / self.manifest.run_id

    def fence(self, name: str) -> int:
        """The fence the manifest pinned; a replay's scratch lake starts at 0."""
        return self.manifest.fences[name] if self.out is self.lake else commit.fence(self.out, name, self.run_date)

    @cached_property
    def attempt(self) -> int:
        """The number of this process among those that worked on the date, from 1; taken when first asked for."""
        folder = self.config.runs / "attempts" / str(self.run_date)
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
        while True:
            try:
                (folder / str(number)).touch(exist_ok=False)
            except FileExistsError:
                number += 1
            else:
                return number

    def planned(self, manifest: Manifest) -> None:
        manifest.save(self.config.runs)
        put(self._pointer, json.dumps({"run_id": manifest.run_id}))
        self.__dict__.pop("manifest", None)

    @contextmanager
    def station(self, name: str) -> Iterator[None]:
        """Around one station: its commits carry attempt and settings; what it read and how long it took is noted."""
        lakes = {id(lake): lake for lake in (self.lake, self.out)}.values()
        for lake in lakes:
            lake.stamp = {"attempt": str(self.attempt), "step": name, "config_sha256": _digest(self.config)}
            lake.read.clear()
        begun = time.monotonic()
        yield
        read = {k: v for lake in lakes for k, v in lake.read.items()}
        self.done.append({
            "run_date": self.run_date, "attempt": self.attempt, "step": name,
            "run_id": self.manifest.run_id if self.is_planned or self.replayed else None,
            "read": json.dumps(read, sort_keys=True), "seconds": round(time.monotonic() - begun, 3),
            "finished_at": datetime.now(UTC),
        })  # fmt: skip


def call(name: str, night: Night) -> dict[str, Any]:
    """Run one station by name; what it read is noted."""
    with night.station(name):
        return step(name).load()(night)


def published(lake: Lake, when: date | None = None) -> Manifest:
    """The manifest that the lists of a published date were made under; None: of the newest date.

    Raises: InputError: no such date.
    """
    days = lake.run_dates()
    when = when or (days[-1] if days else None)
    run_id = commit.published_run_id(lake, "gold.recommendations", when) if when in days else None
    recorded = lake.arrow("ops.runs", where=ds.field("run_id") == run_id).to_pylist() if run_id else []
    if not recorded:
        raise InputError("this run_date was never published", where="--date", value=str(when),
                         valid=[str(d) for d in days] or "none yet", next="mmrec run --date D")  # fmt: skip
    return Manifest.from_json(recorded[0]["manifest"])


def note(night: Night) -> None:
    """Record the stations that ended, in one commit; where even that fails, the failure that is told is the first."""
    if not night.done:
        return
    rows = pa.Table.from_pylist(night.done, schema.table("ops.steps").arrow)
    first = sys.exc_info()[1]
    try:
        commit.append(night.lake, "ops.steps", rows, f"steps-{night.run_date}-{night.attempt}")
    except Exception as error:
        if first is None:
            raise
        first.add_note(f"nor could ops.steps be written: {error}")


def _digest(config: Config) -> str:
    """Of the settings, wherever the home lies."""
    return hashlib.sha256(config.model_dump_json(exclude={"home"}).encode()).hexdigest()[:16]

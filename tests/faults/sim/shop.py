"""What goes on in a shop's lake: nights, backfills, writers of silver and embeddings, maintenance, readers.

In: a world, a template lake. Out: jobs that start, are tried again as Airflow or a person would, and come to an end;
when all have ended, what lies there is checked once more.
Trade-off: a claim of a date is a dictionary here; that it is one on disk is tested where claims are.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
from deltalake.exceptions import DeltaError

from mmrec import schema
from mmrec.config import MaintainConfig
from mmrec.errors import TransientError
from mmrec.lake import commit
from mmrec.lake.content import content_hash
from mmrec.lake.maintain import maintain
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Expired, Lake
from tests.faults.sim.night import GRACE_DAYS, Stations
from tests.faults.sim.oracle import Oracle
from tests.faults.sim.schedule import EPOCH, HOUR, World
from tests.faults.sim.tables import EMBEDDINGS, LIST, RETENTION_DAYS, RUNS, SILVER, TABLES, people, vectors

FIRST = EPOCH.date()
DOUBT_S = 300.0  # after which an attempt that is not heard of is taken for dead


@dataclass(eq=False)
class Job:
    """One thing to be done, over its attempts. `manifest`, `pointer`: what its attempts leave on disk."""

    name: str
    work: Callable[[Job, int], str]
    most: int = 6
    tried: int = 0
    ended: list[str] = field(default_factory=list)
    manifest: Manifest | None = None
    pointer: Path | None = None
    hurt: bool = False

    @property
    def over(self) -> bool:
        return bool(self.ended)


class Shop(Stations):
    """One lake and everybody who works on it.

    Attributes: looks_twice, maintain: see `_night`, `maintenance`; a test plants others to see them found.
    """

    looks_twice = True
    maintain = staticmethod(maintain)

    def __init__(self, world: World, root: Path, template: Path) -> None:
        shutil.copytree(template, root / "lake")
        lake = Lake(root / "lake")
        super().__init__(world, Oracle(world, lake, TABLES), lake)
        world.before_jump, world.on_cut = self.oracle.stamp, self.oracle.power_goes
        self.jobs: list[Job] = []
        self.delivered = 3
        self.contents = 3
        self.attempts: Counter[date] = Counter()
        self.claims: dict[date, Job] = {}
        self.newest: date | None = None  # greatest run_date that a reader was given

    # jobs and their attempts

    def start(self, job: Job, after: float = 0.0) -> None:
        """The next attempt of `job`, or its first."""
        if job not in self.jobs:
            self.jobs.append(job)
        if job.over or job.tried >= job.most:
            return
        job.tried += 1
        number = job.tried
        name = f"{job.name}#{number}"
        self.world.spawn(
            name, partial(self._attempt, job, number), after=after, lost=lambda how: self._lost(job, number)
        )

    def _lost(self, job: Job, number: int) -> None:
        job.hurt = True
        if number == job.tried:
            self.start(job, DOUBT_S)

    def _attempt(self, job: Job, number: int) -> None:
        actor = self.world.running
        assert actor is not None
        try:
            job.ended.append(job.work(job, number))
        except commit.Fenced as error:
            job.ended.append(f"told: {error.what}")
        except Expired as error:
            planned = self.planned.get(job.manifest.run_id, self.world.now) if job.manifest else self.world.now
            if self.world.now - planned < RETENTION_DAYS * 24 * HOUR:
                self.oracle.wrong(f"{job.name}: {error.what}, {(self.world.now - planned) / HOUR:.1f} h after it was planned")
            job.ended.append(f"told: {error.what}")
        except (TransientError, OSError, DeltaError) as error:
            # what the store did, exit 75 or 1, is tried again; what it did not do is a fault of ours
            if not actor.hurt and not isinstance(error, TransientError):
                raise
            self.world.note(f"{type(error).__name__}: {str(error).splitlines()[0]}")
            job.hurt = True
            if number == job.tried:
                self.start(job, DOUBT_S)
            return
        self.world.note(f"ends: {job.ended[-1]}")

    def drain(self) -> None:
        """Let everybody end without faults; who gave up is asked again, and every date that was begun is run once more,
        in case whoever published it last was killed before it had told of itself."""
        self.world.drain()
        for job in self.jobs:
            if not job.over:
                job.most = job.tried + 2
                self.start(job)
        self.world.drain()
        for job in self.jobs:
            if not job.over:
                self.oracle.wrong(f"{job.name} does not come to an end without faults")
        for day in sorted(self.attempts):
            self.start(self.nightly(day))
        self.world.drain()
        self.start(Job("silver last", self._silver))
        self.start(Job("embed last", self._embed))
        self.world.drain()
        self._at_rest()

    def _at_rest(self) -> None:
        self.oracle.at_rest()
        states = {name: m.states[-1] for name, m in self.oracle.models.items()}
        for day in self.attempts:
            if str(day) not in states[LIST]:
                self.oracle.wrong(f"{day} was begun and is not published")
        for name, count in ((SILVER, self.delivered), (EMBEDDINGS, self.contents)):
            rows = states[name].get("", Counter())
            if rows.total() != count or len(rows) != count:
                self.oracle.wrong(f"{name} holds {rows.total()} rows of {count} that were delivered")
        recorded = {row[0]: row for row in states[RUNS].get("", Counter())}
        columns = schema.table(RUNS).arrow.names
        for day in states[LIST]:
            table = self.lake.day(LIST, date.fromisoformat(day))
            (run_id,) = set(table["run_id"].to_pylist())
            record = dict(zip(columns, recorded.get(run_id, ()), strict=False))
            if not record or record["content_hash"] != content_hash(table, LIST):
                self.oracle.wrong(f"{day}: run {run_id} published it and is not on record with its content hash")

    # what a night does

    def nightly(self, day: date, *, force: bool = False, airflow: bool = False) -> Job:
        """A night by the command line, planned anew by each attempt, or one run of Airflow, planned once."""
        name = f"{'run' if airflow else 'night'}{'!' if force else ''} {day:%d}.{len(self.jobs)}"
        return Job(name, lambda job, _n: self._night(job, day, force, airflow))

    def backfill(self, days: Iterable[date]) -> Job:
        wanted = list(days)

        def work(job: Job, _n: int) -> str:
            told = [self._night(Job(job.name, job.work), day, False, False) for day in wanted]
            return ", ".join(told)

        return Job(f"backfill.{len(self.jobs)}", work)

    def _night(self, job: Job, day: date, force: bool, airflow: bool) -> str:
        if airflow:
            holder = self.claims.setdefault(day, job)
            if holder is not job:
                return "told: another run works on this date"
        self.attempts[day] += 1
        lake = self._open(self.attempts[day])
        try:
            if job.manifest is None or not airflow:
                if not force and day in lake.run_dates():
                    return self._settled(lake, day)
                job.manifest = self._plan(lake, day, force)
                # once more, after the fences were pinned: what is published by then, this plan would replace unasked
                if not force and self.looks_twice and day in lake.run_dates():
                    return self._settled(lake, day)
            m = job.manifest
            if job.pointer is None or not airflow:
                self._features(lake, m)
                job.pointer = self._recommend(lake, m)
            told = self._publish(lake, m, job.pointer)
        finally:
            if airflow and self.world.running and not self.world.running.dead:
                self.claims.pop(day, None)
        return told

    # writers, maintenance, readers

    def silver(self) -> Job:
        def work(job: Job, n: int) -> str:
            if n == 1:
                self.delivered += self.rng.randint(1, 2)
            return self._silver(job, n)

        return Job(f"silver.{len(self.jobs)}", work)

    def _silver(self, job: Job, _n: int) -> str:
        lake = self._open()

        def once() -> commit.Committed:
            pinned, upto = commit.fence(lake, SILVER), self.delivered
            version = lake.version(SILVER)
            have = set(self.see(lake, SILVER, version)["row_hash"].to_pylist())
            rows = people(f"h{n}" for n in range(upto) if f"h{n}" not in have)
            return commit.write(lake, SILVER, rows, run_id=commit.work_id("validate", version, upto), pinned=pinned)

        return f"{commit.again(once).rows} rows"

    def embed(self) -> Job:
        def work(job: Job, n: int) -> str:
            if n == 1:
                self.contents += 1
            return self._embed(job, n)

        return Job(f"embed.{len(self.jobs)}", work)

    def _embed(self, job: Job, _n: int) -> str:
        lake = self._open()

        def once() -> commit.Committed:
            pinned, upto = commit.fence(lake, EMBEDDINGS), self.contents
            have = set(lake.arrow(EMBEDDINGS)["content_sha256"].to_pylist())
            rows = vectors(f"c{n}" for n in range(upto) if f"c{n}" not in have)
            return commit.write(
                lake, EMBEDDINGS, rows, run_id=commit.work_id("embed", sorted(have), upto), pinned=pinned
            )

        return f"{commit.again(once).rows} rows"

    def maintenance(self) -> Job:
        """`mmrec maintain` on a few tables: small files put together, checkpoints, what has expired deleted."""
        settings = MaintainConfig(target_mb=1, min_files=2, checkpoint_every=4, grace_days=GRACE_DAYS)
        home: Any = SimpleNamespace(lake=self.lake.root, runs=self.lake.root.parent / "runs", maintain=settings)

        def work(_job: Job, _n: int) -> str:
            self.oracle.stamp()
            did = [self.maintain(home, name, now=self.world.clock)[0] for name in self.rng.sample(TABLES, 3)]
            if refused := [d["refused"] for d in did if d["refused"]]:
                self.oracle.wrong(f"maintenance refused a table: {refused[0]}")
            self.oracle.seen["files_deleted"] += sum(d["files"] + d["stages"] for d in did)
            return "maintained"

        return Job(f"maintenance.{len(self.jobs)}", work)

    def reader(self) -> Job:
        """Pins every table, and reads them in any order, twice, for an hour or two."""

        def work(_job: Job, _n: int) -> str:
            lake, pinned = self._open(), {}
            for name in self.rng.sample(TABLES, len(TABLES)):
                floor = self.oracle.models[name].version
                pinned[name] = lake.version(name)
                self.oracle.pins(name, pinned[name], floor)
            for name in self.rng.choices(TABLES, k=6):
                self.world.sleep(self.rng.random() * HOUR / 2)
                self.see(lake, name, pinned[name])
            return "read"

        return Job(f"reader.{len(self.jobs)}", work)

    def latest(self) -> Job:
        """Asks for the newest list, then reads it batch by batch."""

        def work(_job: Job, _n: int) -> str:
            lake, model = self._open(), self.oracle.models[LIST]
            for _ in range(2):
                floor, newest = model.version, self.newest
                dates = lake.run_dates()
                if newest and dates[-1:] < [newest]:
                    self.oracle.wrong(f"the latest list was of {newest}, and is of {dates[-1:]} now")
                self.newest = max([d for d in (self.newest, *dates) if d], default=None)
                if not any(sorted(s) == list(map(str, dates)) for s in model.states[floor:]):
                    self.oracle.wrong(f"run_dates gave {dates}, which no version since {floor} holds")
                version = lake.version(LIST)
                self.oracle.pins(LIST, version, floor)
                if dates:
                    self.oracle.reads(LIST, version, lake.day(LIST, dates[-1], version), dates[-1])
                batches = []
                for batch in lake.batches(LIST, version):
                    batches.append(batch)
                    self.world.point("between two batches")
                self.oracle.reads(LIST, version, pa.Table.from_batches(batches, schema.table(LIST).arrow) if batches
                                  else schema.table(LIST).arrow.empty_table())  # fmt: skip
                self.world.sleep(self.rng.random() * HOUR)
            return "read"

        return Job(f"latest.{len(self.jobs)}", work)

    def days(self, moments: int = 3, least: int = 2, most: int = 5) -> None:
        """A few days, drawn: at some moment of each, `least` to `most` things begin at once."""
        for n in range(moments):
            today, hours = FIRST + timedelta(days=n), 30 * n
            for _ in range(self.rng.randint(least, most)):
                past = FIRST - timedelta(days=self.rng.randint(0, 2))
                job = self.rng.choice((
                    lambda day=today: self.nightly(day), lambda day=today: self.nightly(day),
                    lambda day=today: self.nightly(day, airflow=True),
                    lambda day=today: self.nightly(day, force=True, airflow=self.rng.random() < 0.5),
                    lambda day=past: self.backfill(day + timedelta(days=k) for k in range(2)),
                    self.silver, self.silver, self.embed, self.maintenance, self.maintenance, self.reader, self.latest,
                ))()  # fmt: skip
                self.start(job, hours * HOUR + self.rng.random() * 120)

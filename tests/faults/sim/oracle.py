"""What may be true of the tables: a naive model beside the lake, told of every commit at the moment it is made.

In: a lake, what writers mean and are told, what readers see. Out: a Violation where no order of events allows it.
The model knows for each version of each table its rows by partition, from what writers meant, not from what lies on
disk; the log's entries and the files they name are read here by other means than the lake's own and compared.
Trade-off: everything is kept in memory and compared row by row, so tables are of a few dozen rows.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from mmrec import schema
from mmrec.errors import MmrecError, QualityError, TransientError
from mmrec.lake.commit import Fenced
from mmrec.lake.repair import repair
from mmrec.lake.store import Lake
from tests.faults.sim.schedule import EPOCH, Actor, Violation, World

Rows = Counter[tuple[Any, ...]]


@dataclass(eq=False)
class Intent:
    """A write that somebody means: at most one commit may come of it, and only while `pinned` is the fence."""

    actor: Actor
    table: str
    partition: str
    run_id: str
    pinned: int
    attempt: int
    rows: Rows | None
    hurt: int
    stage: str | None = None
    landed: int | None = None
    acknowledged: bool = False


@dataclass
class Model:
    """One table as it should be. `states[v]`: partition -> rows at version v."""

    name: str
    states: list[dict[str, Rows]] = field(default_factory=list)
    live: dict[str, str] = field(default_factory=dict)  # path -> partition
    lives: list[dict[str, str]] = field(default_factory=list)  # the same, by version
    content: dict[str, Rows] = field(default_factory=dict)  # path -> rows in the file
    fences: Counter[str] = field(default_factory=Counter)
    runs: dict[str, list[Intent]] = field(default_factory=dict)  # partition -> writes that landed, oldest first

    @property
    def version(self) -> int:
        return len(self.states) - 1

    def rows(self, version: int) -> Rows:
        return sum(self.states[version].values(), Counter())


def counted(name: str, table: pa.Table) -> Rows:
    """Rows as tuples, in the order of the schema's columns."""
    t = schema.table(name).arrow
    columns = []
    for column in table.select(t.names).cast(t).columns:
        values = column.to_pylist()
        columns.append([None if v is None else tuple(v) for v in values] if pa.types.is_list(column.type) else values)
    return Counter(zip(*columns, strict=True))


class Oracle:
    """The models of a world's tables."""

    def __init__(self, world: World, lake: Lake, names: tuple[str, ...]) -> None:
        self.world, self.lake = world, lake
        self.staged: dict[str, Rows] = {}
        self.models = {name: Model(name) for name in names}
        self._writers: dict[str, Actor] = {}
        self._names = {str(lake.path(n)): n for n in names}
        self.landed: Callable[[Intent, Rows], None] | None = None  # asked about every write that lands
        self.seen: Counter[str] = Counter()  # what was looked at, for the summary
        self.durable = {str(p) for p in lake.root.rglob("*")}  # what an fsync has been asked for
        for name in names:
            self.absorb(name, None, given=True)

    def name_of(self, handle: Any) -> str:
        return self._names[handle.table_uri.removeprefix("file://").rstrip("/")]

    def wrong(self, what: str) -> None:
        self.world.broken = self.world.broken or Violation(what)
        raise self.world.broken

    # what writers do

    def stages(self, actor: Actor, folder: Path, rows: Any) -> None:
        self._writers[folder.name] = actor
        if isinstance(rows, pa.Table):
            self.staged[folder.name] = counted(self._names[str(folder.parent)], rows)

    def alive(self, stage: str) -> bool:
        """Whether who staged it still runs, if only in its sleep."""
        writer = self._writers.get(stage.removeprefix("gone-"))
        return writer is not None and not writer.dead and not writer.greenlet.dead

    def stamp(self) -> None:
        """Give what was written since the last time the fake clock's time; the disk has another."""
        then, now = EPOCH.timestamp(), EPOCH.timestamp() + self.world.now
        for folder, _, files in os.walk(self.lake.root.parent):
            for name in files:
                path = os.path.join(folder, name)
                if os.stat(path).st_mtime < then:
                    os.utime(path, (now, now))

    def meant(self, actor: Actor, lake: Lake, what: Any, args: tuple[Any, ...], more: dict[str, Any]) -> Intent:
        """Of a call of `commit.write` (what: table) or `commit.adopt` (what: an audited stage)."""
        partition = str(more.get("partition") or "")
        attempt = int(lake.stamp.get("attempt", 1))
        name = what if isinstance(what, str) else what.stage.table
        intent = Intent(actor, name, partition, more["run_id"], more["pinned"], attempt, None, actor.hurt)
        if isinstance(what, str):
            intent.rows = counted(name, args[0])
        else:
            intent.stage = what.stage.folder.name
        return intent

    def absorb(self, name: str, intent: Intent | None, *, given: bool = False) -> None:
        """Read the log entries that are new, and hold each against what was meant; `given`: take them as they are."""
        model, folder = self.models[name], self.lake.path(name)
        while (entry := folder / "_delta_log" / f"{model.version + 1:020}.json").is_file():
            os.utime(entry, (now := EPOCH.timestamp() + self.world.now, now))
            actions = [json.loads(line) for line in entry.read_text().splitlines()]
            adds = {unquote(a["add"]["path"]): a["add"] for a in actions if "add" in a}
            removes = [unquote(a["remove"]["path"]) for a in actions if "remove" in a]
            info = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
            before = dict(model.states[-1]) if model.states else {}
            if given:
                before = self._given(model, folder, adds, actions)
            elif adds and not any(a["dataChange"] for a in adds.values()):
                self._same_fences(model, actions)
            elif any("txn" in a for a in actions):
                if intent is None:
                    self.wrong(f"{name}: version {model.version + 1} is a write that nobody meant")
                else:
                    self._land(model, intent, adds, info, before)
                    intent = None
            if model.states and (gone := model.states[-1].keys() - before.keys()):
                self.wrong(f"{name}: version {model.version + 1} takes {sorted(gone)} away")
            model.states.append(before)
            self._files(model, folder, adds, removes)
            model.lives.append(dict(model.live))

    def _given(self, model: Model, folder: Path, adds: dict[str, Any], actions: list[Any]) -> dict[str, Rows]:
        for a in actions:
            if "txn" in a:
                model.fences[""] = a["txn"]["version"]
        found = sum((counted(model.name, pq.ParquetFile(folder / path).read()) for path in adds), Counter())
        return {"": found} if found else {}

    def _same_fences(self, model: Model, actions: list[Any]) -> None:
        for txn in (a["txn"] for a in actions if "txn" in a):
            part = txn["appId"].removeprefix(f"{model.name}/").replace("*", "")
            if txn["version"] != model.fences[part]:
                self.wrong(f"{model.name}: maintenance moved the fence of '{part}' from {model.fences[part]}")
        self.seen["compactions"] += 1

    def _land(self, model: Model, i: Intent, adds: dict[str, Any], info: dict[str, Any], rows: dict[str, Rows]) -> None:
        where = f"{model.name} {i.partition} by run {i.run_id} attempt {i.attempt}"
        if model.fences[i.partition] != i.pinned:
            self.wrong(f"{where}: committed on fence {i.pinned}, which is {model.fences[i.partition]} by now")
        if i.landed is not None:
            self.wrong(f"{where}: one write was committed twice")
        if (info.get("run_id"), int(info.get("attempt", 0))) != (i.run_id, i.attempt):
            self.wrong(f"{where}: the log names run {info.get('run_id')} attempt {info.get('attempt')}")
        staged = self.staged[i.stage or ""]
        if i.rows is not None and staged != i.rows:
            self.wrong(f"{where}: other rows were staged than were given")
        if schema.table(model.name).mode == "replace_partition":
            rows[i.partition] = staged
        else:
            rows[""] = rows.get("", Counter()) + staged
            t = schema.table(model.name)
            at = [t.arrow.get_field_index(k) for k in t.key]
            keys = Counter(tuple(r[n] for n in at) for r in rows[""].elements())
            if twice := [k for k, n in keys.items() if n > 1]:
                self.wrong(f"{where}: a key stands twice: {twice[:3]}")
        model.fences[i.partition] += 1
        model.runs.setdefault(i.partition, []).append(i)
        i.landed = model.version + 1
        if self.landed:
            self.landed(i, staged)
        self.seen["commits"] += 1

    def _files(self, model: Model, folder: Path, adds: dict[str, Any], removes: list[str]) -> None:
        t = schema.table(model.name)
        touched = set()
        for path in removes:
            if path not in model.live:
                self.wrong(f"{model.name}: version {model.version} removes {path}, which was not there")
            touched.add(model.live.pop(path))
        for path, add in adds.items():
            part = str((add.get("partitionValues") or {}).get(t.partition, "")) if t.partition else ""
            if path in model.live:
                self.wrong(f"{model.name}: version {model.version} adds {path}, which is there")
            model.live[path] = part
            touched.add(part)
            file = folder / path
            if not file.is_file():
                self.wrong(f"{model.name}: version {model.version} names {path}, which is not on disk")
            table = pq.ParquetFile(file).read()
            if t.partition:
                day = pa.array([date.fromisoformat(part)] * table.num_rows, pa.date32())
                table = table.append_column(t.partition, day)
            model.content[path] = counted(model.name, table)
        state = model.states[-1]
        for part in touched:
            found = sum((model.content[p] for p, where in model.live.items() if where == part), Counter())
            if found != state.get(part, Counter()):
                self.wrong(f"{model.name}: version {model.version} holds in '{part}' {_apart(found, state.get(part))}")

    def maintained(self, name: str) -> None:
        self.absorb(name, None)
        self.whole(name)

    def whole(self, name: str) -> None:
        """Every file of the newest version is there."""
        lost = [p for p in self.models[name].live if not (self.lake.path(name) / p).is_file()]
        if lost:
            self.wrong(f"{name}: {len(lost)} files that readers need were removed, as {lost[0]}")

    # what writers are told

    def told(self, i: Intent, done: Any, error: BaseException | None) -> None:
        """Hold an answer against what happened; an error of the store leaves it open."""
        model = self.models[i.table]
        where = f"{i.table} {i.partition} by run {i.run_id} attempt {i.attempt}"
        runs = model.runs.get(i.partition, [])
        since = [r for r in runs if r.landed is not None and r.pinned >= i.pinned]
        # a partition that another run has replaced since is not this run's any more; appended rows stay
        stands = since if schema.table(i.table).mode == "append_new" else since[-1:]
        same = [r for r in stands if r.run_id == i.run_id and r is not i]
        calm = i.actor.hurt == i.hurt
        if done is not None:
            i.acknowledged = True
            for r in same[-1:]:
                r.acknowledged = True
        self.world.note(f"{where}: told {done.changed if done else type(error).__name__}")
        if done is not None:
            if done.changed and i.landed is None:
                self.wrong(f"{where}: told it is committed, and it is not")
            # a lost answer may be learnt from another attempt with the same stage
            if not done.changed and i.landed is not None and calm:
                self.wrong(f"{where}: told it did nothing, and it committed version {i.landed}")
            before = any(r.run_id == i.run_id for r in since)  # by now another may have replaced it
            if not done.changed and i.rows != Counter() and not before and i.landed is None:
                self.wrong(f"{where}: told there was nothing to do, and its rows are not there")
            if not done.changed and any(r.attempt > i.attempt for r in since if r.run_id == i.run_id):
                self.wrong(f"{where}: a later attempt had committed, and this one was told all is well")
            if done.version < (i.landed or 0) or done.version > model.version:
                self.wrong(f"{where}: told version {done.version}, newest is {model.version}, its own {i.landed}")
        elif isinstance(error, TransientError):
            if i.landed is not None:
                self.wrong(f"{where}: told it changed nothing, and it committed version {i.landed}")
            if isinstance(error, Fenced):
                if model.fences[i.partition] == i.pinned:
                    self.wrong(f"{where}: fenced off, and nobody had committed since its fence {i.pinned}")
                if any(r.attempt <= i.attempt for r in same) and not any(r.attempt > i.attempt for r in same):
                    self.wrong(f"{where}: a retry of a run that had committed was refused")
                self.seen["fenced"] += 1
            elif calm:
                self.wrong(f"{where}: told the store failed, and it did not: {error}")
        elif isinstance(error, MmrecError) and i.landed is not None:
            self.wrong(f"{where}: refused, and it committed version {i.landed}")
        if i.stage and i.landed is None and calm and (done is not None or isinstance(error, Fenced | QualityError)):
            own = not any(p.startswith(f"{i.stage}/") for p in (*model.live, *model.content))
            if own and (self.lake.path(i.table) / i.stage).exists():
                self.wrong(f"{where}: its stage is not needed and was left behind")

    # what a loss of power leaves

    def power_goes(self, torn: float = 0.7) -> None:
        """Tear, in a share of `torn`, what no fsync was asked for, have the lake repaired, and go on from what is left."""
        rng = self.world.rng
        for name in self.models:
            folder = self.lake.path(name)
            entries = sorted((folder / "_delta_log").glob("*[0-9].json"))
            files = sorted(folder.glob("stage-*/**/*.parquet"), key=lambda p: str(p.parent))
            for path in (*entries, *files):
                if str(path) not in self.durable and rng.random() < torn:
                    size = path.stat().st_size
                    os.truncate(path, rng.choice((0, size // 2)))
        told = repair(self.lake)
        if left := [r for r in told if not r.mended]:
            self.wrong(f"{left[0].table}: version {left[0].version} is lost for good with the power: {left[0].what}")
        self.seen["entries_repaired"] += len(told)
        for name, model in self.models.items():
            newest = self.lake.version(name)
            for part, runs in model.runs.items():
                lost = [r for r in runs if r.landed is not None and r.landed > newest]
                if gone := [r for r in lost if r.acknowledged]:
                    self.wrong(f"{name} {part}: run {gone[0].run_id} was told yes, and is lost with the power")
                model.runs[part] = runs[: len(runs) - len(lost)]
                model.fences[part] -= len(lost)
                for r in lost:
                    r.landed = None
            del model.states[newest + 1 :], model.lives[newest + 1 :]
            model.live = dict(model.lives[-1])

    # what readers see

    def reads(self, name: str, version: int, table: pa.Table, partition: date | None = None) -> None:
        """A read at a pinned version."""
        model = self.models[name]
        want = model.states[version].get(str(partition), Counter()) if partition else model.rows(version)
        found = counted(name, table)
        if found != want:
            self.wrong(f"{name} {partition or ''}: a read at version {version} gave {_apart(found, want)}")
        self.seen["reads"] += 1

    def pins(self, name: str, version: int, floor: int) -> None:
        """A reader pinned `version` after `floor` was the newest."""
        if not floor <= version <= self.models[name].version:
            self.wrong(f"{name}: pinned version {version}, newest were {floor} to {self.models[name].version}")

    def at_rest(self) -> None:
        """Everybody is gone: what lies there is read by DuckDB, from delta-rs's list of files."""
        for name, model in self.models.items():
            t = schema.table(name)
            self.whole(name)
            handle = self.lake.handle(name)
            if handle.version() != model.version:
                self.wrong(f"{name}: newest version is {handle.version()}, the model's {model.version}")
            files = handle.file_uris()
            if len(files) != len(model.live):
                self.wrong(f"{name}: delta-rs lists {len(files)} files, the log {len(model.live)}")
            if not files:
                continue
            found: Rows = Counter()
            with duckdb.connect() as con:
                con.sql("SET TimeZone = 'UTC'")
                for add in pa.table(handle.get_add_actions(flatten=True)).to_pylist():
                    path = str(self.lake.path(name) / unquote(add["path"]))
                    extra = f", DATE '{add[f'partition.{t.partition}']}' AS {t.partition}" if t.partition else ""
                    read = con.from_parquet([path], hive_partitioning=False)
                    found += counted(name, read.project(f"*{extra}").to_arrow_table())
            if found != model.rows(model.version):
                self.wrong(f"{name}: at rest DuckDB reads {_apart(found, model.rows(model.version))}")


def _apart(found: Rows, want: Rows | None) -> str:
    want = want or Counter()
    return (
        f"{found.total()} rows, not {want.total()}; too many {list(found - want)[:2]}, lacking {list(want - found)[:2]}"
    )

"""One commit, and a fault at its N-th file-system call, for every N: `python -m tests.faults.sweep` below preload.c.

In: a door (Arrow rows, or an engine's frame), a write mode, kinds of faults, a folder. Out: a line of JSON a fault: where
it struck, what the writer said, what a fresh reader saw, and `broken`: every promise that did not hold.
A warm parent imports everything and does nothing; for each fault one child commits and another, the fresh process of the
next morning, reads, checks and runs the write again.
Trade-off: the log is read again here by forty naive lines of Python, so that the reader under test is not its own judge.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from mmrec import schema
from mmrec.errors import MmrecError, lost_store
from mmrec.lake import commit, log, session
from mmrec.lake.content import content_hash
from mmrec.lake.store import Lake
from tests.faults.preload import CONTROL, Faults

LIST, USERS = "gold.recommendations", "silver.users"
D1, D2, D3 = date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROWS = 200
TABLE = {"replace_partition": LIST, "append_new": USERS, "replace_all": USERS}


def slates(day: date, run_id: str, shift: int) -> pa.Table:
    """Lists of four places; `shift` tells one list from another in every row."""
    return pa.Table.from_pylist([
        {"run_date": day, "arm": "main", "user_id": f"u{n // 4:04d}", "rank": n % 4 + 1, "item_id": f"i{n + shift:06d}", "score": 1.0 / (n + 1),
         "source": "model", "reason": "because", "propensity": 1.0, "model_version": "0", "run_id": run_id} for n in range(ROWS)
    ], schema.table(LIST).arrow)  # fmt: skip


def people(first: int, count: int) -> pa.Table:
    return pa.Table.from_pylist([
        {"user_id": f"u{n:04d}", "available_at": NOON, "withdrawn_at": None, "attributes": "{}", "source": "files", "row_hash": f"h{n:06d}"}
        for n in range(first, first + count)
    ], schema.table(USERS).arrow)  # fmt: skip


class Case:
    """One write: the rows before, the rows it brings, the rows after."""

    def __init__(self, mode: str) -> None:
        self.mode, self.name = mode, TABLE[mode]
        if mode == "replace_all":  # the mode has no table of its own yet: the users' table takes it
            schema.TABLES[USERS] = replace(schema.table(USERS), mode="replace_all")
        self.day = D1 if mode == "replace_partition" else None
        if mode == "replace_partition":
            other = slates(D2, "other", 5000)
            first, self.rows = slates(D1, "first", 0), slates(D1, "night", 1000)
            self.before, self.after = [(D2, other), (D1, first)], pa.concat_tables([other, self.rows])
            self.next_day, self.next_rows = D3, slates(D3, "next", 9000)
        else:
            first, self.rows = people(0, ROWS), people(ROWS, ROWS) if mode == "append_new" else people(50, ROWS)
            self.before, self.after = [(None, first)], pa.concat_tables([first, self.rows]) if mode == "append_new" else self.rows
            self.next_day, self.next_rows = None, people(3 * ROWS, ROWS)
        self.states: dict[str, str] = {}

    def digests(self) -> dict[str, str]:
        """Content hash -> old or new. Sorting starts threads: not for the parent of forks."""
        old = pa.concat_tables([rows for _, rows in self.before])
        later = self.next_rows if self.mode == "replace_all" else pa.concat_tables([self.after, self.next_rows])
        return {content_hash(rows, self.name): state for rows, state in ((old, "old"), (self.after, "new"), (later, "next"))}

    def template(self, root: Path) -> None:
        lake = Lake(root)
        lake.create(self.name)
        for n, (day, rows) in enumerate(self.before):
            commit.write(lake, self.name, rows, run_id=f"before{n}", pinned=commit.fence(lake, self.name, day), partition=day)

    def pin(self, lake: Lake) -> int:
        return commit.fence(lake, self.name, self.day)

    def write(self, lake: Lake, rows: Any, pinned: int) -> commit.Committed:
        return commit.write(lake, self.name, rows, run_id="night", pinned=pinned, partition=self.day)

    def missing(self, lake: Lake) -> pa.Table:
        """What a step run again would write: an append looks for what is not there yet, as ingest and validate do."""
        if self.mode != "append_new":
            return self.rows
        known = set(lake.arrow(self.name, columns=["row_hash"])["row_hash"].to_pylist())
        return self.rows.filter(pa.array([h not in known for h in self.rows["row_hash"].to_pylist()]))


class Careless(Case):
    """A writer as one would first write it: it finishes its files in place. The harness must catch it."""

    def write(self, lake: Lake, rows: Any, pinned: int) -> commit.Committed:
        table, version = lake.path(self.name), lake.version(self.name) + 1
        data = table / f"data-{version}.parquet"
        pq.write_table(rows, data)
        add = {"path": data.name, "size": data.stat().st_size, "partitionValues": {}, "modificationTime": 0, "dataChange": True,
               "stats": json.dumps({"numRecords": rows.num_rows})}  # fmt: skip
        txn = {"appId": f"{self.name}/*", "version": pinned + 1}
        with (table / "_delta_log" / f"{version:020}.json").open("w", buffering=1) as entry:
            for action in ({"commitInfo": {"run_id": "night"}}, {"add": add}, {"txn": txn}):
                entry.write(json.dumps(action) + "\n")
        return commit.Committed(self.name, version, rows.num_rows, True)


def naive(table: Path, name: str) -> pa.Table:
    """The rows of a Delta table by its JSON log alone, read as a person would; a log with a hole or a torn line is an error."""
    entries = sorted(p for p in (table / "_delta_log").iterdir() if p.suffix == ".json" and p.stem.isdigit())
    assert [int(p.stem) for p in entries] == list(range(len(entries))), f"a hole in the log: {[p.name for p in entries]}"
    live: dict[str, dict[str, Any]] = {}
    for entry in entries:
        actions = [json.loads(line) for line in entry.read_bytes().split(b"\n") if line]
        assert actions, f"{entry.name} is empty"
        for action in actions:
            if "remove" in action:
                live.pop(unquote(action["remove"]["path"]))
        for action in actions:
            if "add" in action:
                path = unquote(action["add"]["path"])
                assert path not in live, f"{path} is added twice"
                live[path] = action["add"]
    t = schema.table(name)
    tables = [t.arrow.empty_table()]
    for path, add in live.items():
        assert (table / path).stat().st_size == add["size"], f"{path} has another length than its log says"
        rows = pq.ParquetFile(table / path).read()
        assert rows.num_rows == json.loads(add["stats"])["numRecords"], f"{path} has other rows than its log says"
        if t.partition:
            day = date.fromisoformat(add["partitionValues"][t.partition])
            rows = rows.append_column(t.partition, pa.array([day] * rows.num_rows, pa.date32()))
        tables.append(rows.select(t.arrow.names).cast(t.arrow))
    return pa.concat_tables(tables)


def state(lake: Lake, case: Case) -> str:
    """old, new, or what the rows are instead; the lake's reader and the naive one must agree."""
    rows = lake.arrow(case.name)
    digest = content_hash(rows, case.name)
    assert digest == content_hash(naive(lake.path(case.name), case.name), case.name), "two readers see two tables"
    return case.states.get(digest) or f"{rows.num_rows} rows that are neither"


def fork(job: Callable[[], Any]) -> tuple[int, Any]:
    """`job` in a child: (0 or the signal that ended it, its JSON)."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(readable)
            os.write(writable, json.dumps(job()).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(told) if told else None


def outcome(job: Callable[[], Any]) -> dict[str, Any]:
    """What `job` returned or raised, in words."""
    try:
        return {"said": "done", "told": job()}
    except Exception as error:
        return {"said": type(error).__name__, "typed": isinstance(error, MmrecError) or lost_store(error) is not None, "told": str(error)[:300]}


def commit_under_fault(case: Case, root: Path, faults: Faults, door: str, arm: Callable[[], None]) -> dict[str, Any]:
    lake = Lake(root)
    pinned = case.pin(lake)
    rows: Any = case.rows
    if door != "arrow":
        engine = "spark" if door == "spark" else "local"
        rows = session.session(engine).createDataFrame(rows, schema.table(case.name).ddl)

    def write() -> Any:
        arm()
        try:
            return case.write(lake, rows, pinned).changed
        finally:
            faults.disarm()

    return outcome(write)


def next_morning(case: Case, root: Path, pinned: int) -> dict[str, Any]:
    """A fresh process: read, look for what is left over, run the write again as a night and as a step would."""
    lake, broken = Lake(root), list[str]()

    def holds(what: str, job: Callable[[], Any]) -> Any:
        found = outcome(job)
        if found["said"] != "done":
            broken.append(f"{what}: {found['said']}: {found['told']}")
        return found["told"]

    seen = holds("a fresh reader", lambda: state(lake, case))
    if seen not in ("old", "new"):
        broken.append(f"a fresh reader sees {seen}")
    entries = lake.path(case.name) / "_delta_log"
    copies = lake.path(case.name) / "_entries"  # of the entries that made the table
    odd = [str(p.relative_to(root)) for p in lake.path(case.name).iterdir() if p not in (entries, copies) and not p.name.startswith("stage-")]
    if odd:
        broken.append(f"left over outside of stages: {odd}")
    parts = [p.name for p in entries.iterdir() if not p.name.removesuffix(".json").isdigit()]
    again = None
    if case.mode == "replace_partition":  # a retry of the night keeps what its plan pinned
        again = holds("the retry", lambda: case.write(lake, case.rows, pinned).changed)
        if again is not (seen == "old"):
            broken.append(f"the retry after {seen} rows says changed={again}")
        if holds("a reader after the retry", lambda: state(lake, case)) != "new":
            broken.append("the retry did not bring the new rows")
    holds("the run after it", lambda: case.write(lake, case.missing(lake), case.pin(lake)).changed)
    if (after := holds("a reader after the run", lambda: state(lake, case))) != "new":
        broken.append(f"after the run a reader sees {after}")
    return {"seen": seen, "retry_wrote": again, "log_parts": parts, "broken": broken}


def sweep(case: Case, work: Path, faults: Faults, door: str, mode: str, first: int, step: int) -> Iterator[dict[str, Any]]:
    """Every `step`-th N from `first` on, until the commit ends before its N-th call."""
    template = work / f"template-{case.mode}"
    if not template.is_dir():
        assert fork(lambda: case.template(template))[0] == 0
    case.states = case.states or fork(case.digests)[1]
    pinned = fork(lambda: case.pin(Lake(template)))[1]
    for at in range(first, 10_000, step):
        root = work / "lake"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        ended, writer = fork(lambda root=root, at=at: commit_under_fault(case, root, faults, door, lambda: faults.arm(mode, root, at)))
        faults.disarm()
        if not faults.fired:
            assert ended == 0, (ended, writer)
            assert writer["told"] is True, writer
            return
        line: dict[str, Any] = {"door": door, "write": case.mode, "fault": mode, "at": at, "what": faults.what, "ended": ended,
                                "said": "killed" if ended else writer["said"], "typed": not ended and writer.get("typed", True),
                                "told": None if ended else writer["told"]}  # fmt: skip
        code, judged = fork(lambda root=root: next_morning(case, root, pinned))
        yield line | (judged if code == 0 else {"seen": None, "broken": [f"the next morning's process ended with {code}"]})
    raise AssertionError("the commit does not end")


def on_one_session(case: Case, work: Path, faults: Faults, mode: str, ats: list[int]) -> Iterator[dict[str, Any]]:
    """Java Spark takes seconds to start: faults one after the other in this process, whose calls and the JVM's count alike.

    An N below 0 counts from the end of a commit that nothing befell.
    """
    template, root = work / f"template-{case.mode}", work / "lake"
    if not template.is_dir():
        case.template(template)
    case.states = case.states or case.digests()

    def attempt(at: int) -> dict[str, Any]:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        return commit_under_fault(case, root, faults, "spark", lambda: faults.arm(mode, root, at))

    if min(ats) < 0:
        assert attempt(10_000)["told"] is True
        ats = [at if at > 0 else faults.calls + 1 + at for at in ats]
    pinned = case.pin(Lake(template))
    for at in ats:
        writer = attempt(at)
        assert faults.fired, f"the commit ends after {faults.calls} calls"
        yield {"door": "spark", "write": case.mode, "fault": mode, "at": at, "what": faults.what, "ended": 0, "said": writer["said"],
               "typed": writer.get("typed", True), "told": writer["told"]} | next_morning(case, root, pinned)  # fmt: skip


def story(case: Case, work: Path, faults: Faults, door: str, which: str, trace: Path) -> dict[str, Any]:
    """Trace one commit; or, one after the other, a writer that is killed between its commit and settling it, and the run after it."""
    root, pinned = work / "lake", 0

    def armed() -> None:
        faults.arm("trace", root, trace=trace)

    if which == "created":
        (work / "before").mkdir()
        root.mkdir()
        armed()
    assert fork(lambda: case.template(root))[0] == 0
    if which != "created":
        shutil.copytree(root, work / "before")
        pinned = fork(lambda: case.pin(Lake(root)))[1]
    if which in ("retried", "followed"):

        def killed() -> None:
            log.settle = lambda *_: os._exit(9)
            commit_under_fault(case, root, faults, door, armed)

        assert fork(killed)[0] == 9
        assert faults.calls > 0
    armed()
    lake = Lake(root)
    if which == "retried":
        return outcome(lambda: case.write(lake, case.rows, pinned).changed)
    if which == "followed":
        return outcome(lambda: commit.write(lake, case.name, case.next_rows, run_id="next", pinned=commit.fence(lake, case.name, case.next_day), partition=case.next_day).changed)
    told = commit_under_fault(case, root, faults, door, armed)
    session.stop("local")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--door", choices=("arrow", "frame", "spark"), default="arrow")
    parser.add_argument("--write", choices=tuple(TABLE), default="replace_partition")
    parser.add_argument("--faults", nargs="+", default=["eio", "full", "short", "kill_before", "torn"])
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--at", type=int, nargs="+", default=[], help="engine spark: only these N; -1 is the last call")
    parser.add_argument("--careless", action="store_true", help="a writer that must be caught")
    parser.add_argument("--trace", type=Path, help="no fault: write down the calls of one commit")
    parser.add_argument("--story", choices=("plain", "retried", "followed", "created"), default="plain", help="what is traced")
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    faults, case = Faults(Path(os.environ[CONTROL])), (Careless if asked.careless else Case)(asked.write)
    work = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    warm(asked.door)
    if asked.trace:
        print(json.dumps(story(case, work, faults, asked.door, asked.story, asked.trace)))
        return
    if asked.door == "spark":
        for mode in asked.faults:
            for line in on_one_session(case, work, faults, mode, asked.at):
                print(json.dumps(line), flush=True)
        os._exit(0)  # a killed JVM can't be asked to stop
    threads = [Path("/proc/self/task", t, "comm").read_text().strip() for t in os.listdir("/proc/self/task")]
    # an allocator's housekeeping survives a fork
    assert len([t for t in threads if t != "jemalloc_bg_thd"]) == 1, f"{threads}: a child would be a torn copy"
    for mode in asked.faults:
        for line in sweep(case, work, faults, asked.door, mode, asked.first, asked.step):
            print(json.dumps(line), flush=True)


def warm(door: str) -> None:
    """Import what a commit imports; nothing of it may have started a thread."""
    names = ["deltalake", "duckdb", "numpy", "pyarrow.compute", "pyarrow.dataset"]
    for name in [*names, "pysail.spark", "pyspark.sql.connect.session"] if door == "frame" else names:
        import_module(name)


if __name__ == "__main__":
    main()

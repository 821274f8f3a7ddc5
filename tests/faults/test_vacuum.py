"""Vacuum during a read or an uncommitted write: live files are safe.

The sweep (`python -m tests.faults.test_vacuum FOLDER`, below preload.c) kills one maintenance at its N-th file-system
call, for every N; a fresh process then reads every version that is promised, maintains again, and publishes what waited.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from mmrec import schema
from mmrec.config import Config, MaintainConfig, load
from mmrec.errors import QualityError
from mmrec.lake import audit, commit, log, stage, vacuum
from mmrec.lake.maintain import maintain
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Expired, Lake
from tests.faults.preload import CONTROL, Faults

LIST, USERS, CACHE = "gold.recommendations", "silver.users", "gold.item_embeddings"
NEEDED, GONE = "encoder/2", "encoder/1"
D1, D2, D3 = date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)
DAY = timedelta(days=1)
KEEP = schema.table(LIST).retention_days
LATER = KEEP + 3700  # days: everything is expired that is not pinned
NEVER = 10**6  # files from which on compaction is worth it: it is not


def lists(tag: str, day: date = D1, n: int = 6) -> pa.Table:
    return pa.Table.from_pylist([
        {"run_date": day, "arm": "main", "user_id": f"{tag}{i}", "rank": 1, "item_id": "i", "score": 1.0, "source": "model",
         "reason": "r", "propensity": 1.0, "model_version": "0", "run_id": tag} for i in range(n)
    ], schema.table(LIST).arrow)  # fmt: skip


def people(tag: str) -> pa.Table:
    t = schema.table(USERS)
    row = {"user_id": tag, "available_at": datetime(2026, 3, 1, tzinfo=UTC), "attributes": "{}", "source": "files", "row_hash": tag}
    return pa.Table.from_pylist([{c.name: row.get(c.name) for c in t.columns}], t.arrow)


def vectors(version: str, *contents: str) -> pa.Table:
    rows = [{"content_sha256": c, "encoder_version": version, "modality": "text", "dim": 1, "embedding": [1.0], "refused": None} for c in contents]
    return pa.Table.from_pylist(rows, schema.table(CACHE).arrow)


def put(lake: Lake, rows: pa.Table, run_id: str, day: date | None, name: str = LIST) -> int:
    return commit.write(lake, name, rows, run_id=run_id, pinned=commit.fence(lake, name, day), partition=day).version


def seen(lake: Lake, name: str, version: int | None = None) -> Counter[str]:
    return Counter(map(repr, lake.arrow(name, version).to_pylist()))


def seen_of(*parts: pa.Table) -> Counter[str]:
    return Counter(map(repr, pa.concat_tables(parts).to_pylist()))


def age(path: Path, days: float) -> None:
    """Make a file, or all in a folder, `days` old."""
    at = datetime.now(UTC).timestamp() - days * 86400
    for p in [path, *path.rglob("*")]:
        os.utime(p, (at, at))


def tidy(config: Config, days: float = 0, **more: Any) -> dict[str, dict[str, Any]]:
    config = config.model_copy(update={"maintain": MaintainConfig(**{"min_files": 2, "checkpoint_every": 2} | more)})
    told = maintain(config, now=datetime.now(UTC) + days * DAY, needed=lambda: {NEEDED})
    assert not [t for t in told if t["refused"]], told
    return {t["table"]: t for t in told}


@pytest.fixture
def home(tmp_path: Path) -> Config:
    config = load(tmp_path / "home")
    for name in (LIST, USERS):
        Lake(config.lake).create(name)
    return config


@pytest.fixture
def lake(home: Config) -> Lake:
    return Lake(home.lake)


def test_a_reader_in_the_middle_of_an_old_version_reads_it_to_its_end(home: Config, lake: Lake, spark: Any) -> None:
    old = put(lake, lists("old"), "old", D1)
    put(lake, lists("other", D2), "other", D2)
    for n in range(3):
        put(lake, lists(f"new{n}"), f"new{n}", D1)
        put(lake, people(f"p{n}"), f"p{n}", None, USERS)
    right, users, pinned = seen(lake, LIST, old), seen(lake, USERS), lake.version(USERS)
    by_batch = lake.batches(LIST, old)
    first, held, planned = next(by_batch), lake.dataset(USERS, pinned), lake.frame(spark, LIST, old)
    told = tidy(home, days=KEEP - 2)
    assert told[USERS]["compacted"]["files"] == 3
    assert Counter(map(repr, pa.Table.from_batches([first, *by_batch]).to_pylist())) == right
    assert Counter(map(repr, held.to_table().select(schema.table(USERS).arrow.names).to_pylist())) == users
    assert sorted(planned.toArrow()["user_id"].to_pylist()) == [f"old{i}" for i in range(6)]


@pytest.mark.parametrize("more", [{}, {"checkpoint_every": 1000}], ids=["its entries too", "its files alone"])
def test_a_version_that_expired_is_said_to_be_no_longer_kept(home: Config, lake: Lake, spark: Any, more: dict[str, int]) -> None:
    old = put(lake, lists("old"), "old", D1)
    newest = put(lake, lists("new"), "new", D1)
    tidy(home, days=KEEP + 30, **more)
    assert (lake.path(LIST) / "_delta_log" / f"{0:020}.json").exists() == bool(more)
    for read in (lambda: lake.arrow(LIST, old), lambda: next(lake.batches(LIST, old)), lambda: lake.frame(spark, LIST, old).toArrow()):
        with pytest.raises(Expired, match="no longer kept") as told:
            read()
        assert told.value.where == LIST
        assert (told.value.value, f"the newest, {newest}," in told.value.valid) == (old, True)
    assert len(seen(lake, LIST, newest)) == len(lists("new"))


def test_readers_of_every_promised_version_while_maintenance_goes_round_never_miss_a_file(home: Config, lake: Lake) -> None:
    for n in range(6):
        put(lake, lists(f"r{n}", D1 if n % 2 else D2), f"r{n}", D1 if n % 2 else D2)
        put(lake, people(f"p{n}"), f"p{n}", None, USERS)
    promised = {(n, v): seen(lake, n, v) for n in (LIST, USERS) for v in range(lake.version(n) + 1)}
    wrong, reads, over = list[str](), Counter[str](), threading.Event()

    def read(part: int) -> None:
        while not over.is_set() or not reads[str(part)]:
            for (name, version), right in list(promised.items())[part::3]:
                try:
                    if seen(Lake(lake.root), name, version) != right:
                        wrong.append(f"{name} {version}: other rows")
                except Exception as error:
                    wrong.append(f"{name} {version}: {error!r}")
            reads[str(part)] += 1

    readers = [threading.Thread(target=read, args=(part,)) for part in range(3)]
    for r in readers:
        r.start()
    for n in range(4):
        put(lake, lists(f"late{n}"), f"late{n}", D1)
        tidy(home, days=KEEP - 2)
    over.set()
    for r in readers:
        r.join()
    assert wrong == []
    assert len(reads) == 3


@pytest.mark.parametrize("door", ["arrow", "engine"])
def test_an_uncommitted_write_younger_than_the_grace_is_published_after_maintenance(home: Config, lake: Lake, spark: Any, door: str) -> None:
    put(lake, lists("old"), "old", D1)
    rows = lists("new")
    staged = stage.stage(lake, LIST, spark.createDataFrame(rows) if door == "engine" else rows, "new")
    told = tidy(home, days=6.9)
    assert told[LIST]["stages"] == told[LIST]["files"] == 0
    checked = audit.audit(lake, staged, partition=str(D1))
    assert commit.adopt(lake, checked, run_id="new", pinned=1, partition=D1, metadata={}).changed
    assert seen(lake, LIST) == Counter(map(repr, rows.to_pylist()))


def record(folder: Path, pid: int, since: datetime) -> None:
    about = {"table": LIST, "run_id": "new", "host": socket.gethostname(), "pid": pid, "created": since.isoformat(), "files": {}}
    (folder / "_stage.json").write_text(json.dumps(about))


def test_an_old_stage_whose_writer_lives_stays_and_one_whose_writer_is_dead_or_another_process_goes(home: Config, lake: Lake) -> None:
    put(lake, lists("old"), "old", D1)
    born = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    writers = {"alive": (os.getpid(), datetime.now(UTC)), "dead": (ended.pid, datetime.now(UTC)), "reused": (os.getpid(), born - DAY)}
    folders = {}
    for who, (pid, since) in writers.items():
        folders[who] = stage.stage_arrow(lake, LIST, lists(who), who).folder
        record(folders[who], pid, since)
    nobody = stage.stage_arrow(lake, LIST, lists("x"), "nobody")
    told = tidy(home, days=8)
    assert told[LIST]["stages"] == 3
    assert {who for who, folder in folders.items() if folder.exists()} == {"alive"}
    # what is gone is refused by name when it is published after all
    with pytest.raises(QualityError) as refused:
        audit.audit(lake, nobody, partition=str(D1))
    assert set(refused.value.report["refused"]) == {"missing_file"}
    assert seen(lake, LIST) == Counter(map(repr, lists("old").to_pylist()))


@pytest.mark.parametrize("moment", ["published", "sealed"])
def test_a_stage_that_is_published_while_vacuum_judges_it_comes_back(home: Config, lake: Lake, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    put(lake, lists("old"), "old", D1)
    rows = lists("new")
    staged = stage.stage_arrow(lake, LIST, rows, "new")
    checked = audit.audit(lake, staged, partition=str(D1))
    age(staged.folder, 8)
    real, came = Path.rename, list[str]()

    def late(path: Path, target: Any) -> Path:
        if path == staged.folder and not came:
            came.append(moment)
            if moment == "sealed":
                staged.seal("new", {})
            else:
                commit.adopt(lake, checked, run_id="new", pinned=1, partition=D1, metadata={})
        return real(path, target)

    monkeypatch.setattr(Path, "rename", late)
    told = tidy(home)
    assert came == [moment]
    assert told[LIST]["stages"] == 0
    if moment == "sealed":
        assert commit.adopt(lake, checked, run_id="new", pinned=1, partition=D1, metadata={}).changed
    assert seen(lake, LIST) == Counter(map(repr, rows.to_pylist()))


def test_what_a_killed_vacuum_had_moved_aside_comes_back_if_it_lives_and_goes_if_it_does_not(home: Config, lake: Lake) -> None:
    put(lake, lists("old"), "old", D1)
    live, = lake.path(LIST).glob("stage-old-*")
    waits = stage.stage_arrow(lake, LIST, lists("new"), "new").folder
    dead = stage.stage_arrow(lake, LIST, lists("x"), "dead").folder
    age(dead, 8)
    for folder in (live, waits, dead):
        folder.rename(folder.with_name(f"gone-{folder.name}"))
    with pytest.raises(FileNotFoundError):
        seen(lake, LIST)
    assert tidy(home)[LIST]["stages"] == 1
    assert seen(lake, LIST) == Counter(map(repr, lists("old").to_pylist()))
    assert (live.exists(), waits.exists(), dead.exists(), list(lake.path(LIST).glob("gone-*"))) == (True, True, False, [])


def test_nothing_that_is_young_or_not_ours_is_ever_deleted(home: Config, lake: Lake) -> None:
    put(lake, lists("old"), "old", D1)
    root = lake.path(LIST)
    for n, name in enumerate(("run_date=2026-03-01/orphan.parquet", "orphan.parquet", "notes.txt", "_damaged/0000-x.json", "_delta_log/00000000000000000099.json#1")):
        for days, form in ((6, "young-"), (8, "")):
            path = root / Path(name).parent / (form + Path(name).name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{n}")
            age(path, days)
    tidy(home, min_files=NEVER)
    left = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and "stage-" not in p.as_posix() and "_entries" not in p.parts and not re.search(r"\d{20}[.](json|checkpoint.parquet)\Z|_last_", p.name)}
    assert left == {"run_date=2026-03-01/young-orphan.parquet", "young-orphan.parquet", "young-notes.txt", "notes.txt",
                    "_damaged/young-0000-x.json", "_damaged/0000-x.json", "_delta_log/young-00000000000000000099.json#1"}  # fmt: skip


def shop(folder: Path) -> Config:
    """A home in which everything is to be done: expired, pinned and waiting files, small ones, a dead stage, a long log,
    vectors that nobody needs beside some that are needed."""
    config = load(folder / "home")
    lake = Lake(config.lake)
    for name in (LIST, USERS, CACHE):
        lake.create(name)
    for version in (NEEDED, GONE):
        put(lake, vectors(version, "mixed"), "mixed", None, CACHE)
    tidy(config)  # young, so they are put together
    put(lake, vectors(GONE, "alone"), "alone", None, CACHE)
    for n in range(3):
        put(lake, lists(f"r{n}", n=2), f"r{n}", D1)
        put(lake, people(f"p{n}"), f"p{n}", None, USERS)
    pinned = lake.version(LIST) - 1
    put(lake, lists("other", D2, n=2), "other", D2)
    tidy(config, min_files=NEVER)
    stage.stage_arrow(lake, LIST, lists("dead", n=2), "dead")
    age(Manifest(str(D1), "2026-03-01T00:00:00+00:00", {LIST: pinned, CACHE: lake.version(CACHE)}, "0", "d", {}, {}, {}, "1").save(config.runs), 1 - LATER)
    age(stage.stage_arrow(lake, LIST, lists("waiting", D3, n=2), "waiting").folder, 1 - LATER)
    return config


def promised(config: Config) -> list[str]:
    """What does not hold of: the newest rows, the pinned versions, the write that waits."""
    lake, broken = Lake(config.lake), []
    for name, right in ((LIST, [*lists("r2", n=2).to_pylist(), *lists("other", D2, n=2).to_pylist()]), (USERS, [r for n in range(3) for r in people(f"p{n}").to_pylist()])):
        damaged = log.damage(lake.path(name), name, all_of_it=True)
        if damaged:
            broken.append(f"{name}: {damaged[0].what}")
        elif seen(lake, name) != Counter(map(repr, right)):
            broken.append(f"{name}: other rows")
    manifest = Manifest.from_json(next(config.runs.glob("*/manifest.json")).read_text())
    kept, whole = seen_of(vectors(NEEDED, "mixed")), seen_of(vectors(NEEDED, "mixed"), vectors(GONE, "mixed", "alone"))
    if log.damage(lake.path(CACHE), CACHE, all_of_it=True) or seen(lake, CACHE) not in (kept, whole):
        broken.append(f"{CACHE}: damaged, or some of the rows that nobody needs")
    elif seen(lake, CACHE, manifest.tables[CACHE]) != whole:
        broken.append(f"{CACHE}: other rows in the pinned version")
    if seen(lake, LIST, manifest.tables[LIST]) != Counter(map(repr, lists("r1", n=2).to_pylist())):
        broken.append("the pinned version: other rows")
    waits = list(lake.path(LIST).glob("stage-waiting-*"))
    if len(waits) != 1 or not list(waits[0].rglob("*.parquet")):
        broken.append("the write that waits is gone")
    return broken


def left(config: Config) -> Counter[str]:
    """Files by kind: what two maintained homes have in common, whatever their commits are called and whether the last of
    them lived to leave a copy of its entry."""
    names = [p.relative_to(config.lake).as_posix() for p in config.lake.rglob("*") if p.is_file()]
    return Counter(re.sub(r"-[0-9a-f]{8,}.*?(?=/|\Z)|_entry-.*|\d{20}", "", n.split("part-")[0]) for n in names if "_delta_log/" not in n and "_entry-" not in n)


def after(config: Config, whole: Counter[str], told: Path) -> None:
    """A fresh process: what is promised holds, a second maintenance ends as an undisturbed one, what waits is published."""
    try:
        broken = promised(config)
        if not broken:
            tidy(config, LATER)
            broken = [f"after the second: {b}" for b in promised(config)]
            if seen(Lake(config.lake), CACHE) != seen_of(vectors(NEEDED, "mixed")):
                broken.append("after the second: rows that nobody needs")
            if left(config) != whole:
                broken.append(f"left behind: {left(config) - whole}, lost: {whole - left(config)}")
        if not broken:
            lake = Lake(config.lake)
            staged = stage.read_stage(LIST, next(lake.path(LIST).glob("stage-waiting-*")))
            checked = audit.audit(lake, staged, partition=str(D3))
            commit.adopt(lake, checked, run_id="waiting", pinned=0, partition=D3, metadata={})
            if Counter(map(repr, lake.day(LIST, D3).to_pylist())) != Counter(map(repr, lists("waiting", D3, n=2).to_pylist())):
                broken.append("the write that waited: other rows")
    except BaseException:
        broken = [traceback.format_exc()]
    told.write_text(json.dumps(broken))


def forked(work: Callable[[], None]) -> int:
    """Work in a child of this process; its exit code, or minus its signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sweep(folder: Path, stride: int) -> None:
    """For every `stride`-th call: a copy of the shop, a killed maintenance, a look. The parent only forks."""
    faults, told = Faults(Path(os.environ.pop(CONTROL))), folder / "told.json"
    assert forked(lambda: shop(folder / "made") and None) == 0
    plain = folder / "whole"
    shutil.copytree(folder / "made", plain)
    assert forked(lambda: tidy(load(plain / "home"), LATER) and None) == 0
    whole = left(load(plain / "home"))
    n, done, found = 1, 0, list[str]()
    while True:
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / "made", copy)
        config = load(copy / "home")
        faults.arm("kill_before", copy, n)
        code = forked(lambda config=config: tidy(config, LATER) and None)
        faults.disarm()
        if not faults.fired:
            assert code == 0
            break
        what = faults.what
        assert forked(lambda config=config: after(config, whole, told)) == 0
        found += [f"call {n}, {what}: {b}" for b in json.loads(told.read_text())]
        done, n = done + 1, n + stride
    print(json.dumps({"kills": done, "calls": n - stride, "broken": found}))


def test_a_maintenance_that_is_killed_at_any_file_system_call_loses_nothing_and_the_next_one_ends_it(tmp_path: Path, library: Path, tried: Callable[[str, object], None]) -> None:
    faults = Faults(tmp_path / "control")
    stride = int(os.environ.get("TEST_VACUUM_STRIDE", "4"))
    done = subprocess.run([sys.executable, "-m", "tests.faults.test_vacuum", str(tmp_path), str(stride)], env=faults.environment(library), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    tried("kills of a maintenance", f"{told['kills']}, every {stride}th of {told['calls']} calls")
    assert told["broken"] == []
    assert told["kills"] > 5


def test_the_sweep_sees_a_vacuum_that_deletes_what_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = shop(tmp_path)
    assert promised(config) == []
    real = vacuum.kept

    def forgetful(lake: Lake, name: str, pinned: Any, *more: Any) -> Any:
        return real(lake, name, [], *more)

    with monkeypatch.context() as patched:
        patched.setattr(vacuum, "kept", forgetful)
        tidy(config, LATER)
    with pytest.raises(Exception, match=r"parquet|damaged|version"):
        promised(config)


if __name__ == "__main__":
    sweep(Path(sys.argv[1]), int(sys.argv[2]))

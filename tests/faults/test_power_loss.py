"""Power loss: what a commit makes durable, in which order, and what a reader finds when everything else is gone.

The calls of one commit are traced by preload.c and played on a disk that forgets: a file's bytes are safe once the file
was fsynced, a name once its folder was. After every call the power goes, and what may be left is built and read.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from random import Random
from urllib.parse import unquote

import pytest

from mmrec import schema
from mmrec.context import Night
from mmrec.errors import MmrecError, QualityError
from mmrec.lake.content import content_hash
from mmrec.lake.manifest import Manifest
from mmrec.lake.repair import repair
from mmrec.lake.store import Lake
from mmrec.publish import publish
from mmrec.run import make_home
from mmrec.verify import verify
from tests.faults.preload import Faults
from tests.faults.sweep import TABLE, Case

SEED, SHUFFLED = 0, 3  # of each moment, so many mixtures of what is kept and what is lost


@dataclass(frozen=True)
class Call:
    op: str
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""


@dataclass
class File:
    data: bytearray = field(default_factory=bytearray)
    safe: bytes = b""


FOLDER = None
Names = dict[str, File | None]


class Disk:
    """Names and files as a process sees them, and as they are after the power went. Paths are below the root."""

    def __init__(self, root: Path) -> None:
        self.seen: Names = {"": FOLDER}
        for path in sorted(root.rglob("*")):
            data = b"" if path.is_dir() else path.read_bytes()
            self.seen[str(path.relative_to(root))] = FOLDER if path.is_dir() else File(bytearray(data), data)
        self.safe: Names = dict(self.seen)

    def play(self, c: Call) -> None:
        file = self.seen.get(c.path)
        if c.op == "create":
            self.seen[c.path] = File()
        elif c.op == "mkdir":
            self.seen[c.path] = FOLDER
        elif c.op in ("empty", "truncate"):
            assert file is not None
            file.data = bytearray(bytes(file.data[: c.offset]).ljust(c.offset, b"\0"))
        elif c.op == "write" and file is not None:
            file.data[len(file.data) :] = b"\0" * (c.offset - len(file.data))
            file.data[c.offset : c.offset + len(c.data)] = c.data
        elif c.op == "link":
            self.seen[c.other] = file
        elif c.op == "rename":
            for name in [n for n in self.seen if n == c.path or n.startswith(c.path + "/")]:
                self.seen[c.other + name[len(c.path) :]] = self.seen.pop(name)
        elif c.op in ("unlink", "rmdir"):
            self.seen.pop(c.path)
        elif c.op == "fsync":
            if file is not None:
                file.safe = bytes(file.data)
            elif c.path in self.seen:
                for name in {n for n in self.seen | self.safe if n and n.rpartition("/")[0] == c.path}:
                    if name in self.seen:
                        self.safe[name] = self.seen[name]
                    else:
                        self.safe.pop(name, None)

    def after_power_loss(self, rng: Random) -> Iterator[tuple[str, dict[str, bytes | None]]]:
        """What may be left, name -> bytes, None for a folder."""
        yield "all that is not fsynced is lost", _whole(self.safe, lambda f: f.safe)
        yield "names are kept, bytes are lost", _whole(self.seen, lambda f: f.safe)
        yield "all is kept", _whole(self.seen, lambda f: bytes(f.data))
        for _ in range(SHUFFLED):
            names = {n: rng.choice([side[n] for side in (self.seen, self.safe) if n in side])
                     for n in sorted(self.seen | self.safe) if (n in self.seen and n in self.safe) or rng.random() < 0.5}  # fmt: skip
            yield "some is kept", _whole(names, lambda f: rng.choice([f.safe, bytes(f.data), bytes(f.data[: len(f.data) // 2]), bytes(len(f.data))]) if f.safe != f.data else f.safe)


def _whole(names: Names, data: Callable[[File], bytes]) -> dict[str, bytes | None]:
    """Names whose folders are all there."""
    out: dict[str, bytes | None] = {}
    for name in sorted(names):
        above = [str(p) for p in Path(name).parents if str(p) != "."]
        if name and all(a in names for a in above):
            file = names[name]
            out[name] = FOLDER if file is None else data(file)
    return out


def build(state: dict[str, bytes | None], root: Path) -> None:
    root.mkdir(parents=True)
    for name, data in state.items():
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)


def read_trace(trace: Path, root: Path) -> list[Call]:
    calls, rest, above = [], trace.read_bytes(), f"{root}/"
    while rest:
        head, rest = rest.split(b"\n", 1)
        op, path, other, offset, length = head.decode().split("\t")
        size = int(length)
        names = [p.removeprefix(above) if p.startswith(above) else "" for p in (path, other)]
        calls.append(Call(op, *names, int(offset), rest[:size]))
        rest = rest[size:]
    return calls


@dataclass(frozen=True)
class Traced:
    case: Case
    before: Path
    calls: list[Call]


@contextmanager
def trace(library: Path, work: Path, write: str, door: str, story: str = "plain") -> Iterator[Traced]:
    """The calls of a story of sweep.py, in a process of its own."""
    work = work.resolve()
    faults = Faults(work / "control")
    done = subprocess.run([sys.executable, "-m", "tests.faults.sweep", "--door", door, "--write", write, "--story", story, "--work", str(work), "--trace", str(work / "trace")],
                          env=faults.environment(library), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {"said": "done", "told": story != "retried"}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(schema, "TABLES", dict(schema.TABLES))
        case = Case(write)
        case.states = case.digests()
        yield Traced(case, work / "before", read_trace(work / "trace", work / "lake"))


@pytest.fixture(scope="module", params=[(door, write) for door in ("arrow", "frame") for write in TABLE], ids="-".join)
def traced(request: pytest.FixtureRequest, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    door, write = request.param
    with trace(library, tmp_path_factory.mktemp("trace"), write, door) as told:
        yield told


def test_data_files_are_durable_before_the_log_names_them_and_the_log_entry_before_the_writer_is_told(traced: Traced) -> None:
    table = f"{traced.case.name.replace('.', '/')}"
    calls, log = traced.calls, f"{table}/_delta_log"
    published = [n for n, c in enumerate(calls) if c.op in ("link", "rename") and c.other.startswith(f"{log}/") and c.other.endswith(".json")]
    assert len(published) == 1, published
    at = published[0]

    def when(op: str, path: str) -> list[int]:
        return [n for n, c in enumerate(calls) if c.op == op and c.path == path]

    def made(path: str) -> int:
        return max([*when("create", path), *when("mkdir", path), *(n for n, c in enumerate(calls) if c.other == path)])

    def safe_between(path: str, since: int) -> bool:
        return any(since < n < at for n in when("fsync", path))

    disk = Disk(traced.before)
    for call in calls[: at + 1]:
        disk.play(call)
    entry = disk.seen[calls[at].other]
    assert entry is not None
    adds = [action["add"]["path"] for action in map(json.loads, filter(None, bytes(entry.data).split(b"\n"))) if "add" in action]
    assert adds
    for add in map(unquote, adds):
        parts = add.split("/")
        file = f"{table}/{add}"
        written = max(n for n, c in enumerate(calls[:at]) if (c.op == "write" and c.path in (file, f"{file}#1")) or c.other == file)
        assert safe_between(file, written), f"{add} is not durable before the log names it"
        for depth in range(len(parts)):
            name = "/".join([table, *parts[: depth + 1]])
            assert safe_between(name.rpartition("/")[0], made(name)), f"the name {name} is not durable before the log names {add}"
    for path in (calls[at].other, log):
        assert any(n > at for n in when("fsync", path)), f"{path} is not fsynced after the commit"


def found_after_power_loss(root: Path, case: Case) -> str:
    """old, new, next, refused; or what else a reader says. What is refused may be mended: then the same is asked again."""
    try:
        rows = Lake(root).arrow(case.name)
    except QualityError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return case.states.get(content_hash(rows, case.name)) or f"{rows.num_rows} other rows"


def test_power_loss_at_any_moment_of_a_commit_leaves_the_old_rows_the_new_or_a_refusal_that_is_mended(traced: Traced, tmp_path: Path, tried: Callable[[str, object], None], request: pytest.FixtureRequest) -> None:
    rng, disk, found, wrong, known = Random(SEED), Disk(traced.before), Counter[str](), [], set[int]()
    case, calls = traced.case, traced.calls
    for n in range(len(calls) + 1):
        if n:
            disk.play(calls[n - 1])
        for what, state in disk.after_power_loss(rng):
            if (key := hash(frozenset(state.items()))) in known and n < len(calls):
                continue
            known.add(key)
            root = tmp_path / f"{sum(found.values())}"
            build(state, root)
            seen = found_after_power_loss(root, case)
            found[seen] += 1
            about = f"after call {n} ({calls[n - 1].op} {calls[n - 1].path}): {what}"
            if n == len(calls) and seen != "new":
                wrong.append(f"the writer was told that it is done, then {what}: {seen}")
            if seen == "refused":
                mended = repair(Lake(root))
                after = found_after_power_loss(root, case)
                found[f"{after} after repair"] += 1
                if after not in ("old", "new"):
                    wrong.append(f"{about}: refused; repair says {[(m.version, m.what, m.done) for m in mended]}, then {after}")
            elif seen not in ("old", "new"):
                wrong.append(f"{about}: {seen}")
            shutil.rmtree(root)
    tried(f"disks after a power loss, {request.node.callspec.id}", dict(found))
    assert sum(found.values()) >= len(calls)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(w[:500] for w in wrong[:12])


@pytest.mark.parametrize(("story", "wanted"), [("retried", "new"), ("followed", "next"), ("created", "new")])
@pytest.mark.parametrize("write", ["replace_partition", "append_new"])
def test_what_a_writer_was_told_outlasts_a_power_loss_though_the_commit_below_it_was_never_settled(
    library: Path, tmp_path: Path, write: str, story: str, wanted: str
) -> None:
    # retried: the writer was killed right after its commit and its retry did nothing; followed: another run came next;
    # created: nothing of the table was there before
    with trace(library, tmp_path, write, "arrow", story) as told:
        rng, disk, wrong = Random(SEED), Disk(told.before), []
        for call in told.calls:
            disk.play(call)
        for n, (what, state) in enumerate(disk.after_power_loss(rng)):
            build(state, tmp_path / f"disk{n}")
            seen = found_after_power_loss(tmp_path / f"disk{n}", told.case)
            if seen != wanted:
                repair(Lake(tmp_path / f"disk{n}"))
                wrong.append(f"{what}: {seen}; after repair {found_after_power_loss(tmp_path / f'disk{n}', told.case)}")
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("left", [b"", b'{"fol'], ids=["empty", "torn"])
@pytest.mark.parametrize("file", [
    "planned-2026-03-02.json", "manifest.json",
    "stage.json",
])  # fmt: skip
def test_a_runs_own_file_that_was_left_empty_or_torn_stops_the_station_with_an_error_that_says_what_to_do(tmp_path: Path, file: str, left: bytes) -> None:
    config = make_home(tmp_path / "home", size="tiny")
    pinned = Manifest("2026-03-02", "2026-03-02T00:00:00+00:00", {}, "0", "", {}, {"k": 10, "min_share": 0.5}, {"gold.recommendations": 0}, "1.0")
    night = Night(config, date(2026, 3, 2))
    night.planned(pinned)
    path = config.runs / file if file.startswith("planned") else config.runs / pinned.run_id / file
    path.write_bytes(left)
    with pytest.raises(MmrecError) as told:
        publish(Night(config, date(2026, 3, 2)))
    assert "next:  mmrec " in str(told.value)
    assert all(isinstance(f["ok"], bool) for f in verify(config))

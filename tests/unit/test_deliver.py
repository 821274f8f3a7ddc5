"""A day of the built-in world is delivered whole or not at all: by two processes at once, and by one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from datetime import date, timedelta
from pathlib import Path

import pytest

from mmrec.worlds.builtin import World
from mmrec.worlds.files import FilesSource

FIRST = date(2026, 3, 2)
CATCH_UP = """
import sys
from datetime import date
from pathlib import Path
from mmrec.worlds.builtin import World
World(0, "tiny").catch_up(Path(sys.argv[1]), date.fromisoformat(sys.argv[2]), lambda day: None)
"""
# nobody puts a day in its place before both have it ready
TOGETHER = """
import sys, time
from pathlib import Path
honest = Path.rename
def rename(self, target):
    mine, rounds = Path(sys.argv[3]), getattr(rename, "rounds", 0)
    rename.rounds = rounds + 1
    (mine / f"{Path(target).name}-{sys.argv[4]}").touch()
    end = time.monotonic() + 60
    while not all((mine / f"{Path(target).name}-{n}").exists() for n in "ab") and time.monotonic() < end:
        time.sleep(0.005)
    return honest(self, target)
Path.rename = rename
"""
KILLED = """
import os, signal
from mmrec.worlds import deliver
honest = deliver.{name}
def dying(*args, **more):
    done = honest(*args, **more)
    if {when}:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
deliver.{name} = dying
"""


def start(code: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stderr=subprocess.PIPE, text=True)


def digest(folder: Path) -> dict[str, int]:
    """What a source can see of a folder."""
    return {str(p.relative_to(folder)): zlib.crc32(p.read_bytes()) for p in sorted(folder.rglob("*"))
            if p.is_file() and p.suffix not in (".npz", ".done") and not p.relative_to(folder).parts[0].startswith(".")}  # fmt: skip


def seen(folder: Path) -> set[str]:
    """Days of which a source sees anything."""
    return {d.file.split("/")[0] for d in FilesSource(folder).deliveries()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    World(0, "tiny").catch_up(folder, FIRST + timedelta(days=2), lambda day: None)
    return folder


def test_two_processes_that_deliver_the_same_days_at_once_leave_each_whole_and_once(tmp_path: Path, clean: Path) -> None:
    folder, meet = tmp_path / "source", tmp_path / "meet"
    folder.mkdir()
    meet.mkdir()
    both = [start(TOGETHER + CATCH_UP, folder, FIRST + timedelta(days=2), meet, name) for name in "ab"]
    said = [p.communicate(timeout=120)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert len(list(meet.iterdir())) == 6  # both came to each of the three deliveries
    assert digest(folder) == digest(clean)
    assert seen(folder) == seen(clean) == {"2026-03-01", "2026-03-02", "2026-03-03"}
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]


# of the history, and of a day after it: in the first csv, after all media, before the last file
MIDDLE = [("_csv", "args[1] == 'interactions'"), ("_media", "args[1]['item_id'] >= 'i00010'"), ("_csv", "args[1] == 'impressions'")]


@pytest.mark.parametrize(("name", "when"), MIDDLE, ids=[n + w[-14:] for n, w in MIDDLE])
def test_a_delivery_that_is_killed_in_the_middle_shows_nothing_and_the_next_one_is_whole(
    tmp_path: Path, clean: Path, name: str, when: str
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    dying = start(KILLED.format(name=name, when=when) + CATCH_UP, folder, FIRST)
    assert (dying.communicate()[1], dying.returncode) == ("", -signal.SIGKILL)
    assert any(folder.iterdir())
    assert seen(folder) == set()
    World(0, "tiny").catch_up(folder, FIRST, lambda day: None)
    assert seen(folder) == {"2026-03-01"}
    day = KILLED.format(name=name, when=when.replace("i00010", "i")) + CATCH_UP
    dying = start(day, folder, FIRST + timedelta(days=1))
    assert (dying.communicate()[1], dying.returncode) == ("", -signal.SIGKILL)
    assert seen(folder) == {"2026-03-01"}
    World(0, "tiny").catch_up(folder, FIRST + timedelta(days=2), lambda day: None)
    assert digest(folder) == digest(clean)
    assert seen(folder) == seen(clean)


def test_a_day_that_is_there_is_not_touched_by_a_second_delivery(tmp_path: Path) -> None:
    world = World(0, "tiny")
    world.write_history(tmp_path)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*") if p.suffix != ".npz"}
    world.write_history(tmp_path)
    after = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*") if p.suffix != ".npz"}
    day = tmp_path / "2026-03-01"
    assert {p: v for p, v in before.items() if day in p.parents or p == day} == {
        p: v for p, v in after.items() if day in p.parents or p == day}  # fmt: skip


def test_who_reads_the_worlds_memory_while_it_is_written_again_reads_it_whole(tmp_path: Path) -> None:
    world = World(0, "tiny")
    world.write_history(tmp_path)
    memory = tmp_path / "world" / "2026-03-01.npz"
    held = tmp_path / "what a reader has open"
    os.link(memory, held)
    world.write_history(tmp_path)
    # not written over: put in its place
    assert memory.stat().st_ino != held.stat().st_ino
    assert held.read_bytes() == memory.read_bytes()
    assert [p.name for p in memory.parent.iterdir()] == [memory.name]


def test_a_delivery_that_can_not_be_put_in_its_place_is_an_error_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "2026-03-01").write_text("a file where the day's folder should be")
    with pytest.raises(OSError):
        World(0, "tiny").write_history(tmp_path)

"""What of a table may be deleted: everything that no reader and no writer can still ask for, and nothing else.

In: a table, the versions that manifests pin. Out: `Kept`, what must stay, and `Waste`, the rest.
A version stays readable for the table's retention, counted from the moment it was replaced: until then a night could
pin it. A manifest keeps the versions it pins for as long, counted from itself. The files of those versions, the log
entries that lead to them, and whatever is younger than the grace stay.
A stage that no commit took may still be published: its files are in no log. It goes as a whole, once nothing in it is
younger than the grace and its writer is dead. It is moved aside first and looked at again: whoever publishes a stage
seals it anew before the transaction, so either the seal is seen and the stage comes back, or the seal fails and nothing
is published.
Trade-off: ages are those of the disk's clock; a copied lake is young again, and keeps everything for a while.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import psutil
import pyarrow as pa

from mmrec import schema
from mmrec.errors import QualityError
from mmrec.lake import log
from mmrec.lake.store import Lake

_LOG = re.compile(r"(\d{20})\.(json|crc|checkpoint[.\w-]*\.parquet)\Z")
_HALF = re.compile(r"(\.json#\d+|\.tmp|\.part)\Z")  # an entry whose writer died before it was named
_COPY = re.compile(r"_entry-(\d{20})-")
_ASIDE = "gone-"


@dataclass(frozen=True)
class Kept:
    """What must stay of a table.

    Attributes:
        head: the newest version. oldest: the oldest that must stay readable.
        base: the checkpoint from which the reader of `oldest` begins; -1: from the first entry.
        files: paths within the table's folder.
    """

    head: int
    oldest: int
    base: int
    files: frozenset[str]


@dataclass(frozen=True)
class Waste:
    """What may go: single files, stages as a whole, log entries in the order in which they may be deleted."""

    files: tuple[Path, ...]
    stages: tuple[Path, ...]
    entries: tuple[Path, ...]
    bytes: int


def kept(lake: Lake, name: str, pinned: Iterable[int], now: datetime, grace: timedelta) -> Kept:
    """What must stay of table `name`.

    Args:
        pinned: versions that manifests within retention name; those that are gone already are passed over.
        now: aware. grace: a version stays at least that long after it was replaced, whatever its retention.

    Raises: QualityError: the log is damaged, or the table uses a feature that is not known here.
    """
    folder = lake.path(name)
    damaged = log.damage(folder, name, all_of_it=True)
    if damaged:
        raise QualityError(
            "the table's log is damaged: nothing of the table may be deleted",
            where=f"{name}: {damaged[0].file.name}",
            value=damaged[0].what,
            valid="entries as they were written",
            next="mmrec repair",
        )
    handle = lake.handle(name)
    protocol, head = handle.protocol(), handle.version()
    if protocol.min_reader_version > 1 or protocol.reader_features:
        raise QualityError(
            "the table has features that maintenance does not know",
            where=name,
            value=protocol.reader_features or f"reader version {protocol.min_reader_version}",
            valid="reader version 1",
            next="maintain it with the engine that added them",
        )
    entries = {int(m[1]) for p in (folder / "_delta_log").iterdir() if (m := _LOG.match(p.name)) and m[2] == "json"}
    checkpoints = _checkpoints(folder)
    floor = head
    while floor - 1 in entries:
        floor -= 1
    if floor:  # the entries before were cleaned up: a reader begins with a checkpoint
        floor = min((c for c in checkpoints if c >= floor - 1), default=head)
    horizon = now - max(timedelta(days=schema.table(name).retention_days), grace)
    oldest = head
    while oldest > floor and log.committed(folder, oldest) > horizon:
        oldest -= 1
    older = sorted({v for v in pinned if floor <= v < oldest})
    files = _active(lake, name, oldest) | {p for v in range(oldest + 1, head + 1) for p in _added(folder, v)}
    for version in older:
        files |= _active(lake, name, version)
    first = min([oldest, *older])
    return Kept(head, first, max((c for c in checkpoints if c <= first), default=-1), frozenset(files))


def _waste(lake: Lake, name: str, keep: Kept, now: datetime, grace: timedelta) -> Waste:
    """What of the table is not in `keep` and older than the grace."""
    folder, cutoff = lake.path(name), (now - grace).timestamp()
    files, stages, entries = list[Path](), list[Path](), list[Path]()
    for path in sorted(folder.iterdir()):
        if path.name == "_delta_log":
            entries = _entries(path, keep, cutoff)
        elif path.is_dir() and path.name.startswith(("stage-", _ASIDE)):
            if _dead(folder, path, keep, cutoff):
                stages.append(path)
            else:
                files += _replaced(folder, path, keep, cutoff)
        elif path.name[0] not in "_.":
            inside = path.rglob("*.parquet") if path.is_dir() else [path] * (path.suffix == ".parquet")
            files += [p for p in inside if _within(folder, p) not in keep.files and _older(p, cutoff)]
    sizes = [*files, *entries, *(p for s in stages for p in _walk(s))]
    return Waste(tuple(files), tuple(stages), tuple(sorted(entries)), sum(_size(p) for p in sizes))


def vacuum(
    lake: Lake, name: str, pinned: Iterable[int], now: datetime, grace: timedelta, *, dry_run: bool = False
) -> tuple[Kept, Waste]:
    """List what may go, then delete it; the list is made anew while commits come in.

    A kill at any moment leaves every kept version readable; the next run deletes what is left.

    Returns: what stays, and what is gone (with `dry_run`: would go). Raises: see `kept`.
    """
    pinned = list(pinned)
    if not dry_run:
        _put_back(lake, name, pinned, now, grace)
    while True:
        keep = kept(lake, name, pinned, now, grace)
        gone = _waste(lake, name, keep, now, grace)
        if dry_run:
            return keep, gone
        if lake.version(name) == keep.head:
            break
    cutoff = (now - grace).timestamp()
    stages = tuple(s for s in gone.stages if _drop(lake, name, s, keep, pinned, now, grace, cutoff))
    for path in (*gone.files, *gone.entries):
        path.unlink(missing_ok=True)
    return keep, Waste(gone.files, stages, gone.entries, gone.bytes)


def _put_back(lake: Lake, name: str, pinned: list[int], now: datetime, grace: timedelta) -> None:
    """Stages that a killed vacuum had moved aside, and that turned out to live, come back."""
    aside = list(lake.path(name).glob(f"{_ASIDE}stage-*"))
    keep = kept(lake, name, pinned, now, grace) if aside else None
    for stage in aside:
        if keep and not _dead(stage.parent, stage, keep, (now - grace).timestamp()):
            with suppress(FileNotFoundError):
                stage.rename(stage.parent / stage.name.removeprefix(_ASIDE))


def _drop(
    lake: Lake, name: str, stage: Path, keep: Kept, pinned: list[int], now: datetime, grace: timedelta, cutoff: float
) -> bool:
    """Move a dead stage aside, look again, and delete it; False: it lives, and is back in its place."""
    folder, home = stage.parent, stage.parent / stage.name.removeprefix(_ASIDE)
    aside = folder / (_ASIDE + home.name)
    with suppress(FileNotFoundError):  # another maintenance was faster
        stage.rename(aside)
    if lake.version(name) != keep.head:
        keep = kept(lake, name, pinned, now, grace)
    if not _dead(folder, aside, keep, cutoff):
        with suppress(FileNotFoundError):
            aside.rename(home)
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _dead(folder: Path, stage: Path, keep: Kept, cutoff: float) -> bool:
    """Whether no kept version needs the stage, nothing in it is young, and nobody works on it."""
    home = stage.name.removeprefix(_ASIDE)
    inside = list(_walk(stage))
    if any(f"{home}/{p.relative_to(stage).as_posix()}" in keep.files for p in inside):
        return False
    if any(_copied(p, keep) for p in inside):
        return False
    if not inside and stage.name == home:  # somebody is about to write, or died before
        return _older(stage, cutoff)
    return all(_older(p, cutoff) for p in inside) and not _alive(stage)


def _replaced(folder: Path, stage: Path, keep: Kept, cutoff: float) -> list[Path]:
    """Files of a stage that was adopted, of which some are still needed: those that no kept version has."""
    inside = list(_walk(stage))
    adopted = [p for p in inside if _within(folder, p) in keep.files or _copied(p, keep)]
    if not adopted:
        return []
    return [p for p in inside if _within(folder, p) not in keep.files and not p.name.startswith(("_stage", "_entry-"))
            and _older(p, cutoff)]  # fmt: skip


def _copied(path: Path, keep: Kept) -> bool:
    """Whether `path` is the copy of a log entry that a kept version is read from; `repair` may ask for it."""
    m = _COPY.match(path.name)
    return m is not None and int(m[1]) > keep.base


def _alive(stage: Path) -> bool:
    """Whether the process that the stage's record names still runs: on this host, and started before the record."""
    try:
        about = json.loads((stage / "_stage.json").read_text())
        since = datetime.fromisoformat(about.get("created") or about["sealed"]).timestamp()
        return about["host"] == socket.gethostname() and psutil.Process(int(about["pid"])).create_time() <= since
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return False


def _entries(folder: Path, keep: Kept, cutoff: float) -> list[Path]:
    """Log files before the checkpoint that the oldest kept version is read from, and entries that never got a name."""
    found = []
    for path in folder.iterdir():
        m = _LOG.match(path.name)
        behind = m is not None and int(m[1]) < keep.base
        if (behind or _HALF.search(path.name)) and path.is_file() and _older(path, cutoff):
            found.append(path)
    return found


def _checkpoints(folder: Path) -> set[int]:
    found = [_LOG.match(p.name) for p in (folder / "_delta_log").iterdir()]
    return {int(m[1]) for m in found if m and m[2].startswith("checkpoint")}


def _active(lake: Lake, name: str, version: int) -> set[str]:
    paths = pa.table(lake.handle(name, version).get_add_actions(flatten=True))["path"].to_pylist()
    return {*paths, *map(unquote, paths)}


def _added(folder: Path, version: int) -> Iterator[str]:
    for line in (folder / "_delta_log" / f"{version:020}.json").read_text(encoding="utf-8").split("\n"):
        add = json.loads(line).get("add") if '"add"' in line else None
        if add:
            yield from (add["path"], unquote(add["path"]))


def _walk(folder: Path) -> Iterator[Path]:
    # another maintenance may take a folder away meanwhile: pathlib would fail, what is gone is nothing to walk
    return (Path(root, name) for root, _, names in os.walk(folder) for name in names)


def _within(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _older(path: Path, cutoff: float) -> bool:
    try:
        return os.stat(path).st_mtime < cutoff
    except FileNotFoundError:  # its writer is at work
        return False


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0

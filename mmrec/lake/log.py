"""A table's log as it lies on disk: whole, or damaged and where.

In: a table's folder. Out: damaged entries, the commits since a fence, and entries made durable.
Delta readers take an empty entry for an empty version and an entry that was cut between two lines for a whole one, so
each entry is looked at before a reader may: it has text, each line is an action, its commit says who made it, a write
ends with its `txn` line, and it equals the copy that its writer left beside the files it added.
Trade-off: entries since the last checkpoint are read twice, here and by the reader, each once a process: microseconds
an entry. The copy costs a few kilobytes a commit, and lets `repair` put back any entry byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mmrec.errors import QualityError
from mmrec.files import put, sync_folder

_ENTRY = re.compile(r"(\d{20})\.json\Z")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint[.\w-]*\.parquet\Z")
_COPY = re.compile(r"_entry-(\d{20})-([0-9a-f]{16})\.json\Z")
_KEPT = "_entries"  # copies of entries that added no staged file
_ACTIONS = {"commitInfo", "protocol", "metaData", "add", "remove", "txn", "cdc", "domainMetadata"}
_GRAIN_NS = 2_000_000_000
# what an entry of this operation holds beside its commitInfo
_NEEDS = {"CREATE TABLE": ("protocol", "metaData"), "ADD CONSTRAINT": ("metaData",), "ADD COLUMN": ("metaData",)}


@dataclass(frozen=True)
class Damage:
    """One entry that can't be believed. `copy`: the bytes it had, where its writer left them."""

    table: str
    version: int
    file: Path
    what: str
    copy: bytes | None = None


@dataclass(frozen=True)
class Commit:
    """One write, as its log entry tells. `stages`: the folders whose files it added."""

    version: int
    fence: int
    run_id: str | None
    attempt: int
    stages: frozenset[str]


def damage(folder: Path, table: str, version: int | None = None, *, all_of_it: bool = False) -> list[Damage]:
    """Entries that a reader at `version` (None: the newest) would trip over; with `all_of_it`, of every version."""
    while True:
        try:
            return _damage(folder, table, version, all_of_it)
        except FileNotFoundError:  # maintenance deletes entries behind a checkpoint: look anew
            if not (folder / "_delta_log").is_dir():
                raise


def _damage(folder: Path, table: str, version: int | None, all_of_it: bool) -> list[Damage]:
    log = folder / "_delta_log"
    entries, checkpoints = _listed(log)
    if not entries and not checkpoints:
        return [Damage(table, 0, log, "the log has no entry")]
    newest = max([*entries, *checkpoints])
    if all_of_it:  # an entry that is gone altogether is known by its copy
        copied = {int(m[1]) for place in (folder / _KEPT, *folder.glob("stage-*"))
                  for p in place.glob("_entry-*.json") if (m := _COPY.match(p.name))}  # fmt: skip
        newest = max([newest, *copied])
    last = newest if version is None else min(version, newest)
    base = -1 if all_of_it else max((c for c in checkpoints if c <= last), default=-1)
    first = min(entries, default=0) if all_of_it and checkpoints else base + 1
    found = []
    for n in range(first, last + 1):
        file = log / f"{n:020}.json"
        if n not in entries:
            if not (all_of_it and n <= max(checkpoints, default=-1)):  # a checkpoint stands for what was cleaned up
                found.append(Damage(table, n, file, "the entry is missing", _copy_of(folder, n)))
            continue
        wrong = _wrong(file)
        if wrong:
            found.append(Damage(table, n, file, wrong, _copy_of(folder, n)))
    return found


def check(folder: Path, table: str, version: int | None = None) -> None:
    """Raises: QualityError: an entry that a reader at `version` needs is damaged; it names the entry and the repair."""
    found = damage(folder, table, version)
    if found:
        raise QualityError(
            "the table's log is damaged: it is not known what the table holds",
            where=f"{table}: {found[0].file.name}",
            value="; ".join(f"version {d.version}: {d.what}" for d in found[:3]),
            valid="entries as they were written",
            next="mmrec repair",
            report={"versions": [d.version for d in found]},
        )


def oldest(folder: Path) -> int:
    """The oldest version that the log still leads to: entries below a checkpoint are cleaned up from the bottom."""
    entries, checkpoints = _listed(folder / "_delta_log")
    bottom = min(entries, default=0)
    return min((c for c in checkpoints if c >= bottom - 1), default=0) if bottom else 0


def since(folder: Path, app: str, pinned: int, after: int = -1) -> list[Commit]:
    """Commits of the writers that share fence `app`, newer than `pinned`, the newest first; of versions > `after`."""
    found = []
    log = folder / "_delta_log"
    for n in sorted((n for n in _listed(log)[0] if n > after), reverse=True):
        try:
            actions = _actions((log / f"{n:020}.json").read_bytes())
        except FileNotFoundError:  # behind a checkpoint, deleted meanwhile: what is older is as well
            break
        fences = [a["txn"]["version"] for a in actions if "txn" in a and a["txn"]["appId"] == app]
        if not fences:
            continue
        if max(fences) <= pinned:
            break
        info: dict[str, Any] = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
        stages = frozenset(unquote(a["add"]["path"]).split("/")[0] for a in actions if "add" in a)
        found.append(Commit(n, max(fences), info.get("run_id"), int(info.get("attempt") or 1), stages))
    return found


def committed(folder: Path, version: int) -> datetime:
    """When a version came to be: by its entry or by the disk, whichever is later.

    Raises: FileNotFoundError: its entry is not there any more.
    """
    entry = folder / "_delta_log" / f"{version:020}.json"
    when = [entry.stat().st_mtime]
    for line in entry.read_text(encoding="utf-8").split("\n"):
        if '"commitInfo"' in line:
            when.append(json.loads(line).get("commitInfo", {}).get("timestamp", 0) / 1000)
    return datetime.fromtimestamp(max(when), UTC)


def app_id(table: str, partition: date | str | None) -> str:
    """The Delta application that all writers of a partition share; its `txn` version is their fence."""
    return f"{table}/{partition or '*'}"


def settle(folder: Path, version: int) -> None:
    """Make the entry of `version`, and every entry below it that its writer did not live to settle, last: on the disk,
    and with a copy, in the stage whose files it added or in `<table>/_entries`."""
    log = folder / "_delta_log"
    entries = _listed(log)[0]
    todo = []
    while version in entries:
        data = (log / f"{version:020}.json").read_bytes()
        target = _place(folder, data) / f"_entry-{version:020}-{_digest(data)}.json"
        if target.is_file():
            break
        todo.append((version, data, target))
        version -= 1
    for n, _, _ in reversed(todo):
        with (log / f"{n:020}.json").open("rb") as entry:
            os.fsync(entry.fileno())
    sync_folder(log)
    for _, data, target in reversed(todo):
        put(target, data)


def _place(folder: Path, data: bytes) -> Path:
    """Where the copy of an entry goes."""
    try:
        named = sorted({unquote(a["add"]["path"]).split("/")[0] for a in _actions(data) if "add" in a})
    except ValueError:
        named = []
    stages = [folder / n for n in named if n.startswith("stage-") and (folder / n).is_dir()]
    return stages[0] if stages else folder / _KEPT


def _listed(log: Path) -> tuple[set[int], set[int]]:
    names = [p.name for p in os.scandir(log)]
    entries = {int(m[1]) for n in names if (m := _ENTRY.match(n))}
    return entries, {int(m[1]) for n in names if (m := _CHECKPOINT.match(n))}


def _wrong(file: Path) -> str | None:
    about = file.stat()
    # a file changed within the clock's grain keeps its time: only what has settled is remembered
    judge = _judged if time.time_ns() - about.st_mtime_ns > _GRAIN_NS else _judged.__wrapped__
    return judge(str(file), about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=65536)
def _judged(path: str, size: int, _mtime: int, _inode: int) -> str | None:
    """What is wrong with an entry; judged once a process for each state of the file."""
    if size == 0:
        return "the entry is empty"
    data = Path(path).read_bytes()
    try:
        actions = _actions(data)
    except ValueError as error:
        return f"the entry is no JSON: {str(error)[:80]}"
    kinds = {k for a in actions for k in a}
    info = next((a["commitInfo"] for a in actions if "commitInfo" in a), None)
    if not isinstance(info, dict):
        return "the entry does not say who made it: a part of it is lost"
    if "run_id" in info and "txn" not in kinds:
        return "the entry ends before its txn line: a part of it is lost"
    lacks = [k for k in _NEEDS.get(str(info.get("operation")), ()) if k not in kinds]
    if lacks:
        return f"the entry lacks {', '.join(lacks)}: a part of it is lost"
    table, version = Path(path).parents[1], int(Path(path).name[:20])
    copies = list(_copies(_place(table, data), version)) or [*_copies(table / _KEPT, version)]
    if not copies and "run_id" in info:  # the name of its stage may be what was altered
        copies = [c for stage in table.glob("stage-*") for c in _copies(stage, version)]
    for copy, digest in copies:
        if _digest(data) != digest and _digest(copy.read_bytes()) == digest:
            return "the entry is not what was written: it differs from its copy"
    return None


def _actions(data: bytes) -> list[dict[str, Any]]:
    # only a line feed ends a line: statistics may hold U+0085 or U+2028 as they are
    actions = [json.loads(line) for line in data.split(b"\n") if line.strip()]
    for action in actions:
        known = isinstance(action, dict) and set(action) <= _ACTIONS
        if not known or ("add" in action and not isinstance(action["add"].get("path"), str)):
            raise ValueError("a line is no action")
    if not actions:
        raise ValueError("no line is an action")
    return actions


def _copies(stage: Path, version: int) -> Iterator[tuple[Path, str]]:
    for path in stage.glob(f"_entry-{version:020}-*.json"):
        if m := _COPY.match(path.name):
            yield path, m[2]


def _copy_of(folder: Path, version: int) -> bytes | None:
    """The bytes an entry had; None: no copy, or the copy itself is damaged."""
    for place in (folder / _KEPT, *folder.glob("stage-*")):
        for path, digest in _copies(place, version):
            data = path.read_bytes()
            if _digest(data) == digest:
                return data
    return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]

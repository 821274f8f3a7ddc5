"""Maintenance: small files put together, the log shortened, and what nobody can ask for any more deleted.

In: settings. Out: what was done to each table, in this order: partitions older than `maintain.drop_days` dropped (none,
unless a setting says so), vectors of encoder versions that nobody needs taken out, small files compacted, a checkpoint
made, expired files, stages and log entries deleted.
A table whose log is damaged, or that came out of a step other than it should, is refused and left as it is; the others
go on. Each step may be killed at any moment, and may run beside nights, backfills and readers.
Trade-off: delta-rs has an optimize, a vacuum and a log clean-up of its own. The first lets a concurrent writer double
rows, the second leaves stages for ever or deletes those still to be published, the third counts days without knowing
what is pinned; so these are ours, and readers of the tables are told to keep their hands off by table properties.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import RemoveAction

from mmrec import schema
from mmrec.config import Config, MaintainConfig
from mmrec.errors import InputError, MmrecError, QualityError
from mmrec.files import sync_folder
from mmrec.lake import log
from mmrec.lake.compact import CACHE, RUN_ID, bins, compact, forget
from mmrec.lake.store import Lake
from mmrec.lake.vacuum import Waste, vacuum

_Tell = Callable[[str, int, int], None]
_Pins = dict[str, list[tuple[int, datetime]]]


def _quiet(_what: str, _done: int, _of: int) -> None:
    pass


def maintain(
    config: Config,
    only: str | None = None,
    *,
    dry_run: bool = False,
    now: datetime | None = None,
    needed: Callable[[], Collection[str]] | None = None,
    tell: _Tell = _quiet,
) -> list[dict[str, Any]]:
    """Maintain the tables of a home.

    Args:
        only: one table; None: all.
        dry_run: tell what would be done, change nothing.
        now: wall clock (default: the clock).
        needed: asked for the encoder versions whose vectors stay; None: all stay.
        tell: called with (what, done, of).

    Returns: one entry a table: `table`, `version`, `oldest` version that stays readable, `compacted` (files, into,
        skipped), `dropped` partitions, `unneeded`: encoder version -> rows taken out, `checkpoint` made at, `files`,
        `stages`, `entries` deleted, their `bytes`, and `refused`, the reason why the table was left as it was, or null.

    Raises: InputError: no such table. TransientError: the disk or store failed.
    """
    lake, moment = Lake(config.lake), now or datetime.now(UTC)
    names = [schema.table(only).name] if only else [n for n in schema.TABLES if lake.exists(n)]
    if only and not lake.exists(only):
        there = [n for n in schema.TABLES if lake.exists(n)]
        raise InputError("the table does not exist yet", where="--table", value=only, valid=there or "none yet",
                         next="mmrec init --home HOME")  # fmt: skip
    pinned = pins(lake, config.runs)
    told = []
    for n, name in enumerate(names):
        tell(f"maintain {name}", n, len(names))
        told.append(_table(lake, name, config.maintain, pinned.get(name, []), moment, dry_run, needed))
    tell("maintain", len(names), len(names))
    return told


def pins(lake: Lake, runs: Path) -> _Pins:
    """Versions that manifests name: table -> (version, when), from the folder of runs and from ops.runs."""
    found: _Pins = defaultdict(list)
    for path in runs.glob("*/manifest.json"):
        _pin(found, path.read_text(), datetime.fromtimestamp(path.stat().st_mtime, UTC))
    if lake.exists("ops.runs") and not log.damage(lake.path("ops.runs"), "ops.runs"):
        for row in lake.arrow("ops.runs", columns=["manifest", "finished_at"]).to_pylist():
            _pin(found, row["manifest"], row["finished_at"])
    return found


def _pin(found: _Pins, manifest: str, when: datetime) -> None:
    for name, version in json.loads(manifest)["tables"].items():
        found[name].append((version, when))


def _table(
    lake: Lake,
    name: str,
    config: MaintainConfig,
    pinned: list[tuple[int, datetime]],
    now: datetime,
    dry_run: bool,
    needed: Callable[[], Collection[str]] | None,
) -> dict[str, Any]:
    grace, keep_for = timedelta(days=config.grace_days), timedelta(days=schema.table(name).retention_days)
    live = [version for version, when in pinned if when > now - max(keep_for, grace)]
    did: dict[str, Any] = {
        "table": name,
        "version": None,
        "oldest": None,
        "compacted": {"files": 0, "into": 0, "skipped": 0},
        "dropped": [],
        "unneeded": {},
        "checkpoint": None,
        "files": 0,
        "stages": 0,
        "entries": 0,
        "bytes": 0,
        "refused": None,
    }
    try:
        keep, gone = vacuum(
            lake, name, live, now, grace, dry_run=True
        )  # a damaged table is refused before it is touched
        stays = _asked(needed) if needed and name == CACHE else None
        if not dry_run:
            _declare(lake, name)
        did["dropped"] = _drop(lake, name, config.drop_days.get(name), now, dry_run)
        if stays is not None:
            did["unneeded"] = forget(lake, stays, now, grace, int(config.target_mb * 1e6), dry_run=dry_run)
        _compact(lake, name, config, now, dry_run, did["compacted"])
        did["checkpoint"] = _checkpoint(lake, name, config.checkpoint_every, dry_run)
        if not dry_run:
            keep, gone = vacuum(lake, name, live, now, grace)
        did |= {"version": keep.head, "oldest": keep.oldest} | _count(gone)
    except QualityError as error:
        did["refused"] = f"{error.what}: {error.where}: {error.value}; next: {error.next}"
    return did


def _asked(needed: Callable[[], Collection[str]]) -> Collection[str]:
    try:
        return needed()
    except MmrecError as error:
        raise QualityError(
            f"it is not known which encoder versions are needed: {error.what}",
            where=error.where or CACHE,
            value=error.value,
            next=error.next or "mmrec verify",
        ) from error


def _count(gone: Waste) -> dict[str, int]:
    return {"files": len(gone.files), "stages": len(gone.stages), "entries": len(gone.entries), "bytes": gone.bytes}


def _declare(lake: Lake, name: str) -> None:
    handle = lake.handle(name)
    wanted, has = schema.table(name).promises, handle.metadata().configuration
    if any(has.get(key) != value for key, value in wanted.items()):
        with suppress(CommitFailedError):  # another maintenance or a writer was faster: next time
            handle.alter.set_table_properties(wanted)
            log.settle(lake.path(name), lake.version(name))


def _drop(lake: Lake, name: str, days: int | None, now: datetime, dry_run: bool) -> list[str]:
    """Drop partitions by run_date, each in a commit that moves its fence: a run planned before is refused."""
    t = schema.table(name)
    if days is None or not t.partition:
        return []
    first = now.date() - timedelta(days=days)
    dropped = []
    for day in [d for d in lake.run_dates(name) if d < first]:
        dropped.append(str(day))
        if not dry_run and not _dropped(lake, t, day, now):
            dropped.pop()
    return dropped


def _dropped(lake: Lake, t: schema.Table, day: date, now: datetime) -> bool:
    handle = lake.handle(t.name)
    actions = pa.table(handle.get_add_actions(flatten=True)).to_pydict()
    files = zip(actions["path"], actions["size_bytes"], actions[f"partition.{t.partition}"], strict=True)
    out = [RemoveAction(path, True, int(now.timestamp() * 1000), size, {t.partition: str(day)})
           for path, size, value in files if str(value) == str(day)]  # fmt: skip
    app = log.app_id(t.name, day)
    fence = (handle.transaction_version(app) or 0) + 1
    note = {"run_id": RUN_ID, "attempt": "1", "dropped": str(day)}
    about = CommitProperties(
        custom_metadata=note, max_commit_retries=20, app_transactions=[Transaction(app, fence, None)]
    )
    try:
        handle.create_write_transaction(out, "append", handle.schema(), [t.partition], commit_properties=about)
    except CommitFailedError:  # somebody is at work on that day: next time
        return False
    log.settle(lake.path(t.name), lake.version(t.name))
    return True


def _compact(
    lake: Lake, name: str, config: MaintainConfig, now: datetime, dry_run: bool, counts: dict[str, int]
) -> None:
    groups = bins(lake, name, int(config.target_mb * 1e6), config.min_files)
    for group in groups:
        if not dry_run and compact(lake, group, now) is None:
            counts["skipped"] += 1
            continue
        counts["files"] += len(group.files)
        counts["into"] += 1


def _checkpoint(lake: Lake, name: str, every: int, dry_run: bool) -> int | None:
    """A checkpoint at the newest version, where the log has grown by `every` entries since the last.

    The file that names the newest checkpoint goes: with it the embedded engine can't read versions before that
    checkpoint, and without it every reader finds the right one in the folder.
    """
    folder, handle = lake.path(name) / "_delta_log", lake.handle(name)
    if not dry_run:
        (folder / "_last_checkpoint").unlink(missing_ok=True)
    last = max((int(p.name[:20]) for p in folder.glob("*.checkpoint*.parquet")), default=0)
    if handle.version() - last < every:
        return None
    if not dry_run:
        handle.create_checkpoint()
        for path in folder.glob(f"{handle.version():020}.checkpoint*.parquet"):
            _sync(path)
        (folder / "_last_checkpoint").unlink(missing_ok=True)
        sync_folder(folder)
    return handle.version()


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())

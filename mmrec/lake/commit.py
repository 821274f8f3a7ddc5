"""The one committer: an audited stage becomes visible in one fenced delta-rs transaction.

In: rows (frame or Arrow), the run's id, the fence that was pinned when the inputs were read. Out: the version.
The fence is a Delta `txn` counter with one app id per table and partition, the same for every writer: whoever
pinned an older value is refused, so a retry is a no-op and a zombie can't overwrite its successor.
Trade-off: writers of one partition are serialised by refusal, not by a lock; the loser does its work again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from mmrec import schema
from mmrec.errors import QualityError, TransientError
from mmrec.lake.audit import Audited, audit
from mmrec.lake.stage import Stage
from mmrec.lake.stage import stage as stage_rows
from mmrec.lake.store import Lake

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_RETRIES = 20  # delta-rs refuses a commit to another partition wrongly when it may not retry


@dataclass(frozen=True)
class Committed:
    """What a write did: `changed` is False where there was nothing to do or this run had done it."""

    table: str
    version: int
    rows: int
    changed: bool


def fence(lake: Lake, name: str, partition: date | str | None = None) -> int:
    """The counter to pin before reading what a write will depend on; 0 before the first commit."""
    return lake.handle(name).transaction_version(_app(name, partition)) or 0


def write(
    lake: Lake,
    name: str,
    rows: DataFrame | pa.Table | Iterator[pa.RecordBatch],
    *,
    run_id: str,
    pinned: int,
    partition: date | None = None,
    previous_rows: int = 0,
    min_share: float = 0.0,
    metadata: dict[str, Any] | None = None,
) -> Committed:
    """Stage, audit and commit `rows` by the table's write mode.

    Args:
        run_id: digest of the run; also the name of the stage.
        pinned: `fence` as it was when the inputs were read (or planned).
        partition: the run_date replaced, for replace_partition.
        previous_rows, min_share: see `audit`.
        metadata: more for the commit's own record (attempt, input versions, ...).

    Returns: the version readers see now. An empty append_new commits nothing.

    Raises:
        QualityError: refused by the audit. TransientError: another writer was faster; read again and retry.
    """
    t = schema.table(name)
    if isinstance(rows, pa.Table) and rows.num_rows == 0 and t.mode == "append_new":
        return Committed(name, lake.version(name), 0, False)
    stage = stage_rows(lake, name, rows, run_id)
    try:
        if t.mode == "append_new" and not any(_count(f.stats) for f in stage.files):
            stage.discard()
            return Committed(name, lake.version(name), 0, False)
        checked = audit(
            lake,
            stage,
            partition=str(partition) if partition else None,
            previous_rows=previous_rows,
            min_share=min_share,
            against=lake.version(name) if t.mode == "append_new" else None,
        )
    except QualityError as error:
        stage.discard()
        seen = fence(lake, name, partition)
        if set(error.report.get("refused", {})) == {"existing_key"} and seen != pinned:
            raise _fenced(name, partition, seen, pinned) from error  # what was refused had come in between
        raise
    except BaseException:
        stage.discard()
        raise
    return adopt(lake, checked, run_id=run_id, pinned=pinned, partition=partition, metadata=metadata or {})


def adopt(
    lake: Lake, checked: Audited, *, run_id: str, pinned: int, partition: date | None, metadata: dict[str, Any]
) -> Committed:
    """Commit an audited stage. See `write` for arguments and errors.

    A stage that is known not to be committed is removed. Once the transaction was asked for, its files are left alone
    unless it was refused and the log does not hold them: an answer that never came may have been yes."""
    stage, t = checked.stage, schema.table(checked.stage.table)
    handle = DeltaTable(str(lake.path(t.name)))  # one handle: fence read and commit see the same snapshot
    app = _app(t.name, partition)
    seen = handle.transaction_version(app) or 0
    if seen != pinned:
        if not _landed(lake, stage):  # the same stage may have been published by another attempt
            stage.discard()
        if t.partition and published_run_id(lake, t.name, partition) == run_id:
            return Committed(t.name, handle.version(), checked.rows, False)
        raise _fenced(t.name, partition, seen, pinned)
    try:
        _sync(stage)
    except BaseException:
        stage.discard()
        raise
    prefix = stage.folder.name
    adds = [AddAction(f"{prefix}/{f.path}", f.size, f.partition, f.modified, True, f.stats) for f in stage.files]
    mode = "append" if t.mode == "append_new" else "overwrite"
    filters = [(t.partition, "=", str(partition))] if t.mode == "replace_partition" else None
    note = {"run_id": run_id, **{k: str(v) for k, v in metadata.items()}}
    try:
        handle.create_write_transaction(
            adds,
            mode,
            handle.schema(),
            [t.partition] if t.partition else [],
            filters,
            commit_properties=CommitProperties(
                custom_metadata=note, max_commit_retries=_RETRIES, app_transactions=[Transaction(app, seen + 1, None)]
            ),
        )
    except CommitFailedError as error:
        mine = _landed(lake, stage)  # it met its own commit
        if not mine:
            stage.discard()
        if mine or (t.partition and published_run_id(lake, t.name, partition) == run_id):
            return Committed(t.name, lake.version(t.name), checked.rows, mine)
        raise _fenced(t.name, partition, seen, pinned) from error
    shutil.rmtree(stage.folder / "_delta_log", ignore_errors=True)
    return Committed(t.name, lake.version(t.name), checked.rows, True)


def published_run_id(lake: Lake, name: str, partition: date | None, version: int | None = None) -> str | None:
    """The run that wrote a partition, from its rows (a commit's own record may be cleaned up); None: not there."""
    import pyarrow.dataset as ds

    scan = lake.dataset(name, version).scanner(columns=["run_id"], filter=ds.field("run_date") == partition)
    head = scan.head(1)
    return head.column("run_id")[0].as_py() if head.num_rows else None


def _landed(lake: Lake, stage: Stage) -> bool:
    """Whether any commit added the files of `stage`, replaced by now or not."""
    log, prefix = lake.path(stage.table) / "_delta_log", f'"{stage.folder.name}/'
    return any(prefix in p.read_text() for p in log.glob("*.json"))


def _app(name: str, partition: date | str | None) -> str:
    return f"{name}/{partition or '*'}"


def _count(stats: str) -> int:
    import json

    # a writer that gives no statistics is not known to be empty
    return int(json.loads(stats or "{}").get("numRecords", 1))


def _fenced(name: str, partition: date | None, seen: int, pinned: int) -> TransientError | QualityError:
    where = f"{name}{f' run_date={partition}' if partition else ''}"
    return TransientError(
        "another run committed first: this one was fenced off and changed nothing",
        where=where,
        value=f"fence {seen}",
        valid=f"fence {pinned}, as pinned",
        next="run it again",
    )


def _sync(stage: Stage) -> None:
    for f in stage.files:
        with (stage.folder / f.path).open("rb") as handle:
            os.fsync(handle.fileno())
    for folder in {(stage.folder / f.path).parent for f in stage.files} | {stage.folder, stage.folder.parent}:
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""The one committer: an audited stage becomes visible in one fenced delta-rs transaction.

In: rows (frame or Arrow), the run's id, the fence that was pinned when the inputs were read. Out: the version.
The fence is a Delta `txn` counter with one app id per table and partition, the same for every writer: whoever
pinned an older value is refused, so a zombie can't overwrite its successor. What came in between says who it was: the
same run, then there is nothing left to do; a later attempt of it, or another run, then this one is refused.
Files are on the disk before the transaction, its log entry before `write` returns.
Trade-off: writers of one partition are serialised by refusal, not by a lock; the loser does its work again (`again`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random, wait_random_exponential

from mmrec import schema
from mmrec.errors import QualityError, TransientError, lost_store
from mmrec.lake import log
from mmrec.lake.audit import Audited, audit
from mmrec.lake.stage import Stage
from mmrec.lake.stage import stage as stage_rows
from mmrec.lake.store import Lake

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_RETRIES = 20  # delta-rs refuses a commit to another partition wrongly when it may not retry
_TRIES = 4  # of a transaction whose answer was lost or that met maintenance
_TURNS = 6  # of work that another writer outran
_T = TypeVar("_T")


class Fenced(TransientError):
    """Another writer was faster; nothing was changed. Worth doing again with a fresh read."""


class _Unsure(Exception):
    """The transaction did not land, for a reason that may pass."""


@dataclass(frozen=True)
class Committed:
    """What a write did: `changed` is False where there was nothing to do or this run had done it."""

    table: str
    version: int
    rows: int
    changed: bool


def fence(lake: Lake, name: str, partition: date | str | None = None) -> int:
    """The counter to pin before reading what a write will depend on; 0 before the first commit."""
    return lake.handle(name).transaction_version(log.app_id(name, partition)) or 0


def again(work: Callable[[], _T]) -> _T:
    """Do `work`, which pins, reads and writes; once more with a fresh read where another writer outran it.

    Raises: Fenced: it was outrun six times.
    """
    turns = Retrying(retry=retry_if_exception_type(Fenced), stop=stop_after_attempt(_TURNS), wait=wait_random(0, 0.2),
                     reraise=True)  # fmt: skip
    return turns(work)


def work_id(what: str, *inputs: Any) -> str:
    """A run's id for work that no manifest pins: equal where `inputs`, JSON values, are equal."""
    return f"{what}-{hashlib.sha256(json.dumps(inputs, default=str).encode()).hexdigest()[:12]}"


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
        metadata: more for the commit's own record, beside `lake.stamp` and the versions that were read.

    Returns: the version readers see now. An empty append_new commits nothing.

    Raises:
        QualityError: refused by the audit. Fenced: another writer was faster; read again and retry (`again`).
        TransientError: the disk or store failed; nothing was changed.
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
        seen = fence(lake, name, partition)
        if set(error.report.get("refused", {})) == {"existing_key"} and seen != pinned:
            staged = sum(_count(f.stats) for f in stage.files)
            return _outrun(lake, stage, staged, run_id, pinned, seen, partition)  # what was refused came in between
        stage.discard()
        raise
    except BaseException:
        stage.discard()
        raise
    try:
        stage.seal(run_id, lake.stamp)
    except BaseException as error:
        stage.discard()  # nobody else knows of it
        raise (lost_store(error, name) or error) from None
    return _commit(lake, checked, run_id, pinned, partition, metadata or {})


def append(lake: Lake, name: str, rows: pa.Table, run_id: str) -> int:
    """Append to an ops table what is not there yet, by key; a row once written is not replaced. Returns: rows added."""
    keys = list(schema.table(name).key)

    def once() -> int:
        pinned = fence(lake, name)
        # by number, because a join carries no lists along
        numbered = rows.select(keys).append_column("row", pa.array(range(rows.num_rows), pa.int64()))
        fresh = numbered.join(lake.arrow(name, columns=keys), keys=keys, join_type="left anti")["row"].sort()
        return write(lake, name, rows.take(fresh), run_id=run_id, pinned=pinned).rows

    return again(once)


def adopt(
    lake: Lake, checked: Audited, *, run_id: str, pinned: int, partition: date | None, metadata: dict[str, Any]
) -> Committed:
    """Commit an audited stage. See `write` for arguments and errors.

    A stage that is known not to be committed is removed. Once the transaction was asked for, its files are left alone
    unless it was refused and the log does not hold them: an answer that never came may have been yes."""
    name = checked.stage.table
    try:
        checked.stage.seal(run_id, lake.stamp)
    except OSError as error:  # the stage stays: another attempt may be about to commit it
        seen = fence(lake, name, partition)
        if isinstance(error, FileNotFoundError) and seen != pinned:
            return _outrun(lake, checked.stage, checked.rows, run_id, pinned, seen, partition)
        raise (lost_store(error, name) or error) from None
    return _commit(lake, checked, run_id, pinned, partition, metadata)


def _commit(
    lake: Lake, checked: Audited, run_id: str, pinned: int, partition: date | None, metadata: dict[str, Any]
) -> Committed:
    tries = Retrying(retry=retry_if_exception_type(_Unsure), stop=stop_after_attempt(_TRIES),
                     wait=wait_random_exponential(multiplier=0.05, max=1), reraise=True)  # fmt: skip
    try:
        return tries(_adopt, lake, checked, run_id, pinned, partition, metadata)
    except _Unsure as error:
        raise TransientError(
            f"the commit failed {_TRIES} times: {error}",
            where=_where(checked.stage.table, partition),
            valid="a store that answers",
            next="run it again once the store is well",
        ) from error


def _adopt(
    lake: Lake, checked: Audited, run_id: str, pinned: int, partition: date | None, metadata: dict[str, Any]
) -> Committed:
    stage, t = checked.stage, schema.table(checked.stage.table)
    handle = lake.handle(t.name)  # one handle: fence read and commit see the same snapshot
    app = log.app_id(t.name, partition)
    seen = handle.transaction_version(app) or 0
    if seen != pinned:
        return _outrun(lake, stage, checked.rows, run_id, pinned, seen, partition)
    prefix = stage.folder.name
    adds = [AddAction(f"{prefix}/{f.path}", f.size, f.partition, f.modified, True, f.stats) for f in stage.files]
    mode = "append" if t.mode == "append_new" else "overwrite"
    filters = [(t.partition, "=", str(partition))] if t.mode == "replace_partition" else None
    note = {"run_id": run_id, "attempt": "1", "inputs": json.dumps(lake.read, sort_keys=True), **lake.stamp,
            **{k: str(v) for k, v in metadata.items()}}  # fmt: skip
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
    except (DeltaError, CommitFailedError, OSError) as error:
        now = fence(lake, t.name, partition)
        if now == pinned:  # not landed: maintenance rewrote what it replaces, or the store failed
            raise _Unsure(str(error).split("\n")[0]) from error
        return _outrun(lake, stage, checked.rows, run_id, pinned, now, partition, asked=True)
    return _done(lake, stage, checked.rows, changed=True)


def _outrun(
    lake: Lake,
    stage: Stage,
    rows: int,
    run_id: str,
    pinned: int,
    seen: int,
    partition: date | None,
    asked: bool = False,
) -> Committed:
    """The fence has moved: by this very stage, by this run, by a later attempt of it, or by somebody else.

    Args:
        asked: whether this process asked for a transaction, whose answer may be what it meets here.
    """
    name, attempt = stage.table, int(lake.stamp.get("attempt", 1))
    between = log.since(lake.path(name), log.app_id(name, partition), pinned)
    if any(stage.folder.name in c.stages for c in between):
        # its files are in the log now: by an answer that was lost, or by another attempt with the same stage
        mine = asked and any(stage.folder.name in c.stages and c.attempt == attempt for c in between)
        if mine:
            return _done(lake, stage, rows, changed=True)
    else:
        stage.discard()
    same = [c for c in between if c.run_id == run_id]
    later = max((c.attempt for c in same), default=0)
    if later > attempt:
        raise Fenced(
            "a later attempt of this run committed: this one came back too late and changed nothing",
            where=_where(name, partition),
            value=f"attempt {attempt}",
            valid=f"attempt {later} or later",
            next="nothing: the run is published",
        )
    # a partition that a third run has replaced since is not this run's any more; appended rows stay
    log.settle(lake.path(name), lake.version(name))  # whoever moved the fence may not have lived to do it
    mine = same if schema.table(name).mode == "append_new" else [c for c in between[:1] if c.run_id == run_id]
    if mine or (not between and _published(lake, name, partition) == run_id):
        return Committed(name, lake.version(name), rows, False)
    raise Fenced(
        "another run committed first: this one was fenced off and changed nothing",
        where=_where(name, partition),
        value=f"fence {seen}" + (f", moved by run {between[0].run_id}" if between else ""),
        valid=f"fence {pinned}, as pinned",
        next="run it again",
    )


def _done(lake: Lake, stage: Stage, rows: int, *, changed: bool) -> Committed:
    """Make the commit of `stage` and all below it last, and drop the log that only the stage needed."""
    version = lake.version(stage.table)
    log.settle(lake.path(stage.table), version)
    shutil.rmtree(stage.folder / "_delta_log", ignore_errors=True)
    return Committed(stage.table, version, rows, changed)


def published_run_id(lake: Lake, name: str, partition: date | None, version: int | None = None) -> str | None:
    """The run that wrote a partition, from its rows (a commit's own record may be cleaned up); None: not there."""
    scan = lake.dataset(name, version).scanner(columns=["run_id"], filter=ds.field("run_date") == partition)
    head = scan.head(1)
    return head.column("run_id")[0].as_py() if head.num_rows else None


def _published(lake: Lake, name: str, partition: date | None) -> str | None:
    return published_run_id(lake, name, partition) if schema.table(name).partition else None


def _where(name: str, partition: date | None) -> str:
    return f"{name}{f' run_date={partition}' if partition else ''}"


def _count(stats: str) -> int:
    # a writer that gives no statistics is not known to be empty
    return int(json.loads(stats or "{}").get("numRecords", 1))

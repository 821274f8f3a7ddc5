"""Compaction: small files of a partition become one of about the target size, in a commit that changes no row.

In: a table. Out: `Bin`s, groups of small files, and the commit of each: the same rows in one file.
The rows are written to a stage like any other, compared with those they replace (count and the sum of row hashes, over
every column), made durable, and swapped in as a change of layout (`dataChange` is false).
delta-rs does not see that two writers remove one file if the first of them changed no row: after its own `optimize`, a
writer that had read the table before doubled the rows. So a compaction names the fence of the writers it meets, at the
value it has: nobody's pinned fence is outrun, and whoever read before it is told to read again. In the log, a partition
stays the run's that wrote it, so that a retry of that run still finds nothing left to do.
Trade-off: rows are copied in this process, about 10^6 a second, one bin at a time; a night never waits for it.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from mmrec import schema
from mmrec.errors import QualityError, lost_store
from mmrec.lake import log
from mmrec.lake.commit import published_run_id
from mmrec.lake.stage import Stage, read_stage
from mmrec.lake.store import Lake

RUN_ID = "maintain"
_RETRIES = 20


@dataclass(frozen=True)
class Bin:
    """Small files of one partition (None: the table has none), together about one file of the target size."""

    table: str
    partition: str | None
    files: tuple[str, ...]
    bytes: int


def bins(lake: Lake, name: str, target_bytes: int, min_files: int) -> list[Bin]:
    """Groups of files below the target size, in partitions that have at least `min_files` of them."""
    small = defaultdict[str | None, list[tuple[str, int]]](list)
    for path, size, value in _files(lake.handle(name), schema.table(name).partition):
        if size < target_bytes:
            small[value].append((path, size))
    found: list[Bin] = []
    for value, files in sorted(small.items(), key=str):
        if len(files) < min_files:
            continue
        group: list[tuple[str, int]] = []
        for path, size in [*sorted(files), ("", target_bytes)]:
            if not path or sum(s for _, s in group) + size > target_bytes:
                if len(group) > 1:
                    found.append(Bin(name, value, tuple(p for p, _ in group), sum(s for _, s in group)))
                group = []
            if path:
                group.append((path, size))
    return found


def compact(lake: Lake, group: Bin, now: datetime) -> int | None:
    """Put the files of a bin together.

    Returns: the version that did it; None: another writer was faster and nothing was changed.

    Raises:
        QualityError: the new file does not hold the rows of the old ones; nothing was committed.
        TransientError: the disk or store failed.
    """
    t, handle = schema.table(group.table), lake.handle(group.table)  # one handle: what was read is what is replaced
    sizes = {path: size for path, size, value in _files(handle, t.partition) if value == group.partition}
    if not sizes.keys() >= set(group.files):
        return None
    day = date.fromisoformat(group.partition) if group.partition else None
    app, folder = log.app_id(t.name, day), lake.path(t.name)
    seen = handle.transaction_version(app) or 0
    last = next(iter(log.since(folder, app, seen - 1)), None)
    owner = published_run_id(lake, t.name, day, handle.version()) if day else None
    note = {"run_id": owner or RUN_ID, "attempt": str(last.attempt if last else 1), "compacted": str(len(group.files))}
    made = folder / f"stage-{RUN_ID}-{uuid4().hex[:12]}"
    columns = pa.schema(handle.schema().to_arrow())
    try:
        rows = pa.RecordBatchReader.from_batches(columns, _rows(folder, group, t.partition, columns))
        write_deltalake(str(made), rows, mode="error", partition_by=[t.partition] if t.partition else None,
                        target_file_size=2 * group.bytes + 2**20)  # fmt: skip
        staged = read_stage(t.name, made)
        _same(folder, group, staged, [n for n in columns.names if n != t.partition])
        staged.seal(RUN_ID, lake.stamp)
        values = {t.partition: group.partition} if t.partition else {}
        out = [RemoveAction(p, False, int(now.timestamp() * 1000), sizes[p], values) for p in group.files]
        new = [AddAction(f"{made.name}/{f.path}", f.size, f.partition, f.modified, False, f.stats)
               for f in staged.files]  # fmt: skip
        handle.create_write_transaction(
            [*out, *new],
            "append",
            handle.schema(),
            [t.partition] if t.partition else [],
            commit_properties=CommitProperties(
                custom_metadata=note,
                max_commit_retries=_RETRIES,
                app_transactions=[Transaction(app, seen, None)],
            ),
        )
    except BaseException as error:
        if _landed(folder, app, seen, made) is None:  # else the answer was lost, not the commit
            shutil.rmtree(made, ignore_errors=True)
            if isinstance(error, CommitFailedError):
                return None
            raise (lost_store(error, t.name) or error) from error.__cause__
        if not isinstance(error, DeltaError | OSError):
            raise
    version = _landed(folder, app, seen, made)
    assert version is not None, f"{t.name}: a commit that was acknowledged is not in the log"
    log.settle(folder, version)
    shutil.rmtree(made / "_delta_log", ignore_errors=True)
    return version


def _files(handle: DeltaTable, partition: str | None) -> Iterator[tuple[str, int, str | None]]:
    """Path, size and partition value of every file of the handle's version."""
    actions = pa.table(handle.get_add_actions(flatten=True)).to_pydict()
    values = actions[f"partition.{partition}"] if partition else [None] * len(actions["path"])
    for path, size, value in zip(actions["path"], actions["size_bytes"], values, strict=True):
        yield path, size, None if value is None else str(value)


def _rows(folder: Path, group: Bin, partition: str | None, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    for path in group.files:
        with pq.ParquetFile(folder / path) as file:
            for batch in file.iter_batches():
                n = batch.num_rows
                arrays = []
                for field in columns:
                    if field.name == partition:
                        arrays.append(pa.array([group.partition] * n, pa.string()).cast(field.type))
                    elif field.name in batch.schema.names:
                        arrays.append(batch.column(field.name).cast(field.type))
                    else:  # the file is older than the column
                        arrays.append(pa.nulls(n, field.type))
                yield pa.RecordBatch.from_arrays(arrays, schema=columns)


def _same(folder: Path, group: Bin, staged: Stage, columns: list[str]) -> None:
    """Compare rows without holding them."""
    con = duckdb.connect()
    try:
        con.execute("SET enable_progress_bar = false")
        old = _sum(con, [folder / p for p in group.files], columns)
        new = _sum(con, [staged.folder / f.path for f in staged.files], columns)
    finally:
        con.close()
    if old != new:
        raise QualityError(
            "compaction gave other rows than it read",
            where=f"{group.table}{f' run_date={group.partition}' if group.partition else ''}",
            value=f"{new[0]} rows, sum {new[1]}",
            valid=f"{old[0]} rows, sum {old[1]}",
            next="mmrec verify",
        )


def _sum(con: duckdb.DuckDBPyConnection, paths: list[Path], columns: list[str]) -> tuple[int, int, int]:
    files = con.from_parquet([str(p) for p in paths], union_by_name=True, hive_partitioning=False)
    files.create_view("files", replace=True)
    values = ", ".join(f'"{c}"' if c in files.columns else "NULL" for c in columns)
    rows = con.execute(f"SELECT count(*), coalesce(sum(h), 0), coalesce(bit_xor(h), 0) "
                       f"FROM (SELECT hash({values}) AS h FROM files)").fetchall()[0]  # fmt: skip
    return int(rows[0]), int(rows[1]), int(rows[2])


def _landed(folder: Path, app: str, seen: int, stage: Path) -> int | None:
    """The version whose commit added the files of `stage`."""
    return next((c.version for c in log.since(folder, app, seen - 1) if stage.name in c.stages), None)

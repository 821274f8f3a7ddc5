"""Files that maintenance writes again: small ones put together, and those with vectors that nobody needs any more.

In: a table. Out: `Bin`s, groups of small files, and the commit of each: the same rows in one file; of the embedding
cache a commit without the rows of certain encoder versions.
The rows are written to a stage like any other, compared with those they replace (count and the sum of row hashes, over
every column), made durable, and swapped in; a compaction as a change of layout (`dataChange` is false).
delta-rs does not see that two writers remove one file if the first of them changed no row: after its own `optimize`, a
writer that had read the table before doubled the rows. So a compaction names the fence of the writers it meets, at the
value it has: nobody's pinned fence is outrun, and whoever read before it is told to read again. In the log, a partition
stays the run's that wrote it, so that a retry of that run still finds nothing left to do.
Taking vectors out does change rows, and counts the fence up: an embed under way is refused and looks again at what
there is, so that it never takes for known what has just gone.
Trade-off: rows are copied in this process, about 10^6 a second, one bin at a time; a night never waits for it.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from mmrec import schema
from mmrec.errors import QualityError, lost_store
from mmrec.lake import log
from mmrec.lake.audit import audit
from mmrec.lake.commit import published_run_id
from mmrec.lake.stage import Stage, read_stage
from mmrec.lake.store import Lake

RUN_ID = "maintain"
CACHE = "gold.item_embeddings"
_VERSION = "encoder_version"
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
    out = {path: sizes[path] for path in group.files}
    return _swap(lake, handle, group, out, frozenset(), note, now, 2 * group.bytes + 2**20)


def forget(
    lake: Lake,
    needed: Collection[str],
    now: datetime,
    grace: timedelta,
    target_bytes: int,
    *,
    dry_run: bool = False,
) -> dict[str, int]:
    """Take the vectors of encoder versions that nobody needs out of gold.item_embeddings, in one commit.

    Args:
        needed: versions that stay. So does one that was given rows within the grace: a training may be under way that
            will need it.
        target_bytes: size of the files that replace those which hold needed rows as well.

    Returns: encoder version -> rows taken out (with `dry_run`: that would be); empty, too, where another writer was
        faster and nothing was changed.

    Raises: see `compact`.
    """
    handle, folder, app = lake.handle(CACHE), lake.path(CACHE), log.app_id(CACHE, None)
    sizes = {path: size for path, size, _ in _files(handle, None)}
    held = {path: _versions(folder / path) for path in sizes}
    rows = sum(held.values(), Counter[str]())
    gone = frozenset(rows) - set(needed) - _young(folder, app, handle.version(), now - grace)
    told = {version: rows[version] for version in sorted(gone)}
    if dry_run or not gone:
        return told
    out = {path: size for path, size in sizes.items() if gone & held[path].keys()}
    mixed = tuple(path for path in out if held[path].keys() - gone)
    note = {"run_id": RUN_ID, "attempt": "1", "unneeded": ", ".join(told)}
    group = Bin(CACHE, None, mixed, sum(out[path] for path in mixed))
    return told if _swap(lake, handle, group, out, gone, note, now, target_bytes) is not None else {}


def _swap(
    lake: Lake,
    handle: DeltaTable,
    group: Bin,
    out: dict[str, int],
    gone: frozenset[str],
    note: dict[str, str],
    now: datetime,
    target_bytes: int,
) -> int | None:
    """Replace the files `out`, path -> size, by the rows of `group`, some of them, without those of versions `gone`.

    Args:
        handle: at the version that was read: what was read is what is replaced.
        gone: empty: no row changes, and the fence of the writers stays where it is.
        note: for the commit's own record.

    Returns, raises: see `compact`.
    """
    t, folder = schema.table(group.table), lake.path(group.table)
    app, changed = log.app_id(t.name, group.partition), bool(gone)
    seen = handle.transaction_version(app) or 0
    made = folder / f"stage-{RUN_ID}-{uuid4().hex[:12]}"
    columns = pa.schema(handle.schema().to_arrow())
    values = {t.partition: group.partition} if t.partition else {}
    actions: list[AddAction | RemoveAction] = [
        RemoveAction(p, changed, int(now.timestamp() * 1000), size, values) for p, size in out.items()
    ]
    try:
        if group.files:
            rows = pa.RecordBatchReader.from_batches(columns, _rows(folder, group, t.partition, columns, gone))
            write_deltalake(str(made), rows, mode="error", partition_by=[t.partition] if t.partition else None,
                            target_file_size=target_bytes)  # fmt: skip
            staged = read_stage(t.name, made)
            _same(folder, group, staged, [n for n in columns.names if n != t.partition], gone)
            if changed:
                audit(lake, staged)
            staged.seal(RUN_ID, lake.stamp)
            actions += [AddAction(f"{made.name}/{f.path}", f.size, f.partition, f.modified, changed, f.stats)
                        for f in staged.files]  # fmt: skip
        handle.create_write_transaction(
            actions,
            "append",
            handle.schema(),
            [t.partition] if t.partition else [],
            commit_properties=CommitProperties(
                custom_metadata=note,
                max_commit_retries=_RETRIES,
                app_transactions=[Transaction(app, seen + changed, None)],
            ),
        )
    except BaseException as error:
        if _landed(folder, app, seen, made, group) is None:  # else the answer was lost, not the commit
            # by a maintenance to whose clock the stage was old and nobody's, or that replaced what was read; then
            # nothing is changed
            live = {path for path, *_ in _files(lake.handle(t.name), t.partition)}
            gone_meanwhile = not made.is_dir() or not out.keys() <= live
            taken = isinstance(error, FileNotFoundError | duckdb.IOException) and gone_meanwhile
            shutil.rmtree(made, ignore_errors=True)
            if taken or isinstance(error, CommitFailedError):
                return None
            raise (lost_store(error, t.name) or error) from error.__cause__
        if not isinstance(error, DeltaError | OSError):
            raise
    version = _landed(folder, app, seen, made, group)
    assert version is not None, f"{t.name}: a commit that was acknowledged is not in the log"
    log.settle(folder, version)
    shutil.rmtree(made / "_delta_log", ignore_errors=True)
    return version


def _versions(path: Path) -> Counter[str]:
    """Encoder versions of a file of the cache, with their rows."""
    found = Counter[str]()
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[_VERSION]):
            for row in pc.value_counts(batch.column(0)).to_pylist():
                found[row["values"]] += row["counts"]
    return found


def _young(folder: Path, app: str, version: int, moment: datetime) -> set[str]:
    """Encoder versions that were given rows after `moment`, up to `version` of the cache or later."""
    with suppress(FileNotFoundError):  # an entry that was cleaned up is older than any grace
        while log.committed(folder, version) > moment:
            version -= 1
    commits = [c for c in log.since(folder, app, -1, version) if c.run_id != RUN_ID]  # which gives no new rows
    stages = [folder / stage for c in commits for stage in c.stages]
    # what another maintenance has taken away meanwhile is older than any grace
    paths = [Path(root, n) for s in stages for root, _, names in os.walk(s) for n in names if n.endswith(".parquet")]
    found: set[str] = set()
    for path in paths:
        with suppress(FileNotFoundError):
            found.update(_versions(path))
    return found


def _files(handle: DeltaTable, partition: str | None) -> Iterator[tuple[str, int, str | None]]:
    """Path, size and partition value of every file of the handle's version."""
    actions = pa.table(handle.get_add_actions(flatten=True)).to_pydict()
    values = actions[f"partition.{partition}"] if partition else [None] * len(actions["path"])
    for path, size, value in zip(actions["path"], actions["size_bytes"], values, strict=True):
        yield path, size, None if value is None else str(value)


def _rows(
    folder: Path, group: Bin, partition: str | None, columns: pa.Schema, gone: frozenset[str]
) -> Iterator[pa.RecordBatch]:
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
                rows = pa.RecordBatch.from_arrays(arrays, schema=columns)
                if gone:
                    there = pc.is_in(rows.column(_VERSION), pa.array(sorted(gone), rows.schema.field(_VERSION).type))
                    rows = rows.filter(pc.invert(there))
                yield rows


def _same(folder: Path, group: Bin, staged: Stage, columns: list[str], gone: frozenset[str]) -> None:
    """Compare rows without holding them."""
    con = duckdb.connect()
    try:
        con.execute("SET enable_progress_bar = false")
        old = _sum(con, [folder / p for p in group.files], columns, gone)
        new = _sum(con, [staged.folder / f.path for f in staged.files], columns, frozenset())
    finally:
        con.close()
    if old != new:
        raise QualityError(
            "maintenance wrote other rows than it read",
            where=f"{group.table}{f' run_date={group.partition}' if group.partition else ''}",
            value=f"{new[0]} rows, sum {new[1]}",
            valid=f"{old[0]} rows, sum {old[1]}",
            next="mmrec verify",
        )


def _sum(
    con: duckdb.DuckDBPyConnection, paths: list[Path], columns: list[str], gone: frozenset[str]
) -> tuple[int, int, int]:
    files = con.from_parquet([str(p) for p in paths], union_by_name=True, hive_partitioning=False)
    files.create_view("files", replace=True)
    values = ", ".join(f'"{c}"' if c in files.columns else "NULL" for c in columns)
    without, given = (f" WHERE NOT list_contains($1, {_VERSION})", [sorted(gone)]) if gone else ("", [])
    rows = con.execute(f"SELECT count(*), coalesce(sum(h), 0), coalesce(bit_xor(h), 0) "
                       f"FROM (SELECT hash({values}) AS h FROM files{without})", given).fetchall()[0]  # fmt: skip
    return int(rows[0]), int(rows[1]), int(rows[2])


def _landed(folder: Path, app: str, seen: int, stage: Path, group: Bin) -> int | None:
    """The version whose commit added the files of `stage`; if there are none, maintenance's that moved the fence."""
    if group.files:
        return next((c.version for c in log.since(folder, app, seen - 1) if stage.name in c.stages), None)
    between = log.since(folder, app, seen)
    return between[-1].version if between and between[-1].run_id == RUN_ID else None

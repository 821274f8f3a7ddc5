"""Staging: an engine frame or an Arrow stream becomes files inside the table's own folder.

In: a frame, record batches, or blocks of them. Out: a `Stage`: a small Delta table in
`<table>/stage-<run_id>-<random>`, whose log lists the files; nothing of it is visible to readers of the table.
Trade-off: a stage writes a log of its own that is thrown away after adoption; that log is what gives both
engines' files names, sizes and statistics in one form, and it costs milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote
from uuid import uuid4

import pyarrow as pa
from deltalake import write_deltalake
from deltalake.exceptions import DeltaError

from mmrec import schema
from mmrec.errors import InputError, QualityError, lost_store
from mmrec.files import put, sync_folder
from mmrec.lake.blocks import Blocks, Overtaken, unfinished
from mmrec.lake.store import Lake

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class StagedFile:
    path: str  # within the stage
    size: int
    partition: dict[str, str | None]
    stats: str
    modified: int


@dataclass(frozen=True)
class Stage:
    """Files written for `table` and not yet adopted."""

    table: str
    folder: Path
    files: tuple[StagedFile, ...]

    def discard(self) -> None:
        """Remove the files: for a stage that was refused or turned out not to be needed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def sync(self) -> None:
        """Put the files and their log on the disk for good: before anything that outlasts this process points here."""
        logs = sorted((self.folder / "_delta_log").glob("*.json"))
        for path in (*(self.folder / f.path for f in self.files), *logs):
            _fsynced(path)
        self._sync_folders(self.folder / "_delta_log")

    def _sync_folders(self, *more: Path) -> None:
        own = {(self.folder / f.path).parent for f in self.files}
        for folder in own | {self.folder, self.folder.parent, *more}:
            sync_folder(folder)

    def seal(self, run_id: str, stamp: dict[str, str]) -> None:
        """Put the files on the disk for good, and beside them `_stage.json`, the record of their bytes that
        `mmrec verify --deep` compares with."""
        paths = [self.folder / f.path for f in self.files]
        with ThreadPoolExecutor(2) as pool:  # reading and fsync leave the interpreter free
            digests = list(pool.map(_fsynced_sha256, paths))
        about = {"table": self.table, "run_id": run_id, **stamp, "sealed": datetime.now(UTC).isoformat(),
                 "files": {f.path: {"bytes": f.size, "sha256": d, "rows": json.loads(f.stats or "{}").get("numRecords")}
                           for f, d in zip(self.files, digests, strict=True)}}  # fmt: skip
        put(self.folder / "_stage.json", json.dumps(about))  # two attempts may seal one stage
        self._sync_folders()


def stage(lake: Lake, name: str, rows: DataFrame | pa.Table | Iterator[pa.RecordBatch] | Blocks, run_id: str) -> Stage:
    """Stage rows through the door they came to: an engine's frame, or Arrow. See the two for errors.

    Blocks are put behind those of an attempt of this run that was cut off, and are kept if this one is.

    Raises: TransientError: the disk or the store failed; another attempt goes on with the same blocks.
    """
    engine_frame = not isinstance(rows, pa.Table | pa.RecordBatchReader) and hasattr(rows, "sparkSession")
    try:
        return (stage_frame if engine_frame else stage_arrow)(lake, name, rows, run_id)  # type: ignore[operator]
    except Exception as error:
        raise (lost_store(error, name) or error) from error.__cause__


def _fsynced(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _fsynced_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        os.fsync(handle.fileno())
    return digest


def stage_frame(lake: Lake, name: str, frame: DataFrame, run_id: str) -> Stage:
    """Let the engine write `frame`, columns in schema.py's order and types.

    Raises:
        InputError: the frame lacks a column of the table, or has one that the table does not.
    """
    from pyspark.sql import functions as F

    t = schema.table(name)
    wanted, got = [c.name for c in t.columns], list(frame.columns)
    if set(wanted) != set(got):
        raise InputError(
            "the frame does not have the table's columns",
            where=name,
            value=got,
            valid=wanted,
            next=f"correct the step {t.step}",
        )
    types = {c.name: c.type.lower() for c in t.columns}
    lossy = {c: kind for c, kind in frame.dtypes if _loses(kind, types[c])}
    if lossy:
        raise InputError(
            "a column can't be cast to the table's type without loss",
            where=name,
            value=lossy,
            valid=t.ddl,
            next=f"correct the step {t.step}",
        )
    folder = _fresh(lake, name, run_id)
    cast = frame.select([F.col(c.name).cast(c.type.lower()).alias(c.name) for c in t.columns])
    writer = cast.write.format("delta").mode("error")
    if t.partition:
        writer = writer.partitionBy(t.partition)
    try:
        writer.save(str(folder))
        return read_stage(name, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def stage_arrow(lake: Lake, name: str, data: pa.Table | Iterator[pa.RecordBatch] | Blocks, run_id: str) -> Stage:
    """Write Arrow rows, which are cast to the table's types without loss; no engine is involved.

    Raises:
        InputError: a value does not fit the table's type. What the stream itself raises comes through as it is.
    """
    t = schema.table(name)
    own: list[BaseException] = []
    folder = _fresh(lake, name, run_id)
    if isinstance(data, Blocks):
        folder = unfinished(lake.path(name), run_id) or folder
    try:
        if isinstance(data, Blocks):
            data.write(folder, name, lambda rows: _cast(t, rows, own))
        else:
            whole = data.select(t.arrow.names).cast(t.arrow) if isinstance(data, pa.Table) else _cast(t, data, own)
            write_deltalake(str(folder), whole, mode="error", partition_by=[t.partition] if t.partition else None)
    except Overtaken:
        raise  # the files are another attempt's
    except KeyboardInterrupt:
        _unless_blocks(data, folder)
        raise
    except (pa.ArrowException, KeyError, ValueError, DeltaError) as error:
        if own and isinstance(own[0], KeyboardInterrupt):
            _unless_blocks(data, folder)
            raise own[0] from None
        shutil.rmtree(folder, ignore_errors=True)
        if own:
            raise own[0] from None
        # a cast that fails within the stream comes back as delta-rs words it
        if lost_store(error, name) or (
            isinstance(error, DeltaError) and not any(w in str(error) for w in ("C Data interface", "non-nullable"))
        ):
            raise
        raise InputError(
            f"the rows do not fit the table: {error}", where=name, valid=t.ddl, next=f"correct the step {t.step}"
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return read_stage(name, folder)


def _unless_blocks(data: object, folder: Path) -> None:
    """Who was interrupted leaves no file, except blocks to go on from."""
    if not isinstance(data, Blocks):
        shutil.rmtree(folder, ignore_errors=True)


def _cast(t: schema.Table, rows: Iterator[pa.RecordBatch], raised: list[BaseException]) -> pa.RecordBatchReader:
    """Rows in the table's types; what the stream raises is kept, because delta-rs makes text of it."""
    names = t.arrow.names
    same = (pa.RecordBatch.from_arrays([b.column(n).cast(t.arrow.field(n).type) for n in names], schema=t.arrow)
            for b in _watched(rows, raised))  # fmt: skip
    return pa.RecordBatchReader.from_batches(t.arrow, same)


def _watched(data: Iterator[pa.RecordBatch], raised: list[BaseException]) -> Iterator[pa.RecordBatch]:
    """`data`; what it raises is kept."""
    try:
        yield from data
    except (Exception, KeyboardInterrupt) as error:
        raised.append(error)
        raise


def waiting(pointer: Path) -> Path | None:
    """The stage that a run's stage.json names; None: there is none, or its writer was cut off."""
    try:
        return Path(json.loads(pointer.read_text())["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find(name: str, folder: Path) -> Stage | None:
    """The stage in `folder` while it waits; None: it was committed, or maintenance took it."""
    try:
        return read_stage(name, folder)
    except (FileNotFoundError, QualityError):
        return None


def read_stage(name: str, folder: Path) -> Stage:
    """The stage in `folder`, from the log its writer left."""
    if not any((folder / "_delta_log").glob("*.json")):
        raise QualityError("the stage has no log: it is not known what was written", where=str(folder))
    files = []
    for log in sorted((folder / "_delta_log").glob("*.json")):
        # only a line feed ends a line: statistics may hold U+0085 or U+2028 as they are
        for line in filter(None, log.read_text(encoding="utf-8").split("\n")):
            add = json.loads(line).get("add")
            if add:
                files.append(StagedFile(unquote(add["path"]), add["size"], add.get("partitionValues") or {},
                                        add.get("stats") or "{}", add["modificationTime"]))  # fmt: skip
    return Stage(name, folder, tuple(files))


def _loses(kind: str, wanted: str) -> bool:
    """Whether a cast between Spark types would cut a fraction, or make text of a list."""
    if kind.startswith("array") != wanted.startswith("array"):
        return kind != "void"
    if kind.startswith("array"):
        return _loses(kind[6:-1], wanted[6:-1])
    return wanted in ("int", "bigint") and kind.startswith(("double", "float", "decimal"))


def _fresh(lake: Lake, name: str, run_id: str) -> Path:
    # not "_" or "." in front: vacuum must see an orphaned stage
    # not a counter: two attempts of one run may look at the same moment
    return lake.path(name) / f"stage-{run_id}-{uuid4().hex[:12]}"

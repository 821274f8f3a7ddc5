"""Rows that are made a block of users at a time: what a killed attempt finished is kept, the next one goes on after it.

In: users in the order of their ids, a function from their record batches to a table's. Out: the files of a stage.
A stage is a Delta table, so a block is one append to it, on disk before the next begins; `_blocks.json` beside the
files says how many are, and whose turn it is. An append asks for the state that its writer knew: of two attempts at one
stage, one goes on and the other is refused.
Trade-off: an attempt that fails by itself leaves nothing, as everywhere; only one that was cut off is continued.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote
from uuid import uuid4

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

import mmrec
from mmrec import schema
from mmrec.errors import TransientError
from mmrec.files import put, sync_folder

_LEDGER = "_blocks.json"
_USERS = 32_768  # of a block
_ROWS = 8192  # of a batch
_Fn = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]
_Cast = Callable[[Iterator[pa.RecordBatch]], pa.RecordBatchReader]
Tell = Callable[[int, int], None]


class Overtaken(TransientError):
    """Another attempt goes on with the same stage."""


@dataclass(frozen=True)
class Blocks:
    """Rows on their way; iterated over, all of them.

    Attributes:
        users: the batches of users behind an id, in the order of ids; None: of all. fn: from users to rows.
        total: how many users there are. tell: called with users done, and `total`.
    """

    users: Callable[[str | None], Iterator[pa.RecordBatch]]
    fn: _Fn
    total: int
    tell: Tell = lambda _done, _total: None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for block in self._behind(None):
            yield from self.fn(_batches(block))

    def write(self, folder: Path, name: str, cast: _Cast) -> None:
        """Write the blocks that `folder` does not hold.

        Args:
            folder: a new one, or one that `unfinished` found. cast: rows as rows of table `name`.

        Raises: Overtaken; `folder` is the other's then. What `fn` raises comes as it is, or as delta-rs words it.
        """
        token = uuid4().hex
        last, users, held = _kept(folder)
        _note(folder, held, token)
        try:
            self._write(folder, schema.table(name).partition, cast, token, last, users, held)
        except Exception as error:
            if _owner(folder) != token:  # what is there now is not this attempt's to tidy up
                raise _overtaken(folder) from error
            raise
        (folder / _LEDGER).unlink()

    def _write(
        self, folder: Path, partition: str | None, cast: _Cast, token: str, last: str | None, users: int, held: int
    ) -> None:
        handle = DeltaTable(str(folder)) if held else None
        for block in self._behind(last):
            self.tell(users, self.total)
            if _owner(folder) != token:
                raise _overtaken(folder)
            last, users = block["user_id"][-1].as_py(), users + block.num_rows
            handle = _append(folder, handle, cast(self.fn(_batches(block))), partition, held, last, users)
            _settle(folder, held)
            held += 1
            _note(folder, held, token)
        if handle is None:  # nobody: files of no rows, and a log that says so
            _append(folder, None, cast(iter(())), partition, 0, "", 0)
            _settle(folder, 0)
            _note(folder, 1, token)
        self.tell(users, self.total)
        if _owner(folder) != token or not _kept(folder)[1] == users == self.total:
            raise _overtaken(folder)

    def _behind(self, last: str | None) -> Iterator[pa.Table]:
        """Blocks of users."""
        held: list[pa.RecordBatch] = []
        for batch in self.users(last):
            held.append(batch)
            while sum(b.num_rows for b in held) >= _USERS:
                whole = pa.Table.from_batches(held)
                yield whole.slice(0, _USERS)
                held = whole.slice(_USERS).to_batches()
        if any(b.num_rows for b in held):
            yield pa.Table.from_batches(held)


def unfinished(table: Path, run_id: str) -> Path | None:
    """The stage that a run's earlier attempt was cut off in, the one that got furthest; None: there is none."""
    found = [(ledger["blocks"], folder) for folder in table.glob(f"stage-{run_id}-*") if (ledger := _ledger(folder))
             and ledger["blocks"] and ledger["code"] == mmrec.__version__]  # fmt: skip
    return max(found, default=(0, None))[1]


def _append(
    folder: Path, handle: DeltaTable | None, rows: pa.RecordBatchReader, partition: str | None, block: int, last: str,
    users: int,
) -> DeltaTable:  # fmt: skip
    """One block; the handle is that of the state before it, and is renewed.

    Raises: Overtaken."""
    properties = CommitProperties(
        custom_metadata={"last": last, "users": str(users)},
        max_commit_retries=0,  # or it would be put behind whatever came in between
        app_transactions=[Transaction("blocks", block, None)],
    )
    try:
        write_deltalake(
            folder if handle is None else handle,
            rows,
            mode="error" if handle is None else "append",
            partition_by=[partition] if partition else None,
            commit_properties=properties,
            post_commithook_properties=PostCommitHookProperties(create_checkpoint=False),  # a stage's log is read whole
        )
    except CommitFailedError:
        raise _overtaken(folder) from None
    return handle or DeltaTable(str(folder))


def _batches(block: pa.Table) -> Iterator[pa.RecordBatch]:
    return iter(block.combine_chunks().to_batches(max_chunksize=_ROWS))


def _kept(folder: Path) -> tuple[str | None, int, int]:
    """The last user of the blocks on record, users and number of these; entries beyond them are dropped, as their files
    need not be on disk."""
    last, users, held = None, 0, (_ledger(folder) or {"blocks": 0})["blocks"]
    for n, log in enumerate(sorted((folder / "_delta_log").glob("*.json"))):
        if n >= held:
            log.unlink()
            continue
        if int(log.stem) != n:
            raise _overtaken(folder)
        about = _entry(log)[0]
        last, users = about["last"], int(about["users"])
    return last, users, held


def _settle(folder: Path, block: int) -> None:
    """A block's files and its log entry outlast a loss of power."""
    log = folder / "_delta_log" / f"{block:020}.json"
    files = [folder / path for path in _entry(log)[1]]
    for path in (*files, log):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    for place in {p.parent for p in files} | {log.parent, folder, folder.parent}:
        sync_folder(place)


def _entry(log: Path) -> tuple[dict[str, str], list[str]]:
    """What a log entry says of its commit, and the files it adds."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").split("\n") if line]
    about: dict[str, str] = next(line["commitInfo"] for line in lines if "commitInfo" in line)
    return about, [unquote(line["add"]["path"]) for line in lines if "add" in line]


def _ledger(folder: Path) -> dict[str, int] | None:
    try:
        return json.loads((folder / _LEDGER).read_text())
    except (OSError, ValueError):
        return None


def _note(folder: Path, blocks: int, token: str) -> None:
    put(folder / _LEDGER, json.dumps({"blocks": blocks, "by": token, "code": mmrec.__version__}))


def _owner(folder: Path) -> object:
    return (_ledger(folder) or {}).get("by")


def _overtaken(folder: Path) -> Overtaken:
    return Overtaken(
        "another attempt of this run goes on with what was staged: this one changed nothing",
        where=folder.name,
        next="nothing while the other one runs; else run it again",
    )

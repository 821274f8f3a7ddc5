"""The tables of a simulated shop: their names, rows of a test's size, and the lake that every world begins with.

In: nothing. Out: Arrow rows, a folder. Versions of these tables expire after a day, because a world lasts three.
Trade-off: each table's log is squeezed into one entry, so a world does not begin as a shop does; a table is opened a
thousand times a world, and each entry costs a quarter of a millisecond each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pyarrow as pa

from mmrec import schema
from mmrec.lake import commit, stage
from mmrec.lake.store import Lake
from tests.faults.sim.schedule import EPOCH

LIST, VECTORS, RUNS = "gold.recommendations", "gold.user_vectors", "ops.runs"
SILVER, EMBEDDINGS = "silver.users", "gold.item_embeddings"
TABLES = (LIST, VECTORS, RUNS, SILVER, EMBEDDINGS)
RETENTION_DAYS = 1  # longer than any pause and the work around it


def people(hashes: Iterable[str]) -> pa.Table:
    return table_of(
        SILVER,
        [{"user_id": h, "available_at": EPOCH, "attributes": "{}", "source": "s", "row_hash": h} for h in hashes],
    )


def vectors(contents: Iterable[str]) -> pa.Table:
    return table_of(EMBEDDINGS, [{"content_sha256": c, "encoder_version": "e", "modality": "text", "dim": 1,
                                  "embedding": [1.0]} for c in contents])  # fmt: skip


def table_of(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema.table(name).arrow)


@contextmanager
def short_retention() -> Iterator[None]:
    """While it is open, the schema says that versions of these tables expire after a day."""
    kept = {name: replace(schema.TABLES[name], retention_days=RETENTION_DAYS) for name in TABLES}
    with patch.dict(schema.TABLES, kept):
        yield


def template(folder: Path) -> Path:
    """A lake with every table, three users and three embeddings."""
    lake = Lake(folder)
    for name in TABLES:
        lake.create(name)
    with patch.object(stage, "uuid4", lambda: UUID(int=0)):
        commit.write(lake, SILVER, people(f"h{n}" for n in range(3)), run_id="given", pinned=0)
        commit.write(lake, EMBEDDINGS, vectors(f"c{n}" for n in range(3)), run_id="given", pinned=0)
    for name in TABLES:
        _one_entry(lake.path(name) / "_delta_log")
    return folder


def _one_entry(log: Path) -> None:
    last: dict[str, Any] = {}
    for entry in sorted(log.glob("*.json")):
        for action in map(json.loads, entry.read_text().splitlines()):
            ((kind, body),) = action.items()
            last[kind + body.get("path", "")] = action if kind != "commitInfo" or not last else last["commitInfo"]
        entry.unlink()
    order = ("protocol", "metaData", "add", "commitInfo", "txn")
    lines = sorted(last.values(), key=lambda a: order.index(next(iter(a))))
    (log / f"{0:020}.json").write_text("".join(json.dumps(a, separators=(",", ":")) + "\n" for a in lines))
    for copy in (*log.parent.glob("stage-*/_entry-*"), *log.parent.glob("_entries/_entry-*")):
        copy.unlink()

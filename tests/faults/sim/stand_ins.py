"""What stands in for threads, for an engine's tasks and for DuckDB's start, so that a world is quick and one thread.

In: the calls that they replace. Out: the same results.
Trade-off: a pool of no threads shows the schedule each of its calls, and none of what two threads may do to each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import duckdb
import pyarrow.parquet as pq


class Serial:
    """A pool of no threads: what two threads would do is done in turn, where the schedule sees it."""

    def __init__(self, _workers: int) -> None:
        pass

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def map(self, work: Callable[..., Any], *items: Any) -> Any:
        return map(work, *items)


class Kept:
    """A DuckDB connection that is used again: to open one costs as much as forty queries of a test's size."""

    idle: ClassVar[list[duckdb.DuckDBPyConnection]] = []

    def __init__(self, connect: Callable[[], duckdb.DuckDBPyConnection]) -> None:
        self._con = self.idle.pop() if self.idle else connect()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    def close(self) -> None:
        for view in ("staged", "files", "target"):
            self._con.execute(f"DROP VIEW IF EXISTS {view}")
        self.idle.append(self._con)


def in_two(folder: Path) -> None:
    """Make two files of each that was staged, as two tasks of an engine do: a partition of one is never compacted."""
    log = next((folder / "_delta_log").glob("*.json"))
    lines = []
    for line in log.read_text().splitlines():
        add = json.loads(line).get("add")
        path = folder / unquote(add["path"]) if add else None
        rows = pq.ParquetFile(path).read() if path else None
        if add is None or path is None or rows is None or rows.num_rows < 2:
            lines.append(line)
            continue
        for n, part in enumerate((rows.slice(0, 1), rows.slice(1))):
            file = path.with_name(f"part-{n}-{path.name}")
            pq.write_table(part, file)
            about = {"path": f"{add['path'].rpartition('/')[0]}/{file.name}".lstrip("/"), "size": file.stat().st_size}
            lines.append(json.dumps({"add": add | about | {"stats": json.dumps({"numRecords": part.num_rows})}}))
        path.unlink()
    log.write_text("\n".join(lines) + "\n")

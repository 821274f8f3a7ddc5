"""DuckDB in a bounded part of the memory: what does not fit goes to a folder of its own, which goes with it.

In: nothing. Out: a connection.
Trade-off: one thread if not told otherwise, because sorting by two holds twice as much and can fail for want of it. The
bound is for what spills, sorts and groups: a join of large tables fails in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

_MEMORY = "256MB"


@contextmanager
def bounded(memory: str = _MEMORY, threads: int | None = 1) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that holds at most `memory`, as DuckDB writes it, and is closed at the end. `threads` None: all."""
    with tempfile.TemporaryDirectory(prefix="mmrec-") as spill, duckdb.connect() as con:
        con.execute("SET memory_limit = $memory", {"memory": memory})
        con.execute("SET temp_directory = $spill", {"spill": spill})
        if threads is not None:
            con.execute("SET threads = $threads", {"threads": threads})
        con.execute("SET preserve_insertion_order = false")
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET enable_progress_bar = false")
        yield con

"""What several tables know of each user of a day, in the order of users, in a bounded part of the memory.

In: tables partitioned by run_date, at pinned versions. Out: record batches.
Trade-off: every reading sorts anew, also of those who go on behind a user; DuckDB does it on disk where memory ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import date

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from mmrec import schema
from mmrec.lake.store import Lake

_ROWS = 8192
_MEMORY = "256MB"  # to sort and join in


def joined(
    lake: Lake, day: date, sources: Mapping[str, tuple[int, Sequence[str]]], behind: str | None
) -> Iterator[pa.RecordBatch]:
    """Users of `day` whose ids are greater than `behind` (None: all), ascending by id.

    Args:
        sources: table -> (version, columns); all have user_id, the first decides which users there are.

    Yields: at most `_ROWS` users each: columns of the first, then those of the others, null where a user has no row.
    """
    wanted = pa.schema([(c, schema.table(name).arrow.field(c).type) for n, (name, (_, columns)) in enumerate(
        sources.items()) for c in columns if not n or c != "user_id"])  # fmt: skip
    joins = "".join(f" LEFT JOIN t{n} USING (user_id)" for n in range(1, len(sources)))
    where = "" if behind is None else " WHERE user_id > $behind"
    with tempfile.TemporaryDirectory(prefix="mmrec-") as spill, duckdb.connect() as con:
        con.execute(f"SET memory_limit = '{_MEMORY}'")
        con.execute("SET temp_directory = $spill", {"spill": spill})
        for n, (name, (version, columns)) in enumerate(sources.items()):
            rows = lake.dataset(name, version).scanner(columns=list(columns), filter=ds.field("run_date") == day)
            con.register(f"t{n}", rows.to_reader())
        asked = con.sql(f"SELECT {', '.join(wanted.names)} FROM t0{joins}{where} ORDER BY user_id",
                        params={} if behind is None else {"behind": behind})  # fmt: skip
        for batch in asked.to_arrow_reader(_ROWS):
            yield pa.RecordBatch.from_arrays([batch.column(f.name).cast(f.type) for f in wanted], schema=wanted)

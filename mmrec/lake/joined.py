"""What several tables know of each user of a day, in the order of users, in a bounded part of the memory.

In: tables partitioned by run_date, at pinned versions. Out: record batches.
Trade-off: every reading sorts anew, also of those who go on behind a user. DuckDB does it, on disk where memory ends;
the sorted tables are walked side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from mmrec import schema
from mmrec.lake.bounded import bounded
from mmrec.lake.sql import connect
from mmrec.lake.store import Lake

_ROWS = 8192


def joined(
    lake: Lake, day: date, sources: Mapping[str, tuple[int, Sequence[str]]], behind: str | None
) -> Iterator[pa.RecordBatch]:
    """Users of `day` whose ids are greater than `behind` (None: all), ascending by id.

    Args:
        sources: table -> (version, columns); all have user_id, the first decides which users there are.

    Yields: at most `_ROWS` users each: columns of the first, then those of the others, null where a user has no row.
    """
    with ExitStack() as stack:
        first, *others = (stack.enter_context(_ordered(lake, day, name, version, list(columns), behind))
                          for name, (version, columns) in sources.items())  # fmt: skip
        held = [next(other) for other in others]
        for rows in first:
            last = rows["user_id"][-1].as_py() if rows.num_rows else None
            for n, other in enumerate(others):
                ids = held[n]["user_id"]
                while last is not None and not (len(ids) and ids[-1].as_py() >= last):
                    more = next(other, None)
                    if more is None:
                        break
                    held[n] = pa.concat_tables([held[n], more])
                    ids = held[n]["user_id"]
                at = pc.index_in(rows["user_id"], ids)
                for name in held[n].column_names:
                    if name != "user_id":
                        rows = rows.append_column(name, held[n][name].take(at))
                held[n] = held[n].slice(pc.sum(pc.less_equal(ids, last)).as_py() or 0)
            yield from rows.combine_chunks().to_batches()


@contextmanager
def _ordered(
    lake: Lake, day: date, name: str, version: int, columns: list[str], behind: str | None
) -> Iterator[Iterator[pa.Table]]:
    """Rows of one table, ascending by user_id, behind a table of none; a sort spills where a join would not."""
    wanted = pa.schema([schema.table(name).arrow.field(c).with_nullable(True) for c in columns])
    with bounded() as con:
        connect(lake, {name: version}, con)
        lake.read[name] = version
        view = schema.table(name).view
        query, values = f"SELECT {', '.join(columns)} FROM {view} WHERE run_date = $day", {"day": day}
        if behind is not None:
            query, values = f"{query} AND user_id > $behind", values | {"behind": behind}
        asked = con.sql(f"{query} ORDER BY user_id", params=values)
        found = (pa.Table.from_arrays([b.column(f.name).cast(f.type) for f in wanted], schema=wanted)
                 for b in asked.to_arrow_reader(_ROWS))  # fmt: skip
        yield chain([wanted.empty_table()], found)

"""Python over Arrow batches, wherever the engine computes: here, or on Spark's executors.

In: tables of one run_date or rows at hand, a function from batches to batches. Out: the rows of another table, on their
way: what `commit.write` and `stage.stage` take; or rows at hand. Here DuckDB sorts and joins in a bounded part of the
memory, and users come in blocks that outlive an attempt; on executors the engine does all that, and a block is a task.
Trade-off: the function sees rows in no defined order and in batches of any size, and must not care.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as ds

from mmrec import schema
from mmrec.config import SparkConfig
from mmrec.lake.blocks import Blocks, Tell
from mmrec.lake.joined import joined
from mmrec.lake.session import session
from mmrec.lake.store import Lake

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_ROWS = 8192  # of a local batch


def map_arrow(
    lake: Lake,
    engine: str,
    spark: SparkConfig,
    day: date,
    sources: Mapping[str, tuple[int, Sequence[str]]],
    fn: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]],
    out: str,
    tell: Tell = lambda _done, _total: None,
) -> DataFrame | Blocks:
    """`fn` over rows of `day`.

    Args:
        sources: table -> (version, columns); all have user_id, the first decides which users there are, of the others
            a row is looked up.
        fn: picklable by reference (a module's function, or a partial of one): executors import it.
        out: the table whose rows `fn` gives. tell: called with users done and all, where that is known here.
    """
    if engine == "local":
        first, (version, _) = next(iter(sources.items()))
        total = lake.dataset(first, version).count_rows(filter=ds.field("run_date") == day)
        return Blocks(partial(joined, lake, day, sources), fn, total, tell)
    from pyspark.sql import functions as F

    opened = session(engine, spark)
    frames = [
        lake.frame(opened, name, version).where(F.col("run_date") == F.lit(day)).select(*columns)
        for name, (version, columns) in sources.items()
    ]
    rows = frames[0]
    for other in frames[1:]:
        rows = rows.join(other, "user_id", "left")
    t = schema.table(out)
    ddl = ", ".join(f"{c.name} {c.type}" for c in t.columns)
    # a number asked for is not coalesced: every part of the work has its task
    return rows.repartition(spark.partitions, "user_id").mapInArrow(fn, ddl)


def map_rows(
    engine: str,
    spark: SparkConfig,
    rows: pa.Table,
    fn: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]],
    out: pa.Schema,
) -> pa.Table:
    """`fn` over rows at hand; its rows, in any order.

    Args:
        fn: as `map_arrow` has it. out: schema of what it gives.
    """
    if engine == "local":
        return pa.Table.from_batches(fn(iter(rows.to_batches(max_chunksize=_ROWS))), out)
    from pyspark.sql.pandas.types import from_arrow_schema

    frame = session(engine, spark).createDataFrame(rows).repartition(parts(engine, spark))
    return frame.mapInArrow(fn, from_arrow_schema(out)).toArrow().cast(out)


def parts(engine: str, spark: SparkConfig) -> int:
    """How many parts `map_rows` makes of its rows."""
    return 1 if engine == "local" else spark.partitions

"""Verdicts on delivered rows: what validate makes and keeps every night, and `mmrec quarantine replay` when asked.

In: a lake, a kind, which of its bronze rows. Out: rows of silver.<kind> and of ops.quarantine, two commits.
Trade-off: quarantine is written first, so that a kill in between leaves good rows pending, never a bad row without its
reason; the second commit may be refused by another writer, then all is read and judged again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mmrec import dates, schema
from mmrec.features import silver
from mmrec.lake import commit
from mmrec.lake.store import Lake

# (kind, bronze, silver, quarantine) -> the bronze rows to judge; silver.pending and silver.reopened are such
Choose = Callable[[str, DataFrame, DataFrame, DataFrame], DataFrame]


@dataclass(frozen=True)
class Verdicts:
    """Rows judged against tables at one version each.

    Attributes:
        good: rows of silver.<kind>. bad: rows of ops.quarantine that are not on record yet.
        recorded: ops.quarantine as it was read. run_id: of the work; equal for equal inputs.
        pinned: table -> fence.
    """

    kind: str
    good: DataFrame
    bad: pa.Table
    recorded: DataFrame
    run_id: str
    pinned: dict[str, int]


def bounds(lake: Lake, earliest: str) -> tuple[datetime, datetime]:
    """`[earliest, latest)` of event times: `source.earliest`, and a day after the last ingest."""
    clock = lake.arrow("bronze.files", columns=["ingested_at"]).column(0)
    latest = (pc.max(clock).as_py() or datetime.now(UTC)) + timedelta(days=1)
    return dates.as_of(dates.parse(earliest, "source.earliest")), latest


def judge(
    lake: Lake,
    spark: SparkSession,
    kind: str,
    choose: Choose,
    earliest: datetime,
    latest: datetime,
    *,
    files: list[str] | None = None,
    rows: pa.Table | None = None,
    work: tuple[str, ...] = ("validate",),
) -> Verdicts:
    """Judge the bronze rows that `choose` names, by today's rules. Nothing is written.

    Args:
        earliest, latest: as of `bounds`. files: only rows of these; None: of any.
        rows: bronze rows to judge in the place of those that are there.
        work: what the work is called, and what else tells it from other work on the same versions.
    """
    name = f"silver.{kind}"
    pinned = {n: commit.fence(lake, n) for n in (name, "ops.quarantine")}
    names = (f"bronze.{kind}", name, "ops.quarantine", "silver.items")  # of items, the second is the last too
    at = {n: lake.version(n) for n in names}
    bronze, have, recorded, items = (lake.frame(spark, n, at[n]) for n in names)
    if rows is not None:
        bronze = spark.createDataFrame(rows, schema.table(f"bronze.{kind}").ddl)
    if files is not None:
        bronze = bronze.where(F.col("file").isin(*files))
    good, bad = silver.to_silver(kind, choose(kind, bronze, have, recorded), items, earliest=earliest, latest=latest)
    run_id = commit.work_id(f"{work[0]}-{kind}", at, earliest, latest, work[1:], files)
    return Verdicts(kind, good, silver.unrecorded(bad, recorded).toArrow(), recorded, run_id, pinned)


def by_rule(found: Verdicts) -> dict[str, int]:
    """Of the good rows those on record in quarantine, counted by the rule they had broken."""
    was = found.recorded.where(F.col("table_name") == F.lit(f"bronze.{found.kind}")).where(F.col("occurrence") == 0)
    both = found.good.select("row_hash").join(was.select("row_hash", "rule"), "row_hash")
    counted = both.groupBy("rule").agg(F.count(F.lit(1)).alias("n")).toArrow().to_pylist()
    return {r["rule"]: r["n"] for r in sorted(counted, key=lambda r: r["rule"])}


def keep(lake: Lake, found: Verdicts) -> dict[str, int]:
    """Write verdicts. Raises: Fenced: judge again, with a fresh read.

    Returns: rows written, `<kind>` and `<kind>_quarantined`; 0 where the same work was done by another process.
    """
    name, bad = f"silver.{found.kind}", "ops.quarantine"
    bad_done = commit.write(lake, bad, found.bad, run_id=found.run_id, pinned=found.pinned[bad])
    good_done = commit.write(lake, name, found.good, run_id=found.run_id, pinned=found.pinned[name])
    return {k: done.rows if done.changed else 0 for k, done in
            ((found.kind, good_done), (f"{found.kind}_quarantined", bad_done))}  # fmt: skip

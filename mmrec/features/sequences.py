"""gold.user_sequences: what a user did lately, in order, and everything they have seen.

In: as-of interactions, users and wishes. Out: one row a user, cold ones included.
Trade-off: the last `length` events are kept as arrays in one row, which a scorer reads without a join and an
analyst unnests; the whole history is kept only as the set of seen items.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from mmrec import schema
from mmrec.dates import micros

_DAY = 86_400_000_000
# beyond it a cast to bigint saturates on one engine and raises on the other
_MOST = 9e18


def user_sequences(
    interactions: DataFrame, users: DataFrame, run_date: date, as_of: datetime, length: int, run_id: str,
    wishes: DataFrame | None = None, social: DataFrame | None = None, about: bool = False,
) -> DataFrame:  # fmt: skip
    """Rows of gold.user_sequences; order within a user is (event time, item id, event type).

    Args:
        interactions, users: what asof.interactions and asof.users, of everyone, give for `as_of`.
        as_of: aware instant, exclusive. length: events kept a user, at least 1.
        wishes: what asof.wishes gives; None: the column is null, as before there were wishes.
        social: of `social`; None: the column is null, as where nobody asks for it.
        about: with contexts and texts of events, which `interactions` then has.

    Returns: one row for every user of interactions and users who did not leave, unordered; gap_s is whole seconds,
        rounded down; windows are `[as_of - n days, as_of)`; weights beyond 9e12 are cut to that.
    """
    now = F.lit(micros(as_of)).cast("bigint")
    events = interactions.select(
        "user_id",
        "item_id",
        "event_type",
        F.unix_micros("event_ts").alias("us"),
        F.floor(F.greatest(F.least(F.col("weight") * 1e6 + 0.5, F.lit(_MOST)), F.lit(-_MOST)))
        .cast("bigint")
        .alias("weight_micro"),
        *(("context", "text") if about else ()),
    )
    last = Window.partitionBy("user_id").orderBy(
        F.col("us").desc(), F.col("item_id").desc(), F.col("event_type").desc()
    )
    # ranks first and alone: Spark then drops what is beyond `length` before it moves rows, however many a user has
    newest = events.withColumn("n", F.row_number().over(last)).where(F.col("n") <= length)
    entry = F.struct(
        F.col("us"),
        F.col("item_id"),
        F.col("event_type"),
        F.col("weight_micro"),
        F.expr("gap_us div 1000000").alias("gap_s"),
        *((F.col("context"), F.col("text")) if about else ()),
    )
    gap = F.coalesce(F.lag("us").over(last), now) - F.col("us")
    kept = (
        newest.withColumn("gap_us", gap).groupBy("user_id").agg(F.sort_array(F.collect_list(entry)).alias("e"))
    )
    age = now - F.col("us")
    counts = events.groupBy("user_id").agg(
        F.sort_array(F.collect_set("item_id")).alias("seen_item_ids"),
        F.count(F.lit(1)).alias("n_interactions"),
        *(F.count(F.when(age <= days * _DAY, F.lit(1))).alias(f"n_{days}d") for days in (7, 30, 90)),
    )
    known = users.select("user_id", "attributes", "left")
    rows = counts.join(kept, "user_id").join(known, "user_id", "full_outer")
    rows = rows.where(~F.coalesce(F.col("left"), F.lit(False)))  # who left gets no list
    if wishes is not None:
        entry = F.concat(F.col("wish"), F.lit(" "), F.col("field"), F.lit("="), F.col("value"))
        asked = wishes.groupBy("user_id").agg(F.sort_array(F.collect_set(entry)).alias("wishes"))
        rows = rows.join(asked, "user_id", "left")
    if social is not None:
        rows = rows.join(social, "user_id", "left")
    empty = F.array()
    told = {c: F.col(f"e.{c[:-1]}") if about else F.lit(None) for c in ("contexts", "texts")}

    def part(name: str, kind: str) -> Column:
        return F.coalesce(F.col(f"e.{name}"), empty.cast(f"array<{kind}>"))

    made = rows.select(
        F.lit(run_date).alias("run_date"),
        "user_id",
        part("item_id", "string").alias("item_ids"),
        part("event_type", "string").alias("event_types"),
        part("us", "bigint").alias("event_us"),
        part("gap_s", "bigint").alias("gap_s"),
        part("weight_micro", "bigint").alias("weight_micro"),
        F.coalesce(F.col("seen_item_ids"), empty.cast("array<string>")).alias("seen_item_ids"),
        *(F.coalesce(F.col(c), F.lit(0)).alias(c) for c in ("n_interactions", "n_7d", "n_30d", "n_90d")),
        F.coalesce(F.col("attributes"), F.lit("{}")).alias("attributes"),
        (F.lit(None) if wishes is None else F.col("wishes")).cast("array<string>").alias("wishes"),
        (F.lit(None) if social is None else F.col("social_item_ids")).cast("array<string>").alias("social_item_ids"),
        *(value.cast("array<string>").alias(c) for c, value in told.items()),
        F.lit(run_id).alias("run_id"),
    )
    t = schema.table("gold.user_sequences")
    return made.select([F.col(c.name).cast(c.type.lower()).alias(c.name) for c in t.columns])


def social(interactions: DataFrame, edges: DataFrame, as_of: datetime, asked: dict[str, Any]) -> DataFrame:
    """user_id and social_item_ids: what those whom a user is linked to had lately; users without any are not there.

    Args:
        interactions, edges: what asof.interactions and asof.edges give for `as_of`. asked: social_days; depth: items a
            user.

    Returns: items ordered by (how many of them had it, when the last one did, both descending, item id).
    """
    now = F.lit(micros(as_of)).cast("bigint")
    lately = interactions.select("user_id", "item_id", F.unix_micros("event_ts").alias("us")).where(
        now - F.col("us") <= asked["social_days"] * _DAY
    )
    had = lately.groupBy("user_id", "item_id").agg(F.max("us").alias("us"))
    theirs = edges.join(had.withColumnRenamed("user_id", "object_id"), "object_id")
    many = theirs.groupBy("subject_id", "item_id").agg(F.count(F.lit(1)).alias("n"), F.max("us").alias("us"))
    order = Window.partitionBy("subject_id").orderBy(F.col("n").desc(), F.col("us").desc(), F.col("item_id"))
    first = many.withColumn("place", F.row_number().over(order)).where(F.col("place") <= asked["depth"])
    entries = F.sort_array(F.collect_list(F.struct("place", "item_id"))).alias("e")
    listed = first.groupBy("subject_id").agg(entries)
    return listed.select(F.col("subject_id").alias("user_id"), F.col("e.item_id").alias("social_item_ids"))

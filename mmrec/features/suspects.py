"""ops.suspects: users who do not act like people, flagged as of a run_date. Nothing is dropped here.

In: as-of interactions. Out: one row a suspect user and kind:
- rate: more events in a clock hour or day than the bound, and than so many times what nearly all users stay below;
- burst: one of many users who came to one item within minutes of each other and did nothing else, ever;
- copycat: one of several users with nearly the same set of items.
All is counted in integers. Copy-cats are found without comparing all with all: equal sets are one set, known by its
hash; two sets that share enough have two of their rarest items in common (prefix filtering), so only sets with such a
pair in common are compared, at most `_BLOCK` with one another.
Trade-off: a pair that more than `_BLOCK` sets share is cut into blocks, of sets of a size; sets of more than `_LONGEST`
items are compared by hash alone. That keeps the work near linear in events; below both limits nothing is missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from mmrec import schema

_HOUR, _DAY, _MINUTE = 3_600_000_000, 86_400_000_000, 60_000_000
_BLOCK = 32
_LONGEST = 200


def suspects(interactions: DataFrame, bounds: Mapping[str, int], run_date: date, run_id: str) -> DataFrame:
    """Rows of ops.suspects, unordered.

    Args:
        interactions: what asof.interactions gives for the run_date. bounds: settings as in `[suspects]` of config.
    """
    events = interactions.select("user_id", "item_id", F.unix_micros("event_ts").alias("us"))
    own = events.groupBy("user_id").agg(F.count(F.lit(1)).alias("events"))
    found = _rate(events, bounds).unionByName(_burst(events, bounds)).unionByName(_copycat(events, bounds))
    rows = found.join(own, "user_id").withColumn("run_date", F.lit(run_date)).withColumn("run_id", F.lit(run_id))
    t = schema.table("ops.suspects")
    return rows.select([F.col(c.name).cast(c.type.lower()).alias(c.name) for c in t.columns])


def without(interactions: pa.Table, found: pa.Table) -> pa.Table:
    """Interactions of users who are not suspect. `found`: rows of `suspects`."""
    return interactions.filter(pc.invert(pc.is_in(interactions["user_id"], found["user_id"])))


def _rate(events: DataFrame, bounds: Mapping[str, int]) -> DataFrame:
    slots = [F.col("us") - F.pmod(F.col("us"), F.lit(width)) for width in (_HOUR, _DAY)]
    hours = events.groupBy("user_id", slots[0].alias("h"), slots[1].alias("d")).agg(F.count(F.lit(1)).alias("n"))
    days = hours.groupBy("user_id", "d").agg(F.max("n").alias("hour"), F.sum("n").alias("day"))
    busiest = days.groupBy("user_id").agg(F.max("hour").alias("hour"), F.max("day").alias("day"))
    # as many rows as there are different counts
    seen = busiest.groupBy("hour", "day").agg(F.count(F.lit(1)).alias("users")).toArrow()
    found = []
    for name in ("hour", "day"):
        usual = _percentile(seen[name].to_pylist(), seen["users"].to_pylist(), bounds["percentile"])
        most = F.lit(max(bounds[name], bounds["factor"] * usual)).cast("bigint")
        said = F.concat(F.col(name).cast("string"), F.lit(f" events in one {name}; at most "), most.cast("string"),
                        F.lit(" are usual"))  # fmt: skip
        told = F.struct(F.col(name).alias("value"), most.alias("bound"), said.alias("reason"))
        found.append((F.col(name) > most, told))
    (by_hour, hour), (by_day, day) = found
    over = busiest.withColumn("told", F.when(by_hour, hour).when(by_day, day)).where(F.col("told").isNotNull())
    return _of(over.select("user_id", "told.value", "told.bound", "told.reason"), "rate")


def _percentile(values: list[int], users: list[int], percent: int) -> int:
    """The smallest value that at least `percent` of 100 users do not exceed; 0 where there are none."""
    below, total = 0, sum(users)
    for value, n in sorted(zip(values, users, strict=True)):
        below += n
        if below * 100 >= percent * total:
            return value
    return 0


def _burst(events: DataFrame, bounds: Mapping[str, int]) -> DataFrame:
    span, least = bounds["burst_minutes"] * _MINUTE, bounds["burst_users"]
    people = events.groupBy("user_id").agg(
        F.min("item_id").alias("item_id"), F.max("item_id").alias("other"), F.min("us").alias("us")
    )
    single = people.where(F.col("item_id") == F.col("other"))
    order = Window.partitionBy("item_id").orderBy("us", "user_id")
    # the last of `least` users within the span, and with it those before it
    late = F.lag("us", least - 1).over(order)
    ends = F.when(F.col("us") - late <= F.lit(span), F.lit(1)).otherwise(F.lit(0))
    within = F.max("ends").over(order.rowsBetween(Window.currentRow, least - 1))
    hit = single.withColumn("ends", ends).withColumn("within", within).where(F.col("within") == 1)
    rows = hit.withColumn("value", F.count(F.lit(1)).over(Window.partitionBy("item_id")))
    minutes = f" users, who did nothing else, came to one item within {bounds['burst_minutes']} minutes of each other: "
    rows = rows.withColumn("bound", F.lit(least)).withColumn("reason", _words("value", minutes, "item_id", ""))
    return _of(rows, "burst")


def _copycat(events: DataFrame, bounds: Mapping[str, int]) -> DataFrame:
    share, least = bounds["copy_share"], bounds["copy_users"]
    catalogue = events.agg(F.count_distinct("item_id").alias("n")).toArrow()["n"][0].as_py()
    sets = events.groupBy("user_id").agg(F.sort_array(F.collect_set("item_id")).alias("items"))
    # who had most of what there is has it in common with all who did
    sets = sets.withColumn("n", F.size("items")).where(F.col("n").between(bounds["copy_items"], catalogue // 2))
    distinct = sets.groupBy("items", "n").agg(F.count(F.lit(1)).alias("users")).withColumn("key", _hash("items"))
    near = _near(distinct.where(F.col("n") <= _LONGEST), share)
    others = distinct.select("key", F.col("users").alias("others")).unionByName(near)
    alike = others.groupBy("key").agg(F.sum("others").alias("value")).where(F.col("value") >= least)
    rows = sets.withColumn("key", _hash("items")).join(alike, "key")
    said = _words("value", " users have nearly the same items, this one ", "n", " of them")
    return _of(rows.withColumn("bound", F.lit(least)).withColumn("reason", said), "copycat")


def _near(distinct: DataFrame, share: int) -> DataFrame:
    """(key, others): for each two sets that have `share` percent of their union in common, each with the other's users.

    Args:
        distinct: key, items, n, users.
    """
    tokens = distinct.select("key", "n", F.explode("items").alias("item"))
    tokens = tokens.withColumn("sets", F.count(F.lit(1)).over(Window.partitionBy("item")))
    order = Window.partitionBy("key").orderBy("sets", "item")
    # two sets that have `need` items in common have two of each one's n - need + 2 rarest in common
    rare = tokens.withColumn("place", F.row_number().over(order)).withColumn("share", F.lit(share))
    rare = rare.where(F.expr("place <= n - (n * share + 99) div 100 + 2 and sets > 1"))
    chosen = rare.groupBy("key", "n").agg(F.sort_array(F.collect_list(F.struct("place", "item"))).alias("all"))
    pairs = chosen.select("key", "n", F.explode(_pairs("all", "item")).alias("pair"))
    bucket = Window.partitionBy("pair")
    placed = pairs.withColumn("row", F.row_number().over(bucket.orderBy("n", "key")) - 1)
    placed = placed.withColumn("size", F.count(F.lit(1)).over(bucket)).where(F.col("size") > 1)
    # as many blocks as are needed, of equal size
    placed = placed.withColumn("block", F.expr(f"(row * ((size - 1) div {_BLOCK} + 1)) div size"))
    blocks = placed.groupBy("pair", "block").agg(F.sort_array(F.collect_list(F.struct("n", "key"))).alias("all"))
    met = blocks.select(F.explode(_pairs("all", "key")).alias("met"))
    met = met.select(F.col("met.one").alias("k1"), F.col("met.two").alias("k2")).distinct()
    left = distinct.select(F.col("key").alias("k1"), F.col("items").alias("i1"), F.col("users").alias("u1"))
    right = distinct.select(F.col("key").alias("k2"), F.col("items").alias("i2"), F.col("users").alias("u2"))
    both = met.join(left, "k1").join(right, "k2").withColumn("shared", F.size(F.array_intersect("i1", "i2")))
    alike = both.where(F.col("shared") * 100 >= (F.size("i1") + F.size("i2") - F.col("shared")) * share)
    each = F.array(
        F.struct(F.col("k1").alias("key"), F.col("u2").alias("others")),
        F.struct(F.col("k2").alias("key"), F.col("u1").alias("others")),
    )
    return alike.select(F.explode(each).alias("e")).select("e.key", "e.others")


def _pairs(array: str, name: str) -> Column:
    """Every two elements of a sorted array of structs, an array of structs `one`, `two` of field `name`."""

    def later(x: Column) -> Column:
        two = F.filter(F.col(array), lambda y: y > x)
        return F.transform(two, lambda y: F.struct(x[name].alias("one"), y[name].alias("two")))

    return F.flatten(F.transform(F.col(array), later))


def _hash(items: str) -> Column:
    # lengths in front: no two sets run together to one text
    parts = F.transform(F.col(items), lambda i: F.concat(F.length(i).cast("string"), F.lit(":"), i))
    return F.sha2(F.array_join(parts, ""), 256)


def _words(number: str, middle: str, name: str, end: str) -> Column:
    return F.concat(F.col(number).cast("string"), F.lit(middle), F.col(name).cast("string"), F.lit(end))


def _of(rows: DataFrame, kind: str) -> DataFrame:
    return rows.select("user_id", F.lit(kind).alias("kind"), F.substring("reason", 1, 200).alias("reason"),
                       F.col("value").cast("bigint"), F.col("bound").cast("bigint"))  # fmt: skip

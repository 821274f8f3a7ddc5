"""The as-of reader: tables as they looked at a moment.

In: frames of silver tables, a moment (exclusive). Out: frames with one row an event, an item, a user, a wish.
A later delivery of the same event, item or user is a newer version; the newest that was available wins, by
(available_at, row_hash), so the order in which files arrived changes nothing.
Trade-off: versions are resolved at every read; keeping a resolved copy would be faster and could not answer for a day
in the past. Events, of which there are most, are ranked only where one was delivered twice.
"""

from __future__ import annotations

from datetime import datetime

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

_MANY = 1_000_000  # hashes, 8 bytes each, that every executor may be sent
_EVENT = ("user_id", "item_id", "event_type", "event_ts")


def interactions(df: DataFrame, as_of: datetime) -> DataFrame:
    """silver.interactions that happened and were delivered before `as_of`, one row an event."""
    return _newest(_visible(df, as_of), *_EVENT)


def events(df: DataFrame, as_of: datetime, more: tuple[str, ...] = ()) -> DataFrame:
    """user_id, item_id, event_type, event_ts, weight and `more` of `interactions`.

    Nearly every event was delivered once. Which were not is found by counting hashes, at once, and only these, and what
    shares a hash with them, are moved and ranked; where they are many, all are.
    """
    columns = (*_EVENT, "weight", *more)
    visible = _visible(df, as_of).select(*columns, "available_at", "row_hash")
    counted = visible.select(_hash().alias("_key")).groupBy("_key").agg(F.count(F.lit(1)).alias("_n"))
    again = counted.where(F.col("_n") > 1).select("_key").limit(_MANY + 1).toArrow()
    if again.num_rows > _MANY:
        return _newest(visible, *_EVENT).select(*columns)
    if not again.num_rows:
        return visible.select(*columns)
    some, keyed = F.broadcast(df.sparkSession.createDataFrame(again)), visible.withColumn("_key", _hash())
    once = keyed.join(some, "_key", "left_anti")
    newest = _newest(keyed.join(some, "_key", "left_semi"), *_EVENT)
    return once.select(*columns).unionByName(newest.select(*columns))


def _hash() -> Column:
    return F.xxhash64("user_id", "item_id", "event_type", F.unix_micros("event_ts"))


def _visible(df: DataFrame, as_of: datetime) -> DataFrame:
    moment = F.lit(as_of)
    return df.where((F.col("event_ts") < moment) & (F.col("available_at") < moment))


def items(df: DataFrame, as_of: datetime, on_offer: bool = True) -> DataFrame:
    """The newest version of every item known before `as_of`; with `on_offer`, those that may be recommended."""
    moment = F.lit(as_of)
    newest = _newest(df.where(F.col("available_at") < moment), "item_id")
    if not on_offer:
        return newest
    gone = F.coalesce(F.col("withdrawn_at") < moment, F.lit(False))
    return newest.where((F.col("valid_from") < moment) & ~gone)


def users(df: DataFrame, as_of: datetime, everyone: bool = False) -> DataFrame:
    """The newest version of every user known before `as_of` who is here; with `everyone`, also of those who left, and
    a column `left` that tells them apart."""
    moment = F.lit(as_of)
    newest = _newest(df.where(F.col("available_at") < moment), "user_id")
    left = F.coalesce(F.col("withdrawn_at") < moment, F.lit(False))
    return newest.withColumn("left", left) if everyone else newest.where(~left)


def wishes(df: DataFrame, as_of: datetime) -> DataFrame:
    """What users had asked for before `as_of` and had not taken back, one row a user, field and value.

    Of what was delivered at once, as a day's file is, the user's latest word wins.
    """
    moment = F.lit(as_of)
    visible = df.where((F.col("wished_at") < moment) & (F.col("available_at") < moment))
    # 1970 stands for never: an order without nulls is the same on any engine
    newest = _newest(visible.withColumn("_back", F.coalesce(F.unix_micros("withdrawn_at"), F.lit(0))),
                     "user_id", "field", "value", then=("wished_at", "_back")).drop("_back")  # fmt: skip
    return newest.where(~F.coalesce(F.col("withdrawn_at") < moment, F.lit(False)))


def edges(df: DataFrame, as_of: datetime) -> DataFrame:
    """subject_id and object_id of users who were linked before `as_of`, in whatever relation, each pair once."""
    known = df.where((F.col("kind") == "user") & (F.col("available_at") < F.lit(as_of)))
    return known.select("subject_id", "object_id").distinct()


def entities(df: DataFrame, as_of: datetime) -> DataFrame:
    """item_id and entities, what was known of an item before `as_of`: `relation=entity`, ascending, each once."""
    known = df.where((F.col("kind") == "item") & (F.col("available_at") < F.lit(as_of)))
    entity = F.concat(F.col("relation"), F.lit("="), F.col("object_id"))
    own = known.groupBy(F.col("subject_id").alias("item_id"))
    return own.agg(F.sort_array(F.collect_set(entity)).alias("entities"))


def _newest(df: DataFrame, *key: str, then: tuple[str, ...] = ()) -> DataFrame:
    order = Window.partitionBy(*key).orderBy(*(F.col(c).desc() for c in ("available_at", *then, "row_hash")))
    return df.withColumn("_n", F.row_number().over(order)).where(F.col("_n") == 1).drop("_n")

"""The as-of reader: tables as they looked at a moment.

In: frames of silver tables, a moment (exclusive). Out: frames with one row an event, an item, a user.
A later delivery of the same event, item or user is a newer version; the newest that was available wins, by
(available_at, row_hash), so the order in which files arrived changes nothing.
Trade-off: versions are resolved at every read with one window; keeping a resolved copy would be faster and could
not answer for a day in the past.
"""

from __future__ import annotations

from datetime import datetime

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F


def interactions(df: DataFrame, as_of: datetime) -> DataFrame:
    """silver.interactions that happened and were delivered before `as_of`, one row an event."""
    moment = F.lit(as_of)
    visible = df.where((F.col("event_ts") < moment) & (F.col("available_at") < moment))
    return _newest(visible, "user_id", "item_id", "event_type", "event_ts")


def items(df: DataFrame, as_of: datetime, on_offer: bool = True) -> DataFrame:
    """The newest version of every item known before `as_of`; with `on_offer`, those that may be recommended."""
    moment = F.lit(as_of)
    newest = _newest(df.where(F.col("available_at") < moment), "item_id")
    if not on_offer:
        return newest
    gone = F.coalesce(F.col("withdrawn_at") < moment, F.lit(False))
    return newest.where((F.col("valid_from") < moment) & ~gone)


def users(df: DataFrame, as_of: datetime, here: bool = True) -> DataFrame:
    """The newest version of every user known before `as_of`: those who are here, or those who left."""
    moment = F.lit(as_of)
    newest = _newest(df.where(F.col("available_at") < moment), "user_id")
    left = F.coalesce(F.col("withdrawn_at") < moment, F.lit(False))
    return newest.where(~left if here else left)


def _newest(df: DataFrame, *key: str) -> DataFrame:
    order = Window.partitionBy(*key).orderBy(F.col("available_at").desc(), F.col("row_hash").desc())
    return df.withColumn("_n", F.row_number().over(order)).where(F.col("_n") == 1).drop("_n")

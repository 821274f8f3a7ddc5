"""gold.item_features: behaviour counts of every item on offer, beside the keys of its content.

In: as-of interactions and items. Out: one row an item on offer; an item nobody touched has zero counts.
Popularity is the decayed count of users, each by their latest event on the item, in integer millionths: weights
by whole days of age are made here in Python, because engines disagree in the last digit of an exponential.
Trade-off: an event's age is counted in whole days, so popularity moves at midnight, not by the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mmrec import schema
from mmrec.dates import micros

_DAY = 86_400_000_000


def content_text(title: str | None, categories: Sequence[str] | None, text: str | None) -> str | None:
    """The text of an item that is hashed and encoded; None where it has none. `_text` is the same on the engine."""
    parts = [title or "", ", ".join(c for c in categories or () if c is not None), text or ""]
    return ". ".join(p for p in parts if p) or None


def fields_of(title: str | None, categories: Sequence[str] | None, text: str | None) -> list[str]:
    """The texts that stand for an item where fields are separate: title with categories, and text; none where either
    is empty, because the whole text is the other. `_fields` gives their keys on the engine."""
    head = content_text(title, categories, None)
    return [head, text] if head and text else []


def _text() -> Column:
    empty = F.array().cast("array<string>")
    parts = F.array(
        F.coalesce(F.col("title"), F.lit("")),
        F.array_join(F.coalesce(F.col("categories"), empty), ", "),
        F.coalesce(F.col("text"), F.lit("")),
    )
    joined = F.array_join(F.filter(parts, lambda p: p != F.lit("")), ". ")
    return F.when(joined != F.lit(""), joined)


def _fields() -> Column:
    empty = F.array().cast("array<string>")
    parts = F.array(
        F.coalesce(F.col("title"), F.lit("")), F.array_join(F.coalesce(F.col("categories"), empty), ", ")
    )
    head = F.array_join(F.filter(parts, lambda p: p != F.lit("")), ". ")
    both = (head != F.lit("")) & (F.coalesce(F.col("text"), F.lit("")) != F.lit(""))
    return F.when(both, F.array(F.sha2(head, 256), F.sha2(F.col("text"), 256)))


def item_features(
    interactions: DataFrame, items: DataFrame, run_date: date, as_of: datetime, half_life_days: float, run_id: str,
    text_fields: str = "joined", attributes: bool = False, entities: DataFrame | None = None,
) -> DataFrame:  # fmt: skip
    """Rows of gold.item_features.

    Args:
        interactions, items: what asof.interactions and asof.items give for `as_of`.
        as_of: aware instant, exclusive. half_life_days: days after which an event counts half.
        text_fields: "separate": the keys of two texts too. "joined": texts_sha256 is null.
        attributes: whether items' attributes are kept; else they are null, as before there were rules.
        entities: what asof.entities gives; None: the column is null, as before models knew of them.

    Returns: one row an item of `items`, unordered; popularity_micro sums floor(1e6 * 2^(-whole days / half-life))
        over the item's users, each by their latest event; windows are `[as_of - n days, as_of)`.
    """
    now = F.lit(micros(as_of)).cast("bigint")
    events = interactions.select("user_id", "item_id", F.unix_micros("event_ts").alias("us"))
    age = now - F.col("us")
    ago = {f"n_{days}d": F.count(F.when(age <= days * _DAY, F.lit(1))) for days in (7, 30, 90)}
    # a row a user and item first: who had it, when last, and how often come out of one pass
    pairs = events.groupBy("user_id", "item_id").agg(
        F.max("us").alias("us"), F.count(F.lit(1)).alias("n_interactions"), *(n.alias(c) for c, n in ago.items())
    )
    # beyond the table a weight is below half a millionth of a user
    reach = int(half_life_days * 21) + 2
    # one literal, because a literal each would cost a call of the engine each
    told = ",".join(str(int(1e6 * 0.5 ** (d / half_life_days))) for d in range(reach))
    weights = F.split(F.lit(told), ",").cast("array<bigint>")
    # integer division: as doubles, a microsecond before midnight rounds up to the next day on old events
    day = F.expr(f"age_us div {_DAY}")
    decayed = pairs.withColumn("age_us", age).select(
        "item_id",
        "n_interactions",
        *ago,
        F.when(day < reach - 1, F.element_at(weights, F.least(day, F.lit(reach - 1)).cast("int") + 1))
        .otherwise(F.lit(0))
        .cast("bigint")
        .alias("popularity_micro"),
    )
    summed = ("n_interactions", *ago, "popularity_micro")
    counts = decayed.groupBy("item_id").agg(F.count(F.lit(1)).alias("n_users"), *(F.sum(c).alias(c) for c in summed))
    rows = items.join(counts, "item_id", "left")
    if entities is not None:
        rows = rows.join(entities, "item_id", "left")
    zero = ("n_interactions", "n_users", "n_7d", "n_30d", "n_90d", "popularity_micro")
    made = rows.select(
        F.lit(run_date).alias("run_date"),
        "item_id",
        "title",
        "categories",
        (F.col("attributes") if attributes else F.lit(None)).cast("string").alias("attributes"),
        F.sha2(_text(), 256).alias("text_sha256"),
        (_fields() if text_fields == "separate" else F.lit(None)).cast("array<string>").alias("texts_sha256"),
        "image_sha256",
        "images_sha256",
        "audio_sha256",
        (F.lit(None) if entities is None else F.col("entities")).cast("array<string>").alias("entities"),
        *(F.coalesce(F.col(c), F.lit(0)).alias(c) for c in zero),
        F.unix_micros("valid_from").alias("available_us"),
        F.lit(run_id).alias("run_id"),
    )
    t = schema.table("gold.item_features")
    return made.select([F.col(c.name).cast(c.type.lower()).alias(c.name) for c in t.columns])

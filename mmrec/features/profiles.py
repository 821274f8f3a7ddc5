"""gold.user_profiles: what a user is drawn to, in words an analyst can read.

In: as-of interactions and items, and what items are linked to. Out: one row a user, who may be drawn to nothing.
An interest is a label of items, category=NAME or relation=ENTITY, that a user's events fall on more often than
everybody's do: lift = (n_ul + K p_l) / (n_u + K) / p_l, the user's share of events, smoothed by a Dirichlet prior of K
events at everybody's shares (Zhai and Lafferty, SIGIR 2001, section 3.2), over everybody's share p_l. Few events say
little, so their lift stays near one.
Trade-off: events count alike, whatever their kind, weight or age; gold.user_sequences has those.
"""

from __future__ import annotations

from datetime import date

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from mmrec import schema

_PRIOR = 10  # events at everybody's shares that stand behind each user's own
_EVENTS = 3  # of a user on a label; fewer make no interest
_LIFT = 1_200_000  # millionths; below it a user is like the others


def user_profiles(
    interactions: DataFrame, users: DataFrame, items: DataFrame, run_date: date, most: int, run_id: str,
    entities: DataFrame | None = None,
) -> DataFrame:  # fmt: skip
    """Rows of gold.user_profiles.

    Args:
        interactions, users, items: what asof.interactions, asof.users, of everyone, and asof.items, on offer or not,
            give for one moment. most: interests a user, at least 1.
        entities: what asof.entities gives; None: categories alone.

    Returns: one row for every user of interactions and users who did not leave, unordered; interests by (lift, events,
        both descending, label), empty where there are none. Lifts are whole millionths, rounded down; shares are of
        all events, of whatever item.
    """
    pairs = interactions.groupBy("user_id", "item_id").agg(F.count(F.lit(1)).alias("n"))
    empty = F.array().cast("array<string>")
    words = F.transform(F.coalesce(F.col("categories"), empty), lambda c: F.concat(F.lit("category="), c))
    linked = items.select("item_id", words.alias("words"))
    if entities is not None:
        linked = linked.join(entities, "item_id", "left").select(
            "item_id", F.concat("words", F.coalesce(F.col("entities"), empty)).alias("words")
        )
    labels = linked.select("item_id", F.explode(F.array_distinct("words")).alias("label")).where(
        F.col("label").isNotNull()
    )
    here = pairs.join(users.where(F.col("left")).select("user_id"), "user_id", "left_anti")
    own = here.join(labels, "item_id").groupBy("user_id", "label").agg(F.sum("n").alias("n"))
    whole = here.groupBy("user_id").agg(F.sum("n").alias("of_user"))
    everybody = own.groupBy("label").agg(F.sum("n").alias("of_label")).crossJoin(
        whole.select(F.sum("of_user").alias("of_all"))
    )
    # whole numbers up to there: a division of two is the same double anywhere
    share = [F.col(c).cast("double") for c in ("n", "of_user", "of_label", "of_all")]
    n, of_user, of_label, of_all = share
    lift = F.floor(1e6 * ((n * of_all + _PRIOR * of_label) / ((of_user + _PRIOR) * of_label))).cast("bigint")
    drawn = own.where(F.col("n") >= _EVENTS).join(whole, "user_id").join(everybody, "label")
    drawn = drawn.withColumn("lift", lift).where(F.col("lift") >= _LIFT)
    order = Window.partitionBy("user_id").orderBy(F.col("lift").desc(), F.col("n").desc(), F.col("label"))
    first = drawn.withColumn("place", F.row_number().over(order)).where(F.col("place") <= most)
    entries = F.sort_array(F.collect_list(F.struct("place", "label", "n", "lift"))).alias("e")
    known = users.where(~F.col("left")).select("user_id")
    made = whole.join(known, "user_id", "full_outer").join(first.groupBy("user_id").agg(entries), "user_id", "left")
    parts = {"interests": ("label", "string"), "events": ("n", "bigint"), "lifts_micro": ("lift", "bigint")}
    rows = made.select(
        F.lit(run_date).alias("run_date"), "user_id",
        *(F.coalesce(F.col(f"e.{p}"), F.array().cast(f"array<{kind}>")).alias(c) for c, (p, kind) in parts.items()),
        F.coalesce(F.col("of_user"), F.lit(0)).alias("n_interactions"), F.lit(run_id).alias("run_id"),
    )  # fmt: skip
    t = schema.table("gold.user_profiles")
    return rows.select([F.col(c.name).cast(c.type.lower()).alias(c.name) for c in t.columns])

"""Bronze to silver: every row gets its types or a reason.

In: bronze rows as they came. Out: rows of silver.<kind> and rows of ops.quarantine; each bronze row is in exactly
one of them. The first broken rule of `_rules`' order names the row's fault.
Trade-off: an interaction with an unknown item is looked at again every night, because its item may arrive late;
every other verdict is final.
"""

from __future__ import annotations

from datetime import datetime

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mmrec import schema

_KEYS = {
    "interactions": ("user_id", "item_id", "event_type", "event_ts"), "items": ("item_id",), "users": ("user_id",),
    "relations": ("subject_id", "relation", "object_id"),
    "impressions": ("impression_id", "user_id", "item_id", "shown_at"),
}  # fmt: skip
_MOMENTS = {
    "interactions": ("event_ts", "available_at"), "items": ("valid_from", "withdrawn_at", "available_at"),
    "users": ("withdrawn_at", "available_at"), "relations": ("available_at",),
    "impressions": ("shown_at", "available_at"),
}  # fmt: skip
_BOUNDED = {"interactions": ("event_ts", "available_at"), "impressions": ("shown_at", "available_at")}
_NUMBERS = {"interactions": ("weight",), "impressions": ("propensity",)}
_OBJECTS = {"interactions": ("context",), "items": ("attributes",), "users": ("attributes",)}
# where a row has no delivery time of its own, the moment it speaks of stands in
_DELIVERY = {"interactions": "event_ts", "impressions": "shown_at", "items": "valid_from"}
_RETRIED = "unknown_item"


def pending(kind: str, bronze: DataFrame, silver: DataFrame, quarantine: DataFrame) -> DataFrame:
    """Bronze rows that are in neither silver nor, finally, quarantine."""
    kept = silver.select("row_hash").withColumn("occurrence", F.lit(0))
    final = quarantine.where((F.col("table_name") == F.lit(f"bronze.{kind}")) & (F.col("rule") != F.lit(_RETRIED)))
    done = kept.unionByName(final.select("row_hash", "occurrence"))
    return bronze.join(done, ["row_hash", "occurrence"], "left_anti")


def unrecorded(bad: DataFrame, quarantine: DataFrame) -> DataFrame:
    """Quarantine rows that are not on record yet."""
    return bad.join(quarantine.select("table_name", "row_hash", "occurrence", "rule"),
                    ["table_name", "row_hash", "occurrence", "rule"], "left_anti").select(
        [c.name for c in schema.table("ops.quarantine").columns])  # fmt: skip


def to_silver(
    kind: str, bronze: DataFrame, known_items: DataFrame | None, *, earliest: datetime, latest: datetime
) -> tuple[DataFrame, DataFrame]:
    """Split bronze rows.

    Args:
        known_items: distinct item_id of silver.items; None where the kind names no item.
        earliest, latest: `[earliest, latest)` of event and delivery times.

    Returns: (rows of silver.<kind>, rows of ops.quarantine).
    """
    rows = bronze
    if known_items is not None:
        rows = rows.join(known_items.withColumn("_known", F.lit(True)), "item_id", "left")
    ruled = rows.withColumn("_v", _first(_rules(kind, earliest, latest, known_items is not None)))
    good = ruled.where(F.col("_v").isNull())
    bad = ruled.where(F.col("_v").isNotNull())
    t, q = schema.table(f"silver.{kind}"), schema.table("ops.quarantine")
    typed = {c.name: _value(kind, c) for c in t.columns}
    raw_columns = [
        c.name
        for c in schema.table(f"bronze.{kind}").columns
        if c.type == "STRING" and c.name not in ("row_hash", "source", "file", "raw", "parse_error")
    ]
    raw = F.coalesce(F.col("raw"), F.to_json(F.struct(*raw_columns)))
    said = {
        "table_name": F.lit(f"bronze.{kind}"),
        "rule": F.col("_v.rule"),
        "reason": F.substring(F.coalesce(F.col("_v.reason"), F.col("_v.rule")), 1, 200),
        "raw": raw,
    }
    return (
        good.select([typed[c.name].cast(c.type.lower()).alias(c.name) for c in t.columns]),
        bad.select([said.get(c.name, F.col(c.name)).cast(c.type.lower()).alias(c.name) for c in q.columns]),
    )


def _value(kind: str, column: schema.Column) -> Column:
    name = column.name
    if name in _MOMENTS[kind]:
        return _moment(kind, name)
    if name in _NUMBERS.get(kind, ()):
        number = F.col(name).try_cast("double") + F.lit(0.0)
        return F.coalesce(number, F.lit(1.0)) if name == "weight" else number
    if name in _OBJECTS.get(kind, ()):
        return F.when(_blank(name), F.lit("{}")).otherwise(F.col(name))
    if name == "categories":
        return F.coalesce(F.from_json(F.col(name), "array<string>"), F.array().cast("array<string>"))
    if name == "rank":
        return F.col(name).try_cast("int")
    if column.type == "STRING" and column.nullable:
        return F.when(~_blank(name), F.col(name))
    if name in ("title", "surface", "arm"):
        return F.coalesce(F.col(name), F.lit("main" if name == "arm" else ""))
    return F.col(name)


def _moment(kind: str, name: str) -> Column:
    own = F.col(name).try_cast("timestamp")
    if name == "available_at" and kind in _DELIVERY:
        return F.coalesce(own, F.col(_DELIVERY[kind]).try_cast("timestamp"))
    if name == "valid_from":
        return F.coalesce(own, F.col("available_at").try_cast("timestamp"))
    return own


def _rules(kind: str, earliest: datetime, latest: datetime, items: bool) -> list[tuple[str, Column, Column]]:
    """(rule, broken, reason), first one wins."""
    rules = [("parse_error", F.col("parse_error").isNotNull(), F.col("parse_error"))]
    rules += [("missing_key", _blank(c), F.lit(f"{c} is empty")) for c in _KEYS[kind]]
    for c in _MOMENTS[kind]:
        rules.append(("bad_timestamp", ~_blank(c) & F.col(c).try_cast("timestamp").isNull(), _shown(c)))
    if kind in ("users", "relations"):
        rules.append(("bad_timestamp", _blank("available_at"), F.lit("available_at is empty")))
    if kind == "items":
        rules.append(("bad_timestamp", _blank("available_at") & _blank("valid_from"), F.lit("available_at is empty")))
    for c in _BOUNDED.get(kind, ()):
        moment = _moment(kind, c)
        rules.append(("time_out_of_range", (moment < F.lit(earliest)) | (moment >= F.lit(latest)), _shown(c)))
    for c in _NUMBERS.get(kind, ()):
        number = F.col(c).try_cast("double")
        odd = number.isNull() | F.isnan(F.coalesce(number, F.lit(0.0))) | (F.abs(number) == F.lit(float("inf")))
        rules.append(("bad_number", ~_blank(c) & odd, _shown(c)))
    if kind == "impressions":
        place = F.col("rank").try_cast("int")
        rules.append(("bad_rank", F.coalesce(place < 1, F.lit(True)), _shown("rank")))
        share = F.col("propensity").try_cast("double")
        rules.append(("bad_propensity", F.coalesce((share < 0) | (share > 1), F.lit(False)), _shown("propensity")))
    for c in _OBJECTS.get(kind, ()):
        parsed = F.from_json(F.col(c), "map<string,string>")
        braced = F.trim(F.col(c)).startswith("{") & F.trim(F.col(c)).endswith("}")
        rules.append(("bad_json", ~_blank(c) & (parsed.isNull() | ~braced), _shown(c)))
    if kind == "items":
        listed = F.from_json(F.col("categories"), "array<string>")
        unlisted = listed.isNull() | ~F.trim(F.col("categories")).startswith("[")
        rules.append(("bad_json", ~_blank("categories") & unlisted,
                      _shown("categories")))  # fmt: skip
    if kind == "relations":
        rules.append(("unknown_kind", ~F.coalesce(F.col("kind").isin("item", "user"), F.lit(False)), _shown("kind")))
    # before unknown_item: a duplicate's verdict is final
    rules.append(("duplicate", F.col("occurrence") > 0, F.lit("the same row stands earlier in this file")))
    if items:
        rules.append((_RETRIED, F.col("_known").isNull(), _shown("item_id")))
    return rules


def _first(rules: list[tuple[str, Column, Column]]) -> Column:
    verdict = None
    for rule, broken, reason in rules:
        made = F.struct(F.lit(rule).alias("rule"), reason.alias("reason"))
        verdict = F.when(broken, made) if verdict is None else verdict.when(broken, made)
    assert verdict is not None
    return verdict


def _blank(name: str) -> Column:
    return F.coalesce(F.trim(F.col(name)) == F.lit(""), F.lit(True))


def _shown(name: str) -> Column:
    return F.concat(F.lit(f"{name} is '"), F.coalesce(F.col(name), F.lit("null")), F.lit("'"))

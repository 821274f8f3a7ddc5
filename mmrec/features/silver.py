"""Bronze to silver: every row gets its types or a reason.

In: bronze rows as they came. Out: rows of silver.<kind> and rows of ops.quarantine; each bronze row is in exactly
one of them. The first broken rule of `_rules`' order names the row's fault.
Trade-off: an interaction with an unknown item is looked at again every night, because its item may arrive late;
every other verdict is final.
"""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mmrec import schema
from mmrec.errors import QualityError

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

# Casts are fenced by patterns: engines disagree on what else they take, and a bare '12:30' becomes today's date.
_ISO = (r"^[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}"
        r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?\z")  # fmt: skip
_NUMBER = r"^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?\z"
_WHOLE = r"^[+-]?[0-9]+\z"
_LAST_US = 253_402_300_799_999_999  # end of the year 9999, the last that Python reads
_JSON_DEPTH = 12


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
        known_items: item_id of silver.items, repeats allowed; None where the kind names no item.
        earliest, latest: `[earliest, latest)` of event and delivery times.

    Returns: (rows of silver.<kind>, rows of ops.quarantine).
    """
    rows = bronze
    if known_items is not None:
        known = known_items.select("item_id").distinct().withColumn("_known", F.lit(True))
        rows = rows.join(known, "item_id", "left")
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


def bearable(kind: str, good: DataFrame, bad: pa.Table, max_share: float) -> None:
    """Refuse a delivery most of whose rows are bad, before any of it is kept: it stays pending until it is mended.

    Args:
        good, bad: new rows of silver.<kind> and of ops.quarantine. max_share: bad rows / all new rows.

    Raises: QualityError: more are bad; `report["rules"]` counts them by rule. Of fewer than a hundred rows any share
        may be chance.
    """
    if bad.num_rows <= max_share * 100:
        return
    rows = bad.num_rows + good.count()
    if bad.num_rows > max_share * rows:
        rules = {v["values"]: v["counts"] for v in pc.value_counts(bad["rule"]).to_pylist()}
        raise QualityError(
            "most rows of a delivery are bad",
            where=f"bronze.{kind}",
            value=f"{bad.num_rows} of {rows}: " + ", ".join(f"{n} {rule}" for rule, n in sorted(rules.items())),
            valid=f"at most {max_share:.0%}",
            next="deliver it again mended, or raise source.max_bad_share in mmrec.toml to quarantine these rows",
            report={"rules": rules},
        )


def _value(kind: str, column: schema.Column) -> Column:
    name = column.name
    if name in _MOMENTS[kind]:
        return _moment(kind, name)
    if name in _NUMBERS.get(kind, ()):
        number = _number(name) + F.lit(0.0)  # makes one zero of two
        return F.coalesce(number, F.lit(1.0)) if name == "weight" else number
    if name in _OBJECTS.get(kind, ()):
        return F.when(_blank(name), F.lit("{}")).otherwise(F.col(name))
    if name == "categories":
        return F.coalesce(F.from_json(F.col(name), "array<string>"), F.array().cast("array<string>"))
    if name == "rank":
        return _whole(name)
    if column.type == "STRING" and column.nullable:
        return F.when(~_blank(name), F.col(name))
    if name == "arm":
        return F.when(_blank(name), F.lit("main")).otherwise(F.col(name))
    if name in ("title", "surface"):
        return F.coalesce(F.col(name), F.lit(""))
    return F.col(name)


def _moment(kind: str, name: str) -> Column:
    own = _timestamp(name)
    if name == "available_at" and kind in _DELIVERY:
        return F.coalesce(own, _timestamp(_DELIVERY[kind]))
    if name == "valid_from":
        return F.coalesce(own, _timestamp("available_at"))
    return own


def _timestamp(name: str) -> Column:
    moment = F.when(F.col(name).rlike(_ISO), F.col(name)).try_cast("timestamp")
    return F.when(F.unix_micros(moment) <= F.lit(_LAST_US), moment)


def _number(name: str) -> Column:
    text = F.trim(F.col(name))
    return F.when(text.rlike(_NUMBER), text).try_cast("double")


def _whole(name: str) -> Column:
    text = F.trim(F.col(name))
    return F.when(text.rlike(_WHOLE), text).try_cast("int")


def _folded(name: str, depth: int) -> Column:
    """The JSON text with strings as \\x01, and values nested up to `depth` deep as `#`; RFC 8259 by rewriting.

    Engines differ in what malformed JSON they take (trailing text, single quotes, lone surrogates), so they are
    asked for nothing but plain regular expressions.
    """
    hexa = "[0-9a-fA-F]"
    paired = rf"\\u[dD][89abAB]{hexa}{{2}}\\u[dD][c-fC-F]{hexa}{{2}}"
    single = rf'\\(["\\/bfnrt]|u([0-9a-ce-fA-CE-F]{hexa}{{3}}|[dD][0-7]{hexa}{{2}}))'
    # no mark may be there before it is made: \x02 is an error anywhere, `~` outside of strings
    text = F.regexp_replace(F.regexp_replace(F.col(name), r"[\x01]", "\x02"), r"[#]", "~")
    text = F.regexp_replace(text, f"{paired}|{single}", "~")
    text = F.regexp_replace(text, r'"[^"\\\x00-\x1f]*"', "\x01")
    text = F.regexp_replace(text, r"-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?|true|false|null", "#")
    text = F.regexp_replace(text, r"[ \t\r\n]+", "")
    for _ in range(depth):
        text = F.regexp_replace(text, r"\{(\x01:[\x01#](,\x01:[\x01#])*)?\}|\[([\x01#](,[\x01#])*)?\]", "#")
    return text


def _is_object(name: str) -> Column:
    # what is left of one object is one `#`, and it began with a brace
    return F.col(name).rlike(r"^[ \t\r\n]*\{") & (_folded(name, _JSON_DEPTH) == F.lit("#"))


def _is_names(name: str) -> Column:
    return _folded(name, 0).rlike(r"^\[(\x01(,\x01)*)?\]\z")


def _rules(kind: str, earliest: datetime, latest: datetime, items: bool) -> list[tuple[str, Column, Column]]:
    """(rule, broken, reason), first one wins."""
    rules = [("parse_error", F.col("parse_error").isNotNull(), F.col("parse_error"))]
    rules += [("missing_key", _blank(c), F.lit(f"{c} is empty")) for c in _KEYS[kind]]
    for c in _MOMENTS[kind]:
        rules.append(("bad_timestamp", ~_blank(c) & _timestamp(c).isNull(), _shown(c)))
    if kind in ("users", "relations"):
        rules.append(("bad_timestamp", _blank("available_at"), F.lit("available_at is empty")))
    if kind == "items":
        rules.append(("bad_timestamp", _blank("available_at") & _blank("valid_from"), F.lit("available_at is empty")))
    for c in _BOUNDED.get(kind, ()):
        moment = _moment(kind, c)
        rules.append(("time_out_of_range", (moment < F.lit(earliest)) | (moment >= F.lit(latest)), _shown(c)))
    for c in _NUMBERS.get(kind, ()):
        number = _number(c)
        odd = number.isNull() | (F.abs(number) == F.lit(float("inf")))
        rules.append(("bad_number", ~_blank(c) & odd, _shown(c)))
    if kind == "impressions":
        rules.append(("bad_number", ~_blank("rank") & _number("rank").isNull(), _shown("rank")))
        place = _whole("rank")
        rules.append(("bad_rank", F.coalesce(place < 1, F.lit(True)), _shown("rank")))
        share = _number("propensity")
        rules.append(("bad_propensity", F.coalesce((share < 0) | (share > 1), F.lit(False)), _shown("propensity")))
    for c in _OBJECTS.get(kind, ()):
        rules.append(("bad_json", ~_blank(c) & ~_is_object(c), _shown(c)))
    if kind == "items":
        rules.append(("bad_json", ~_blank("categories") & ~_is_names("categories"), _shown("categories")))
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

"""Bronze to silver: every row gets its types or a reason, by the rules that the schema declares beside the columns.

In: bronze rows as they came. Out: rows of silver.<kind> and rows of ops.quarantine; each bronze row is in exactly
one of them. All rules are one expression, evaluated in one pass; the first broken one names the row's fault.
Trade-off: an interaction with an unknown item is looked at again every night, because its item may arrive late;
every other verdict stands until `mmrec quarantine replay` asks again.
"""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mmrec import schema
from mmrec.errors import QualityError

# Casts are fenced by patterns: engines disagree on what else they take, and a bare '12:30' becomes today's date.
_ISO = (r"^[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}"
        r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?\z")  # fmt: skip
_NUMBER = r"^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?\z"
_WHOLE = r"^[+-]?[0-9]+\z"
_LAST_US = 253_402_300_799_999_999  # end of the year 9999, the last that Python reads
_JSON_DEPTH = 12


def pending(kind: str, bronze: DataFrame, silver: DataFrame, quarantine: DataFrame) -> DataFrame:
    """Bronze rows that are in neither silver nor, finally, quarantine."""
    key = ["row_hash", "occurrence"]
    kept = silver.select("row_hash").withColumn("occurrence", F.lit(0))
    final = quarantine.where(F.col("table_name") == F.lit(f"bronze.{kind}"))
    for name in sorted({rule.name for _, rule in schema.rules(f"silver.{kind}") if not rule.final}):
        # it is the last rule: a row that broke it keeps the others, whatever it broke before they were mended
        final = final.join(final.where(F.col("rule") == F.lit(name)).select(key), key, "left_anti")
    return bronze.join(kept.unionByName(final.select(key)), key, "left_anti")


def reopened(
    kind: str,
    bronze: DataFrame,
    silver: DataFrame,
    quarantine: DataFrame,
    rule: str | None = None,
    mended: DataFrame | None = None,
) -> DataFrame:
    """Bronze rows that are in quarantine (by `rule`, if one is named) and not in silver: to be judged again.

    Args:
        mended: row_hash of rows in whose place a correction is in silver: they are left out.
    """
    key = ["row_hash", "occurrence"]
    named = quarantine.where(F.col("table_name") == F.lit(f"bronze.{kind}"))
    if rule is not None:
        named = named.where(F.col("rule") == F.lit(rule))
    kept = silver.select("row_hash").withColumn("occurrence", F.lit(0))
    held = bronze.join(named.select(key).distinct(), key, "left_semi").join(kept, key, "left_anti")
    return held if mended is None else held.join(mended, "row_hash", "left_anti")


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
        known_items: item_id of silver.items, repeats allowed; may be None where no column of the kind names an item.
        earliest, latest: `[earliest, latest)` of event and delivery times.

    Returns: (rows of silver.<kind>, rows of ops.quarantine).
    """
    rules, rows = schema.rules(f"silver.{kind}"), bronze
    for c in (c for c, rule in rules if rule.test == "known"):
        assert known_items is not None
        known = known_items.select(F.col("item_id").alias(c.name)).distinct().withColumn(_known(c), F.lit(True))
        rows = rows.join(known, c.name, "left")
    ruled = rows.withColumn("_v", _first(rules, earliest, latest))
    good = ruled.where(F.col("_v").isNull())
    bad = ruled.where(F.col("_v").isNotNull())
    t, q = schema.table(f"silver.{kind}"), schema.table("ops.quarantine")
    typed = {c.name: _value(c) for c in t.columns}
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


def _value(c: schema.Column) -> Column:
    """The typed value of a row that keeps its rules."""
    name = c.name
    if c.type == "TIMESTAMP":
        return _moment(c)
    if c.type == "DOUBLE":
        number = _number(name) + F.lit(0.0)  # makes one zero of two
        return number if c.default is None else F.coalesce(number, F.lit(float(c.default)))
    if c.type == "INT":
        return _whole(name)
    if c.type == "ARRAY<STRING>" and c.nullable:
        return F.col(name)  # hashes of media: a list since ingest
    if c.type == "ARRAY<STRING>":
        return F.coalesce(F.from_json(F.col(name), "array<string>"), F.array().cast("array<string>"))
    if c.default == "":
        return F.coalesce(F.col(name), F.lit(""))
    if c.default is not None:
        return F.when(_blank(name), F.lit(c.default)).otherwise(F.col(name))
    return F.when(~_blank(name), F.col(name)) if c.nullable else F.col(name)


def _moment(c: schema.Column) -> Column:
    return F.coalesce(_timestamp(c.name), _timestamp(c.stand_in)) if c.stand_in else _timestamp(c.name)


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


def _broken(c: schema.Column, rule: schema.Rule, earliest: datetime, latest: datetime) -> tuple[Column, Column]:
    """(whether a row breaks the rule, the reason in words)."""
    name, empty = c.name, F.lit(f"{c.name} is empty")
    match rule.test:
        case "parsed":
            return F.col(name).isNotNull(), F.col(name)
        case "not_blank":
            return _blank(name), empty
        case "moment":
            return ~_blank(name) & _timestamp(name).isNull(), _shown(name)
        case "dated":
            return (_blank(name) & _blank(c.stand_in) if c.stand_in else _blank(name)), empty
        case "in_range":
            return (_moment(c) < F.lit(earliest)) | (_moment(c) >= F.lit(latest)), _shown(name)
        case "number":
            number = _number(name)
            odd = number.isNull() | (F.abs(number) == F.lit(float("inf")))
            return ~_blank(name) & odd, _shown(name)
        case "numeral":
            return ~_blank(name) & _number(name).isNull(), _shown(name)
        case "whole":
            return F.coalesce(_whole(name) < F.lit(rule.args[0]), F.lit(True)), _shown(name)
        case "within":
            low, high = (F.lit(float(v)) for v in rule.args)
            return F.coalesce((_number(name) < low) | (_number(name) > high), F.lit(False)), _shown(name)
        case "object":
            return ~_blank(name) & ~_is_object(name), _shown(name)
        case "names":
            return ~_blank(name) & ~_is_names(name), _shown(name)
        case "one_of":
            return ~F.coalesce(F.col(name).isin(*rule.args), F.lit(False)), _shown(name)
        case "first":
            return F.col(name) > 0, F.lit("the same row stands earlier in this file")
        case "known":
            return F.col(_known(c)).isNull(), _shown(name)
    raise NotImplementedError(f"schema/rules.py has a test that is not compiled here: {rule.test}")


def _first(rules: list[tuple[schema.Column, schema.Rule]], earliest: datetime, latest: datetime) -> Column:
    """The verdict, a struct of rule and reason: the first broken rule; null where none is."""
    verdict = None
    for column, rule in rules:
        broken, reason = _broken(column, rule, earliest, latest)
        made = F.struct(F.lit(rule.name).alias("rule"), reason.alias("reason"))
        verdict = F.when(broken, made) if verdict is None else verdict.when(broken, made)
    assert verdict is not None
    return verdict


def _known(c: schema.Column) -> str:
    return f"_known_{c.name}"


def _blank(name: str) -> Column:
    return F.coalesce(F.trim(F.col(name)) == F.lit(""), F.lit(True))


def _shown(name: str) -> Column:
    return F.concat(F.lit(f"{name} is '"), F.coalesce(F.col(name), F.lit("null")), F.lit("'"))

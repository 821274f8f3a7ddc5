"""The portable subset of PySpark, rule by rule: the way mmrec may write a thing gives one literal answer on either engine.

Each case is an expression or a frame with its rows and Arrow types written out; run with `--engine local` and
`--engine spark` it is the same table, so what both pass may be used. What they do not share has no case: tests/lint
and pyproject.toml keep it out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from mmrec import schema
from mmrec.lake import commit
from mmrec.lake.audit import _plain
from mmrec.lake.store import Lake

NAN, INF, MOST = math.nan, math.inf, 2**63 - 1
# ascending in UTF-8, which is the order of code points and Python's; UTF-16 would put the last before the two above it
ORDERED = ["", "\x00", " ", "A", "a", "a\x00", "aa", "e\u0301", "é", "ש", "\ue000", "\uffff", "😀", "\U0010ffff"]
QUOTES = ["it's", "''", '"', "\\", "\\'", "'; drop table t; --", "${x}", "{x}", ":x", "?", "%s", "\n", "a\x00b", "😀"]
US = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENTS = [EPOCH - 1_500_000 * US, EPOCH - US, EPOCH, EPOCH + US, datetime(1900, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, 5, 0, 0, 123456, UTC)]
ROW = {
    "none": (None, pa.string()), "text": ("a\x00😀", pa.string()), "number": (" -1.5e3 ", pa.string()), "word": ("x", pa.string()), "when": ("2026-03-01T02:00:00.123456+02:00", pa.string()),
    "minus": (-7, pa.int64()), "three": (3, pa.int64()), "most": (MOST, pa.int64()), "half": (0.285, pa.float64()), "zero": (-0.0, pa.float64()), "nan": (NAN, pa.float64()), "x": (1.005, pa.float64()),
    "day": (date(1969, 12, 30), pa.date32()), "before": (EPOCH - 1_500_000 * US, pa.timestamp("us", "UTC")), "yes": (True, pa.bool_()), "nothing": (None, pa.list_(pa.string())),
    "names": (["b", None, "", "a"], pa.list_(pa.string())), "numbers": ([3, 1, 2], pa.list_(pa.int64())), "json": ('["\\u00e9","😀",""]', pa.string()), "object": ('{"a":1,"b":[2.5]}', pa.string()), "torn": ('["a"', pa.string()),
}  # fmt: skip


def c(name: str) -> Column:
    return F.col(name)


def null() -> Column:
    return F.lit(None)


def empty(kind: str) -> Column:
    return F.array().cast(f"array<{kind}>")


# whole seconds below: `div` goes towards zero, so what is above a whole second goes first
SECONDS = "(us - pmod(us, 1000000)) div 1000000"


# (rule, what, expression over ROW, value, Arrow type); a column is made when there is a session
EXPRESSIONS: list[tuple[int, str, Callable[[], Column], Any, str]] = [
    (2, "a weight of an age from a table made in Python", lambda: F.element_at(F.lit([int(1e6 * 0.5 ** (d / 30)) for d in range(9)]), F.lit(8)).cast("bigint"), 850667, "int64"),
    (3, "try_add of the greatest bigint", lambda: F.try_add(c("most"), F.lit(1).cast("bigint")), None, "int64"),
    (3, "a sum past bigint as decimal(38,0)", lambda: (c("most").cast("decimal(38,0)") + F.lit(1)).cast("decimal(38,0)"), Decimal(2**63), "decimal128(38, 0)"),
    (3, "whole division of a negative number", lambda: F.expr("minus div three"), -2, "int64"),
    (3, "pmod of a negative number", lambda: F.pmod("minus", "three"), 2, "int64"),
    (4, "division of doubles", lambda: c("minus") / c("three"), -7 / 3, "double"), (4, "a square root", lambda: F.sqrt(c("three").cast("double")), math.sqrt(3), "double"),
    (5, "millionths of 0.285", lambda: F.floor(c("half") * 1e6 + 0.5).cast("bigint"), 285_000, "int64"), (5, "millionths of 1.005", lambda: F.floor(c("x") * 1e6 + 0.5).cast("bigint"), 1_005_000, "int64"),
    (5, "millionths of minus zero", lambda: F.floor(c("zero") * 1e6 + 0.5).cast("bigint"), 0, "int64"), (5, "half a millionth goes up", lambda: F.floor(F.lit(-0.0000015) * 1e6 + 0.5).cast("bigint"), -1, "int64"),
    (7, "size of no list", lambda: F.size(F.coalesce("nothing", empty("string"))).cast("int"), 0, "int32"), (7, "a null is not in a list of no nulls", lambda: F.array_contains(F.filter("names", lambda v: v.isNotNull()), "a"), True, "bool"),
    (7, "isnan of a null number", lambda: F.isnan(F.coalesce(null().cast("double"), F.lit(0.0))), False, "bool"),
    (8, "one zero of two", lambda: (c("zero") + F.lit(0.0)), 0.0, "double"), (8, "NaN is NaN", lambda: c("nan") == F.lit(NAN), True, "bool"), (8, "NaN is above infinity", lambda: c("nan") > F.lit(INF), True, "bool"), (8, "the greatest with NaN", lambda: F.greatest("nan", "half"), NAN, "double"),
    (9, "micros before 1970", lambda: F.unix_micros("before"), -1_500_000, "int64"), (9, "days before 1970", lambda: F.unix_date("day").cast("int"), -2, "int32"), (9, "whole seconds before 1970, rounded down", lambda: F.expr(SECONDS.replace("us", "unix_micros(before)")), -2, "int64"),
    (10, "days between two dates", lambda: F.datediff(F.lit(date(2026, 3, 1)), c("day")).cast("bigint"), 20515, "int64"), (10, "int or bigint of two branches", lambda: F.when(c("yes"), F.lit(1)).otherwise(c("most")).cast("bigint"), 1, "int64"),
    (10, "a count of a branch", lambda: F.coalesce(null().cast("bigint"), F.lit(0)).cast("bigint"), 0, "int64"), (10, "a length", lambda: F.length("text").cast("int"), 3, "int32"),
    (11, "a number hashed as millionths", lambda: F.sha2(F.floor(c("half") * 1e6 + 0.5).cast("bigint").cast("string"), 256), hashlib.sha256(b"285000").hexdigest(), "string"),
    (12, "an explicit class over other alphabets", lambda: F.lit("٣").rlike("^[0-9]+$"), False, "bool"), (12, "a class that is replaced", lambda: F.regexp_replace(F.lit("a1 b22😀"), "[0-9]+", "#"), "a# b#😀", "string"),
    (12, "a group that is extracted", lambda: F.regexp_extract(F.lit("k=v;x"), "^([a-z])=([a-z]);", 2), "v", "string"), (12, "the end of a text with a last line", lambda: F.lit("2020\n").rlike(r"^[0-9]{4}\z"), False, "bool"),
    (12, "text split at a comma", lambda: F.split(F.lit("a,,b,"), ","), ["a", "", "b", ""], "list<string>"),
    (13, "sha2 of a text", lambda: F.sha2("text", 256), hashlib.sha256("a\x00😀".encode()).hexdigest(), "string"), (13, "md5 of a text", lambda: F.md5("text"), hashlib.md5("a\x00😀".encode()).hexdigest(), "string"),
    (13, "crc32 of a text", lambda: F.crc32(F.lit("abc")), 891568578, "int64"), (13, "xxhash64 of a text", lambda: F.xxhash64(F.lit("abc")), 1423657621850124518, "int64"), (13, "xxhash64 of an emoji and a number", lambda: F.xxhash64("text", "minus"), -6842500863134144640, "int64"),
    (14, "a comparison with a quote", lambda: F.lit("it's") == F.lit("it" + chr(39) + "s"), True, "bool"),
    (15, "numbers doubled", lambda: F.transform("numbers", lambda v: v * 2), [6, 2, 4], "list<int64>"), (15, "numbers filtered", lambda: F.filter("numbers", lambda v: v > 1), [3, 2], "list<int64>"), (15, "a number that exists", lambda: F.exists("numbers", lambda v: v == 2), True, "bool"),
    (15, "numbers added up", lambda: F.aggregate("numbers", F.lit(0).cast("bigint"), lambda a, v: a + v), 6, "int64"), (15, "a slice", lambda: F.slice("numbers", 2, 2), [1, 2], "list<int64>"), (15, "the last element", lambda: F.element_at("numbers", -1), 2, "int64"),
    (15, "lists of lists made flat", lambda: F.flatten(F.array("numbers", "numbers")), [3, 1, 2, 3, 1, 2], "list<int64>"), (15, "names joined, nulls left out", lambda: F.array_join("names", "|"), "b||a", "string"), (15, "names once each", lambda: F.sort_array(F.array_distinct(F.array(F.lit("b"), F.lit("a"), F.lit("b")))), ["a", "b"], "list<string>"),
    (6, "names sorted, null first", lambda: F.sort_array("names"), [None, "", "a", "b"], "list<string>"), (6, "names sorted downwards, null last", lambda: F.sort_array("names", asc=False), ["b", "a", "", None], "list<string>"),
    (17, "a list of texts from JSON", lambda: F.from_json("json", "array<string>"), ["é", "😀", ""], "list<string>"), (17, "an object from JSON", lambda: F.from_json("object", "a bigint, b array<double>").getField("a"), 1, "int64"),
    (17, "a list from nothing", lambda: F.from_json("none", "array<string>"), None, "list<string>"), (17, "an object to JSON, nulls left out", lambda: F.to_json(F.struct("word", "none", "minus")), '{"word":"x","minus":-7}', "string"),
    (21, "text to double", lambda: F.trim("number").try_cast("double"), -1500.0, "double"), (21, "no number", lambda: c("word").try_cast("double"), None, "double"), (21, "text to int", lambda: F.lit("12").try_cast("int"), 12, "int32"), (21, "too great for int", lambda: F.lit("2147483648").try_cast("int"), None, "int32"),
    (21, "text with a zone to an instant", lambda: c("when").try_cast("timestamp"), datetime(2026, 3, 1, 0, 0, 0, 123456, UTC), "timestamp[us, tz=UTC]"), (21, "text with a zone to a day", lambda: c("when").try_cast("timestamp").cast("date"), date(2026, 3, 1), "date32[day]"),
    (21, "no instant", lambda: c("word").try_cast("timestamp"), None, "timestamp[us, tz=UTC]"), (14, "an instant that goes in by lit", lambda: F.lit(MOMENTS[-1]), MOMENTS[-1], "timestamp[us, tz=UTC]"), (14, "a day that goes in by lit", lambda: F.lit(date(1900, 1, 1)), date(1900, 1, 1), "date32[day]"),
    (7, "null is null", lambda: c("none").eqNullSafe(null()), True, "bool"), (7, "null is no text", lambda: c("none").eqNullSafe("x"), False, "bool"), (7, "the first that is not null", lambda: F.coalesce("none", "word"), "x", "string"),
    (12, "a text cut at 2 code points", lambda: F.substring(F.lit("😀é!"), 1, 2), "😀é", "string"), (12, "spaces trimmed and nothing else", lambda: F.trim(F.lit(" \ta ")), "\ta", "string"),
]  # fmt: skip


def kinds(table: pa.Table) -> list[str]:
    """Logical types: element names and offsets are storage."""
    names = {"list<item: ": "list<", "list<element: ": "list<", "large_": ""}
    texts = []
    for field in table.schema:
        kind = str(_plain(field.type))
        for old, new in names.items():
            kind = kind.replace(old, new)
        texts.append(kind)
    return texts


def exact(rows: Any) -> list[str]:
    """repr keeps -0.0, NaN and null apart; an instant is one whatever class its UTC has."""
    def plain(v: Any) -> Any:
        if isinstance(v, datetime):
            assert v.utcoffset() == timedelta(0)
            return v.replace(tzinfo=None).isoformat()
        return [plain(x) for x in v] if isinstance(v, list | tuple) else {k: plain(x) for k, x in v.items()} if isinstance(v, dict) else v
    return [repr(plain(list(r.values()) if isinstance(r, dict) else list(r))) for r in rows]  # fmt: skip


@pytest.fixture(scope="module")
def answers(spark: Any) -> dict[str, tuple[Any, str]]:
    """Every expression's value and type, made in one statement."""
    row = spark.createDataFrame(pa.table({k: pa.array([v], t) for k, (v, t) in ROW.items()}))
    table = row.select([e().alias(f"c{n}") for n, (_, _, e, _, _) in enumerate(EXPRESSIONS)]).toArrow()
    return {what: (table[f"c{n}"][0].as_py(), kinds(table)[n]) for n, (_, what, _, _, _) in enumerate(EXPRESSIONS)}


@pytest.mark.parametrize(("rule", "what", "value", "kind"), [(r, w, v, k) for r, w, _, v, k in EXPRESSIONS], ids=[f"rule {r}: {w}" for r, w, *_ in EXPRESSIONS])
def test_an_expression_of_the_portable_subset_has_one_value_and_one_type(answers: dict[str, tuple[Any, str]], rule: int, what: str, value: Any, kind: str) -> None:
    assert 1 <= rule <= 21
    assert exact([[answers[what][0]]]) == exact([[value]])
    assert answers[what][1] == kind


def made(spark: Any, ddl: str, *rows: tuple[Any, ...]) -> DataFrame:
    """A frame of two partitions, so that no order of its own is in it; `ddl` is `name type, ...`."""
    types = {"string": pa.string(), "bigint": pa.int64(), "int": pa.int32(), "double": pa.float64(), "timestamp": pa.timestamp("us", "UTC"), "decimal": pa.decimal128(18, 6), "names": pa.list_(pa.string())}
    columns = [part.split(" ") for part in ddl.split(", ")]
    return spark.createDataFrame(pa.table({n: pa.array([r[i] for r in rows], types[k]) for i, (n, k) in enumerate(columns)})).repartition(2)


def events(spark: Any) -> DataFrame:
    return made(spark, "k string, t bigint, x string", ("a", 1, None), ("a", 3, "p"), ("a", 3, "q"), ("a", 9, None), ("b", -5, "r"), ("b", MOST, None), (None, 2, "s"))


def ordered(*more: str) -> Any:
    return Window.partitionBy("k").orderBy("t", F.col("x").asc_nulls_first(), *more)


def micro_sums(spark: Any) -> DataFrame:
    df = made(spark, "k string, d decimal, n bigint", ("a", Decimal("0.100000"), 100_000), ("a", Decimal("0.200000"), 200_000), ("a", Decimal("-0.000001"), -1), ("b", None, None))
    return df.groupBy("k").agg(F.sum("d").cast("decimal(28,6)").alias("d"), F.sum("n").alias("n"), F.count("n").alias("c"), F.min("n").alias("lo"), F.max("d").alias("hi"))


def overflow(spark: Any) -> DataFrame:
    df = made(spark, "k string, n bigint", ("a", MOST), ("a", 1), ("b", MOST), ("b", -1))
    return df.groupBy("k").agg(F.try_sum("n").alias("n"), F.sum(F.col("n").cast("decimal(38,0)")).cast("decimal(38,0)").alias("wide"))


def structs_sorted(spark: Any) -> DataFrame:
    df = events(spark).where(F.col("k").isNotNull())
    return df.groupBy("k").agg(F.sort_array(F.collect_list(F.struct("t", "x"))).alias("e"), F.sort_array(F.collect_list(F.struct("x", "t")), asc=False).alias("d"))


def greatest_by_rank(spark: Any) -> DataFrame:
    w = Window.partitionBy("k").orderBy(F.col("x").desc_nulls_last(), F.col("t").desc())
    return events(spark).withColumn("n", F.row_number().over(w)).where("n = 1").select("k", "t", "x")


def ranks(spark: Any) -> DataFrame:
    w = ordered()
    return events(spark).select("k", "t", "x", F.row_number().over(w).cast("int").alias("n"), F.rank().over(Window.partitionBy("k").orderBy("t")).cast("int").alias("r"), F.lag("t").over(w).alias("lag"), F.lead("x").over(w).alias("lead"))


def last_known(spark: Any) -> DataFrame:
    return events(spark).select("k", "t", "x", F.last("x", ignorenulls=True).over(ordered().rowsBetween(Window.unboundedPreceding, 0)).alias("known"))


def rows_window(spark: Any) -> DataFrame:
    return events(spark).where(F.col("t") < 100).select("k", "t", "x", F.sum("t").over(ordered().rowsBetween(-1, 0)).alias("two"))


def range_window(spark: Any) -> DataFrame:
    df = events(spark).where(F.col("t") < 100).withColumn("us", F.col("t") * 86_400_000_000)
    return df.select("k", "t", "x", F.count(F.lit(1)).over(Window.partitionBy("k").orderBy("us").rangeBetween(-2 * 86_400_000_000, -1)).alias("n"))


def empty_window(spark: Any) -> DataFrame:
    before = ordered().rowsBetween(Window.unboundedPreceding, -1)
    return events(spark).where(F.col("k") == "a").select("t", "x", F.coalesce(F.collect_list("t").over(before), empty("bigint")).alias("before"))


def one_zero(spark: Any) -> DataFrame:
    """The greatest of doubles goes through a struct: where there is a NaN, the embedded engine's own max and min are what came first."""
    df = made(spark, "k string, z double", ("a", 0.0), ("a", -0.0), ("b", NAN), ("b", NAN), ("b", INF)).withColumn("z", F.col("z") + F.lit(0.0))
    return df.groupBy("k").agg(F.count_distinct("z").alias("n"), F.sort_array(F.collect_set("z")).alias("s"), F.max(F.struct("z"))["z"].alias("hi"))


def zero_joins_zero(spark: Any) -> DataFrame:
    left = made(spark, "z double", (-0.0,), (NAN,)).select((F.col("z") + F.lit(0.0)).alias("z"))
    return left.join(made(spark, "z double, n int", (0.0, 1), (NAN, 2)), "z")


def text_order(spark: Any) -> DataFrame:
    df = made(spark, "s string", *((s,) for s in reversed(ORDERED)))
    w = Window.partitionBy(F.lit(1)).orderBy("s")
    return df.select("s", F.row_number().over(w).cast("int").alias("n"))


def text_extremes(spark: Any) -> DataFrame:
    return made(spark, "s string", *((s,) for s in reversed(ORDERED))).agg(F.min("s").alias("lo"), F.max("s").alias("hi"), F.sort_array(F.collect_set("s")).alias("all"), F.count_distinct("s").alias("n"))


def before_1970(spark: Any) -> DataFrame:
    df = made(spark, "t timestamp", *((m,) for m in MOMENTS)).withColumn("us", F.unix_micros("t"))
    return df.select("t", "us", F.expr(SECONDS).alias("s"), F.pmod("us", F.lit(86_400_000_000)).alias("of_day"))


def anti(spark: Any) -> DataFrame:
    return events(spark).join(made(spark, "k string", ("b",), (None,), ("b",)), "k", "left_anti").select("k", "t", "x")


def semi(spark: Any) -> DataFrame:
    return events(spark).join(made(spark, "k string", ("b",), (None,), ("b",)), "k", "left_semi").select("k", "t", "x")


def null_safe(spark: Any) -> DataFrame:
    right = made(spark, "j string, v int", ("b", 1), (None, 2))
    df = events(spark)
    return df.join(right, df["k"].eqNullSafe(right["j"]), "inner").select("k", "t", "v")


def full_outer(spark: Any) -> DataFrame:
    left, right = made(spark, "k string, v int", ("a", 1), (None, 2), ("b", 3)), made(spark, "k string, w int", ("b", 4), (None, 5), ("c", 6))
    return left.join(right, "k", "full_outer").select("k", "v", "w")


def exploded(spark: Any) -> DataFrame:
    df = made(spark, "k string, names names", ("a", ["x", None, "x"]), ("b", []), ("c", None))
    return df.select("k", F.posexplode("names").alias("n", "name")).select("k", F.col("n").cast("int").alias("n"), "name").unionByName(
        df.select(F.explode("names").alias("name"), F.lit(-1).alias("n"), "k"))  # fmt: skip


def inlined(spark: Any) -> DataFrame:
    return structs_sorted(spark).select("k", F.inline("e"))


def pivoted(spark: Any) -> DataFrame:
    return events(spark).where(F.col("t") < 100).groupBy("k").pivot("x", ["p", "q", "r"]).agg(F.sum("t"))


def by_name(spark: Any) -> DataFrame:
    return made(spark, "a string, b int", ("x", 1)).unionByName(made(spark, "b int, a string", (2, "y"), (2, "y")))


def as_of_join(spark: Any) -> DataFrame:
    """The newest price known at each sale, a price of the same instant included: a union and a running last."""
    prices = made(spark, "item string, t bigint, price int", ("i", 1, 10), ("i", 5, 20), ("j", 4, 7)).withColumn("id", F.lit(None).cast("string"))
    sales = made(spark, "item string, t bigint, id string", ("i", 0, "s0"), ("i", 4, "s4"), ("i", 5, "s5"), ("j", 9, "s9")).withColumn("price", F.lit(None).cast("int"))
    w = Window.partitionBy("item").orderBy("t", F.col("id").asc_nulls_first()).rowsBetween(Window.unboundedPreceding, 0)
    return prices.unionByName(sales).withColumn("price", F.last("price", ignorenulls=True).over(w)).where(F.col("id").isNotNull()).select("id", "price")


def doubled(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield pa.RecordBatch.from_pydict({"k": batch["k"], "n": pa.array([None if v is None else v * 2 for v in batch["n"].to_pylist()], pa.int64()), "vector": pa.array([[0.5, -0.0]] * batch.num_rows, pa.list_(pa.float32()))})


def mapped(spark: Any) -> DataFrame:
    return made(spark, "k string, n bigint", ("😀", 2), (None, None)).mapInArrow(lambda batches: doubled(batches), "k string, n bigint, vector array<float>")


FRAMES: list[tuple[int, Callable[[Any], DataFrame], str, list[tuple[Any, ...]]]] = [
    (1, micro_sums, "string decimal128(28,6) int64 int64 int64 decimal128(18,6)", [("a", Decimal("0.299999"), 299_999, 3, -1, Decimal("0.200000")), ("b", None, None, 0, None, None)]),
    (3, overflow, "string int64 decimal128(38,0)", [("a", None, Decimal(2**63)), ("b", MOST - 1, Decimal(MOST - 1))]),
    (6, structs_sorted, "string list<struct<t:int64,x:string>> list<struct<x:string,t:int64>>", [
        ("a", [{"t": 1, "x": None}, {"t": 3, "x": "p"}, {"t": 3, "x": "q"}, {"t": 9, "x": None}], [{"x": "q", "t": 3}, {"x": "p", "t": 3}, {"x": None, "t": 9}, {"x": None, "t": 1}]),
        ("b", [{"t": -5, "x": "r"}, {"t": MOST, "x": None}], [{"x": "r", "t": -5}, {"x": None, "t": MOST}])]),
    (6, greatest_by_rank, "string int64 string", [("a", 3, "q"), ("b", -5, "r"), (None, 2, "s")]),
    (19, ranks, "string int64 string int32 int32 int64 string", [("a", 1, None, 1, 1, None, "p"), ("a", 3, "p", 2, 2, 1, "q"), ("a", 3, "q", 3, 2, 3, None), ("a", 9, None, 4, 4, 3, None), ("b", -5, "r", 1, 1, None, None), ("b", MOST, None, 2, 2, -5, None), (None, 2, "s", 1, 1, None, None)]),
    (19, last_known, "string int64 string string", [("a", 1, None, None), ("a", 3, "p", "p"), ("a", 3, "q", "q"), ("a", 9, None, "q"), ("b", -5, "r", "r"), ("b", MOST, None, "r"), (None, 2, "s", "s")]),
    (19, rows_window, "string int64 string int64", [("a", 1, None, 1), ("a", 3, "p", 4), ("a", 3, "q", 6), ("a", 9, None, 12), ("b", -5, "r", -5), (None, 2, "s", 2)]),
    (19, range_window, "string int64 string int64", [("a", 1, None, 0), ("a", 3, "p", 1), ("a", 3, "q", 1), ("a", 9, None, 0), ("b", -5, "r", 0), (None, 2, "s", 0)]),
    (7, empty_window, "int64 string list<int64>", [(1, None, []), (3, "p", [1]), (3, "q", [1, 3]), (9, None, [1, 3, 3])]),
    (8, one_zero, "string int64 list<double> double", [("a", 1, [0.0], 0.0), ("b", 2, [INF, NAN], NAN)]),
    (8, zero_joins_zero, "double int32", [(0.0, 1), (NAN, 2)]),
    (19, text_order, "string int32", [(s, n) for n, s in enumerate(ORDERED, 1)]),
    (19, text_extremes, "string string list<string> int64", [("", "\U0010ffff", ORDERED, len(ORDERED))]),
    (9, before_1970, "timestamp[us,tz=UTC] int64 int64 int64", [
        (MOMENTS[0], -1_500_000, -2, 86_398_500_000), (MOMENTS[1], -1, -1, 86_399_999_999), (MOMENTS[2], 0, 0, 0), (MOMENTS[3], 1, 0, 1), (MOMENTS[4], -2_208_988_800_000_000, -2_208_988_800, 0),
        (MOMENTS[5], 1_772_341_200_123_456, 1_772_341_200, 18_000_123_456)]),
    (7, anti, "string int64 string", [("a", 1, None), ("a", 3, "p"), ("a", 3, "q"), ("a", 9, None), (None, 2, "s")]),
    (7, semi, "string int64 string", [("b", -5, "r"), ("b", MOST, None)]),
    (7, null_safe, "string int64 int32", [("b", -5, 1), ("b", MOST, 1), (None, 2, 2)]),
    (7, full_outer, "string int32 int32", [("a", 1, None), ("b", 3, 4), ("c", None, 6), (None, 2, None), (None, None, 5)]),
    (15, exploded, "string int32 string", [("a", 0, "x"), ("a", 1, None), ("a", 2, "x"), ("a", -1, "x"), ("a", -1, None), ("a", -1, "x")]),
    (15, inlined, "string int64 string", [("a", 1, None), ("a", 3, "p"), ("a", 3, "q"), ("a", 9, None), ("b", -5, "r"), ("b", MOST, None)]),
    (15, pivoted, "string int64 int64 int64", [("a", 3, 3, None), ("b", None, None, -5), (None, None, None, None)]),
    (15, by_name, "string int32", [("x", 1), ("y", 2), ("y", 2)]),
    (19, as_of_join, "string int32", [("s0", None), ("s4", 10), ("s5", 20), ("s9", 7)]),
    (20, mapped, "string int64 list<float>", [("😀", 4, [0.5, -0.0]), (None, None, [0.5, -0.0])]),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "frame", "types", "rows"), FRAMES, ids=[f"rule {r}: {f.__name__}" for r, f, *_ in FRAMES])
def test_a_frame_of_the_portable_subset_has_the_rows_and_types_written_here(spark: Any, rule: int, frame: Callable[[Any], DataFrame], types: str, rows: list[tuple[Any, ...]]) -> None:
    table = frame(spark).toArrow()
    assert 1 <= rule <= 21
    assert sorted(exact(table.to_pylist())) == sorted(exact(rows))
    assert [k.replace(": ", ":").replace(", ", ",") for k in kinds(table)] == types.split()


def test_a_value_with_quotes_goes_in_by_lit_and_comes_out_unchanged(spark: Any) -> None:
    table = made(spark, "s string", *((q,) for q in QUOTES))
    for quote in QUOTES:
        found = table.where(F.col("s") == F.lit(quote)).select("s", F.lit(quote).alias("l"), F.concat(F.lit(quote), F.col("s")).alias("c"))
        assert found.toArrow().to_pylist() == [{"s": quote, "l": quote, "c": quote * 2}]


@pytest.mark.parametrize("name", schema.TABLES)
def test_every_column_of_a_table_has_a_cast_that_both_engines_make_from_a_null_and_from_arrow(spark: Any, name: str) -> None:
    t = schema.table(name)
    nulls = spark.range(1).select([F.lit(None).cast(c.type.lower()).alias(c.name) for c in t.columns]).toArrow()
    assert [str(_plain(f.type)) for f in nulls.schema] == [str(_plain(f.type)) for f in t.arrow]
    assert nulls.to_pylist() == [dict.fromkeys(t.arrow.names)]


def test_a_table_read_at_a_version_is_as_it_was_then(spark: Any, tmp_path: Path) -> None:
    lake, name = Lake(tmp_path / "lake"), "silver.users"
    lake.create(name)
    first = lake.version(name)
    for n in range(2):
        row = {"user_id": f"u{n}", "available_at": MOMENTS[n], "withdrawn_at": None, "attributes": "{}", "source": "s", "row_hash": f"h{n}"}
        rows = spark.createDataFrame(pa.Table.from_pylist([row], schema=schema.table(name).arrow))
        commit.write(lake, name, rows, run_id=f"r{n}", pinned=commit.fence(lake, name))
    for n in range(3):
        assert sorted(lake.frame(spark, name, first + n).toArrow()["user_id"].to_pylist()) == ["u0", "u1"][:n]
        load = spark.read.format("delta").option("versionAsOf", first + n).load(str(lake.path(name)))
        assert sorted(load.toArrow()["user_id"].to_pylist()) == ["u0", "u1"][:n]


def test_no_aggregate_that_the_engine_makes_is_a_floating_point_number() -> None:
    """A sum of doubles depends on the order of its parts, which no engine promises."""
    for name in ("gold.user_sequences", "gold.item_features"):
        floating = [c.name for c in schema.table(name).columns if any(k in c.type for k in ("DOUBLE", "FLOAT", "DECIMAL"))]
        counted = [c.type for c in schema.table(name).columns if c.type not in ("STRING", "DATE", "ARRAY<STRING>")]
        assert floating == []
        assert set(counted) <= {"BIGINT", "INT", "ARRAY<BIGINT>"}
        assert len(counted) >= 6
    # elsewhere a double is a source's own number, carried over, or made in numpy, outside of any engine
    made_by = {t.step for t in schema.TABLES.values() for c in t.columns if "DOUBLE" in c.type or "FLOAT" in c.type}
    assert "features" not in made_by
    assert {f"{t.name}.{c.name}" for t in schema.TABLES.values() if t.step == "validate" for c in t.columns if c.type == "DOUBLE"} == {"silver.interactions.weight", "silver.impressions.propensity"}

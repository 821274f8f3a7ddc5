"""Each thing that two engines do not agree on is planted and found, at its line, under its rule; the product has none."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.lint import portable

HEAD = "from pyspark.sql import functions as F\n"
BANNED = tomllib.loads((portable.ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
FUNCTIONS = sorted(n.rsplit(".", 1)[1] for n in BANNED if n.startswith("pyspark.sql.functions."))
MODULES = sorted(n for n in BANNED if not n.startswith("pyspark.sql.functions."))

PLANTED = [
    (1, 'df.groupBy("k").avg("x")'), (1, "df.describe()"), (1, 'F.expr("avg(x)")'), (1, 'F.expr("STDDEV (x)")'), (1, 'df.agg(F.expr("sum(x)"), F.expr("mean(x)"))'),
    (2, 'df.selectExpr("k", "exp(x) as e")'), (2, 'df.where("log10(x) > 1")'), (5, 'df.filter("round(x, 2) = 1")'), (6, 'F.expr("array_sort(xs)")'), (6, 'spark.sql("select max_by(a, b) from t")'),
    (9, 'F.expr("unix_seconds(ts)")'), (12, r'F.col("a").rlike(r"^\d+$")'), (12, r'F.col("a").rlike("\\w")'), (12, r'F.regexp_replace("a", r"(?<=x)y", "")'), (12, r'F.regexp_extract("a", r"(a)\1", 1)'),
    (12, r'P = r"\s+"; F.split(F.col("a"), P)'), (12, r'N = r"\d"; P = f"^{N}"; F.col("a").rlike(P)'), (12, 'F.split(F.col("a"), "")'), (13, 'F.expr("hash(a, b)")'),
    (14, 'F.expr(f"name = \'{value}\'")'), (14, 'df.where(f"x > {limit}")'), (14, 'spark.sql("select * from t where a = " + value)'), (14, 'F.expr("a = %s" % value)'), (14, "F.expr(\"a = 'it''s'\")"),
    (14, 'spark.sql("select :a", args={"a": 1})'), (14, 'spark.sql("select ?", [1])'), (14, 'spark.sql("select * from {df}", df=df)'),
    (15, "df.rdd.map(len)"), (15, "spark.sparkContext.parallelize([1])"), (15, "spark._jvm.java"), (15, "df._jdf"), (15, 'df.approxQuantile("x", [0.5], 0.0)'), (15, "df.localCheckpoint()"), (15, 'df.observe("n", F.count("x"))'),
    (15, 'df.freqItems(["x"])'), (15, 'df.crosstab("a", "b")'), (15, 'F.expr("zip_with(a, b, (x, y) -> x)")'), (15, 'F.expr("extract(dow from d)")'), (15, 'spark.sql("select 1 qualify true")'), (15, 'spark.sql("from t |> select a")'),
    (15, 'spark.read.option("mergeSchema", True)'), (15, "df.write.options(mergeSchema=True)"), (15, 'F.expr("a collate UTF8_LCASE")'),
    (16, 'df.write.mode("overwrite").save("t")'), (16, 'df.write.save("t", mode="overwrite")'), (16, 'df.write.option("replaceWhere", "a")'), (16, 'spark.conf.set("partitionOverwriteMode", "dynamic")'),
    (17, 'spark.read.csv("a")'), (17, 'spark.read.schema("a int").format("json").load("a")'), (17, 'spark.read.text("a")'), (18, 'spark.read.parquet("a")'), (18, 'spark.read.schema("a int").parquet("a")'),
    (19, "df.sample(0.1)"), (19, "df.randomSplit([1.0, 1.0])"), (19, 'df.dropDuplicates(["k"])'), (19, 'df.agg(F.collect_list("x"))'), (19, 'df.agg(F.array_join(F.collect_set("x"), ","))'), (19, 'df.agg(F.first("x"))'), (19, 'F.expr("rand()")'),
    (20, "df.toPandas()"), (20, "df.collect()"), (20, "rows = list(df.toLocalIterator())"), (20, "handle.to_pyarrow_table()"), (21, 'F.col("a").try_cast("date")'),
]  # fmt: skip
CLEAN = [
    'F.sort_array(F.collect_set("x"))', 'F.collect_list("x").over(w)', 'F.last("x", True).over(w)', 'F.expr(f"age_us div {_DAY}")', 'F.expr("xxhash64(a) div 2")', "df.where(\"a <> ''\")",
    'F.col("a").rlike(r"^[0-9]+[.]\\\\d")', 'F.split(F.col("a"), ",")', "df.toArrow()", 'df.write.format("delta").mode("error").save("t")', "df.dropDuplicates()", "df.distinct()", 'df.where((F.col("a") + "x") == "y")',
    'F.col("a").try_cast("timestamp").cast("date")', 'spark.sql("select 1")', 'spark.read.format("delta").option("versionAsOf", 3).load("t")', 'F.sum("n")', 'F.from_json("a", "array<string>")', '", ".join(f"{c} x" for c in df.columns)',
]  # fmt: skip


@pytest.mark.parametrize(("rule", "code"), PLANTED, ids=[c for _, c in PLANTED])
def test_what_the_engines_do_differently_is_found_with_its_file_line_and_rule(rule: int, code: str) -> None:
    found = portable.check(f"{HEAD}\n\n{code}\n", "mmrec/night.py")
    assert {(f.file, f.line, f.rule) for f in found} == {("mmrec/night.py", 4, rule)}, found
    assert str(found[0]).startswith(f"mmrec/night.py:4: rule {rule}: ")
    assert "; portable: " in str(found[0])


@pytest.mark.parametrize("code", CLEAN)
def test_the_portable_way_is_let_through(code: str) -> None:
    assert portable.check(f"{HEAD}{code}\n", "mmrec/features/asof.py") == []


@pytest.mark.parametrize(("head", "line", "file", "n"), [
    ("import numpy as np", "np.mean(x); x.sample(3); x.first()", "mmrec/metrics.py", 0),
    ("from mmrec.lake.session import session", "rows.collect()", "mmrec/night.py", 1),
    ("from mmrec.lake.session import stop", "self.summary()", "mmrec/cli/nights.py", 0),
    ("if TYPE_CHECKING:\n    from pyspark.sql import DataFrame", "rows.collect()", "mmrec/steps.py", 1),
    ("", "rows.collect()", "mmrec/features/new.py", 1),
    ("import pyarrow", "table.to_pandas()", "mmrec/metrics.py", 0),
    ("from deltalake import DeltaTable", "DeltaTable(p).to_pandas()", "mmrec/verify.py", 1),
    ("", "DeltaTable(p).to_pyarrow_table()", "mmrec/metrics.py", 1),
    ("from deltalake import write_deltalake", 'write_deltalake(p, rows, mode="overwrite")', "mmrec/night.py", 1),
    ("from deltalake import write_deltalake", 'write_deltalake(p, rows, mode="overwrite")', "mmrec/lake/commit.py", 0),
    ("from pyspark.sql import SparkSession", "spark.read.schema(ddl).parquet(*files)", "mmrec/lake/store.py", 0),
], ids=lambda v: str(v)[:30])  # fmt: skip
def test_it_looks_where_an_engine_is_in_reach_and_nowhere_else(head: str, line: str, file: str, n: int) -> None:
    assert len(portable.check(f"{head}\n{line}\n", file)) == n


def test_the_product_keeps_the_portable_subset() -> None:
    assert portable.tree() == []
    assert {p for p in portable.FOLDERS if not (portable.ROOT / p).is_dir()} == set()


def test_a_planted_file_ends_the_command_with_an_error_that_names_it(tmp_path: Path) -> None:
    bad = tmp_path / "mmrec" / "features" / "bad.py"
    bad.parent.mkdir(parents=True)
    bad.write_text("def f(df):\n    return df.toPandas()\n")
    assert [str(f).split("; ")[0] for f in portable.tree(tmp_path)] == ["mmrec/features/bad.py:2: rule 20: .toPandas"]
    done = subprocess.run([sys.executable, "-m", "tests.lint.portable"], capture_output=True, text=True, cwd=portable.ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def ruff(tmp_path: Path, text: str) -> dict[int, str]:
    """TID251's findings in `text`: line -> message."""
    file = tmp_path / "planted.py"
    file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", str(portable.ROOT / "pyproject.toml"), "--select", "TID251", "--output-format", "json", "--no-cache", str(file)],
        capture_output=True, text=True,
    )  # fmt: skip
    return {f["location"]["row"]: f["message"] for f in json.loads(done.stdout)}


@pytest.mark.parametrize(("imported", "call"), [
    ("from pyspark.sql import functions as F", "F.{}(x)"), ("import pyspark.sql.functions as fn", "fn.{}(x)"), ("import pyspark", "pyspark.sql.functions.{}(x)"),
])  # fmt: skip
def test_ruff_finds_every_banned_function_through_any_alias_and_says_the_rule(tmp_path: Path, imported: str, call: str) -> None:
    found = ruff(tmp_path, "\n".join([imported, *(call.format(name) for name in FUNCTIONS), call.format("sort_array")]) + "\n")
    assert sorted(found) == list(range(2, 2 + len(FUNCTIONS)))
    for line, name in enumerate(FUNCTIONS, 2):
        assert f"pyspark.sql.functions.{name}" in found[line]
        assert ": rule " in found[line]


def test_ruff_finds_a_banned_function_imported_by_name_and_every_banned_module(tmp_path: Path) -> None:
    lines = ["from pyspark.sql.functions import array_sort as tidy", "from delta.tables import DeltaTable", "import delta",
             *(f"from {m.rsplit('.', 1)[0]} import {m.rsplit('.', 1)[1]}" for m in MODULES if "." in m)]  # fmt: skip
    assert sorted(ruff(tmp_path, "\n".join(lines) + "\n")) == list(range(1, len(lines) + 1))


def test_every_banned_name_is_one_that_pyspark_has_so_that_none_is_misspelt() -> None:
    from pyspark.sql import functions

    assert [n for n in FUNCTIONS if not hasattr(functions, n)] == []
    assert len(FUNCTIONS) > 60
    assert set(portable.banned()) == set(FUNCTIONS)
    for name in ("sort_array", "sum", "count", "sha2", "xxhash64", "floor", "unix_micros", "from_json", "row_number", "lag", "last"):
        assert name not in FUNCTIONS

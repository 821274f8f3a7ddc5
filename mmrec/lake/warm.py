"""A small job that touches the classes a night needs: run once, to write the class archive.

In: Java options as one word. Out: nothing but what those options make the JVM write when it ends.
Trade-off: a class that only a night loads is not in the archive and is loaded as usual; nothing depends on it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main(java_options: str) -> None:
    """Write, read at a version, window, join and collect a few rows."""
    from pyspark.sql import SparkSession, Window
    from pyspark.sql import functions as F

    from mmrec.config import SparkConfig
    from mmrec.lake import jvm

    builder = SparkSession.builder.appName("mmrec warm")
    conf = jvm.settings(SparkConfig(master="local[2]"), quick=False)
    for key, value in conf.items():
        builder = builder.config(key, value)
    options = f"{conf['spark.driver.extraJavaOptions']} {java_options}"
    spark = builder.config("spark.driver.extraJavaOptions", options).getOrCreate()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "t")
        rows = spark.range(100).select(
            F.col("id").cast("string").alias("k"), (F.col("id") % 7).alias("g"),
            F.lit("2026-01-01").cast("date").alias("d"),
            F.lit("2026-01-01T00:00:00Z").try_cast("timestamp").alias("at"), F.array(F.lit("a")).alias("names"),
            F.sha2(F.col("id").cast("string"), 256).alias("h"), (F.col("id") * 1.5).alias("x"),
        )  # fmt: skip
        rows.write.format("delta").partitionBy("d").mode("error").save(path)
        back = spark.read.format("delta").option("versionAsOf", 0).load(path)
        order = Window.partitionBy("g").orderBy(F.col("at").desc(), F.col("k").desc())
        ranked = back.withColumn("n", F.row_number().over(order)).withColumn("before", F.lag("x").over(order))
        lists = ranked.where(F.col("n") <= 3).groupBy("g").agg(
            F.sort_array(F.collect_list(F.struct("n", "k"))).alias("e"), F.count(F.lit(1)).alias("c"))  # fmt: skip
        joined = back.join(lists, "g", "full_outer").join(back.select("k").where("k = '1'"), "k", "left_anti")
        joined.select("k", "e.k", F.coalesce(F.col("c"), F.lit(0))).toArrow()
        arrow = back.select("k", "x").toArrow()
        spark.createDataFrame(arrow).repartition(2).mapInArrow(lambda batches: batches, "k string, x double").toArrow()
        joined.select("g", "c", F.col("e.k").alias("ks")).write.format("delta").mode("error").save(path + "2")
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1])

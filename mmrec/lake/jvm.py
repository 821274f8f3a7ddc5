"""How a Spark session is started, and the class archive that halves a cold start.

In: the settings of `[spark]`. Out: Spark's own settings. The archive (class-data sharing, JEP 350) holds the classes of
a small Delta job parsed and laid out, so that a start maps them instead of loading them one by one; with it, local
sessions compile with the first tier alone (`-XX:TieredStopAtLevel=1`). It is made once and kept in the user's cache.
Trade-off: the first tier's code is slower in the long run; `quick_start = false` is for runs of hours.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from platformdirs import user_cache_path

from mmrec.config import SparkConfig
from mmrec.errors import TransientError
from mmrec.lake.jars import jars, once, shipped
from mmrec.lake.java import QUICK, STDERR, about, environment, java, submit


def settings(spark: SparkConfig, quick: bool | None = None) -> dict[str, str]:
    """What a classic session is started with; for a local master that includes the archive.

    Args:
        quick: overrides `spark.quick_start`.
    """
    plain = spark_sql(spark) | {
        "spark.master": spark.master,
        "spark.driver.memory": spark.memory,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    paths = jars(spark)
    words = [STDERR, f"-Dlog4j2.configurationFile={Path(__file__).with_name('log4j2.properties').as_uri()}"]
    if not spark.master.startswith("local"):
        sent = shipped(spark)
        plain |= {"spark.jars": sent["jars"], "spark.submit.pyFiles": sent["py_files"]}
        plain |= {"spark.files": sent["files"]} if sent["files"] else {}
        return plain | {"spark.driver.extraJavaOptions": " ".join(words)} | spark.options
    # on the driver's class path, not in spark.jars: only those classes can come from the archive
    plain["spark.driver.extraClassPath"] = os.pathsep.join(map(str, paths))
    plain |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    if spark.quick_start if quick is None else quick:
        words += [QUICK, f"-XX:SharedArchiveFile={archive(spark)}"]
    return plain | {"spark.driver.extraJavaOptions": " ".join(words)} | spark.options


def spark_sql(spark: SparkConfig) -> dict[str, str]:
    """Settings that any Spark needs to give the rows of the other engine, and to write Delta."""
    return {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": str(spark.partitions),
        # a user's last thousand events are picked before rows are moved; the default stops at ranks of 1000
        "spark.sql.optimizer.windowGroupLimitThreshold": "1000000",
        "spark.databricks.delta.snapshotPartitions": "2",
        # a partition column is in the log alone, as the other engine and delta-rs have it
        "spark.databricks.delta.properties.defaults.writePartitionColumnsToParquet": "false",
        "spark.driver.memory": spark.memory,
        "spark.ui.enabled": "false",
        # where a column was made in Python, for messages that nobody reads at night: as much again as making it
        "spark.python.sql.dataFrameDebugging.enabled": "false",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.ui.showConsoleProgress": "false",
    }


def archive(spark: SparkConfig, make: bool = True) -> Path:
    """The class archive for this Java, this Spark and these jars; made on the first call (some 20 s, 190 MB).

    Args:
        make: False: only look whether it is there.

    Raises: TransientError: it could not be made, or may not.
    """
    home, paths = java(install=make), jars(spark, make)
    parts = [about(home), version("pyspark"), str(submit()), QUICK, *map(str, paths)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    target = user_cache_path("mmrec") / "archives" / f"{key}.jsa"
    with once(target):
        if not target.is_file() and not make:
            raise TransientError("no class archive yet", where=str(target.parent), next="mmrec doctor --install")
        if not target.is_file():
            part = target.with_name(f"{target.name}.{uuid4().hex[:8]}.part")
            words = f"{QUICK} -XX:ArchiveClassesAtExit={part} -Xlog:cds=off -Xlog:cds+dynamic=off"
            try:
                done = subprocess.run([sys.executable, "-m", "mmrec.lake.warm", words], env=environment(),
                                      capture_output=True, text=True)  # fmt: skip
                if done.returncode or not part.is_file():
                    raise TransientError(
                        "the class archive could not be made",
                        where=str(target.parent),
                        value=(done.stderr or done.stdout).strip()[-800:],
                        valid="a cache folder with 200 MB free",
                        next="set quick_start = false in [spark]",
                    )
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
    return target

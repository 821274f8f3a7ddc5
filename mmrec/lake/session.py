"""The engine that computes: one session a process, started on first use.

In: the engine's name and `[spark]` from config. Out: a SparkSession with UTC, ANSI and the same settings on either
engine.
Trade-off: `local` runs Sail inside this process (2.6 s to start, no JVM) and shares its memory; a server
process of its own would isolate a crash and cost another second. A process has one engine: the client of one and
the classic API of the other switch PySpark as a whole.
"""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING, Any

from mmrec.config import SparkConfig
from mmrec.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ENGINES = ("local", "spark")

_IDLE_S = 365 * 86_400  # a session forgotten while a model trains would end the night; the server ends with its process

_open: dict[str, tuple[Any, SparkSession]] = {}


def session(engine: str = "local", spark: SparkConfig | None = None) -> SparkSession:
    """The process's session of `engine`; starts it on the first call.

    Args:
        spark: how engine spark is started; under spark-submit, what that was given goes before it.

    Raises:
        InputError: an engine that is not one of `ENGINES`, or another than this process runs; no Java for spark.
    """
    if engine not in ENGINES:
        raise InputError("no such engine", where="config: engine", value=engine, valid=ENGINES, next="edit mmrec.toml")
    if _open.keys() - {engine}:
        raise InputError("this process computes with another engine already", where="engine", value=engine,
                         valid=list(_open), next="start another process")  # fmt: skip
    if engine not in _open:
        _open[engine] = _sail() if engine == "local" else _spark(spark or SparkConfig())
        atexit.register(stop, engine)
    return _open[engine][1]


def stop(engine: str = "local") -> None:
    """End the session of `engine`, if one runs: the session first, the server after (the reverse order hangs)."""
    if engine in _open:
        server, spark = _open.pop(engine)
        spark.stop()
        if server is not None:
            server.stop()


def _sail() -> tuple[Any, SparkSession]:
    os.environ.setdefault("RUST_LOG", "error")  # the server logs every session at INFO
    os.environ.setdefault("SAIL_SPARK__SESSION_TIMEOUT_SECS", str(_IDLE_S))  # its own default is 20 minutes
    from pysail.spark import SparkConnectServer
    from pyspark.sql import SparkSession

    server = SparkConnectServer("127.0.0.1", 0)
    server.start(background=True)
    host, port = server.listening_address or ("127.0.0.1", 0)
    spark = SparkSession.builder.remote(f"sc://{host}:{port}").getOrCreate()
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    spark.conf.set("spark.sql.shuffle.partitions", "2")
    return server, spark


def _spark(spark: SparkConfig) -> tuple[Any, SparkSession]:
    from pyspark.sql import SparkSession

    from mmrec.lake import jvm
    from mmrec.lake.java import CONNECT, environment

    if spark.master.startswith("sc://"):
        remote = SparkSession.builder.remote(spark.master).getOrCreate()
        remote.conf.set("spark.sql.session.timeZone", "UTC")
        return None, remote
    for name in CONNECT:
        os.environ.pop(name, None)
    builder = SparkSession.builder.appName("mmrec")
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # the JVM runs already, with a master and jars
    if not submitted:
        os.environ.update(environment(spark.quick_start))
    for key, value in (jvm.spark_sql(spark) if submitted else jvm.settings(spark)).items():
        builder = builder.config(key, value)
    return None, builder.getOrCreate()

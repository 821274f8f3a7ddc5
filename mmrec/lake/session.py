"""The engine that computes: one session a process, started on first use.

In: the engine's name from config. Out: a SparkSession with UTC, ANSI and the same settings on either engine.
Trade-off: `local` runs Sail inside this process (2.6 s to start, no JVM) and shares its memory; a server
process of its own would isolate a crash and cost another second.
"""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING

from mmrec.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ENGINES = ("local",)

_open: dict[str, tuple[object, SparkSession]] = {}


def session(engine: str = "local") -> SparkSession:
    """The process's session of `engine`; starts it on the first call.

    Raises:
        InputError: an engine that is not one of `ENGINES`.
    """
    if engine not in ENGINES:
        raise InputError("no such engine", where="config: engine", value=engine, valid=ENGINES, next="edit mmrec.toml")
    if engine not in _open:
        os.environ.setdefault("RUST_LOG", "error")  # the server logs every session at INFO
        from pysail.spark import SparkConnectServer
        from pyspark.sql import SparkSession

        server = SparkConnectServer("127.0.0.1", 0)
        server.start(background=True)
        host, port = server.listening_address or ("127.0.0.1", 0)
        spark = SparkSession.builder.remote(f"sc://{host}:{port}").getOrCreate()
        spark.conf.set("spark.sql.session.timeZone", "UTC")
        spark.conf.set("spark.sql.shuffle.partitions", "2")
        _open[engine] = (server, spark)
        atexit.register(stop, engine)
    return _open[engine][1]


def stop(engine: str = "local") -> None:
    """End the session of `engine`, if one runs: the session first, the server after (the reverse order hangs)."""
    if engine in _open:
        server, spark = _open.pop(engine)
        spark.stop()
        server.stop()  # type: ignore[attr-defined]

"""`mmrec doctor`: what is missing on this machine for a home and an engine, and how to get it.

In: a home (which need not exist) and an engine. Out: one finding a requirement: what, what it is for, whether it is
needed here, whether it is there, what was found, the command that gets it.
Trade-off: it looks, and with `install` it gets what mmrec itself can get; it never changes a setting.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from mmrec import config as settings
from mmrec.errors import MmrecError
from mmrec.lake.jars import jars
from mmrec.lake.java import java
from mmrec.lake.jvm import archive

_DISK_GB, _MEMORY_GB = 5, 4


def examine(home: Path, engine: str | None = None, *, install: bool = False) -> list[dict[str, Any]]:
    """Findings with the keys what, for, needed, ok, found, get.

    Args:
        engine: None: the home's own; what only the other engine or Airflow needs is reported, not demanded.
        install: get Java (as root on a Debian), Delta's jars and the class archive where they are missing.
    """
    there = (home / "mmrec.toml").is_file()
    config = settings.load(home, engine=engine)
    # a server that is spoken to over Spark Connect has its own Java and jars
    spark = config.engine == "spark" and not config.spark.master.startswith("sc://")
    local = config.spark.master.startswith("local")
    cuda = config.device == "cuda"
    found: list[dict[str, Any]] = []

    def look(what: str, why: str, needed: bool, get: str, look_up: Callable[[], Any]) -> None:
        try:
            value, ok = look_up(), True
        except (MmrecError, PackageNotFoundError, OSError, ImportError) as error:
            value, ok = (error.what if isinstance(error, MmrecError) else str(error) or type(error).__name__), False
        found.append({"what": what, "for": why, "needed": needed, "ok": ok, "found": value, "get": get})

    look("Python 3.11", "everything", True, "python3.11 -m venv .venv", _python)
    look("home", "everything but init", True, f"mmrec init --home {home}",
         lambda: _demand(there, home.absolute(), f"{home} is no home"))  # fmt: skip
    look(
        f"{_DISK_GB} GB of disk", "tables, archives, models", True, "free some, or another --home", lambda: _disk(home)
    )
    look(f"{_MEMORY_GB} GB of memory", "encoders, training", True, "a larger machine", _memory)
    look("Java 17 or 21", "engine spark", spark, "apt-get install openjdk-17-jre-headless, or set JAVA_HOME",
         lambda: java(install=install))  # fmt: skip
    look("delta-spark", "engine spark", spark, "pip install 'mmrec[cluster]'", lambda: version("delta-spark"))
    look("Delta's jars", "engine spark", spark, "mmrec doctor --install, with a way to Maven's central repository",
         lambda: jars(config.spark, make=install)[0].parent)  # fmt: skip
    look("class archive", "a start of engine spark in half the time", False, "mmrec doctor --install (20 s, 190 MB)",
         lambda: archive(config.spark, make=install and local))  # fmt: skip
    look("Airflow", "scheduled nights", False, "pip install 'mmrec[cluster]'", lambda: version("apache-airflow"))
    look("compiled kernel", "exact top K in a fraction of the time", False,
         "a C compiler, then pip install mmrec again, on a processor with AVX-512 and VNNI", _kernel)  # fmt: skip
    look("CUDA", "device cuda", cuda, 'pip install "onnxruntime-gpu[cuda,cudnn]", or device = "cpu"', _cuda)
    return found


def _demand(ok: Any, value: Any, otherwise: str) -> Any:
    if not ok:
        raise OSError(otherwise)
    return str(value)


def _python() -> str:
    return _demand(sys.version_info[:2] == (3, 11), platform.python_version(), f"Python {platform.python_version()}")


def _disk(home: Path) -> str:
    place = next(p for p in (home.absolute(), *home.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free / 1e9
    return _demand(free >= _DISK_GB, f"{free:.0f} GB free", f"{free:.1f} GB free at {place}")


def _memory() -> str:
    total = psutil.virtual_memory().total / 1e9
    return _demand(total >= _MEMORY_GB, f"{total:.0f} GB", f"{total:.1f} GB")


def _kernel() -> str:
    from mmrec.topk import native

    return _demand(native.available(), "AVX-512, VNNI", "not built, or not for this processor: numba does it")


def _cuda() -> str:
    _demand(shutil.which("nvidia-smi"), "", "no NVIDIA driver on this machine")
    import numpy as np

    from mmrec.topk.graph import Tiles

    # a provider is listed where its libraries are missing, too: only a session shows
    Tiles(np.zeros((1, 1), np.float32), "cuda")
    return "CUDAExecutionProvider"

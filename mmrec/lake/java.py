"""Java and the surroundings of a process that starts Spark.

In: the machine as it is. Out: the folder of a Java that Spark runs on, and environments with it.
Trade-off: where there is no Java and this is root on a Debian, one is installed without asking; anywhere else a person
is told what to type.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from mmrec.errors import InputError

JAVA = (17, 21)  # what Spark 4.2 runs on
SYSTEM = Path("/usr/lib/jvm")  # where a Debian keeps its Javas
# for processes that live for minutes; with the first tier alone the code cache has 48 MB, full after two nights, and
# from then on nothing is compiled
QUICK = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC"
# a JVM warns on stdout, where programs read JSON
STDERR = "-Xlog:disable -Xlog:all=warning:stderr -XX:+DisplayVMOutputToStderr"

# what a shell, or a parent that computes with the other engine, leaves: a classic session would look for a server
CONNECT = ("SPARK_CONNECT_MODE_ENABLED", "SPARK_REMOTE", "SPARK_LOCAL_REMOTE", "SPARK_API_MODE")


def java(install: bool = True) -> Path:
    """The folder of a Java that Spark runs on: JAVA_HOME's, the path's, or one of /usr/lib/jvm.

    Args:
        install: get one with apt where there is none and this is root on a Debian.

    Raises: InputError: there is none; it says how to get one.
    """
    tried: dict[str, str] = {}
    on_path = shutil.which("java")
    homes = [os.environ.get("JAVA_HOME"), Path(on_path).resolve().parents[1] if on_path else None]
    asked = [Path(h) for h in homes if h]
    for home in asked + sorted(SYSTEM.glob("*")):
        if str(home) not in tried and (home / "bin" / "java").is_file():
            found = _release(home)
            if found in JAVA:
                return home
            tried[str(home)] = f"Java {found}" if found else "a java that does not say its version"
        elif home in asked:
            tried.setdefault(str(home), "no bin/java")
    if install and os.access("/", os.W_OK) and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
        subprocess.run(["apt-get", "update"], **quiet)  # type: ignore[call-overload]
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", "openjdk-17-jre-headless"],
                       env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, **quiet)  # type: ignore[call-overload]  # fmt: skip
        return java(install=False)
    raise InputError(
        "engine spark needs a Java that Spark runs on, and there is none",
        where="JAVA_HOME, PATH, /usr/lib/jvm",
        value=tried or "no java",
        valid=[f"Java {n}" for n in JAVA],
        next="apt-get install openjdk-17-jre-headless, or set JAVA_HOME; or --engine local",
    )


def submit() -> Path:
    """Spark's own spark-submit. InputError where SPARK_HOME has none."""
    import pyspark

    home = Path(os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent)
    if not (home / "bin" / "spark-submit").is_file():
        raise InputError("there is no Spark here", where="SPARK_HOME", value=str(home),
                         valid="a folder with bin/spark-submit", next="unset SPARK_HOME")  # fmt: skip
    return home / "bin" / "spark-submit"


def environment(quick: bool = True) -> dict[str, str]:
    """The environment of a process that starts Spark: its Java, its Python, its home.

    Args:
        quick: also for Spark's launcher, a Java that lives for half a second.
    """
    kept = {k: v for k, v in os.environ.items() if k not in CONNECT}
    found = kept | {
        "JAVA_HOME": str(java()),
        "SPARK_HOME": str(submit().parents[1]),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
    }
    return found | ({"SPARK_LAUNCHER_OPTS": QUICK} if quick else {})


def about(home: Path) -> str:
    """What a Java says of itself: its `release` file, else -version; empty where it does not run."""
    if (home / "release").is_file():
        return (home / "release").read_text()
    try:
        return subprocess.run([home / "bin" / "java", "-version"], capture_output=True, text=True).stderr
    except OSError:
        return ""


def _release(home: Path) -> int | None:
    """The feature release of a Java; 8 says that it is 1.8."""
    found = re.search(r'(?:JAVA_VERSION=|version )"(?:1\.)?(\d+)', about(home))
    return int(found[1]) if found else None

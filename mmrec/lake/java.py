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
QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # for processes that live for minutes


def java(install: bool = True) -> Path:
    """The folder of a Java that Spark runs on: JAVA_HOME's, the path's, or one of /usr/lib/jvm.

    Args:
        install: get one with apt where there is none and this is root on a Debian.

    Raises: InputError: there is none; it says how to get one.
    """
    tried: dict[str, str] = {}
    on_path = shutil.which("java")
    homes = [os.environ.get("JAVA_HOME"), Path(on_path).resolve().parents[1] if on_path else None]
    for home in [Path(h) for h in homes if h] + sorted(Path("/usr/lib/jvm").glob("*")):
        if str(home) not in tried and (home / "bin" / "java").is_file():
            found = _release(home)
            if found in JAVA:
                return home
            tried[str(home)] = f"Java {found}"
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
    """Spark's own spark-submit."""
    import pyspark

    home = os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent
    return Path(home) / "bin" / "spark-submit"


def environment(quick: bool = True) -> dict[str, str]:
    """The environment of a process that starts Spark: its Java, its Python, its home.

    Args:
        quick: also for Spark's launcher, a Java that lives for half a second.
    """
    found = os.environ | {
        "JAVA_HOME": str(java()),
        "SPARK_HOME": str(submit().parents[1]),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
    }
    return found | ({"SPARK_LAUNCHER_OPTS": QUICK} if quick else {})


def _release(home: Path) -> int | None:
    """The feature release of a Java, from its `release` file, or as it says itself."""
    about = home / "release"
    text = about.read_text() if about.is_file() else subprocess.run(
        [home / "bin" / "java", "-version"], capture_output=True, text=True).stderr  # fmt: skip
    found = re.search(r'(?:JAVA_VERSION=|version )"(\d+)', text)
    return int(found[1]) if found else None

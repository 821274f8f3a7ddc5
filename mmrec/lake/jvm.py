"""What engine `spark` needs from outside Python: a Java, Delta's jars, and a class archive that halves the cold start.

In: the settings of `[spark]`. Out: paths, and the settings a Spark session is started with.
Jars and the archive are made once and kept in the user's cache folder. The archive (JDK class-data sharing, JEP 350)
holds the classes of a small Delta job parsed and laid out, so that a start maps them instead of loading them one by
one; with it, local sessions compile with the first tier alone (`-XX:TieredStopAtLevel=1`).
Trade-off: the first tier's code is slower in the long run; `quick_start = false` is for runs of hours.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

from filelock import FileLock
from platformdirs import user_cache_path

import mmrec
from mmrec.config import SparkConfig
from mmrec.errors import InputError, TransientError

JAVA = (17, 21)  # what Spark 4.2 runs on
_QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_DELTA = ("io.delta_", "io.unitycatalog_")  # everything else it asks for is in Spark's own folder


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


def jars(spark: SparkConfig) -> list[Path]:
    """Delta's jars, ascending; resolved by Spark's own Ivy on the first call, from Maven's central repository.

    Raises: TransientError: they can't be had now.
    """
    release = ".".join(version("pyspark").split(".")[:2])
    try:
        wanted = f"io.delta:delta-spark_{release}_2.13:{version('delta-spark')}"
    except PackageNotFoundError:
        raise InputError("engine spark needs the package delta-spark", where="this Python", valid="mmrec[cluster]",
                         next="pip install 'mmrec[cluster]', or --engine local") from None  # fmt: skip
    folder = user_cache_path("mmrec") / "jars" / wanted.replace(":", "_")
    with _once(folder):
        if not folder.is_dir():
            part = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.part")
            part.mkdir(parents=True)
            (part / "nothing.py").write_text("")
            strangers = ",".join(f"{g}:*" for g in ("org.*", "com.*", "commons-*", "javax.*", "io.airlift"))
            options = [f"{k}={v}" for k, v in spark.options.items() if k.startswith("spark.jars.")]
            done = subprocess.run(
                [str(submit()), "--packages", wanted, "--exclude-packages", strangers, "--conf",
                 f"spark.jars.ivy={part / 'ivy'}", *(w for o in options for w in ("--conf", o)), part / "nothing.py"],
                env=environment(), capture_output=True, text=True)  # fmt: skip
            found = [p for p in (part / "ivy" / "jars").glob("*.jar") if p.name.startswith(_DELTA)]
            if done.returncode or not found:
                shutil.rmtree(part, ignore_errors=True)
                raise TransientError(
                    "Delta's jars could not be fetched",
                    where="Maven's central repository, or [spark] options spark.jars.ivySettings",
                    value=done.stderr.strip()[-800:],
                    valid=wanted,
                    next="mmrec doctor",
                )
            for p in found:
                p.replace(part / p.name)
            shutil.rmtree(part / "ivy")
            (part / "nothing.py").unlink()
            part.replace(folder)
    return sorted(folder.glob("*.jar"))


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
    log = (Path(__file__).with_name("log4j2.properties")).as_uri()
    if not spark.master.startswith("local"):
        plain |= {"spark.jars": ",".join(map(str, paths)), "spark.submit.pyFiles": str(package())}
        return plain | {"spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={log}"} | spark.options
    # on the driver's class path, not in spark.jars: only those classes can come from the archive
    plain["spark.driver.extraClassPath"] = os.pathsep.join(map(str, paths))
    plain |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    words = [f"-Dlog4j2.configurationFile={log}"]
    if spark.quick_start if quick is None else quick:
        words += [_QUICK, f"-XX:SharedArchiveFile={archive(spark)}"]
    return plain | {"spark.driver.extraJavaOptions": " ".join(words)} | spark.options


def spark_sql(spark: SparkConfig) -> dict[str, str]:
    """Settings that any Spark needs to give the rows of the other engine, and to write Delta."""
    return {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": str(spark.partitions),
        "spark.databricks.delta.snapshotPartitions": "2",
        # a partition column is in the log alone, as the other engine and delta-rs have it
        "spark.databricks.delta.properties.defaults.writePartitionColumnsToParquet": "false",
        "spark.driver.memory": spark.memory,
        "spark.ui.enabled": "false",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.ui.showConsoleProgress": "false",
    }


def archive(spark: SparkConfig) -> Path:
    """The class archive for this Java, this Spark and these jars; made on the first call (some 20 s, 190 MB)."""
    home, paths = java(), jars(spark)
    parts = [(home / "release").read_text(), version("pyspark"), _spark_home(), _QUICK, *map(str, paths)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    target = user_cache_path("mmrec") / "archives" / f"{key}.jsa"
    with _once(target):
        if not target.is_file():
            part = target.with_name(f"{target.name}.{uuid4().hex[:8]}.part")
            words = f"{_QUICK} -XX:ArchiveClassesAtExit={part} -Xlog:cds=off -Xlog:cds+dynamic=off"
            done = subprocess.run([sys.executable, "-m", "mmrec.lake.warm", words], env=environment(),
                                  capture_output=True, text=True)  # fmt: skip
            if done.returncode or not part.is_file():
                part.unlink(missing_ok=True)
                raise TransientError(
                    "the class archive could not be made",
                    where=str(target.parent),
                    value=(done.stderr or done.stdout).strip()[-800:],
                    valid="a cache folder with 200 MB free",
                    next="set quick_start = false in [spark]",
                )
            part.replace(target)
    return target


def package() -> Path:
    """mmrec itself as a zip, for `--py-files`: executors import what the driver runs."""
    root = Path(mmrec.__file__).parent
    if not root.is_dir():  # this process runs from such a zip
        return root.parent
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc")
    digest = hashlib.sha256()
    for p in files:
        digest.update(p.relative_to(root).as_posix().encode() + p.read_bytes())
    target = user_cache_path("mmrec") / "packages" / digest.hexdigest()[:16] / "mmrec.zip"
    with _once(target.parent):
        if not target.is_file():
            target.parent.mkdir()
            part = target.with_suffix(".part")
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as z:
                for p in files:
                    z.write(p, Path("mmrec") / p.relative_to(root))
            part.replace(target)
    return target


def shipped(spark: SparkConfig) -> dict[str, str]:
    """What spark-submit is given beside the job: `jars`, `py_files` and a quiet log, as `conf` words."""
    log = Path(__file__).with_name("log4j2.properties").as_uri()
    return {"jars": ",".join(map(str, jars(spark))), "py_files": str(package()),
            "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={log}"}  # fmt: skip


def submit() -> Path:
    """Spark's own spark-submit."""
    return Path(_spark_home()) / "bin" / "spark-submit"


def environment() -> dict[str, str]:
    """The environment of a process that starts Spark: its Java, its Python, its home."""
    return os.environ | _needed()


def prepare() -> None:
    """Put what `environment` has into this process's own."""
    os.environ.update(_needed())


def _needed() -> dict[str, str]:
    return {
        "JAVA_HOME": str(java()), "SPARK_HOME": _spark_home(), "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable, "SPARK_LAUNCHER_OPTS": _QUICK,
    }  # fmt: skip


def _spark_home() -> str:
    import pyspark

    return os.environ.get("SPARK_HOME") or str(Path(pyspark.__file__).parent)


def _release(home: Path) -> int | None:
    """The feature release of a Java, from its `release` file, or as it says itself."""
    about = home / "release"
    text = about.read_text() if about.is_file() else subprocess.run(
        [home / "bin" / "java", "-version"], capture_output=True, text=True).stderr  # fmt: skip
    found = re.search(r'(?:JAVA_VERSION=|version )"(\d+)', text)
    return int(found[1]) if found else None


def _once(target: Path) -> FileLock:
    target.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(target.with_name(f"{target.name}.lock"))

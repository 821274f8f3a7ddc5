"""What Spark is given that it doesn't have: Delta's jars, and mmrec itself.

In: the settings of `[spark]`. Out: files in the user's cache folder, made once; what spark-submit is given.
Trade-off: jars are resolved by Spark's own Ivy (4 s, once) and kept by the name of what was asked for; a new release of
delta-spark gets a folder of its own and the old one stays.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

from filelock import FileLock
from platformdirs import user_cache_path

import mmrec
from mmrec.config import SparkConfig
from mmrec.errors import InputError, TransientError
from mmrec.lake.java import STDERR, environment, submit

_COMPILED = ".so"
_DELTA = ("io.delta_", "io.unitycatalog_")  # everything else it asks for is in Spark's own folder


def once(target: Path) -> FileLock:
    """The lock under which `target` of the cache folder is made; its folder exists from then on."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(target.with_name(f"{target.name}.lock"))


def jars(spark: SparkConfig, make: bool = True) -> list[Path]:
    """Delta's jars, ascending; resolved by Spark's own Ivy on the first call, from Maven's central repository.

    Args:
        make: False: only look whether they are there.

    Raises: TransientError: they can't be had now, or may not. InputError: delta-spark is not installed.
    """
    release = ".".join(version("pyspark").split(".")[:2])
    try:
        wanted = f"io.delta:delta-spark_{release}_2.13:{version('delta-spark')}"
    except PackageNotFoundError:
        raise InputError("engine spark needs the package delta-spark", where="this Python", valid="mmrec[cluster]",
                         next="pip install 'mmrec[cluster]', or --engine local") from None  # fmt: skip
    folder = user_cache_path("mmrec") / "jars" / wanted.replace(":", "_")
    with once(folder):
        there = any(folder.glob("*.jar"))
        if not there and not make:
            raise TransientError(
                "Delta's jars are not in the cache yet", where=str(folder), next="mmrec doctor --install"
            )
        if not there:
            part = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.part")
            try:
                _fetch(wanted, spark, part)
                part.replace(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return sorted(folder.glob("*.jar"))


def _fetch(wanted: str, spark: SparkConfig, part: Path) -> None:
    """Delta's jars, and nothing else, into the folder `part`."""
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


def package() -> Path:
    """mmrec itself as a zip, for `--py-files`: executors import what the driver runs. No library is loaded from a zip:
    what is compiled lies beside it."""
    root = Path(mmrec.__file__).parent
    if not root.is_dir():  # this process runs from such a zip
        return root.parent
    files = sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".c")
    digest = hashlib.sha256()
    for p in files:
        digest.update(p.relative_to(root).as_posix().encode() + p.read_bytes())
    target = user_cache_path("mmrec") / "packages" / digest.hexdigest()[:16] / "mmrec.zip"
    with once(target.parent):
        if not target.is_file():
            target.parent.mkdir(exist_ok=True)
            part = target.with_suffix(".part")
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as z:
                for p in files:
                    if p.suffix == _COMPILED:
                        shutil.copyfile(p, target.with_name(p.name))
                    else:
                        z.write(p, Path("mmrec") / p.relative_to(root))
            part.replace(target)  # last: where it is, all is
    return target


def shipped(spark: SparkConfig) -> dict[str, str]:
    """What spark-submit is given beside the job: `jars`, `py_files`, `files` and a quiet log, as `conf` words."""
    log, made = Path(__file__).with_name("log4j2.properties").as_uri(), package()
    return {"jars": ",".join(map(str, jars(spark))), "py_files": str(made),
            "files": ",".join(map(str, sorted(made.parent.glob(f"*{_COMPILED}")))),
            "spark.driver.extraJavaOptions": f"{STDERR} -Dlog4j2.configurationFile={log}"}  # fmt: skip

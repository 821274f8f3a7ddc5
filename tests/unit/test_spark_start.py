"""What a start of Spark finds, makes once and is given: Java, Delta's jars, the class archive, the package, settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import machine
import pytest
from machine import Machine, java_home, script

import mmrec
from mmrec.config import SparkConfig
from mmrec.errors import InputError, TransientError
from mmrec.lake import jars as shelf
from mmrec.lake import java as room
from mmrec.lake import jvm
from mmrec.lake import session as session_room
from mmrec.lake.jars import jars, package, shipped
from mmrec.lake.java import QUICK, environment, java, submit
from mmrec.lake.jvm import archive, settings
from mmrec.topk import native

ROOT = Path(mmrec.__file__).parents[1]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return machine.bare(tmp_path, monkeypatch)


# Java


@pytest.mark.parametrize("release", ["17.0.15", "21.0.2", "17", "21-ea"])
def test_a_java_home_of_a_release_that_spark_runs_on_is_taken(bare: Machine, release: str) -> None:
    bare.on_path("21.0.1")
    home = bare.home(release)
    assert java() == home


@pytest.mark.parametrize("says", ["17.0.9", "21", "21.0.2"])
def test_a_java_without_a_release_file_is_asked_itself(bare: Machine, says: str) -> None:
    home = bare.home(None, says)
    assert java() == home


@pytest.mark.parametrize(("release", "told"), [("11.0.27", "Java 11"), ("25", "Java 25"), ("1.8.0_452", "Java 8")])
def test_another_release_is_not_taken_and_is_named(bare: Machine, release: str, told: str) -> None:
    home = bare.home(release)
    with pytest.raises(InputError) as caught:
        java(install=False)
    assert caught.value.value == {str(home): told}
    assert caught.value.valid == ["Java 17", "Java 21"]
    bare.patch.setenv("JAVA_HOME", str(bare.home(None, release)))
    with pytest.raises(InputError, match=told):
        java(install=False)


def test_java_home_goes_before_the_path_and_that_before_the_systems_folder(bare: Machine) -> None:
    system = bare.system("java-21-openjdk", "21.0.4")
    bare.system("java-25-openjdk", "25.0.1")
    bare.system("java-11-openjdk", "11.0.1")
    assert java() == system
    # the path leads to a link, and the folder behind it is what is meant
    on_path = bare.on_path("17.0.3")
    assert java() == on_path
    home = bare.home("21.0.9")
    assert java() == home
    bare.home("11.0.2")
    assert java() == on_path
    (bare.path / "java").unlink()
    bare.on_path("25.0.2")
    assert java() == system


def test_where_there_is_none_everything_that_was_tried_is_named_with_the_command_to_type(bare: Machine) -> None:
    bare.home("11.0.2")
    on_path, system = bare.on_path("25.0.2"), bare.system("java-8", "1.8.0_452")
    bare.system("default", "17.0.1")
    shutil.rmtree(bare.root / "jvm" / "default" / "bin")  # a folder that only has the name of one
    with pytest.raises(InputError) as caught:
        java(install=False)
    told = str(caught.value)
    for home, release in ((bare.root / "java-11.0.2", 11), (on_path, 25), (system, 8)):
        assert f"'{home}': 'Java {release}'" in told
    assert "default" not in told
    assert "apt-get install openjdk-17-jre-headless" in told
    assert "JAVA_HOME" in told
    assert "--engine local" in told


def test_a_java_home_that_is_none_is_named_too(bare: Machine) -> None:
    bare.patch.setenv("JAVA_HOME", str(bare.root / "nowhere"))
    with pytest.raises(InputError, match=f"{bare.root / 'nowhere'}': 'no bin/java'"):
        java(install=False)


def test_a_java_that_does_not_run_is_passed_over(bare: Machine) -> None:
    home = bare.home(None, "17.0.1")
    (home / "bin" / "java").write_bytes(b"\x7fELF for another machine")
    with pytest.raises(InputError, match=str(home)):
        java(install=False)
    on_path = bare.on_path("17.0.3")
    assert java() == on_path


def as_root(bare: Machine, uid: int = 0) -> None:
    honest = os.access
    bare.patch.setattr(os, "geteuid", lambda: uid)
    bare.patch.setattr(os, "access", lambda path, *a, **k: path == "/" or honest(path, *a, **k))


def apt(bare: Machine, *lines: str) -> None:
    script(bare.path / "apt-get", f'echo "$DEBIAN_FRONTEND" "$@" >> {bare.root}/installed', *lines)


def test_root_on_a_debian_gets_one_installed_and_only_where_there_is_none(bare: Machine) -> None:
    as_root(bare)
    ready = java_home(bare.root / "ready", "17.0.15")
    apt(bare, f'if [ "$1" = install ]; then /bin/mkdir -p {room.SYSTEM} && /bin/cp -r {ready} {room.SYSTEM}/java-17; fi')
    with pytest.raises(InputError):
        java(install=False)
    assert bare.times("installed") == 0
    assert java() == room.SYSTEM / "java-17"
    update, install = (bare.root / "installed").read_text().splitlines()
    assert update.split()[-1] == "update"
    assert install == "noninteractive install -y --no-install-recommends openjdk-17-jre-headless"
    assert java() == room.SYSTEM / "java-17"
    assert bare.times("installed") == 2


def test_who_is_not_root_or_has_no_apt_is_told_what_to_type_and_nothing_is_started(bare: Machine) -> None:
    apt(bare)
    as_root(bare, uid=1000)
    with pytest.raises(InputError, match="apt-get install"):
        java()
    assert bare.times("installed") == 0
    as_root(bare)
    (bare.path / "apt-get").unlink()
    with pytest.raises(InputError, match="apt-get install"):
        java()


def test_an_installation_that_brings_nothing_ends_with_the_same_words(bare: Machine) -> None:
    as_root(bare)
    apt(bare, "exit 100")
    with pytest.raises(InputError, match="apt-get install openjdk-17-jre-headless"):
        java()
    assert bare.times("installed") == 2


def test_the_environment_of_a_start_has_its_java_its_spark_and_this_python(bare: Machine) -> None:
    home = bare.home()
    bare.spark()
    env = environment()
    assert (env["JAVA_HOME"], env["SPARK_HOME"]) == (str(home), str(bare.root / "spark"))
    assert env["PYSPARK_PYTHON"] == env["PYSPARK_DRIVER_PYTHON"] == sys.executable
    assert env["SPARK_LAUNCHER_OPTS"] == QUICK
    assert "SPARK_LAUNCHER_OPTS" not in environment(quick=False)
    bare.patch.delenv("SPARK_HOME")
    assert submit().is_file()


# jars


def test_jars_are_fetched_once_and_a_second_call_starts_nothing(bare: Machine) -> None:
    bare.ready()
    found = jars(SparkConfig())
    assert [p.name for p in found] == ["io.delta_a-1.jar", "io.delta_b-1.jar", "io.unitycatalog_c-1.jar"]
    assert [p.read_text().strip() for p in found] == ["io.delta_a", "io.delta_b", "io.unitycatalog_c"]
    assert bare.times("submitted") == 1
    asked = (bare.root / "submitted").read_text()
    release = ".".join(version("pyspark").split(".")[:2])
    assert f"--packages io.delta:delta-spark_{release}_2.13:{version('delta-spark')} " in asked
    assert jars(SparkConfig()) == jars(SparkConfig(), make=False) == found
    assert bare.times("submitted") == 1
    # nothing of the fetching itself is kept
    assert bare.kept() == [str(p.relative_to(bare.cache)) for p in found]


def test_only_options_about_jars_go_into_the_fetch(bare: Machine) -> None:
    bare.ready()
    jars(SparkConfig(options={"spark.jars.ivySettings": "/etc/ivy.xml", "spark.executor.cores": "4"}))
    asked = (bare.root / "submitted").read_text()
    assert "--conf spark.jars.ivySettings=/etc/ivy.xml" in asked
    assert "executor" not in asked


def test_who_only_looks_into_an_empty_cache_is_told_how_it_is_filled(bare: Machine) -> None:
    bare.ready()
    with pytest.raises(TransientError, match="mmrec doctor --install"):
        jars(SparkConfig(), make=False)
    with pytest.raises(TransientError, match="mmrec doctor --install"):
        archive(SparkConfig(), make=False)
    assert (bare.times("submitted"), bare.times("warmed"), bare.kept()) == (0, 0, [])


def test_a_python_without_delta_spark_is_told_what_to_install(bare: Machine) -> None:
    bare.ready()

    def missing(name: str) -> str:
        if name == "delta-spark":
            raise PackageNotFoundError(name)
        return version(name)

    bare.patch.setattr(shelf, "version", missing)
    for make in (True, False):
        with pytest.raises(InputError, match="delta-spark") as caught:
            jars(SparkConfig(), make)
        assert "pip install 'mmrec[cluster]'" in str(caught.value)
    assert bare.times("submitted") == 0


@pytest.mark.parametrize("lines", [("echo no route to host >&2", "exit 1"), ("echo nothing found >&2",), None])
def test_a_failed_fetch_leaves_nothing_and_the_next_one_is_whole(bare: Machine, lines: tuple[str, ...] | None) -> None:
    bare.ready()
    if lines:
        bare.spark(*lines)
    else:  # a Spark that is not there
        shutil.rmtree(bare.root / "spark")
    with pytest.raises(TransientError if lines else InputError) as caught:
        jars(SparkConfig())
    if lines:
        assert lines[0].split(maxsplit=1)[1].removesuffix(" >&2") in str(caught.value)
    else:
        assert str(bare.root / "spark") in str(caught.value)
    assert bare.kept() == []
    bare.spark()
    assert len(jars(SparkConfig())) == 3


def test_a_folder_that_lost_its_jars_is_filled_again(bare: Machine) -> None:
    bare.ready()
    found = jars(SparkConfig())
    for p in found:
        p.unlink()
    with pytest.raises(TransientError):
        jars(SparkConfig(), make=False)
    assert jars(SparkConfig()) == found
    assert bare.times("submitted") == 2


# the archive


def test_an_archive_is_made_once_for_a_java_a_spark_and_its_jars(bare: Machine) -> None:
    bare.ready()
    one = archive(SparkConfig())
    assert one.read_text() == "archive\n"
    assert archive(SparkConfig()) == archive(SparkConfig(), make=False) == archive(SparkConfig(memory="4g")) == one
    assert bare.times("warmed") == 1
    found = {one}
    (bare.root / "java-17.0.15" / "release").write_text('JAVA_VERSION="17.0.16"\n')
    found.add(archive(SparkConfig()))
    bare.home("21.0.1")
    found.add(archive(SparkConfig()))
    jar = jars(SparkConfig())[0]
    jar.rename(jar.with_name("io.delta_a-2.jar"))
    found.add(archive(SparkConfig()))
    bare.patch.setattr(jvm, "version", lambda name: "4.2.1")
    found.add(archive(SparkConfig()))
    assert len(found) == bare.times("warmed") == 5
    assert [p for p in bare.kept() if p.startswith("archives")] == sorted(f"archives/{p.name}" for p in found)


def test_a_java_without_a_release_file_has_an_archive_of_its_own_too(bare: Machine) -> None:
    bare.ready()
    names = set()
    for says in ("17.0.1", "17.0.2"):
        bare.home(None, says)
        names.add(archive(SparkConfig()))
        assert archive(SparkConfig(), make=False) in names
    assert len(names) == bare.times("warmed") == 2


@pytest.mark.parametrize("lines", [("echo no space left >&2", "exit 1"), ("echo it made none", "exit 0"),
                                   ('for w in $3; do case "$w" in -XX:A*) echo half > "${w#*=}";; esac; done', "echo cut >&2", "exit 1")])  # fmt: skip
def test_an_archive_that_could_not_be_made_leaves_no_file(bare: Machine, lines: tuple[str, ...]) -> None:
    bare.ready()
    jars(SparkConfig())
    bare.python(*lines)
    with pytest.raises(TransientError, match="quick_start = false"):
        archive(SparkConfig())
    assert not [p for p in bare.kept() if p.startswith("archives/")]
    bare.python()
    assert archive(SparkConfig()).is_file()


def test_a_java_that_dies_makes_no_archive_and_its_words_are_shown(bare: Machine) -> None:
    bare.ready()
    jars(SparkConfig())
    bare.patch.undo()
    bare.patch.setenv("XDG_CACHE_HOME", str(bare.root / "cache"))
    dying = java_home(bare.root / "dying", "17.0.1")
    script(dying / "bin" / "java", "echo this Java has no heap >&2", "exit 1")
    bare.patch.setenv("JAVA_HOME", str(dying))
    with pytest.raises(TransientError, match="could not be made") as caught:
        archive(SparkConfig())
    assert "quick_start = false" in str(caught.value)
    assert not list((bare.cache / "archives").glob("*.jsa*[!k]"))


TWO = """
import sys
from pathlib import Path
from mmrec.config import SparkConfig
from mmrec.lake import java, jvm
java.SYSTEM = Path("none")
sys.executable = sys.argv[1]
print(jvm.archive(SparkConfig()))
"""


def test_two_processes_at_once_fetch_and_make_one(bare: Machine) -> None:
    python = sys.executable
    bare.ready()
    words = [python, "-c", TWO, str(bare.root / "python")]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {p.communicate(timeout=60)[0].strip() for p in both}
    assert [p.returncode for p in both] == [0, 0]
    assert len(told) == 1
    assert Path(told.pop()).read_text() == "archive\n"
    assert (bare.times("submitted"), bare.times("warmed")) == (1, 1)


# the package


KERNEL = sorted((ROOT / "mmrec").rglob("*.so"))  # one, where there is a C compiler


def names_in(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as z:
        assert z.testzip() is None
        return sorted(z.namelist())


def test_the_package_holds_every_module_and_its_data_and_nothing_that_a_run_leaves(bare: Machine) -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["mmrec"]
    want = {p for pattern in ("**/*.py", *told) for p in (ROOT / "mmrec").glob(pattern) if p.is_file()}
    assert {p.suffix for p in want} >= {".py", ".typed", ".html", ".properties"}
    made = package()
    assert names_in(made) == sorted(p.relative_to(ROOT).as_posix() for p in want)
    with zipfile.ZipFile(made) as z:
        assert all(z.read(p.relative_to(ROOT).as_posix()) == p.read_bytes() for p in want)


def copy_of(folder: Path) -> Path:
    shutil.copytree(ROOT / "mmrec", folder / "mmrec", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def made_from(folder: Path) -> Path:
    code = "from mmrec.lake.jars import package; print(package())"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True,
                          text=True, check=True, cwd=folder)  # fmt: skip
    return Path(done.stdout.strip())


def test_the_same_sources_are_the_same_package_wherever_they_are_and_a_changed_one_is_another(bare: Machine, tmp_path: Path) -> None:
    one, two = (copy_of(tmp_path / name) for name in ("one", "two"))
    first = made_from(one)
    assert first.parents[2] == bare.cache
    inode = first.stat().st_ino
    # what Python and compiled kernels leave beside the sources is no source
    (two / "mmrec" / "topk" / "__pycache__").mkdir(exist_ok=True)
    (two / "mmrec" / "topk" / "__pycache__" / "exact._push-228.py311.1.nbc").write_bytes(b"kernel")
    assert made_from(two) == first
    assert made_from(one).stat().st_ino == inode
    source = two / "mmrec" / "metrics.py"
    source.write_text(source.read_text() + "# changed\n")
    assert made_from(two) != first
    assert len({p.parent.name for p in bare.cache.rglob("mmrec.zip")}) == 2


def test_a_package_whose_making_was_cut_is_made_again(bare: Machine) -> None:
    made = package()
    want = made.read_bytes()
    made.unlink()
    made.with_suffix(".part").write_bytes(want[:1000])
    assert names_in(package()) == names_in(made)
    assert sorted(p.name for p in made.parent.iterdir()) == sorted(["mmrec.zip", *(p.name for p in KERNEL)])


def test_a_process_that_runs_from_the_package_has_its_modules_data_and_names_itself(bare: Machine, tmp_path: Path) -> None:
    made = package()
    code = f"""
import sys
sys.path[0] = {str(made)!r}
import mmrec, mmrec.cli, mmrec.monitor.report, mmrec.recommend.spread
from mmrec.lake.jars import package
from importlib import resources
from mmrec.topk import native
assert mmrec.__file__.startswith({str(made)!r}), mmrec.__file__
assert mmrec.recommend.spread.__file__.startswith({str(made)!r})
assert "<html" in resources.files("mmrec.monitor").joinpath("report.html").read_text(encoding="utf-8")
print(package(), native.available())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{made} {native.available()}"
    for file in KERNEL:  # as a library of another machine
        (made.parent / file.name).write_bytes(b"\x7fELF, but not for here")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == f"{made} False", done.stderr


def test_what_is_shipped_beside_a_job_are_the_jars_and_the_package(bare: Machine) -> None:
    bare.ready()
    told = shipped(SparkConfig())
    assert told["jars"].split(",") == [str(p) for p in jars(SparkConfig())]
    assert Path(told["py_files"]) == package()
    assert told["files"] == ",".join(str(package().with_name(p.name)) for p in KERNEL)
    assert all(package().with_name(p.name).read_bytes() == p.read_bytes() for p in KERNEL)
    assert bare.times("warmed") == 0


# settings


def test_a_local_master_has_the_jars_on_its_class_path_and_the_archive_where_it_may(bare: Machine) -> None:
    bare.ready()
    cold = settings(SparkConfig(quick_start=False))
    assert "SharedArchiveFile" not in cold["spark.driver.extraJavaOptions"]
    assert "TieredStopAtLevel" not in cold["spark.driver.extraJavaOptions"]
    assert settings(SparkConfig(), quick=False) == cold
    assert bare.times("warmed") == 0
    quick = settings(SparkConfig(), quick=True)
    assert quick == settings(SparkConfig()) == settings(SparkConfig(quick_start=False), quick=True)
    words = quick["spark.driver.extraJavaOptions"].split()
    assert f"-XX:SharedArchiveFile={archive(SparkConfig())}" in words
    assert set(QUICK.split()) < set(words)
    differ = {k for k in quick if quick[k] != cold.get(k)}
    assert differ == {"spark.driver.extraJavaOptions"}
    assert quick["spark.driver.extraClassPath"].split(os.pathsep) == [str(p) for p in jars(SparkConfig())]
    assert quick["spark.driver.host"] == quick["spark.driver.bindAddress"] == "127.0.0.1"
    assert (quick["spark.master"], quick["spark.driver.memory"]) == ("local[*]", "1g")
    assert "spark.jars" not in quick


@pytest.mark.parametrize("master", ["spark://10.0.0.1:7077", "k8s://https://k"])
def test_another_master_is_sent_jars_and_package_and_needs_no_archive(bare: Machine, master: str) -> None:
    bare.ready()
    for quick in (True, False):
        told = settings(SparkConfig(master=master, quick_start=quick))
        assert told["spark.master"] == master
        assert told["spark.jars"].split(",") == [str(p) for p in jars(SparkConfig())]
        assert told["spark.submit.pyFiles"] == str(package())
        assert told.get("spark.files", "") == shipped(SparkConfig())["files"]
        assert not {"spark.driver.extraClassPath", "spark.driver.host", "spark.driver.bindAddress"} & told.keys()
        assert "Tiered" not in told["spark.driver.extraJavaOptions"]
    assert bare.times("warmed") == 0


def test_every_master_gets_the_settings_that_make_rows_equal_and_options_win(bare: Machine) -> None:
    bare.ready()
    options = {"spark.sql.shuffle.partitions": "9", "spark.driver.memory": "3g", "spark.mine": "1",
               "spark.driver.host": "driver", "spark.driver.extraJavaOptions": "-Dx=1"}  # fmt: skip
    for master in ("local[2]", "spark://m:7077"):
        plain = settings(SparkConfig(master=master, partitions=5))
        assert plain["spark.sql.session.timeZone"] == "UTC"
        assert plain["spark.sql.shuffle.partitions"] == "5"
        assert plain["spark.sql.extensions"] == "io.delta.sql.DeltaSparkSessionExtension"
        told = settings(SparkConfig(master=master, partitions=5, options=options))
        assert told == plain | options


# the real things: a JVM, Ivy, an archive of 200 MB


@pytest.fixture
def real_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own cache that has only the jars."""
    found = jars(SparkConfig())[0].parent
    shutil.copytree(found, tmp_path / "cache" / "mmrec" / "jars" / found.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mmrec"


@pytest.mark.engines
def test_ivy_that_reaches_no_repository_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unreachable = tmp_path / "ivy.xml"
    unreachable.write_text(
        '<ivysettings><settings defaultResolver="none"/><resolvers><ibiblio name="none" m2compatible="true" '
        'root="http://127.0.0.1:9/"/></resolvers></ivysettings>'
    )
    with pytest.raises(TransientError, match="could not be fetched") as caught:
        jars(SparkConfig(options={"spark.jars.ivySettings": str(unreachable)}))
    assert "delta-spark" in str(caught.value)
    kept = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert [p.suffix for p in kept] == [".lock"]
    assert not list((tmp_path / "cache").rglob("*.part"))


START = """
import sys
from mmrec.lake import jvm
from mmrec.lake import session as session_room
from mmrec.config import SparkConfig
sys.executable = sys.argv[1]
print(jvm.archive(SparkConfig()))
"""


MAPPED = """
import sys, psutil
from mmrec.lake.session import session, stop
session("spark")
java = [p for p in psutil.Process().children(recursive=True) if p.name() == "java"]
print("mapped" if any(m.path.endswith(sys.argv[1]) for p in java for m in p.memory_maps()) else "not mapped")
stop("spark")
"""


@pytest.mark.engines
def test_two_processes_at_once_make_one_real_archive_that_a_start_maps(
    real_jars: Path, tmp_path: Path
) -> None:
    python = script(tmp_path / "python", f'echo "$2" >> {tmp_path}/warmed', f'exec {sys.executable} "$@"')
    words = [sys.executable, "-c", START, str(python)]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], told
    assert (tmp_path / "warmed").read_text().split().count("mmrec.lake.warm") == 1
    made = Path(told[0][0].strip())
    assert told[1][0].strip() == str(made)
    assert [p.name for p in real_jars.joinpath("archives").iterdir() if p.suffix != ".lock"] == [made.name]
    assert made.stat().st_size > 50e6
    done = subprocess.run([sys.executable, "-c", MAPPED, made.name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "mapped"


def test_a_start_forgets_the_connect_server_that_the_surroundings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    # a shell, or a parent that computes with the other engine, leaves these: a classic session would look for a server
    words = {"SPARK_CONNECT_MODE_ENABLED": "1", "SPARK_REMOTE": "sc://127.0.0.1:1", "SPARK_LOCAL_REMOTE": "1", "SPARK_API_MODE": "connect"}
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    assert not words.keys() & environment().keys()


@pytest.mark.engines
def test_a_classic_session_starts_where_the_surroundings_name_a_connect_server() -> None:
    code = ("from mmrec.lake.session import session, stop\n"
            "spark = session('spark'); print(spark.range(3).count(), type(spark).__module__); stop('spark')")  # fmt: skip
    env = os.environ | {"SPARK_CONNECT_MODE_ENABLED": "1", "SPARK_REMOTE": "sc://127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "pyspark.sql.session"]


def test_the_embedded_engines_session_is_not_forgotten_while_a_model_trains() -> None:
    code = """
import sys, time
from mmrec.lake import session
session._IDLE_S = int(sys.argv[1])
spark = session.session()
spark.sql("select 1").toArrow()
time.sleep(5)
try:
    print("answers", spark.sql("select 1").toArrow().num_rows)
except Exception as error:
    print("gone", error)
session.stop()
"""

    def told(*words: str) -> str:
        env = {k: v for k, v in os.environ.items() if not k.startswith("SAIL_")}
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, timeout=120).stdout

    assert "is not running" in told("2"), "the setting is the one that counts"
    assert told(str(session_room._IDLE_S)).startswith("answers 1")
    assert session_room._IDLE_S > 30 * 86_400

"""`mmrec doctor`: it demands what the engine needs and no more, says how to get it, and makes nothing unasked."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import machine
import pytest
from machine import Machine

from mmrec import cli, config, doctor
from mmrec.doctor import examine
from mmrec.errors import InputError
from tests.conftest import mmrec

SPARK = {"Java 17 or 21", "delta-spark", "Delta's jars"}
NEVER = {"class archive", "Airflow"}
KEYS = {"what", "for", "needed", "ok", "found", "get"}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(doctor, "_DISK_GB", 0)
    return machine.bare(tmp_path, monkeypatch)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    config.write(tmp_path / "home", {})
    return tmp_path / "home"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The entry point in this process: (exit code, stdout, stderr)."""

    def leave(code: int) -> NoReturn:
        raise SystemExit(code)  # the real one also stops the engine, which other tests share

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(cli.common, "leave", leave)
        monkeypatch.setattr(sys, "argv", ["mmrec", "doctor", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


def by_name(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f["what"]: f for f in found}


def missing(found: list[dict[str, Any]]) -> set[str]:
    return {f["what"] for f in found if f["needed"] and not f["ok"]}


def test_engine_local_is_whole_on_a_machine_without_java(bare: Machine, home: Path, call: Call) -> None:
    code, out, err = call("--home", str(home), "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["ok"] is True
    assert all(set(f) == KEYS for f in told["checks"])
    found = by_name(told["checks"])
    assert not any(found[what]["needed"] for what in SPARK | NEVER | {"CUDA"})
    assert not found["Java 17 or 21"]["ok"]
    assert "JAVA_HOME" in found["Java 17 or 21"]["get"]
    assert found["home"]["found"] == str(home)
    assert found["Python 3.11"]["found"].startswith("3.11.")
    assert bare.kept() == []


def test_engine_spark_demands_what_is_missing_and_says_how_each_is_got(bare: Machine, home: Path, call: Call) -> None:
    code, out, _ = call("--home", str(home), "--engine", "spark", "--json")
    assert code == 2
    told = json.loads(out)
    assert told["ok"] is False
    assert missing(told["checks"]) == {"Java 17 or 21", "Delta's jars"}
    assert all(f["get"] and f["found"] for f in told["checks"] if not f["ok"])
    bare.patch.setenv("COLUMNS", "240")
    code, out, _ = call("--home", str(home), "--engine", "spark")
    assert code == 2
    assert "2 missing" in out
    assert "mmrec doctor --install" in out
    # the home's own engine is the one that counts
    config.write(home, {"engine": "spark"})
    assert call("--home", str(home), "--json")[0] == 2
    assert call("--home", str(home), "--engine", "local", "--json")[0] == 0


def test_a_missing_home_is_said_with_the_command_that_makes_it_and_nothing_is_made(bare: Machine, tmp_path: Path, call: Call) -> None:
    code, out, _ = call("--home", str(tmp_path / "nowhere"), "--json")
    assert code == 2
    found = by_name(json.loads(out)["checks"])
    assert missing(list(found.values())) == {"home"}
    assert found["home"]["get"] == f"mmrec init --home {tmp_path / 'nowhere'}"
    assert not (tmp_path / "nowhere").exists()


def test_a_wrong_setting_is_told_as_everywhere(bare: Machine, home: Path, call: Call) -> None:
    (home / "mmrec.toml").write_text("[spark]\npartitions = 0\n")
    code, out, err = call("--home", str(home), "--json")
    assert (code, out) == (2, "")
    assert "spark.partitions" in err


def test_nothing_is_fetched_or_made_unless_it_is_asked_for(bare: Machine, home: Path) -> None:
    bare.ready()
    found = examine(home, "spark")
    assert missing(found) == {"Delta's jars"}
    assert by_name(found)["Java 17 or 21"]["found"] == bare.root / "java-17.0.15"
    assert not by_name(found)["class archive"]["ok"]
    assert (bare.times("submitted"), bare.times("warmed"), bare.kept()) == (0, 0, [])
    found = by_name(examine(home, "spark", install=True))
    assert missing(list(found.values())) == set()
    assert found["class archive"]["ok"]
    assert (bare.times("submitted"), bare.times("warmed")) == (1, 1)
    again = by_name(examine(home, "spark"))
    assert {w: again[w]["found"] for w in ("Delta's jars", "class archive")} == {
        w: found[w]["found"] for w in ("Delta's jars", "class archive")}  # fmt: skip
    assert (bare.times("submitted"), bare.times("warmed")) == (1, 1)


def test_an_archive_is_neither_made_nor_demanded_for_a_cluster(bare: Machine, home: Path) -> None:
    bare.ready()
    config.write(home, {"engine": "spark", "spark": {"master": "spark://m:7077"}})
    found = by_name(examine(home, install=True))
    assert missing(list(found.values())) == set()
    assert not found["class archive"]["ok"]
    assert bare.times("warmed") == 0


def test_a_session_on_another_machines_server_needs_no_java_here(bare: Machine, home: Path) -> None:
    config.write(home, {"engine": "spark", "spark": {"master": "sc://there:15002"}})
    assert missing(examine(home)) == set()


def test_what_can_not_be_had_is_a_finding_and_no_crash(bare: Machine, home: Path) -> None:
    bare.ready()
    bare.spark("echo no route to host >&2", "exit 1")
    bare.python("exit 1")
    found = by_name(examine(home, "spark", install=True))
    assert missing(list(found.values())) == {"Delta's jars"}
    assert "could not be fetched" in found["Delta's jars"]["found"]
    bare.spark()
    found = by_name(examine(home, "spark", install=True))
    assert missing(list(found.values())) == set()
    assert "could not be made" in found["class archive"]["found"]
    shutil.rmtree(bare.cache)
    bare.cache.write_text("a file where the cache's folder should be")
    found = by_name(examine(home, "spark", install=True))
    assert missing(list(found.values())) == {"Delta's jars"}
    assert by_name(examine(home, "local"))["home"]["ok"]


@pytest.mark.parametrize(("name", "what"), [("_DISK_GB", "999999 GB of disk"), ("_MEMORY_GB", "999999 GB of memory")])
def test_too_small_a_machine_is_said_with_its_size(
    bare: Machine, home: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    monkeypatch.setattr(doctor, name, 999_999)
    found = by_name(examine(home))
    assert missing(list(found.values())) == {what}
    assert " GB" in found[what]["found"]


def test_device_cuda_is_demanded_where_the_home_asks_for_it(bare: Machine, home: Path) -> None:
    config.write(home, {"device": "cuda"})
    found = by_name(examine(home))
    assert missing(list(found.values())) == {"CUDA"}
    assert "NVIDIA" in found["CUDA"]["found"]


def test_a_driver_whose_libraries_do_not_load_is_no_device(bare: Machine, home: Path) -> None:
    config.write(home, {"device": "cuda"})
    machine.script(bare.path / "nvidia-smi")
    found = by_name(examine(home))
    assert missing(list(found.values())) == {"CUDA"}
    assert "did not load" in found["CUDA"]["found"]


def test_an_engine_that_there_is_not_is_an_input_error(bare: Machine, home: Path) -> None:
    with pytest.raises(InputError, match="engine"):
        examine(home, "flink")


def test_the_real_command_looks_and_leaves_an_empty_cache_empty(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = mmrec("doctor", "--home", str(home), "--engine", "spark", "--json", ok=(2,))
    told = json.loads(done.stdout)
    assert done.stderr == ""
    assert "Delta's jars" in missing(told["checks"])
    left = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert {p.suffix for p in left} <= {".lock"}

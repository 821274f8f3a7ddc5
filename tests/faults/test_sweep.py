"""The N-th file-system call of a commit fails, is cut short, or is the last: readers see the old rows or the new ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.preload import Faults

FLOOR = 40  # fault points of one commit; a library that intercepts nothing finds none


def swept(library: Path, work: Path, *words: str) -> list[dict[str, Any]]:
    work.mkdir(exist_ok=True)
    faults = Faults(work / "control")
    done = subprocess.run([sys.executable, "-m", "tests.faults.sweep", "--work", str(work / "sweep"), *words],
                          env=faults.environment(library), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def figures(lines: list[dict[str, Any]]) -> str:
    seen = Counter(line["seen"] for line in lines)
    return f"{len(lines)} ({', '.join(f'{n} {kind}' for kind, n in sorted(Counter(line['fault'] for line in lines).items()))}); then old {seen['old']}, new {seen['new']}"


def untyped(lines: list[dict[str, Any]]) -> list[str]:
    """Errors that are neither mmrec's nor ones that the command line makes a TransientError of."""
    return [f"{line['fault']} at {line['at']} ({line['what']}): {line['said']}: {line['told']}" for line in lines if not line["typed"] and line["said"] != "killed"]


def judge(lines: list[dict[str, Any]], floor: int) -> None:
    assert len(lines) >= floor, f"{len(lines)} fault points: the library intercepts too little"
    broken = [f"{line['fault']} at {line['at']} ({line['what']}): {line['broken']}" for line in lines if line["broken"]]
    assert not broken, "\n".join(broken)
    assert {line["seen"] for line in lines} == {"old", "new"}


@pytest.fixture(scope="module")
def of_a_day(tmp_path_factory: pytest.TempPathFactory, library: Path) -> list[dict[str, Any]]:
    return swept(library, tmp_path_factory.mktemp("day"), "--write", "replace_partition")


@pytest.mark.parametrize("write", ["replace_partition", "append_new", pytest.param("replace_all", marks=pytest.mark.deep)])
def test_kill_9_or_a_failed_call_at_any_moment_of_a_commit_leaves_the_old_rows_or_the_new(tmp_path: Path, library: Path, tried: Callable[[str, object], None], write: str, request: pytest.FixtureRequest) -> None:
    lines = request.getfixturevalue("of_a_day") if write == "replace_partition" else swept(library, tmp_path, "--write", write)
    tried(f"fault points of a commit, Arrow rows, {write}", figures(lines))
    judge(lines, 2 * FLOOR)
    assert not untyped(lines), "\n".join(untyped(lines))
    assert {line["at"] for line in lines if line["fault"] == "kill_before"} == set(range(1, 1 + sum(line["fault"] == "kill_before" for line in lines)))


def test_killed_right_after_a_commit_then_retried_the_retry_is_a_no_op(of_a_day: list[dict[str, Any]], tried: Callable[[str, object], None]) -> None:
    after = [line for line in of_a_day if line["said"] == "killed" and line["seen"] == "new"]
    tried("kills between the commit and the end of the writer", len(after))
    assert len(after) >= 10
    assert {line["retry_wrote"] for line in after} == {False}
    assert {line["retry_wrote"] for line in of_a_day if line["seen"] == "old"} == {True}


def test_a_careless_writer_is_caught(tmp_path: Path, library: Path) -> None:
    lines = swept(library, tmp_path, "--write", "append_new", "--careless", "--faults", "kill_before", "full", "short")
    for fault in ("kill_before", "full"):
        broken = [line["broken"] for line in lines if line["fault"] == fault and line["broken"]]
        assert any("a fresh reader" in told for found in broken for told in found), f"{fault}: {broken}"
    assert not [line for line in lines if line["fault"] == "short" and "a fresh reader" in str(line["broken"])], "a short write is no fault where the rest follows"


def test_every_third_call_of_a_commit_of_an_engines_frame_does_the_same(tmp_path: Path, library: Path, tried: Callable[[str, object], None]) -> None:
    # the embedded engine writes its stage from threads of this very process
    lines = swept(library, tmp_path, "--door", "frame", "--faults", "eio", "kill_before", "torn", "--step", "3")
    lines += swept(library, tmp_path, "--door", "frame", "--faults", "full", "--first", "2", "--step", "6")
    tried("fault points of a commit, a frame of the embedded engine", figures(lines))
    judge(lines, FLOOR // 2)
    assert not untyped(lines), "\n".join(untyped(lines))
    staged = [line for line in lines if "/stage-night" in line["what"] and ".parquet" in line["what"]]
    assert staged, "no call of the engine was met"


@pytest.fixture(scope="module")
def on_spark(tmp_path_factory: pytest.TempPathFactory, library: Path) -> list[dict[str, Any]]:
    work = tmp_path_factory.mktemp("java")
    # threads of the JVM take turns, so that N is another call each time; the last ones come after the commit
    lines = swept(library, work, "--door", "spark", "--faults", "eio", "full", "--at", "2", "6", "10", "20", "30", "-2")
    return lines + swept(library, work / "kill", "--door", "spark", "--faults", "kill_before", "--at", "5")


@pytest.mark.engines
def test_a_handful_of_calls_of_a_commit_on_java_spark_do_the_same_and_the_last_kills_the_jvm(on_spark: list[dict[str, Any]], tried: Callable[[str, object], None]) -> None:
    tried("fault points of a commit, a frame of Java Spark", figures(on_spark))
    judge(on_spark, 13)
    assert sum("/stage-night" in line["what"] for line in on_spark) >= 6, "no call of the JVM was met"


@pytest.mark.engines
def test_a_full_disk_or_a_dead_jvm_on_java_spark_is_an_error_worth_a_retry(on_spark: list[dict[str, Any]]) -> None:
    assert not untyped(on_spark), "\n".join(untyped(on_spark))

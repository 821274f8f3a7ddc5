"""`mmrec bench`: what it tells, and that it tells nothing where the two sides did not do the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmrec.bench import jvm
from mmrec.errors import QualityError, TransientError
from tests.conftest import mmrec

KEYS = {"plain_s", "archive_s", "ratio", "session_plain_s", "session_archive_s", "session_ratio", "rounds", "archive_mb"}


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Starts that were timed before, in the order in which they are asked for."""
    (tmp_path / "archive.jsa").write_bytes(b"0" * 2_000_000)
    told: list[dict[str, Any]] = []
    asked: list[str] = []

    def start(how: str) -> dict[str, Any]:
        asked.append(how)
        assert how == ("plain", "quick")[(len(asked) - 1) % 2]
        return told[len(asked) - 1]

    monkeypatch.setattr(jvm.jvm, "archive", lambda spark: tmp_path / "archive.jsa")
    monkeypatch.setattr(jvm, "_start", start)
    return told


def start(session_s: float, commit_s: float, rows: str = "same") -> dict[str, Any]:
    return {"session_s": session_s, "commit_s": commit_s, "rows": 100, "hash": rows}


def test_medians_of_interleaved_starts_and_their_ratio(planted: list[dict[str, Any]]) -> None:
    planted += [start(6, 10), start(2, 4), start(5, 99), start(3, 5), start(1, 8), start(9, 6)]
    said: list[tuple[str, int, int]] = []
    told = jvm.bench(3, lambda *what: said.append(what))
    assert told == {"plain_s": 10, "archive_s": 5, "ratio": 0.5, "session_plain_s": 5, "session_archive_s": 3,
                    "session_ratio": 0.6, "rounds": 3, "archive_mb": 2}  # fmt: skip
    assert said == [("bench jvm", n, 6) for n in range(1, 7)]


@pytest.mark.parametrize("odd", range(4))
def test_one_start_that_committed_other_rows_spoils_the_measurement(planted: list[dict[str, Any]], odd: int) -> None:
    planted += [start(1, 2, "other" if n == odd else "same") for n in range(4)]
    with pytest.raises(QualityError, match="other rows") as caught:
        jvm.bench(2, lambda *_: None)
    assert caught.value.value == ["other", "same"]


def test_a_start_that_fails_is_worth_another_try_and_shows_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dying = tmp_path / "java" / "bin" / "java"
    dying.parent.mkdir(parents=True)
    dying.write_text("#!/bin/sh\necho this Java has no heap >&2\nexit 1\n")
    dying.chmod(0o755)
    (tmp_path / "java" / "release").write_text('JAVA_VERSION="17.0.1"\n')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(jvm.jvm, "archive", lambda spark: tmp_path)
    with pytest.raises(TransientError, match="a start failed") as caught:
        jvm.bench(1, lambda *_: None)
    assert "this Java has no heap" in str(caught.value)


def test_an_unknown_benchmark_or_no_round_is_exit_two() -> None:
    done = mmrec("bench", "gpu", "--json", ok=(2,))
    assert done.stdout == ""
    assert "no such benchmark" in done.stderr
    assert "'gpu'" in done.stderr
    assert "valid: jvm" in done.stderr
    assert mmrec("bench", "jvm", "--rounds", "0", ok=(2,)).stdout == ""


@pytest.mark.engines
@pytest.mark.deep
def test_one_real_round_tells_seconds_of_both_starts_and_their_ratio() -> None:
    told = json.loads(mmrec("bench", "jvm", "--rounds", "1", "--json").stdout)
    assert set(told) == KEYS
    assert told["rounds"] == 1
    assert told["archive_mb"] > 50
    assert all(told[k] > 0 for k in KEYS)
    assert told["ratio"] == pytest.approx(told["archive_s"] / told["plain_s"], abs=0.02)

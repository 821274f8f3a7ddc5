"""One engine session for all tests that need one; one home that has lived through four nights."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmrec.lake.session import session, stop

NIGHTS = ("2026-03-02", "2026-03-03", "2026-03-04", "2026-03-05")


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    """The local engine; stopped when the tests end."""
    yield session("local")
    stop("local")


@pytest.fixture(scope="session")
def encoders_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where encoders are exported to, once for all homes of a test run."""
    return tmp_path_factory.mktemp("encoders")


def mmrec(*words: str, ok: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    """The real command line in a process of its own; its exit code is one of `ok`."""
    done = subprocess.run([sys.executable, "-m", "mmrec", *words], capture_output=True, text=True)
    assert done.returncode in ok, f"mmrec {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@dataclass(frozen=True)
class Lived:
    """A home after four nights with data arriving, the first of which trained; `nights` are their summaries."""

    home: Path
    nights: list[dict[str, Any]]

    def json(self, *words: str) -> Any:
        return json.loads(mmrec(*words, "--home", str(self.home), "--json").stdout)

    def sql(self, statement: str) -> list[dict[str, Any]]:
        return self.json("sql", statement)


def share_encoders(home: Path, cache: Path) -> None:
    (home / "cache").mkdir(parents=True, exist_ok=True)
    (home / "cache" / "encoders").symlink_to(cache)


@pytest.fixture(scope="session")
def lived(tmp_path_factory: pytest.TempPathFactory, encoders_cache: Path) -> Lived:
    home = tmp_path_factory.mktemp("lived") / "home"
    mmrec("init", "--home", str(home), "--size", "tiny")
    share_encoders(home, encoders_cache)
    nights = [
        json.loads(mmrec("run", "--home", str(home), "--date", day, "--json", *more).stdout)
        for day, more in zip(NIGHTS, (["--train"], [], [], []), strict=True)
    ]
    return Lived(home, nights)

"""A fresh Airflow for all tests of one session: its folder, its database, its pools; and `drive`, which runs DAGs."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

# before anything imports airflow: it makes its folder at import
_HOME = Path(tempfile.mkdtemp(prefix="airflow-"))
os.environ |= {
    "AIRFLOW_HOME": str(_HOME),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
}


@pytest.fixture(scope="session", autouse=True)
def _airflow_folder() -> Iterator[None]:
    yield
    shutil.rmtree(_HOME, ignore_errors=True)


def airflow(*words: str, **env: str) -> str:
    """Airflow's own command line; its output."""
    command = [sys.executable, "-m", "airflow", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
    assert done.returncode == 0, f"airflow {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def airflow_db() -> Path:
    airflow("db", "migrate")
    airflow("pools", "import", str(ROOT / "infra" / "airflow" / "pools.json"))
    return _HOME


@dataclass(frozen=True)
class Told:
    """What a driver told of its runs, and its log."""

    runs: list[dict[str, Any]]
    log: str


@pytest.fixture(scope="session")
def drive(airflow_db: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Told]:
    """Run DAGs of `folder` by dag.test(), one after the other, in one process."""

    def run(folder: Path, home: Path, runs: list[dict[str, Any]], **env: str) -> Told:
        out = tmp_path_factory.mktemp("told") / "told.json"
        env = {"MMREC_HOME": str(home), "AIRFLOW__CORE__DAGS_FOLDER": str(folder)} | env
        command = [sys.executable, str(Path(__file__).with_name("drive.py")), str(folder), json.dumps(runs), str(out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | env)
        assert done.returncode == 0, done.stdout[-5000:]
        return Told(json.loads(out.read_text()), done.stdout)

    return run


@pytest.fixture
def bare_home(tmp_path: Path) -> Path:
    """A folder that is a home as far as settings go."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "mmrec.toml").write_text("")
    return home

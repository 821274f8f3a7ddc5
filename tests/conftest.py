"""One engine session for all tests that need one; one home that has lived through four nights.

`pytest` runs everything on the embedded engine. `pytest --engine spark` runs, in a process of its own, what the engine
can change: tests that ask for the `spark` fixture, and those marked `engines`, which start both.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

from mmrec.bundle import registry, server
from mmrec.config import Config
from mmrec.content.encoders import encoder
from mmrec.lake.session import ENGINES, session, stop

NIGHTS = ("2026-03-02", "2026-03-03", "2026-03-04", "2026-03-05")


# A process of many is told a terminal's size, and a console that is made then keeps it, whatever a test says later.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# An example that asks an engine is a job or two. They cost the embedded engine some 50 ms and Spark ten times that, so
# tests that take their count from the profile get fewer there; what is drawn is the same kind of rows, and each of
# the fixed worlds of those test files runs on both engines whole.
settings.register_profile("local", deadline=None, max_examples=50)  # nothing is timed
settings.register_profile("spark", deadline=None, max_examples=8)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=ENGINES, default="local", help="the engine of the `spark` fixture")
    parser.addoption("--deep", action="store_true", help="run what takes long, too: `make soak`")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile(config.getoption("--engine"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def wanted(item: pytest.Item) -> bool:
        if item.get_closest_marker("deep") is not None and not deep:
            return False
        both = item.get_closest_marker("engines") is not None
        return not both if engine == "local" else both or "spark" in getattr(item, "fixturenames", ())

    engine, deep = config.getoption("--engine"), config.getoption("--deep")
    left = [item for item in items if not wanted(item)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if wanted(item)]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the harness of tests/faults tried, in whichever process."""
    reports = [r for some in terminalreporter.stats.values() for r in some if getattr(r, "when", None) == "call"]
    lines = [f"{what}: {count}" for r in reports if "faults" in r.nodeid for what, count in r.user_properties]
    if lines:
        terminalreporter.section("faults tried")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--engine")


@pytest.fixture(scope="session")
def spark(engine: str) -> Iterator[object]:
    """The session of the engine under test; stopped when the tests end."""
    yield session(engine)
    stop(engine)


@pytest.fixture(scope="session")
def of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of a test run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def encoders_cache(of_the_run: Path) -> Path:
    """Where encoders are exported to, once for all processes and homes of a test run."""
    folder = of_the_run / "encoders"
    with FileLock(of_the_run / "encoders.lock"):
        folder.mkdir(exist_ok=True)
        encoder("minilm", folder).encode(["a"])
        assert encoder("efficientnet-lite0", folder).dim
    return folder


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's store without a model: made once, because that takes seconds."""
    home = tmp_path_factory.mktemp("blank")
    server.client(Config(home=home)).create_experiment("t")
    return home / "mlflow.db"


def mmrec(*words: str, ok: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    """The real command line in a process of its own; its exit code is one of `ok`."""
    done = subprocess.run([sys.executable, "-m", "mmrec", *words], capture_output=True, text=True)
    assert done.returncode in ok, f"mmrec {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def serve(config: Config, version: str) -> str:
    """Make a registered version serve, whatever the gate thinks of a model of so small a shop; returns the version it
    replaces."""
    now = registry.state(config)
    if version != now.version:
        registry.change(config, now, "promoted", registry.of_version(config, version), asked_by="a test", through="command")
    registry.mirror(config, registry.state(config))
    return now.version


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
def lived(of_the_run: Path, tmp_path_factory: pytest.TempPathFactory, encoders_cache: Path) -> Lived:
    """Made by the process that asks first; each has a copy of its own, which nobody else writes to."""
    made, told = of_the_run / "lived-home", of_the_run / "lived.json"
    with FileLock(of_the_run / "lived.lock"):
        if not told.is_file():
            mmrec("init", "--home", str(made), "--size", "tiny")
            share_encoders(made, encoders_cache)
            nights = [
                json.loads(mmrec("run", "--home", str(made), "--date", day, "--json", *more).stdout)
                for day, more in zip(NIGHTS, (["--train"], [], [], []), strict=True)
            ]
            told.write_text(json.dumps(nights))
    home = tmp_path_factory.mktemp("lived") / "home"
    shutil.copytree(made, home, symlinks=True)
    return Lived(home, json.loads(told.read_text()))

"""The preloaded library, compiled once; what the harness tried is printed at the end of the test run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import preload

_TRIED: list[str] = []


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preload.build(tmp_path_factory.mktemp("preload"))


@pytest.fixture
def tried(record_property: pytest.RecordProperty) -> object:
    """`tried(what, n)`: a line of the summary, and a property of the test."""

    def note(what: str, count: object) -> None:
        record_property(what, count)
        _TRIED.append(f"{what}: {count}")

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _TRIED:
        terminalreporter.section("faults tried")
        for line in _TRIED:
            terminalreporter.write_line(line)

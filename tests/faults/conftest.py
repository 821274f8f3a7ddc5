"""The preloaded library, compiled once; what the harness tried, which the end of the test run prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import preload


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preload.build(tmp_path_factory.mktemp("preload"))


@pytest.fixture
def tried(record_property: pytest.RecordProperty) -> object:
    """`tried(what, n)`: a property of the test, and by it a line of the summary."""

    def note(what: str, count: object) -> None:
        record_property(what, str(count))

    return note

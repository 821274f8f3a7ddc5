"""One engine session for all tests that need one."""

from collections.abc import Iterator

import pytest

from mmrec.lake.session import session, stop


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    """The local engine; stopped when the tests end."""
    yield session("local")
    stop("local")

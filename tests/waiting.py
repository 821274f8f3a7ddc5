"""Waiting for a server: a port nobody has, and the first true answer within a time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what: str, test: Callable[[], Any], seconds: float = 90) -> Any:
    """The first true answer of `test`; a server that does not answer (OSError) is not yet."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if found := test():
                return found
        except OSError as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:.0f} s: {what} ({last})")

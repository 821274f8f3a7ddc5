"""Threads of one computation: as many as there are cores, and no more where parts of it have parts.

In: how many users there are, what is done with some of them. Out: what that gave, in their order.
Trade-off: a part that ends early waits for the others; so who has several things to do with each user does them all in
one part.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_part = threading.local()


def cores() -> int:
    """How many this process may use; one within a part of `share`, which has its own."""
    if getattr(_part, "own", False):
        return 1
    # macOS has no affinity
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(n: int, few: int, work: Callable[[slice], _T], most: int | None = None) -> list[_T]:
    """Do `work` with parts of 0 to n, at least `few` in each but the last, at most `most`, at once where there is more
    than one.

    `work` must leave the interpreter's lock to others, and what parts of it write must lie apart.
    """
    threads = cores()
    each = max(few, -(-n // threads))
    if n and most is not None and each > most:
        each = -(-n // (threads * -(-n // (threads * most))))  # so many turns that threads end together
    parts = [slice(start, min(start + each, n)) for start in range(0, n, each)]
    if len(parts) < 2:
        return [work(p) for p in parts]
    with ThreadPoolExecutor(min(threads, len(parts)), initializer=lambda: setattr(_part, "own", True)) as pool:
        return list(pool.map(work, parts))

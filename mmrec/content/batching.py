"""Rows to vectors in batches of fixed shapes, on several threads.

In: rows in any order, each with a key that stands for the shape it is padded to. Out: a vector a row, in its place.
A batch's shape depends on its key alone and a row's key on the row alone, so a row's bits never depend on its
companions; a batch that stays incomplete is padded by who runs it.
Trade-off: each thread runs whole batches through a session that has one thread of its own. Two threads that share one
small batch spend a fifth of their time waiting for each other; the price is a batch in memory a thread.

Shape legend: B rows, D vector size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np


def fill(
    out_BD: np.ndarray,
    rows: Iterable[tuple[int, int, Any]],
    *,
    size: Callable[[int], int],
    run: Callable[[list[Any], int], np.ndarray],
    threads: int,
) -> None:
    """Write each row's vector into `out_BD`.

    Args:
        rows: (place in `out_BD`, key, row); read a few batches ahead of the threads.
        size: key -> rows of a whole batch. run: (at most so many rows, key) -> (rows, D), called by several threads.

    Raises: what `rows` or `run` raises.
    """
    waiting: dict[int, list[tuple[int, Any]]] = {}
    under_way: deque[tuple[list[int], Future[np.ndarray]]] = deque()

    def settle() -> None:
        places, future = under_way.popleft()
        out_BD[places] = future.result()

    with ThreadPoolExecutor(threads, "encode") as pool:

        def send(key: int) -> None:
            queue = waiting.pop(key)
            under_way.append(([place for place, _ in queue], pool.submit(run, [row for _, row in queue], key)))
            while len(under_way) > 2 * threads:
                settle()

        for place, key, row in rows:
            queue = waiting.setdefault(key, [])
            queue.append((place, row))
            if len(queue) == size(key):
                send(key)
        for key in sorted(waiting, reverse=True):  # the longest first: the threads end together
            send(key)
        while under_way:
            settle()

"""Rows in batches of fixed shapes: each vector in its place, whole batches of one shape, whatever the threads do."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.content.batching import fill


@given(st.lists(st.integers(1, 5), max_size=60), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_every_row_lands_in_its_place_and_batches_are_whole_but_the_last_of_a_shape(keys: list[int], threads: int) -> None:
    out = np.zeros((len(keys), 2), np.float32)
    seen: list[tuple[int, int]] = []
    lock = threading.Lock()

    def run(rows: list[int], key: int) -> np.ndarray:
        with lock:
            seen.append((key, len(rows)))
        return np.array([(row, key) for row in rows], np.float32)

    fill(out, ((i, key, i) for i, key in enumerate(keys)), size=lambda key: key + 1, run=run, threads=threads)
    assert out.tolist() == [[i, key] for i, key in enumerate(keys)]
    for key in set(keys):
        sizes = sorted(n for k, n in seen if k == key)
        count = keys.count(key)
        assert sum(sizes) == count
        assert len(sizes) == -(-count // (key + 1))
        assert all(n == key + 1 for n in sizes[1:])


def test_rows_are_read_no_further_ahead_than_two_batches_a_thread() -> None:
    read, begun, go = 0, threading.Semaphore(0), threading.Event()

    def rows():
        nonlocal read
        for i in range(100):
            read = i + 1
            yield i, 0, i

    def run(part: list[int], _: int) -> np.ndarray:
        begun.release()
        go.wait(20)
        return np.zeros((len(part), 1), np.float32)

    out = np.ones((100, 1), np.float32)
    worker = threading.Thread(target=fill, args=(out, rows()), kwargs={"size": lambda _: 2, "run": run, "threads": 2})
    worker.start()
    assert begun.acquire(timeout=20)
    assert begun.acquire(timeout=20)
    worker.join(0.3)
    assert read <= 2 * (2 * 2 + 1)  # two under way, two waiting, one that waits to be handed over
    go.set()
    worker.join(20)
    assert not out.any()


@pytest.mark.parametrize("threads", [1, 3])
def test_what_a_batch_raises_is_raised(threads: int) -> None:
    def run(rows: list[int], _: int) -> np.ndarray:
        raise ValueError(f"row {rows[0]}")

    with pytest.raises(ValueError, match="row 0"):
        fill(np.zeros((9, 1)), ((i, 0, i) for i in range(9)), size=lambda _: 3, run=run, threads=threads)

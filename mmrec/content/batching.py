"""Rows to vectors in batches of fixed shapes, on several threads.

In: rows in any order, each with a key that stands for the shape it is padded to. Out: a vector a row, in its place.
A medium of several rows, as a video is its frames, gets one vector of them all.
A batch's shape depends on its key alone and a row's key on the row alone, so a row's bits never depend on its
companions; a batch that stays incomplete is padded by who runs it.
Trade-off: each thread runs whole batches through a session that has one thread of its own. Two threads that share one
small batch spend a fifth of their time waiting for each other; the price is a batch in memory a thread.

Shape legend: B rows, D vector size, P places (of frames and of media that are one row), F frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from mmrec.content.media import BadMedia


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


def fill_media(
    out_BD: np.ndarray,
    why: list[str | None],
    media: Iterable[np.ndarray | BadMedia],
    *,
    frames: Sequence[int],
    size: Callable[[int], int],
    run: Callable[[list[Any], int], np.ndarray],
    threads: int,
) -> None:
    """As `fill`, of media in the order of `out_BD`, all of one shape; a video is several arrays of it, stacked.

    A video's vector has the direction of the mean of its frames' unit vectors and the mean of their lengths: where all
    frames are one picture, it is that picture's.

    Args:
        why: a row takes the reason of a medium that was refused; its vector stays as it is.
        frames: of each medium; 0: it is a row itself.

    Raises: what `media` or `run` raises; ValueError: a video of another number of frames.
    """
    first_B = np.cumsum([0, *(max(1, n) for n in frames)])
    emb_PD = np.zeros((first_B[-1], out_BD.shape[1]), np.float32) if any(frames) else out_BD

    def rows() -> Iterator[tuple[int, int, np.ndarray]]:
        for r, got in enumerate(media):
            if isinstance(got, BadMedia):
                why[r] = str(got)
            else:
                places = range(int(first_B[r]), int(first_B[r + 1]))
                for place, row in zip(places, got if frames[r] else [got], strict=True):
                    yield place, 0, row

    fill(emb_PD, rows(), size=size, run=run, threads=threads)
    if not any(frames):
        return
    for r, n in enumerate(frames):
        if why[r] is None:
            own_FD = emb_PD[first_B[r] : first_B[r + 1]]
            out_BD[r], why[r] = _mean(own_FD) if n else (own_FD[0], None)


def _mean(emb_FD: np.ndarray) -> tuple[np.ndarray, str | None]:
    emb_FD = emb_FD.astype(np.float64)
    length_F1 = np.linalg.norm(emb_FD, axis=1, keepdims=True)
    mean_D = (emb_FD / np.maximum(length_F1, 1e-12)).mean(0)
    length = np.linalg.norm(mean_D)
    if length < 1e-6:  # below, the vector would be rounding noise
        return np.zeros(len(mean_D)), "no_direction: its frames cancel each other out"
    return mean_D / length * length_F1.mean(), None

"""Training batches of real tokens: windows of histories, in length buckets.

In: a log and its train rows, arrays that Arrow gave. Out: right-aligned arrays of one length a batch, in an order fixed
by seed and epoch, so that any batch can be made again, by any process; a fit that goes on skips those it has had.
Trade-off: windows of a batch have lengths within one bucket, so at most a quarter of an epoch is padding, and a
user's windows are cut at a random offset each epoch, so that no position is always first.

Shape legend: B windows, L inputs (targets are one further on).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Thread
from typing import TypeVar

import numpy as np

from mmrec.models.data import Log

Made = TypeVar("Made")
_AHEAD = 4  # made before they are asked for


@dataclass(frozen=True)
class Batch:
    """`rows_BL`: rows of the log, -1 for padding, right-aligned; `next_BL`: the row after each; `asked_BL`: whether
    that row is of an item the user had not had before, which is all a list is asked for."""

    rows_BL: np.ndarray
    next_BL: np.ndarray
    asked_BL: np.ndarray


class Batches:
    """Every train row that has a predecessor, and whose item is new to its user, is a target once an epoch."""

    def __init__(self, log: Log, train: np.ndarray, *, context: int, tokens: int, seed: int) -> None:
        """`train`: (E,) bool. context: longest window. tokens: inputs a batch holds at most, padding included."""
        self.context, self.tokens, self.seed = context, tokens, seed
        self.rows = np.flatnonzero(train)
        pair = log.user[self.rows].astype(np.int64) * (int(log.item.max(initial=0)) + 1) + log.item[self.rows]
        self.first = np.zeros(len(log.user), bool)
        self.first[self.rows[np.unique(pair, return_index=True)[1]]] = True
        ptr = np.searchsorted(log.user[self.rows], np.arange(log.n_users + 1))
        inputs = np.maximum(np.diff(ptr) - 1, 0)
        self.start, self.inputs = ptr[:-1][inputs > 0], inputs[inputs > 0]

    def count(self, n: int) -> int:
        """Batches of epoch `n`; none of them is made."""
        return len(self._plan(n)[2])

    def epoch(self, n: int, start: int = 0) -> Iterator[Batch]:
        """Batches of epoch `n` from number `start` on."""
        begin, size, groups = self._plan(n)
        return (self._batch(begin[group], size[group]) for group in groups[start:])

    def _plan(self, n: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """(places in `rows` where windows begin, their inputs, the windows of each batch in order)."""
        rng = np.random.default_rng([self.seed, n])
        begin, size = self._windows(rng)
        groups = self._groups(size, rng)
        return begin, size, [groups[g] for g in rng.permutation(len(groups))]

    def _windows(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(places in `rows` where windows begin, their inputs)."""
        c = self.context
        # a shorter first window moves all the cuts
        head = np.where(self.inputs >= c, rng.integers(1, c + 1, len(self.inputs)), self.inputs)
        head = np.minimum(head, self.inputs)
        count = 1 + -(-(self.inputs - head) // c)
        owner = np.repeat(np.arange(len(count)), count)
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        offset = np.where(nth == 0, 0, head[owner] + (nth - 1) * c)
        size = np.where(nth == 0, head[owner], np.minimum(c, self.inputs[owner] - offset))
        return self.start[owner] + offset, size

    def _groups(self, size: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Windows of each batch: alike in length, as many as fit."""
        order = np.lexsort((rng.random(len(size)), np.ceil(np.log2(size) * 2)))
        groups, at = [], 0
        while at < len(order):
            near = size[order[at : at + self.tokens]]
            area = np.maximum.accumulate(near) * np.arange(1, len(near) + 1)
            full = (area > self.tokens) | (near > 1.5 * near[0] + 1)
            full[0] = False
            taken = int(full.argmax()) if full.any() else len(near)
            groups.append(order[at : at + taken])
            at += taken
        return groups

    def _batch(self, begin_B: np.ndarray, size_B: np.ndarray) -> Batch:
        length = int(size_B.max())
        at_BL = np.arange(length) - (length - size_B[:, None])
        real_BL = at_BL >= 0
        place_BL = begin_B[:, None] + np.maximum(at_BL, 0)
        next_BL = np.where(real_BL, self.rows[place_BL + 1], -1)
        return Batch(np.where(real_BL, self.rows[place_BL], -1), next_BL, real_BL & self.first[next_BL])


def ahead(made: Iterator[Made]) -> Iterator[Made]:
    """The same, made by a thread a few ahead; an error there is raised here. The thread ends with the iterator."""
    queue: Queue[tuple[Made | None, BaseException | None]] = Queue(_AHEAD)
    left = Event()

    def work() -> None:
        try:
            for one in made:
                queue.put((one, None))
                if left.is_set():
                    return
            queue.put((None, None))
        except BaseException as error:
            queue.put((None, error))

    thread = Thread(target=work, daemon=True, name="batches")
    thread.start()
    try:
        while True:
            one, error = queue.get()
            if error is not None:
                raise error
            if one is None:
                return
            yield one
    finally:
        left.set()
        while thread.is_alive():  # it may wait for room
            with suppress(Empty):
                queue.get(timeout=0.01)

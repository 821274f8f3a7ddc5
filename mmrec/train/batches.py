"""Training batches of real tokens: windows of histories, in length buckets.

In: a log and its train rows. Out: right-aligned arrays of one length a batch, in an order fixed by seed and epoch.
Trade-off: windows of a batch have lengths within one bucket, so at most a quarter of an epoch is padding, and a
user's windows are cut at a random offset each epoch, so that no position is always first.

Shape legend: B windows, L inputs (targets are one further on).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mmrec.models.data import Log


@dataclass(frozen=True)
class Batch:
    """`rows_BL`: rows of the log, -1 for padding, right-aligned; `next_BL`: the row after each; `asked_BL`: whether
    that row is of an item the user had not had before, which is all a list is asked for."""

    rows_BL: np.ndarray
    next_BL: np.ndarray
    asked_BL: np.ndarray


def batches(log: Log, train: np.ndarray, *, context: int, tokens: int, seed: int, epoch: int) -> Iterator[Batch]:
    """Every train row that has a predecessor, and whose item is new to its user, is a target once an epoch.

    Args:
        train: (E,) bool. context: longest window. tokens: inputs a batch holds at most.
    """
    rng = np.random.default_rng([seed, epoch])
    rows = np.flatnonzero(train)
    pair = log.user[rows].astype(np.int64) * (int(log.item.max(initial=0)) + 1) + log.item[rows]
    first = np.zeros(len(log.user), bool)
    first[rows[np.unique(pair, return_index=True)[1]]] = True
    ptr = np.searchsorted(log.user[rows], np.arange(log.n_users + 1))
    windows: list[tuple[int, int]] = []
    for u in range(log.n_users):
        start, end = int(ptr[u]), int(ptr[u + 1])
        if end - start < 2:
            continue
        # inputs are start..end-2; a shorter first window moves all the cuts
        cut = start + int(rng.integers(1, context + 1)) if end - start > context else end - 1
        cuts = [start, *range(min(cut, end - 1), end - 1, context), end - 1]
        windows += [(a, b) for a, b in pairwise(cuts) if b > a]
    size = np.array([b - a for a, b in windows])
    order = np.lexsort((rng.random(len(size)), np.ceil(np.log2(size) * 2)))
    groups: list[list[int]] = []
    for i in order:
        longest = max(size[i], size[groups[-1]].max()) if groups else size[i]
        if groups and longest * (len(groups[-1]) + 1) <= tokens and size[i] <= 1.5 * size[groups[-1][0]] + 1:
            groups[-1].append(i)
        else:
            groups.append([i])
    for g in rng.permutation(len(groups)):
        members = groups[g]
        length = int(size[members].max())
        rows_BL = np.full((len(members), length), -1, np.int64)
        next_BL = np.full((len(members), length), -1, np.int64)
        for b, i in enumerate(members):
            a, e = windows[i]
            rows_BL[b, length - (e - a) :] = rows[a:e]
            next_BL[b, length - (e - a) :] = rows[a + 1 : e + 1]
        yield Batch(rows_BL, next_BL, (next_BL >= 0) & first[next_BL])

"""What evaluation asks of a model, the matrices that baselines are made from, and the simplest of them, popularity.

In: `Items`, `Log`, `Fold`. Out: scores of every item for every case, (B, N) float32.
Every baseline is fitted on the fold's train rows alone, and ranks from the case's history; all of them are listed in
rivals.py.
Trade-off: an interaction is there or not: neither its weight nor a repeat counts, as in the publications compared with.

Shape legend: B cases of a block, N items, U users.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy import sparse

from mmrec.models.data import Fold, Items, Log

_DAY = 86_400_000_000


class Recommender(Protocol):
    """What evaluation asks of a model."""

    name: str

    def fit(self, items: Items, log: Log, fold: Fold) -> Recommender:
        """Learn from the `fold.train` rows and `fold.fit_at_us`, and from nothing else of the log; returns itself."""
        ...

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        """(B, N) float32 for the fold's cases start:stop, from their history rows; greater is better.

        Seen items and items not on offer are taken out by whoever ranks."""
        ...


def train_matrix(log: Log, fold: Fold, n_items: int) -> sparse.csr_matrix:
    """(U, N) float32, 1 where a user of the train rows had an item."""
    rows, cols = log.user[fold.train], log.item[fold.train]
    x = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, cols)), shape=(log.n_users, n_items))
    x.data[:] = 1
    return x


def history_matrix(log: Log, fold: Fold, cases: slice, n_items: int) -> sparse.csr_matrix:
    """(B, N) float32, 1 where a case's history holds an item."""
    ptr = fold.hist_ptr[cases.start : cases.stop + 1]
    items = log.item[fold.hist_row[ptr[0] : ptr[-1]]]
    x = sparse.csr_matrix((np.ones(len(items), np.float32), items, ptr - ptr[0]), shape=(len(ptr) - 1, n_items))
    x.sum_duplicates()
    x.data[:] = 1
    return x


class Popularity:
    """Decayed count of users, each by their latest interaction with the item; the same list for everybody."""

    name = "popularity"

    def __init__(self, half_life_days: float = np.inf) -> None:
        self.half_life_days = half_life_days

    def __repr__(self) -> str:
        return f"Popularity(half_life_days={self.half_life_days:g})"

    def fit(self, items: Items, log: Log, fold: Fold) -> Popularity:
        rows = np.flatnonzero(fold.train)
        pair = log.user[rows].astype(np.int64) * items.n + log.item[rows]
        order = np.lexsort((log.ts_us[rows], pair))
        last = np.append(pair[order][1:] != pair[order][:-1], True)[: len(rows)]
        kept = rows[order][last]
        age = (fold.fit_at_us - log.ts_us[kept]) / _DAY
        weight = np.exp2(-np.maximum(age, 0) / self.half_life_days)
        self.score_N = np.bincount(log.item[kept], weight, items.n).astype(np.float32)
        return self

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        return np.broadcast_to(self.score_N, (cases.stop - cases.start, items.n))

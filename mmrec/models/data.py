"""Dense views of the tables, as models see them.

In: Arrow tables of interactions, items and item embeddings.
Out: `Items` (catalogue and content vectors), `Log` (interactions), `Fold` (what may be fitted on, what is asked).
Dense indices exist inside these objects and inside a model bundle, nowhere else; everything outside
speaks in external ids.
Trade-off: the whole log of one shop is held in memory as flat arrays (26 bytes an interaction), which keeps
every model and baseline a few lines of numpy.

Shape legend: N items, U users, E interactions, C cases, D vector size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Items:
    """The catalogue.

    Attributes:
        ids: (N,) object array of str, ascending in UTF-8 byte order, so that a smaller index is a smaller id
            and ties by index are ties by item id.
        content: modality -> (N, D_m) float32, a zero row where the item has none.
        present: modality -> (N,) bool.
        available_us: (N,) int64, microseconds UTC since 1970 from which the item may be recommended.
        withdrawn_us: (N,) int64, from which it may no longer be (int64 max: never).
        category: (N,) object array of str, the item's first category ("" if none); for slices and diversity.
        group: (N,) int64, equal where items are the same thing listed twice; None: no such items are known.
    """

    ids: np.ndarray
    content: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    available_us: np.ndarray
    withdrawn_us: np.ndarray
    category: np.ndarray
    group: np.ndarray | None = None

    @property
    def n(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """External item id -> dense index."""
        return {item_id: i for i, item_id in enumerate(self.ids)}

    def catalogue_at(self, at_us: int) -> np.ndarray:
        """(N,) bool: items on offer at `at_us`."""
        return (self.available_us < at_us) & (at_us <= self.withdrawn_us)

    def with_twins(self, mark_N: np.ndarray) -> np.ndarray:
        """(N,) bool: the marked items, and all that are the same thing as one of them."""
        if self.group is None:
            return mark_N
        return np.isin(self.group, self.group[mark_N])


@dataclass(frozen=True)
class Log:
    """Interactions, ordered by user, then event time, then item id, then event type.

    Attributes:
        user_ids: (U,) object array of str, ascending.
        event_types: names of the codes in `event`.
        user, item: (E,) int32 dense indices. ts_us: (E,) int64. weight: (E,) float32. event: (E,) int16.
        available_us: (E,) int64, when the source delivered the row.
        context, text: (E,) object arrays, JSON of where an event happened and the user's own words, or None; None: not
            looked at.
    """

    user_ids: np.ndarray
    event_types: tuple[str, ...]
    user: np.ndarray
    item: np.ndarray
    ts_us: np.ndarray
    weight: np.ndarray
    event: np.ndarray
    available_us: np.ndarray
    context: np.ndarray | None = None
    text: np.ndarray | None = None

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @cached_property
    def ptr(self) -> np.ndarray:
        """(U + 1,) int64: user u owns rows ptr[u]:ptr[u + 1]."""
        return np.searchsorted(self.user, np.arange(self.n_users + 1)).astype(np.int64)


@dataclass(frozen=True)
class Fold:
    """One evaluation: fit on `train`, then rank the catalogue for every case.

    Attributes:
        name: protocol, and the cut where there are several: "per_user", "rolling/2018-04-01".
        train: (E,) bool, interactions a model may be fitted on.
        fit_at_us: the latest moment the fit may know of (for decayed popularity).
        case_user: (C,) int32.
        case_at_us: (C,) int64, the moment the list is made; every history row is earlier or equal.
        hist_ptr, hist_row: CSR, (C + 1,) int64 and rows of `Log`, in time order: what the ranker may look at.
        target_ptr, target_item: CSR, distinct item indices asked for, none of them in the case's history.
        catalogue: (N,) bool, items that may be ranked.
    """

    name: str
    train: np.ndarray
    fit_at_us: int
    case_user: np.ndarray
    case_at_us: np.ndarray
    hist_ptr: np.ndarray
    hist_row: np.ndarray
    target_ptr: np.ndarray
    target_item: np.ndarray
    catalogue: np.ndarray

    @property
    def n_cases(self) -> int:
        return len(self.case_user)

    def some(self, keep_C: np.ndarray) -> Self:
        """The same with some of its cases. `keep_C`: (C,) bool."""
        hist, target = (np.diff(p) for p in (self.hist_ptr, self.target_ptr))
        return replace(
            self,
            case_user=self.case_user[keep_C],
            case_at_us=self.case_at_us[keep_C],
            hist_ptr=np.concatenate([[0], np.cumsum(hist[keep_C])]).astype(np.int64),
            hist_row=self.hist_row[np.repeat(keep_C, hist)],
            target_ptr=np.concatenate([[0], np.cumsum(target[keep_C])]).astype(np.int64),
            target_item=self.target_item[np.repeat(keep_C, target)],
        )

    def cold_items(self, items: Items, log: Log) -> np.ndarray:
        """(N,) bool: items on offer that what is fitted on `train` knows by content alone.

        Neither they nor a twin of theirs has a train interaction: near-duplicates are hidden together or not at all,
        because what is known of a twin would be known of the item.
        """
        touched = np.zeros(items.n, bool)
        touched[log.item[self.train]] = True
        return ~items.with_twins(touched) & self.catalogue


def events_a_user(log: Log, train: np.ndarray) -> float:
    """Mean rows of users that have one. `train`: (E,) bool."""
    return float(train.sum()) / max(len(np.unique(log.user[train])), 1)


def group_codes(ids: Sequence[str], groups: Mapping[str, str]) -> np.ndarray:
    """(N,) int64 of items, equal where `groups`, item id -> group id, puts two into one group."""
    at: dict[tuple[bool, str], int] = {}
    keys = [(True, groups[i]) if i in groups else (False, i) for i in ids]
    return np.array([at.setdefault(key, len(at)) for key in keys], np.int64)

"""What users must not get, as CSR: (B + 1,) int64 ptr and int32 item indices, in any order, repeats welcome.

In: that of some users. Out: that of some of them, or as positions in a part of the catalogue.
Trade-off: plain arrays, so that they cross processes and compiled loops as they are; who makes them checks them.

Shape legend: B users, N items, M items that may be shown.
"""

from __future__ import annotations

import numpy as np

Seen = tuple[np.ndarray, np.ndarray]


def of_users(seen: Seen, users: np.ndarray) -> Seen:
    """What some of the users have seen. `users`: indices."""
    ptr, idx = seen
    rows = [idx[ptr[u] : ptr[u + 1]] for u in users]
    return np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64), np.concatenate(rows)


def positions(seen: Seen | None, b: int, n: int, keep_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Seen items as positions in `keep_M`, ascending within a user."""
    if seen is None or not b:
        return np.zeros(b + 1, np.int64), np.zeros(0, np.int32)
    ptr, idx = np.asarray(seen[0], np.int64), np.asarray(seen[1], np.int64)
    owner = np.repeat(np.arange(b), np.diff(ptr))
    idx = idx[ptr[0] : ptr[-1]]
    position = np.full(n, -1, np.int64)
    position[keep_M] = np.arange(len(keep_M))
    at = position[idx]
    owner, at = owner[at >= 0], at[at >= 0]
    key = np.sort(owner * max(n, 1) + at)
    counts = np.bincount(owner, minlength=b)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), (key % max(n, 1)).astype(np.int32)

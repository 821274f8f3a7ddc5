"""What users must not get, as CSR: (B + 1,) int64 ptr and int32 item indices, in any order, repeats welcome.

In: that of some users. Out: that of some of them, or as positions in a part of the catalogue.
Trade-off: plain arrays, so that they cross processes and compiled loops as they are; who makes them checks them.

Shape legend: B users, N items, M items that may be shown.
"""

from __future__ import annotations

import numpy as np

from mmrec.topk.compiled import jit

Seen = tuple[np.ndarray, np.ndarray]


def of_users(seen: Seen, users: np.ndarray) -> Seen:
    """What some of the users have seen. `users`: indices."""
    ptr, idx = seen
    if len(users) and users[-1] - users[0] == len(users) - 1 and (np.diff(users) == 1).all():
        return of_rows(seen, slice(int(users[0]), int(users[-1]) + 1))
    rows = [idx[ptr[u] : ptr[u + 1]] for u in users]
    return np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64), np.concatenate(rows)


def of_rows(seen: Seen, rows: slice) -> Seen:
    """The same of users that stand together."""
    ptr = seen[0][rows.start : rows.stop + 1]
    return ptr - ptr[0], seen[1][ptr[0] : ptr[-1]]


def positions(seen: Seen | None, rows: slice, place_N: np.ndarray) -> Seen:
    """What the users of `rows` have seen, as places of items, ascending within a user; without the interpreter's lock.

    Args:
        seen: of all users; None: nobody has seen anything. place_N: (N,) int32, -1: an item that is not on offer.
    """
    if seen is None:
        return np.zeros(rows.stop - rows.start + 1, np.int64), np.zeros(0, np.int32)
    ptr, idx = seen
    own = np.ascontiguousarray(ptr[rows.start : rows.stop + 1], np.int64)
    idx = np.ascontiguousarray(idx[own[0] : own[-1]], np.int32)
    out_ptr, key = np.zeros(len(own), np.int64), np.empty(len(idx), np.int64)
    _place(own - own[0], idx, place_N, out_ptr, key)
    key = key[: out_ptr[-1]]
    key.sort()  # at once: numpy's sort of many numbers takes a fifth of as many sorts of a few
    return out_ptr, key.astype(np.int32)


@jit
def _place(ptr: np.ndarray, idx: np.ndarray, place_N: np.ndarray, out_ptr: np.ndarray, key: np.ndarray) -> None:
    """Keys of places, by user and then place: a place is the lower half."""
    n = 0
    for b in range(len(ptr) - 1):
        for e in range(ptr[b], ptr[b + 1]):
            place = place_N[idx[e]]
            if place >= 0:
                key[n] = (b << 32) | place
                n += 1
        out_ptr[b + 1] = n

"""Folds: which interactions a model may be fitted on, and what it is then asked.

In: `Log` and `Items`. Out: `Fold`s of the protocols `rolling` (global time cuts, the default), `per_user` (each
user's last share) and `leave_one_out` (published benchmarks).
A target is an item the user has not had before and that is on offer; others are left out, as no list could hold them.
Trade-off: `per_user` lets a model be fitted on other users' later interactions; it has many more cases on small data,
which is why it is kept, and it is not how a night works, which is why it is not the default.
"""

from __future__ import annotations

import numpy as np

from mmrec.models.data import Fold, Items, Log

_DAY = 86_400_000_000


def rolling(
    log: Log, items: Items, end_us: int, *, days: int, cuts: int, skip: int = 0, min_history: int = 5
) -> list[Fold]:
    """Global time cuts, oldest first: window i is [end - (skip + cuts - i) days, + days).

    A case is a user with at least `min_history` distinct items before the cut and a new item inside the window.

    Args:
        end_us: end of the last window, exclusive. skip: windows left out at the end (validation lies before test).
    """
    found = []
    for i in range(cuts):
        cut = end_us - (skip + cuts - i) * days * _DAY
        before = (log.ts_us < cut) & (log.available_us < cut)
        inside = (log.ts_us >= cut) & (log.ts_us < cut + days * _DAY)
        found.append(_fold(f"rolling/{i}", log, items, before, inside, min_history, cut, None))
    return found


def per_user(log: Log, items: Items, *, share: float = 0.2, min_history: int = 5, validation: bool = False) -> Fold:
    """The last `share` of every user's interactions, by time; with `validation`, the last share of what is before it."""
    rank = np.arange(len(log.user)) - log.ptr[log.user]
    size = np.diff(log.ptr)
    first_test = size - (size * share).astype(np.int64)
    train, test = rank < first_test[log.user], rank >= first_test[log.user]
    if validation:
        first_val = first_test - (first_test * share).astype(np.int64)
        train, test = rank < first_val[log.user], train & (rank >= first_val[log.user])
    return _fold("per_user", log, items, train, test, min_history, None, int(log.ts_us.max(initial=0)) + 1)


def leave_one_out(log: Log, items: Items, *, validation: bool = False) -> Fold:
    """The last interaction of every user; with `validation`, the one before it (and the last one nowhere)."""
    back = log.ptr[log.user + 1] - 1 - np.arange(len(log.user))
    place = 1 if validation else 0
    return _fold("leave_one_out", log, items, back > place, back == place, 1, None, int(log.ts_us.max(initial=0)) + 1)


def _fold(
    name: str,
    log: Log,
    items: Items,
    train: np.ndarray,
    test: np.ndarray,
    min_history: int,
    cut: int | None,
    offer_us: int | None,
) -> Fold:
    # `cut`: one moment for all; otherwise each user's own: the time of their first target
    catalogue = items.catalogue_at(cut if cut is not None else offer_us or 0)
    users, at, hist_ptr, hist, target_ptr, target = [], [], [0], [], [0], []
    for u in np.unique(log.user[test]):
        rows = np.arange(log.ptr[u], log.ptr[u + 1])
        past, future = rows[train[rows]], rows[test[rows]]
        had = set(log.item[past].tolist())
        wanted = list(dict.fromkeys(i for i in log.item[future].tolist() if i not in had and catalogue[i]))
        if len(had) < min_history or not wanted:
            continue
        users.append(u)
        at.append(cut if cut is not None else int(log.ts_us[future[0]]))
        hist.append(past)
        hist_ptr.append(hist_ptr[-1] + len(past))
        target.extend(wanted)
        target_ptr.append(target_ptr[-1] + len(wanted))
    fit_at = cut if cut is not None else int(log.ts_us[train].max(initial=0)) + 1
    return Fold(
        name,
        train,
        fit_at,
        np.array(users, np.int32),
        np.array(at, np.int64),
        np.array(hist_ptr, np.int64),
        np.concatenate(hist) if hist else np.zeros(0, np.int64),
        np.array(target_ptr, np.int64),
        np.array(target, np.int32),
        catalogue,
    )

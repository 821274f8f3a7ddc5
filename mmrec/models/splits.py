"""Folds: which interactions a model may be fitted on, and what it is then asked.

In: `Log` and `Items`. Out: `Fold`s of the protocols `rolling` (global time cuts, the default), `per_user` (each
user's last share), `leave_one_out` (published benchmarks) and `hidden` (items nobody has had yet).
A target is an item the user has not had before and that is on offer; others are left out, as no list could hold
them, and counted. Which items a fold hides from what is fitted on it: `Fold.cold_items`.
Trade-off: `per_user` lets a model be fitted on other users' later interactions; it has many more cases on small data,
which is why it is kept, and it is not how a night works, which is why it is not the default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from mmrec.errors import InputError
from mmrec.models.data import Fold, Items, Log

_DAY = 86_400_000_000


@dataclass(frozen=True)
class CountedFold(Fold):
    """A `Fold` that knows what it left out.

    Attributes:
        dropped_targets: (case, item) pairs that were new to the user but not on offer, so that no list could hold them.
    """

    dropped_targets: int = 0


def rolling(
    log: Log, items: Items, end_us: int, *, days: int, cuts: int, skip: int = 0, min_history: int = 5
) -> list[CountedFold]:
    """Global time cuts, oldest first: window i is [end - (skip + cuts - i) days, + days).

    A case is a user with at least `min_history` distinct items before the cut and a new item inside the window that
    is on offer at the cut. Rows before the cut count where they were also delivered before it. A window nobody has a
    case in is a fold without cases.

    Args:
        end_us: end of the last window, exclusive. skip: windows left out at the end (validation lies before test).

    Returns: `cuts` folds, named "rolling/<UTC date of the cut>".

    Raises:
        InputError: days, cuts or min_history below 1, skip below 0.
    """
    if min(days, cuts, min_history, skip + 1) < 1:
        given = {"days": days, "cuts": cuts, "skip": skip, "min_history": min_history}
        raise InputError("These windows can't be cut.", value=given, valid="1 or more; skip 0 or more")
    found = []
    for i in range(cuts):
        cut = end_us - (skip + cuts - i) * days * _DAY
        name = f"rolling/{(datetime(1970, 1, 1) + timedelta(microseconds=cut)).date().isoformat()}"
        found.append(window(name, log, items, cut, cut + days * _DAY, min_history=min_history))
    return found


def window(name: str, log: Log, items: Items, since_us: int, until_us: int, *, min_history: int = 5) -> CountedFold:
    """One window of `rolling`: what was there before `since_us` is known, new items up to `until_us` are asked for."""
    before = (log.ts_us < since_us) & (log.available_us < since_us)
    inside = (log.ts_us >= since_us) & (log.ts_us < until_us)
    return _fold(name, log, items, before, before, inside, min_history, since_us, None)


def per_user(
    log: Log, items: Items, *, share: float = 0.2, min_history: int = 5, validation: bool = False
) -> CountedFold:
    """The last `share` of every user's interactions (rounded down), by time; with `validation`, the last share of what
    is before it.

    Raises:
        InputError: share not between 0 and 1, min_history below 1.
    """
    if not 0 < share < 1 or min_history < 1:
        raise InputError(
            "This share can't be split off.", value=(share, min_history), valid="0 < share < 1, min_history >= 1"
        )
    rank = np.arange(len(log.user)) - log.ptr[log.user]
    first_test = _first(np.diff(log.ptr), share)
    train, test = rank < first_test[log.user], rank >= first_test[log.user]
    if validation:
        first_val = _first(first_test, share)
        train, test = rank < first_val[log.user], train & (rank >= first_val[log.user])
    name = "per_user/validation" if validation else "per_user"
    return _fold(name, log, items, train, train, test, min_history, None, int(log.ts_us.max(initial=0)) + 1)


def leave_one_out(log: Log, items: Items, *, validation: bool = False) -> CountedFold:
    """The last interaction of every user; with `validation`, the one before it (and the last one nowhere).

    As published numbers are made: train is every row but a user's last two in both variants, and the history of a
    test case holds the validation row (Kang and McAuley, ICDM 2018, section IV, but ranked against all items).
    """
    back = log.ptr[log.user + 1] - 1 - np.arange(len(log.user))
    place = 1 if validation else 0
    name = "leave_one_out/validation" if validation else "leave_one_out"
    offer_us = int(log.ts_us.max(initial=0)) + 1
    return _fold(name, log, items, back > 1, back > place, back == place, 1, None, offer_us)


def hidden(
    log: Log, items: Items, *, share: float = 0.1, seed: int = 0, validation: bool = False
) -> CountedFold:
    """A share of the items hidden, twins with them: no row of theirs is in train or in a history, and every user who
    had one is asked for it among the hidden items alone.

    With `validation` another share is hidden, too, and asked for together with each user's last other item among all
    items but those the test hides: what ranks cold items among themselves, and how they stand among all, can be chosen.

    Args:
        share: of the items that anybody had. seed: of the draw; both variants must have the same.

    Raises: InputError: share not above 0 and below a half.
    """
    if not 0 < share < 0.5:
        raise InputError("This share of items can't be hidden.", value=share, valid="0 < share < 0.5")
    group = np.arange(items.n) if items.group is None else items.group
    order = np.random.default_rng(seed).permutation(np.unique(group[np.unique(log.item)]))
    n = max(1, round(share * len(order)))
    test_N, val_N = np.isin(group, order[:n]), np.isin(group, order[n : 2 * n])
    name, end_us = "hidden/validation" if validation else "hidden", int(log.ts_us.max(initial=0)) + 1
    if validation:
        rest = np.flatnonzero(~(test_N | val_N)[log.item])
        last = np.zeros(len(log.user), bool)
        last[rest[np.append(np.diff(log.user[rest]) > 0, True)[: len(rest)]]] = True
        train, test = ~(test_N | val_N)[log.item] & ~last, val_N[log.item] | last
    else:
        train, test = ~test_N[log.item], test_N[log.item]
    made = _fold(name, log, items, train, train, test, 1, None, end_us)
    # a list is made after all that a history holds
    made = replace(made, case_at_us=np.maximum.reduceat(log.ts_us[made.hist_row], made.hist_ptr[:-1]) + 1
                   if made.n_cases else made.case_at_us)  # fmt: skip
    return replace(made, catalogue=made.catalogue & (~test_N if validation else test_N))


def _first(size: np.ndarray, share: float) -> np.ndarray:
    # 100 * 0.29 is 28.999...: a hair is added so that a whole number stays one
    return size - np.floor(size * share + 1e-9).astype(np.int64)


def _fold(
    name: str,
    log: Log,
    items: Items,
    train: np.ndarray,
    history: np.ndarray,
    test: np.ndarray,
    min_history: int,
    cut: int | None,
    offer_us: int | None,
) -> CountedFold:
    # `cut`: one moment for all; otherwise each user's own: the time of their first test row
    catalogue = items.catalogue_at(cut if cut is not None else offer_us or 0)
    width = max(items.n, 1)
    pair = log.user.astype(np.int64) * width + log.item
    had = np.unique(pair[history])
    wanted, at_row = np.unique(pair[test], return_index=True)
    enough = np.bincount(had // width, minlength=log.n_users) >= min_history
    new = ~np.isin(wanted, had, assume_unique=True) & enough[wanted // width]
    asked = new & catalogue[wanted % width]
    # targets in the order of time within a user, as the log has them
    asked_row = np.sort(np.flatnonzero(test)[at_row[asked]])
    count_U = np.bincount(log.user[asked_row], minlength=log.n_users)
    users = np.flatnonzero(count_U).astype(np.int32)
    hist_row = np.flatnonzero(history & (count_U > 0)[log.user])
    hist_U = np.bincount(log.user[hist_row], minlength=log.n_users)
    at_U = np.zeros(log.n_users, np.int64)
    earliest = np.flatnonzero(test)[::-1]
    at_U[log.user[earliest]] = log.ts_us[earliest]  # of a user's rows the first is written last
    return CountedFold(
        name=name,
        train=train,
        fit_at_us=cut if cut is not None else int(log.ts_us[train].max(initial=0)) + 1,
        case_user=users,
        case_at_us=np.full(len(users), cut, np.int64) if cut is not None else at_U[users],
        hist_ptr=np.concatenate([[0], np.cumsum(hist_U[users])]).astype(np.int64),
        hist_row=hist_row.astype(np.int64),
        target_ptr=np.concatenate([[0], np.cumsum(count_U[users])]).astype(np.int64),
        target_item=log.item[asked_row].astype(np.int32),
        catalogue=catalogue,
        dropped_targets=int((new & ~asked).sum()),
    )

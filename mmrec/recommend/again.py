"""What users have had, and what of it they may get again: repeats that the shop's rules allow.

In: rows of gold.user_sequences, the catalogue's ids, a ruling. Out: `Had`: what must not be in a list, what a model is
told of a history, and which pairs a rule has freed.
A user's every event with an item keeps it out, but for those that a rule of kind repeat names and that are as old as it
asks for. What is older than the sequence that features keep is of an unknown type: it is freed only by a rule of any.
Trade-off: histories are gone through event by event, by nights that have such a rule alone.

Shape legend: U users, B some of them, E their events, N items, K places, X freed pairs, R rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmrec.recommend.histories import Rows, flat, places, rows_of
from mmrec.recommend.ruling import TABLES, Ruling
from mmrec.recommend.wishes import Wishes

COLUMNS = ("event_types", "event_us", "n_interactions")
_DAY = 86_400_000_000
_NONE = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Had:
    """Of U users.

    Attributes:
        seen: places in the catalogue of what a user must not get. history: of what a model knows of the sequence, the
            latest last. key: (X,) int64 ascending, user * N + item of freed pairs. rule: (X,) int16, which freed it.
    """

    seen: Rows
    history: Rows
    key: np.ndarray
    rule: np.ndarray
    n: int

    def freed(self, block: slice, item_BK: np.ndarray) -> np.ndarray | None:
        """(B, K) int16: the rule that lets a user of a block have an item again, -1: none; None: no rule does."""
        if not len(self.key):
            return None
        wanted_BK = np.arange(block.start, block.stop)[:, None] * self.n + item_BK
        at_BK = np.minimum(np.searchsorted(self.key, wanted_BK), len(self.key) - 1)
        return np.where((self.key[at_BK] == wanted_BK) & (item_BK >= 0), self.rule[at_BK], np.int16(-1))


def had(
    users: pa.Table, ids: pa.Array, speaks_N: np.ndarray | None, ruling: Ruling | None, wishes: Wishes | None = None
) -> Had:
    """What users have had.

    Args:
        users: user_id, item_ids, seen_item_ids, and of a ruling with repeats attributes and `COLUMNS`. ids: of the
            catalogue, ascending. speaks_N: (N,) bool, items that the model knows; None: all. wishes: what users hide
            must not be in their lists, either; None: nobody hides anything.
    """
    seen, history = (rows_of(users[c], ids) for c in ("seen_item_ids", "item_ids"))
    key, rule = np.zeros(0, np.int64), np.zeros(0, np.int16)
    seen = seen.kept(seen.at >= 0)
    if ruling is not None and ruling.repeats:
        key, rule = _freed(users, len(ids), seen, history, ruling)
        own = np.repeat(np.arange(users.num_rows), np.diff(seen.ptr)) * len(ids) + seen.at
        seen = seen.kept(~np.isin(own, key))
    if wishes is not None and (hidden := wishes.hidden(users)):
        parts = [np.concatenate([seen.at[a:z], hidden.get(u, _NONE)]) for u, (a, z) in enumerate(zip(
            seen.ptr[:-1].tolist(), seen.ptr[1:].tolist(), strict=True))]  # fmt: skip
        seen = Rows(np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64), np.concatenate(parts))
    there = history.at >= 0
    if speaks_N is not None:
        there &= speaks_N[history.at]
    return Had(seen, history.kept(there), key, rule, len(ids))


def pairs(users: pa.Table, ruling: Ruling) -> pa.Table:
    """Rows of `TABLES["again"]`: what users may get again, and by which rule; `users` as of `had`."""
    arrow = TABLES["again"]
    if not ruling.repeats:
        return arrow.empty_table()
    found = had(users, ruling.item_ids, None, ruling)
    rule, user, item = (pa.array(x) for x in (found.rule, found.key // max(found.n, 1), found.key % max(found.n, 1)))
    names = pa.array(ruling.names, pa.string())
    return pa.table([names.take(rule), users["user_id"].take(user), ruling.item_ids.take(item)], schema=arrow)


def _freed(users: pa.Table, n: int, seen: Rows, told: Rows, ruling: Ruling) -> tuple[np.ndarray, np.ndarray]:
    """(X,) and (X,): keys of freed pairs, ascending, and rules; `told`: the sequence, -1 where not in the catalogue."""
    law = ruling.law(users["user_id"].combine_chunks(), users["attributes"].combine_chunks())
    holds_UR = law.holds_CR[law.class_B]
    age_E = ruling.as_of_us - flat(users["event_us"])[1].to_numpy()
    types = flat(users["event_types"])[1]
    size_U = np.diff(told.ptr)
    user_E = np.repeat(np.arange(users.num_rows), size_U)
    by_E = np.full(len(user_E), -1, np.int16)
    for k in reversed(ruling.repeats):  # the first that frees it is named
        rule = ruling.rules[k]
        free_E = holds_UR[user_E, k] & ruling.meant_RN[k][told.at] & (age_E >= (rule.after or 0) * _DAY)
        if rule.events is not None:
            free_E &= places(types, pa.array(rule.events, pa.string())) >= 0
        by_E[free_E] = k
    in_E = told.at >= 0
    key_E = user_E * n + told.at
    order = np.lexsort((by_E[in_E], key_E[in_E]))
    key, first = np.unique(key_E[in_E][order], return_index=True)
    least = by_E[in_E][order][first]  # -1: an event keeps it out
    # what lies behind the sequence is older than all of it, and of an unknown type
    behind_U = users["n_interactions"].to_numpy() > size_U
    oldest_U = np.zeros(users.num_rows, np.int64)
    oldest_U[size_U > 0] = age_E[told.ptr[:-1][size_U > 0]]
    of_U = np.repeat(np.arange(users.num_rows), np.diff(seen.ptr))
    pair = of_U * n + seen.at
    at = np.minimum(np.searchsorted(key, pair), max(len(key) - 1, 0))
    known = key[at] == pair if len(key) else np.zeros(len(pair), bool)
    by = np.where(known, least[at] if len(key) else -1, -1)
    older = np.full(len(pair), -1, np.int16)
    for k in reversed(ruling.repeats):
        if ruling.rules[k].events is None:
            old = oldest_U[of_U] >= (ruling.rules[k].after or 0) * _DAY
            older[holds_UR[of_U, k] & ruling.meant_RN[k][seen.at] & old] = k
    behind = behind_U[of_U]
    free = np.where(behind, (older >= 0) & (~known | (by >= 0)), by >= 0)
    rule = np.where(known & (by >= 0), by, older)[free].astype(np.int16)
    order = np.argsort(pair[free], kind="stable")
    return pair[free][order], rule[order]

"""A walk down a user's ranking: what comes into the list, what is passed over, and why.

In: ranked candidates of some users, what holds for them, K. Out: lists, the place of each row among the candidates, and
every candidate that was passed over above the last row, with its cause.
Candidates are looked at in their order, lifted ones earlier. One comes in unless a rule keeps it from the user, its
twin is in, a cap is full, or the places left are needed for a quota. Pins are put first; what is pinned is no
candidate.
Trade-off: quotas are met by the last places of a list; who wants them higher up boosts as well.

Shape legend: B users, W candidates side by side, K places, N items, C classes, R rules, P pins, X passed over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmrec.recommend.ruling import Law
from mmrec.topk.compiled import jit


@dataclass(frozen=True)
class Walked:
    """Lists of B users.

    Attributes:
        item_BK: (B, K) int32, -1 in empty places, which come last. at_BK: (B, K) int32, which candidate a row was, from
            0; -1: a pin. place_BK: (B, K) int32, its place among the candidates that were looked at, from 1; 0: a pin,
            or none. rule_BK: (B, K) int16, the rule that put it there; -1: none.
        full_B: (B,) bool: the list has no empty place.
        passed: (X, 4) int32: user, the row above which it was passed over, item, cause; users and rows ascending.
    """

    item_BK: np.ndarray
    at_BK: np.ndarray
    place_BK: np.ndarray
    rule_BK: np.ndarray
    full_B: np.ndarray
    passed: np.ndarray


def walk(
    item_BW: np.ndarray, sure_B: np.ndarray, seen: tuple[np.ndarray, np.ndarray], law: Law, group_N: np.ndarray, k: int,
    *, first: int | None = None, strict: bool = True,
) -> Walked:  # fmt: skip
    """Walk down rankings.

    Args:
        item_BW: (B, W) int32, best first, -1 in empty places, which come last (before `first`, and at the end).
        sure_B: (B,) bool: nothing comes behind what is there; else what a boost might bring in front is left alone.
        seen: (B + 1,) and indices: what users must not get, for pins. group_N: (N,) int32, equal for twins.
        first: where a second ranking begins, that is walked down after the first; in it, what the first had is no
            candidate any more. strict: whether quotas hold; not, where there is nothing left that meets them.
    """
    b, wide = item_BW.shape
    out = (np.full((b, k), -1, np.int32), np.full((b, k), -1, np.int32), np.zeros((b, k), np.int32),
           np.full((b, k), -1, np.int16), np.zeros(b, np.bool_))  # fmt: skip
    passed = np.empty((b * wide, 4), np.int32)
    groups = int(group_N.max(initial=-1)) + 1
    codes = int(law.code_RN.max(initial=0)) + 1
    caps, quotas = np.flatnonzero(law.bound_R > 0), np.flatnonzero(law.bound_R < 0)
    n = _walk(item_BW, sure_B, wide if first is None else first, seen[0], seen[1], law.class_B, law.cause_CN,
              law.lift_CN, law.lifter_CN, law.lift, law.code_RN, law.holds_CR, law.bound_R, caps,
              quotas if strict else quotas[:0], law.pin_CP, law.place_CP, law.pinner_CP, group_N, groups, codes,
              len(law.bound_R), *out, passed)  # fmt: skip
    return Walked(*out, passed[:n].copy())


@jit
def _walk(
    item_BW, sure_B, first, seen_ptr, seen_idx, class_B, cause_CN, lift_CN, lifter_CN, most_lift, code_RN, holds_CR,
    bound_R, caps, quotas, pin_CP, place_CP, pinner_CP, group_N, groups, codes, twin, out_item, out_at, out_place,
    out_rule, out_full, passed,
):  # fmt: skip
    b_all, wide = item_BW.shape
    k = out_item.shape[1]
    group_by = np.full(groups, -1, np.int32)  # the user in whose list something of the group is
    met_by = np.full(len(group_N) if first < wide else 0, -1, np.int32)  # the user whose first ranking had the item
    count_RV = np.zeros((len(bound_R), codes), np.int32)
    count_by = np.full((len(bound_R), codes), -1, np.int32)
    order, key = np.arange(wide), np.empty(wide, np.int64)
    n = 0
    for b in range(b_all):
        c = class_B[b]
        placed = 0
        for p in range(pin_CP.shape[1]):
            item = pin_CP[c, p]
            if item < 0 or place_CP[c, p] >= k or group_by[group_N[item]] == b:
                continue
            had = False
            for e in range(seen_ptr[b], seen_ptr[b + 1]):
                had |= seen_idx[e] == item
            if had or _full_cap(caps, code_RN, holds_CR, bound_R, count_RV, count_by, c, item, b) >= 0:
                continue
            _enter(caps, quotas, code_RN, count_RV, count_by, item, b)
            group_by[group_N[item]] = b
            out_item[b, place_CP[c, p]] = item
            out_at[b, place_CP[c, p]] = -2  # taken, until the list is made
            out_rule[b, place_CP[c, p]] = pinner_CP[c, p]
            placed += 1
        slot, looked, kept_n = 0, 0, n
        start, stop = 0, min(first, wide)
        while placed < k:  # the first ranking, then the second
            edge = stop - start  # keys below this are final
            if not sure_B[b] and stop == wide:
                edge -= most_lift
            lifted = False
            if most_lift > 0:
                for w in range(start, stop):
                    item = item_BW[b, w]
                    lift = lift_CN[c, item] if item >= 0 else 0
                    lifted |= lift > 0
                    key[w] = 2 * (w - start - lift) + (lift == 0)
                if lifted:
                    order[start:stop] = start + np.argsort(key[start:stop], kind="mergesort")
            if not lifted:
                for w in range(start, stop):
                    order[w] = w
            for o in range(start, stop):
                w = order[o]
                item = item_BW[b, w]
                if item < 0:
                    continue
                lift = lift_CN[c, item] if most_lift > 0 else 0
                if w - start - lift >= edge:
                    break
                if first < wide:
                    if start > 0 and met_by[item] == b:
                        continue
                    if start == 0:
                        met_by[item] = b
                while slot < k and out_at[b, slot] == -2:
                    slot += 1
                group = group_N[item]
                if group_by[group] == b and _is_pinned(pin_CP, out_item, out_at, b, c, item):
                    continue
                looked += 1
                cause = cause_CN[c, item]
                if cause < 0 and group_by[group] == b:
                    cause = twin
                if cause < 0:
                    cause = _full_cap(caps, code_RN, holds_CR, bound_R, count_RV, count_by, c, item, b)
                if cause < 0 and len(quotas):
                    cause = _needed(quotas, code_RN, holds_CR, bound_R, count_RV, count_by, c, item, b, k - placed)
                if cause >= 0:
                    passed[n, 0], passed[n, 1], passed[n, 2], passed[n, 3] = b, slot, item, cause
                    n += 1
                    continue
                _enter(caps, quotas, code_RN, count_RV, count_by, item, b)
                group_by[group] = b
                out_item[b, slot], out_at[b, slot], out_place[b, slot] = item, w, looked
                if lift > 0:
                    out_rule[b, slot] = lifter_CN[c, item]
                placed += 1
                slot += 1
                kept_n = n
                if placed == k:
                    break
            if stop == wide:
                break
            start, stop = stop, wide
        n = kept_n  # below the last row nobody is a candidate
        out_full[b] = placed == k
        # pins of a short list move up; candidates have filled every place before
        here = 0
        for s in range(k):
            if out_item[b, s] < 0:
                continue
            if here < s:
                out_item[b, here], out_at[b, here] = out_item[b, s], out_at[b, s]
                out_place[b, here], out_rule[b, here] = out_place[b, s], out_rule[b, s]
                out_item[b, s], out_at[b, s], out_place[b, s], out_rule[b, s] = -1, -1, 0, -1
            if out_at[b, here] == -2:
                out_at[b, here] = -1
            here += 1
    return n


@jit
def _full_cap(caps, code_RN, holds_CR, bound_R, count_RV, count_by, c, item, b):
    """The first cap of a class that has no room for an item; -1: none."""
    for r in caps:
        code = code_RN[r, item]
        if holds_CR[c, r] and code >= 0 and count_by[r, code] == b and count_RV[r, code] >= bound_R[r]:
            return r
    return -1


@jit
def _needed(quotas, code_RN, holds_CR, bound_R, count_RV, count_by, c, item, b, left):
    """The first quota that needs the place an item would take; -1: none, or the item meets one itself."""
    asked, which = 0, -1
    for r in quotas:
        if not holds_CR[c, r]:
            continue
        open_ = -bound_R[r] - (count_RV[r, 0] if count_by[r, 0] == b else 0)
        if open_ <= 0:
            continue
        if code_RN[r, item] >= 0:
            return -1
        asked += open_
        if which < 0:
            which = r
    return which if asked >= left else -1


@jit
def _enter(caps, quotas, code_RN, count_RV, count_by, item, b):
    for r in caps:
        code = code_RN[r, item]
        if code >= 0:
            count_RV[r, code] = count_RV[r, code] + 1 if count_by[r, code] == b else 1
            count_by[r, code] = b
    for r in quotas:
        if code_RN[r, item] >= 0:
            count_RV[r, 0] = count_RV[r, 0] + 1 if count_by[r, 0] == b else 1
            count_by[r, 0] = b


@jit
def _is_pinned(pin_CP, out_item, out_at, b, c, item):
    """Whether an item stands in its user's list because it is pinned."""
    for p in range(pin_CP.shape[1]):
        if pin_CP[c, p] == item:
            for s in range(out_item.shape[1]):
                if out_item[b, s] == item and out_at[b, s] == -2:
                    return True
    return False

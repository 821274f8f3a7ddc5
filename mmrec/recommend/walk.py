"""A walk down users' rankings: what comes into a list, what is passed over, and why.

In: ranked candidates of some users, what holds for them, lists to fill. Out: those lists, the place of each row among
the candidates, and every candidate that was passed over above the last row, counted by cause.
Candidates are looked at in their order, lifted ones earlier. One comes in unless a rule keeps it from the user, its
twin is in, a cap is full, or the places left are needed for a quota. Pins are put first; what is pinned is no
candidate.
Trade-off: quotas are met by the last places of a list; who wants them higher up boosts as well.

Shape legend: B users of a block, S some of them, W candidates side by side, K places, N items, C classes, F facts of an
item (its group, and what each cap and quota counts it as), P pins, X passed over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmrec.recommend.ruling import Law
from mmrec.topk.compiled import inlined, jit

_USER, _COUNT = 32, 2**32 - 1  # halves of a tally


@dataclass(frozen=True)
class Lists:
    """Lists of B users.

    Attributes:
        item_BK: int32, -1 in empty places, which come last. score_BK: float32, 0 of a pin. model_BK: bool, whether a
            row is of the first ranking; of empty places, too. place_BK: int32, place among the candidates that were
            looked at, from 1; 0: a pin, or none. rule_BK: int16, the rule that put it there; -1: none. ranked_BK:
            int32, place from 1 in the first ranking, before that was put in another order; 0: it was not, or the row
            is not of it.
    """

    item_BK: np.ndarray
    score_BK: np.ndarray
    model_BK: np.ndarray
    place_BK: np.ndarray
    rule_BK: np.ndarray
    ranked_BK: np.ndarray

    @classmethod
    def room(cls, users: int, k: int) -> Lists:
        """Lists that hold anything yet."""
        return cls(*(np.empty((users, k), t) for t in (np.int32, np.float32, np.bool_, np.int32, np.int16, np.int32)))

    def of(self, some: slice) -> Lists:
        """Some users'."""
        return Lists(self.item_BK[some], self.score_BK[some], self.model_BK[some], self.place_BK[some],
                     self.rule_BK[some], self.ranked_BK[some])  # fmt: skip

    def clear(self, some: slice) -> None:
        """Empty some users' lists."""
        for of, none in ((self.item_BK, -1), (self.score_BK, -np.inf), (self.model_BK, True), (self.place_BK, 0),
                         (self.rule_BK, -1), (self.ranked_BK, 0)):  # fmt: skip
            of[some] = none


def walk(
    lists: Lists, rows: np.ndarray, item_SW: np.ndarray, score_SW: np.ndarray, sure_S: np.ndarray,
    seen: tuple[np.ndarray, np.ndarray], law: Law, group_N: np.ndarray | None, *, first: int | None = None,
    final: bool = False, asked: int | None = None, least_SQ: np.ndarray | None = None, tell: bool = False,
    rank_SW: np.ndarray | None = None, enough: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Fill lists of some users.

    Args:
        lists: filled where nothing is left open; other rows are as they were.
        rows: (S,) int64, the users' rows in `lists`, and in `law`.
        item_SW, score_SW: int32 and float32, best first; -1 in empty places, which come last (before `first`, and at
            the end).
        sure_S: bool, nothing comes behind what is there; else what a boost might bring in front is left alone.
        seen: (S + 1,) and indices: what users must not get, for pins. group_N: (N,) int32, equal for twins; None:
            no item has one.
        first: where a second ranking begins, that is walked down after the first; in it, what the first had is no
            candidate any more. final: a list of a sure user is kept as short as it is. asked: the first places, in
            which quotas are met; None: all. least_SQ: (S, quotas) int32, in place of the quotas' own, for lists that
            are there: one is replaced by a longer one only; None: as rules say. tell: of every item; else of how many.
            rank_SW: int32, places that the first ranking's had in another order; None: it was in no other. enough:
            rows with which a list ends once as many candidates as it has places were looked at; None: all of them.

    Returns: (S,) int8, 2: it ended, 1: kept with empty places, 0: not kept; (X, 5) int32 of the lists that were
        kept: row, place in the list above which it was passed over, the first such item, cause, how many; in the order
        of users and places.
    """
    s, wide = item_SW.shape
    kept_S = np.zeros(s, np.int8)
    passed = np.empty((s * wide, 5), np.int32)
    facts_NF, caps, quotas = law.facts(group_N)
    own_SQ = law.least_CR[law.class_B[rows]][:, quotas[:, 0]] if least_SQ is None else least_SQ
    # a quota is counted under 0, whether or not any item meets it
    groups, codes = (int(x.max(initial=0)) + 1 for x in (facts_NF[:, 0], facts_NF[:, 1:]))
    n = _walk(lists.item_BK, lists.score_BK, lists.model_BK, lists.place_BK, lists.rule_BK, rows, item_SW, score_SW,
              sure_S, wide if first is None else first, final, seen[0], seen[1], law.class_B, law.fate_CN,
              law.lifter_CN, law.lift, facts_NF, law.holds_CR, law.bound_R, caps, quotas,
              law.pin_CP, law.place_CP, law.pinner_CP, groups, codes,
              lists.item_BK.shape[1] if asked is None else asked, own_SQ, least_SQ is not None, tell,
              np.zeros((0, 0), np.int32) if rank_SW is None else rank_SW, lists.ranked_BK,
              lists.item_BK.shape[1] if enough is None else enough, kept_S, passed)  # fmt: skip
    return kept_S, passed[:n].copy()


@jit
def _walk(
    out_item, out_score, out_model, out_place, out_rule, rows, item_SW, score_SW, sure_S, first, final, seen_ptr,
    seen_idx, class_B, fate_CN, lifter_CN, most_lift, facts_NF, holds_CR, bound_R, caps, quotas, pin_CP, place_CP,
    pinner_CP, groups, codes, asked, least_SQ, longer, tell, rank_SW, out_ranked, enough, kept_S, passed,
):  # fmt: skip
    s_all, wide = item_SW.shape
    k, f_all = out_item.shape[1], facts_NF.shape[1]
    twin = len(bound_R)
    group_by = np.full(groups, -1, np.int32)  # the user in whose list something of the group is
    met_by = np.full(len(facts_NF) if first < wide else 0, -1, np.int32)  # whose first ranking had the item
    # of what caps count together: who was counted last, from 1, and how many
    tally_FV = np.zeros((f_all, codes), np.int64)
    caps_XR, quotas_XR = np.empty((len(caps), 3), np.int64), np.empty((len(quotas), 3), np.int64)
    left_Q = np.empty(len(quotas), np.int64)  # places that a quota still asks for
    order, lifted = np.empty(wide, np.int64), np.empty(wide, np.int64)
    fate_W, facts_WF = np.empty((wide, 2), np.int16), np.empty((wide, f_all), np.int32)
    at, rule, place = np.empty(k, np.int64), np.empty(k, np.int64), np.empty(k, np.int64)
    pinned = np.empty(pin_CP.shape[1], np.int64)
    n = 0
    for s in range(s_all):
        c = class_B[rows[s]]
        at[:] = -1
        placed, pins, opens = 0, 0, 0  # opens: places that quotas still ask for
        by = s + 1
        capped, quotaed = _mine(caps, holds_CR, c, caps_XR), _mine(quotas, holds_CR, c, quotas_XR)
        for x in range(quotaed):
            left_Q[x] = least_SQ[s, quotas_XR[x, 2]]
            opens += max(left_Q[x], 0)
        for p in range(pin_CP.shape[1]):
            item = pin_CP[c, p]
            if item < 0 or place_CP[c, p] >= k or at[place_CP[c, p]] < -1:
                continue
            group = facts_NF[item, 0]
            had = group >= 0 and group_by[group] == s
            for x in range(pins):
                had |= pinned[x] == item
            for e in range(seen_ptr[s], seen_ptr[s + 1]):
                had |= seen_idx[e] == item
            if had or _no_room(caps_XR, capped, facts_NF, item, bound_R, tally_FV, by) >= 0:
                continue
            opens -= _met(quotas_XR, quotaed, facts_NF, item, left_Q)
            _enter(caps_XR, capped, facts_NF, item, tally_FV, by)
            if group >= 0:
                group_by[group] = s
            at[place_CP[c, p]], rule[place_CP[c, p]] = -2 - item, pinner_CP[c, p]
            pinned[pins] = item
            pins += 1
            placed += 1
        # indices without a sign: of one with a sign numba asks each time whether it counts from the end
        # looked up together, before anything is decided by it: the processor waits for many at once
        us, uc = np.uint64(s), np.uint64(c)
        for w in range(wide):
            uw = np.uint64(w)
            ui = np.uint64(max(item_SW[us, uw], 0))
            fate_W[uw, 0], fate_W[uw, 1] = fate_CN[uc, ui, 0], fate_CN[uc, ui, 1]
            for f in range(f_all):
                facts_WF[uw, np.uint64(f)] = facts_NF[ui, np.uint64(f)]
        slot, looked, begun, kept, gap = 0, 0, n, n, n
        start, stop = 0, min(first, wide)
        ended = placed == k
        while not ended:  # the first ranking, then the second
            edge = stop - start  # keys below this are final
            if not sure_S[s] and stop == wide:
                edge -= most_lift
            _ordered(order, lifted, fate_W, start, stop, most_lift)
            for o in range(start, stop):
                w = order[np.uint64(o)]
                uw = np.uint64(w)
                item, group = item_SW[us, uw], facts_WF[uw, 0]
                if item < 0:
                    continue
                if w - start - fate_W[uw, 1] >= edge:
                    break
                if first < wide:
                    if start > 0 and met_by[np.uint64(item)] == s:
                        continue
                    if start == 0:
                        met_by[np.uint64(item)] = s
                while slot < k and at[np.uint64(slot)] < -1:
                    slot += 1
                is_pinned = False
                for p in range(pins):
                    is_pinned |= pinned[p] == item
                if is_pinned:
                    continue
                if looked >= k and placed >= enough:
                    ended = True
                    break
                looked += 1
                cause = np.int64(fate_W[uw, 0])
                if cause < 0 and group >= 0 and group_by[np.uint64(group)] == s:
                    cause = twin
                if cause < 0 and capped > 0:
                    cause = _no_room(caps_XR, capped, facts_WF, w, bound_R, tally_FV, by)
                if cause < 0 and opens > 0 and placed < asked and opens >= asked - placed:
                    cause = _needed(quotas_XR, quotaed, facts_WF, w, left_Q, asked - placed)
                if cause >= 0:
                    x = n if tell else gap
                    while x < n and passed[x, 3] != cause:
                        x += 1
                    if x == n:
                        passed[n, 0], passed[n, 1], passed[n, 2], passed[n, 3] = rows[s], slot, item, cause
                        passed[n, 4] = 0
                        n += 1
                    passed[x, 4] += 1
                    continue
                if capped > 0:
                    _enter(caps_XR, capped, facts_WF, w, tally_FV, by)
                if opens > 0:  # what comes after the last open place is not counted: nothing asks for it
                    opens -= _met(quotas_XR, quotaed, facts_WF, w, left_Q)
                if group >= 0:
                    group_by[np.uint64(group)] = s
                uslot = np.uint64(slot)
                at[uslot], place[uslot] = w, looked
                rule[uslot] = lifter_CN[uc, np.uint64(item)] if fate_W[uw, 1] > 0 else -1
                placed += 1
                slot += 1
                kept = gap = n
                if placed == k:
                    ended = True
                    break
            ended |= looked >= k and placed >= enough
            if stop == wide:
                break
            start, stop = stop, wide
        here, b = 0, rows[s]
        while longer and here < k and out_item[b, here] >= 0:
            here += 1
        if (not ended and not (final and sure_S[s])) or (longer and placed <= here):
            n = begun
            continue
        kept_S[s] = 2 if ended else 1
        n = kept  # below the last row nobody is a candidate
        here = 0
        for x in range(k):  # pins of a short list move up; candidates have filled every place before
            if at[x] == -1:
                continue
            ub, uh = np.uint64(b), np.uint64(here)
            if at[x] < -1:
                out_item[ub, uh], out_score[ub, uh], out_model[ub, uh], out_place[ub, uh] = -2 - at[x], 0, False, 0
                out_ranked[ub, uh] = 0
            else:
                w = at[x]
                uw = np.uint64(w)
                out_item[ub, uh], out_score[ub, uh], out_model[ub, uh] = item_SW[us, uw], score_SW[us, uw], w < first
                out_place[ub, uh] = place[x]
                out_ranked[ub, uh] = rank_SW[us, uw] if w < first and rank_SW.shape[0] > 0 else 0
            out_rule[ub, uh] = rule[x]
            here += 1
    return n


@jit
def _ordered(order, lifted, fate_W, start, stop, most_lift):
    """Places of a ranking by key: that of a lifted one is `lift` less, and comes first among equal ones."""
    n = 0
    if most_lift > 0:
        for w in range(start, stop):
            if fate_W[w, 1] > 0:
                p = n
                while p > 0 and lifted[p - 1] - fate_W[lifted[p - 1], 1] > w - fate_W[w, 1]:
                    lifted[p] = lifted[p - 1]
                    p -= 1
                lifted[p] = w
                n += 1
    p, w = 0, start
    for o in range(start, stop):
        while n > 0 and w < stop and fate_W[w, 1] > 0:
            w += 1
        if p < n and (w >= stop or lifted[p] - fate_W[lifted[p], 1] <= w):
            order[o] = lifted[p]
            p += 1
        else:
            order[o] = w
            w += 1


@inlined
def _mine(counted, holds_CR, c, mine_XR):
    """Of caps or quotas those that hold for a class: rows of rule, column of facts, and which it is. Returns: how
    many."""
    n = 0
    for x in range(len(counted)):
        if holds_CR[c, counted[x, 0]]:
            mine_XR[n, 0], mine_XR[n, 1], mine_XR[n, 2] = counted[x, 0], counted[x, 1], x
            n += 1
    return n


@inlined
def _no_room(caps_XR, many, facts_IF, i, bound_R, tally_FV, user):
    """The first of a user's caps that has no room for an item; -1: none."""
    i = np.uint64(i)
    for y in range(many):
        x = np.uint64(y)
        f = np.uint64(caps_XR[x, 1])
        fact = facts_IF[i, f]
        if fact >= 0:
            told = tally_FV[f, np.uint64(fact)]
            if told >> _USER == user and told & _COUNT >= bound_R[np.uint64(caps_XR[x, 0])]:
                return np.int64(caps_XR[x, 0])
    return np.int64(-1)


@inlined
def _enter(caps_XR, many, facts_IF, i, tally_FV, user):
    """Count an item for a user's caps."""
    i = np.uint64(i)
    for y in range(many):
        f = np.uint64(caps_XR[np.uint64(y), 1])
        fact = facts_IF[i, f]
        if fact >= 0:
            told = tally_FV[f, np.uint64(fact)]
            tally_FV[f, np.uint64(fact)] = told + 1 if told >> _USER == user else user << _USER | 1


@inlined
def _needed(quotas_XR, many, facts_IF, i, left_Q, left):
    """The first quota that needs the place an item would take; -1: none, or the item meets an open one itself."""
    asked, which = 0, -1
    for x in range(many):
        if left_Q[x] <= 0:
            continue
        if facts_IF[i, quotas_XR[x, 1]] >= 0:
            return -1
        asked += left_Q[x]
        if which < 0:
            which = quotas_XR[x, 0]
    return which if asked >= left else -1


@inlined
def _met(quotas_XR, many, facts_IF, i, left_Q):
    """Count an item for a user's quotas. Returns: how many open ones it brings a place nearer."""
    n = 0
    for x in range(many):
        if facts_IF[i, quotas_XR[x, 1]] >= 0:
            n += 1 if left_Q[x] > 0 else 0
            left_Q[x] -= 1
    return n

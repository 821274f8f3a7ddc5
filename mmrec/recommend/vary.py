"""Diversity: the first places of a ranking chosen one after another, each for itself and for what stands above it.

In: rankings of some users, what a shop aims at, items as sketches of their content, categories and how well known they
are, users' histories. Out: the same rankings, the first `pool` places in a new order.
Every place goes to the candidate with the greatest
    (1 - strength - calibration - novelty - serendipity) relevance + strength * unlike + calibration * in tune
    + novelty * little known + serendipity * unlike the history
where relevance is the score, 1 for a user's best and 0 for the last of the pool. With the other weights at 0 these are
published methods: "mmr" (Carbonell and Goldstein, SIGIR 1998, section 2), "dpp" (greedy MAP of a determinantal point
process: Chen, Zhang and Zhou, NeurIPS 2018, algorithm 1 and section 4.1), calibration to the user's own mix of
categories (Steck, RecSys 2018, equations 2 to 6, greedy).
"Unlike" falls as the list grows, so what was reckoned earlier is a bound, and most candidates are not reckoned again
(Minoux 1978, "Accelerated greedy algorithms"): what is chosen is the same.
Trade-off: what lies behind the pool can't come in, so its size bounds what diversity may cost; rules are kept
afterwards, so what they pass over has had its place here.

Shape legend: S users, P places of a pool, W places of a ranking, N items, V columns of a sketch, G categories, E
entries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mmrec.models.sketch import WIDE
from mmrec.topk.compiled import jit
from mmrec.topk.exact import TopK
from mmrec.topk.seen import Seen, of_rows
from mmrec.topk.threads import share

_FEW = 256  # users that are not worth a thread
_SMOOTH = 0.01  # share of a user's own mix in the list's: Steck's alpha
_LEAST = 1e-9  # of a squared distance, which rounding may take below 0
_HISTORY = 20  # the latest items that serendipity looks away from
_METHODS = {"mmr": 0, "dpp": 1}


@dataclass(frozen=True)
class Aims:
    """What a list is to be besides relevant; weights from 0, together below 1.

    Attributes:
        by: "mmr" or "dpp", what `strength` weighs. over: "category", or the attribute that calibration is about. pool:
            candidates that are put in a new order. places: how many of them are chosen; the others follow in theirs.
    """

    by: str = "mmr"
    strength: float = 0.0
    calibration: float = 0.0
    novelty: float = 0.0
    serendipity: float = 0.0
    over: str = "category"
    pool: int = 100
    places: int = 10

    @classmethod
    def of(cls, record: dict[str, Any]) -> Aims:
        """From a manifest's record, which says more than this."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})

    def __str__(self) -> str:
        names = {"strength": self.by, "calibration": f"calibration of {self.over}"}
        own = ((names.get(n, n), getattr(self, n)) for n in ("strength", "calibration", "novelty", "serendipity"))
        return ", ".join(f"{name} {weight:g}" for name, weight in own if weight) or "none"

    @property
    def looks(self) -> bool:
        """Whether contents are looked at."""
        return self.strength > 0 or self.serendipity > 0


@dataclass(frozen=True)
class Variety:
    """A catalogue as diversity sees it: see `Variety.over`.

    Attributes:
        sketch_NV: (N, 64) int8, of unit length 127; a row of zeros is like nothing. code_ptr, code: (N + 1,) and (E,)
            int32, an item's values of `aims.over`, each counted as 1 / their number. known_N: (N,) float64, 0 for the
            best known item, 1 for those nobody knows.
    """

    aims: Aims
    sketch_NV: np.ndarray
    code_ptr: np.ndarray
    code: np.ndarray
    known_N: np.ndarray

    @classmethod
    def over(cls, aims: Aims, items: pa.Table, sketch_NV: np.ndarray | None) -> Variety:
        """Of a day's items: categories, attributes and n_interactions, as far as they are aimed at."""
        n = items.num_rows
        sketch_NV = np.zeros((n, WIDE), np.int8) if sketch_NV is None else np.ascontiguousarray(sketch_NV)
        ptr, code = _codes(items, aims.over) if aims.calibration else (np.zeros(n + 1, np.int64), np.zeros(0, np.int32))
        known_N = np.zeros(n)
        if aims.novelty:
            log_N = np.log1p(items["n_interactions"].to_numpy().astype(np.float64))
            known_N = 1 - log_N / max(log_N.max(initial=0), 1e-9)
        return cls(aims, sketch_NV, ptr, code, known_N)

    def varied(self, found: TopK, wide: int, history: Seen) -> TopK:
        """The first `wide` places of rankings, of which the first `pool` come in a new order, and `rank`: (S, W)
        int32, the place from 1 that each had.

        Args:
            found: of at least max(wide, pool) places, or all there are; it is used up. history: (S + 1,) and places in
                the catalogue, the latest last.
        """
        aims = self.aims
        s, w = len(found.item), min(wide, found.item.shape[1])
        rank_SW = np.empty((s, w), np.int32)
        # in place, if it can be: fresh memory costs as much as the work
        item_SW, score_SW = (x if w == x.shape[1] else np.empty((s, w), x.dtype) for x in (found.item, found.score))
        weights = np.array([aims.strength, aims.calibration, aims.novelty, aims.serendipity])

        def part(some: slice) -> None:
            ptr, at = of_rows(history, some)
            _vary(found.item[some], found.score[some], min(aims.pool, found.item.shape[1]), _METHODS[aims.by], weights,
                  aims.places, self.sketch_NV, self.code_ptr, self.code, int(self.code.max(initial=0)) + 1,
                  self.known_N, ptr, at, item_SW[some], score_SW[some], rank_SW[some])  # fmt: skip

        share(s, _FEW, part)
        return replace(found, item=item_SW, score=score_SW, rank=rank_SW)


    def divergence(self, ranked_SK: np.ndarray, history: Seen) -> float:
        """How far lists' mixes are from their users' own: the mean divergence of Steck's equations 4 and 5, 0 where
        they are the same; of users whose history and list have a value.

        Args:
            ranked_SK: places in the catalogue, -1 in empty places. history: as of `varied`.
        """
        weight_N, codes = 1 / np.maximum(np.diff(self.code_ptr), 1), int(self.code.max(initial=0)) + 1
        found = []
        for row, start, stop in zip(ranked_SK, history[0][:-1], history[0][1:], strict=True):
            mixes = []
            for places in (history[1][start:stop], row[row >= 0]):
                told = [self.code[self.code_ptr[i] : self.code_ptr[i + 1]] for i in places]
                each = np.repeat(weight_N[places], [len(t) for t in told])
                mixes.append(np.bincount(np.concatenate([*told, self.code[:0]]), each, codes))
            own, listed = mixes
            if own.sum() and listed.sum():
                p = own[own > 0] / own.sum()
                q = (1 - _SMOOTH) * listed[own > 0] / listed.sum() + _SMOOTH * p
                found.append(float(p @ np.log(p / q)))
        return float(np.mean(found)) if found else 0.0


def _codes(items: pa.Table, over: str) -> tuple[np.ndarray, np.ndarray]:
    """(N + 1,) int64 and (E,) int32: each item's distinct values of a field, as numbers."""
    if over == "category":
        values = [c or [] for c in items["categories"].to_pylist()]
    else:
        found = [json.loads(t or "{}").get(over) for t in items["attributes"].to_pylist()]
        values = [v if isinstance(v, list) else [] if v is None else [v] for v in found]
    known: dict[str, int] = {}
    own = [sorted({known.setdefault(json.dumps(v), len(known)) for v in vs}) for vs in values]
    ptr = np.concatenate([[0], np.cumsum([len(o) for o in own])]).astype(np.int64)
    return ptr, np.array([c for o in own for c in o], np.int32)


@jit
def _vary(
    item_SP, score_SP, p_all, method, weights, places, sketch_NV, code_ptr, code, codes, known_N, hist_ptr, hist,
    out_item, out_score, out_rank,
):  # fmt: skip
    s_all, places = len(item_SP), min(places, p_all)
    strength, calibration, novelty, serendipity = weights[0], weights[1], weights[2], weights[3]
    relevance = 1.0 - strength - calibration - novelty - serendipity
    own_P, tune_P, unlike_P = np.empty(p_all), np.zeros(p_all), np.empty(p_all)
    upto_P, taken_P, chosen = np.empty(p_all, np.int64), np.empty(p_all, np.bool_), np.empty(places, np.int64)
    left_P, root, order = np.empty(p_all), np.empty(places), np.empty(p_all, np.int64)
    best_P, item_P, score_P = np.empty(p_all), np.empty(p_all, np.int32), np.empty(p_all, np.float32)
    row_PT = np.empty((p_all if method == 1 else 1, places))  # of the candidates' Cholesky factor
    mix_G, mix_by = np.zeros(codes), np.full(codes, -1, np.int64)
    have_G, have_by = np.zeros(codes), np.full(codes, -1, np.int64)
    gain_G, gain_w, gain_by = np.zeros(codes), np.zeros(codes), np.full(codes, -1, np.int64)
    step = 0
    for s in range(s_all):
        # indices without a sign: of one with a sign numba asks each time whether it counts from the end
        us, n = np.uint64(s), 0
        while n < p_all and item_SP[us, np.uint64(n)] >= 0:
            n += 1
        here = min(places, n) if n > 1 else 0
        low, high = np.float64(score_SP[s, max(n, 1) - 1]), np.float64(score_SP[s, 0])
        first, last = hist_ptr[s], hist_ptr[s + 1]
        for q in range(n):
            p = np.uint64(q)
            item = item_SP[us, p]
            own = relevance * (np.float64(score_SP[us, p]) - low) / (high - low) if high > low else 0.0
            if novelty > 0:
                own += novelty * known_N[item]
            if serendipity > 0:
                near = 0.0
                for e in range(max(first, last - _HISTORY), last):
                    near = max(near, _alike(sketch_NV, item, sketch_NV, hist[e]))
                own += serendipity * (1.0 - near)
            own_P[p], unlike_P[p], upto_P[p], taken_P[p], left_P[p] = own, 0.0, 0, False, 1.0
        most = -np.inf
        for q in range(n - 1, -1, -1):
            p = np.uint64(q)
            best_P[p] = most = max(most, own_P[p])
        mixed = 0.0
        if calibration > 0:
            for e in range(first, last):
                a, z = code_ptr[hist[e]], code_ptr[hist[e] + 1]
                for x in range(a, z):
                    if mix_by[code[x]] != s:
                        mix_by[code[x]], mix_G[code[x]] = s, 0.0
                    mix_G[code[x]] += 1.0 / (z - a)
                mixed += 1.0 if z > a else 0.0
        for t in range(here):
            step += 1
            if mixed > 0:
                _in_tune(item_SP[s], n, taken_P, code_ptr, code, mix_G, mix_by, mixed, have_G, have_by, s, t, gain_G,
                         gain_w, gain_by, step, tune_P)  # fmt: skip
            best, pick = -np.inf, -1
            for q in range(n):
                p = np.uint64(q)
                if mixed == 0 and best_P[p] <= best:  # nothing that stands above makes anything better
                    break
                if taken_P[p]:
                    continue
                value = own_P[p] + (calibration * tune_P[p] if mixed > 0 else 0.0) + strength * unlike_P[p]
                if value <= best:
                    continue
                if strength > 0 and upto_P[p] < t:
                    if method == 0:
                        near = -unlike_P[p]
                        for c in range(upto_P[p], t):
                            near = max(near, _alike(sketch_NV, item_SP[s, p], sketch_NV, item_SP[s, chosen[c]]))
                        unlike_P[p] = -near
                    else:
                        for c in range(upto_P[p], t):
                            both = _alike(sketch_NV, item_SP[s, p], sketch_NV, item_SP[s, chosen[c]])
                            for x in range(c):
                                both -= row_PT[chosen[c], x] * row_PT[p, x]
                            row_PT[p, c] = both / root[c]
                            left_P[p] -= row_PT[p, c] * row_PT[p, c]
                        unlike_P[p] = np.log(max(left_P[p], _LEAST))
                    upto_P[p] = t
                    value = own_P[p] + (calibration * tune_P[p] if mixed > 0 else 0.0) + strength * unlike_P[p]
                if value > best:
                    best, pick = value, q
            chosen[t], taken_P[pick], root[t] = pick, True, np.sqrt(max(left_P[pick], _LEAST))
            order[t] = pick
            if mixed > 0:
                a, z = code_ptr[item_SP[s, pick]], code_ptr[item_SP[s, pick] + 1]
                for x in range(a, z):
                    if have_by[code[x]] != s:
                        have_by[code[x]], have_G[code[x]] = s, 0.0
                    have_G[code[x]] += 1.0 / (z - a)
        at = here
        for q in range(n):
            if not taken_P[np.uint64(q)]:
                order[np.uint64(at)] = q
                at += 1
        for q in range(n):
            p = np.uint64(q)
            was = np.uint64(order[p])
            item_P[p], score_P[p] = item_SP[us, was], score_SP[us, was]
        for w in range(out_item.shape[1]):
            p = np.uint64(w)
            if w < n:
                out_item[us, p], out_score[us, p], out_rank[us, p] = item_P[p], score_P[p], order[p] + 1
            else:
                out_item[us, p], out_score[us, p], out_rank[us, p] = item_SP[us, p], score_SP[us, p], w + 1


@jit
def _alike(one_NV, a, other_NV, b):
    """Cosine of two items, from 0: what points away is no more unlike than what has nothing in common."""
    total = np.int32(0)
    for v in range(WIDE):  # a number that the compiler knows
        total += np.int32(one_NV[a, v]) * np.int32(other_NV[b, v])
    return max(total, 0) / 16129.0


@jit
def _in_tune(
    item_P, n, taken_P, code_ptr, code, mix_G, mix_by, mixed, have_G, have_by, s, t, gain_G, gain_w, gain_by, step,
    tune_P,
):  # fmt: skip
    """By how much a candidate at place t brings the list's mix nearer to the user's: the fall of the divergence, but
    for what is the same for all candidates."""
    each = (1.0 - _SMOOTH) / (t + 1)
    for p in range(n):
        if taken_P[p]:
            continue
        a, z = code_ptr[item_P[p]], code_ptr[item_P[p] + 1]
        total, w = 0.0, 1.0 / max(z - a, 1)
        for x in range(a, z):
            g = code[x]
            if mix_by[g] != s:
                continue
            if gain_by[g] != step or gain_w[g] != w:  # of items with as many values it is the same
                share = mix_G[g] / mixed
                base = each * (have_G[g] if have_by[g] == s else 0.0) + _SMOOTH * share
                gain_by[g], gain_w[g] = step, w
                gain_G[g] = share * np.log((base + each * w) / base)
            total += gain_G[g]
        tune_P[p] = total

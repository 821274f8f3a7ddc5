"""How items that nobody has had are weighed: among themselves, and against all others.

In: a search (blend.py) whose model has its other weights. Out: recipe fields that concern cold items.
Among themselves the parts' weights are learned from the lists of those who wanted a cold item (listwise.py), about a
start that did best elsewhere: with few cases they stay near it, with many they go where these say. One half of the
users is learned from, the other measured on; the start is left only for what is better there by two standard errors.
Then how far cold items stand back, so that the whole's ndcg@10 stays within half a percent of its best.
Trade-off: at most 4,096 cases and 2,048 cold items a fold, drawn evenly: more would say no more about four numbers.

Shape legend: B cases, C cold items, N items, F parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmrec.models.data import Fold
from mmrec.train.blend import Search
from mmrec.train.listwise import weights
from mmrec.train.measure import top

_WARM = ("tau", "base", "linear", "half_life_days", "popularity", "content", "image_share")
_PARTS = ("sequence", "linear", "content", "appeal")
# times that a part has the spread of the sequence tower's scores: what did best over nine other cuts of the films, of
# both protocols
_START = np.array([1.0, 2.0, 2.0, 2.0])
_PRIOR = 50.0  # cases that the start counts as
_IMAGE_SHARES = (1.0, 0.5, 0.25)
_CASES, _ITEMS, _BLOCK = 4096, 2048, 512
_KS = (10, 20, 50)
_SLACK = 0.995
_OFFSETS = (0.0, *(float(2**n) for n in range(21)))  # the last leaves no cold item in any list


@dataclass(frozen=True)
class _Cases:
    """`x_FBC` float32: parts' scores, each in its unit; `there_BC`, `wanted_BC` bool; `half_B`: which half it is of."""

    x_FBC: np.ndarray
    there_BC: np.ndarray
    wanted_BC: np.ndarray
    half_B: np.ndarray

    def recall(self, score_BC: np.ndarray) -> np.ndarray:
        """(B,) mean of recall@10, 20 and 50 among cold items: few cases need a smooth measure."""
        best = top(np.where(self.there_BC, score_BC, -np.inf), max(_KS))
        hit = np.take_along_axis(self.wanted_BC, np.maximum(best, 0), 1) & (best >= 0)
        return np.mean([hit[:, :k].sum(1) for k in _KS], 0) / self.wanted_BC.sum(1)


def blend_cold(search: Search) -> dict[str, float]:
    """Recipe fields that concern cold items."""
    model = search.model
    own = {f: getattr(model.recipe, f) for f in _WARM}
    unit = search.units(own)
    found: dict[str, float] = {"image_share": 1.0}
    times_F, held_B = _START, None
    for share in _IMAGE_SHARES if "image" in model.dims else (1.0,):
        cases = _gather(search, own | {"image_share": share}, unit)
        if cases is None:
            break
        crossed_B = np.zeros(len(cases.half_B))
        for side in (False, True):
            learned_F = _learned(cases, cases.half_B == side)
            got_B = cases.recall(np.tensordot(learned_F, cases.x_FBC, 1))
            crossed_B = np.where(cases.half_B == side, crossed_B, got_B)
        options = [(_START, cases.recall(np.tensordot(_START, cases.x_FBC, 1))), (None, crossed_B)]
        for option_F, got_B in options:
            if held_B is None or _better(got_B - held_B):
                held_B, found["image_share"] = got_B, share
                times_F = _learned(cases, np.ones(len(got_B), bool)) if option_F is None else option_F
    found |= {"sequence_cold": float(times_F[0])}
    found |= {f"{p}_cold": float(t * unit[p]) for p, t in zip(_PARTS[1:], times_F[1:], strict=True)}
    offsets = [t * search.spread for t in _OFFSETS]
    values = [search.ndcg(own | found | {"cold_offset": offset}) for offset in offsets]
    # the smallest that is as good as any, one among which leaves them out
    offset = next(o for o, v in zip(offsets, values, strict=True) if v >= _SLACK * max(values))
    return found | {"cold_offset": offset}


def _better(more_B: np.ndarray) -> bool:
    return len(more_B) > 1 and float(more_B.mean()) > 2 * float(more_B.std(ddof=1)) / np.sqrt(len(more_B))


def _learned(cases: _Cases, used_B: np.ndarray) -> np.ndarray:
    """(F,) weights: first how much the start says in all, then each part's, about that."""
    x_FBC, there_BC, wanted_BC = cases.x_FBC[:, used_B], cases.there_BC[used_B], cases.wanted_BC[used_B]
    ridge = _PRIOR / 2 / max(int(wanted_BC.any(1).sum()), 1)
    once_BC = np.tensordot(_START, x_FBC, 1).astype(np.float32)[None]
    (scale,) = weights(once_BC, there_BC, wanted_BC, [(0.01, None)], ridge=0.0)
    return weights(x_FBC, there_BC, wanted_BC, [(0.0, None)] * len(_START), ridge=ridge, about_F=scale * _START)


def _gather(search: Search, s: dict[str, float], unit: dict[str, float]) -> _Cases | None:
    """What cold items score in the cases that want one; None: there is no such case."""
    made = [parts for n in range(len(search.vals)) if (parts := _of_fold(search, n, s, unit)) is not None]
    if not made:
        return None
    width = max(m[1].shape[1] for m in made)
    wide = [[np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, width - a.shape[-1])]) if a.ndim > 1 else a for a in m]
            for m in made]  # fmt: skip
    x, *rest = (list(parts) for parts in zip(*wide, strict=True))
    return _Cases(np.concatenate(x, 1), *(np.concatenate(parts) for parts in rest))


def _of_fold(search: Search, n: int, s: dict[str, float], unit: dict[str, float]) -> tuple[np.ndarray, ...] | None:
    model, items, log, val = search.model, search.items, search.log, search.vals[n]
    cold = np.flatnonzero(val.cold_items(items, log) & val.catalogue)
    if len(cold) > _ITEMS:
        cold = np.sort(np.random.default_rng(0).choice(cold, _ITEMS, replace=False))
    at_N = np.full(items.n, -1)
    at_N[cold] = np.arange(len(cold))
    case, place = np.repeat(np.arange(val.n_cases), np.diff(val.target_ptr)), at_N[val.target_item]
    want = np.unique(case[place >= 0])
    if not len(want):
        return None
    want = want[np.unique(np.linspace(0, len(want) - 1, min(len(want), _CASES)).astype(np.int64))]
    wanted_BC = np.zeros((val.n_cases, len(cold)), bool)
    wanted_BC[case[place >= 0], place[place >= 0]] = True
    model.recipe = model.recipe.fixed({"tau": s["tau"], "base": s["base"]})
    (history_NR, offer_NR), like_NC = search.heads[n][0], model.likeness.vectors(items, image_share=s["image_share"])
    vector_ND = model.item_vectors(items)
    parts = []
    for start in range(0, val.n_cases, _BLOCK):
        mine = want[(want >= start) & (want < start + _BLOCK)] - start
        if not len(mine):
            continue
        block = slice(start, min(start + _BLOCK, val.n_cases))
        tower_BC = model.sequence_users(log, val, block, vector_ND)[mine] @ vector_ND.numpy()[cold].T
        linear_BC = model.profile(log, val, block, history_NR)[mine] @ (unit["linear"] * offer_NR[cold]).T
        like_BC = model.profile(log, val, block, like_NC, flat=True)[mine] @ (unit["content"] * like_NC[cold]).T
        appeal_BC = np.broadcast_to(unit["appeal"] * search.appeal[n][cold], tower_BC.shape)
        parts.append(np.stack([tower_BC, linear_BC, like_BC, appeal_BC]).astype(np.float32))
    x_FBC = np.concatenate(parts, 1)
    there_BC = np.isfinite(x_FBC).all(0) & ~_seen(log.item, val, want, at_N, len(cold))
    return x_FBC, there_BC, wanted_BC[want] & there_BC, val.case_user[want] % 2 == 1


def _seen(item: np.ndarray, val: Fold, want: np.ndarray, at_N: np.ndarray, width: int) -> np.ndarray:
    """(B, C) bool: had before; a cold item can have been, by events that the window leaves out."""
    seen_BC = np.zeros((len(want), width), bool)
    for b, c in enumerate(want):
        place = at_N[item[val.hist_row[val.hist_ptr[c] : val.hist_ptr[c + 1]]]]
        seen_BC[b, place[place >= 0]] = True
    return seen_BC

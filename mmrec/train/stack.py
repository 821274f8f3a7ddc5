"""Whether the members of the blend are better weighed by learning, and whether they are better re-ranked.

In: a model whose weights `blend` has chosen, its validation folds. Out: recipe fields: weights of the linear head and
of content, the kind of blend and its weights.
Every kind is a weighted sum of features (topk/rerank.py), fitted on candidates of validation cases (listwise.py), on
one half of the users and measured on the other. What the coordinate search found stays unless a kind beats it clearly,
though it was measured on what it was chosen on and they were not: on little data it does stay.
Trade-off: six numbers at most; a small network over the same features gained another hundredth on Amazon Beauty and
would explain nothing.

Shape legend: B cases, C candidates, P members, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrec.models.data import Fold, Items, Log
from mmrec.topk.members import Offers, candidates
from mmrec.topk.rerank import KINDS, features
from mmrec.train.listwise import Bounds, weights
from mmrec.train.measure import mask, ndcg

if TYPE_CHECKING:
    from mmrec.train.fit import Champion

# of all folds together, evenly spaced: users come in the order of their names, and early ones may be early customers
_CASES = 8192
_BLOCK = 512
_CLEARLY = 1.01
_RIDGE = 1e-3  # per case, on features of unit spread
_LEAST = 0.1  # a score's weight stays positive, so that a member's best are its best, and stands well above rounding
_K = 10


@dataclass(frozen=True)
class _Cases:
    """Candidates of cases, cold items not among them, for their weights are their own: `there_BC`, `wanted_BC` bool,
    `targets_B` how many a case has, `half_B` which half it is of."""

    score_BCP: np.ndarray
    rank_BCP: np.ndarray
    there_BC: np.ndarray
    wanted_BC: np.ndarray
    targets_B: np.ndarray
    half_B: np.ndarray


def stack(model: Champion, items: Items, log: Log, vals: Sequence[Fold]) -> dict[str, Any]:
    """Recipe fields; empty where what is there stays.

    Args:
        model: after `blend`. vals: its validation folds, pooled. The linear head and popularity are fitted again on
            each; the caller fits them once more.
    """
    before = model.recipe
    # of unit weight: what the search left out may yet be worth something
    model.recipe = replace(before, linear=1.0, content=1.0, blend="scores", blend_weights=())
    found = _gather(model, items, log, [v for v in vals if v.n_cases])
    model.recipe = before
    p = found.score_BCP.shape[2]
    own = np.array([1.0, before.linear, before.content][:p])
    best, kind = _CLEARLY * _ndcg(found, found.score_BCP @ own).mean(), None
    for option in ("scores", *KINDS):
        x_FBC, bounds = _features(option, found, before.depth)
        got = np.zeros(len(found.half_B))
        for side in (False, True):
            learned_F = _fit(x_FBC, bounds, found, found.half_B == side)
            got = np.where(found.half_B == side, got, _ndcg(found, np.tensordot(learned_F, x_FBC, 1)))
        if got.mean() > best:
            best, kind = got.mean(), option
    if kind is None:
        return {}
    x_FBC, bounds = _features(kind, found, before.depth)
    fields = _fields(kind, _fit(x_FBC, bounds, found, np.ones(len(found.half_B), bool)), own)
    # cold items were left aside; with them, and as it will be served, it must still be better
    plain = _whole(model, items, log, vals)
    model.recipe = before.fixed(fields)
    better = _whole(model, items, log, vals) > plain
    model.recipe = before
    return fields if better else {}


def _whole(model: Champion, items: Items, log: Log, vals: Sequence[Fold]) -> float:
    """ndcg@10 of the model as it is, of every fourth block of cases."""
    values, sizes = [], []
    for v in (v for v in vals if v.n_cases):
        model.refresh(items, log, v)
        for start in range(0, v.n_cases, 4 * _BLOCK):
            part = slice(start, min(start + _BLOCK, v.n_cases))
            values.append(ndcg(v, mask(v, log, model.score(items, log, v, part), start), start))
            sizes.append(part.stop - start)
    return float(np.average(values, weights=sizes))


def _fields(kind: str, found_F: np.ndarray, own: np.ndarray) -> dict[str, Any]:
    """Weights of scores go into the vectors, in units of the sequence tower's; what is left is the re-ranking's. `own`:
    (P,) the members' weights as they were; where only ranks count, any that is above zero does."""
    p = len(own)
    if kind in ("ranks", "vote"):
        heard = {name: 1.0 for name, w in zip(("linear", "content"), own[1:], strict=False) if w == 0}
        return heard | {"blend": kind, "blend_weights": tuple(map(float, found_F if kind == "ranks" else ()))}
    if found_F[0] <= 0:  # a tower that says the same of all items is no unit
        return {}
    unit = found_F / found_F[0]
    fields: dict[str, Any] = {"linear": float(unit[1])} | ({"content": float(unit[2])} if p > 2 else {})
    if kind == "stacking":
        fields |= {"blend": kind, "blend_weights": (1.0,) * p + tuple(map(float, unit[p:]))}
    return fields


def _features(kind: str, found: _Cases, depth: int) -> tuple[np.ndarray, Bounds]:
    """((F, B, C) float32, bounds of their weights in units of their spread)."""
    p = found.score_BCP.shape[2]
    if kind == "scores":
        parts: Sequence[np.ndarray] = list(np.moveaxis(found.score_BCP, 2, 0))
    else:
        parts = features(kind, found.score_BCP, found.rank_BCP, depth)
    bounds = {"scores": [(_LEAST, None)] * p, "ranks": [(_LEAST, None)] * p, "vote": [(1.0, 1.0)] * p,
              "stacking": [(_LEAST, None)] * p + [(None, 0.0)] * p}[kind]  # fmt: skip
    return np.stack(parts).astype(np.float32), bounds  # type: ignore[return-value]


def _gather(model: Champion, items: Items, log: Log, vals: Sequence[Fold]) -> _Cases:
    parts: list[tuple[np.ndarray, ...]] = []
    for v in vals:
        model.refresh(items, log, v)
        offers = Offers(model.item_side(items), model.members, ~model.touched_N, v.catalogue)
        picked = np.unique(np.linspace(0, v.n_cases - 1, min(v.n_cases, _CASES // len(vals))).astype(np.int64))
        for start in range(0, v.n_cases, _BLOCK):
            mine = picked[(picked >= start) & (picked < start + _BLOCK)]
            if not len(mine):
                continue
            user_BV = model.user_side(items, log, v, slice(start, min(start + _BLOCK, v.n_cases)))[mine - start]
            seen = [np.unique(log.item[v.hist_row[v.hist_ptr[c] : v.hist_ptr[c + 1]]]) for c in mine]
            ptr = np.concatenate([[0], np.cumsum([len(s) for s in seen])]).astype(np.int64)
            got = candidates(user_BV, offers, model.recipe.depth, seen=(ptr, np.concatenate(seen).astype(np.int32)))
            wanted_BC, targets_B = np.zeros(got.item_BC.shape, bool), np.zeros(len(mine), np.int64)
            for b, c in enumerate(mine):
                target = v.target_item[v.target_ptr[c] : v.target_ptr[c + 1]]
                wanted_BC[b], targets_B[b] = np.isin(got.item_BC[b], target), len(target)
            warm_BC = (got.item_BC >= 0) & model.touched_N[got.item_BC]
            parts.append((got.score_BCP, got.rank_BCP, warm_BC, wanted_BC & warm_BC, targets_B,
                          v.case_user[mine] % 2 == 1))  # fmt: skip
    width = max(p[0].shape[1] for p in parts)
    wide = [[np.concatenate([q, np.zeros((len(q), width - q.shape[1], *q.shape[2:]), q.dtype)], 1) if q.ndim > 1 else q
             for q in p] for p in parts]  # fmt: skip
    return _Cases(*(np.concatenate(q) for q in zip(*wide, strict=True)))


def _fit(x_FBC: np.ndarray, bounds: Bounds, found: _Cases, used_B: np.ndarray) -> np.ndarray:
    return weights(x_FBC[:, used_B], found.there_BC[used_B], found.wanted_BC[used_B], bounds, ridge=_RIDGE)


def _ndcg(found: _Cases, score_BC: np.ndarray) -> np.ndarray:
    """(B,) ndcg@10 of candidates ranked by a score; ties by place, which is by item."""
    order_BK = np.argsort(-np.where(found.there_BC, score_BC, -np.inf), axis=1, kind="stable")[:, :_K]
    gain_K = 1 / np.log2(np.arange(2, _K + 2))
    hit_BK = np.take_along_axis(found.wanted_BC, order_BK, 1)
    ideal = np.concatenate([[1.0], np.cumsum(gain_K)])[np.minimum(found.targets_B, _K)]
    return (hit_BK * gain_K[: hit_BK.shape[1]]).sum(1) / ideal

"""How much of each part: the blend of the sequence tower, the linear head, content likeness and popularity.

In: a model whose towers are fitted, a validation fold. Out: weights, half-life and history decay.
Coordinate search on validation ndcg@10 over the full catalogue. The weight of cold items' content is chosen last, by
recall@20 among cold items as far as the ndcg@10 of the whole stays within half a percent: cold items are too few to
be chosen for by the whole.
Trade-off: a grid of a few values a number, walked twice; finer steps would fit the validation fold, not the task.

Shape legend: B cases, N items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mmrec import metrics
from mmrec.models.baselines import Popularity
from mmrec.models.data import Fold, Items, Log

if TYPE_CHECKING:
    from mmrec.train.fit import Champion

# weights are tried in units that give a part the spread of the sequence tower's scores
_TIMES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
_HALF_LIVES = (30.0, 90.0, 365.0, 3650.0)
_TAUS, _BASES = (5.0, 10.0, 20.0), (0.05, 0.1, 0.3)
_CASES = 2000  # validation cases looked at
_SLACK = 0.995


def first_cases(fold: Fold) -> slice:
    """The cases a search looks at."""
    return slice(0, min(fold.n_cases, _CASES))


def mask(fold: Fold, log: Log, scores_BN: np.ndarray) -> np.ndarray:
    """The same scores, -inf where a case has seen the item or it is not on offer; in place."""
    n = len(scores_BN)
    case = np.repeat(np.arange(n), np.diff(fold.hist_ptr[: n + 1]))
    scores_BN[:, ~fold.catalogue] = -np.inf
    scores_BN[case, log.item[fold.hist_row[: fold.hist_ptr[n]]]] = -np.inf
    return scores_BN


def ndcg(fold: Fold, masked_BN: np.ndarray) -> float:
    """Mean ndcg@10 of the first B cases of a fold, from masked scores."""
    n = len(masked_BN)
    values = metrics.ranking(_top(masked_BN, 10), fold.target_ptr[: n + 1],
                                  fold.target_item[: fold.target_ptr[n]], (10,))  # fmt: skip
    return float(values["ndcg@10"].mean())


def _top(scores_BN: np.ndarray, k: int) -> np.ndarray:
    """(B, k) best items, ties by index among those kept; a search, not an evaluation, may cut ties anywhere."""
    k = min(k, scores_BN.shape[1])
    near = np.sort(np.argpartition(-scores_BN, k - 1, axis=1)[:, :k], axis=1)
    value = np.take_along_axis(scores_BN, near, 1)
    order = np.argsort(-value, axis=1, kind="stable")
    return np.where(np.take_along_axis(value, order, 1) > -np.inf, np.take_along_axis(near, order, 1), -1)


def blend(model: Champion, items: Items, log: Log, fold: Fold, val: Fold) -> dict[str, float]:
    """Recipe fields tau, base, linear, half_life_days, popularity, content, content_cold; a tie keeps the earlier."""
    cases = first_cases(val)
    like_NC = model.likeness.vectors(items)
    sequence_BN = model.sequence_scores(items, log, val, cases)
    spread = float(sequence_BN.std())
    mask(val, log, sequence_BN)
    warm_N = model.touched_N.astype(np.float32)
    popular = {h: np.log1p(Popularity(h).fit(items, log, fold).score_N).astype(np.float32) for h in _HALF_LIVES}
    cache: dict[tuple[float, float], tuple[np.ndarray, np.ndarray]] = {}

    def parts(s: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
        key = (s["tau"], s["base"])
        if key not in cache:
            cache.clear()
            model.recipe = replace(model.recipe, tau=s["tau"], base=s["base"])
            cache[key] = (
                model.profile(log, val, cases, model.head.history_NR) @ model.head.offer_NR.T,
                model.profile(log, val, cases, like_NC, flat=True) @ like_NC.T,
            )
        return cache[key]

    def scores(s: dict[str, float]) -> np.ndarray:
        linear_BN, like_BN = parts(s)
        weight_N = (warm_N * s["content"] + (1 - warm_N) * s["content_cold"]).astype(np.float32)
        out = sequence_BN + np.float32(s["linear"]) * linear_BN + like_BN * weight_N
        return out + np.float32(s["popularity"]) * popular[s["half_life_days"]]

    found = {"tau": 10.0, "base": 0.1, "linear": 0.0, "half_life_days": 365.0, "popularity": 0.0, "content": 0.0,
             "content_cold": 0.0}  # fmt: skip
    linear_BN, like_BN = parts(found)
    parts_of = {"linear": linear_BN, "content": like_BN, "popularity": popular[365.0]}
    unit = {name: spread / max(float(part.std()), 1e-9) for name, part in parts_of.items()}
    grid: dict[str, tuple[float, ...]] = {name: tuple(t * unit[name] for t in _TIMES) for name in unit}
    grid |= {"tau": _TAUS, "base": _BASES, "half_life_days": _HALF_LIVES}
    found["linear"] = unit["linear"]
    best = ndcg(val, scores(found))
    for _ in range(2):
        for name in ("linear", "tau", "base", "popularity", "half_life_days", "content"):
            for option in grid[name]:
                tried = found | {name: option}
                if tried != found and (got := ndcg(val, scores(tried))) > best:
                    best, found = got, tried
    cold = val.catalogue & ~model.touched_N
    found["content_cold"] = _cold_weight(
        val, scores, found, tuple(t * unit["content"] for t in (*_TIMES, 8.0, 16.0)), cold, best
    )
    return found


def _cold_weight(
    val: Fold,
    scores: Callable[[dict[str, float]], np.ndarray],
    found: dict[str, float],
    grid: tuple[float, ...],
    cold: np.ndarray,
    best: float,
) -> float:
    choice, best_recall = found["content"], -1.0
    for option in grid:
        out = scores(found | {"content_cold": option})
        recall = _cold_recall(val, out, cold)

        if recall > best_recall and ndcg(val, out) >= _SLACK * best:
            choice, best_recall = option, recall
    return choice


def _cold_recall(fold: Fold, scores_BN: np.ndarray, cold: np.ndarray) -> float:
    """Mean recall@20 over the cases that want a cold item, among cold items."""
    among = np.flatnonzero(cold)
    top = among[_top(scores_BN[:, among], 20)] if len(among) else np.zeros((len(scores_BN), 0), np.int64)
    values = []
    for b in range(len(scores_BN)):
        target = fold.target_item[fold.target_ptr[b] : fold.target_ptr[b + 1]]
        target = target[cold[target]]
        if len(target):
            values.append(np.isin(top[b], target).sum() / len(target))
    return float(np.mean(values)) if values else 0.0

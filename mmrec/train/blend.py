"""How much of each part: the blend of the sequence tower, the linear head, content likeness and popularity.

In: a model whose towers are fitted, a validation fold. Out: weights, half-life and history decay.
Coordinate search on validation ndcg@10 over the full catalogue. Cold items come last: how they are ranked among
themselves is chosen by their own recall@20, then how far they stand back among all, so that the whole's ndcg@10 stays
within half a percent of its best: they are too few to be chosen for by the whole.
Trade-off: a grid of a few values a number, walked twice; finer steps would fit the validation fold, not the task.

Shape legend: B cases, N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
_IMAGE_SHARES = (1.0, 0.5, 0.25)
_COLD_TIMES = (0.5, 1.0, 2.0, 4.0, 16.0)
_OFFSETS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


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


def blend(model: Champion, items: Items, log: Log, fold: Fold, vals: Sequence[Fold]) -> dict[str, float]:
    """Recipe fields of the blend; a tie keeps the earlier value.

    Args:
        fold: what the model was fitted on. vals: validation folds, pooled; the sequence tower stays as it is, the
            linear head and popularity are fitted again on each, as a night does.
    """
    search = _Search(model, items, log, vals)
    found = {"tau": 10.0, "base": 0.1, "linear": 0.0, "half_life_days": 365.0, "popularity": 0.0, "content": 0.0,
             "image_share": 1.0}  # fmt: skip
    unit = search.units(found)
    grid: dict[str, tuple[float, ...]] = {name: tuple(t * unit[name] for t in _TIMES) for name in unit}
    grid |= {"tau": _TAUS, "base": _BASES, "half_life_days": _HALF_LIVES}
    found["linear"] = unit["linear"]
    best = search.ndcg(found)
    for _ in range(2):
        for name in ("linear", "tau", "base", "popularity", "half_life_days", "content"):
            for option in grid[name]:
                tried = found | {name: option}
                if tried != found and (got := search.ndcg(tried)) > best:
                    best, found = got, tried
    return found | search.cold(found, unit["content"])


class _Search:
    """Scores of every part on the validation cases, kept so that a trial is a sum."""

    def __init__(self, model: Champion, items: Items, log: Log, vals: Sequence[Fold]) -> None:
        self.model, self.items, self.log = model, items, log
        self.vals = [v for v in vals if v.n_cases]
        self.cases = [first_cases(v) for v in self.vals]
        self.heads = []
        for v in self.vals:
            model.refresh(items, log, v)
            self.heads.append((model.head, model.touched_N))
        self.sequence = [model.sequence_scores(items, log, v, c) for v, c in zip(self.vals, self.cases, strict=True)]
        self.spread = float(np.concatenate([s.ravel() for s in self.sequence]).std())
        for v, s in zip(self.vals, self.sequence, strict=True):
            mask(v, log, s)
        self.cache: dict[tuple[str, float, float], list[np.ndarray]] = {}

    def part(self, name: str, a: float, b: float = 0.0) -> list[np.ndarray]:
        """Scores of a part on every fold: linear(tau, base), content(image_share), popularity(half-life)."""
        key = (name, a, b)
        if key not in self.cache:
            self.cache = {k: v for k, v in self.cache.items() if k[0] != name or name == "popularity"}
            self.cache[key] = [self._one(name, a, b, n) for n in range(len(self.vals))]
        return self.cache[key]

    def _one(self, name: str, a: float, b: float, n: int) -> np.ndarray:
        model, val, cases = self.model, self.vals[n], self.cases[n]
        if name == "popularity":
            return np.log1p(Popularity(a).fit(self.items, self.log, val).score_N).astype(np.float32)
        if name == "linear":
            model.recipe = replace(model.recipe, tau=a, base=b)
            head = self.heads[n][0]
            return model.profile(self.log, val, cases, head.history_NR) @ head.offer_NR.T
        like_NC = model.likeness.vectors(self.items, image_share=a)
        return model.profile(self.log, val, cases, like_NC, flat=True) @ like_NC.T

    def units(self, s: dict[str, float]) -> dict[str, float]:
        parts = {"linear": self.part("linear", s["tau"], s["base"]), "content": self.part("content", s["image_share"]),
                 "popularity": self.part("popularity", s["half_life_days"])}  # fmt: skip
        return {name: self.spread / max(float(np.concatenate([x.ravel() for x in p]).std()), 1e-9)
                for name, p in parts.items()}  # fmt: skip

    def scores(self, s: dict[str, float]) -> Iterator[tuple[int, np.ndarray]]:
        for n, sequence in enumerate(self.sequence):
            cold_N = (~self.heads[n][1]).astype(np.float32)
            like_N = s["content"] + cold_N * (s.get("content_cold", s["content"]) - s["content"])
            out = sequence * (1 - cold_N * (1 - s.get("sequence_cold", 1.0)))
            out += np.float32(s["linear"]) * self.part("linear", s["tau"], s["base"])[n]
            out += self.part("content", s["image_share"])[n] * like_N.astype(np.float32)
            out += np.float32(s["popularity"]) * self.part("popularity", s["half_life_days"])[n]
            yield n, out - np.float32(s.get("cold_offset", 0.0)) * cold_N

    def ndcg(self, s: dict[str, float]) -> float:
        size = [c.stop for c in self.cases]
        return float(np.average([ndcg(self.vals[n], out) for n, out in self.scores(s)], weights=size))

    def cold(self, found: dict[str, float], unit: float) -> dict[str, float]:
        """How cold items are ranked among themselves, by their recall@20; then how far they stand back among all."""
        best, chosen = -1.0, {"sequence_cold": 1.0, "content_cold": found["content"], "image_share": 1.0}
        for share in _IMAGE_SHARES:
            for times in _COLD_TIMES:
                for sequence in (0.0, 1.0):
                    tried = {"sequence_cold": sequence, "content_cold": times * unit, "image_share": share}
                    recalls: list[float] = []
                    for n, out in self.scores(found | tried):
                        recalls += _cold_recalls(self.vals[n], out, ~self.heads[n][1] & self.vals[n].catalogue)
                    if recalls and float(np.mean(recalls)) > best:
                        best, chosen = float(np.mean(recalls)), tried
        offsets = [t * self.spread for t in _OFFSETS]
        values = [self.ndcg(found | chosen | {"cold_offset": o}) for o in offsets]
        good = [o for o, v in zip(offsets, values, strict=True) if v >= _SLACK * max(values)]
        return chosen | {"cold_offset": min(good)}


def _cold_recalls(fold: Fold, scores_BN: np.ndarray, cold: np.ndarray) -> list[float]:
    """recall@20 of the cases that want a cold item, among cold items."""
    among = np.flatnonzero(cold)
    if not len(among):
        return []
    top = _top(scores_BN[:, among], 20)
    values = []
    for b in range(len(scores_BN)):
        target = fold.target_item[fold.target_ptr[b] : fold.target_ptr[b + 1]]
        target = target[cold[target]]
        if len(target):
            values.append(float(np.isin(among[top[b][top[b] >= 0]], target).sum() / len(target)))
    return values

"""How much of each part: the blend of the sequence tower, the linear head, content likeness and popularity.

In: models whose towers are fitted, their validation folds. Out: weights, half-life and history decay.
Coordinate search on validation ndcg@10 over the full catalogue. Cold items have weights of their own, see cold.py.
Trade-off: a grid of a few values a number, walked twice; finer steps would fit the validation fold, not the task.

Shape legend: B cases, N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mmrec.models.baselines import Popularity
from mmrec.models.data import Fold, Items, Log
from mmrec.train.measure import first_cases, mask, ndcg

if TYPE_CHECKING:
    from mmrec.train.fit import Champion

# weights are tried in units that give a part the spread of the sequence tower's scores
_TIMES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
_HALF_LIVES = (30.0, 90.0, 365.0, 3650.0)
_TAUS, _BASES = (5.0, 10.0, 20.0), (0.05, 0.1, 0.3, 1.0, 10.0)


def blend(search: Search) -> dict[str, float]:
    """Recipe fields of the blend; a tie keeps the earlier value."""
    found = {"tau": 10.0, "base": 0.1, "linear": 0.0, "half_life_days": 365.0, "popularity": 0.0, "content": 0.0,
             "image_share": 1.0}  # fmt: skip
    unit = search.units(found)
    grid: dict[str, tuple[float, ...]] = {n: tuple(t * unit[n] for t in _TIMES) for n in unit if n != "appeal"}
    grid["popularity"] += (8 * unit["popularity"], 16 * unit["popularity"])  # some data is little else
    grid |= {"tau": _TAUS, "base": _BASES, "half_life_days": _HALF_LIVES}
    found["linear"] = unit["linear"]
    best = search.ndcg(found)
    for _ in range(2):
        for name in ("linear", "tau", "base", "popularity", "half_life_days", "content"):
            for option in grid[name]:
                tried = found | {name: option}
                if tried != found and (got := search.ndcg(tried)) > best:
                    best, found = got, tried
    return found | search.warm_as_cold(found)


class Search:
    """Scores of every part on the validation cases, kept so that a trial is a sum.

    Attributes:
        vals: validation folds, pooled; the sequence tower stays as it is, the linear head and popularity are fitted
            again on each, as a night does. spread: of the tower's scores.
    """

    def __init__(self, model: Champion, items: Items, log: Log, vals: Sequence[Fold]) -> None:
        self.model, self.items, self.log = model, items, log
        self.vals = [v for v in vals if v.n_cases]
        self.cases = [first_cases(v) for v in self.vals]
        self.heads, self.appeal = [], []
        for v in self.vals:
            model.refresh(items, log, v)
            self.heads.append((model.head.factors(model.likeness.vectors(items)), model.touched_N))
            self.appeal.append(model.appeal(items))
        self.sequence = [model.sequence_scores(items, log, v, c) for v, c in zip(self.vals, self.cases, strict=True)]
        self.spread = float(np.concatenate([s.ravel() for s in self.sequence]).std())
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
            history_NR, offer_NR = self.heads[n][0]
            return model.profile(self.log, val, cases, history_NR) @ offer_NR.T
        like_NC = model.likeness.vectors(self.items, image_share=a)
        return model.profile(self.log, val, cases, like_NC, flat=True) @ like_NC.T

    def units(self, s: dict[str, float]) -> dict[str, float]:
        """Weights that give parts the spread of the tower's scores."""
        parts = {"linear": self.part("linear", s["tau"], s["base"]), "content": self.part("content", s["image_share"]),
                 "popularity": self.part("popularity", s["half_life_days"])}  # fmt: skip
        parts["appeal"] = self.appeal
        return {name: self._unit(np.concatenate([x.ravel() for x in p])) for name, p in parts.items()}

    def _unit(self, score: np.ndarray) -> float:
        """What gives a part the tower's spread; 0 where it says the same of all but for rounding, as content does where
        there is none."""
        spread = float(score.std(dtype=np.float64))
        return self.spread / spread if spread > 1e-5 * float(np.abs(score).max(initial=0.0)) else 0.0

    def scores(self, s: dict[str, float]) -> Iterator[tuple[int, np.ndarray]]:
        for n, sequence in enumerate(self.sequence):
            cold_N = (~self.heads[n][1]).astype(np.float32)
            weight = {p: (s[p] + cold_N * (s.get(f"{p}_cold", s[p]) - s[p])).astype(np.float32)
                      for p in ("linear", "content")}  # fmt: skip
            out = sequence * (1 - cold_N * (1 - s.get("sequence_cold", 1.0)))
            out += weight["linear"] * self.part("linear", s["tau"], s["base"])[n]
            out += weight["content"] * self.part("content", s["image_share"])[n]
            out += np.float32(s["popularity"]) * self.part("popularity", s["half_life_days"])[n]
            bias = cold_N * (s.get("appeal_cold", 0.0) * self.appeal[n] - s.get("cold_offset", 0.0))
            yield n, mask(self.vals[n], self.log, out + bias.astype(np.float32))

    def ndcg(self, s: dict[str, float]) -> float:
        size = [c.stop for c in self.cases]
        return float(np.average([ndcg(self.vals[n], out) for n, out in self.scores(s)], weights=size))

    def warm_as_cold(self, s: dict[str, float]) -> dict[str, float]:
        """Cold items treated as any other, until `blend_cold` says better."""
        return {"sequence_cold": 1.0, "linear_cold": s["linear"], "content_cold": s["content"], "appeal_cold": 0.0,
                "cold_offset": 0.0}  # fmt: skip

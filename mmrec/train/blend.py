"""How much of each part: the blend of the sequence tower, the linear head, content likeness and popularity.

In: models whose towers are fitted, their validation folds. Out: weights, half-life and history decay.
Coordinate search on validation ndcg@10 over the full catalogue. Cold items have weights of their own: how they are
ranked among themselves is chosen by their own recall; then how far they stand back among all, so that the whole's
ndcg@10 stays within half a percent of its best.
Trade-off: a grid of a few values a number, walked twice; finer steps would fit the validation fold, not the task.

Shape legend: B cases, N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
_TAUS, _BASES = (5.0, 10.0, 20.0), (0.05, 0.1, 0.3, 1.0, 10.0)
_CASES = 2000  # validation cases looked at
_SLACK = 0.995
_IMAGE_SHARES = (1.0, 0.5, 0.25)
_COLD_TIMES = (0.0, 0.5, 1.0, 2.0, 4.0)
_WARM = ("tau", "base", "linear", "half_life_days", "popularity", "content", "image_share")
# where the search among cold items begins, in the same units: what did best over nine other cuts of the films, of both
# protocols. With few cases it is left only for what is clearly better.
_COLD_START = {"sequence": 1.0, "linear": 2.0, "content": 2.0, "appeal": 2.0, "image_share": 1.0}
_CLEARLY = 1.1
_COLD_KS = (10, 20, 50)
_OFFSETS = (0.0, *(float(2**n) for n in range(21)))  # the last leaves no cold item in any list


def first_cases(fold: Fold, most: int = _CASES) -> slice:
    """The cases a search looks at."""
    return slice(0, min(fold.n_cases, most))


def mask(fold: Fold, log: Log, scores_BN: np.ndarray, start: int = 0) -> np.ndarray:
    """The same scores of cases from `start` on, -inf where one has seen the item or it is not on offer; in place."""
    ptr = fold.hist_ptr[start : start + len(scores_BN) + 1]
    case = np.repeat(np.arange(len(scores_BN)), np.diff(ptr))
    scores_BN[:, ~fold.catalogue] = -np.inf
    scores_BN[case, log.item[fold.hist_row[ptr[0] : ptr[-1]]]] = -np.inf
    return scores_BN


def ndcg(fold: Fold, masked_BN: np.ndarray, start: int = 0) -> float:
    """Mean ndcg@10 of B cases of a fold from `start` on, from masked scores.

    A case with one target needs no list: before it stand as many items as score higher, or the same at a smaller index.
    """
    ptr = fold.target_ptr[start : start + len(masked_BN) + 1]
    target = fold.target_item[ptr[0] : ptr[-1]]
    if (np.diff(ptr) != 1).any():
        values = metrics.ranking(_top(masked_BN, 10), ptr - ptr[0], target, (10,))
        return float(values["ndcg@10"].mean())
    score_B1 = masked_BN[np.arange(len(target)), target][:, None]
    before_B = np.count_nonzero(masked_BN > score_B1, axis=1)
    for b in np.flatnonzero(np.count_nonzero(masked_BN == score_B1, axis=1) > 1):
        before_B[b] += np.count_nonzero(masked_BN[b, : target[b]] == score_B1[b])
    listed_B = (before_B < 10) & (score_B1[:, 0] > -np.inf)  # nor is one listed whose score is no number
    return float(np.where(listed_B, 1 / np.log2(before_B + 2.0), 0.0).mean())


def _top(scores_BN: np.ndarray, k: int) -> np.ndarray:
    """(B, k) best items, ties by index among those kept; a search, not an evaluation, may cut ties anywhere."""
    k = min(k, scores_BN.shape[1])
    near = np.sort(np.argpartition(-scores_BN, k - 1, axis=1)[:, :k], axis=1)
    value = np.take_along_axis(scores_BN, near, 1)
    order = np.argsort(-value, axis=1, kind="stable")
    return np.where(np.take_along_axis(value, order, 1) > -np.inf, np.take_along_axis(near, order, 1), -1)


def blend(model: Champion, items: Items, log: Log, vals: Sequence[Fold]) -> dict[str, float]:
    """Recipe fields of the blend; a tie keeps the earlier value.

    Args:
        vals: validation folds, pooled; the sequence tower stays as it is, the linear head and popularity are fitted
            again on each, as a night does.
    """
    search = _Search(model, items, log, vals)
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


def blend_cold(model: Champion, items: Items, log: Log, vals: Sequence[Fold]) -> dict[str, float]:
    """Recipe fields that concern cold items.

    Args:
        model: after `blend`. vals: its validation folds.
    """
    search = _Search(model, items, log, vals)
    own = {f: getattr(model.recipe, f) for f in _WARM}
    unit = search.units(own)
    parts = {share: search.cold_parts(own | {"image_share": share}) for share in _IMAGE_SHARES}

    def recall(t: dict[str, float]) -> float:
        found = [r for p in parts[t["image_share"]] for r in p.recalls(t)]
        return float(np.mean(found)) if found else 0.0

    times = dict(_COLD_START)
    grid = dict.fromkeys(("content", "appeal", "linear"), _COLD_TIMES)
    grid |= {"image_share": _IMAGE_SHARES, "sequence": (1.0, 0.0)}
    best = recall(times)
    for _ in range(2):
        for name, options in grid.items():
            for option in options:
                if (got := recall(times | {name: option})) > _CLEARLY * best:
                    best, times = got, times | {name: option}
    cold = {"sequence_cold": times["sequence"], "image_share": times["image_share"]}
    cold |= {f"{part}_cold": times[part] * unit[part] for part in ("linear", "content", "appeal")}
    offsets = [t * search.spread for t in _OFFSETS]
    values = [search.ndcg(own | cold | {"cold_offset": offset}) for offset in offsets]
    # the smallest that is as good as any, one among which leaves them out
    found = next(o for o, v in zip(offsets, values, strict=True) if v >= _SLACK * max(values))
    return cold | {"cold_offset": found}


@dataclass(frozen=True)
class _ColdParts:
    """Scores of a fold's cold items, each part in its own unit, and which of them are wanted."""

    sequence_BN: np.ndarray
    linear_BN: np.ndarray
    content_BN: np.ndarray
    appeal_N: np.ndarray
    wanted_BN: np.ndarray

    def recalls(self, times: dict[str, float]) -> np.ndarray:
        """Mean of recall@10, 20 and 50 of every case, among cold items: few cases need a smooth measure."""
        score_BN = times["sequence"] * self.sequence_BN + times["linear"] * self.linear_BN
        score_BN += times["content"] * self.content_BN + times["appeal"] * self.appeal_N
        top = _top(score_BN, max(_COLD_KS))
        hit = np.take_along_axis(self.wanted_BN, np.maximum(top, 0), 1) & (top >= 0)
        return np.mean([hit[:, :k].sum(1) for k in _COLD_KS], 0) / self.wanted_BN.sum(1)


class _Search:
    """Scores of every part on the validation cases, kept so that a trial is a sum."""

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
        parts = {"linear": self.part("linear", s["tau"], s["base"]), "content": self.part("content", s["image_share"]),
                 "popularity": self.part("popularity", s["half_life_days"])}  # fmt: skip
        parts["appeal"] = self.appeal
        return {name: self.spread / max(float(np.concatenate([x.ravel() for x in p]).std()), 1e-9)
                for name, p in parts.items()}  # fmt: skip

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

    def cold_parts(self, s: dict[str, float]) -> list[_ColdParts]:
        """What cold items score in the cases that want one; the units are those of `units`."""
        unit, found = self.units(s), []
        for n, val in enumerate(self.vals):
            cold = np.flatnonzero(val.cold_items(self.items, self.log))
            size = self.cases[n].stop
            case = np.repeat(np.arange(val.n_cases), np.diff(val.target_ptr))
            wanted_BN = np.zeros((size, self.items.n), bool)
            wanted_BN[case[case < size], val.target_item[case < size]] = True
            wanted_BN = wanted_BN[:, cold]
            want = np.flatnonzero(wanted_BN.any(1))
            if not len(want):
                continue
            at = np.ix_(want, cold)
            linear = unit["linear"] * self.part("linear", s["tau"], s["base"])[n][at]
            content = unit["content"] * self.part("content", s["image_share"])[n][at]
            appeal = unit["appeal"] * self.appeal[n][cold]
            found.append(_ColdParts(self.sequence[n][at], linear, content, appeal, wanted_BN[want]))
        return found

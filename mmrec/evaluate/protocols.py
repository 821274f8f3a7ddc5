"""Evaluation: rank the full catalogue for every case of a fold, and measure.

In: a fitted `Recommender` and a fold. Out: `CaseMetrics`: one value a case and metric, and the lists themselves.
Order is score descending, then item index ascending; a constant scorer is no better than chance because ties are
broken by item id, which has nothing to do with the targets.
Trade-off: scores are computed in blocks of dense rows (cases x items), which keeps every model comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmrec import metrics
from mmrec.errors import InputError
from mmrec.models.baselines import EASE, ItemKNN, Popularity, Recommender
from mmrec.models.data import Fold, Items, Log
from mmrec.topk.exact import select

KS = (10, 20)
Scorer = Callable[[slice], np.ndarray]


@dataclass(frozen=True)
class CaseMetrics:
    """Metrics of one model on one or several folds.

    Attributes:
        name: the model. user: (C,) user index of each case, the unit of the bootstrap.
        values: metric@k -> (C,) float64. ranked: (C, 20) item indices, -1 behind a short list.
        lists: metric@k -> one number for the whole set of lists (coverage, novelty, popularity_bias, diversity).
        not_finite: (case, item) scores that were NaN or infinite where a candidate was asked for; such an item is
            left out of that case's list and disturbs no other.
    """

    name: str
    user: np.ndarray
    values: dict[str, np.ndarray]
    ranked: np.ndarray
    lists: dict[str, float]
    not_finite: int = 0

    def mean(self, metric: str) -> float:
        return float(self.values[metric].mean()) if len(self.user) else 0.0


def evaluate(
    model: Recommender, items: Items, log: Log, fold: Fold, *, scorer: Scorer | None = None, block: int = 256,
    lists: bool = True,
) -> CaseMetrics:  # fmt: skip
    """Rank and measure.

    Args:
        model: fitted; a name is all it needs where `scorer` is given.
        scorer: replaces `model.score` (a masked modality, an oracle): slice of cases -> (B, N) scores.
        block: cases scored at a time; memory is block x N x 4 bytes.
        lists: measure the lists as a set too (coverage, novelty, diversity); costs more than the rest.

    Raises:
        InputError: scores of another shape than (B, N).
    """
    ranked = np.full((fold.n_cases, max(KS)), -1, np.int32)
    not_finite = 0
    score = scorer or (lambda cases: model.score(items, log, fold, cases))
    for start in range(0, fold.n_cases, block):
        cases = slice(start, min(start + block, fold.n_cases))
        ptr = fold.hist_ptr[cases.start : cases.stop + 1]
        seen = (ptr - ptr[0], log.item[fold.hist_row[ptr[0] : ptr[-1]]])
        score_BN = np.asarray(score(cases), np.float32)
        want = (cases.stop - cases.start, items.n)
        if score_BN.shape != want:
            raise InputError(
                "Scores don't fit.", where=f"{model.name}, {fold.name}", value=score_BN.shape, valid=str(want)
            )
        not_finite += int((~np.isfinite(score_BN[:, fold.catalogue])).sum())
        ranked[cases] = select(score_BN, max(KS), seen=seen, allowed=fold.catalogue).item
    values = metrics.ranking(ranked, fold.target_ptr, fold.target_item, KS)
    whole = _whole(items, log, fold, ranked) if lists else {}
    return CaseMetrics(model.name, fold.case_user, values, ranked, whole, not_finite)


def _whole(items: Items, log: Log, fold: Fold, ranked: np.ndarray) -> dict[str, float]:
    train = fold.train
    pairs = np.unique(log.user[train].astype(np.int64) * items.n + log.item[train]) % items.n
    users_N = np.bincount(pairs, minlength=items.n)
    content = np.concatenate([items.content[m] for m in sorted(items.content)], 1) if items.content else None
    lists = {}
    for k in KS:
        lists[f"coverage@{k}"] = metrics.coverage(ranked, int(fold.catalogue.sum()), k)
        lists[f"novelty@{k}"] = metrics.novelty(ranked, users_N, len(np.unique(log.user[train])), k)
        lists[f"popularity_bias@{k}"] = metrics.popularity_bias(ranked, users_N, k)
        if content is not None:
            lists[f"diversity@{k}"] = metrics.diversity(ranked, content, k)
    return lists


def pool(parts: Sequence[CaseMetrics]) -> CaseMetrics:
    """Cases of several folds as one set, in the order given; list metrics are averaged by number of cases.

    Raises:
        InputError: no part, or parts of different models.
    """
    if len({p.name for p in parts}) != 1:
        raise InputError("Only the folds of one model can be pooled.", value=[p.name for p in parts])
    size = np.array([len(p.user) for p in parts], float)
    share = size / max(size.sum(), 1)
    return CaseMetrics(
        parts[0].name,
        np.concatenate([p.user for p in parts]),
        {m: np.concatenate([p.values[m] for p in parts]) for m in parts[0].values},
        np.concatenate([p.ranked for p in parts]),
        {m: float(sum(s * p.lists[m] for s, p in zip(share, parts, strict=True))) for m in parts[0].lists},
        sum(p.not_finite for p in parts),
    )


def restrict(fold: Fold, keep_target: np.ndarray, catalogue: np.ndarray | None = None) -> Fold:
    """The same fold with the targets that `keep_target` (N,) bool names, and the cases that still have one."""
    keep = keep_target[fold.target_item]
    case = np.repeat(np.arange(fold.n_cases), np.diff(fold.target_ptr))
    count = np.bincount(case[keep], minlength=fold.n_cases)
    stay = count > 0
    size = np.diff(fold.hist_ptr)
    return replace(
        fold,
        case_user=fold.case_user[stay],
        case_at_us=fold.case_at_us[stay],
        hist_ptr=np.concatenate([[0], np.cumsum(size[stay])]).astype(np.int64),
        hist_row=fold.hist_row[np.repeat(stay, size)],
        target_ptr=np.concatenate([[0], np.cumsum(count[stay])]).astype(np.int64),
        target_item=fold.target_item[keep],
        catalogue=fold.catalogue if catalogue is None else catalogue,
    )


def tune(
    items: Items, log: Log, folds: Sequence[Fold], metric: str = "ndcg@10"
) -> tuple[dict[str, Recommender], dict[str, float]]:
    """The baselines with the setting that is best on validation folds, from a small fixed grid.

    Half-life 30, 90, 365 days or none; item-kNN with 20, 50, 100, 200 neighbours; EASE with lambda 50 to 1000.

    Args:
        folds: validation folds, all of which lie before any test fold.

    Returns: name -> the best candidate (the earliest of equals), to be fitted again on what it is tested on; and the
        pooled mean of `metric` of every candidate, by its repr.
    """
    grid: list[Recommender] = [
        *(Popularity(days) for days in (30, 90, 365, float("inf"))),
        *(ItemKNN(k) for k in (20, 50, 100, 200)),
        *(EASE(lam) for lam in (50, 100, 250, 500, 1000)),
    ]
    best: dict[str, Recommender] = {}
    found: dict[str, float] = {}
    for candidate in grid:
        parts = [evaluate(candidate.fit(items, log, f), items, log, f, lists=False) for f in folds if f.n_cases]
        found[repr(candidate)] = pool(parts).mean(metric)
        rival = best.setdefault(candidate.name, candidate)
        if found[repr(candidate)] > found[repr(rival)]:
            best[candidate.name] = candidate
    return best, found

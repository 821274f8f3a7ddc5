"""Evaluation: rank the full catalogue for every case of a fold, and measure.

In: a fitted `Recommender` and a fold. Out: `CaseMetrics`: one value a case and metric, and the lists themselves.
Order is score descending, then item index ascending; a constant scorer is no better than chance because ties are
broken by item id, which has nothing to do with the targets.
Trade-off: scores are computed in blocks of dense rows (cases x items), which keeps every model comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmrec import metrics
from mmrec.models.baselines import Recommender
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
        lists: metric@k -> one number for the whole set of lists (coverage, novelty, diversity).
    """

    name: str
    user: np.ndarray
    values: dict[str, np.ndarray]
    ranked: np.ndarray
    lists: dict[str, float]

    def mean(self, metric: str) -> float:
        return float(self.values[metric].mean()) if len(self.user) else 0.0


def evaluate(
    model: Recommender, items: Items, log: Log, fold: Fold, *, scorer: Scorer | None = None, block: int = 256
) -> CaseMetrics:
    """Rank and measure.

    Args:
        scorer: replaces `model.score` (a masked modality, an oracle): slice of cases -> (B, N) scores.
    """
    ranked = np.full((fold.n_cases, max(KS)), -1, np.int32)
    score = scorer or (lambda cases: model.score(items, log, fold, cases))
    for start in range(0, fold.n_cases, block):
        cases = slice(start, min(start + block, fold.n_cases))
        ptr = fold.hist_ptr[cases.start : cases.stop + 1]
        seen = (ptr - ptr[0], log.item[fold.hist_row[ptr[0] : ptr[-1]]])
        ranked[cases] = select(score(cases), max(KS), seen=seen, allowed=fold.catalogue).item
    values = metrics.ranking(ranked, fold.target_ptr, fold.target_item, KS)
    train = fold.train
    pairs = np.unique(log.user[train].astype(np.int64) * items.n + log.item[train]) % items.n
    users_N = np.bincount(pairs, minlength=items.n)
    content = np.concatenate([items.content[m] for m in sorted(items.content)], 1) if items.content else None
    lists = {}
    for k in KS:
        lists[f"coverage@{k}"] = metrics.coverage(ranked, int(fold.catalogue.sum()), k)
        lists[f"novelty@{k}"] = metrics.novelty(ranked, users_N, len(np.unique(log.user[train])), k)
        if content is not None:
            lists[f"diversity@{k}"] = metrics.diversity(ranked, content, k)
    return CaseMetrics(model.name, fold.case_user, values, ranked, lists)


def pool(parts: list[CaseMetrics]) -> CaseMetrics:
    """Cases of several folds as one set; list metrics are averaged by number of cases."""
    size = np.array([len(p.user) for p in parts], float)
    share = size / max(size.sum(), 1)
    return CaseMetrics(
        parts[0].name,
        np.concatenate([p.user for p in parts]),
        {m: np.concatenate([p.values[m] for p in parts]) for m in parts[0].values},
        np.concatenate([p.ranked for p in parts]),
        {m: float(sum(s * p.lists[m] for s, p in zip(share, parts, strict=True))) for m in parts[0].lists},
    )


def restrict(fold: Fold, keep_target: np.ndarray, catalogue: np.ndarray | None = None) -> Fold:
    """The same fold with the targets that `keep_target` (N,) bool names, and the cases that still have one."""
    keep = keep_target[fold.target_item]
    case = np.repeat(np.arange(fold.n_cases), np.diff(fold.target_ptr))
    count = np.bincount(case[keep], minlength=fold.n_cases)
    cases = np.flatnonzero(count)
    rows = [fold.hist_row[fold.hist_ptr[c] : fold.hist_ptr[c + 1]] for c in cases]
    return Fold(
        fold.name,
        fold.train,
        fold.fit_at_us,
        fold.case_user[cases],
        fold.case_at_us[cases],
        np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64),
        np.concatenate(rows) if rows else np.zeros(0, np.int64),
        np.concatenate([[0], np.cumsum(count[cases])]).astype(np.int64),
        fold.target_item[keep],
        fold.catalogue if catalogue is None else catalogue,
    )

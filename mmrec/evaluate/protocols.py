"""Evaluation: rank the full catalogue for every case of a fold, and measure.

In: a fitted `Recommender` and a fold. Out: `CaseMetrics`: one value a case and metric, and the lists themselves.
Order is score descending, then item index ascending; a constant scorer is no better than chance because ties are
broken by item id, which has nothing to do with the targets.
Trade-off: scores are computed in blocks of dense rows (cases x items), which keeps every model comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmrec import metrics
from mmrec.errors import InputError
from mmrec.models.baselines import Popularity, Recommender
from mmrec.models.data import Fold, Items, Log
from mmrec.models.ease import EASE, MAX_ITEMS
from mmrec.models.neighbours import ItemKNN, UserKNN
from mmrec.topk.exact import select

KS = (10, 20)
TUNED = ("popularity", "item_knn", "user_knn", "ease")
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
    return evaluate_parts(model, items, log, fold, {}, scorer=scorer, block=block, lists=lists)["all"]


def evaluate_parts(
    model: Recommender, items: Items, log: Log, fold: Fold, parts: Mapping[str, Fold], *,
    scorer: Scorer | None = None, block: int = 256, lists: bool = True,
) -> dict[str, CaseMetrics]:  # fmt: skip
    """The same of a fold ("all") and of parts of it, scoring each case once.

    Args:
        parts: folds whose cases are some of the fold's, in its order, with targets and catalogue of their own. Their
            lists are not measured as a set.

    Raises:
        InputError: as `evaluate`; a part with a case that is not the fold's.
    """
    folds = {"all": fold, **parts}
    # a fold asks a user once, in the order of users
    at = {name: np.searchsorted(fold.case_user, f.case_user) for name, f in folds.items()}
    for name, f in parts.items():
        if not np.array_equal(fold.case_user[np.minimum(at[name], fold.n_cases - 1)], f.case_user):
            raise InputError("A part asks users whom its fold doesn't.", where=f"{fold.name}, {name}")
    ranked = {name: np.full((f.n_cases, max(KS)), -1, np.int32) for name, f in folds.items()}
    not_finite = dict.fromkeys(folds, 0)
    score = scorer or (lambda cases: model.score(items, log, fold, cases))
    for start in range(0, fold.n_cases, block):
        cases = slice(start, min(start + block, fold.n_cases))
        score_BN = np.asarray(score(cases), np.float32)
        want = (cases.stop - cases.start, items.n)
        if score_BN.shape != want:
            raise InputError(
                "Scores don't fit.", where=f"{model.name}, {fold.name}", value=score_BN.shape, valid=str(want)
            )
        for name, f in folds.items():
            own = slice(*np.searchsorted(at[name], (cases.start, cases.stop)))
            if own.start == own.stop:
                continue
            own_BN = score_BN[at[name][own] - start]
            ptr = f.hist_ptr[own.start : own.stop + 1]
            seen = (ptr - ptr[0], log.item[f.hist_row[ptr[0] : ptr[-1]]])
            not_finite[name] += int((~np.isfinite(own_BN[:, f.catalogue])).sum())
            ranked[name][own] = select(own_BN, max(KS), seen=seen, allowed=f.catalogue).item
    found = {}
    for name, f in folds.items():
        values = metrics.ranking(ranked[name], f.target_ptr, f.target_item, KS)
        whole = _whole(items, log, f, ranked[name]) if lists and name == "all" else {}
        found[name] = CaseMetrics(model.name, f.case_user, values, ranked[name], whole, not_finite[name])
    return found


def _whole(items: Items, log: Log, fold: Fold, ranked: np.ndarray) -> dict[str, float]:
    train = fold.train
    pairs = np.unique(log.user[train].astype(np.int64) * items.n + log.item[train]) % items.n
    users_N = np.bincount(pairs, minlength=items.n)
    # only what is shown needs a vector
    shown = np.unique(ranked[ranked >= 0])
    content = np.concatenate([v[shown] for _, v in sorted(items.content.items())], 1) if items.content else None
    place = np.where(ranked >= 0, np.searchsorted(shown, ranked), -1)
    lists = {}
    for k in KS:
        lists[f"coverage@{k}"] = metrics.coverage(ranked, int(fold.catalogue.sum()), k)
        lists[f"novelty@{k}"] = metrics.novelty(ranked, users_N, len(np.unique(log.user[train])), k)
        lists[f"popularity_bias@{k}"] = metrics.popularity_bias(ranked, users_N, k)
        if content is not None:
            lists[f"diversity@{k}"] = metrics.diversity(place, content, k)
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
    kept = replace(
        fold,
        target_ptr=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        target_item=fold.target_item[keep],
        catalogue=fold.catalogue if catalogue is None else catalogue,
    )
    return kept.some(count > 0)


def tune(
    items: Items, log: Log, folds: Sequence[Fold], metric: str = "ndcg@10", *, ease_items: int = MAX_ITEMS,
    names: Collection[str] = TUNED,
) -> tuple[dict[str, Recommender], dict[str, float]]:  # fmt: skip
    """The baselines with the setting that is best on validation folds, from a small fixed grid.

    Half-life 30, 90, 365 days or none; item-kNN with 20, 50, 100, 200 neighbours; user-kNN with 50, 100, 200; EASE with
    lambda 50 to 1000. A rival that takes seconds for each of dozens of folds is not among them: `published_rivals`.

    Args:
        folds: validation folds, all of which lie before any test fold.
        ease_items: the largest catalogue that EASE is solved for; a larger one goes without it.
        names: which of them.

    Returns: name -> the best candidate (the earliest of equals), to be fitted again on what it is tested on; and the
        pooled mean of `metric` of every candidate, by its repr.
    """
    best: dict[str, Recommender] = {}
    parts: dict[str, list[CaseMetrics]] = {}
    for fold in (f for f in folds if f.n_cases):
        for candidate, fitted in _candidates(items, log, fold, ease_items, names):
            best.setdefault(repr(candidate), candidate)
            parts.setdefault(repr(candidate), []).append(evaluate(fitted, items, log, fold, lists=False))
    found = {label: pool(each).mean(metric) for label, each in parts.items()}
    chosen: dict[str, Recommender] = {}
    for label, candidate in best.items():
        if candidate.name not in chosen or found[label] > found[repr(chosen[candidate.name])]:
            chosen[candidate.name] = candidate
    return chosen, found


def _candidates(
    items: Items, log: Log, fold: Fold, ease_items: int, names: Collection[str]
) -> Iterator[tuple[Recommender, Recommender]]:
    """(settings, the same fitted on a fold)."""
    for days in (30, 90, 365, float("inf")) if "popularity" in names else ():
        yield Popularity(days), Popularity(days).fit(items, log, fold)
    if "item_knn" in names:
        wide = ItemKNN(200).fit(items, log, fold)
        for k in (20, 50, 100, 200):
            yield ItemKNN(k), wide.narrow(k)
    if "user_knn" in names:
        users = UserKNN().fit(items, log, fold)
        for k in (50, 100, 200):
            yield UserKNN(k), users.narrow(k)
    for lam in (50, 100, 250, 500, 1000) if "ease" in names and items.n <= ease_items else ():
        yield EASE(lam, max_items=ease_items), EASE(lam, max_items=ease_items).fit(items, log, fold)

"""One protocol's study: every window read once by every model, pooled into rows.

In: fitted models by group of windows, baselines, windows. Out: rows of numbers (split, slice, model, metric, value, n,
lo, hi), as ops.metrics holds them but for the run they belong to.
What is read of a window: the whole and its slices by every model; on test windows also the champion with one modality
masked at a time ("without_<part>"), with its second stage ("second_stage"), the second stage as it was fitted without
one source, and the truth of a built-in world ("oracle").
Trade-off: a modality is masked, not left out of a second training; that shows what the model takes from it, and a
refit might lean on the others a little more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from mmrec.evaluate.protocols import CaseMetrics, Scorer, evaluate_parts, pool
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.evaluate.slices import slices
from mmrec.models.baselines import Recommender
from mmrec.models.data import Fold, Items, Log

COMPARED = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")
SECOND = "second_stage"
Found = dict[tuple[str, str], list[CaseMetrics]]  # (slice, model) -> its windows


class Model(Protocol):
    """What a study asks of the model it is about."""

    name: str

    def refresh(self, items: Items, log: Log, fold: Fold) -> Any:
        """Fit again what a night fits again."""
        ...

    def score(self, items: Items, log: Log, fold: Fold, cases: slice, drop: frozenset[str] = frozenset()) -> np.ndarray:
        """(B, N); `drop` names parts of an item to mask."""
        ...


class Study:
    """See the module.

    Args:
        oracle: the truth as a scorer of (fold, cases), where there is one.
        parts: what is masked, one at a time; None: the item's identity and every modality.
        second: of a model, items, log and window, the scorers of its second stage and, by what was left out of it or
            put in ("without_social"), of rivals of it; None: it has none.
    """

    def __init__(
        self,
        items: Items,
        log: Log,
        baselines: Sequence[Recommender],
        oracle: Callable[[Fold, slice], np.ndarray] | None = None,
        parts: Sequence[str] | None = None,
        second: Callable[[Any, Items, Log, Fold], Mapping[str, Scorer]] | None = None,
    ) -> None:
        self.items, self.log, self.baselines, self.oracle = items, log, baselines, oracle
        self.second = second
        self.parts = ("id", *sorted(items.content)) if parts is None else parts
        self.found: dict[str, Found] = {}

    def read(self, split: str, model: Model, window: Fold) -> None:
        """Add what every model makes of one window; slices, masks and the oracle on test alone."""
        items, log, found = self.items, self.log, self.found.setdefault(split, {})
        test = split == "test"
        model.refresh(items, log, window)
        parts = slices(items, log, window) if test else {}

        def add(name: str, score: Scorer, parts: Mapping[str, Fold], part: str = "all", lists: bool = False) -> None:
            measured = evaluate_parts(model, items, log, window, parts, scorer=score, lists=lists)
            for other, values in measured.items():
                found.setdefault((part if other == "all" else other, name), []).append(replace(values, name=name))

        for ranker in (*self.baselines, model):
            if ranker is not model:
                ranker.fit(items, log, window)
            add(ranker.name, _scorer(ranker, items, log, window), parts, lists=True)
        if test:
            for m in self.parts:
                add(model.name, _scorer(model, items, log, window, frozenset([m])), {}, f"without_{m}")
            if self.second is not None:  # on validation it was fitted
                for name, scorer in self.second(model, items, log, window).items():
                    add(SECOND, scorer, {} if name else parts, name or "all", lists=not name)
            if self.oracle is not None:
                add("oracle", lambda cases: self.oracle(window, cases), {})  # type: ignore[misc]

    def rows(self, champion: str, rivals: Sequence[str], samples: int) -> list[dict[str, Any]]:
        """Pooled means of everything, and on test the champion's differences to its rivals, and to itself with
        its second stage, with intervals."""
        out: list[dict[str, Any]] = []
        for split, found in self.found.items():
            pooled = {key: pool(parts) for key, parts in found.items()}
            for (part, name), result in pooled.items():
                values = {m: result.mean(m) for m in result.values} | result.lists
                about = {"split": split, "slice": part, "model": name, "n": len(result.user)}
                out += [about | {"metric": m, "value": float(v), "lo": None, "hi": None} for m, v in values.items()]
            if split != "test":
                continue
            pairs = [(champion, ("all", name)) for name in (*rivals, *([SECOND] if self.second is not None else []))]
            pairs += [(SECOND, key) for key in pooled if key[1] == SECOND and key[0].startswith(("without_", "with_"))]
            for name, (part, other) in pairs:
                own, rival = pooled["all", name], pooled[part, other]
                about = {"split": split, "slice": f"vs_{other if part == 'all' else part}", "model": name,
                         "n": len(own.user)}  # fmt: skip
                for m in COMPARED:
                    mean, lo, hi = paired_bootstrap(own.values[m], rival.values[m], own.user, samples)
                    out.append(about | {"metric": m, "value": mean, "lo": lo, "hi": hi})
        return out


def _scorer(model: Any, items: Items, log: Log, fold: Fold, drop: frozenset[str] | None = None) -> Scorer:
    more = () if drop is None else (drop,)
    return lambda cases: model.score(items, log, fold, cases, *more)

"""How well items that nobody has had yet are ranked, among themselves.

In: items, interactions, a recipe. Out: recall and ndcg of the model and of its nearest rival there, content nearest
neighbours, on a split that hides a tenth of the items.
Weights are chosen with another tenth hidden; the model is then fitted again on all that the test leaves, and the test
is read once.
Trade-off: hidden items are drawn at random, not the newest: their number and kind are those of the catalogue, but what
a shop takes on next year may be further away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mmrec.errors import InputError
from mmrec.evaluate.protocols import evaluate
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.models.data import Items, Log

_TOLD = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")


def hideable(items: Items) -> None:
    """Raises: InputError: nothing is described, so that nothing could be said of a hidden item."""
    if not items.content:
        raise InputError("hidden items have no content to be ranked by", where="--cold", value=0,
                         valid="a modality at least", next="leave --cold out")  # fmt: skip


def cold_study(
    items: Items, log: Log, recipe: Any, *, seed: int = 0, share: float = 0.1,
    progress: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fit twice, measure once.

    Args:
        recipe: a `Recipe`. seed: of the fits and of which items are hidden. progress: as of `Champion`.

    Returns: champion, content_nn: metric -> mean; ratio: of their recall@20; interval: of its difference, 95% over
        users; items: hidden ones; cases; share; seed; chosen: what concerns cold items.

    Raises: InputError: nothing is described, so that nothing could be said of a hidden item.
    """
    from mmrec.models.neighbours import ContentNN
    from mmrec.models.splits import hidden
    from mmrec.train.fit import Champion

    hideable(items)
    validation = hidden(log, items, share=share, seed=seed, validation=True)
    test = hidden(log, items, share=share, seed=seed)
    chosen = Champion(recipe, seed, progress).fit(items, log, validation, [validation]).chosen
    model = Champion(recipe.fixed(chosen), seed, progress).fit(items, log, test)
    found = {m.name: evaluate(m, items, log, test, lists=False) for m in (model, ContentNN().fit(items, log, test))}
    means = {name: {m: round(got.mean(m), 4) for m in _TOLD} for name, got in found.items()}
    own, rival = (found[n].values["recall@20"] for n in (Champion.name, ContentNN.name))
    _, low, high = paired_bootstrap(own, rival, found[Champion.name].user)
    return means | {
        "ratio": round(float(own.mean() / max(rival.mean(), 1e-9)), 3), "interval": [round(low, 4), round(high, 4)],
        "items": int(np.sum(test.catalogue)), "cases": test.n_cases, "share": share, "seed": seed,
        "chosen": {k: v for k, v in chosen.items() if "cold" in k or k in ("blend", "image_share")},
    }  # fmt: skip

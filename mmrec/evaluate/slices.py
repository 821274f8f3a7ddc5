"""Slices: the same models on the cases that a mean hides.

In: a fold. Out: name -> restricted fold: cold_items (targets and candidates are items without a train interaction, and
no near-duplicate of them has one: it would give the answer), cold_users (the shortest quarter of histories),
missing_<modality> (targets that lack it).
Trade-off: cold users are relative to the data at hand, because no fixed length is short everywhere.
"""

from __future__ import annotations

import numpy as np

from mmrec.evaluate.protocols import restrict
from mmrec.models.data import Fold, Items, Log


def slices(items: Items, log: Log, fold: Fold) -> dict[str, Fold]:
    """Slices that have at least one case.

    Train and history stay as they are, so a model fitted on the fold is evaluated on its slices without a new fit.
    Slices of one fold have different cases: compare models on a slice, never slices with each other.
    """
    cold = fold.cold_items(items, log)
    found = {"cold_items": restrict(fold, cold, cold)}
    length = np.diff(fold.hist_ptr)
    if fold.n_cases:
        found["cold_users"] = fold.some(length <= np.quantile(length, 0.25, method="lower"))
    for modality, present in items.present.items():
        if (~present).any():
            found[f"missing_{modality}"] = restrict(fold, ~present)
    return {name: f for name, f in found.items() if f.n_cases}


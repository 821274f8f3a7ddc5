"""Slices: the same models on the cases that a mean hides.

In: a fold. Out: name -> restricted fold: cold_items (targets and candidates are items without a train interaction, and
no near-duplicate of them has one: it would give the answer), cold_users (the shortest quarter of histories),
missing_<modality> (targets that lack it).
Trade-off: cold users are relative to the data at hand, because no fixed length is short everywhere.
"""

from __future__ import annotations

from dataclasses import replace

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
        found["cold_users"] = _cases(fold, length <= np.quantile(length, 0.25, method="lower"))
    for modality, present in items.present.items():
        if (~present).any():
            found[f"missing_{modality}"] = restrict(fold, ~present)
    return {name: f for name, f in found.items() if f.n_cases}


def _cases(fold: Fold, keep: np.ndarray) -> Fold:
    case = np.repeat(keep, np.diff(fold.target_ptr))
    hist = np.repeat(keep, np.diff(fold.hist_ptr))
    return replace(
        fold,
        case_user=fold.case_user[keep],
        case_at_us=fold.case_at_us[keep],
        hist_ptr=np.concatenate([[0], np.cumsum(np.diff(fold.hist_ptr)[keep])]).astype(np.int64),
        hist_row=fold.hist_row[hist],
        target_ptr=np.concatenate([[0], np.cumsum(np.diff(fold.target_ptr)[keep])]).astype(np.int64),
        target_item=fold.target_item[case],
    )

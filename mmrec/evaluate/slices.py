"""Slices: the same models on the cases that a mean hides.

In: a fold. Out: name -> restricted fold: cold_items (targets and candidates are items without a train interaction),
cold_users (the shortest quarter of histories), missing_<modality> (targets that lack it).
Trade-off: cold users are relative to the data at hand, because no fixed length is short everywhere.
"""

from __future__ import annotations

import numpy as np

from mmrec.evaluate.protocols import restrict
from mmrec.models.data import Fold, Items, Log


def slices(items: Items, log: Log, fold: Fold) -> dict[str, Fold]:
    """Slices that have at least one case."""
    touched = np.zeros(items.n, bool)
    touched[log.item[fold.train]] = True
    cold = ~touched & fold.catalogue
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
    return Fold(
        fold.name,
        fold.train,
        fold.fit_at_us,
        fold.case_user[keep],
        fold.case_at_us[keep],
        np.concatenate([[0], np.cumsum(np.diff(fold.hist_ptr)[keep])]),
        fold.hist_row[hist],
        np.concatenate([[0], np.cumsum(np.diff(fold.target_ptr)[keep])]),
        fold.target_item[case],
        fold.catalogue,
    )

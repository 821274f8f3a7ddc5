"""The built-in world's own truth, as a scorer: what no model can know, and the bound of what one can reach.

In: a source, dense views. Out: a scorer as protocols have them.
Trade-off: it knows tastes and what was chosen last, not chance: some of what people choose nobody could foretell.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from mmrec.config import SourceConfig
from mmrec.models.data import Fold, Items, Log
from mmrec.worlds.builtin import World


def oracle(source: SourceConfig, items: Items, log: Log) -> Callable[[Fold, slice], np.ndarray] | None:
    """(fold, slice of cases) -> (B, N) float32; None for other sources."""
    if source.spec != "builtin":
        return None
    generator = World(source.seed, source.size)
    ids = [str(i) for i in items.ids]

    def score(fold: Fold, cases: slice) -> np.ndarray:
        out_BN = np.zeros((cases.stop - cases.start, len(ids)), np.float32)
        moments = fold.case_at_us[cases]
        for moment in np.unique(moments):
            rows = np.flatnonzero(moments == moment)
            users = [str(log.user_ids[u]) for u in fold.case_user[cases][rows]]
            newest = log.item[fold.hist_row[fold.hist_ptr[1:][cases][rows] - 1]]
            last = [ids[i] for i in newest]
            out_BN[rows] = generator.oracle_scores(users, ids, datetime.fromtimestamp(moment / 1e6, UTC), last)
        return out_BN

    return score

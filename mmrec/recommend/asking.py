"""A bundle asked for cases of folds, by what a night scores with.

In: a checked bundle, dense views, folds. Out: scorers as protocols have them: slice of cases -> scores.
Trade-off: a night's lists have other steps after this one (rules, diversity, a fallback); what is asked here is the
model alone.

Shape legend: B cases, N items, K places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa

from mmrec.bundle.bundle import Bundle
from mmrec.lake.store import Lake
from mmrec.models.baselines import Popularity
from mmrec.models.data import Fold, Items, Log
from mmrec.recommend.score import item_side, sums_over, user_vectors
from mmrec.recommend.scorers import Sums, Vectors
from mmrec.topk.rerank import Rerank

_PLACES = 20  # as many as are measured


def asking(
    bundle: Bundle, items: Items, log: Log, fold: Fold, rows: pa.Table, lake: Lake, tables: Mapping[str, int], *,
    length: int, half_life_days: float, device: str, threads: int,
) -> Callable[[Fold], Callable[[slice], np.ndarray]]:  # fmt: skip
    """Of a trained bundle: a fold -> slice of its cases -> (B, N) float32, the best places of its catalogue, and -inf
    behind them.

    Args:
        fold: whose training rows popularity is counted on. half_life_days: of popularity, of a bundle that says none.
        rows: of `items`, in their order, with their content's columns. tables: as of `item_side`.
        length: events of a history that a night keeps.

    Raises: QualityError: it was trained on other features, or on encoders that have no embeddings here.
    """
    popular = Popularity(bundle.about.get("half_life_days") or half_life_days).fit(items, log, fold).score_N
    micro = pa.array(np.round(popular * 1e6).astype(np.int64))
    rows = rows.append_column("popularity_micro", micro)
    side = item_side(bundle, rows, lake, tables, device=device, threads=threads)
    ids = rows["item_id"].combine_chunks()
    if side is None:
        sums = sums_over(bundle, rows)
    else:
        how = Rerank.of(bundle.about.get("blend"))
        nobody = Vectors(np.zeros((0, side.item_vec.shape[1]), np.float32), side.item_vec, how=how, cold_N=side.cold,
                         device=device)  # fmt: skip

    def of(fold: Fold) -> Callable[[slice], np.ndarray]:
        # a copy for each fold: what is made of items hangs on which may be listed
        within = None if side is None else replace(nobody, allowed_N=fold.catalogue, kept={})

        def scorer(users: pa.Table) -> Vectors | Sums:
            if side is None or within is None:
                return replace(sums(users), allowed_N=fold.catalogue)
            return within.of(user_vectors(bundle, users, ids, side.item_in, device=device, threads=threads))

        def score(cases: slice) -> np.ndarray:
            users = _users(items, log, fold, cases, length)
            ptr = fold.hist_ptr[cases.start : cases.stop + 1]
            seen = (ptr - ptr[0], log.item[fold.hist_row[ptr[0] : ptr[-1]]])
            whole = slice(0, users.num_rows)
            best = scorer(users).best(whole, whole, _PLACES, seen)
            out_BN = np.full((users.num_rows, items.n), -np.inf, np.float32)
            b, k = np.nonzero(best.item >= 0)
            # places, not scores: what a re-ranking ends with need not fall from item to item
            out_BN[b, best.item[b, k]] = _PLACES - k
            return out_BN

        return score

    return of


def _users(items: Items, log: Log, fold: Fold, cases: slice, length: int) -> pa.Table:
    """Histories of cases as gold.user_sequences has them."""
    starts = np.maximum(fold.hist_ptr[cases], fold.hist_ptr[1:][cases] - length)
    stops = fold.hist_ptr[1:][cases]
    size = stops - starts
    ptr = np.concatenate([[0], np.cumsum(size)])
    row = fold.hist_row[np.repeat(starts - ptr[:-1], size) + np.arange(ptr[-1])]
    after = np.append(log.ts_us[row][1:], 0)
    after[ptr[1:][size > 0] - 1] = fold.case_at_us[cases][size > 0]
    columns = {
        "item_ids": pa.array(items.ids, pa.string()).take(pa.array(log.item[row])),
        "event_types": pa.array(log.event_types, pa.string()).take(pa.array(log.event[row])),
        "gap_s": pa.array((after - log.ts_us[row]) // 1_000_000),
        "weight_micro": pa.array(np.round(log.weight[row].astype(np.float64) * 1e6).astype(np.int64)),
    }
    lists = {name: pa.LargeListArray.from_arrays(pa.array(ptr, pa.int64()), values) for name, values in columns.items()}
    names = pa.array([str(log.user_ids[u]) for u in fold.case_user[cases]], pa.string())
    return pa.table({"user_id": names} | lists)

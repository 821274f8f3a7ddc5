"""Items as sketches of their content: 64 small numbers, whose dot product is nearly the cosine of two items' contents.

In: the day's items, the embedding cache as a run's manifest pins it. Out: (N, 64) int8.
Contents of all modalities side by side, each of unit length, are turned to their 64 main directions (uncentred, so that
cosines stay what they are), made of unit length again and rounded: a dot product of two is a sum of integers, the same
on any machine and in any order.
Trade-off: what lies beyond 64 directions is lost; in exchange an item is one line of a processor's cache, and a list is
compared with its candidates at a fraction of the search's price.

Shape legend: N items, D vector size of all modalities, V columns of a sketch, S items that directions are found from.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.models.tables import content_of
from mmrec.recommend.generators import looks
from mmrec.recommend.vary import WIDE, Aims

_LOOKED_AT = 20_000  # items, evenly spaced: more move the directions by less than rounding does
_ONE = 127
_CACHE = "gold.item_embeddings"


def sketches(lake: Lake, m: Manifest, items: pa.Table) -> np.ndarray | None:
    """(N, 64) int8, a row of zeros of an item without any content; None of a run that does not look at contents.

    Args:
        items: of the day, ascending by item_id, with their content keys.
    """
    varied, mixed = m.config.get("diversity"), m.config.get("candidates")
    record = varied if varied and Aims.of(varied).looks else mixed if mixed and looks(mixed["generators"]) else None
    if not record or not record["encoders"]:
        return None
    encoders = record["encoders"]
    known = pa.array(encoders.values(), pa.string())
    rows = lake.arrow(_CACHE, m.tables[_CACHE], where=ds.field("encoder_version").isin(known))
    content, _ = content_of(rows, encoders, items, record["fields"])
    return sketched([content[m] for m in sorted(content)])


def sketched(content: list[np.ndarray]) -> np.ndarray:
    """(N, 64) int8 of contents side by side, a (N, D) array a modality; rows of zeros where there is none."""
    whole_ND = np.concatenate([_unit(c.astype(np.float64)) for c in content], 1)
    n, d = whole_ND.shape
    # on one thread: the order of sums, and with it the last bit, may depend on how many there are
    with threadpool_limits(1, user_api="blas"):
        if d > WIDE:
            some_SD = whole_ND[:: max(1, -(-n // _LOOKED_AT))]
            _, main_DV = eigh(some_SD.T @ some_SD, subset_by_index=(d - WIDE, d - 1))
            whole_ND = whole_ND @ main_DV
    out_NV = np.zeros((n, WIDE), np.int8)
    out_NV[:, : min(d, WIDE)] = np.rint(_ONE * _unit(whole_ND))
    return out_NV


def _unit(x_ND: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND / np.where(norm > 0, norm, 1)

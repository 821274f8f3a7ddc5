"""The day's items as sketches of their content, where a run looks at contents: see models/sketch.py.

In: the day's items, the embedding cache as a run's manifest pins it. Out: (N, 64) int8, or None.
Trade-off: directions are found anew each night, so two nights' sketches can't be compared with each other; cosines can.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.models.sketch import sketched
from mmrec.models.tables import content_of
from mmrec.recommend.generators import looks
from mmrec.recommend.vary import Aims

_CACHE = "gold.item_embeddings"


def sketches(lake: Lake, m: Manifest, items: pa.Table) -> np.ndarray | None:
    """(N, 64) int8, a row of zeros of an item without any content; None of a run that does not look at contents.

    Args:
        items: of the day, ascending by item_id, with their content keys.
    """
    varied, mixed = m.config.get("diversity"), m.config.get("candidates")
    record = varied if varied and Aims.of(varied).looks else mixed if mixed and looks(mixed["generators"]) else None
    record = record or m.config.get("second_stage")  # all look at the contents of the bundle's encoders
    if not record or not record["encoders"]:
        return None
    encoders = record["encoders"]
    known = pa.array(encoders.values(), pa.string())
    rows = lake.arrow(_CACHE, m.tables[_CACHE], where=ds.field("encoder_version").isin(known))
    content, _ = content_of(rows, encoders, items, record["fields"])
    return sketched([content[m] for m in sorted(content)])

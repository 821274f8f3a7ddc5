"""From Arrow tables to the dense views of data.py.

In: item rows, interactions, embeddings as Arrow. Out: `Items`, `Log`, and the content vectors of any item list.
Trade-off: ids are sorted once here and everything after works on positions; the sort is the price of ties that
mean the same everywhere.

Shape legend: N items, D vector size, B histories, L their events.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec.models.data import Items, Log, group_codes
from mmrec.models.fields import USUAL, contents, pool_fields, pooling
from mmrec.models.knowledge import KNOWLEDGE, Knowledge

_ABOUT = ("context", "text")
NEVER = np.iinfo(np.int64).max


def content_of(
    embeddings: pa.Table, versions: Mapping[str, str], rows: pa.Table, fields: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Content vectors of items.

    Args:
        embeddings: rows of gold.item_embeddings. versions: modality -> encoder version to read.
        rows: (N,) items with <modality>_sha256 columns, texts_sha256 and images_sha256 where there are any.
        fields: modality -> which contents stand for an item, see fields.py.

    Returns: modality -> (N, D) float32 (zero rows where absent or refused), modality -> (N,) bool.
    """
    content, present = {}, {}
    for modality, version in versions.items():
        held = embeddings.filter(pc.equal(embeddings["encoder_version"], version))
        held = held.filter(pc.greater(held["dim"], 0))
        dim = held["dim"][0].as_py() if held.num_rows else 1
        at = {sha: i for i, sha in enumerate(held["content_sha256"].to_pylist())}
        flat = held["embedding"].combine_chunks()
        flat = flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat
        vectors = flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        own = [[at[k] for k in keys if k in at] for keys in _keys(rows, modality, fields)]
        content[modality], present[modality] = pool_fields(vectors, own, pooling(fields, modality))
    return content, present


def _keys(rows: pa.Table, modality: str, fields: Mapping[str, str]) -> list[list[str]]:
    """(N,) content keys of items."""
    several, one = f"{modality}s_sha256", rows[f"{modality}_sha256"].to_pylist()
    taken = several in rows.column_names and (modality != "text" or pooling(fields, modality) == "mean")
    return contents(one, rows[several].to_pylist() if taken else [None] * len(one))


def items_from(
    rows: pa.Table, embeddings: pa.Table, versions: Mapping[str, str], groups: Mapping[str, str] | None = None,
    fields: Mapping[str, str] = USUAL, knowledge: Knowledge | None = None,
) -> Items:  # fmt: skip
    """`Items` of rows with item_id, categories, available_us, withdrawn_us and the columns of `content_of`.

    Args:
        fields: as of `content_of`.
        groups: item id -> group id of items that are listed twice; None: not known.
        knowledge: gives the modality of that name, of a column `entities`; None: there is none.
    """
    rows = rows.sort_by("item_id")
    content, present = content_of(embeddings, versions, rows, fields)
    if knowledge is not None:
        content[KNOWLEDGE], present[KNOWLEDGE] = knowledge.vectors(rows["entities"].to_pylist())
    category = np.array([(c or [""])[0] for c in rows["categories"].to_pylist()], object)
    ids = rows["item_id"].to_pylist()
    return Items(
        ids=np.array(ids, object),
        content=content,
        present=present,
        category=category,
        available_us=rows["available_us"].to_numpy().astype(np.int64),
        withdrawn_us=rows["withdrawn_us"].fill_null(NEVER).to_numpy().astype(np.int64),
        group=None if groups is None else group_codes(ids, groups),
    )


def log_from(interactions: pa.Table, items: Items) -> Log:
    """`Log` of as-of interactions (user_id, item_id, event_type, event_us, available_us, weight; context and text,
    where they are looked at); rows of items that are not in `items` are left out."""
    item = np.array([items.index.get(i, -1) for i in interactions["item_id"].to_pylist()], np.int64)
    interactions = interactions.filter(pa.array(item >= 0))
    item = item[item >= 0].astype(np.int32)
    users, user = _codes(interactions["user_id"])
    types, event = _codes(interactions["event_type"])
    ts = interactions["event_us"].to_numpy().astype(np.int64)
    order = np.lexsort((event, item, ts, user))
    return Log(
        user_ids=users,
        event_types=tuple(types),
        user=user[order].astype(np.int32),
        item=item[order],
        ts_us=ts[order],
        weight=interactions["weight"].to_numpy().astype(np.float32)[order],
        event=event[order].astype(np.int16),
        available_us=interactions["available_us"].to_numpy().astype(np.int64)[order],
        **{c: np.array(interactions[c].to_pylist(), object)[order] for c in _ABOUT if c in interactions.column_names},
    )


def latest(item_BL: np.ndarray, mask_BL: np.ndarray) -> np.ndarray:
    """(B, L) bool: the last event of each item in its row; a view, a click and a purchase of one item are one wish.

    Args:
        item_BL: dense indices, oldest first. mask_BL: bool, where there is an event.
    """
    row, at = np.nonzero(mask_BL)
    # of equal keys np.unique finds the first, so they are given newest first
    key = (row.astype(np.int64) << 32) + item_BL[row, at]
    _, first = np.unique(key[::-1], return_index=True)
    kept = len(key) - 1 - first
    found = np.zeros(item_BL.shape, bool)
    found[row[kept], at[kept]] = True
    return found


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    values = np.array(sorted(pc.unique(column).to_pylist(), key=lambda s: s.encode()), object)
    at = {v: i for i, v in enumerate(values)}
    return values, np.array([at[v] for v in column.to_pylist()], np.int64)

"""What an encoder takes to be alike: the items whose content lies nearest to an item's own.

In: silver.items, gold.item_embeddings, items, an encoder's modality and version. Out: their nearest items by cosine.
Vectors are read a record batch at a time, so memory holds one number a content and asked item, not the vectors.
Trade-off: every vector of the version is looked at, which is exact and takes a second for 100,000 of them.

Shape legend: Q asked items, N contents, B contents of a record batch, D vector size.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from mmrec.content.pending import TextOf
from mmrec.errors import InputError, QualityError
from mmrec.lake.content import text_key
from mmrec.lake.store import Lake

_ITEMS, _VECTORS = "silver.items", "gold.item_embeddings"


def neighbours(
    lake: Lake,
    asked: Sequence[str],
    *,
    modality: str,
    version: str,
    text_of: TextOf,
    k: int = 10,
    passing_over: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """The `k` items nearest to each asked one, by cosine descending, then item id ascending.

    Args:
        asked: item ids. modality: text, image or audio. version: the encoder version to compare by.
        text_of: as for `embed`. passing_over: leave out asked items that have no vector, instead of refusing them.

    Returns: item -> rows of item_id, title, similarity (cosine, six decimals), same (its content is equal).
        Items are taken in their newest version; those withdrawn are left out, unless they were asked for.

    Raises:
        InputError: no such item, or it has no such content. QualityError: its content has no vector at `version`.
    """
    items = _newest(lake, modality, text_of)
    where = ds.field("encoder_version") == version
    if passing_over:
        asked = [item for item in asked if item in items and items[item]["key"]]
    keys = [_key(items, item, modality) for item in asked]
    held = _held(lake, keys, where)
    if passing_over:
        asked = [item for item, key in zip(asked, keys, strict=True) if held.get(key, {}).get("dim")]
        keys = [items[item]["key"] for item in asked]
    if not asked:
        return {}
    own_QD = _own(held, keys, asked, modality, version)
    shas, score_NQ = _scores(lake, own_QD, where)
    sharing: dict[str, list[str]] = {}
    for item, row in items.items():
        if row["key"] and not row["withdrawn"]:
            sharing.setdefault(row["key"], []).append(item)
    live = np.array([sha in sharing for sha in shas], bool)
    found = {}
    for q, item in enumerate(asked):
        score_N = np.where(live, score_NQ[:, q], -np.inf)
        # k + 1 contents, one of which may be the item's own alone, and all that tie with the last of them
        last = -min(k + 1, len(score_N))
        at = np.flatnonzero((score_N >= np.partition(score_N, last)[last]) & live)
        near = sorted((-score_N[n], other, shas[n]) for n in at for other in sharing[shas[n]] if other != item)
        found[item] = [
            {"item_id": other, "title": items[other]["title"], "similarity": float(-minus), "same": sha == keys[q]}
            for minus, other, sha in near[:k]
        ]
    return found


def _newest(lake: Lake, modality: str, text_of: TextOf) -> dict[str, dict[str, Any]]:
    columns = ["item_id", "available_at", "row_hash", "withdrawn_at", "title", "categories", "text"]
    columns += [] if modality == "text" else [f"{modality}_sha256"]
    rows = lake.arrow(_ITEMS, columns=columns).sort_by([("available_at", "ascending"), ("row_hash", "ascending")])
    newest: dict[str, dict[str, Any]] = {}
    for batch in rows.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            key = text_key(text_of(row) or None) if modality == "text" else row[f"{modality}_sha256"]
            newest[row["item_id"]] = {"title": row["title"], "key": key, "withdrawn": row["withdrawn_at"] is not None}
    return newest


def _key(items: dict[str, dict[str, Any]], item: str, modality: str) -> str:
    if item not in items:
        close = difflib.get_close_matches(item, items, 3) or sorted(items)[:3]
        raise InputError("no such item", where=_ITEMS, value=item, valid=[*close, "..."],
                         next=f"mmrec neighbours {close[0]}" if close else "mmrec run --date D")  # fmt: skip
    key = items[item]["key"]
    if key is None:
        raise InputError(f"the item has no {modality}", where=f"{_ITEMS} item_id={item}", value=modality,
                         valid="a modality that it has", next=f"mmrec neighbours {item} --modality text")  # fmt: skip
    return key


def _held(lake: Lake, keys: list[str], where: ds.Expression) -> dict[str, dict[str, Any]]:
    mine = where & ds.field("content_sha256").isin(pa.array(sorted(set(keys)), pa.string()))
    rows = lake.arrow(_VECTORS, columns=["content_sha256", "dim", "embedding", "refused"], where=mine)
    return {r["content_sha256"]: r for r in rows.to_pylist()}


def _own(
    held: dict[str, dict[str, Any]], keys: list[str], asked: Sequence[str], modality: str, version: str
) -> np.ndarray:
    for item, key in zip(asked, keys, strict=True):
        if key not in held or not held[key]["dim"]:
            why = held[key]["refused"] if key in held else "it was not encoded yet"
            raise QualityError(f"the item's {modality} has no vector: {why}", where=f"{_VECTORS} item_id={item}",
                               value=version, valid="an encoded content", next="mmrec embed --date D")  # fmt: skip
    return _unit(np.array([held[k]["embedding"] for k in keys], np.float64))


def _scores(lake: Lake, own_QD: np.ndarray, where: ds.Expression) -> tuple[list[str], np.ndarray]:
    """Every content of the version and its cosine with each asked one."""
    shas: list[str] = []
    parts = [np.zeros((0, len(own_QD)))]
    for batch in lake.batches(_VECTORS, columns=["content_sha256", "embedding"], where=where & (ds.field("dim") > 0)):
        if batch.num_rows:
            flat = batch.column(1).flatten().to_numpy(zero_copy_only=False)
            vectors_BD = _unit(flat.reshape(batch.num_rows, -1).astype(np.float64))
            parts.append(vectors_BD @ own_QD.T)
            shas += batch.column(0).cast(pa.string()).to_pylist()
    # six decimals are what float32 vectors can tell; ties are of those
    return shas, np.clip(np.concatenate(parts), -1, 1).round(6)


def _unit(x_BD: np.ndarray) -> np.ndarray:
    return x_BD / np.maximum(np.linalg.norm(x_BD, axis=1, keepdims=True), 1e-12)

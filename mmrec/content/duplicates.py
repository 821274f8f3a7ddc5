"""Who is listed twice: silver.item_groups, from what the catalogue's contents are like.

In: silver.items, gold.item_embeddings, which vectors of a modality must agree and from which cosine on. Out:
silver.item_groups, replaced where its rows have changed, and a small file that says what they were made from.
Items are taken in their newest version, those withdrawn too: groups outlast an item's stay, and a new item whose twin
has left is known by it. A picture or sound that was refused says nothing of an item. Whatever the settings pool, twins
are told by the whole text and the first picture, of which the bounds were measured.
Trade-off: all vectors of the catalogue are held at once, up to twice (7 KB an item with the encoders that come as
packages); a night on which neither table has a new version reads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec import schema
from mmrec.content.groups import Kind, twins
from mmrec.content.pending import TEXT, TextOf
from mmrec.files import put
from mmrec.lake.commit import fence, work_id, write
from mmrec.lake.content import content_hash, text_key
from mmrec.lake.store import Lake

_NAME, _ITEMS, _VECTORS = "silver.item_groups", "silver.items", "gold.item_embeddings"
_MODALITIES = ("text", "image", "audio")
_Keys = dict[str, list[str | None]]


@dataclass(frozen=True)
class Alike:
    """Contents of `modality` are alike from cosine `bound` on of their vectors of encoder `version`."""

    modality: str
    version: str
    bound: float


def regroup(
    lake: Lake, alike: Sequence[Alike], *, refusing: Sequence[str], text_of: TextOf, remembered: Path
) -> dict[str, int]:
    """Make silver.item_groups what the catalogue is now.

    Args:
        alike: what must agree; a modality without any is alike where bytes are equal.
        refusing: encoder versions that say which content is refused.
        text_of: as for `embed`.
        remembered: the file that says what the table's version was made from; without it the work is done again.

    Returns: groups, and items in them. Raises: Fenced: another writer was faster; worth doing again.
    """
    pinned = fence(lake, _NAME)  # before what the rows depend on is read: whoever writes them meanwhile is noticed
    versions = {name: lake.version(name) for name in (_ITEMS, _VECTORS)}
    inputs = {"tables": versions, "alike": [vars(a) for a in alike], "refusing": list(refusing)}
    held = lake.arrow(_NAME)
    if _recall(remembered) != {"inputs": inputs, "version": lake.read[_NAME]}:
        rows = _grouped(lake, versions, alike, refusing, text_of)
        version = lake.read[_NAME]
        if content_hash(rows, _NAME) != content_hash(held, _NAME):
            version = write(lake, _NAME, rows, run_id=work_id("groups", inputs), pinned=pinned).version
        put(remembered, json.dumps({"inputs": inputs, "version": version}))
        held = rows
    return {"groups": pc.count_distinct(held["group_id"]).as_py(), "grouped": held.num_rows}


def _recall(remembered: Path) -> Any:
    try:
        return json.loads(remembered.read_text())
    except (OSError, ValueError):
        return None


def _grouped(
    lake: Lake, versions: dict[str, int], alike: Sequence[Alike], refusing: Sequence[str], text_of: TextOf
) -> pa.Table:
    ids, keys = _contents(lake, versions[_ITEMS], text_of)
    where = ds.field("encoder_version").isin(pa.array(refusing, pa.string())) & ds.field("refused").is_valid()
    bad = lake.arrow(_VECTORS, versions[_VECTORS], columns=["content_sha256", "modality"], where=where)
    refused = set(zip(*(c.to_pylist() for c in bad.select(["modality", "content_sha256"])), strict=True))
    for modality, column in keys.items():
        keys[modality] = [None if (modality, key) in refused else key for key in column]
    kinds = [_vectors(lake, versions[_VECTORS], a, {k for k in keys[a.modality] if k}) for a in alike]
    rows = [{"item_id": t.item, "group_id": t.first, "modalities": sorted(t.modalities), "similarity": t.similarity}
            for t in twins(ids, keys, kinds)]  # fmt: skip
    return pa.Table.from_pylist(rows, schema.table(_NAME).arrow)


def _contents(lake: Lake, version: int, text_of: TextOf) -> tuple[list[str], _Keys]:
    """Item ids, ascending, and the content keys of their newest versions."""
    newest: dict[str, tuple[Any, str, tuple[str | None, ...]]] = {}
    columns = ["item_id", "available_at", "row_hash", *TEXT, "image_sha256", "audio_sha256"]
    for batch in lake.batches(_ITEMS, version, columns=columns):
        for row in batch.to_pylist():
            at = (row["available_at"], row["row_hash"])
            known = newest.get(row["item_id"])
            if known is None or at > known[:2]:
                own = (text_key(text_of(row) or None), row["image_sha256"], row["audio_sha256"])
                newest[row["item_id"]] = (*at, own)
    ids = sorted(newest)
    return ids, {m: [newest[i][2][n] for i in ids] for n, m in enumerate(_MODALITIES)}


def _vectors(lake: Lake, version: int, alike: Alike, wanted: set[str]) -> Kind:
    """Vectors of the `wanted` contents, by hash: how files lie must not matter."""
    shas: list[str] = []
    emb_MD = np.zeros((0, 1), np.float32)
    keys = pa.array(sorted(wanted), pa.string())
    where = (ds.field("encoder_version") == alike.version) & (ds.field("dim") > 0)
    for batch in lake.batches(_VECTORS, version, columns=["content_sha256", "embedding"], where=where):
        batch = batch.filter(pc.is_in(batch.column(0).cast(pa.string()), keys))
        if not batch.num_rows:
            continue
        vectors = batch.column(1).flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
        if not shas:
            emb_MD = np.zeros((len(wanted), vectors.shape[1]), np.float32)
        emb_MD[len(shas) : len(shas) + len(vectors)] = vectors
        shas += batch.column(0).cast(pa.string()).to_pylist()
    order = np.argsort(np.array(shas, object), kind="stable") if shas else np.zeros(0, np.int64)
    return Kind(alike.modality, [shas[i] for i in order], emb_MD[: len(shas)][order], alike.bound)

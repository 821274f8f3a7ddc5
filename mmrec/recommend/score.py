"""The scorer: a bundle turns a day's features into the two sides of a dot product, or into sums of rows. No torch.

In: a checked bundle, gold.user_sequences and gold.item_features of the day, the embedding cache at the pinned
version. Out: user and item vectors in the order of those rows; a row of NaN for a user the model can't speak for, or an
item it doesn't know. A two_tower bundle has ONNX encoders for that, a factors bundle arrays; a sparse one has no
vectors, and users are their histories.
Batches are padded to one fixed size: a row's bits then never depend on its companions.
Trade-off: to a two_tower bundle a history item that is no longer on offer has no vector and is left out of the history.

Shape legend: B users or items of a batch, L history length, D vector size, M modality vector size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from scipy import sparse

from mmrec import schema
from mmrec.bundle.bundle import Bundle
from mmrec.errors import QualityError
from mmrec.lake.store import Lake
from mmrec.models.knowledge import KNOWLEDGE, Knowledge
from mmrec.models.stored import Stored
from mmrec.models.tables import content_of, latest
from mmrec.ort import session
from mmrec.recommend.contributions import Factors, Weigher, Weights
from mmrec.recommend.histories import flat, places, rows_of
from mmrec.recommend.scorers import Sums

_BATCH = 256
_TOKENS = 16_384  # history events of a batch: longer histories come in smaller batches
_LENGTHS = (64, 256)  # a history is padded to the first that holds it, so its bits don't depend on its companions


@dataclass(frozen=True)
class ItemSide:
    """The catalogue's half: `item_in` (N, V) is what a history is made of, `item_vec` (N, D) what is ranked;
    `cold` (N,) bool: items that the model has not met."""

    item_in: np.ndarray
    item_vec: np.ndarray
    cold: np.ndarray


def item_side(
    bundle: Bundle, items: pa.Table, lake: Lake, tables: Mapping[str, int], *, device: str, threads: int
) -> ItemSide | None:
    """Items of the day, ascending by item_id, as the bundle has them; None of a popularity and of a sparse bundle.

    Args:
        tables: -> version, gold.item_embeddings among them for a bundle of two towers.

    Raises: QualityError: a modality's embeddings are not the encoder version the bundle was trained on, or the
        features are not those it was trained on.
    """
    if bundle.kind == "popularity":
        return None
    if bundle.about.get("features") != schema.features_fingerprint():
        raise QualityError(
            "the model was trained on features of another definition",
            where="bundle.json: features",
            value=bundle.about.get("features"),
            valid=schema.features_fingerprint(),
            next="mmrec train --date D",
        )
    if bundle.kind == "two_tower":
        return ItemSide(*_items(bundle, items, lake, tables, device, threads))
    if bundle.kind == "sparse":
        return None
    stored = _stored(bundle.folder, bundle.digest)
    at_N = _places(stored, items)
    # a user is made of the bundle's own items, on offer or not
    item_vec = np.where(at_N[:, None] >= 0, stored.item_MD[at_N], np.nan)
    return ItemSide(np.zeros((len(at_N), 0), np.float32), item_vec, at_N < 0)


def sums_over(bundle: Bundle, items: pa.Table) -> Callable[[pa.Table], Sums]:
    """Of a sparse bundle: any part of the day's users (rows of gold.user_sequences) -> what they are made of.

    Args:
        items: the day's, ascending by item_id.
    """
    stored = _stored(bundle.folder, bundle.digest)
    at_N = _places(stored, items)
    matrix_RN = _columns(stored, at_N)
    matrix_NR = matrix_RN.T.tocsr()

    def sums(users: pa.Table) -> Sums:
        asking_U = np.array(users["user_id"].to_pylist(), object)
        history_UM = stored.histories(users["item_ids"].to_pylist())
        return Sums(stored, history_UM, asking_U, matrix_RN, matrix_NR, at_N)

    return sums


def known_weigher(bundle: Bundle, items: pa.Table) -> Weigher | None:
    """Of a factors or a sparse bundle: what each item of a history adds; None of popularity.

    Args:
        items: the day's, ascending by item_id.
    """
    if bundle.kind == "sparse":
        return Weights()
    stored = _stored(bundle.folder, bundle.digest)
    return None if stored.name == "popularity" else Factors(stored, _places(stored, items))


@lru_cache(maxsize=2)  # of a night and its canary
def _stored(folder: Path, digest: str) -> Stored:
    return Stored.load(folder)


def _places(stored: Stored, items: pa.Table) -> np.ndarray:
    """(N,) int64: an item's place among those the bundle knows, -1 where it does not."""
    return np.array([stored.place.get(i, -1) for i in items["item_id"].to_pylist()], np.int64)


def _columns(stored: Stored, at_N: np.ndarray) -> sparse.csr_matrix:
    """(R, N): the matrix with a column an item of the day, empty where the bundle does not know it."""
    day_M = np.full(len(stored.ids), -1, np.int64)
    day_M[at_N[at_N >= 0]] = np.flatnonzero(at_N >= 0)
    matrix = stored.matrix_RM.tocoo()
    column = day_M[matrix.col]
    there = column >= 0
    found = (matrix.data[there], (matrix.row[there], column[there]))
    return sparse.csr_matrix(found, shape=(matrix.shape[0], len(at_N)))


def _items(
    bundle: Bundle, items: pa.Table, lake: Lake, tables: Mapping[str, int], device: str, threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    versions = bundle.encoders
    rows = lake.arrow(
        "gold.item_embeddings",
        tables["gold.item_embeddings"],
        where=ds.field("encoder_version").isin(pa.array(versions.values(), pa.string())),
    )
    content, present = content_of(rows, versions, items, bundle.fields)
    dims: dict[str, int] = bundle.about["content_dims"]
    if KNOWLEDGE in dims:
        content[KNOWLEDGE], present[KNOWLEDGE] = Knowledge.load(bundle.folder).vectors(items["entities"].to_pylist())
    known = {item: i + 1 for i, item in enumerate(json.loads((bundle.folder / "item_map.json").read_text()))}
    feeds: dict[str, np.ndarray] = {
        "id_index": np.array([known.get(i, 0) for i in items["item_id"].to_pylist()], np.int64),
        "popularity": items["popularity_micro"].to_numpy().astype(np.float32) / np.float32(1e6),
    }
    for k, dim in dims.items():
        if present[k].any() and content[k].shape[1] != dim:
            raise QualityError(
                "embeddings of another size than the model was trained on",
                where=f"gold.item_embeddings, {k}",
                value=content[k].shape[1],
                valid=str(dim),
                next="mmrec train --date D",
            )
        if k in versions and items[f"{k}_sha256"].null_count < items.num_rows and not present[k].any():
            there = lake.arrow("gold.item_embeddings", tables["gold.item_embeddings"], columns=["encoder_version"],
                               where=ds.field("modality") == k)  # fmt: skip
            found = sorted(set(there["encoder_version"].to_pylist()))
            if found and versions[k] not in found:
                raise QualityError(
                    "embeddings of another encoder than the model was trained on",
                    where=f"gold.item_embeddings, {k}",
                    value=found,
                    valid=versions[k],
                    next="mmrec train --date D",
                )
        feeds[k] = content[k] if present[k].any() else np.zeros((items.num_rows, dim), np.float32)
        feeds[f"{k}_present"] = present[k].astype(np.float32)
    graph = session(bundle.folder / "item_encoder.onnx", device, threads)
    out = _run(graph, feeds, items.num_rows)
    return out["item_in"], out["item_vec"], feeds["id_index"] == 0


def user_vectors(
    bundle: Bundle, users: pa.Table, ids: pa.Array, item_in: np.ndarray, *, device: str, threads: int
) -> np.ndarray:
    """(users, D) vectors of any part of the day's users; NaN where the model has nothing to say.

    Args:
        users: rows of gold.user_sequences. ids: item ids, rows of `item_in`.
    """
    if bundle.kind == "factors":
        stored = _stored(bundle.folder, bundle.digest)
        h = stored.histories(users["item_ids"].to_pylist())
        asked = (np.diff(h.indptr) > 0) | (stored.name == "popularity")
        return np.where(asked[:, None], stored.users(h), np.float32(np.nan))
    about: dict[str, Any] = bundle.about
    length: int = about["length"]
    whole = rows_of(users["item_ids"], ids)
    # an item without numbers is not known to the model: no history holds it
    there = (whole.at >= 0) & np.isfinite(item_in).all(1)[whole.at] if len(item_in) else whole.at >= 0
    history = whole.kept(there)
    gap, weight = (flat(users[c])[1].to_numpy()[there] for c in ("gap_s", "weight_micro"))
    events = pa.array(about["event_types"], pa.string())
    event = (places(flat(users["event_types"])[1], events) + 1)[there]
    graph = session(bundle.folder / "user_encoder.onnx", device, threads)
    width = int(graph.get_outputs()[0].shape[1])
    out = np.full((users.num_rows, width), np.nan, np.float32)
    buckets = np.array([n for n in _LENGTHS if about["context"] <= n < length] + [length])
    size_U = np.minimum(np.diff(history.ptr), length)
    bucket_U = buckets[np.searchsorted(buckets, size_U)]
    for wide in buckets.tolist():
        mine = np.flatnonzero((bucket_U == wide) & (size_U > 0))
        size = max(1, _TOKENS // wide)
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            where_BL = np.full((size, wide), -1)
            where_BL[: len(part)] = history.last(wide, part)
            feeds = (history.at, event, gap, weight)
            out[part] = _encode(graph, *(x[where_BL] for x in feeds), where_BL >= 0, item_in)[: len(part)]
    return out


def _encode(
    graph: Any, item_BL: np.ndarray, event_BL: np.ndarray, gap_BL: np.ndarray, weight_BL: np.ndarray,
    mask_BL: np.ndarray, item_in: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """(B, V) user vectors of one padded batch, histories right-aligned: the newest is last."""
    item_BL = np.where(mask_BL, item_BL, -1).astype(np.int64)
    feeds = {"item_in": np.where(mask_BL[..., None], item_in[np.maximum(item_BL, 0)], np.float32(0)),
             "event": np.where(mask_BL, event_BL, 0).astype(np.int64),
             "gap_log": np.where(mask_BL, np.log1p(np.maximum(gap_BL.astype(np.float64), 0)), 0).astype(np.float32),
             "weight": np.where(mask_BL, weight_BL / 1e6, 0).astype(np.float32), "mask": mask_BL.astype(np.float32),
             "once": latest(item_BL, mask_BL).astype(np.float32)}  # fmt: skip
    wanted = {i.name for i in graph.get_inputs()}
    return graph.run(["user_vec"], {k: v for k, v in feeds.items() if k in wanted})[0]


def _run(graph: Any, feeds: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """Run a graph in padded batches; inputs that the graph doesn't have are left out."""
    wanted = {i.name for i in graph.get_inputs()}
    names = [o.name for o in graph.get_outputs()]
    feeds = {k: v for k, v in feeds.items() if k in wanted}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start in range(0, n, _BATCH):
        batch = {}
        for k, v in feeds.items():
            chunk = v[start : start + _BATCH]
            if len(chunk) < _BATCH:
                chunk = np.concatenate([chunk, np.zeros((_BATCH - len(chunk), *v.shape[1:]), v.dtype)])
            batch[k] = chunk
        for name, value in zip(names, graph.run(names, batch), strict=True):
            parts[name].append(value[: min(_BATCH, n - start)])
    return {name: np.concatenate(values) for name, values in parts.items()}

"""Scoring as a job that any machine can take a part of: what is shared is packed once, users come in batches.

In: a packed folder (catalogue, its vectors, who is listed twice, where the bundle is) and record batches of users.
Out: batches of gold.user_vectors and gold.recommendations. A user's rows don't depend on which batch, process or
machine they are in.
Trade-off: machines find the folder and the bundle by path, so a cluster shares the home's file system; in exchange
the catalogue crosses no wire more than once a process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather

from mmrec import schema
from mmrec.bundle import bundle as bundles
from mmrec.models.data import group_codes
from mmrec.recommend.histories import flat
from mmrec.recommend.score import ItemSide, sums_over, user_vectors
from mmrec.recommend.slate import Stamp, Sums, Vectors, slates
from mmrec.topk.rerank import Rerank

_SIDE = ("item_in", "item_vec", "cold")


@dataclass(frozen=True)
class Job:
    """What a part of the users is scored with; `kind` and `blend` are the bundle's, see topk/rerank.py."""

    bundle: str
    digest: str
    device: str
    threads: int
    k: int
    run_date: str
    run_id: str
    model_version: str
    kind: str = "two_tower"
    blend: dict[str, Any] | None = None


def pack(
    folder: Path, job: Job, items: pa.Table, side: ItemSide | None, groups: Mapping[str, str] | None = None
) -> Path:
    """Write what every part needs.

    Args:
        items: gold.item_features of the day, ascending by item_id. side: None where the bundle has no vectors.
        groups: item id -> group id of items that are listed twice, on offer or not; None: not known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    catalogue = items.select(["item_id", "title", "popularity_micro"])
    codes = group_codes(items["item_id"].to_pylist(), groups or {})
    if len(np.unique(codes)) < len(codes):  # else nobody on offer has a twin
        catalogue = catalogue.append_column("group", pa.array(codes, pa.int64()))
    feather.write_feather(catalogue, folder / "items.arrow")
    for name in _SIDE:
        (folder / f"{name}.npy").unlink(missing_ok=True)
        if side is not None:
            np.save(folder / f"{name}.npy", getattr(side, name), allow_pickle=False)
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    return folder


def vectors_of(folder: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of gold.user_sequences -> rows of gold.user_vectors."""
    job, items, side = _open(folder)
    bundle = _bundle(job.bundle, job.digest)
    ids = items["item_id"].combine_chunks()
    arrow = schema.table("gold.user_vectors").arrow
    for batch in batches:
        users = pa.Table.from_batches([batch])
        found = user_vectors(bundle, users, ids, side.item_in, device=job.device, threads=job.threads)
        n = batch.num_rows
        same = {"run_date": date.fromisoformat(job.run_date), "model_version": job.model_version, "run_id": job.run_id}
        values = {"user_id": batch.column("user_id"), "vector": _lists(found)}
        columns = [pa.repeat(pa.scalar(same[f.name], f.type), n) if f.name in same else values[f.name].cast(f.type)
                   for f in arrow]  # fmt: skip
        yield pa.RecordBatch.from_arrays(columns, schema=arrow)


def lists_of(folder: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of gold.user_sequences, with a column `vector` where the bundle has vectors -> gold.recommendations."""
    job, items, side = _open(folder)
    stamp = Stamp(date.fromisoformat(job.run_date), job.run_id, job.model_version)
    group_N = items["group"].to_numpy() if "group" in items.column_names else None
    for batch in batches:
        users = pa.Table.from_batches([batch])
        found: Vectors | Sums | None = None
        if job.kind == "sparse":
            found = _sums(folder)(users)
        elif side is not None and batch.num_rows:
            user_UD = flat(users["vector"])[1].to_numpy().astype(np.float32).reshape(users.num_rows, -1)
            found = _vectors(folder).of(user_UD)
        yield from slates(users, items, found, job.k, stamp, {}, group_N)


def _lists(found_UD: np.ndarray) -> pa.Array:
    """A list of floats a row."""
    ends = np.arange(len(found_UD) + 1, dtype=np.int32) * found_UD.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(found_UD.astype(np.float32).ravel()))


@lru_cache(maxsize=1)  # of one night: a backfill has many
def _open(folder: str) -> tuple[Job, pa.Table, ItemSide]:
    here = Path(folder)
    job = Job(**json.loads((here / "job.json").read_text()))
    items = feather.read_table(here / "items.arrow")
    side = None
    if (here / "item_vec.npy").is_file():
        side = ItemSide(*(np.load(here / f"{n}.npy", allow_pickle=False) for n in _SIDE))
    return job, items, side  # type: ignore[return-value]


@lru_cache(maxsize=1)  # of one night: a backfill has many
def _vectors(folder: str) -> Vectors:
    """Of nobody yet."""
    job, _, side = _open(folder)
    item_ND = side.item_vec
    return Vectors(np.zeros((0, item_ND.shape[1]), np.float32), item_ND, item_ND.shape[1] > 1, Rerank.of(job.blend),
                   side.cold, job.device)  # fmt: skip


@lru_cache(maxsize=1)  # of one night: a backfill has many
def _sums(folder: str) -> Callable[[pa.Table], Sums]:
    job, items, _ = _open(folder)
    return sums_over(_bundle(job.bundle, job.digest), items)


@lru_cache(maxsize=1)  # of one night: a backfill has many
def _bundle(folder: str, digest: str) -> bundles.Bundle:
    return bundles.load(Path(folder), digest)

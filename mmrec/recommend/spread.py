"""Scoring as a job that any machine can take a part of: users come in batches.

In: a packed folder (packed.py) and record batches of users. Out: batches of gold.user_vectors and gold.recommendations.
A user's rows don't depend on which batch, process or machine they are in.
Trade-off: a batch says nothing but rows; who counts them reads what was staged.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

import numpy as np
import pyarrow as pa

from mmrec import schema
from mmrec.recommend.packed import opened
from mmrec.recommend.score import user_vectors
from mmrec.recommend.slate import Stamp, slates


def vectors_of(folder: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of gold.user_sequences -> rows of gold.user_vectors."""
    shared = opened(folder)
    job, side = shared.job, shared.side
    assert side is not None
    ids = shared.items["item_id"].combine_chunks()
    arrow = schema.table("gold.user_vectors").arrow
    for batch in batches:
        users = pa.Table.from_batches([batch])
        found = user_vectors(shared.bundle, users, ids, side.item_in, device=job.device, threads=job.threads)
        n = batch.num_rows
        same = {"run_date": date.fromisoformat(job.run_date), "model_version": job.model_version, "run_id": job.run_id}
        values = {"user_id": batch.column("user_id"), "vector": _lists(found)}
        columns = [pa.repeat(pa.scalar(same[f.name], f.type), n) if f.name in same else values[f.name].cast(f.type)
                   for f in arrow]  # fmt: skip
        yield pa.RecordBatch.from_arrays(columns, schema=arrow)


def lists_of(folder: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of gold.user_sequences, with a column `vector` where the bundle has vectors and `attributes` where there are
    rules -> gold.recommendations."""
    shared = opened(folder)
    job = shared.job
    stamp = Stamp(date.fromisoformat(job.run_date), job.run_id, job.model_version)
    for batch in batches:
        users = pa.Table.from_batches([batch])
        yield from slates(users, shared.items, shared.scored(users), job.k, stamp, {}, shared.group_N, shared.ruling,
                          shared.draws, shared.variety, shared.reasons, shared.wishes, shared.others,
                          shared.second)  # fmt: skip


def _lists(found_UD: np.ndarray) -> pa.Array:
    """A list of floats a row."""
    ends = np.arange(len(found_UD) + 1, dtype=np.int32) * found_UD.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(found_UD.astype(np.float32).ravel()))

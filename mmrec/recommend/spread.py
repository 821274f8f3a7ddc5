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
from mmrec.recommend.packed import Job, opened
from mmrec.recommend.score import user_vectors
from mmrec.recommend.slate import Stamp, slates


def vectors_of(folder: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of gold.user_sequences -> rows of gold.user_vectors."""
    arms = [a for a in opened(folder).arms if a.side is not None]
    assert arms
    ids = arms[0].items["item_id"].combine_chunks()
    for batch in batches:
        for shared in arms:
            users = shared.mine(pa.Table.from_batches([batch]))
            job, side = shared.job, shared.side
            if batch.num_rows and not users.num_rows:
                continue
            assert side is not None
            found = user_vectors(shared.bundle, users, ids, side.item_in, device=job.device, threads=job.threads)
            yield _rows(job, users["user_id"].combine_chunks(), found)


def _rows(job: Job, user_ids: pa.Array, found_UD: np.ndarray) -> pa.RecordBatch:
    arrow = schema.table("gold.user_vectors").arrow
    same = {"run_date": date.fromisoformat(job.run_date), "model_version": job.model_version, "run_id": job.run_id}
    values = {"user_id": user_ids, "vector": _lists(found_UD)}
    columns = [pa.repeat(pa.scalar(same[f.name], f.type), len(found_UD)) if f.name in same
               else values[f.name].cast(f.type) for f in arrow]  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=arrow)


def lists_of(folder: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of gold.user_sequences, with a column `vector` where the bundle has vectors and `attributes` where there are
    rules -> gold.recommendations."""
    arms = opened(folder).arms
    for batch in batches:
        for shared in arms:
            users, job = shared.mine(pa.Table.from_batches([batch])), shared.job
            if batch.num_rows and not users.num_rows:
                continue
            stamp = Stamp(date.fromisoformat(job.run_date), job.run_id, job.model_version, job.arm)
            yield from slates(users, shared.items, shared.scored(users), job.k, stamp, {}, shared.group_N,
                              shared.ruling, shared.draws, shared.variety, shared.reasons, shared.wishes, shared.others,
                              shared.second)  # fmt: skip


def _lists(found_UD: np.ndarray) -> pa.Array:
    """A list of floats a row."""
    ends = np.arange(len(found_UD) + 1, dtype=np.int32) * found_UD.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(found_UD.astype(np.float32).ravel()))

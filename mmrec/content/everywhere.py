"""An encoder whose batches are cut into parts that run wherever the engine computes.

In: an encoder, a way to map Arrow batches (lake/spread.py). Out: an Encoder that gives the same bits: a row's vector
depends on the row alone. The encoder crosses to executors as its settings; graphs are exported here, before, into the
cache folder that all machines share, as they share the home.
Trade-off: raw content and vectors pass through this process, which commits them; encoding costs far more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from mmrec.content.encoders import Encoder

Batches = Iterator[pa.RecordBatch]
Mapped = Callable[[pa.Table, Callable[[Batches], Batches], pa.Schema], pa.Table]

_GIVEN = pa.schema([("place", pa.int64()), ("raw", pa.binary())])
_MADE = pa.schema([("place", pa.int64()), ("vector", pa.binary()), ("refused", pa.string())])


class Everywhere:
    """See the module.

    Args:
        mapped: (rows, a function from batches to batches that can be pickled, the schema of what it gives) -> rows, in
            any order.
    """

    def __init__(self, encoder: Encoder, mapped: Mapped) -> None:
        self.encoder, self.mapped = encoder, mapped
        self.modality, self.version = encoder.modality, encoder.version

    @property
    def dim(self) -> int:
        """The vector's size. Raises: as the encoder does."""
        return self.encoder.dim

    def encode(self, raw: Sequence[Any]) -> tuple[np.ndarray, list[str | None]]:
        """Rows to (B, D) float32, zero where refused, and the reason or None of each row."""
        out = np.zeros((len(raw), self.dim), np.float32)  # its size is asked here: a model that is gone is told here
        why: list[str | None] = [None] * len(raw)
        plain = [r.encode("utf-8", "surrogatepass") if isinstance(r, str) else r for r in raw]
        rows = pa.table([range(len(raw)), plain], schema=_GIVEN)
        made = self.mapped(rows, partial(part, self.encoder), _MADE)
        for place, vector, refused in zip(*(c.to_pylist() for c in made.columns), strict=True):
            out[place], why[place] = np.frombuffer(vector, np.float32), refused
        return out, why


def part(encoder: Encoder, batches: Batches) -> Batches:
    """Rows of (place, raw) to rows of (place, vector as bytes, refused)."""
    for batch in batches:
        raw = batch.column(1).to_pylist()
        if encoder.modality == "text":
            raw = [r.decode("utf-8", "surrogatepass") for r in raw]
        emb_BD, why = encoder.encode(raw)
        vectors = pa.array([row.tobytes() for row in emb_BD], pa.binary())
        yield pa.record_batch([batch.column(0), vectors, pa.array(why, pa.string())], schema=_MADE)

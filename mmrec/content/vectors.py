"""Vectors that somebody else made, as an encoder: looked up by content, in one Parquet file.

In: a file with columns `content_sha256` and `vector`, raw content. Out: an Encoder of its vectors; a content that the
file lacks is refused by name.
Keyed by content as the cache is, not by item: a picture that is replaced loses the old one's vector. A shop that has
vectors by item joins them with silver.items, where the hashes are.
Trade-off: the version is the file's digest, so a file that grows is another encoder, and a model must be trained on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmrec.errors import InputError
from mmrec.lake.content import text_key


class Vectors:
    """An Encoder (modality, version, dim, encode) of the vectors in `file`.

    Raises: InputError: no such file, other columns, vectors of several lengths or that are not finite, a content twice.
    """

    def __init__(self, file: Path, modality: str) -> None:
        self.file, self.modality = file, modality
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            self.dim = self._dim(pq.ParquetFile(file))
        except (OSError, pa.ArrowInvalid) as error:
            raise self._wrong("the file of vectors can't be read", f"{type(error).__name__}: {str(error)[:200]}",
                              "a Parquet file") from None  # fmt: skip
        self.version = f"table/{modality}/{self.dim}/{digest[:12]}"
        self._held: tuple[dict[str, int], np.ndarray] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Vectors, (self.file, self.modality)

    def encode(self, raw: Sequence[Any]) -> tuple[np.ndarray, list[str | None]]:
        """Rows to (B, D) float32, zero where the file has none, and the reason or None of each row."""
        place, vector_ND = self._held or self._read()
        keys = [text_key(r) if isinstance(r, str) else hashlib.sha256(r).hexdigest() for r in raw]
        out, why = np.zeros((len(raw), self.dim), np.float32), [None] * len(raw)
        for r, key in enumerate(keys):
            if key in place:
                out[r] = vector_ND[place[key]]
            else:
                why[r] = "no_vector: the table has none of this content"
        return out, why

    def _dim(self, opened: pq.ParquetFile) -> int:
        found = {f.name: f.type for f in opened.schema_arrow}
        key, vector = found.get("content_sha256"), found.get("vector")
        lists = vector is not None and (pa.types.is_list(vector) or pa.types.is_fixed_size_list(vector)
                                        or pa.types.is_large_list(vector))  # fmt: skip
        if key is None or not lists or not pa.types.is_floating(vector.value_type):
            raise self._wrong("the file of vectors has other columns", {k: str(v) for k, v in found.items()},
                              "content_sha256: string, vector: list of float")  # fmt: skip
        for batch in opened.iter_batches(64, columns=["vector"]):
            lengths = pc.unique(pc.list_value_length(batch.column(0))).to_pylist()
            if len(lengths) == 1 and lengths[0]:
                return int(lengths[0])
            raise self._wrong("vectors must be of one length", lengths, "one length, more than 0")
        raise self._wrong("the file of vectors is empty", 0, "at least one row")

    def _read(self) -> tuple[dict[str, int], np.ndarray]:
        rows = pq.read_table(self.file, columns=["content_sha256", "vector"])
        lengths = pc.unique(pc.list_value_length(rows["vector"])).to_pylist()
        if lengths != [self.dim]:
            raise self._wrong("vectors must be of one length", lengths, f"{self.dim} numbers")
        flat = pc.list_flatten(rows["vector"]).cast(pa.float32())
        vector_ND = flat.to_numpy(zero_copy_only=False).reshape(-1, self.dim)
        bad = np.flatnonzero(~np.isfinite(vector_ND).all(1))
        keys: list[str] = rows["content_sha256"].cast(pa.string()).to_pylist()
        if len(bad):
            raise self._wrong("a vector is not finite", keys[bad[0]], "finite numbers")
        place = {key: n for n, key in enumerate(keys)}
        if len(place) < len(keys):
            raise self._wrong("a content has several vectors", len(keys) - len(place), "one row a content")
        self._held = place, vector_ND
        return self._held

    def _wrong(self, what: str, value: Any, valid: str) -> InputError:
        return InputError(what, where=str(self.file), value=value, valid=valid,
                          next="write the file again, or edit mmrec.toml")  # fmt: skip

"""Content hashes: what "byte for byte" means for a table.

In: Arrow rows of one table. Out: sha256 over the canonical columns, rows sorted by key, run metadata left out.
The same for any row order, file layout, engine or chunking, and with or without a nullable column that no row has.
Trade-off: values are hashed column by column from their buffers (about 10^6 rows a second), so the hash is
defined by this module, not by a file format.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec import schema


def text_key(text: str | None) -> str | None:
    """The content key of a text: sha256 of its UTF-8; None where there is none."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def content_hash(rows: pa.Table, name: str) -> str:
    """Hex sha256 of `rows` of table `name`; rows hold at least the table's content columns."""
    t = schema.table(name)
    # plain types first: views and dictionaries can't be sorted, and are storage, not meaning
    plain = {c: rows[c].cast(t.arrow.field(c).type) for c in t.content_columns}
    rows = pa.table(plain).sort_by([(k, "ascending") for k in t.key])
    digest = hashlib.sha256(f"{name}:{rows.num_rows}".encode())
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if t.arrow.field(field.name).nullable and column.null_count == rows.num_rows:
            continue  # it may have come after these rows: their hash stays what it was
        digest.update(f"|{field.name}:{t.arrow.field(field.name).type}|".encode())
        combined = column.combine_chunks()
        _feed(digest, combined.combine_chunks() if isinstance(combined, pa.ChunkedArray) else combined)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, values: pa.Array) -> None:
    digest.update(np.packbits(np.asarray(values.is_valid())).tobytes())
    kind = values.type
    if pa.types.is_list(kind):
        digest.update(_lengths(pc.list_value_length(values)))
        _feed(digest, values.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        digest.update(_lengths(pc.binary_length(values)))
        digest.update(b"".join(v for v in values.cast(pa.binary()).to_pylist() if v is not None))
    elif pa.types.is_floating(kind):
        numbers = values.fill_null(0).to_numpy(zero_copy_only=False).copy()
        numbers[numbers == 0] = 0.0  # one zero
        numbers[np.isnan(numbers)] = np.nan  # one NaN
        digest.update(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())
    else:
        wide = values.cast(pa.int32()) if pa.types.is_date(kind) or pa.types.is_boolean(kind) else values
        digest.update(wide.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).astype("<i8").tobytes())


def _lengths(values: pa.Array) -> bytes:
    return values.fill_null(0).to_numpy(zero_copy_only=False).astype("<i8").tobytes()

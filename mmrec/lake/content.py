"""Content hashes: what "byte for byte" means for a table.

In: Arrow rows of one table, or what reads columns of them. Out: sha256 over the canonical columns, rows sorted by key,
run metadata left out. The same for any row order, file layout, engine or chunking, and with or without a nullable
column that no row has.
Trade-off: values are hashed column by column from their buffers, a column in memory at a time, so the hash is defined
by this module, not by a file format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec import schema

Read = Callable[[list[str]], pa.Table]
_STEP = 2**20  # rows at a time, a multiple of eight: their validity goes in as bits


def text_key(text: str | None) -> str | None:
    """The content key of a text: sha256 of its UTF-8; None where there is none."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def content_hash(rows: pa.Table | Read, name: str) -> str:
    """Hex sha256 of rows of table `name`.

    Args:
        rows: a table of at least the content columns; or a function from names of columns to these, of the same rows in
            the same order at each call.
    """
    t = schema.table(name)
    read = rows.select if isinstance(rows, pa.Table) else rows
    # plain types first: views and dictionaries can't be sorted, and are storage, not meaning
    keys = read(list(t.key))
    order = _order(pa.table({k: keys[k].cast(t.arrow.field(k).type) for k in t.key}))
    n = keys.num_rows
    del keys
    digest = hashlib.sha256(f"{name}:{n}".encode())
    for column in t.content_columns:
        field = t.arrow.field(column)
        values = read([column])[column].cast(field.type)
        if field.nullable and values.null_count == n:
            continue  # it may have come after these rows: their hash stays what it was
        digest.update(f"|{column}:{field.type}|".encode())
        _feed(digest, values, order)
    return digest.hexdigest()


def _order(keys: pa.Table) -> np.ndarray | None:
    """(N,) int64: rows by key, equal ones as they came; None: they are in order."""
    whole = np.zeros(keys.num_rows, np.int64)
    span = 1
    for column in keys.columns:
        codes = _codes(column)
        if codes is None:
            break
        low, high = (int(codes.min()), int(codes.max())) if len(codes) else (0, 0)
        span *= high - low + 1
        if span >= 2**62:
            break
        whole = whole * (high - low + 1) + (codes - low)
    else:
        return None if (whole[1:] >= whole[:-1]).all() else np.argsort(whole, kind="stable")
    return pc.sort_indices(keys, sort_keys=[(k, "ascending") for k in keys.column_names]).to_numpy().astype(np.int64)


def _codes(column: pa.ChunkedArray) -> np.ndarray | None:
    """Whole numbers in the order of the values; None: there is a null, or values of a kind that has none."""
    kind = column.type
    if column.null_count:
        return None
    if pa.types.is_string(kind):
        coded = column.dictionary_encode().unify_dictionaries()
        if not coded.num_chunks:
            return np.zeros(0, np.int64)
        words = coded.chunk(0).dictionary
        rank = np.empty(len(words), np.int64)
        rank[pc.sort_indices(words).to_numpy()] = np.arange(len(words))
        return rank[np.concatenate([c.indices.to_numpy() for c in coded.chunks])]
    if pa.types.is_date32(kind) or pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
        return (column.cast(pa.int32()) if pa.types.is_date32(kind) else column).cast(pa.int64()).to_numpy()
    return None


def _feed(digest: hashlib._Hash, column: pa.ChunkedArray, order: np.ndarray | None) -> None:
    kind = column.type
    if pa.types.is_list(kind):
        values = _piece(column, order, 0, len(column))
        digest.update(np.packbits(np.asarray(values.is_valid())).tobytes())
        digest.update(_lengths(pc.list_value_length(values)))
        _feed(digest, pa.chunked_array([values.flatten()]), None)
        return
    if order is not None and column.num_chunks > 1:
        column = pa.chunked_array([_whole(column)])

    def pieces() -> Iterator[pa.Array]:
        return (_piece(column, order, start, start + _STEP) for start in range(0, len(column), _STEP))

    for piece in pieces():
        digest.update(np.packbits(np.asarray(piece.is_valid())).tobytes())
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        for piece in pieces():
            digest.update(_lengths(pc.binary_length(piece)))
        for piece in pieces():
            there = piece.drop_null()
            _, ends, data = there.buffers()
            if len(there) and data is not None:
                ends = np.frombuffer(ends, np.int32)[there.offset : there.offset + len(there) + 1]
                digest.update(memoryview(data)[ends[0] : ends[-1]])
        return
    for piece in pieces():
        if pa.types.is_floating(kind):
            numbers = piece.fill_null(0).to_numpy(zero_copy_only=False).copy()
            numbers[numbers == 0] = 0.0  # one zero
            numbers[np.isnan(numbers)] = np.nan  # one NaN
            digest.update(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())
        else:
            wide = piece.cast(pa.int32()) if pa.types.is_date(kind) or pa.types.is_boolean(kind) else piece
            digest.update(wide.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).astype("<i8").tobytes())


def _piece(column: pa.ChunkedArray, order: np.ndarray | None, start: int, stop: int) -> pa.Array:
    return _whole(column.slice(start, stop - start) if order is None else column.take(pa.array(order[start:stop])))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _lengths(values: pa.Array) -> bytes:
    return values.fill_null(0).to_numpy(zero_copy_only=False).astype("<i8").tobytes()

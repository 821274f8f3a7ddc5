"""List columns of Arrow tables as numbers: rows of places in a catalogue, without a Python object an entry.

In: a column of lists of ids, the catalogue's ids. Out: `Rows`, and of each its last entries side by side.
Trade-off: the catalogue is hashed anew at each call, so a call should have a batch of users, not one.

Shape legend: B users, E entries of all their lists, H entries side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Rows:
    """Lists of B users.

    Attributes:
        ptr: (B + 1,) int64, where a user's entries begin. at: (E,) int32, places in the catalogue; -1: not there.
    """

    ptr: np.ndarray
    at: np.ndarray

    def kept(self, keep_E: np.ndarray) -> Rows:
        """Without the other entries."""
        before = np.concatenate([[0], np.cumsum(keep_E)])
        return Rows(before[self.ptr], self.at[keep_E])

    def of(self, rows: slice) -> Rows:
        """Of some users, side by side."""
        ptr = self.ptr[rows.start : rows.stop + 1]
        return Rows(ptr - ptr[0], self.at[ptr[0] : ptr[-1]])

    def last(self, most: int, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """(B, H) int64: where the last `most` entries of some users are in `at`, the last one last; -1 in front."""
        where_BH = self.ptr[1:][rows][:, None] + np.arange(-most, 0)
        return np.where(where_BH >= self.ptr[:-1][rows][:, None], where_BH, -1)


def rows_of(column: pa.ChunkedArray, ids: pa.Array) -> Rows:
    """Entries as places in `ids`, which are distinct."""
    ptr, entries = flat(column)
    return Rows(ptr, places(entries, ids))


def flat(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """(B + 1,) int64 and all entries, list after list."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks)
    ptr = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy())])
    return ptr.astype(np.int64), lists.flatten()


def places(entries: pa.Array, ids: pa.Array) -> np.ndarray:
    """(E,) int32: where an entry stands in `ids`, -1 where it does not."""
    return pc.fill_null(pc.index_in(entries, value_set=ids), -1).to_numpy().astype(np.int32)

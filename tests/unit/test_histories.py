"""List columns as rows of numbers: against loops over Python lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mmrec.recommend.histories import flat, places, rows_of

IDS = ["a", "b", "c", "d"]
lists = st.lists(st.lists(st.sampled_from([*IDS, "gone"]), max_size=6), max_size=8)


@given(lists, lists, st.integers(0, 3), st.integers(1, 5))
def test_rows_are_the_lists_by_place_and_end_with_their_last(one: list[list[str]], two: list[list[str]], cut: int, most: int) -> None:
    both = [*one, *two]
    column = pa.chunked_array([pa.array(part, pa.list_(pa.string())) for part in (one, two)]).slice(cut)
    asked = both[cut:]
    rows = rows_of(column, pa.array(IDS))
    want = [[IDS.index(i) if i in IDS else -1 for i in row] for row in asked]
    assert [rows.at[a:b].tolist() for a, b in zip(rows.ptr, rows.ptr[1:], strict=False)] == want
    known = rows.kept(rows.at >= 0)
    want = [[i for i in row if i >= 0] for row in want]
    assert [known.at[a:b].tolist() for a, b in zip(known.ptr, known.ptr[1:], strict=False)] == want
    last = known.last(most)
    assert last.shape == (len(asked), most)
    assert [[int(known.at[i]) for i in row if i >= 0] for row in last] == [row[-most:] for row in want]
    assert all((np.diff((row >= 0).astype(int)) >= 0).all() for row in last)  # what is empty comes first
    some = np.arange(len(asked))[::2]
    np.testing.assert_array_equal(known.last(most, some), last[::2])


def test_a_list_that_is_not_there_is_empty_and_other_columns_are_flat_alike() -> None:
    column = pa.chunked_array([pa.array([["a"], None, ["b", "gone"]], pa.list_(pa.string()))])
    ptr, entries = flat(column)
    assert ptr.tolist() == [0, 1, 1, 3]
    assert places(entries, pa.array(IDS)).tolist() == [0, 1, -1]
    assert flat(pa.chunked_array([], pa.list_(pa.int64())))[0].tolist() == [0]

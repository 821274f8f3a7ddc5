"""Parts of one computation: they cover it once, in order, and their own parts take no more threads than there are."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec.topk import threads
from mmrec.topk.seen import of_users
from mmrec.topk.threads import cores, share


@given(st.integers(0, 200), st.integers(1, 50), st.none() | st.integers(1, 60), st.integers(1, 5))
def test_parts_cover_everybody_once_in_order_and_are_neither_too_small_nor_too_large(n: int, few: int, most: int | None, many: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "cores", lambda: many)
        made = share(n, few, lambda some: list(range(some.start, some.stop)), most)
    assert [x for part in made for x in part] == list(range(n))
    assert all(len(part) <= max(few, most or n) for part in made)
    if most is None:
        assert len(made) <= many
        assert all(len(part) >= few for part in made[:-1])


def test_a_part_has_one_core_and_its_own_parts_are_done_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert cores() == 3

    def part(some: slice) -> tuple[int, set[int]]:
        return cores(), {threading.get_ident()} | set(share(9, 1, lambda other: threading.get_ident()))

    told = share(9, 1, part)
    assert [(n, len(who)) for n, who in told] == [(1, 1)] * 3
    assert all(threading.get_ident() not in who for _, who in told)
    assert cores() == 3


def test_an_error_of_a_part_is_everybodys() -> None:
    with pytest.raises(ZeroDivisionError):
        share(9, 1, lambda some: 1 // some.start)


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6), st.data())
def test_what_some_users_have_seen_is_theirs_whether_or_not_they_stand_together(seen: list[list[int]], data: st.DataObject) -> None:
    ptr = np.concatenate([[0], np.cumsum([len(s) for s in seen])]).astype(np.int64)
    idx = np.array([i for s in seen for i in s], np.int32)
    some = data.draw(st.lists(st.integers(0, len(seen) - 1), min_size=1, max_size=8))
    start = data.draw(st.integers(0, len(seen) - 1))
    for users in (some, list(range(start, data.draw(st.integers(start, len(seen) - 1)) + 1))):
        got_ptr, got = of_users((ptr, idx), np.array(users))
        assert [got[a:b].tolist() for a, b in pairwise(got_ptr)] == [seen[u] for u in users]

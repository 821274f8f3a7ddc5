"""What a repeat rule lets come again, against a look at every event; and lists that have it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ruled_lists import RULES
from test_slate import STAMP, items_of, users_of

from mmrec import schema
from mmrec.dates import micros
from mmrec.errors import QualityError
from mmrec.recommend.again import had, pairs
from mmrec.recommend.check import check_slates
from mmrec.recommend.explore import Exploration
from mmrec.recommend.rules import Rule, of_records
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.scorers import Vectors
from mmrec.recommend.slate import DRAWN, RULE, slates

AS_OF = datetime(2026, 3, 1, tzinfo=UTC)
Row = dict[str, Any]
Event = tuple[int, str, int]  # item, type, days ago
TYPES, IDS = ("view", "click", "purchase"), [f"i{n:03d}" for n in range(8)]


def shop(n: int) -> pa.Table:
    kinds = [["A"], ["B"], ["A", "B"], []]
    items = items_of(IDS[:n], list(range(n)))
    items = items.append_column("categories", pa.array([kinds[i % 4] for i in range(n)], pa.list_(pa.string())))
    return items.append_column("attributes", pa.array([json.dumps({"kind": i % 3}) for i in range(n)]))


def people(events: list[list[Event]], behind: list[list[int]]) -> pa.Table:
    """Users with a sequence each, and items that they had before it begins."""
    told = [sorted(own, key=lambda e: -e[2]) for own in events]
    users = users_of([[IDS[i] for i, _, _ in own] for own in told],
                     [sorted({*(IDS[i] for i, _, _ in own), *(IDS[i] for i in old)}) for own, old in zip(told, behind, strict=True)])  # fmt: skip
    users = users.set_column(users.column_names.index("event_types"), "event_types", pa.array([[t for _, t, _ in own] for own in told], pa.list_(pa.string())))
    at = [[micros(AS_OF - timedelta(days)) for _, _, days in own] for own in told]
    users = users.append_column("event_us", pa.array(at, pa.list_(pa.int64())))
    users = users.append_column("n_interactions", pa.array([len(own) + len(old) for own, old in zip(told, behind, strict=True)], pa.int64()))
    return users.append_column("attributes", pa.array([json.dumps({"age": "ab"[u % 2]}) for u in range(len(told))]))


def repeat(n: int, items: Row, after: int, events: list[str] | None, users: Row) -> Row:
    return {"name": f"again{n}", "kind": "repeat", "items": items, "after": after, "users": users} | ({"events": events} if events else {})


REPEATS = st.lists(st.tuples(st.sampled_from([{}, {"category": ["A"]}, {"kind": [1, 2]}, {"item": IDS[:3]}]), st.sampled_from([0, 3, 7]),
                             st.none() | st.lists(st.sampled_from(TYPES), min_size=1, max_size=2, unique=True),
                             st.sampled_from([{}, {"age": ["a"]}])), min_size=1, max_size=3)  # fmt: skip
EVENTS = st.lists(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(TYPES), st.integers(1, 9)), max_size=8), min_size=1, max_size=5)


def naive(events: list[list[Event]], behind: list[list[int]], rules: list[Rule], items: pa.Table) -> dict[tuple[int, int], str]:
    """(user, item) -> the first rule that frees one of its events, where every event is freed."""
    categories, kinds = items["categories"].to_pylist(), [json.loads(a)["kind"] for a in items["attributes"].to_pylist()]

    def means(r: Rule, i: int) -> bool:
        if not r.items:
            return True
        ((name, wanted),) = r.items.items()
        found = {"category": categories[i], "kind": [kinds[i]], "item": [IDS[i]]}[name]
        return any(f in wanted for f in found)  # type: ignore[operator]

    out = {}
    for u, (own, old) in enumerate(zip(events, behind, strict=True)):
        mine = [r for r in rules if not r.users or "ab"[u % 2] == "a"]
        oldest = max((days for _, _, days in own), default=0)
        for i in sorted({i for i, _, _ in own} | set(old)):
            if i >= items.num_rows:
                continue
            told = [next((r.name for r in mine if means(r, i) and days >= r.after and (r.events is None or kind in r.events)), None)
                    for j, kind, days in own if j == i]  # fmt: skip
            if old:  # anything may lie behind the sequence, and it is older than all of it
                told.append(next((r.name for r in mine if means(r, i) and oldest >= r.after and r.events is None), None))
            if None not in told:
                seen = told[:-1] if old and len(told) > 1 else told
                out[u, i] = min(seen, key=lambda name: [r.name for r in rules].index(name))
    return out


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.data(), st.integers(1, 8), REPEATS)
def test_what_is_freed_is_what_a_look_at_every_event_frees(events: list[list[Event]], data: st.DataObject, n: int, told: list[Any]) -> None:
    behind = [data.draw(st.just([]) | st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True)) for _ in events]
    items, users = shop(n), people(events, behind)
    ruling = Ruling(of_records([repeat(k, *each) for k, each in enumerate(told)]), items, AS_OF)
    found = had(users, items["item_id"].combine_chunks(), None, ruling)
    want = naive(events, behind, ruling.rules, items)
    got = {(int(key) // n, int(key) % n): ruling.names[rule] for key, rule in zip(found.key, found.rule, strict=True)}
    assert got == want
    barred = {(u, i) for u, (own, old) in enumerate(zip(events, behind, strict=True)) for i in {*(e[0] for e in own), *old} if i < n} - set(want)
    assert {(u, int(i)) for u in range(len(events)) for i in found.seen.at[found.seen.ptr[u] : found.seen.ptr[u + 1]]} == barred
    rows = pairs(users, ruling).to_pylist()
    assert {(int(r["user_id"][1:]), IDS.index(r["item_id"])): r["name"] for r in rows} == want


@settings(max_examples=30, deadline=None)
@given(EVENTS, st.integers(0, 1000), REPEATS, RULES, st.booleans())
def test_a_list_with_repeats_is_that_of_a_user_who_never_had_them_and_says_by_which_rule(events: list[list[Event]], seed: int, told: list[Any], more: list[Rule], model: bool) -> None:
    items, users = shop(8), people(events, [[]] * len(events))
    repeats = of_records([repeat(k, *each) for k, each in enumerate(told)])
    both, alone = Ruling([*more, *repeats], items, AS_OF), Ruling(more, items)
    rng = np.random.default_rng(seed)
    v = Vectors(rng.integers(-2, 3, (len(events), 3)).astype(np.float32), rng.integers(-2, 3, (8, 3)).astype(np.float32), allowed_N=alone.allowed_N) if model else None
    free = naive(events, [[]] * len(events), repeats, items)
    left = [[i for i in own if (u, IDS.index(i)) not in free] for u, own in enumerate(users["seen_item_ids"].to_pylist())]
    never = users.set_column(users.column_names.index("seen_item_ids"), "seen_item_ids", pa.array(left, pa.list_(pa.string())))

    def lists(users: pa.Table, ruling: Ruling) -> list[Row]:
        return pa.Table.from_batches(slates(users, items, v, 5, STAMP, {}, None, ruling), schema.table("gold.recommendations").arrow).to_pylist()

    got, want = lists(users, both), lists(never, alone)
    assert [{**r, "rule": None} for r in got] == [{**r, "rule": None} for r in want]
    for r, plain in zip(got, want, strict=True):
        key = int(r["user_id"][1:]), IDS.index(r["item_id"])
        assert r["rule"] == free.get(key, plain["rule"])


def test_the_last_look_lets_pass_what_a_rule_freed_and_nothing_else(tmp_path: Path) -> None:
    items, users = shop(8), people([[(0, "purchase", 9), (1, "purchase", 2), (2, "view", 9)]], [[]])
    ruling = Ruling(of_records([repeat(0, {}, 7, ["purchase"], {})]), items, AS_OF)
    made = pa.Table.from_batches(slates(users, items, None, 8, STAMP, {}, None, ruling), schema.table("gold.recommendations").arrow)
    assert {r["item_id"] for r in made.to_pylist()} == {*IDS} - {"i001", "i002"}
    assert [r["rule"] for r in made.to_pylist() if r["item_id"] == "i000"] == ["again0"]
    pq.write_table(made, tmp_path / "rows.parquet")
    ruled = ruling.tables(users)
    assert check_slates([tmp_path / "rows.parquet"], users, items, 8, None, ruled | {"again": pairs(users, ruling)}) == 1
    with pytest.raises(QualityError) as caught:
        check_slates([tmp_path / "rows.parquet"], users, items, 8, None, ruled)
    assert set(caught.value.report["faults"]) == {"seen_item"}


def test_a_rule_that_wants_older_events_than_there_are_frees_nothing_and_one_without_users_reaches_all() -> None:
    items, users = shop(4), people([[(0, "view", 5)], [(0, "view", 5)], []], [[], [], []])
    for after, want in ((6, []), (5, [0, 4])):
        found = had(users, items["item_id"].combine_chunks(), None, Ruling(of_records([repeat(0, {}, after, None, {})]), items, AS_OF))
        assert found.key.tolist() == want
    assert had(users, items["item_id"].combine_chunks(), None, Ruling([], items)).freed(slice(0, 3), np.zeros((3, 1), int)) is None


def test_drawn_and_pinned_rows_keep_their_source_and_tell_the_rule_that_lets_them_come_again() -> None:
    items, users = shop(8), people([[(i, "view", 9) for i in range(8)]], [[]])
    rules = [repeat(0, {}, 7, None, {}), {"name": "window", "kind": "pin", "items": {"item": ["i003"]}, "place": 1}]
    ruling = Ruling(of_records(rules), items, AS_OF)
    made = slates(users, items, None, 4, STAMP, {}, None, ruling, Exploration(4, 0.5, 2))
    rows = pa.Table.from_batches(made).to_pylist()
    assert [r["rule"] for r in rows] == ["again0"] * 4
    assert rows[0]["source"] == RULE
    assert {r["source"] for r in rows} >= {RULE, DRAWN}

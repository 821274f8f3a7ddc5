"""What users hide is in no list of theirs, and what they want less or more of moves, as a plain look has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_slate import STAMP, items_of, users_of, world

from mmrec import schema
from mmrec.errors import QualityError
from mmrec.recommend.check import check_slates
from mmrec.recommend.scorers import Vectors
from mmrec.recommend.slate import slates
from mmrec.recommend.wishes import Wishes, hidden_pairs

Row = dict[str, Any]
ENTRIES = [f"{wish} {about}" for wish in ("hide", "less", "more")
           for about in ("item=i001", "item=i004", "item=gone", "category=A", "category=B", "kind=1", "kind=x=y", "tags=s")]  # fmt: skip


def described(items: pa.Table) -> pa.Table:
    n = items.num_rows
    kinds = [["A"], ["B"], ["A", "B"], []]
    items = items.append_column("categories", pa.array([kinds[i % 4] for i in range(n)], pa.list_(pa.string())))
    about = [{"kind": [0, 1, "x=y"][i % 3], "tags": ["s", "t"][: i % 3]} for i in range(n)]
    return items.append_column("attributes", pa.array([json.dumps(a) for a in about]))


def asking(users: pa.Table, entries: list[list[str] | None]) -> pa.Table:
    return users.append_column("wishes", pa.array(entries, pa.list_(pa.string())))


def meant(entry: str, row: Row) -> bool:
    field, value = entry.split(" ", 1)[1].split("=", 1)
    if field == "item":
        return row["item_id"] == value
    if field == "category":
        return value in row["categories"]
    found = json.loads(row["attributes"])[field]
    return value in [str(f) for f in (found if isinstance(found, list) else [found])]


def lists(users: pa.Table, items: pa.Table, v: Vectors | None, k: int, wishes: Wishes | None) -> list[Row]:
    made = slates(users, items, v, k, STAMP, {}, wishes=wishes)
    return pa.Table.from_batches(made, schema.table("gold.recommendations").arrow).to_pylist()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 14), st.integers(1, 8), st.integers(1, 4), st.booleans(), st.data())
def test_lists_are_what_a_plain_look_makes_of_wishes(seed: int, n_users: int, n_items: int, k: int, places: int, model: bool, data: st.DataObject) -> None:
    users, items, v = world(seed, n_users, n_items)
    items = described(items)
    entries = [data.draw(st.none() | st.lists(st.sampled_from(ENTRIES), max_size=3, unique=True)) for _ in range(n_users)]
    asked, pool = asking(users, entries), 2 * k + places
    found = v if model else None
    got = lists(asked, items, found, k, Wishes(items, places, pool))
    about = {r["item_id"]: r for r in items.to_pylist()}
    # a list as long as the catalogue is the whole ranking, of which what is hidden is left out beforehand
    hidden = [[i for i in about if any(e.startswith("hide") and meant(e, about[i]) for e in own or ())] for own in entries]
    seen = [sorted({*s, *h}) for s, h in zip(users["seen_item_ids"].to_pylist(), hidden, strict=True)]
    barred = users.set_column(users.column_names.index("seen_item_ids"), "seen_item_ids", pa.array(seen, pa.list_(pa.string())))
    whole = lists(barred, items, found, n_items, None)
    for u, own in enumerate(entries):
        name = f"u{u:03d}"
        ranked = [r for r in whole if r["user_id"] == name and r["source"] == "model"]
        behind = [r for r in whole if r["user_id"] == name and r["source"] != "model"]

        def shift(row: Row, own: list[str] | None = own) -> int:
            total = 0
            for e in own or ():
                if meant(e, about[row["item_id"]]):
                    total = max(-places, min(places, total + {"less": places, "more": -places, "hide": 0}[e[:4]]))
            return total

        moved = any(not e.startswith("hide") and any(meant(e, r) for r in about.values()) for e in own or ())
        keys = [(p + shift(r), shift(r), p) for p, r in enumerate(ranked[:pool])]
        order = [p for *_, p in sorted(keys)] + list(range(len(keys), len(ranked)))
        want = [ranked[p] for p in order] + behind
        mine = [r for r in got if r["user_id"] == name]
        assert [r["item_id"] for r in mine] == [r["item_id"] for r in want[:k]]
        assert [r["ranked"] for r in mine] == [order[n] + 1 if moved and n < len(order) else None for n in range(len(mine))]
        assert not {r["item_id"] for r in mine} & set(hidden[u])


def test_the_last_look_finds_what_a_user_hides(tmp_path: Path) -> None:
    items = described(items_of([f"i{n:03d}" for n in range(6)], list(range(6))))
    users = asking(users_of([[], []]), [["hide category=A"], None])
    wishes = Wishes(items, 3, 20)
    pairs = hidden_pairs(users, wishes)
    assert pairs.to_pylist() == [{"user_id": "u000", "item_id": i} for i in ("i000", "i002", "i004")]
    for rows, fault in ((lists(users, items, None, 6, wishes), None), (lists(users, items, None, 6, None), "hidden")):
        pq.write_table(pa.Table.from_pylist(rows, schema.table("gold.recommendations").arrow), tmp_path / "rows.parquet")
        if fault is None:
            assert check_slates([tmp_path / "rows.parquet"], users, items, 6, None, {"hidden": pairs}) == 2
            continue
        with pytest.raises(QualityError) as caught:
            check_slates([tmp_path / "rows.parquet"], users, items, 6, None, {"hidden": pairs})
        assert set(caught.value.report["faults"]) == {fault}


def test_a_table_without_wishes_and_wishes_about_nothing_change_nothing() -> None:
    users, items, v = world(5, 4, 10)
    items = described(items)
    plain = lists(users, items, v, 5, None)
    assert lists(users, items, v, 5, Wishes(items, 3, 20)) == plain
    assert lists(asking(users, [["more category=Z", "hide item=gone", "less nothing=1"], None, [], ["more item=zz"]]), items, v, 5, Wishes(items, 3, 20)) == plain


def test_of_equal_keys_what_is_asked_for_comes_first_and_what_is_not_wanted_last() -> None:
    items = described(items_of([f"i{n:03d}" for n in range(6)]))
    v = Vectors(np.ones((1, 1), np.float32), -np.arange(6, dtype=np.float32)[:, None])
    users = asking(users_of([[]]), [["less item=i001", "more item=i004"]])
    assert [r["item_id"] for r in lists(users, items, v, 6, Wishes(items, 2, 20))] == ["i000", "i004", "i002", "i003", "i001", "i005"]

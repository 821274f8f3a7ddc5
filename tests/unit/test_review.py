"""What a rule holds until a person approves it: decisions as rows, the newest counts, and a list without what waits."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from mmrec import schema
from mmrec.errors import InputError
from mmrec.lake import commit
from mmrec.lake.store import Lake
from mmrec.recommend.rules import of_records
from mmrec.recommend.ruling import Ruling
from mmrec.review import decide, held, reviewed

DAY = date(2026, 3, 1)
RULES = of_records([
    {"name": "new", "kind": "hold", "items": {"fresh": [True]}, "line": 2},
    {"name": "loud", "kind": "hold", "items": {"item": ["a", "d"]}, "users": {"age": ["child"]}, "line": 5},
    {"name": "gone", "kind": "exclude", "items": {"item": ["e"]}, "line": 9},
])  # fmt: skip


def filled(name: str, rows: list[dict[str, object]]) -> pa.Table:
    arrow = schema.table(name).arrow
    plain = {f.name: None if f.nullable else {"list": [], "string": "x", "bool": False}.get(str(f.type).split("<")[0], 0) for f in arrow}
    return pa.Table.from_pylist([plain | {"run_date": DAY, "run_id": "r"} | row for row in rows], arrow)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(tmp_path)
    made.create_all()
    items = [{"item_id": i, "title": i.upper(), "n_30d": n, "n_90d": n, "attributes": '{"fresh":true}' if i in "abc" else "{}"} for n, i in enumerate("edcba")]
    commit.write(made, "gold.item_features", filled("gold.item_features", items), run_id="r", pinned=0, partition=DAY)
    lists = [{"user_id": "u", "rank": 1, "item_id": "e", "score": 1.0, "propensity": 1.0}]
    commit.write(made, "gold.recommendations", filled("gold.recommendations", lists), run_id="r", pinned=0, partition=DAY)
    return made


def test_what_waits_is_what_is_named_and_not_decided_the_most_popular_first(lake: Lake) -> None:
    told = [(r["rule"], r["item_id"], r["title"], r["decision"], r["line"]) for r in held(lake, RULES)]
    assert told == [("loud", "a", "A", "waiting", 5), ("new", "a", "A", "waiting", 2), ("new", "b", "B", "waiting", 2), ("new", "c", "C", "waiting", 2), ("loud", "d", "D", "waiting", 5)]


def test_an_approval_is_for_every_rule_that_holds_the_item_or_for_the_one_that_is_named_and_the_newest_counts(lake: Lake) -> None:
    written = decide(lake, RULES, ["a", "a"], "approved", by="ann", why="seen it")
    assert [(w["rule"], w["item_id"]) for w in written] == [("loud", "a"), ("new", "a")]
    decide(lake, RULES, ["b"], "rejected", rule="new", by="bob")
    assert [(r["rule"], r["item_id"]) for r in held(lake, RULES)] == [("new", "c"), ("loud", "d")]
    assert {r.name: r.approved for r in reviewed(lake, RULES)} == {"new": ("a",), "loud": ("a",), "gone": ()}
    decide(lake, RULES, ["a"], "rejected", rule="loud", by="bob", why="too loud")
    decide(lake, RULES, ["b"], "approved", by="ann")
    assert {r.name: r.approved for r in reviewed(lake, RULES)} == {"new": ("a", "b"), "loud": (), "gone": ()}
    told = {(r["rule"], r["item_id"]): (r["decision"], r["decided_by"], r["why"]) for r in held(lake, RULES, waiting=False)}
    assert told == {("loud", "a"): ("rejected", "bob", "too loud"), ("new", "a"): ("approved", "ann", "seen it"), ("new", "b"): ("approved", "ann", ""),
                    ("new", "c"): ("waiting", "", ""), ("loud", "d"): ("waiting", "", "")}  # fmt: skip
    assert lake.arrow("ops.reviews").num_rows == 5


def test_a_hold_bars_what_is_not_approved_and_a_manifest_keeps_what_was(lake: Lake) -> None:
    decide(lake, RULES, ["b"], "approved", by="ann")
    rules = of_records([r.record() for r in reviewed(lake, RULES)])
    items = lake.day("gold.item_features", DAY).sort_by("item_id")
    ruling = Ruling(rules, items)
    assert ruling.allowed_N.tolist() == [False, True, False, True, False]  # a and c wait, e is excluded
    law = ruling.law(pa.array(["u", "v"]), pa.array(['{"age":"child"}', None]))
    assert [ruling.names[c] if c >= 0 else None for c in law.fate_CN[law.class_B[0], :, 0]] == ["loud", None, None, "loud", None]
    assert (law.fate_CN[law.class_B[1], :, 0] < 0).all()
    bars = {(r["name"], r["item_id"], r["some"]) for r in ruling.tables(pa.table({"user_id": ["u"], "attributes": ['{"age":"child"}']}))["bars"].to_pylist()}
    assert bars == {("new", "a", False), ("new", "c", False), ("loud", "a", True), ("loud", "d", True), ("gone", "e", False)}


def test_who_decides_on_what_nobody_holds_is_told_and_nothing_is_written(lake: Lake) -> None:
    for items, rule in ((["a", "e"], None), (["b"], "loud"), (["nowhere"], None)):
        with pytest.raises(InputError, match="no rule holds this item"):
            decide(lake, RULES, items, "approved", rule=rule, by="ann")
    assert lake.arrow("ops.reviews").num_rows == 0


def test_without_a_night_nothing_can_be_held(tmp_path: Path) -> None:
    made = Lake(tmp_path)
    made.create_all()
    with pytest.raises(InputError, match="no night is published yet"):
        held(made, RULES)

"""What a day's rules mean to its items and users, against a look at one of each at a time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec.recommend.rules import KINDS, Range, Rule
from mmrec.recommend.ruling import Ruling

NEED = {"boost": "places", "cap": "most", "quota": "least", "pin": "place", "repeat": "after"}
PLAIN = st.sampled_from([1, 2.5, -3, True, False, "1", "a", "True"])
SOME = st.dictionaries(st.sampled_from("pq"), PLAIN | st.lists(PLAIN | st.none(), max_size=2) | st.none(), max_size=2)
ROWS = st.lists(st.tuples(st.none() | st.sampled_from(["T", "1"]), st.none() | st.lists(st.sampled_from(["a", "b", "1"]), max_size=2), SOME), max_size=7)
WANT = st.lists(PLAIN | st.just(1.0), min_size=1, max_size=2) | st.sampled_from([{"at_least": 1}, {"below": 1}, {"at_least": -3, "below": 2.5}])
OF_ITEMS, OF_USERS = (st.dictionaries(st.sampled_from(names), WANT, min_size=1, max_size=2) for names in (("item", "category", "title", "p", "q"), ("user", "p", "q")))
IDS = ["1", "17", "True", "a", "b", "c", "d"]


def meets(about: dict[str, Any], match: dict[str, Any]) -> bool:
    """A thing at a time, a value at a time."""

    def same(v: Any, w: Any, name: str) -> bool:
        if name in ("item", "category", "title", "user"):
            return v == str(w)
        return v == w and sum(isinstance(x, bool) for x in (v, w)) != 1

    def fits(v: Any, want: Any, name: str) -> bool:
        if isinstance(want, Range):
            number = isinstance(v, int | float) and not isinstance(v, bool)
            return number and not (want.at_least is not None and v < want.at_least) and not (want.below is not None and v >= want.below)
        return v is not None and any(same(v, w, name) for w in want)

    several = {n: v if isinstance(v, list) else [v] for n, v in about.items()}
    return all(any(fits(v, want, n) for v in several.get(n) or []) for n, want in match.items())


@st.composite
def books(draw: st.DrawFn) -> list[Rule]:
    out = []
    for n in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(KINDS))
        items = {"item": [draw(st.sampled_from([*IDS, 17, "gone"]))]} if kind == "pin" else draw(OF_ITEMS)
        more: dict[str, Any] = {NEED[kind]: draw(st.integers(1, 9))} if kind in NEED else {}
        if kind == "cap":
            more |= draw(st.sampled_from([{}, *({"each": e} for e in ("item", "category", "title", "p"))]))
        users = draw(st.just({}) | OF_USERS)
        out.append(Rule(name=f"r{n}", kind=kind, items=items, users=users, **more))
    return out


@settings(max_examples=90, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(books(), ROWS, st.lists(st.tuples(st.sampled_from(IDS), st.none() | SOME), max_size=5))
def test_a_ruling_is_what_a_look_at_every_item_and_user_finds(rules: list[Rule], rows: list[Any], people: list[Any]) -> None:
    things = [{"item": IDS[n], "title": t, "category": c, **more} for n, (t, c, more) in enumerate(rows)]
    table = pa.table({"item_id": pa.array(IDS[: len(rows)], pa.string()), "title": pa.array([t for t, _, _ in rows], pa.string()),
                      "categories": pa.array([c for _, c, _ in rows], pa.list_(pa.string())),
                      "attributes": pa.array([json.dumps(more) for *_, more in rows], pa.string())})  # fmt: skip
    ruling = Ruling(rules, table)
    meant = [[meets(t, r.items) for t in things] for r in rules]
    bars = [[(m if r.kind != "include" else not m) and r.kind in ("exclude", "include", "hold") for m in row] for r, row in zip(rules, meant, strict=True)]
    assert ruling.meant_RN.tolist() == meant
    for_all = [next((k for k, r in enumerate(rules) if not r.users and bars[k][n]), -1) for n in range(len(things))]
    assert ruling.cause_N.tolist() == for_all
    assert ruling.allowed_N.tolist() == [c < 0 for c in for_all]
    texts = pa.array([None if a is None else json.dumps(a) for _, a in people], pa.string())
    law = ruling.law(pa.array([u for u, _ in people], pa.string()), texts)
    for b, (user, about) in enumerate(people):
        holds = [meets((about or {}) | {"user": user}, r.users) for r in rules]
        c = law.class_B[b]
        assert law.holds_CR[c].tolist() == holds == ruling.holds_for(user, texts[b].as_py()).tolist()
        pins = sorted((r.place - 1, IDS.index(str(r.items["item"][0])), k) for k, r in enumerate(rules)
                      if r.kind == "pin" and holds[k] and str(r.items["item"][0]) in IDS[: len(rows)])  # fmt: skip
        for n in range(len(things)):
            own = next((k for k, r in enumerate(rules) if r.users and holds[k] and bars[k][n]), -1)
            lifts = [(r.places, -k) for k, r in enumerate(rules) if r.kind == "boost" and holds[k] and meant[k][n]]
            assert law.fate_CN[c, n].tolist() == [own, max(lifts, default=(0, 0))[0]]
            lifter = int(law.lifter_CN[c, n]) if law.lifter_CN.size else -1
            assert lifter == (-max(lifts)[1] if lifts else -1)
            if own >= 0 or for_all[n] >= 0:
                pins = [p for p in pins if p[1] != n]
        put = [p for p in zip(law.place_CP[c].tolist(), law.pin_CP[c].tolist(), law.pinner_CP[c].tolist(), strict=True) if p[1] >= 0]
        assert put == pins
    for k, r in enumerate(rules):
        assert law.bound_R[k] == {"cap": r.most, "quota": -(r.least or 0)}.get(r.kind, 0)
        code = law.code_RN[k].tolist()
        first = [t.get(r.each) if r.each else 0 for t in things]
        key = [json.dumps((v or [None])[0] if isinstance(v, list) else v) for v in first]
        counted = [r.kind in ("cap", "quota") and m and v != "null" for m, v in zip(meant[k], key, strict=True)]
        assert [x >= 0 for x in code] == counted
        there = [n for n, yes in enumerate(counted) if yes]
        assert all((code[i] == code[j]) == (key[i] == key[j]) for i in there for j in there)
    users = pa.table({"user_id": pa.array([u for u, _ in people], pa.string()), "attributes": texts})
    told = ruling.tables(users)
    assert told["bars"].to_pylist() == [{"name": r.name, "item_id": IDS[n], "some": bool(r.users)} for k, r in enumerate(rules) for n, yes in enumerate(bars[k]) if yes]
    bound = {(r.name, u) for r in rules if r.users for u, a in people if meets((a or {}) | {"user": u}, r.users)}
    assert {(row["name"], row["user_id"]) for row in told["bound"].to_pylist()} == bound


def test_users_of_the_same_rules_are_one_class_and_nobody_is_none() -> None:
    items = pa.table({"item_id": ["a", "b"], "title": ["A", "B"], "categories": [["x", "y"], ["y"]], "attributes": ["{}", "{}"]})
    only = Rule(name="only", kind="include", items={"category": ["x"]}, users={"c": ["nl", "de"]})
    each = Rule(name="each", kind="cap", each="category", most=1)
    ruling = Ruling([only, each], items)
    law = ruling.law(pa.array(["u", "v", "w", "z"]), pa.array(['{"c":"nl"}', '{"c":"de","d":1}', None, '{"c":"at"}']))
    assert law.class_B.tolist() == [law.class_B[0]] * 2 + [law.class_B[2]] * 2
    assert law.fate_CN[law.class_B, :, 0].tolist() == [[-1, 0]] * 2 + [[-1, -1]] * 2
    assert np.unique(law.code_RN[1]).size == 2  # x and y: b's only category is a's second
    assert ruling.law(pa.array([], pa.string()), None).class_B.tolist() == []
    named = Ruling([Rule(name="one", kind="exclude", items={"item": ["a"]}, users={"user": [17]})], items)
    law = named.law(pa.array(["17", "18"]), None)
    assert law.fate_CN[law.class_B, :, 0].tolist() == [[0, -1], [-1, -1]]

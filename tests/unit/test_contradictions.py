"""Which two rules contradict each other, and which only look so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmrec.errors import InputError
from mmrec.recommend.rules import Rule, read


def rule(kind: str, items: dict[str, Any], name: str = "a", **more: Any) -> dict[str, Any]:
    return {"name": name, kind: items, **more}


def rules_of(folder: Path, text: str) -> list[Rule]:
    (folder / "rules.yaml").write_text(text)
    return read(folder / "rules.yaml")


def both(folder: Path, *given: dict[str, Any]) -> bool:
    return len(rules_of(folder, json.dumps({"rules": given}))) == 2


X, Y = {"x": 1}, {"y": 1}


@pytest.mark.parametrize(
    ("one", "other", "word"),
    [
        (rule("exclude", X), rule("cap", Y, name="a", most=1), "same name"),
        (rule("exclude", {"x": [1, 2]}), rule("include", X), "excludes everything"),
        (rule("exclude", {"x": {"at_least": 1}}), rule("boost", {"x": [1, 2.5], "y": 1}, places=2), "excludes everything"),
        (rule("exclude", {"x": {"below": 9}}), rule("quota", {"x": {"at_least": 1, "below": 9}}, least=1), "excludes everything"),
        (rule("exclude", {"item": ["i", "j"]}), rule("pin", {"item": "j"}, place=1, users={"c": "nl"}), "excludes everything"),
        (rule("exclude", {"item": 17}), rule("pin", {"item": "17"}, place=1), "excludes everything"),
        (rule("exclude", X, users={"c": ["nl", "de"]}), rule("boost", X, places=2, users={"c": "nl", "d": 1}), "excludes everything"),
        (rule("include", {"item": ["i", "j"]}), rule("pin", {"item": "k"}, place=1), "includes nothing"),
        (rule("include", {"title": "T"}), rule("quota", {"title": ["U", "V"]}, least=1), "includes nothing"),
        (rule("include", {"item": "i"}), rule("include", {"item": "j"}), "includes nothing"),
        (rule("cap", X, most=2), rule("quota", X | Y, least=3), "asks for 3"),
        (rule("pin", {"item": "i"}, place=2), rule("pin", {"item": "j"}, place=2), "both pin place 2"),
        (rule("pin", {"item": "i"}, place=1), rule("pin", {"item": "i"}, place=2), "both pin the same item"),
        (rule("pin", {"item": 17}, place=1), rule("pin", {"item": "17"}, place=2), "both pin the same item"),
        (rule("boost", X, places=2), rule("boost", X, places=3), "the same items"),
        (rule("cap", X, most=2, each="y"), rule("cap", X, most=3, each="y"), "the same items"),
        (rule("quota", X, least=2), rule("quota", X, least=3), "the same items"),
    ],
    ids=str,
)
def test_two_rules_that_no_list_keeps_are_refused_with_both_lines(tmp_path: Path, one: dict[str, Any], other: dict[str, Any], word: str) -> None:
    other = {**other, "name": "a" if word == "same name" else "b"}
    days = {"from": "2026-03-01"}, {"until": "2026-03-02"}  # one day is enough
    for first, second in ((one, other), (other | days[0], one | days[1])):
        lines = [f"rules:\n- {json.dumps(first)}\n\n- {json.dumps(second)}\n", f"rules:\n# more\n- {json.dumps(first)}\n- {json.dumps(second)}\n"]
        for text, (at, then) in zip(lines, ((2, 4), (3, 4)), strict=True):
            with pytest.raises(InputError) as caught:
                rules_of(tmp_path, text)
            said = str(caught.value)
            assert f"where: rules.yaml line {at} ({first['name']}) and line {then} ({second['name']})" in said
            assert word in said
    if word != "same name":  # on no day together, for no user together
        apart = ({"until": "2026-03-01"}, {"from": "2026-03-01"}), ({"users": {"u": 1}}, {"users": {"u": [2, True, "1"]}})
        for a, b in (*apart, ({"users": {"u": {"below": 5}}}, {"users": {"u": {"at_least": 5}}})):
            assert both(tmp_path, one | a, other | b)
            assert both(tmp_path, other | b, one | a)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (rule("exclude", X | Y), rule("boost", X, places=2)),  # some of it
        (rule("exclude", {"x": [1, 2]}), rule("include", {"x": [2, 3]})),
        (rule("exclude", {"x": True}), rule("boost", X, places=2)),
        (rule("exclude", {"x": "1"}), rule("boost", X, places=2)),
        (rule("exclude", {"x": {"at_least": 1}}), rule("boost", {"x": [1, "2"]}, places=2)),
        (rule("exclude", {"x": {"at_least": 1}}), rule("boost", {"x": {"below": 5}}, places=2)),
        (rule("exclude", X, users={"c": "nl"}), rule("boost", X, places=2)),  # others have it
        (rule("exclude", X), rule("cap", X, most=2)),
        (rule("exclude", {"category": "c"}), rule("pin", {"item": "i"}, place=1)),  # whose category is not in the file
        (rule("include", {"category": "c"}), rule("boost", {"category": "d"}, places=2)),  # an item has several
        (rule("include", {"tags": "c"}), rule("boost", {"tags": "d"}, places=2)),  # as an attribute may
        (rule("include", {"item": 17}), rule("pin", {"item": "17"}, place=1)),
        (rule("cap", X, most=2), rule("quota", X, least=2)),
        (rule("cap", X | Y, most=2), rule("quota", X, least=3)),
        (rule("cap", {}, each="x", most=2), rule("quota", X, least=3)),
        (rule("cap", X, most=2), rule("cap", X, most=3, each="y")),
        (rule("pin", {"item": "i"}, place=1), rule("pin", {"item": "j"}, place=2)),
        (rule("boost", X, places=2), rule("boost", X | Y, places=3)),
        (rule("boost", X, places=2), rule("boost", X, places=2)),  # one number
    ],
    ids=str,
)
def test_rules_that_only_look_so_are_read(tmp_path: Path, one: dict[str, Any], other: dict[str, Any]) -> None:
    assert both(tmp_path, one, other | {"name": "b"})
    assert both(tmp_path, other | {"name": "b"}, one)

"""rules.yaml: what is read, what is refused and with which line, which rules contradict each other."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec.errors import InputError
from mmrec.recommend.rules import KINDS, Range, Rule, of_records, read
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.worded import worded

FULL = """\
# what people see
rules:
  - name: minors
    exclude: {category: [Wine, Spirits]}
    users: {age_band: ["0-17"], score: {below: 0.5}}
    why: the law
  - name: summer
    include: {made: {at_least: 2020, below: 2026.5}}
    from: 2026-03-01
    until: 2026-04-01
  - {name: garden, boost: {category: Garden}, places: 5}
  - name: variety
    cap: {}
    each: category
    most: 4
  - name: new
    quota: {made: {at_least: 2026}}
    least: 2
  - name: window
    pin: {item: i0815}
    place: 1
    users: {country: nl}
  - {name: fresh, hold: {made: {at_least: 2026}}}
  - {name: food, repeat: {category: Food}, after: 14, events: [purchase]}
"""
ONE = "rules:\n- name: a\n  exclude: {x: 1}\n"  # more keys of its rule begin on line 4


def file(folder: Path, text: str | bytes) -> Path:
    (folder / "rules.yaml").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return folder / "rules.yaml"


def refused(folder: Path, text: str | bytes) -> str:
    with pytest.raises(InputError) as caught:
        read(file(folder, text))
    assert caught.value.exit_code == 2
    assert "next:  mmrec rules check" in str(caught.value)
    return str(caught.value)


def rule(kind: str, items: dict[str, Any], name: str = "a", **more: Any) -> dict[str, Any]:
    return {"name": name, kind: items, **more}


def rules_of(folder: Path, *given: dict[str, Any]) -> list[Rule]:
    return read(file(folder, yaml.safe_dump({"rules": list(given)}, sort_keys=False)))


# ---- what is read ----


def test_every_kind_is_read_with_its_line(tmp_path: Path) -> None:
    got = read(file(tmp_path, FULL))
    assert [(r.name, r.kind, r.line) for r in got] == [("minors", "exclude", 3), ("summer", "include", 7), ("garden", "boost", 11),
                                                      ("variety", "cap", 12), ("new", "quota", 16), ("window", "pin", 19), ("fresh", "hold", 23), ("food", "repeat", 24)]  # fmt: skip
    assert {r.kind for r in got} == set(KINDS)
    minors, summer, garden, variety, new, window, _, food = got
    assert (food.after, food.events) == (14, ("purchase",))
    assert minors.items == {"category": ("Wine", "Spirits")}
    assert minors.users == {"age_band": ("0-17",), "score": Range(at_least=None, below=0.5)}
    assert summer.items == {"made": Range(at_least=2020, below=2026.5)}
    assert (garden.places, garden.items, variety.each, variety.most, variety.items) == (5, {"category": ("Garden",)}, "category", 4, {})
    assert (new.least, window.place, window.items, minors.why) == (2, 1, {"item": ("i0815",)}, "the law")
    said = [worded(r) for r in got]
    assert said[0] == "nothing with category Wine or Spirits, for users with age_band 0-17 and score below 0.5"
    assert said[1:4] == ["only what has made from 2020 below 2026.5", "5 places up: category Garden", "at most 4 of each category"]
    assert said[4:] == ["at least 2 with made from 2026", "item i0815 at place 1, for users with country nl", "nothing with made from 2026 until it is approved",
                        "category Food again, 14 days after purchase"]  # fmt: skip


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "rules: []\n", "\ufeffrules: []", None])
def test_no_file_and_an_empty_one_are_no_rules(tmp_path: Path, text: str | None) -> None:
    assert read(tmp_path / "rules.yaml" if text is None else file(tmp_path, text)) == []


@pytest.mark.parametrize("word", ["no", "Yes", "ON", "012", "0x1f", "1_000", "12:30", "True"])
def test_what_yaml_takes_for_something_else_is_refused_unless_it_is_quoted(tmp_path: Path, word: str) -> None:
    for text in (f"rules:\n- name: a\n  exclude:\n    x: 1\n    y: [se, {word}]\n", f"rules:\n- name: a\n  exclude: {{x: 1}}\n  users:\n    land: {word}\n"):
        assert "line 5" in (told := refused(tmp_path, text))
        assert "put it in quotes" in told
        read(file(tmp_path, text.replace(word, f"'{word}'")))


def test_a_file_that_is_there_and_can_not_be_read_is_not_no_rules(tmp_path: Path) -> None:
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "gone.yaml"):
        with pytest.raises(InputError, match="this is no file"):
            read(path)


def test_a_rule_holds_from_its_first_day_up_to_its_last_excluded(tmp_path: Path) -> None:
    (r,) = read(file(tmp_path, ONE + "  from: 2026-03-01\n  until: '2026-03-03'\n"))
    assert [r.holds(date(2026, m, d)) for m, d in ((2, 28), (3, 1), (3, 2), (3, 3))] == [False, True, True, False]
    (first,), (last,) = (read(file(tmp_path, ONE + f"  {word}: 2026-03-01\n")) for word in ("from", "until"))
    assert [r.holds(date(9999, 12, 31)) for r in (first, last)] == [True, False]
    assert [r.holds(date.min) for r in (first, last)] == [False, True]


def test_values_keep_their_type_and_a_day_becomes_text(tmp_path: Path) -> None:
    (r,) = read(file(tmp_path, "rules: [{name: a, exclude: {x: [true, 1, 1.0, '1', 2026-03-01, false]}}]"))
    assert repr(r.items["x"]) == repr((True, 1, 1.0, "1", "2026-03-01", False))


@pytest.mark.parametrize("word", ["17", "'17'", "0345472322", "1_000", "12:30", "1.10", "true", "No", "2026-03-01"])
@pytest.mark.parametrize("field", ["item", "category", "title"])
def test_an_id_means_what_is_typed_though_yaml_reads_a_number(tmp_path: Path, field: str, word: str) -> None:
    (r,) = read(file(tmp_path, f"rules:\n- name: a\n  exclude: {{{field}: [{word}, other]}}\n  users: {{user: {word}}}\n"))
    plain = word.strip("'")
    values = {"item_id": [plain], "title": [plain], "categories": [["z", plain]], "attributes": ["{}"]}
    ruling = Ruling([r], pa.table(values))
    assert ruling.meant_RN.tolist() == [[True]]
    assert [ruling.holds_for(u, "{}").tolist() for u in (plain, "x")] == [[True], [False]]


NAMES = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,20}", fullmatch=True).filter(lambda n: n != "twin")
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NUMBERS = st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False)
FIELDS = WORDS.filter(lambda w: w not in ("", "item", "category", "title", "user"))
RANGES = st.tuples(NUMBERS, NUMBERS).filter(lambda p: float(p[0]) < float(p[1])).flatmap(
    lambda p: st.sampled_from([{"at_least": p[0], "below": p[1]}, {"at_least": p[0]}, {"below": p[1]}]))  # fmt: skip
VALUES = RANGES | st.lists(WORDS | NUMBERS | st.booleans(), min_size=1, max_size=3)
MATCH = st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3) | st.fixed_dictionaries({"item": st.lists(WORDS, min_size=1, max_size=2)})
NEED = {"boost": "places", "cap": "most", "quota": "least", "pin": "place", "repeat": "after"}


@st.composite
def valid(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(KINDS))
    out = rule(kind, {"item": draw(WORDS)} if kind == "pin" else draw(MATCH), draw(NAMES), users=draw(MATCH | st.just({})))
    if kind in NEED:
        out[NEED[kind]] = draw(st.integers(1, 1000))
    if kind == "cap":
        out |= draw(st.sampled_from([{}, {"each": "category"}, {"each": "category", "cap": {}}]))
    days = sorted(draw(st.sets(st.dates(), min_size=2, max_size=2)))
    return out | draw(st.sampled_from([{}, {"from": days[0]}, {"until": days[1]}, {"from": days[0], "until": days[1]}, {"why": "so"}]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(valid())
def test_every_rule_outlives_its_file_and_its_manifest(tmp_path: Path, told: dict[str, Any]) -> None:
    (r,) = rules_of(tmp_path, told)
    (again,) = of_records(json.loads(json.dumps([r.record()])))
    assert repr(again) == repr(r)  # True is 1 for ==
    kind = next(k for k in KINDS if k in told)
    for given_, kept in ((told[kind], r.items), (told["users"], r.users)):
        for name, v in given_.items():
            want = Range(**v) if isinstance(v, dict) else tuple(v) if isinstance(v, list) else (v,)
            assert repr(kept[name]) == repr(want)
    assert (r.name, r.kind, r.line, r.from_, r.until) == (told["name"], kind, 2, told.get("from"), told.get("until"))
    assert worded(r)


# ---- mistakes ----

BOOST, CAP, QUOTA, PIN = (f"rules:\n- name: a\n  {k}: {{{'item' if k == 'pin' else 'x'}: 1}}\n" for k in ("boost", "cap", "quota", "pin"))


@pytest.mark.parametrize(
    ("text", "where", "word"),
    [
        ("rules:\n- name: [\n", "line 3", "can't be read"),
        ("rules:\n\t- name: a\n", "line 2", "can't be read"),
        ("rules: []\n--- {}\n", "line 2", "document"),
        (b"rules:\n- name: \xff\n", "line 2", "can't be read"),
        ("rules:\n- name: a\n  why: \x07\n", "line 3", "can't be read"),
        ("a: 1\n", "line 1", "rules"),
        ("rules: {}\n", "line 1", "a list"),
        ("rules: []\nmore: 1\n", "line 1", "more"),
        ("- name: a\n", "line 1", "rules"),
        ("rules:\n- 5\n", "line 2", "5"),
        ("rules:\n- name: a\n  exclude: {x: 1}\n\n- [b]\n", "line 5", "says what it does"),
        ("rules:\n- {}\n", "line 2", "does one thing"),
        ("rules:\n- name: a\n  why: none\n", "line 2", "does one thing"),
        (ONE + "  cap: {y: 1}\n", "line 2", "'exclude', 'cap'"),
        (ONE + "  excluded: 1\n", "line 4: excluded", "not permitted"),
        (ONE + "  kind: exclude\n", "line 4", "no such key"),
        (ONE + "  items: {x: 1}\n", "line 4", "no such key"),
        (ONE + "  line: 7\n", "line 4", "no such key"),
        (ONE + "  from_: 2026-01-01\n", "line 4", "from_"),
        (ONE + "  name: b\n", "line 2 and line 4", "twice"),
        ("rules:\n- name: a\n  exclude:\n    x: 1\n    y: 2\n    x: 3\n", "line 4 and line 6", "twice"),
        (ONE + "  5: 1\n", "line 4", "a key is a word"),
        (ONE + "  ? [a, b]\n  : 1\n", "line 4", "a key is a word"),
        ("rules:\n- exclude: {x: 1}\n", "line 2", "required"),
        ("rules:\n- name: A b\n  exclude: {x: 1}\n", "line 2: name", "A b"),
        ("rules:\n- name: 5\n  exclude: {x: 1}\n", "line 2: name", "string"),
        ("rules:\n- name: twin\n  exclude: {x: 1}\n", "line 2", "twin"),
        (BOOST, "line 2", "a boost needs it"),
        (CAP, "line 2", "a cap needs it"),
        (QUOTA, "line 2", "a quota needs it"),
        (PIN, "line 2", "a pin needs it"),
        (ONE + "  most: 1\n", "line 2", "most is for cap"),
        (ONE + "  each: category\n", "line 2", "each is for cap"),
        (BOOST + "  places: many\n", "line 4: places", "many"),
        (BOOST + "  places: 1.5\n", "line 4: places", "1.5"),
        (BOOST + "  places: yes\n", "line 4: places", "True"),
        (BOOST + "  places: 0\n", "line 4: places", "greater"),
        (BOOST + "  places: 1001\n", "line 4: places", "less"),
        (CAP + "  most: 99999999999\n", "line 4: most", "less"),
        (PIN + "  place: 99999999999\n", "line 4: place", "less"),
        (CAP + "  most: 1\n  each: [category]\n", "line 5: each", "string"),
        ("rules:\n- name: a\n  exclude: {}\n", "line 2", "at least one field"),
        ("rules:\n- name: a\n  cap: {}\n  most: 1\n", "line 2", "at least one field"),
        ("rules:\n- name: a\n  exclude: all\n", "line 3: exclude", "dictionary"),
        ("rules:\n- name: a\n  exclude:\n    x: 1\n    y: []\n", "line 5: exclude.y", "[]"),
        ("rules:\n- name: a\n  exclude:\n    x: 1\n    y: [[1]]\n", "line 5: exclude.y", "[[1]]"),
        ("rules:\n- name: a\n  exclude:\n    x:\n", "line 4: exclude.x", "None"),
        ("rules:\n- name: a\n  exclude: {'': 1}\n", "line 3: exclude", "at least 1"),
        (ONE + "  users: everybody\n", "line 4: users", "dictionary"),
        (ONE + "  users:\n    x: {}\n", "line 5: users.x", "a range has"),
        ("rules:\n- name: a\n  exclude:\n    x: {at_least: 5, below: 5}\n", "line 4: exclude.x", "no number"),
        ("rules:\n- name: a\n  exclude: {x: {at_leats: 5}}\n", "line 3: exclude.x", "not permitted"),
        ("rules:\n- name: a\n  exclude: {x: {at_least: many}}\n", "line 3: exclude.x", "number"),
        ("rules:\n- name: a\n  exclude: {x: {at_least: .nan}}\n", "line 3: exclude.x", "finite"),
        ("rules:\n- name: a\n  pin: {item: [i, j]}\n  place: 1\n", "line 2", "one item"),
        ("rules:\n- name: a\n  pin: {item: {at_least: 1}}\n  place: 1\n", "line 2", "one item"),
        ("rules:\n- name: a\n  pin: {category: c}\n  place: 1\n", "line 2", "one item"),
        (ONE + "  from: 2026-03-01\n  until: 2026-03-01\n", "line 2", "no day"),
        (ONE + "  from: soon\n", "line 4: from", "soon"),
        (ONE + "  from: 86400\n", "line 4: from", "86400"),
        (ONE + "  from: '1772323200'\n", "line 4: from", "1772323200"),
        (ONE + "  until: 2026-02-30\n", "line 4", "2026-02-30"),
        (ONE + "  why: !!int x\n", "line 4", "x"),
        (ONE + "  why: !!timestamp x\n", "line 4", "x"),
        (ONE + "  why: !!bool x\n", "line 4", "x"),
        (ONE + "  <<: {why: x}\n", "line 4", "can't be read"),
        (ONE + "  why: !!python/object:os.system x\n", "line 4", "can't be read"),
        ('why: "\\UFFFFFFFF"\n', "line 1", "can't be read"),
        ("rules: " + "9" * 5000, "line 1", "can't be read"),
        ("rules: &a [*a]\n", "line 1", "can't be read"),
        ("[" * 3000, "line 1", "can't be read"),
    ],
    ids=lambda v: repr(v)[-40:],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str | bytes, where: str, word: str) -> None:
    said = refused(tmp_path, text)
    assert word in said
    told = next(s for s in said.splitlines() if s.startswith("  where"))
    assert told.startswith(f"  where: rules.yaml {where}")
    assert not told.removeprefix(f"  where: rules.yaml {where}")[:1].isdigit()


LINES = FULL.splitlines(keepends=True)


@st.composite
def mangled(draw: st.DrawFn) -> str:
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        n, m = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        what = draw(st.sampled_from(["drop", "double", "swap", "cut", "fill"]))
        if what == "drop" and len(lines) > 1:
            del lines[n]
        elif what == "double":
            lines.insert(m, lines[n])
        elif what == "swap":
            lines[n], lines[m] = lines[m], lines[n]
        elif what == "cut":
            lines[n] = lines[n][: draw(st.integers(0, len(lines[n])))]
        else:
            before, colon, _ = lines[n].rpartition(": ")
            lines[n] = before + colon + draw(st.sampled_from(FILLING)) + "\n"
    return "".join(lines)


FILLING = ["2026-02-30", "2026-03-01T25:00:00", "~", "[]", "{}", "[[]]", "{x: [1, {}]}", "*a", "&a b", "!!int x", "!!set {a}", "-.inf", ".nan",
           "9" * 30, "<<", "=", "!!binary aGk=", "- a", "|", "?", "yes", "0x_", "0b2", "1:99", "'", '"\\ud800"', "%", "@", "`"]  # fmt: skip
PIECES = st.lists(st.sampled_from([*"[]{}:,-?!&*|>'\"%@` \n\t#~=<", "rules:", "- name: a", "  exclude: ", *FILLING]) | WORDS, max_size=30).map("".join)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mangled() | PIECES | WORDS | st.binary(max_size=30) | PIECES.map(lambda t: ONE + "  " + t))
def test_any_file_is_read_or_refused_in_words(tmp_path: Path, text: str | bytes) -> None:
    try:
        got = read(file(tmp_path, text))
    except InputError:
        assert "where: rules.yaml line " in refused(tmp_path, text)
    else:
        kept = json.dumps([r.record() for r in got], allow_nan=False)
        assert repr(of_records(json.loads(kept))) == repr(got)

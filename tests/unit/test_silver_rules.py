"""Bronze to silver against naive Python: every rule planted and counted, no row lost, none in two places."""

import json
import math
import random
import re
from collections import Counter
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from mmrec import schema
from mmrec.features import silver

EARLIEST, LATEST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
KNOWN = ["i1", "i2", "😀"]
T = "2020-01-01T00:00:00Z"
AT = datetime(2020, 1, 1, tzinfo=UTC)
GOOD = {
    "interactions": {"user_id": "u1", "item_id": "i1", "event_type": "view", "event_ts": T},
    "items": {"item_id": "i1", "available_at": T, "title": "A"},
    "users": {"user_id": "u1", "available_at": T},
    "relations": {"kind": "item", "subject_id": "i1", "relation": "genre", "object_id": "x", "available_at": T},
    "impressions": {"impression_id": "p", "user_id": "u1", "item_id": "i1", "shown_at": T, "rank": "1"},
    "wishes": {"user_id": "u1", "wish": "hide", "value": "i9", "wished_at": T},
}
BAD_TIMES = ["12:30", "T12:30", "2020", "2020-02-30", "2020-01-01T25:00:00Z", "now", "today", "0000-01-01", "10000-01-01",
             "1577836800", "2020-1-1", "x", "2020-01-01T00:00:60Z", "9999-12-31T23:59:59-14:00", "2020-01-01T00:00:00 UTC",
             "٢٠٢٠-01-01", "2020-01-01\n"]  # fmt: skip
BAD_NUMBERS = [
    "x",
    "NaN",
    "nan",
    "inf",
    "-Infinity",
    "1e400",
    "5d",
    "5f",
    "0x10",
    "1_000",
    "١",
    "1,5",
    "--1",
    "e5",
    ".",
]
BAD_OBJECTS = ["[]", "x", '"a"', "1", "null", "{", "{}}", "{}{}", '{"a":1,}', "{a:1}", "{'a':1}", '{"a":01}', '{"a":NaN}',
               '{"a":1} x', '{"a" 1}', '{"a":"\n"}', '{"a":"\\x"}', '{"a":"\\ud83d"}', "{#}", "{~}", '{"a":#}', '{"a":tr ue}',
               '{"a":1 2}', '{\\n"a":1}', '{"a":"\\"}', '{"a":[1,]}', '{"a":[}]', "{}\x00", '{"k": "}', "{\x01:1}", '{"a":"\x01"}', "{}\n#", '{"a":"\x00"}', '{"a":+1}',
               '{"a":.5}', "\ufeff{}", "{\u00a0}", '{"a":' * 13 + "1" + "}" * 13]  # fmt: skip
GOOD_OBJECTS = ["{}", " { } ", '{"a":1}', '{"a":{"b":[1,-2.5e+3,true,null,"x"]},"c":[]}', '{"a":"\\ud83d\\ude00 \\\\ \\" \\/ #~ {}[],:"}',
                '{"":"😀שלום"}', '{"a":"true","b":"\\u0000"}', '\t{"a"\n: 0 }\r', '{"a":' * 12 + "1" + "}" * 12]  # fmt: skip
BAD_LISTS = [
    "{}",
    "x",
    "[",
    '["a"',
    '["a"]x',
    '["a",]',
    '"a"',
    "null",
    '[null,"a"]',
    "[1]",
    '[["a"]]',
    '[{"a":"b"}]',
    "['a']",
]


def bronze(spark, kind, rows):
    """Rows over the kind's defaults; row_hash is the row's number unless given."""
    t = schema.table(f"bronze.{kind}")
    full = [
        {"source": "s", "file": "f", "line": i + 1, "row_hash": f"h{i:05d}", "occurrence": 0, "ingested_at": LATEST} | r
        for i, r in enumerate(rows)
    ]
    return spark.createDataFrame(pa.Table.from_pylist(full, schema=t.arrow)), full


def known(spark):
    # repeats must not multiply rows
    return spark.createDataFrame(pa.table({"item_id": KNOWN + KNOWN}))


def judge(spark, kind, rows):
    """(silver rows, quarantine rows) by row_hash and occurrence, schemas checked; no row lost or doubled."""
    df, full = bronze(spark, kind, rows)
    items = known(spark) if kind in ("interactions", "impressions") else None
    good, bad = (f.toArrow() for f in silver.to_silver(kind, df, items, earliest=EARLIEST, latest=LATEST))
    for table, name in ((good, f"silver.{kind}"), (bad, "ops.quarantine")):
        want = schema.table(name)
        assert table.schema.names == want.arrow.names
        for column, right in zip(table.schema, want.columns, strict=True):
            if right.type == "ARRAY<STRING>":
                assert column.type.value_type == pa.string()
            else:
                assert column.type == right.arrow.type, column.name
            assert right.nullable or not table[column.name].null_count, column.name
    kept, kept_out = good.to_pylist(), bad.to_pylist()
    hashes = Counter(r["row_hash"] for r in kept) + Counter(r["row_hash"] for r in kept_out)
    assert hashes == Counter(r["row_hash"] for r in full)
    assert all(r["table_name"] == f"bronze.{kind}" and len(r["reason"]) <= 200 for r in kept_out)
    by_hash = {r["row_hash"]: r for r in full}
    for r in kept_out:
        row = by_hash[r["row_hash"]]
        assert (r["file"], r["line"], r["occurrence"]) == (row["file"], row["line"], row["occurrence"])
    return {r["row_hash"]: r for r in kept}, {r["row_hash"]: r for r in kept_out}


PLANTED = {
    "interactions": [
        ("parse_error", {"parse_error": "2 fields, the header has 4", "raw": "a,b", "user_id": None, "item_id": None}),
        *(("missing_key", {k: v}) for k in ("user_id", "item_id", "event_type", "event_ts") for v in (None, "", "  ")),
        *(("bad_timestamp", {"event_ts": v}) for v in BAD_TIMES),
        *(("bad_timestamp", {"available_at": v}) for v in BAD_TIMES),
        *(("time_out_of_range", {c: v}) for c in ("event_ts", "available_at") for v in
          ("1989-12-31T23:59:59.999999Z", "2026-03-01T00:00:00Z", "2100-01-01", "1000-01-01")),
        *(("bad_number", {"weight": v}) for v in BAD_NUMBERS),
        *(("bad_json", {"context": v}) for v in BAD_OBJECTS),
        ("duplicate", {"occurrence": 1}), ("duplicate", {"occurrence": 7, "item_id": "nowhere"}),
        ("unknown_item", {"item_id": "nowhere"}), ("unknown_item", {"item_id": "i1 "}), ("unknown_item", {"item_id": "I1"}),
    ],
    "items": [
        ("parse_error", {"parse_error": "torn"}), ("missing_key", {"item_id": ""}),
        *(("bad_timestamp", {c: v}) for c in ("available_at", "valid_from", "withdrawn_at") for v in BAD_TIMES),
        ("bad_timestamp", {"available_at": None}), ("bad_timestamp", {"available_at": "", "valid_from": " "}),
        *(("bad_json", {"attributes": v}) for v in BAD_OBJECTS), *(("bad_json", {"categories": v}) for v in BAD_LISTS),
        ("duplicate", {"occurrence": 1}),
    ],
    "users": [
        ("missing_key", {"user_id": None}), ("bad_timestamp", {"available_at": None}),
        ("bad_timestamp", {"withdrawn_at": "x"}), ("bad_json", {"attributes": "[]"}), ("duplicate", {"occurrence": 1}),
    ],
    "relations": [
        *(("missing_key", {c: None}) for c in ("subject_id", "relation", "object_id")),
        *(("unknown_kind", {"kind": v}) for v in (None, "", "Item", "item ", "users")),
        ("bad_timestamp", {"available_at": ""}), ("duplicate", {"occurrence": 1}),
    ],
    "impressions": [
        *(("missing_key", {c: ""}) for c in ("impression_id", "user_id", "item_id", "shown_at")),
        ("bad_timestamp", {"shown_at": "12:30"}), ("time_out_of_range", {"shown_at": "2026-03-01"}),
        *(("bad_number", {c: v}) for c in ("rank", "propensity") for v in ("x", "NaN", "5d")),
        ("bad_number", {"propensity": "1e400"}),
        *(("bad_rank", {"rank": v}) for v in (None, "", "0", "-1", "1.5", "2147483648")),
        *(("bad_propensity", {"propensity": v}) for v in ("-0.1", "1.0000001", "2")),
        ("unknown_item", {"item_id": "nowhere"}), ("duplicate", {"occurrence": 1}),
    ],
    "wishes": [
        ("parse_error", {"parse_error": "torn"}),
        *(("missing_key", {c: v}) for c in ("user_id", "value", "wished_at") for v in (None, "", " ")),
        *(("bad_timestamp", {c: v}) for c in ("wished_at", "withdrawn_at", "available_at") for v in BAD_TIMES),
        *(("time_out_of_range", {c: v}) for c in ("wished_at", "available_at") for v in ("1989-12-31T23:59:59.999999Z", "2026-03-01")),
        *(("unknown_wish", {"wish": v}) for v in (None, "", "Hide", "less ", "never")),
        ("duplicate", {"occurrence": 1}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", list(PLANTED))
def test_every_rule_fires_on_its_fault_and_on_nothing_else(spark, kind):
    planted = PLANTED[kind]
    kept, kept_out = judge(spark, kind, [GOOD[kind] | fault for _, fault in planted] + [GOOD[kind]])
    found = [kept_out.get(f"h{i:05d}", {"rule": "kept"})["rule"] for i in range(len(planted))]
    wrong = [(fault, rule, got) for (rule, fault), got in zip(planted, found, strict=True) if got != rule]
    assert not wrong
    assert list(kept) == [f"h{len(planted):05d}"]
    for i, (rule, fault) in enumerate(planted):  # the reason names the column and holds the value
        reason = kept_out[f"h{i:05d}"]["reason"]
        if rule not in ("parse_error", "duplicate"):
            assert any(c in reason for c in fault), (fault, reason)
            assert any(not (v or "").strip() or v[:150] in reason for v in fault.values()), (fault, reason)


def test_first_broken_rule_in_order_names_the_fault(spark):
    order = ["parse_error", "missing_key", "bad_timestamp", "time_out_of_range", "bad_number", "bad_json", "duplicate",
             "unknown_item"]  # fmt: skip
    faults = [{"parse_error": "torn"}, {"user_id": ""}, {"event_ts": "x"}, {"available_at": "2100-01-01"}, {"weight": "x"},
              {"context": "["}, {"occurrence": 1}, {"item_id": "nowhere"}]  # fmt: skip
    rows = []
    for i in range(len(faults)):
        rows.append(GOOD["interactions"])
        for fault in faults[i:]:
            rows[-1] = rows[-1] | fault
    _, kept_out = judge(spark, "interactions", rows)
    assert [kept_out[h]["rule"] for h in sorted(kept_out)] == order


def test_good_rows_get_their_types(spark):
    times = {
        T: AT, "2020-01-01": AT, "2020-01-01T00:00": AT, "2020-01-01 00:00:00": AT, "2020-01-01T02:00:00+02:00": AT,
        "2019-12-31T23:59:59.123456789Z": datetime(2019, 12, 31, 23, 59, 59, 123456, UTC), "1990-01-01": EARLIEST,
        "2026-02-28T23:59:59.999999Z": LATEST - timedelta(microseconds=1),
    }  # fmt: skip
    weights = {None: 1.0, "": 1.0, " ": 1.0, " 5 ": 5.0, "1e3": 1000.0, "-.5": -0.5, "+3.": 3.0, "0": 0.0, "-0.0": 0.0}
    rows = [GOOD["interactions"] | {"event_ts": t} for t in times]
    rows += [GOOD["interactions"] | {"weight": w, "text": "", "context": " "} for w in weights]
    rows += [GOOD["interactions"] | {"context": c, "text": "a\x00😀"} for c in GOOD_OBJECTS]
    rows += [GOOD["interactions"] | {"available_at": "2021-05-05", "item_id": "😀"}]
    kept, kept_out = judge(spark, "interactions", rows)
    assert not kept_out
    made = [kept[h] for h in sorted(kept)]
    assert [r["event_ts"] for r in made[: len(times)]] == list(times.values())
    assert all(r["available_at"] == r["event_ts"] for r in made[:-1])
    middle = made[len(times) : len(times) + len(weights)]
    assert [r["weight"] for r in middle] == list(weights.values())
    assert not any(math.copysign(1, r["weight"]) < 0 and r["weight"] == 0 for r in made)
    assert {(r["text"], r["context"]) for r in middle} == {(None, "{}")}
    assert [r["context"] for r in made[-len(GOOD_OBJECTS) - 1 : -1]] == GOOD_OBJECTS
    assert made[-1]["available_at"] == datetime(2021, 5, 5, tzinfo=UTC)


def test_good_rows_of_other_kinds(spark):
    lists = {
        None: [],
        "": [],
        "[]": [],
        '["a"]': ["a"],
        ' [ "b" , "a" ] ': ["b", "a"],
        '["\\u00e9\\n","😀",""]': ["é\n", "😀", ""],
    }
    kept, bad = judge(spark, "items", [GOOD["items"] | {"categories": c, "title": None, "image": ""} for c in lists])
    assert not bad
    assert [kept[h]["categories"] for h in sorted(kept)] == list(lists.values())
    assert {(r["title"], r["image"], r["attributes"], r["valid_from"], r["withdrawn_at"]) for r in kept.values()} == {
        ("", None, "{}", AT, None)
    }
    only = {"item_id": "i", "valid_from": "1927-01-01", "withdrawn_at": "9999-12-31"}
    (row,) = judge(spark, "items", [only])[0].values()  # old films are old: bounds are for events
    assert (row["available_at"], row["valid_from"]) == (datetime(1927, 1, 1, tzinfo=UTC),) * 2
    rows = [GOOD["impressions"] | {"rank": " 2 ", "propensity": p, "arm": a, "surface": None}
            for p, a in ((None, None), ("", ""), ("-0.0", "b"), ("1", "b"))]  # fmt: skip
    kept, bad = judge(spark, "impressions", rows)
    assert not bad
    assert [(r["rank"], r["propensity"], r["arm"], r["surface"], r["available_at"]) for _, r in sorted(kept.items())] == [
        (2, None, "main", "", AT), (2, None, "main", "", AT), (2, 0.0, "b", "", AT), (2, 1.0, "b", "", AT)
    ]  # fmt: skip
    assert math.copysign(1, kept["h00002"]["propensity"]) > 0
    # a field that is not named is item; what is named need not be known, its item may come or be gone
    rows = [GOOD["wishes"] | {"field": f, "value": v, "withdrawn_at": w}
            for f, v, w in ((None, "nowhere", ""), (" ", " i=1 ", T), ("category", "😀", "9999-12-31"))]  # fmt: skip
    kept, bad = judge(spark, "wishes", rows)
    assert not bad
    assert [(r["wish"], r["field"], r["value"], r["withdrawn_at"], r["wished_at"], r["available_at"]) for _, r in sorted(kept.items())] == [
        ("hide", "item", "nowhere", None, AT, AT), ("hide", "item", " i=1 ", AT, AT, AT),
        ("hide", "category", "😀", datetime(9999, 12, 31, tzinfo=UTC), AT, AT)]  # fmt: skip


def test_quarantine_keeps_the_row(spark):
    long = "x" * 5000
    rows = [GOOD["interactions"] | {"weight": long, "text": '😀\x00\n"\\'}, {"parse_error": "torn", "raw": '"a,b'}]
    _, bad = judge(spark, "interactions", rows)
    assert json.loads(bad["h00000"]["raw"]) == rows[0]  # nulls left out
    assert bad["h00000"]["reason"] == f"weight is '{long}"[:200]
    assert (bad["h00001"]["raw"], bad["h00001"]["reason"]) == ('"a,b', "torn")


def is_object(text):
    """RFC 8259 through Python's parser, 12 levels deep at most."""

    def refuse(_):
        raise ValueError

    def depth(v):
        inner = v.values() if isinstance(v, dict) else v if isinstance(v, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    try:
        value = json.loads(text, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and depth(value) <= 12


def test_json_verdicts_are_those_of_python(spark):
    rng = random.Random(11)
    alphabet = '{}[],:"\\ \t\n01e+-.truefalsn#~a😀u'
    texts = GOOD_OBJECTS + BAD_OBJECTS
    for _ in range(1500):  # real objects, a third of them with one to three characters changed

        def value(deep):
            if deep and rng.random() < 0.5:
                n = rng.randrange(4)
                if rng.random() < 0.5:
                    return [value(deep - 1) for _ in range(n)]
                return {"".join(rng.choices(alphabet, k=2)): value(deep - 1) for _ in range(n)}
            return rng.choice([0, -1.5e300, True, None, "", "".join(rng.choices(alphabet, k=5)), 1e-7])

        text = json.dumps({"k": value(4)}, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(["", rng.choice(alphabet)]) + text[at + rng.randrange(2) :]
        texts.append(text)
    kept, _ = judge(spark, "users", [GOOD["users"] | {"attributes": t} for t in texts])
    got = {t: f"h{i:05d}" in kept for i, t in enumerate(texts)}
    want = {t: is_object(t) or not t.strip(" ") for t in texts}
    assert got == want
    assert min(sum(want.values()), len(want) - sum(want.values())) > 200


def naive_rule(row):
    """The first broken rule of an interaction, with none of the engine's casts."""

    def blank(c):
        return not (row.get(c) or "").strip(" ")

    def moment(c):
        return None if blank(c) or row[c] in BAD_TIMES else datetime.fromisoformat(row[c]).replace(tzinfo=UTC)

    if row.get("parse_error") is not None:
        return "parse_error"
    if any(blank(c) for c in ("user_id", "item_id", "event_type", "event_ts")):
        return "missing_key"
    if any(not blank(c) and moment(c) is None for c in ("event_ts", "available_at")):
        return "bad_timestamp"
    if any(m and not EARLIEST <= m < LATEST for m in map(moment, ("event_ts", "available_at"))):
        return "time_out_of_range"
    if not blank("weight") and (not re.fullmatch(r"[-+0-9.e]+", row["weight"]) or math.isinf(float(row["weight"]))):
        return "bad_number"
    if not blank("context") and not is_object(row["context"]):
        return "bad_json"
    if row.get("occurrence"):
        return "duplicate"
    return None if row["item_id"] in KNOWN else "unknown_item"


def test_fuzzed_rows_are_judged_as_by_a_loop_in_any_order_and_once(spark):
    rng = random.Random(13)
    times = ["2020-01-01T00:00:00Z", "2019-05-05", "1980-01-01", "2030-01-01T00:00:00Z"]
    pools = {
        "user_id": ["u1", "u2", "😀", " u", "", None], "item_id": [*KNOWN, "nowhere", "", None],
        "event_type": ["view", "view", "buy", None], "event_ts": [*times[:2] * 6, *times, "", None, *BAD_TIMES[:4]],
        "available_at": [None, "", *times[:2] * 5, times[3], "12:30"], "weight": [None, "", "1", "2.5", "-0.0", "x", "1e400"],
        "context": [None, "", *GOOD_OBJECTS, *BAD_OBJECTS[:4]], "text": [None, "", "שלום", "a\x00b"],
        "parse_error": [None] * 20 + ["torn", ""], "occurrence": [0] * 12 + [1, 2],
    }  # fmt: skip
    rows = [{c: rng.choice(v) for c, v in pools.items()} | {"row_hash": f"h{i:05d}"} for i in range(900)]
    want = {r["row_hash"]: naive_rule(r) for r in rows}
    assert len(set(want.values())) == 9
    assert Counter(want.values())[None] > 20
    first = judge(spark, "interactions", rows)
    assert {h: r["rule"] for h, r in first[1].items()} == {h: v for h, v in want.items() if v}
    shuffled = rng.sample(rows, len(rows))
    again = judge(spark, "interactions", [r | {"line": rows.index(r) + 1} for r in shuffled])
    assert again == first
    # a replay of the night: only what may still be mended is looked at again, and is not recorded twice
    df, _ = bronze(spark, "interactions", rows)
    good, bad = silver.to_silver("interactions", df, known(spark), earliest=EARLIEST, latest=LATEST)
    left = silver.pending("interactions", df, good, bad)
    assert set(left.toArrow()["row_hash"].to_pylist()) == {h for h, v in want.items() if v == "unknown_item"}
    _, bad_again = silver.to_silver("interactions", left, known(spark), earliest=EARLIEST, latest=LATEST)
    assert silver.unrecorded(bad_again, bad).count() == 0
    assert silver.unrecorded(bad_again, bad.where(bad.rule != "unknown_item")).count() == bad_again.count() > 0

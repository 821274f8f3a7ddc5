"""Features against naive Python: as-of reading, sequences, item features, on fuzzed shops with ties and late rows."""

import hashlib
import math
import os
import random
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F

from mmrec import schema
from mmrec.features import asof, sequences, windows
from mmrec.lake.content import content_hash, text_key

DAY = date(2026, 3, 1)
NOW = datetime(2026, 3, 1, 5, tzinfo=UTC)  # midnight of a zone west of UTC
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HALF_LIFE = 7.5
LENGTH = 5
US = timedelta(microseconds=1)
NASTY = [
    "",
    "a",
    "a. b",
    ", ",
    "😀👩‍👩‍👧",
    "שלום עולם",
    "\u202eabc",
    "a\x00b",
    "é",
    "e\u0301",
    "\ue000",
    '"\\/',
    "\n\t",
    "'",
]


def us(moment):
    return (moment - EPOCH) // US


def frame(spark, name, rows):
    t = schema.table(name)
    if not rows:  # the client makes no frame of an empty Arrow table
        return spark.createDataFrame([], t.ddl)
    return spark.createDataFrame(pa.Table.from_pylist(rows, schema=t.arrow))


def rows_of(name, made, key):
    """Rows in key order; names and types are those of the schema, whatever the nullability says."""
    table, want = made.toArrow(), schema.table(name).arrow
    assert table.schema.names == want.names
    for column, right in zip(table.schema, want, strict=True):
        if pa.types.is_list(right.type):
            assert column.type.value_type == right.type.value_type, column.name
        else:
            assert column.type == right.type, column.name
    return sorted(table.to_pylist(), key=lambda r: r[key])


def shop(seed, n=400):
    """Silver rows: repeated events, equal times, corrections, late and future deliveries, edges of the windows."""
    rng = random.Random(seed)
    # names that UTF-8 and UTF-16 put in different orders are among those of events
    item_ids = [f"i{i}" for i in range(20)] + ["\ue000", "\uffff", "😀", "é", "e\u0301", "ü", "שלום"]
    user_ids = ["😀", "\uffff", "'"] + [f"u{i}" for i in range(17)] + ["ü"]
    edges = [NOW - timedelta(days=d) + s * US for d in (7, 30, 90, 15) for s in (-1, 0, 1)] + [NOW - US, NOW, NOW + US]
    edges += [datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), datetime(1900, 1, 1, tzinfo=UTC)]
    moments = edges + [NOW - timedelta(seconds=rng.randrange(-300_000, 9_000_000), microseconds=rng.randrange(10**6))
                       for _ in range(40)]  # fmt: skip
    interactions = []
    for i in range(n):
        if interactions and rng.random() < 0.3:  # a correction of an event that is there
            row = dict(rng.choice(interactions))
            late = rng.choice([timedelta(0), timedelta(hours=1), timedelta(days=40)])
            row |= {"available_at": row["available_at"] + late, "weight": rng.choice([0.0, 2.5])}
        else:
            at = rng.choice(moments)
            row = {"user_id": rng.choice(user_ids[:-2]), "item_id": rng.choice(item_ids[:-3]), "event_ts": at,
                   "event_type": rng.choice(["view", "buy"]), "context": "{}", "text": None, "source": "s",
                   "available_at": at + rng.choice([timedelta(0), timedelta(0), timedelta(days=3)]),
                   "weight": rng.choice([1.0, 4.5, -0.5, -0.0, 1 / 3, 1e300, -1e300, 0.0000005])}  # fmt: skip
        told = {"context": f'{{"n": {i}}}', "text": f"word {i}" if i % 3 else None}
        interactions.append(row | told | {"row_hash": hashlib.sha256(f"{seed}{i}".encode()).hexdigest()})
    items, users = [], []
    for _ in range(70):
        at, gone = rng.choice(moments), None if rng.random() < 0.7 else rng.choice(moments)
        common = {"available_at": at, "withdrawn_at": gone, "source": "s", "row_hash": f"{rng.random():.12f}",
                  "attributes": rng.choice(["{}", '{"a":1}'])}  # fmt: skip
        image, audio = rng.choice([None, "ab"]), rng.choice([None, "cd"])
        items.append(common | {"item_id": rng.choice(item_ids), "valid_from": rng.choice(moments), "image": None,
                               "title": rng.choice(NASTY), "text": rng.choice([None, *NASTY]), "audio": None,
                               "categories": rng.choices(NASTY, k=rng.randrange(4)), "image_sha256": image,
                               "images_sha256": [image, None, "x"] if image and audio else None,
                               "audio_sha256": audio})  # fmt: skip
        users.append(common | {"user_id": rng.choice(user_ids)})
    return interactions, items, users


def newest(rows, *key):
    best = {}
    for row in rows:
        if row["available_at"] < NOW:
            k = tuple(row[c] for c in key)
            if k not in best or (row["available_at"], row["row_hash"]) > (best[k]["available_at"], best[k]["row_hash"]):
                best[k] = row
    return list(best.values())


def present(rows):
    return [r for r in rows if r["withdrawn_at"] is None or r["withdrawn_at"] >= NOW]


def naive_interactions(rows):
    return newest([r for r in rows if r["event_ts"] < NOW], "user_id", "item_id", "event_type", "event_ts")


def naive_items(rows):
    return [r for r in present(newest(rows, "item_id")) if r["valid_from"] < NOW]


def within(rows, days):
    return sum(NOW - timedelta(days=days) <= r["event_ts"] < NOW for r in rows)


def naive_sequences(interactions, users, about=False):
    made = []
    known = {u["user_id"]: u["attributes"] for u in present(users)}
    left = {u["user_id"] for u in users} - set(known)
    for user in sorted(({r["user_id"] for r in interactions} | set(known)) - left):
        own = [r for r in interactions if r["user_id"] == user]
        own.sort(key=lambda r: (r["event_ts"], r["item_id"], r["event_type"]))
        last = own[-LENGTH:]
        ends = [r["event_ts"] for r in last[1:]] + [NOW]
        micro = [math.floor(max(-9e18, min(9e18, r["weight"] * 1e6 + 0.5))) for r in last]
        made.append({
            "run_date": DAY, "user_id": user, "item_ids": [r["item_id"] for r in last],
            "event_types": [r["event_type"] for r in last], "event_us": [us(r["event_ts"]) for r in last],
            "gap_s": [(end - r["event_ts"]) // timedelta(seconds=1) for r, end in zip(last, ends, strict=False)],
            "weight_micro": micro, "seen_item_ids": sorted({r["item_id"] for r in own}), "n_interactions": len(own),
            "n_7d": within(own, 7), "n_30d": within(own, 30), "n_90d": within(own, 90),
            "attributes": known.get(user, "{}"), "wishes": None, "social_item_ids": None, "run_id": "r",
            "contexts": [r["context"] for r in last] if about and own else None,
            "texts": [r["text"] for r in last] if about and own else None,
        })  # fmt: skip
    return made


def naive_item_features(interactions, items, entities=None):
    made = []
    for item in sorted(items, key=lambda r: r["item_id"]):
        own = [r for r in interactions if r["item_id"] == item["item_id"]]
        latest = {}
        for r in own:
            latest[r["user_id"]] = max(latest.get(r["user_id"], r["event_ts"]), r["event_ts"])
        ages = [(NOW - at) // timedelta(days=1) for at in latest.values()]
        text = windows.content_text(item["title"], item["categories"], item["text"])
        made.append({
            "run_date": DAY, "item_id": item["item_id"], "title": item["title"], "categories": item["categories"],
            "attributes": item["attributes"], "texts_sha256": None, "images_sha256": item.get("images_sha256"),
            "entities": (entities or {}).get(item["item_id"]),
            "text_sha256": text and hashlib.sha256(text.encode()).hexdigest(), "image_sha256": item["image_sha256"],
            "audio_sha256": item["audio_sha256"], "n_interactions": len(own), "n_users": len(latest),
            "n_7d": within(own, 7), "n_30d": within(own, 30), "n_90d": within(own, 90),
            "popularity_micro": sum(math.floor(1e6 * 2 ** (-a / HALF_LIFE)) for a in ages),
            "available_us": us(item["valid_from"]), "run_id": "r",
        })  # fmt: skip
    return made


def build(spark, interactions, items, users, now=NOW, about=False):
    """Both tables the way a night makes them, as sorted rows."""
    more = ("context", "text") if about else ()
    seen = asof.events(frame(spark, "silver.interactions", interactions), now, more)
    offered = asof.items(frame(spark, "silver.items", items), now)
    known = asof.users(frame(spark, "silver.users", users), now, everyone=True)
    made = sequences.user_sequences(seen, known, DAY, now, LENGTH, "r", about=about)
    about = windows.item_features(seen, offered, DAY, now, HALF_LIFE, "r", attributes=True)
    return rows_of("gold.user_sequences", made, "user_id"), rows_of("gold.item_features", about, "item_id")


EVENT_KEY = ("user_id", "item_id", "event_type", "event_ts")


def values(row):
    return tuple(row[c] for c in (*EVENT_KEY, "weight"))


@pytest.mark.parametrize("seed", [0, 1])
def test_asof_reader_keeps_what_a_loop_keeps(spark, seed):
    interactions, items, users = shop(seed)
    for name, made, want in (
        ("interactions", asof.interactions(frame(spark, "silver.interactions", interactions), NOW),
         naive_interactions(interactions)),
        ("items", asof.items(frame(spark, "silver.items", items), NOW), naive_items(items)),
        ("items", asof.items(frame(spark, "silver.items", items), NOW, on_offer=False), newest(items, "item_id")),
        ("users", asof.users(frame(spark, "silver.users", users), NOW), present(newest(users, "user_id"))),
    ):  # fmt: skip
        assert 0 < len(want) < len({"interactions": interactions, "items": items, "users": users}[name])
        assert rows_of(f"silver.{name}", made, "row_hash") == sorted(want, key=lambda r: r["row_hash"])


def collide():
    return F.pmod(F.xxhash64("user_id", "item_id", "event_type", F.unix_micros("event_ts")), F.lit(7))


@pytest.mark.parametrize("how", ["as it is", "hashes collide", "too many to send", "no event comes twice"])
def test_events_are_those_of_a_loop_whoever_was_delivered_again(spark, monkeypatch, how):
    interactions, _, _ = shop(8)
    if how == "no event comes twice":
        interactions = list({tuple(r[c] for c in EVENT_KEY): r for r in interactions}.values())
    if how == "hashes collide":
        monkeypatch.setattr(asof, "_hash", collide)
    if how == "too many to send":
        monkeypatch.setattr(asof, "_MANY", 3)
    events = asof.events(frame(spark, "silver.interactions", interactions), NOW).toArrow()
    assert events.column_names == [*EVENT_KEY, "weight"]
    want = naive_interactions(interactions)
    assert sorted(map(values, events.to_pylist())) == sorted(map(values, want))
    assert 0 < len(want) < len(interactions)


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_features_are_those_of_a_loop(spark, seed):
    interactions, items, users = shop(seed)
    made_users, made_items = build(spark, interactions, items, users)
    seen = naive_interactions(interactions)
    assert made_users == naive_sequences(seen, newest(users, "user_id"))
    assert made_items == naive_item_features(seen, naive_items(items))
    told, _ = build(spark, interactions, items, users, about=True)
    assert told == naive_sequences(seen, newest(users, "user_id"), about=True)
    # the fuzz reaches what it is for: cold users and items, long and short histories, an item without text
    assert any(not r["item_ids"] for r in made_users)
    assert any(r["n_interactions"] > LENGTH for r in made_users)
    assert any(not r["n_interactions"] for r in made_items)
    assert any(r["popularity_micro"] for r in made_items)


def test_what_is_known_of_an_item_stands_beside_it_and_changes_nothing_else(spark):
    interactions, items, _ = shop(7)
    rng = random.Random(7)
    known = {i: sorted({f"maker={rng.randrange(3)}", f"genre={rng.choice(NASTY)}"}, key=lambda e: e.encode()) for i in [*(r["item_id"] for r in naive_items(items)[::2]), "nowhere"]}
    entities = spark.createDataFrame(pa.table({"item_id": list(known), "entities": list(known.values())}))
    seen, offered = (read(frame(spark, f"silver.{n}", rows), NOW) for n, read, rows in (("interactions", asof.interactions, interactions), ("items", asof.items, items)))
    made = windows.item_features(seen, offered, DAY, NOW, HALF_LIFE, "r", attributes=True, entities=entities)
    want = naive_item_features(naive_interactions(interactions), naive_items(items), known)
    assert rows_of("gold.item_features", made, "item_id") == want
    assert 0 < sum(r["entities"] is not None for r in want) < len(want)


SOON = st.sampled_from([NOW - timedelta(days=7), NOW - timedelta(days=7) - US, NOW - US, NOW, EPOCH, EPOCH - US, EPOCH - timedelta(days=1, microseconds=3)])
NAMES = st.sampled_from(["a", "😀", "\uffff", "e\u0301"])
EVENT = st.fixed_dictionaries({
    "user_id": NAMES, "item_id": NAMES, "event_type": st.sampled_from(["v", "V"]), "event_ts": SOON, "late": st.sampled_from([timedelta(0), US, timedelta(days=1)]),
    "weight": st.sampled_from([1.0, -0.0, 0.0, -1.0000005, 5e-324, 9e12, -1e308]),
})  # fmt: skip
VERSION = st.fixed_dictionaries({
    "id": NAMES, "available_at": SOON, "valid_from": SOON, "withdrawn_at": st.none() | SOON, "title": st.sampled_from(NASTY), "text": st.none() | st.sampled_from(NASTY),
    "categories": st.lists(st.sampled_from(NASTY), max_size=2), "attributes": st.sampled_from(["{}", '{"😀":null}']),
})  # fmt: skip


@settings(deadline=None)  # the count of examples is that of the engine's profile
@given(st.lists(EVENT, max_size=8), st.lists(VERSION, max_size=4), st.lists(VERSION, max_size=4))
def test_features_of_any_few_rows_with_ties_corrections_and_odd_values_are_those_of_a_loop(spark, events, catalogue, people):
    interactions = [{c: v for c, v in e.items() if c != "late"} | {"available_at": e["event_ts"] + e["late"], "context": "{}", "text": None, "source": "s", "row_hash": f"h{n % 3}{n}"}
                    for n, e in enumerate(events)]  # fmt: skip
    media = {"image": None, "image_sha256": None, "audio": None, "audio_sha256": "cd", "source": "s"}
    items = [{c: v for c, v in r.items() if c != "id"} | media | {"item_id": r["id"], "row_hash": f"h{n % 3}{n}"} for n, r in enumerate(catalogue)]
    users = [{c: r[c] for c in ("available_at", "withdrawn_at", "attributes")} | {"user_id": r["id"], "source": "s", "row_hash": f"h{n % 3}{n}"} for n, r in enumerate(people)]
    made_users, made_items = build(spark, interactions, items, users)
    seen = naive_interactions(interactions)
    assert made_users == naive_sequences(seen, newest(users, "user_id"))
    assert made_items == naive_item_features(seen, naive_items(items))


def test_arrival_order_and_replays_change_nothing(spark):
    interactions, items, users = shop(5)
    want = build(spark, interactions, items, users)
    for seed in (0, 1):
        rng = random.Random(seed)
        again = [rng.sample(t + rng.sample(t, len(t) // 3), len(t) + len(t) // 3) for t in (interactions, items, users)]
        assert build(spark, *again) == want


def test_planted_future_rows_change_nothing(spark):
    interactions, items, users = shop(6)
    want = build(spark, interactions, items, users)
    later = NOW + timedelta(days=1)
    planted = [
        # it happened at as_of; it was delivered at as_of; a correction delivered later; a far future one
        interactions[0] | {"event_ts": NOW, "available_at": NOW - US, "row_hash": "zz0"},
        interactions[1] | {"event_ts": NOW - US, "available_at": NOW, "item_id": "i0", "row_hash": "zz1"},
        interactions[2] | {"available_at": later, "weight": 99.0, "row_hash": "zz2"},
        interactions[3] | {"event_ts": later, "available_at": later, "user_id": "nobody", "row_hash": "zz3"},
    ]
    news = [r | {"available_at": NOW, "title": "leak", "withdrawn_at": EPOCH, "row_hash": "zz"} for r in items]
    left = [r | {"available_at": NOW, "withdrawn_at": EPOCH, "attributes": '{"leak":1}'} for r in users]
    assert build(spark, interactions + planted, items + news, users + left) == want
    # the same rows do count a moment after as_of: the plant is able to fail
    assert build(spark, interactions + planted, items + news, users + left, now=later + US) != want


def test_known_answer_by_hand(spark):
    def event(item, days, kind="view", **more):
        at = NOW - timedelta(days=days)
        return {"user_id": "a", "item_id": item, "event_type": kind, "event_ts": at, "available_at": at, "weight": 1.0,
                "context": "{}", "text": None, "source": "s", "row_hash": f"{item}{days}{kind}"} | more  # fmt: skip

    interactions = [event("x", 15), event("x", 7.5), event("y", 7.5), event("y", 7, "buy", weight=-0.0)]
    item = {"available_at": EPOCH, "valid_from": EPOCH, "withdrawn_at": NOW, "title": "T", "text": "long", "categories":
            ["p", "q"], "attributes": "{}", "image": None, "image_sha256": None, "audio": None, "audio_sha256": None,
            "source": "s"}  # fmt: skip
    items = [item | {"item_id": i, "row_hash": i} for i in "xyz"]
    made_users, made_items = build(spark, interactions, items, [])
    assert made_users == [{
        "run_date": DAY, "user_id": "a", "item_ids": ["x", "x", "y", "y"],
        "event_types": ["view", "view", "view", "buy"],
        "event_us": [us(NOW) - int(d * 86_400_000_000) for d in (15, 7.5, 7.5, 7)], "gap_s": [648_000, 0, 43_200, 604_800],
        "weight_micro": [1_000_000, 1_000_000, 1_000_000, 0], "seen_item_ids": ["x", "y"], "n_interactions": 4,
        "n_7d": 1, "n_30d": 4, "n_90d": 4, "attributes": "{}", "wishes": None, "social_item_ids": None, "contexts": None,
        "texts": None, "run_id": "r",
    }]  # fmt: skip
    # both latest events are 7 whole days old: floor(1e6 * 2^(-7/7.5)), once a user although y was met twice
    assert [(r["item_id"], r["popularity_micro"], r["n_users"], r["n_interactions"]) for r in made_items] == [
        ("x", 523_647, 1, 2), ("y", 523_647, 1, 2), ("z", 0, 0, 0),
    ]  # fmt: skip
    assert made_items[0]["text_sha256"] == hashlib.sha256(b"T. p, q. long").hexdigest()


def wish(user, said, value, at, field="category", late=timedelta(0), back=None, row_hash=None):
    return {"user_id": user, "wish": said, "field": field, "value": value, "wished_at": at, "withdrawn_at": back, "available_at": at + late,
            "source": "s", "row_hash": row_hash or hashlib.sha256(f"{user}{said}{value}{at}{late}{back}".encode()).hexdigest()}  # fmt: skip


def asked(spark, rows, now=NOW):
    made = rows_of("silver.wishes", asof.wishes(frame(spark, "silver.wishes", rows), now), "row_hash")
    return sorted((r["user_id"], r["wish"], r["field"], r["value"]) for r in made)


T0, HOUR = NOW - timedelta(days=5), timedelta(hours=1)


@pytest.mark.parametrize(
    ("rows", "want"),
    [
        ([wish("u", "less", "a", T0)], ["less"]),
        ([wish("u", "less", "a", T0), wish("u", "more", "a", T0 + US)], ["more"]),
        # what was delivered last counts, whenever it was asked for
        ([wish("u", "less", "a", T0, late=HOUR), wish("u", "more", "a", T0 + US)], ["less"]),
        # of what was delivered at once, the later word does, whatever its hash; of equal words, that it is taken back
        ([wish("u", "less", "a", T0, late=HOUR, row_hash="z"), wish("u", "more", "a", T0 + HOUR, row_hash="a")], ["more"]),
        ([wish("u", "less", "a", T0, late=HOUR, row_hash="a"), wish("u", "more", "a", T0 + HOUR, row_hash="z")], ["more"]),
        ([wish("u", "less", "a", T0, back=T0 + HOUR, row_hash="a"), wish("u", "less", "a", T0, row_hash="z")], []),
        ([wish("u", "less", "a", T0, row_hash="a"), wish("u", "more", "a", T0, row_hash="z")], ["more"]),
        # taken back a microsecond before as_of, at it, and after it
        ([wish("u", "hide", "a", T0, back=NOW - US)], []),
        ([wish("u", "hide", "a", T0, back=NOW)], ["hide"]),
        ([wish("u", "hide", "a", T0, back=NOW + HOUR)], ["hide"]),
        # taken back in a later delivery, and asked for again after that
        ([wish("u", "hide", "a", T0), wish("u", "hide", "a", T0, late=HOUR, back=T0 + HOUR)], []),
        ([wish("u", "hide", "a", T0, back=T0 + HOUR), wish("u", "more", "a", T0 + 2 * HOUR)], ["more"]),
        # the last word is taken back: the one before it stays replaced
        ([wish("u", "less", "a", T0), wish("u", "more", "a", T0 + US, back=T0 + HOUR)], []),
        # asked for, or delivered, at as_of or later
        ([wish("u", "less", "a", NOW)], []),
        ([wish("u", "less", "a", NOW - US, late=US)], []),
        ([wish("u", "less", "a", NOW - US)], ["less"]),
        ([wish("u", "less", "a", T0), wish("u", "more", "a", T0 + US, late=timedelta(days=5))], ["less"]),
        ([wish("u", "less", "a", T0), wish("u", "less", "a", T0 + US, late=timedelta(days=5), back=T0 + HOUR)], ["less"]),
    ],
)  # fmt: skip
def test_what_a_user_asks_for_as_of_a_moment(spark, rows, want):
    for order in (rows, rows[::-1]):
        assert asked(spark, order) == [("u", w, "category", "a") for w in want]


def test_wishes_of_other_users_fields_and_values_leave_each_other_alone(spark):
    rows = [wish(u, said, v, T0 + n * US, f) for n, (u, said, f, v) in enumerate(
        [("u", "hide", "item", "a"), ("u", "less", "category", "a"), ("u", "more", "category", "A"), ("v", "more", "item", "a")])]  # fmt: skip
    assert asked(spark, rows) == sorted((r["user_id"], r["wish"], r["field"], r["value"]) for r in rows)
    assert asked(spark, []) == []


def test_wishes_stand_in_the_sequences_of_users_that_are_there_and_make_no_other_row(spark):
    def event(user):
        return {"user_id": user, "item_id": "x", "event_type": "v", "event_ts": T0, "available_at": T0, "weight": 1.0, "context": "{}",
                "text": None, "source": "s", "row_hash": user}  # fmt: skip

    people = [{"user_id": "cold", "available_at": T0, "withdrawn_at": None, "attributes": "{}", "source": "s", "row_hash": "c"}]
    words = [*NASTY[1:], "\uffff", "a=b c"]
    wishes = [wish("a", said, v, T0 + US, f) for said in ("more", "hide") for f, v in [("item", "x"), *(("farbe ü", w) for w in words)]]
    wishes += [wish("a", "less", v, T0, "category") for v in words] + [wish("cold", "hide", "x", T0, "item"), wish("nobody", "hide", "x", T0, "item")]
    seen = asof.interactions(frame(spark, "silver.interactions", [event("a"), event("b")]), NOW)
    known = asof.users(frame(spark, "silver.users", people), NOW, everyone=True)

    def made(rows):
        held = None if rows is None else asof.wishes(frame(spark, "silver.wishes", rows), NOW)
        return rows_of("gold.user_sequences", sequences.user_sequences(seen, known, DAY, NOW, LENGTH, "r", held), "user_id")

    got = made(wishes)
    held = {(r["field"], r["value"]): r for r in sorted(newest([w for w in wishes if w["user_id"] == "a"], "row_hash"), key=lambda r: (r["available_at"], r["row_hash"]))}
    want = sorted((f"{r['wish']} {f}={v}" for (f, v), r in held.items()), key=str.encode)
    assert {r["user_id"]: r["wishes"] for r in got} == {"a": want, "b": None, "cold": ["hide item=x"]}
    assert len(want) == 1 + 2 * len(words)
    # without them the rows are what they were, and their hash too
    before = made(None)
    assert before == made([]) == [r | {"wishes": None} for r in got]
    t = schema.table("gold.user_sequences")
    hashes = [content_hash(pa.Table.from_pylist(rows, t.arrow), t.name) for rows in (before, made([]), got)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(("seed", "depth", "days"), [(0, 3, 30), (1, 50, 7), (2, 1, 400)])
def test_what_those_whom_a_user_is_linked_to_had_lately_by_a_plain_count(spark, seed, depth, days):
    rng = random.Random(seed)
    people = ["\ue000", "\uffff", "😀", *(f"u{n}" for n in range(8))]
    items = ["\ue000", "\uffff", "😀", *(f"i{n}" for n in range(6))]
    edge = NOW - timedelta(days=days)
    moments = [edge - US, edge, edge + US, NOW - US, NOW, NOW - timedelta(hours=3), NOW - timedelta(days=2)]
    events = [{"user_id": rng.choice(people), "item_id": rng.choice(items), "event_type": rng.choice("vb"), "event_ts": rng.choice(moments),
               "weight": 1.0, "context": "{}", "text": None, "source": "s", "row_hash": str(n)} for n in range(90)]  # fmt: skip
    events = [e | {"available_at": e["event_ts"]} for e in events]
    edges = [{"kind": rng.choice(["user", "user", "user", "item"]), "subject_id": rng.choice([*people, "alone"]), "relation": rng.choice(["follows", "friend"]),
              "object_id": rng.choice(people), "available_at": rng.choice([NOW - US, NOW - US, NOW]), "source": "s", "row_hash": str(n)} for n in range(40)]  # fmt: skip
    seen = asof.interactions(frame(spark, "silver.interactions", events), NOW)
    known = asof.users(frame(spark, "silver.users", []), NOW, everyone=True)
    linked = asof.edges(frame(spark, "silver.relations", edges), NOW)
    made = sequences.social(seen, linked, NOW, {"social_days": days, "depth": depth})
    got = {r["user_id"]: r["social_item_ids"] for r in rows_of("gold.user_sequences", sequences.user_sequences(seen, known, DAY, NOW, LENGTH, "r", None, made), "user_id")}
    lately = [e for e in events if edge <= e["event_ts"] < NOW]
    friends = {(e["subject_id"], e["object_id"]) for e in edges if e["kind"] == "user" and e["available_at"] < NOW}
    want = {}
    for user in {e["user_id"] for e in events if e["event_ts"] < NOW}:
        had = [e for e in lately if (user, e["user_id"]) in friends]
        key = {i: (len({e["user_id"] for e in had if e["item_id"] == i}), max(us(e["event_ts"]) for e in had if e["item_id"] == i)) for i in {e["item_id"] for e in had}}
        want[user] = sorted(key, key=lambda i: (-key[i][0], -key[i][1], i.encode()))[:depth] or None
    assert got == want
    assert any(want.values())


def test_a_night_whose_model_takes_texts_apart_carries_their_keys_and_every_picture(spark):
    item = {"available_at": EPOCH, "valid_from": EPOCH, "withdrawn_at": None, "categories": ["p"], "attributes": "{}", "image": None,
            "image_sha256": "a", "audio": None, "audio_sha256": None, "source": "s"}  # fmt: skip
    items = [item | {"item_id": i, "row_hash": i, "title": "T", "text": text, "images_sha256": images}
             for i, text, images in (("x", "long", ["a", None, "b"]), ("y", None, None))]  # fmt: skip
    offered = asof.items(frame(spark, "silver.items", items), NOW)
    seen = asof.interactions(frame(spark, "silver.interactions", []), NOW)
    apart, joined = (rows_of("gold.item_features", windows.item_features(seen, offered, DAY, NOW, HALF_LIFE, "r", how), "item_id")
                     for how in ("separate", "joined"))  # fmt: skip
    key = [hashlib.sha256(t).hexdigest() for t in (b"T. p", b"long")]
    assert [r["texts_sha256"] for r in apart] == [key, None]
    assert [r["images_sha256"] for r in apart] == [["a", None, "b"], None]
    assert [r | {"texts_sha256": None} for r in apart] == joined


def test_empty_tables_give_empty_features(spark):
    assert build(spark, [], [], []) == ([], [])


def test_popularity_fades_to_nothing_and_never_grows(spark):
    at = [NOW - timedelta(days=d) for d in range(0, 400, 8)]
    interactions = [
        {"user_id": "u", "item_id": f"{i:03d}", "event_type": "v", "event_ts": t - US, "available_at": t - US,
         "weight": 1.0, "context": "{}", "text": None, "source": "s", "row_hash": str(i)} for i, t in enumerate(at)
    ]  # fmt: skip
    items = [
        {"item_id": r["item_id"], "available_at": EPOCH, "valid_from": EPOCH, "withdrawn_at": None, "title": "",
         "text": None, "categories": [], "attributes": "{}", "image": None, "image_sha256": None, "audio": None,
         "audio_sha256": None, "source": "s", "row_hash": r["row_hash"]} for r in interactions
    ]  # fmt: skip
    found = [r["popularity_micro"] for r in build(spark, interactions, items, [])[1]]
    assert found[0] == 1_000_000
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0


def test_engine_and_python_agree_on_the_text_of_an_item(spark):
    rng = random.Random(7)
    rows = [
        {"title": t, "categories": c, "text": x}
        for t in (None, *NASTY)
        for c in (None, [], [""], [None, "a"])
        for x in (None, "")
    ]
    rows += [{"title": rng.choice([None, *NASTY]), "categories": rng.choices([None, *NASTY], k=rng.randrange(5)),
              "text": rng.choice([None, *NASTY, "x" * 100_000])} for _ in range(300)]  # fmt: skip
    kinds = pa.schema([("title", pa.string()), ("categories", pa.list_(pa.string())), ("text", pa.string())])
    df = spark.createDataFrame(pa.Table.from_pylist(rows, schema=kinds))
    text = windows._text()
    made = df.select(text.alias("made"), F.sha2(text, 256).alias("key")).toArrow()
    want = [windows.content_text(**row) for row in rows]
    assert made["made"].to_pylist() == want
    assert made["key"].to_pylist() == [text_key(t) for t in want]
    assert None in want
    assert "" not in want
    fields = df.select(windows._fields().alias("keys")).toArrow()["keys"].to_pylist()
    apart = [windows.fields_of(**row) for row in rows]
    assert fields == [[text_key(t) for t in ts] or None for ts in apart]
    # one field alone is the whole text: its key stands in the other column
    assert all(whole in (head, text) for whole, ts, (head, text) in zip(want, apart, ((windows.content_text(r["title"], r["categories"], None), r["text"] or None) for r in rows), strict=True) if not ts)
    assert 20 < sum(map(bool, apart)) < len(rows)


@pytest.mark.films
def test_every_rating_of_the_films_is_counted_once(spark):
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("TEST_DATA_ROOT", beside)) / "movielens-small" / "ratings.csv"
    if not path.exists():
        pytest.skip(f"the films are not at {path}")
    ratings = pyarrow.csv.read_csv(path)
    ts = pa.array([t * 1_000_000 for t in ratings["timestamp"].to_pylist()], pa.timestamp("us", tz="UTC"))
    n = ratings.num_rows
    table = pa.table({
        "user_id": ratings["userId"].cast("string"), "item_id": ratings["movieId"].cast("string"),
        "event_type": ["rating"] * n, "event_ts": ts, "available_at": ts, "weight": ratings["rating"].cast("double"),
        "context": ["{}"] * n, "text": pa.nulls(n, "string"), "source": ["s"] * n,
        "row_hash": [f"{i:08d}" for i in range(n)],
    })  # fmt: skip
    ids = sorted(set(table["item_id"].to_pylist()))
    items = [{"item_id": i, "available_at": EPOCH, "valid_from": EPOCH, "withdrawn_at": None, "title": i, "text": None,
              "categories": [], "attributes": "{}", "image": None, "image_sha256": None, "audio": None,
              "audio_sha256": None, "source": "s", "row_hash": i} for i in ids]  # fmt: skip
    seen = asof.interactions(spark.createDataFrame(table), NOW)
    offered = asof.items(frame(spark, "silver.items", items), NOW)
    known = asof.users(frame(spark, "silver.users", []), NOW, everyone=True)
    made = sequences.user_sequences(seen, known, DAY, NOW, 50, "r").toArrow()
    about = windows.item_features(seen, offered, DAY, NOW, 180.0, "r").toArrow()
    assert made.num_rows == 610
    assert sum(made["n_interactions"].to_pylist()) == sum(about["n_interactions"].to_pylist()) == n

"""What users are drawn to, against naive Python, on fuzzed shops and on one that is worked out by hand."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest

from mmrec import schema
from mmrec.features import asof
from mmrec.features.profiles import user_profiles

DAY, NOW = date(2026, 3, 1), datetime(2026, 3, 1, tzinfo=UTC)
Row = dict[str, Any]


def frame(spark: Any, name: str, rows: list[Row]) -> Any:
    t = schema.table(name)
    blank = {c.name: None for c in t.columns}
    filled = [blank | {"available_at": NOW - timedelta(days=9), "row_hash": str(n), "source": "shop"} | r for n, r in enumerate(rows)]
    return spark.createDataFrame(pa.Table.from_pylist(filled, schema=t.arrow)) if rows else spark.createDataFrame([], t.ddl)


def event(user: str, item: str, n: int) -> Row:
    return {"user_id": user, "item_id": item, "event_type": "view", "event_ts": NOW - timedelta(hours=n + 1), "weight": 1.0, "context": "{}"}


def item(name: str, *categories: str | None) -> Row:
    return {"item_id": name, "valid_from": NOW - timedelta(days=99), "title": name, "categories": list(categories), "attributes": "{}"}


def made(spark: Any, events: list[Row], items: list[Row], users: list[Row] | None = None, links: list[tuple[str, str]] = (), most: int = 3) -> list[Row]:
    people = users or [{"user_id": u, "attributes": "{}"} for u in {e["user_id"] for e in events}]
    known = [{"kind": "item", "subject_id": i, "relation": "maker", "object_id": m} for i, m in links]
    found = user_profiles(
        frame(spark, "silver.interactions", events), asof.users(frame(spark, "silver.users", people), NOW, everyone=True),
        asof.items(frame(spark, "silver.items", items), NOW, on_offer=False), DAY, most, "run",
        asof.entities(frame(spark, "silver.relations", known), NOW) if links else None,
    )  # fmt: skip
    rows = found.toArrow()
    assert rows.schema.names == [c.name for c in schema.table("gold.user_profiles").columns]
    return sorted(rows.to_pylist(), key=lambda r: r["user_id"])


def naive(events: list[Row], items: list[Row], left: set[str], links: list[tuple[str, str]], most: int) -> dict[str, list[tuple[str, int, int]]]:
    labels = {i["item_id"]: {f"category={c}" for c in i["categories"] if c is not None} for i in items}
    for i, maker in links:
        labels.setdefault(i, set()).add(f"maker={maker}") if i in labels else None
    events = [e for e in events if e["user_id"] not in left]
    everybody = Counter(label for e in events for label in labels.get(e["item_id"], ()))
    found = {}
    for user in {e["user_id"] for e in events}:
        mine = [e for e in events if e["user_id"] == user]
        own = Counter(label for e in mine for label in labels.get(e["item_id"], ()))
        rows = []
        for label, n in own.items():
            lift = Fraction(n * len(events) + 10 * everybody[label], (len(mine) + 10) * everybody[label])
            micro = int(1e6 * float(lift))
            if n >= 3 and micro >= 1_200_000:
                rows.append((label, n, micro))
        found[user] = sorted(rows, key=lambda r: (-r[2], -r[1], r[0]))[:most]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_interests_are_those_that_naive_python_finds(spark: Any, seed: int) -> None:
    rng = random.Random(seed)
    kinds = ["a", "b", "é", "😀", "\uffff", "c", None]
    items = [item(f"i{n}", *rng.choices(kinds, k=rng.randrange(4))) for n in range(30)]
    links = [(f"i{rng.randrange(33)}", f"m{rng.randrange(5)}") for _ in range(25)] if seed % 2 else []
    events = [event(f"u{rng.randrange(12)}", f"i{min(rng.randrange(34), rng.randrange(34))}", n) for n in range(500)]
    left = {"u1", "u5"}
    users = [{"user_id": f"u{n}", "attributes": "{}", "withdrawn_at": NOW - timedelta(days=1) if f"u{n}" in left else None} for n in range(9)]
    got = made(spark, events, items, users, links)
    want = {r["user_id"]: [] for r in users if r["user_id"] not in left} | naive(events, items, left, sorted(set(links)), 3)
    assert {r["user_id"]: list(zip(r["interests"], r["events"], r["lifts_micro"], strict=True)) for r in got} == want
    assert sum(map(bool, want.values())) > 5
    whole = Counter(e["user_id"] for e in events)
    assert all(r["n_interactions"] == whole[r["user_id"]] for r in got)


def test_a_user_of_one_taste_is_drawn_to_it_and_the_lift_is_the_one_worked_out_by_hand(spark: Any) -> None:
    """20 events, of which 5 are on tea: four of ann's six. (4 * 20 + 10 * 5) / ((6 + 10) * 5) = 1.625."""
    items = [item("tea", "tea"), item("mug", "mugs")]
    events = [event("ann", "tea", n) for n in range(4)] + [event("ann", "mug", n) for n in range(4, 6)]
    events += [event("bob", "tea", 7)] + [event("bob", "mug", n) for n in range(8, 21)]
    ann, bob = made(spark, events, items)
    assert (bob["interests"], bob["n_interactions"]) == ([], 14)
    assert (ann["user_id"], ann["interests"], ann["events"], ann["lifts_micro"]) == ("ann", ["category=tea"], [4], [1_625_000])


def test_two_events_make_no_interest_and_a_shop_without_labels_has_none(spark: Any) -> None:
    items = [item("tea", "tea"), item("mug")]
    events = [event("ann", "tea", n) for n in range(2)] + [event("bob", "mug", n) for n in range(2, 40)]
    for known in (items, [item("mug")]):
        rows = made(spark, events, known, [{"user_id": u, "attributes": "{}"} for u in ("ann", "cleo")])
        assert [(r["user_id"], r["interests"], r["events"], r["lifts_micro"], r["n_interactions"]) for r in rows] == [("ann", [], [], [], 2), ("bob", [], [], [], 38), ("cleo", [], [], [], 0)]

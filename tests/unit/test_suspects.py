"""Suspects against naive Python that compares all with all; bots planted in the built-in world; what may change nothing."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec import schema
from mmrec.config import Config, NightConfig, SuspectsConfig, TrainConfig
from mmrec.context import Night
from mmrec.dataset import dataset
from mmrec.features import asof, suspects
from mmrec.lake import commit
from mmrec.lake.session import session
from mmrec.lake.store import Lake
from mmrec.worlds.builtin import World
from mmrec.worlds.state import State

DAY, NOW = date(2026, 3, 2), datetime(2026, 3, 2, tzinfo=UTC)
HOUR, MINUTE, US = timedelta(hours=1), timedelta(minutes=1), timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SMALL = {"hour": 3, "day": 4, "percentile": 70, "factor": 2, "burst_users": 3, "burst_minutes": 10, "copy_users": 3, "copy_items": 4, "copy_share": 60}


@pytest.fixture(scope="module")
def local(engine: str) -> Any:
    """A session for tests that run on one engine; the loops and the planted bots are compared on both."""
    return session(engine)


def event(user: str, item: str, at: datetime, **more: Any) -> dict[str, Any]:
    row = {"user_id": user, "item_id": item, "event_type": "view", "event_ts": at, "available_at": at, "weight": 1.0, "context": "{}",
           "text": None, "source": "s"} | more  # fmt: skip
    return row | {"row_hash": more.get("row_hash", f"{user}|{item}|{at}|{row['available_at']}")}


def found(spark: Any, rows: list[dict[str, Any]], bounds: dict[str, int], now: datetime = NOW) -> list[dict[str, Any]]:
    """Rows of ops.suspects in key order, of the schema's names and types."""
    t = schema.table("silver.interactions")
    frame = spark.createDataFrame(pa.Table.from_pylist(rows, t.arrow)) if rows else spark.createDataFrame([], t.ddl)
    made = suspects.suspects(asof.interactions(frame, now), bounds, DAY, "r").toArrow()
    assert [(f.name, f.type) for f in made.schema] == [(f.name, f.type) for f in schema.table("ops.suspects").arrow]
    return sorted(made.to_pylist(), key=lambda r: (r["user_id"], r["kind"]))


def naive(rows: list[dict[str, Any]], bounds: dict[str, int], now: datetime = NOW) -> list[dict[str, Any]]:
    """The definition, by loops over all users and all pairs of users."""
    seen = {(r["user_id"], r["item_id"], r["event_type"], r["event_ts"]) for r in rows if max(r["event_ts"], r["available_at"]) < now}
    events: dict[str, list[tuple[datetime, str]]] = defaultdict(list)
    for user, item, _, at in seen:
        events[user].append((at, item))
    items = {user: {i for _, i in own} for user, own in events.items()}
    out: dict[tuple[str, str], dict[str, Any]] = {}

    def flag(user: str, kind: str, reason: str, value: int, bound: int) -> None:
        row = {"run_date": DAY, "user_id": user, "kind": kind, "reason": reason, "value": value, "bound": bound, "events": len(events[user]), "run_id": "r"}
        out.setdefault((user, kind), row)

    for name, width in (("hour", HOUR), ("day", timedelta(days=1))):
        busiest = {u: max(Counter((at - EPOCH) // width for at, _ in own).values()) for u, own in events.items()}
        usual = next((v for v in sorted(busiest.values()) if sum(b <= v for b in busiest.values()) * 100 >= bounds["percentile"] * len(busiest)), 0)
        most = max(bounds[name], bounds["factor"] * usual)
        for user, value in busiest.items():
            if value > most:
                flag(user, "rate", f"{value} events in one {name}; at most {most} are usual", value, most)
    first = {u: min(at for at, _ in own) for u, own in events.items() if len(items[u]) == 1}
    hit: dict[str, set[str]] = defaultdict(set)
    for user, at in first.items():
        (item,) = items[user]
        near = {v for v, then in first.items() if items[v] == {item} and timedelta(0) <= then - at <= bounds["burst_minutes"] * MINUTE}
        if len(near) >= bounds["burst_users"]:
            hit[item] |= near
    for item, users in hit.items():
        for user in users:
            reason = f"{len(users)} users, who did nothing else, came to one item within {bounds['burst_minutes']} minutes of each other: {item}"
            flag(user, "burst", reason[:200], len(users), bounds["burst_users"])
    catalogue = len(set().union(*items.values()))
    sets = {u: s for u, s in items.items() if len(s) >= bounds["copy_items"] and 2 * len(s) <= catalogue}
    for user, own in sets.items():
        alike = sum(len(own & s) * 100 >= len(own | s) * bounds["copy_share"] for s in sets.values())  # itself among them
        if alike >= bounds["copy_users"]:
            flag(user, "copycat", f"{alike} users have nearly the same items, this one {len(own)} of them", alike, bounds["copy_users"])
    return [out[k] for k in sorted(out)]


NAMES = ["a", "b", "c", "\uffff", "😀", "e\u0301", "é", "12:3", "1:", "'"]


def shop(seed: int) -> list[dict[str, Any]]:
    """Some 100 users on few items, so that bounds are met, missed and just met; late rows, corrections, odd names, old times."""
    rng = random.Random(seed)
    items = [*NAMES, *(f"i{n}" for n in range(30))]
    rows = []
    start = rng.choice([NOW - timedelta(days=5), datetime(1969, 12, 30, 22, tzinfo=UTC)])

    def moment() -> datetime:
        return start + rng.choice([timedelta(hours=rng.randrange(70)), timedelta(seconds=rng.randrange(250_000)), 10 * MINUTE * rng.randrange(30)])

    for u in range(40):  # people, some of them busy
        rows += [event(f"u{u}", rng.choice(items), moment()) for _ in range(rng.choice([1, 3, 9]))]
    for ring in range(8):  # rings around a list, each with something of its own, or without something
        core = rng.sample(items, rng.randrange(4, 16))
        for u in range(rng.randrange(2, 7)):
            own = set(core) - set(rng.sample(core, rng.choice([0, 0, 1, 2]))) | set(rng.sample(items, rng.choice([0, 0, 1, 2])))
            rows += [event(f"ring{ring}-{u}", i, moment()) for i in sorted(own)]
    for n in range(6):  # crowds at one item, near each other or not
        at, item = moment(), rng.choice(items)
        rows += [event(f"crowd{n}-{u}", item, at + rng.choice([0, 5, 10, 11]) * MINUTE + rng.choice([0, 1]) * US) for u in range(rng.randrange(2, 6))]
    for n in range(4):  # bursts of events across the edge of an hour
        at = moment()
        rows += [event(f"busy{n}", rng.choice(items), at + MINUTE * 7 * k) for k in range(12)]
    for row in rng.sample(rows, len(rows) // 5):  # corrections, and what is not known yet
        rows.append(event(row["user_id"], row["item_id"], row["event_ts"], available_at=row["event_ts"] + HOUR))
        rows.append(event(row["user_id"], rng.choice(items), row["event_ts"], available_at=NOW + rng.choice([0, 1]) * US))
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_suspects_are_those_of_loops_over_all_pairs_in_any_order_of_arrival(spark: Any, seed: int) -> None:
    rows = shop(seed)
    want = naive(rows, SMALL)
    assert found(spark, rows, SMALL) == want
    if seed == 0:
        assert found(spark, random.Random(seed).sample(rows, len(rows)), SMALL) == want


def test_the_fuzzed_shops_reach_what_they_are_for() -> None:
    kinds = Counter(r["kind"] for seed in range(4) for r in naive(shop(seed), SMALL))
    assert min(kinds[k] for k in ("rate", "burst", "copycat")) >= 8
    assert sum(len({r["user_id"] for r in shop(seed)}) for seed in range(4)) > 2 * sum(kinds.values())


WHO, WHAT = st.sampled_from(["u", "v", "w", "x", "y"]), st.sampled_from([*NAMES, "i", "j"])
WHEN = st.builds(lambda m, u: NOW - timedelta(days=1) + m * 5 * MINUTE + u * US, st.integers(0, 30), st.integers(0, 1))


@settings(deadline=None, max_examples=min(40, settings().max_examples))  # fewer in the profile of an engine that is slow
@given(st.lists(st.builds(event, WHO, WHAT, WHEN), max_size=40), st.fixed_dictionaries({
    "hour": st.integers(1, 3), "day": st.integers(1, 4), "percentile": st.sampled_from([50, 80, 100]), "factor": st.integers(1, 2), "burst_users": st.integers(2, 3),
    "burst_minutes": st.integers(5, 20), "copy_users": st.integers(2, 3), "copy_items": st.just(4), "copy_share": st.sampled_from([60, 75, 100])}))  # fmt: skip
def test_suspects_of_any_few_rows_are_those_of_a_loop(local: Any, rows: list[dict[str, Any]], bounds: dict[str, int]) -> None:
    assert found(local, rows, bounds) == naive(rows, bounds)


def test_planted_future_rows_change_nothing(local: Any) -> None:
    rows = shop(3)
    bots = [event(f"bot{n}", "a", NOW - HOUR, available_at=NOW) for n in range(9)] + [event("u1", f"i{n}", NOW + US) for n in range(20)]
    assert found(local, rows + bots, SMALL) == found(local, rows, SMALL)
    later = NOW + HOUR
    assert found(local, rows + bots, SMALL, later) != found(local, rows, SMALL, later)  # the plant is able to count


def test_a_ring_larger_than_a_block_is_found_whole_and_one_among_many_popular_sets_too(local: Any) -> None:
    rng = random.Random(5)
    core = [f"c{n}" for n in range(20)]
    rows = []
    for u in range(3 * suspects._BLOCK):  # all share their two rarest items, none is another's equal
        own = rng.sample(core[2:], 17) + core[:2] + [f"own{u}"]
        rows += [event(f"bot{u:03d}", i, NOW - timedelta(days=2) + k * HOUR) for k, i in enumerate(own)]
    rows += [event(f"p{n}", f"x{n % 90}", NOW - timedelta(days=3)) for n in range(400)]
    bounds = SuspectsConfig(copy_share=80).model_dump()
    assert {r["user_id"] for r in found(local, rows, bounds)} == {f"bot{u:03d}" for u in range(3 * suspects._BLOCK)}


@pytest.fixture(scope="module")
def world() -> list[dict[str, Any]]:
    """Sixty days of the tiny built-in world, nothing planted, as silver rows."""
    built = World(0, "tiny")
    state = State.empty(built.size.users)
    rows = []
    for n in range(built.history_days):
        for r in built.simulate(built.first_day + timedelta(days=n), state, None)["interactions"]:
            at, come = (datetime.fromisoformat(r[c]) for c in ("event_ts", "available_at"))
            rows.append(event(r["user_id"], r["item_id"], at, event_type=r["event_type"], available_at=come, row_hash=f"h{len(rows)}"))
    return rows


def test_a_world_of_people_has_at_most_one_suspect_in_a_hundred(local: Any, world: list[dict[str, Any]]) -> None:
    people = len({r["user_id"] for r in world})
    got = found(local, world, SuspectsConfig().model_dump())
    print(f"{len(got)} suspects of {people} people, {len(world)} events")
    assert people == 60
    assert len({r["user_id"] for r in got}) <= people // 100


def test_planted_bots_of_each_kind_are_found_in_the_built_in_world_and_nobody_else(spark: Any, world: list[dict[str, Any]]) -> None:
    rng = random.Random(1)
    items = sorted({r["item_id"] for r in world})
    at = NOW - timedelta(days=4)
    bots = {
        "rate": [event("bot-hour", rng.choice(items), at + n * timedelta(seconds=8)) for n in range(450)]
        + [event("bot-day", rng.choice(items), at + n * timedelta(seconds=50)) for n in range(1600)],
        "burst": [event(f"bot-burst{u}", items[7], at + u * MINUTE) for u in range(25)],
        "copycat": [event(f"bot-copy{u}", i, at + u * HOUR + n * MINUTE) for u in range(6) for n, i in enumerate(items[20:40] if u else items[20:39])],
    }  # fmt: skip
    got = found(spark, [*world, *(r for rows in bots.values() for r in rows)], SuspectsConfig().model_dump())
    assert {(r["user_id"], r["kind"]) for r in got} == {(r["user_id"], kind) for kind, rows in bots.items() for r in rows}
    assert all(r["events"] == len({(e["item_id"], e["event_ts"]) for e in bots[r["kind"]] if e["user_id"] == r["user_id"]}) for r in got)


def test_what_suspects_did_is_left_out_and_nothing_else(local: Any, world: list[dict[str, Any]]) -> None:
    bots = [event(f"bot{u}", "i00007", NOW - HOUR + u * US) for u in range(30)]
    frame = local.createDataFrame(pa.Table.from_pylist(world + bots, schema.table("silver.interactions").arrow))
    seen = asof.interactions(frame, NOW)
    left = suspects.without(seen.toArrow(), suspects.suspects(seen, SuspectsConfig().model_dump(), DAY, "r").toArrow())
    people = seen.where(~seen.user_id.startswith("bot")).toArrow()
    assert left.sort_by("row_hash").to_pylist() == people.sort_by("row_hash").to_pylist()
    assert left.num_rows + len(bots) == seen.count()
    assert suspects.without(left, left.slice(0, 0)).equals(left)


def test_who_have_had_most_of_a_small_shop_are_no_copy_cats_but_who_copied_a_few_items_are(local: Any) -> None:
    bounds = SuspectsConfig(copy_items=4).model_dump()
    rows = [event(f"u{u}", f"i{n}", NOW - HOUR) for u in range(6) for n in range(6)]
    others = [event("v", f"i{n}", NOW - HOUR) for n in range(6, 11)]
    assert found(local, rows + others, bounds) == []
    got = found(local, [*rows, *others, event("v", "i11", NOW - HOUR)], bounds)  # the twelfth item: six are half of them
    assert [(r["user_id"], r["value"], r["bound"], r["events"]) for r in got] == [(f"u{u}", 6, 5, 6) for u in range(6)]
    assert got[0]["reason"] == "6 users have nearly the same items, this one 6 of them"


@pytest.mark.parametrize("exclude", [False, True])
def test_training_leaves_suspects_out_when_it_is_told_to_and_says_how_many(local: Any, engine: str, tmp_path: Path, exclude: bool) -> None:
    people = [event(f"u{n % 7}", f"i{n}", NOW - timedelta(days=3) + n * HOUR) for n in range(40)]
    bots = [event(f"bot{n}", "i7", NOW - timedelta(days=2) + n * MINUTE) for n in range(25)] + [event("bot0", "i7", NOW - HOUR)]
    late = [event(f"bot{n}", "i8", NOW + HOUR) for n in range(25)]  # what comes later clears nobody today
    items = [{"item_id": f"i{n}", "available_at": EPOCH, "valid_from": EPOCH, "withdrawn_at": None, "title": "", "text": None, "categories": [], "attributes": "{}",
              "image": None, "image_sha256": None, "audio": None, "audio_sha256": None, "source": "s", "row_hash": f"i{n}"} for n in range(40)]  # fmt: skip
    lake = Lake(tmp_path / "lake")
    lake.create_all()
    for name, rows in (("silver.interactions", people + bots + late), ("silver.items", items)):
        commit.write(lake, name, pa.Table.from_pylist(rows, schema.table(name).arrow), run_id="r", pinned=commit.fence(lake, name))
    bare = NightConfig(text="", image="", audio="")
    data = dataset(Night(Config(home=tmp_path, engine=engine, night=bare, train=TrainConfig(exclude_suspects=exclude)), DAY))
    users = set(data.log.user_ids)
    assert {u for u in users if u.startswith("u")} == {f"u{n}" for n in range(7)}
    if exclude:
        assert data.left_out == {"suspects": 25, "interactions": 26}
        assert len(users) == 7
    else:
        assert data.left_out == {}
        assert len(data.log.user) == len(people) + len(bots)


def test_no_events_no_suspects(local: Any) -> None:
    assert found(local, [], SMALL) == []

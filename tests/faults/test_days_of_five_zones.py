"""Days of 23, 24 and 25 hours, of half an hour less, and one that never was: each run_date once, each instant in one.

The oracle is Arrow's own calendar, which shares no code with Python's. The clock is never asked: what it shows, early or
late by a day, changes nothing.
"""

from __future__ import annotations

import ast
from bisect import bisect_right
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mmrec
from mmrec.dates import airflow_range, as_of, days, micros, run_date_of
from mmrec.errors import InputError
from mmrec.lake.content import content_hash
from mmrec.lake.store import Lake
from mmrec.worlds.files import FilesSource
from mmrec.worlds.ingest import ingest

# zone -> two years of it, and how long its days are, in minutes
YEARS: dict[str, tuple[date, date, set[int]]] = {
    "UTC": (date(2025, 1, 1), date(2026, 12, 31), {1440}),
    "Europe/Berlin": (date(2025, 1, 1), date(2026, 12, 31), {1380, 1440, 1500}),
    "America/New_York": (date(2025, 1, 1), date(2026, 12, 31), {1380, 1440, 1500}),
    "Australia/Lord_Howe": (date(2025, 1, 1), date(2026, 12, 31), {1410, 1440, 1470}),
    "Pacific/Apia": (date(2011, 1, 1), date(2012, 12, 31), {1380, 1440, 1500}),  # had no 2011-12-30
}
SKIPPED = {"Pacific/Apia": date(2011, 12, 30)}
# beside them: midnight itself is jumped over, or the day before has its last hour twice
MIDNIGHTS = {"America/Sao_Paulo": (date(2017, 1, 1), date(2018, 12, 31)), "Africa/Cairo": (date(2024, 1, 1), date(2025, 12, 31)),
             "America/Havana": (date(2024, 1, 1), date(2025, 12, 31)), "Pacific/Kwajalein": (date(1993, 1, 1), date(1994, 12, 31))}  # fmt: skip
SPANS = {z: (a, b) for z, (a, b, _) in YEARS.items()} | MIDNIGHTS
STEP = 15  # minutes: every change of every zone is at a quarter of an hour


@cache
def walls(zone: str) -> tuple[list[datetime], list[datetime]]:
    """Every quarter of an hour of the two years, as UTC and as the shop's wall shows it, the latter by Arrow."""
    first, last = SPANS[zone]
    begin = datetime(first.year, 1, 1, tzinfo=UTC) - timedelta(days=2)
    n = ((last - first).days + 5) * 24 * 60 // STEP
    moments = [begin + timedelta(minutes=STEP * i) for i in range(n)]
    local = pc.local_timestamp(pa.array(moments, pa.timestamp("us", tz=zone)))
    shown = local.to_pylist()
    inside = [i for i, wall in enumerate(shown) if first <= wall.date() <= last]
    return [moments[i] for i in inside], [shown[i] for i in inside]


@cache
def starts(zone: str) -> list[datetime]:
    """as_of of each run_date of the two years, and of the day after."""
    first, last = SPANS[zone]
    return [as_of(day, zone) for day in [*days(first, last, zone), last + timedelta(days=1)]]


@pytest.mark.parametrize("zone", SPANS)
def test_the_days_of_two_years_follow_each_other_without_gap_or_overlap(zone: str) -> None:
    begins = starts(zone)
    lengths = [(b - a) // timedelta(minutes=1) for a, b in pairwise(begins)]
    assert min(lengths) > 0  # strictly later, each of them
    if zone in YEARS:
        assert set(lengths) == YEARS[zone][2]
        changes = {"UTC": 0}.get(zone, 4)
        assert sum(n != 1440 for n in lengths) == changes
    assert timedelta(minutes=sum(lengths)) == begins[-1] - begins[0]
    assert all(b.tzinfo is UTC for b in begins)


@pytest.mark.parametrize("zone", SPANS)
def test_every_quarter_of_an_hour_belongs_to_the_one_run_date_that_the_wall_shows(zone: str) -> None:
    begins, (moments, shown) = starts(zone), walls(zone)
    named = days(*SPANS[zone], zone)
    assert len(moments) >= 728 * 96
    for moment, wall in zip(moments, shown, strict=True):
        assert named[bisect_right(begins, moment) - 1] == wall.date(), moment
    # and no day is listed that no instant shows
    assert sorted({wall.date() for wall in shown}) == named


@pytest.mark.parametrize("zone", SPANS)
def test_a_day_begins_at_the_first_instant_that_shows_its_date(zone: str) -> None:
    first: dict[date, datetime] = {}
    for moment, wall in zip(*walls(zone), strict=True):
        first.setdefault(wall.date(), moment)
    for day, moment in first.items():
        assert as_of(day, zone) == moment
        assert run_date_of(moment, zone) == day
        assert run_date_of(moment - timedelta(microseconds=1), zone) < day


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(SPANS)), st.integers(0, 2**47), st.sampled_from([-1, 0, 1]))
@example("Europe/Berlin", 0, 0)
def test_any_microsecond_lies_in_exactly_one_day(zone: str, place: int, beside: int) -> None:
    begins = starts(zone)
    low, high = micros(begins[0]), micros(begins[-1])
    near = begins[place % (len(begins) - 1)] + timedelta(microseconds=beside)  # as often right at a border
    for at in (low + place % (high - low), micros(near)):
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)
        if begins[0] <= moment < begins[-1]:
            assert sum(a <= moment < b for a, b in pairwise(begins)) == 1


@pytest.mark.parametrize("hour", [0, 2, 3, 12, 23])
@pytest.mark.parametrize("zone", SPANS)
def test_a_schedule_of_once_a_day_at_any_hour_makes_each_run_date_exactly_once(zone: str, hour: int) -> None:
    """A clock on the wall that rings once a date, at the hour or at the first instant after it if that is jumped over."""
    rings: dict[date, datetime] = {}
    for moment, wall in zip(*walls(zone), strict=True):
        if wall.hour >= hour:
            rings.setdefault(wall.date(), moment)
    made = [run_date_of(moment, zone) for moment in sorted(rings.values())]
    assert made == days(*SPANS[zone], zone)


def test_a_day_that_a_zone_skipped_holds_no_instant_and_is_left_out_of_a_backfill() -> None:
    for zone, day in (*SKIPPED.items(), ("Pacific/Kwajalein", date(1993, 8, 21))):
        around = [day - timedelta(days=1), day, day + timedelta(days=1)]
        assert as_of(day, zone) == as_of(around[2], zone)  # the interval of it is empty
        assert days(around[0], around[2], zone) == [around[0], around[2]]
        assert days(day, day, zone) == []
        assert as_of(around[2], zone) - as_of(around[0], zone) == timedelta(days=1)
        # under a scheduler, the interval before the day after begins on the day before
        first, last = airflow_range(around[2], around[2], zone)
        assert datetime.fromisoformat(first) == as_of(around[0], zone)
        assert datetime.fromisoformat(last) < as_of(around[2], zone)
        with pytest.raises(InputError, match=f"skipped every day(.|\n)*{day}(.|\n)*--date {around[2]}"):
            airflow_range(day, day, zone)


# where content is made: what these read of a clock would be in a table, or in a hash
CONTENT = ("dates.py", "metrics.py", "features", "recommend", "models", "topk", "evaluate", "content", "lake/content.py",
           "lake/manifest.py", "lake/audit.py", "lake/past.py", "schema")  # fmt: skip
CLOCKS = {"now", "utcnow", "today", "time", "time_ns", "localtime", "gmtime", "current_timestamp", "current_date", "getdate"}


def clocks(source: str) -> list[int]:
    """Lines that ask a clock what time it is; perf counters measure, they do not tell it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
            owner = node.func.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if node.func.attr not in ("time",) or name == "time":
                found.append(node.lineno)
    return found


def test_nothing_that_makes_content_asks_the_clock() -> None:
    root = Path(mmrec.__file__).parent
    files = [f for part in CONTENT for f in ([root / part] if part.endswith(".py") else sorted((root / part).rglob("*.py")))]
    assert len(files) > 20
    asking = {str(f.relative_to(root)): n for f in files if (n := len(clocks(f.read_text())))}
    # where no ingest has left its time: there is no row either, that could be from the future
    assert asking == {"features/verdicts.py": 1}
    planted = "import time\nfrom datetime import date, datetime\ntime.time()\nF.current_date()\ndate.today()\ndatetime.now(UTC)\nx.time()\n"
    assert clocks(planted) == [3, 4, 5, 6]


@pytest.mark.parametrize("skew_hours", [-30, -1, 1, 26, 24 * 400])
def test_a_clock_that_is_wrong_when_rows_come_in_changes_no_content(tmp_path: Path, skew_hours: int) -> None:
    day = tmp_path / "shop" / "2026-03-29"
    day.mkdir(parents=True)
    stamps = ["2026-03-29T00:59:59+01:00", "2026-03-29T03:00:00+02:00", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"]
    (day / "interactions.csv").write_text("user_id,item_id,event_type,event_ts\n" + "".join(f"u,i{n},view,{t}\n" for n, t in enumerate(stamps)))
    right, hashes = datetime(2026, 3, 30, 2, tzinfo=UTC), []
    for name, now in (("right", right), ("wrong", right + timedelta(hours=skew_hours))):
        lake = Lake(tmp_path / name)
        for table in ("interactions", "items", "users", "relations", "impressions", "wishes", "files", "media"):
            lake.create(f"bronze.{table}")
        ingest(lake, FilesSource(tmp_path / "shop"), now=now)
        assert set(lake.arrow("bronze.interactions")["ingested_at"].to_pylist()) == {now}
        hashes.append(content_hash(lake.arrow("bronze.interactions"), "bronze.interactions"))
    assert hashes[0] == hashes[1]

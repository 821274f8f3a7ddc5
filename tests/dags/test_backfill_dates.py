"""The dates a backfill makes: mmrec's list against Airflow's own, over zones, hours and changes of the clock."""

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from airflow.sdk import DAG, CronDataIntervalTimetable
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.dates import airflow_range, days, run_date_of
from mmrec.errors import InputError
from tests.dags.conftest import airflow

CASES = [
    ("UTC", date(2025, 11, 10), date(2025, 11, 13)),
    ("Europe/Berlin", date(2025, 3, 27), date(2025, 4, 2)),  # the 30th has no 02:00
    ("Europe/Berlin", date(2025, 10, 24), date(2025, 10, 29)),  # the 26th has two
    ("Europe/Berlin", date(2025, 7, 1), date(2025, 7, 1)),  # 02:00 is midnight in UTC
    ("America/Sao_Paulo", date(2018, 11, 1), date(2018, 11, 7)),  # the 4th has no midnight
    ("America/Sao_Paulo", date(2018, 2, 15), date(2018, 2, 20)),  # the 17th has two last hours
    ("Asia/Tokyo", date(2025, 12, 30), date(2026, 1, 2)),
    ("Pacific/Kiritimati", date(2025, 2, 27), date(2025, 3, 2)),
    ("Pacific/Pago_Pago", date(2025, 2, 27), date(2025, 3, 2)),
]
CRONS = ["0 2 * * *", "0 0 * * *", "30 0 * * *", "59 23 * * *", "0 12 * * *"]


def made(zone: str, cron: str, start: str, end: str) -> list[date]:
    """The run_dates that Airflow's backfill makes of a range, by the code that creates them."""
    from airflow._shared.timezones.timezone import parse
    from airflow.models.backfill import _get_info_list
    from airflow.serialization.serialized_objects import DagSerialization

    dag = DAG("nightly", schedule=CronDataIntervalTimetable(cron, timezone=zone), start_date=datetime(2018, 1, 1, tzinfo=UTC))
    serialized = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    infos = _get_info_list(from_date=parse(start), to_date=parse(end), reverse=False, dag=serialized)
    return [run_date_of(i.data_interval.end, zone) for i in infos]


@pytest.mark.parametrize("cron", CRONS)
@pytest.mark.parametrize(("zone", "start", "end"), CASES)
def test_airflow_makes_exactly_the_dates_that_were_asked_for(zone: str, start: date, end: date, cron: str) -> None:
    assert made(zone, cron, *airflow_range(start, end, zone)) == days(start, end)


def test_the_naive_range_drops_the_last_day_or_gains_one_so_the_test_above_tests_something() -> None:
    start, end = date(2025, 11, 10), date(2025, 11, 13)
    asked = days(start, end)
    naive = made("UTC", "0 2 * * *", str(start), str(end))
    assert naive == [d for d in asked if d != start]  # 11, 12, 13: shifted by a day, one short
    assert made("UTC", "0 2 * * *", str(start - timedelta(days=1)), str(end)) == asked
    # the same by hand in Berlin's summer, where 02:00 is midnight in UTC
    summer = made("Europe/Berlin", "0 2 * * *", "2025-06-30", "2025-07-01")
    assert summer == [date(2025, 7, 1), date(2025, 7, 2)]
    tokyo = made("Asia/Tokyo", "0 2 * * *", "2025-06-30", "2025-07-01")
    assert tokyo == [date(2025, 7, 2)]


ZONES = ("UTC", "Europe/Berlin", "America/Sao_Paulo", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Cairo")


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ZONES), st.dates(date(2018, 2, 1), date(2025, 10, 1)), st.integers(0, 9), st.integers(0, 23), st.integers(0, 59))
def test_any_range_of_any_zone_at_any_minute_of_the_day_is_made_exactly(zone: str, start: date, more: int, hour: int, minute: int) -> None:
    end = start + timedelta(days=more)
    assert made(zone, f"{minute} {hour} * * *", *airflow_range(start, end, zone)) == days(start, end)


@settings(max_examples=80, deadline=None)
@given(st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)), st.sampled_from(ZONES))
def test_run_date_of_an_instant_is_what_a_calendar_on_the_shops_wall_shows(moment: datetime, zone: str) -> None:
    offset = ZoneInfo(zone).utcoffset(moment.astimezone(ZoneInfo(zone)))
    assert offset is not None
    assert run_date_of(moment, zone) == (moment + offset).date()


def test_a_range_that_ends_before_it_begins_and_an_unknown_zone_are_refused() -> None:
    with pytest.raises(InputError, match="ends before it begins"):
        airflow_range(date(2026, 1, 2), date(2026, 1, 1))
    with pytest.raises(InputError, match="no such time zone"):
        airflow_range(date(2026, 1, 1), date(2026, 1, 2), "Mars/Olympus")
    with pytest.raises(InputError, match="no such time zone"):
        run_date_of(datetime(2026, 1, 1, tzinfo=UTC), "Mars/Olympus")


def test_airflows_own_command_line_would_make_those_dates_of_the_shipped_dag(airflow_db: Path, bare_home: Path) -> None:
    (bare_home / "mmrec.toml").write_text("zone = 'Europe/Berlin'\n")
    env = {"MMREC_HOME": str(bare_home)}
    airflow("dags", "reserialize", **env)
    start, end = date(2026, 3, 27), date(2026, 4, 1)
    first, last = airflow_range(start, end, "Europe/Berlin")
    out = airflow("backfill", "create", "--dag-id", "nightly", "--from-date", first, "--to-date", last, "--dry-run", **env)
    logical = [datetime.fromisoformat(m) for m in re.findall(r"\| (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00)", out)]
    assert [run_date_of(m, "Europe/Berlin") + timedelta(days=1) for m in logical] == days(start, end), out

"""All date arithmetic: run_date, as_of, windows, backfill lists.

In: dates, zone names, a scheduler's instants. Out: UTC instants, dates and lists of dates.
Trade-off: intervals are half-open everywhere, `[start, end)`; a reader who thinks in closed intervals must
look twice, and nobody ever counts an instant two times.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mmrec.errors import InputError


def as_of(run_date: date, zone: str = "UTC") -> datetime:
    """First instant of `run_date` in the shop's zone, as UTC; exclusive: a night knows what came before it.

    Midnight, or where the clock jumps over it what it jumps to; where it strikes twice, the first time. A day that the
    zone skipped, when it changed sides of the date line, begins with the next one and holds no instant.
    """
    try:
        tz = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(
            "no such time zone",
            where="config: zone",
            value=zone,
            valid="an IANA name, as Europe/Berlin",
            next="edit mmrec.toml",
        ) from None
    return datetime(run_date.year, run_date.month, run_date.day, tzinfo=tz).astimezone(UTC)


def days(start: date, end: date, zone: str = "UTC") -> list[date]:
    """Every run_date of `[start, end]` that the zone did not skip, both ends included, as people name a backfill."""
    if end < start:
        raise InputError(
            "the range ends before it begins",
            where="--from/--to",
            value=f"{start} .. {end}",
            valid="from <= to",
            next=f"mmrec backfill --from {end} --to {start}",
        )
    every = [start + timedelta(days=i) for i in range((end - start).days + 1)]
    return [day for day in every if _is_day(day, zone)]


def _is_day(day: date, zone: str) -> bool:
    return run_date_of(as_of(day, zone), zone) == day


def run_date_of(interval_end: datetime, zone: str = "UTC") -> date:
    """The run_date of a scheduled run: the shop's local date at the end of its data interval."""
    as_of(date(2000, 1, 1), zone)  # names a wrong zone
    return interval_end.astimezone(ZoneInfo(zone)).date()


def airflow_range(start: date, end: date, zone: str = "UTC") -> tuple[str, str]:
    """What to give `airflow backfill create` as --from-date and --to-date, to make the run_dates of `[start, end]`.

    Airflow selects by logical date, the start of an interval, both ends included: for a run once a day that lies on
    the local day before run_date, at any hour. So: from the first instant of the day before `start` to the last second
    before `end`. Plain dates are read as midnight in UTC, which drops `end` or gains a day, by zone and hour.
    """
    wanted = days(start, end, zone)
    if not wanted:
        raise InputError(
            "the shop's zone skipped every day of the range",
            where="--from/--to",
            value=f"{start} .. {end}",
            valid=f"days that there were in {zone}",
            next=f"mmrec run --date {end + timedelta(days=1)}",
        )
    before = wanted[0] - timedelta(days=1)
    while not _is_day(before, zone):
        before -= timedelta(days=1)
    return as_of(before, zone).isoformat(), (as_of(wanted[-1], zone) - timedelta(seconds=1)).isoformat()


def parse(text: str, where: str = "--date") -> date:
    """A `YYYY-MM-DD` date, or an InputError that says where it was given."""
    try:
        if len(text) != 10 or text[4] != "-" or text[7] != "-":  # fromisoformat also reads weeks
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(
            "not a date", where=where, value=text, valid="YYYY-MM-DD", next="mmrec run --date 2026-01-31"
        ) from None


def micros(moment: datetime) -> int:
    """Microseconds UTC since 1970 of an aware instant, exact."""
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds

"""Periods follow the calendar, durations and sizes mean what they say, and cron schedules are what Airflow takes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from dateutil.relativedelta import relativedelta
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from include.policy import Period, parse_duration, parse_size
from include.policy.quantities import Unit, check_cron, parse_share, runs_on

UNITS: tuple[Unit, ...] = get_args(Unit)
LONGEST = {"hours": 876_000, "days": 36_500, "weeks": 5_200, "months": 1_200, "years": 100}

periods = st.sampled_from(UNITS).flatmap(lambda unit: st.builds(Period, st.integers(1, LONGEST[unit]), st.just(unit)))
moments = st.timedeltas(timedelta(0), timedelta(days=300 * 365)).map(lambda age: datetime(1900, 1, 1, tzinfo=UTC) + age)


@given(periods, moments)
def test_a_period_agrees_with_the_calendar_of_dateutil(period: Period, moment: datetime) -> None:
    delta = relativedelta(**{period.unit: period.count})
    assert period.after(moment) == moment + delta
    assert period.before(moment) == moment - delta


@given(periods)
def test_a_period_reads_back_what_it_writes(period: Period) -> None:
    assert Period.parse(str(period)) == period


@given(periods, periods, moments)
def test_a_period_that_is_always_shorter_ends_first(one: Period, other: Period, moment: datetime) -> None:
    if one.always_shorter_than(other):
        assert one.after(moment) < other.after(moment)
        assert not other.always_shorter_than(one)


@pytest.mark.parametrize(
    ("one", "other", "shorter"),
    [
        ("90 days", "1 year", True),
        ("27 days", "1 month", True),
        ("28 days", "1 month", False),  # February
        ("1 month", "31 days", False),  # January
        ("1 month", "32 days", True),
        ("365 days", "1 year", False),  # but for a leap year
        ("12 months", "1 year", False),
    ],
)
def test_always_shorter_means_from_any_day(one: str, other: str, shorter: bool) -> None:
    assert Period.parse(one).always_shorter_than(Period.parse(other)) is shorter


@pytest.mark.parametrize(
    ("period", "begin", "end"),
    [
        ("1 month", datetime(2026, 1, 31, tzinfo=UTC), datetime(2026, 2, 28, tzinfo=UTC)),
        ("1 year", datetime(2028, 2, 29, tzinfo=UTC), datetime(2029, 2, 28, tzinfo=UTC)),
        ("1 day", datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 3, 30, tzinfo=UTC)),
    ],
)
def test_a_day_that_a_month_lacks_is_its_last(period: str, begin: datetime, end: datetime) -> None:
    assert Period.parse(period).after(begin) == end


def test_a_moment_of_another_zone_is_counted_in_utc() -> None:
    before_the_clocks_change = datetime(2026, 3, 28, 12, tzinfo=ZoneInfo("Europe/Dublin"))
    assert Period(1, "days").after(before_the_clocks_change) == datetime(2026, 3, 29, 12, tzinfo=UTC)


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        Period(1, "days").after(datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("text", ["30", "days", "1.5 days", "-1 days", "0 days", "101 years", "3 fortnights", "", 30])
def test_what_is_no_period(text: object) -> None:
    with pytest.raises(PydanticCustomError, match="is "):
        Period.parse(text)


def test_a_period_made_in_code_is_held_to_the_same_bounds() -> None:
    with pytest.raises(ValueError, match="no period"):
        Period(0, "days")


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("1 ms", timedelta(milliseconds=1)),
        ("20 ms", timedelta(milliseconds=20)),
        ("5s", timedelta(seconds=5)),
        ("5 min", timedelta(minutes=5)),
        ("1 hour", timedelta(hours=1)),
        ("4 hours", timedelta(hours=4)),
        (timedelta(seconds=3), timedelta(seconds=3)),
    ],
)
def test_durations(text: object, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", [5, "5", "0 s", "1 day", "5 Min", "-5 s", timedelta(0), None, "9999999999 hours"])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="is "):
        parse_duration(text)


@given(st.integers(1, 10**6), st.sampled_from("KMGT"))
def test_sizes_are_decimal_without_an_i_and_binary_with_it(count: int, letter: str) -> None:
    power = 1 + "KMGT".index(letter)
    assert parse_size(f"{count} {letter}B") == count * 1000**power
    assert parse_size(f"{count}{letter}iB") == count * 2 ** (10 * power)
    assert parse_size(count) == parse_size(f"{count} B") == count


@pytest.mark.parametrize("text", ["16", "16 mb", "1.5 MB", "0 MB", 0, -1, 1.5, True, None])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="is "):
        parse_size(text)


@pytest.mark.parametrize(("text", "share"), [("90 %", 0.9), ("0.5%", 0.005), ("100 %", 1.0), (0.25, 0.25), (1.0, 1.0)])
def test_shares(text: object, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["0 %", "101 %", "90", 90, 1.5, 0.0, None])
def test_what_is_no_share(text: object) -> None:
    with pytest.raises(ValueError, match="no share"):
        parse_share(text)


@pytest.mark.parametrize(
    "schedule",
    [
        "0 0 * * *",
        "*/15 * * * *",
        "0 0 * * SUN",
        "0 0 29 2 *",
        "0 0 28,30 2 *",
        "0 0 31 1,2 *",
        "*/1 * * * *",
        "5,35 1-5 1-31/2 jan-mar 1-5",
        "0 0 * * 7",
    ],
)
def test_cron_schedules(schedule: str) -> None:
    assert check_cron(schedule) == schedule
    assert croniter(schedule, datetime(2026, 1, 1, tzinfo=UTC)).get_next(datetime)


@pytest.mark.parametrize(
    "schedule",
    [
        "",
        "@daily",
        "0 0 * *",
        "0 0 0 * * *",
        "60 0 * * *",
        "0 24 * * *",
        "0 0 0 * *",
        "0 0 * 13 *",
        "0 0 * * 8",
        "0 0 * * FOO",
        "5-1 0 * * *",
        "5/15 * * * *",
        "*/0 * * * *",
        "1,, 0 * * *",
        "0 0 30 2 *",
        "0 0 31 4,6 *",
        "0 0 L * *",
        "٣ 0 * * *",
    ],
)
def test_what_is_no_cron_schedule(schedule: str) -> None:
    with pytest.raises(ValueError, match=r"is '|has the "):
        check_cron(schedule)


_field = st.text("0123456789*/,-", min_size=1, max_size=5)


@given(st.tuples(_field, _field, _field, _field, _field).map(" ".join))
def test_whatever_passes_as_cron_airflow_takes_too(schedule: str) -> None:
    try:
        check_cron(schedule)
    except ValueError:
        return
    assert croniter.is_valid(schedule)
    assert croniter(schedule, datetime(2026, 1, 1, tzinfo=UTC)).get_next(datetime)


@given(
    st.tuples(_field, _field, _field).map(lambda fields: " ".join(("0", "0", *fields))),
    st.dates(date(2024, 1, 1), date(2028, 12, 31)),
)
@example("0 0 * * 0", date(2026, 11, 22))
@example("0 0 * * 7", date(2026, 11, 22))
@example("0 0 13 * 5", date(2026, 11, 13))
@example("0 0 13 * 5", date(2026, 11, 20))
@example("0 0 13 * 5", date(2026, 11, 21))
def test_it_runs_on_the_days_that_airflow_runs_it(schedule: str, day: date) -> None:
    try:
        check_cron(schedule)
    except ValueError:
        return
    assert runs_on(schedule, day) == croniter.match(schedule, datetime(day.year, day.month, day.day, tzinfo=UTC))

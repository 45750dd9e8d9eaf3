"""What the policy measures in: calendar periods, durations, bytes, shares and cron schedules, read from plain words."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Sized
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal, TypeVar, cast, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

Unit = Literal["hours", "days", "weeks", "months", "years"]
UNITS: tuple[Unit, ...] = get_args(Unit)

# A century in each unit: more is a slip of the keyboard, and would run past the last year that `datetime` knows.
_MOST: dict[Unit, int] = {"hours": 876_000, "days": 36_500, "weeks": 5_200, "months": 1_200, "years": 100}
_DURATION_UNITS = {"ms": 1, "s": 1_000, "min": 60_000, "hour": 3_600_000, "hours": 3_600_000}
_SIZE_UNITS = {"B": 1} | {
    f"{letter}{i}B": base**power
    for i, base in (("", 1000), ("i", 1024))
    for power, letter in enumerate("KMGT", start=1)
}
_COUNTED = re.compile(r"([0-9]{1,15}) ?([A-Za-z]+)")  # fifteen digits are more than anything here has

Known = TypeVar("Known")


def refusal(what: str, mend: str) -> PydanticCustomError:
    """What a validator raises: `what` is wrong, as the end of a sentence that begins with the key, and its `mend`."""
    return PydanticCustomError("refused", "{what}", {"what": what, "mend": mend})


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of the calendar: `Period(30, "days")`, `Period.parse("7 years")`. Retentions are such (R1, R3.3, R8).

    A month or a year ends on the same day of the month, or on the month's last day where there is no such day.
    """

    count: int
    unit: Unit

    def __post_init__(self) -> None:
        """Raise `ValueError` for an unknown unit, less than one of it, or more than a century."""
        if self.unit not in UNITS or not 1 <= self.count <= _MOST[self.unit]:
            raise ValueError(f"{self.count} {self.unit} is no period: use 1 hour to 100 years")

    @classmethod
    def parse(cls, text: object) -> Period:
        """Read "1 hour", "30 days", "12 weeks", "7 years"; raise `PydanticCustomError`, a `ValueError`, otherwise."""
        if isinstance(text, cls):
            return text
        count, unit = _counted(text, {name: name for u in UNITS for name in (u, u[:-1])}, "30 days")
        unit = cast("Unit", unit if unit in UNITS else f"{unit}s")
        if not 1 <= count <= _MOST[unit]:
            raise refusal(f"is {text!r}: no period is that long or that short.", "Use 1 hour to 100 years.")
        return cls(count, unit)

    def after(self, moment: datetime) -> datetime:
        """The moment one period after `moment`, in UTC. Raises `ValueError` for a moment without a time zone."""
        return self._shifted(moment, self.count)

    def before(self, moment: datetime) -> datetime:
        """The moment one period before `moment`, in UTC. Raises `ValueError` for a moment without a time zone."""
        return self._shifted(moment, -self.count)

    def always_shorter_than(self, other: Period) -> bool:
        """Whether this period ends before `other`, whenever both begin: 30 days is not always shorter than 1 month."""
        return all(self.after(start) < other.after(start) for start in _beginnings())

    @property
    def days(self) -> int:
        """How many days it has; raises `ValueError` where that depends on the calendar, or is no whole number."""
        if self.unit in ("months", "years") or (self.unit == "hours" and self.count % 24):
            raise ValueError(f"{self} is no number of days")
        return {"hours": self.count // 24, "days": self.count, "weeks": 7 * self.count}[self.unit]

    def _shifted(self, moment: datetime, count: int) -> datetime:
        if moment.tzinfo is None:
            raise ValueError(f"{moment.isoformat()} has no time zone")
        moment = moment.astimezone(UTC)
        if self.unit == "hours":
            return moment + timedelta(hours=count)
        if self.unit == "days":
            return moment + timedelta(days=count)
        if self.unit == "weeks":
            return moment + timedelta(weeks=count)
        months = moment.year * 12 + moment.month - 1 + count * (12 if self.unit == "years" else 1)
        year, month = months // 12, months % 12 + 1
        return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))

    def __str__(self) -> str:
        """As the policy writes it: "1 year", "30 days"."""
        return f"{self.count} {self.unit if self.count > 1 else self.unit[:-1]}"


@cache
def _beginnings() -> list[datetime]:
    """The first and the last day of every month of a leap cycle: where calendar periods are longest and shortest."""
    return [
        datetime(year, month, day, tzinfo=UTC)
        for year in range(2025, 2029)
        for month in range(1, 13)
        for day in (1, calendar.monthrange(year, month)[1])
    ]


def parse_duration(text: object) -> timedelta:
    """Read "20 ms", "5 s", "5 min" or "4 hours"; raise `PydanticCustomError` at anything else, and at nothing at all.

    The least is a millisecond: PostgreSQL reads a timeout of 0 as "never".
    """
    if isinstance(text, timedelta):
        milliseconds = text / timedelta(milliseconds=1)
    else:
        count, scale = _counted(text, _DURATION_UNITS, "5 min")
        milliseconds = count * scale
    if not 1 <= milliseconds <= 36_500 * 24 * _DURATION_UNITS["hour"]:
        raise refusal(f"is {text!r}: no duration is that long or that short.", "Use 1 ms to 876000 hours.")
    return timedelta(milliseconds=milliseconds)


def parse_size(text: object) -> int:
    """Read "256 MB" (10^6), "16 MiB" (2^20) or a plain number as bytes; raise `PydanticCustomError` otherwise."""
    count, scale = (text, 1) if type(text) is int else _counted(text, _SIZE_UNITS, "256 MB")
    if count < 1:
        raise refusal(f"is {text!r}: that is no room at all.", "Use at least 1 B.")
    return count * scale


def parse_share(text: object) -> float:
    """Read "90 %" as 0.9; raise `PydanticCustomError` outside 0 < share <= 100 %."""
    if isinstance(text, float) and 0 < text <= 1:
        return text
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%", text) if isinstance(text, str) else None
    if match is None or not 0 < (share := float(match[1]) / 100) <= 1:
        raise refusal(f"is {text!r}: that is no share.", 'Write it as in "90 %", above 0 % and at most 100 %.')
    return share


def _counted(text: object, units: dict[str, Known], example: str) -> tuple[int, Known]:
    """Split "30 days" into the number and what its unit stands for."""
    match = _COUNTED.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise refusal(f"is {text!r}: a whole number and a unit are expected.", f'Write it as in "{example}".')
    if match[2] not in units:
        raise refusal(f"is {text!r}: the unit {match[2]!r} is unknown.", f"Use one of {', '.join(units)}.")
    return int(match[1]), units[match[2]]


# Spelt out, because the names that `calendar` has follow the locale.
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_CRON: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, start=1)}),
    ("day of the week", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)


def check_cron(schedule: str) -> str:
    """Let a five-field cron expression pass; raise `PydanticCustomError` at others, and at one that never comes round.

    Stricter than Airflow, which also takes six fields, presets and `L`; whatever passes here, Airflow takes too.
    """
    fields = schedule.split()
    if len(fields) != len(_CRON):
        raise refusal(
            f"is {schedule!r}: a cron schedule has 5 fields, this has {len(fields)}.", 'Write it as in "0 0 * * 0".'
        )
    values = [_cron_values(field, *allowed) for field, allowed in zip(fields, _CRON, strict=True)]
    _, _, days, months, _ = values
    # 2024 is a leap year. With a day of the week given as well, cron runs on either, so it does come round.
    if fields[4] == "*" and min(days) > max(calendar.monthrange(2024, month)[1] for month in months):
        raise refusal(f"is {schedule!r}: that day never comes.", "Choose a day that the month has.")
    return schedule


def runs_on(schedule: str, day: date) -> bool:
    """Whether a cron schedule that passed `check_cron` comes round on that day, whatever the hour.

    Where both days of the month and of the week are restricted, either will do, as in every cron.
    """
    fields = schedule.split()
    days, months, weekdays = (_cron_values(field, *_CRON[2 + i]) for i, field in enumerate(fields[2:]))
    weekdays = {number % 7 for number in weekdays}
    by_month, by_week = day.day in days, day.isoweekday() % 7 in weekdays
    either = len(days) < 31 and len(weekdays) < 7  # noqa: PLR2004 - days of a month and of a week
    return day.month in months and (by_month or by_week if either else by_month and by_week)


def _cron_values(field: str, name: str, lowest: int, highest: int, names: dict[str, int]) -> set[int]:
    values: set[int] = set()
    for item in field.split(","):
        match = re.fullmatch(r"(?:\*|(\w+)(?:-(\w+))?)(?:/([0-9]{1,4}))?", item)
        try:
            if match is None:
                raise ValueError
            begin, end, step = match.groups()
            first = lowest if begin is None else _cron_number(begin, names)
            last = highest if begin is None else first if end is None else _cron_number(end, names)
            if (step and not end and begin) or not lowest <= first <= last <= highest or (step and int(step) < 1):
                raise ValueError
        except ValueError:
            raise refusal(
                f"has the {name} {item!r}, which is none.",
                f"Use *, numbers from {lowest} to {highest}, ranges, lists, and steps as in */15.",
            ) from None
        values.update(range(first, last + 1, int(step or 1)))
    return values


def _cron_number(text: str, names: dict[str, int]) -> int:
    if text.upper() in names:
        return names[text.upper()]
    if not re.fullmatch(r"[0-9]{1,2}", text):
        raise ValueError(text)
    return int(text)


def matching(pattern: str, expected: str) -> Callable[[str], str]:
    """A check that a text matches `pattern` wholly; the refusal says what was `expected`."""
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise refusal(f"is {text!r}.", f"Write {expected}.")
        return text

    return check


def check_recipient(text: str) -> str:
    """Let an e-mail address or an Airflow connection's id pass; raise `PydanticCustomError` at others.

    A channel's URL holds its secret, so it is refused without being told.
    """
    if "://" in text:
        raise refusal("is a URL, which holds a secret.", "Put it into an Airflow connection, and name that one here.")
    return matching(
        r"[^@\s]+@[^@\s]+|[A-Za-z0-9_.-]+",
        "an e-mail address, as in team@example.org, or a channel's Airflow connection, as in synapse_pager",
    )(text)


def parse_network(text: object) -> IPv4Network | IPv6Network:
    """Read "10.0.0.0/8" or "::1/128"; raise `PydanticCustomError` at no network, and at the one that is everybody."""
    try:
        network = ip_network(str(text))
    except ValueError as error:
        raise refusal(f"is {text!r}: {error}.", "Write it as in 10.0.0.0/8.") from None
    if not network.prefixlen:
        raise refusal(f"is {network}, which is everybody.", "Name your own networks (R7.4).")
    return network


def check_days(period: Period) -> Period:
    """Let whole days pass, which is what a store's own rules count in; raise `PydanticCustomError` at others."""
    try:
        _ = period.days
    except ValueError:
        raise refusal(f"is {period}, and stores count whole days.", "Write it in days or weeks.") from None
    return period


def not_empty(values: Sized) -> Sized:
    """Let all but nothing pass; raise `PydanticCustomError` at an empty list, table or text."""
    if not len(values):
        raise refusal("is empty.", "Give at least one.")
    return values


# The types that the model's fields are made of.
CalendarPeriod = Annotated[Period, BeforeValidator(Period.parse)]
Days = Annotated[Period, BeforeValidator(Period.parse), AfterValidator(check_days)]
Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Network = Annotated[IPv4Network | IPv6Network, PlainValidator(parse_network)]
Share = Annotated[float, BeforeValidator(parse_share)]
Item = TypeVar("Item")
Some = Annotated[tuple[Item, ...], AfterValidator(not_empty)]
Text = Annotated[str, AfterValidator(not_empty)]
Cron = Annotated[str, AfterValidator(check_cron)]
Name = Annotated[str, AfterValidator(matching(r"[a-z][a-z0-9_]*", "a name of a-z, 0-9 and _, as in chat_history"))]
Address = Annotated[str, AfterValidator(matching(r"[^@\s]+@[^@\s]+", "an e-mail address, as in team@example.org"))]
Recipient = Annotated[str, AfterValidator(check_recipient)]
Statement = Annotated[
    str, AfterValidator(matching(r"(?is)select\b.*[^;\s]", "one SELECT that ends without a semicolon"))
]
BucketName = Annotated[
    str, AfterValidator(matching(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "a bucket's name: 3 to 63 of a-z, 0-9, . and -"))
]
Table = Annotated[
    str,
    AfterValidator(matching(r"[^.\s]+\.[^.\s]+", "schema.table, shell globs allowed, as in public.messages_*")),
]
Prefix = Annotated[str, AfterValidator(matching(r"[^/].*/", "a key prefix that ends in a slash, as in uploads/"))]
Ask = Annotated[
    str, AfterValidator(matching(r"(GET|POST|PUT|PATCH|DELETE) /\S*", "a method and a path, as in GET /health"))
]
Status = Annotated[int, Field(ge=200, le=599)]
FileGlob = Annotated[
    str,
    AfterValidator(
        matching(
            r"(?!/)(?!(?:.*/)?\.\.(?:/|$)).+",
            "a glob below the checkout, without .. or a slash in front, as in secrets/*",
        )
    ),
]

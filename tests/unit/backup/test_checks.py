"""How checks are run: *prepare* stops at the first that fails, `doctor` tells them all (R4.1, R4.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from include.backup.checks import clock
from include.backup.checks.check import Check, Facts, Finding, NotReady, Remark, Subject, Unseen, examine, insist
from include.errors import BackupError
from include.policy import load_policy

Look = Callable[[], Facts]
POLICY = load_policy()


def fine() -> Facts:
    return {"found": 1}


def raising(error: Exception) -> Look:
    def look() -> Facts:
        raise error

    return look


BROKEN = NotReady("It is broken.", mend="Mend it.")
NOTED = Remark("It is odd.", mend="Look at it.")


def told(*looks: Look, door: Look | None = None) -> list[tuple[str, str, str]]:
    checks = [Check(f"check {number}", look) for number, look in enumerate(looks)]
    findings = examine([Subject("subject", checks, door=Check("door", door) if door else None)])
    return [(finding.check, finding.verdict, finding.what) for finding in findings]


def test_prepare_stops_at_the_first_failure_and_passes_over_remarks(caplog: pytest.LogCaptureFixture) -> None:
    assert insist(fine, raising(NOTED), lambda: {"more": 2}) == {"found": 1, "more": 2}
    assert "It is odd. Look at it." in caplog.text
    with pytest.raises(NotReady, match="It is broken"):
        insist(raising(BROKEN), raising(AssertionError("never looked at")))


def test_doctor_tells_every_one_with_its_mend() -> None:
    checks = [Check("one", raising(BROKEN)), Check("two", raising(NOTED)), Check("three", fine)]

    assert examine([Subject("it", checks)]) == [
        Finding("it", "one", "failed", "It is broken.", "Mend it."),
        Finding("it", "two", "warning", "It is odd.", "Look at it."),
        Finding("it", "three", "ok", facts={"found": 1}),
    ]


def test_what_is_not_ours_is_a_failure_too_and_hides_no_other() -> None:
    error = PermissionError(13, "Permission denied", "/place")

    assert told(raising(error), raising(BackupError("x", mend="y")), fine) == [
        ("check 0", "failed", "It could not be looked at: [Errno 13] Permission denied: '/place'."),
        ("check 1", "failed", "x"),
        ("check 2", "ok", ""),
    ]


def test_a_bug_is_no_finding() -> None:
    with pytest.raises(ZeroDivisionError):
        told(raising(ZeroDivisionError()))


def test_behind_a_door_that_does_not_open_nothing_is_looked_at() -> None:
    never = raising(AssertionError("never looked at"))

    assert told(never, door=raising(BROKEN)) == [
        ("door", "failed", "It is broken."),
        ("check 0", "warning", "Not looked at: its door failed."),
    ]
    assert told(never, door=raising(Unseen("Nobody named it.", mend="Name it."))) == [
        ("door", "warning", "Nobody named it.")
    ]
    assert [verdict for _, verdict, _ in told(fine, door=raising(NOTED))] == ["warning", "ok"]


@dataclass(frozen=True)
class Clock:
    """A store whose clock is `ahead` of ours, and tells whole seconds."""

    ahead: timedelta

    def clock(self) -> datetime:
        return (datetime.now(UTC) + self.ahead).replace(microsecond=0)

    def __str__(self) -> str:
        return "s3://store"


@pytest.mark.requirement("R4.2")
@pytest.mark.parametrize("seconds", [-4, 0, 4])
def test_a_clock_within_the_bound_is_fine(seconds: int) -> None:
    assert clock.of_store(Clock(timedelta(seconds=seconds)), POLICY)["skew_ms"] < 5000


@pytest.mark.requirement("R4.2")
@pytest.mark.parametrize(("seconds", "where"), [(-8, "behind"), (8, "ahead of"), (3600, "ahead of")])
def test_a_clock_beyond_the_bound_is_named(seconds: int, where: str) -> None:
    with pytest.raises(Remark, match=f"s3://store is .* {where} this machine") as told:
        clock.of_store(Clock(timedelta(seconds=seconds)), POLICY)
    assert "NTP" in told.value.mend

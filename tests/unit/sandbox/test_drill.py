"""The last table of `make demo`: it tells every check of the drill, and those that failed in full."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from include.disaster.history import Drill, Looked, StepTime
from include.disaster.plan import load_plan
from include.sandbox.drill import drill_table

DECLARED = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def look(name: str, subject: str, *, passed: bool = True, kind: str = "data_consistency") -> Looked:
    found = "7 rows" if passed else "6 rows"
    return Looked(kind=kind, name=name, subject=subject, expected="7 rows", found=found, passed=passed)


def made(**changed: Any) -> Drill:
    """A drill that kept everything; `changed` makes it another one."""
    restored = DECLARED + timedelta(minutes=2)
    values: dict[str, Any] = {
        "run": "20261122t100000000000",
        "mode": "drill",
        "scenario": "region_lost",
        "from_copy": "replica",
        "site": None,
        "by": "ada",
        "target": "latest",
        "failed": DECLARED,
        "declared": DECLARED,
        "reaches": DECLARED - timedelta(minutes=6),
        "files_as_of": DECLARED - timedelta(minutes=5),
        "healthy": DECLARED + timedelta(minutes=3),
        "promised_rto": 14_400,
        "promised_rpo": 3_600,
        "promised_rpo_files": 5_400,
        "forecast_seconds": 100,
        "steps": (
            StepTime(task="restore_from_backup", state="success", began=DECLARED, ended=restored),
            StepTime(task="switch_site", state="skipped"),
        ),
        "checks": (
            look("rows", "public.users"),
            look("rows", "public.chats"),
            look("login", "POST /login", kind="health"),
        ),
    }
    return Drill(**(values | changed))


def rows(drill: Drill) -> list[list[str]]:
    """The cells of the table as people see them, a list each row that has any."""
    console = Console(width=120)
    with console.capture() as captured:
        console.print(drill_table(drill, load_plan()))
    lines = [line for line in captured.get().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


@pytest.mark.requirement("R5.4", "R5.5")
def test_rto_and_rpo_stand_beside_what_was_promised_and_every_check_is_counted() -> None:
    assert rows(made()) == [
        ["restore_from_backup", "0:02:00", "2:00:00", "yes"],
        ["switch_site", "skipped", "0:10:00", ""],
        ["RTO", "0:03:00", "4:00:00", "yes"],
        ["RPO", "0:06:00", "1:00:00", "yes"],
        ["RPO of files", "0:05:00", "1:30:00", "yes"],
        ["forecast", "0:01:40", "", ""],
        ["data consistency", "", "", ""],
        ["rows", "2 of 2", "", "yes"],
        ["health", "", "", ""],
        ["login: POST /login", "1 of 1", "", "yes"],
        ["every check", "3 of 3", "", "yes"],
    ]


@pytest.mark.requirement("R5.4", "R5.5")
def test_what_was_missed_is_told_in_full() -> None:
    checks = (look("rows", "public.users"), look("rows", "public.chats", passed=False))
    failed = StepTime(task="check_data_consistency", state="failed", began=DECLARED, ended=DECLARED)
    told = rows(made(checks=checks, healthy=None, reaches=DECLARED - timedelta(hours=2), steps=(failed,)))
    for row in (
        ["check_data_consistency", "0.0 s failed", "0:30:00", "NO"],
        ["RTO", "not reached", "4:00:00", "NO"],
        ["RPO", "2:00:00", "1:00:00", "NO"],
        ["rows", "1 of 2", "", "NO"],
        ["public.chats", "6 rows", "7 rows", ""],
        ["every check", "1 of 2", "", "NO"],
    ):
        assert row in told

"""Which backup a run makes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk.api.datamodels._generated import DagRunType

from include.operators.slots import NoSlot, name_backup

MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)
THE_DAY_BEFORE = datetime(2026, 11, 21, tzinfo=UTC)
LATER = datetime(2026, 11, 22, 10, 37, 12, 123456, tzinfo=UTC)


@dataclass
class Run:
    run_type: DagRunType
    run_after: datetime = MIDNIGHT
    data_interval_start: datetime | None = THE_DAY_BEFORE
    data_interval_end: datetime | None = MIDNIGHT
    logical_date: datetime | None = THE_DAY_BEFORE
    run_id: str = "the run"


def named(run: Any) -> tuple[str, Any]:
    backup, slot = name_backup("full", run)
    return str(backup), slot


@pytest.mark.requirement("R1.1")
def test_a_scheduled_run_is_named_for_the_end_of_its_interval() -> None:
    name, slot = named(Run(DagRunType.SCHEDULED))
    assert name == "full-20261122T000000Z"
    assert (slot.start, slot.end) == (THE_DAY_BEFORE, MIDNIGHT)


def test_a_backfilled_run_is_the_same_backup() -> None:
    # It runs long after its interval, and is the slot's backup all the same.
    assert named(Run(DagRunType.BACKFILL, run_after=LATER)) == named(Run(DagRunType.SCHEDULED))


def test_a_manual_run_in_the_same_interval_is_a_backup_of_its_own() -> None:
    assert named(Run(DagRunType.MANUAL, run_after=LATER)) == ("full-manual-20261122T103712.123456Z", None)


def test_a_manual_run_may_have_no_dates() -> None:
    run = Run(DagRunType.MANUAL, run_after=LATER, logical_date=None, data_interval_start=None, data_interval_end=None)
    assert named(run) == ("full-manual-20261122T103712.123456Z", None)


@pytest.mark.parametrize("run_type", [DagRunType.OPERATOR_TRIGGERED, DagRunType.ASSET_TRIGGERED])
def test_what_something_else_triggered_has_no_slot(run_type: DagRunType) -> None:
    assert named(Run(run_type, run_after=LATER)) == ("full-manual-20261122T103712.123456Z", None)


def test_every_run_type_is_decided() -> None:
    assert {str(each.value) for each in DagRunType if named(Run(each, run_after=LATER))[1]} == {"scheduled", "backfill"}


@pytest.mark.parametrize(
    "run",
    [
        Run(DagRunType.SCHEDULED, data_interval_start=MIDNIGHT),  # what a plain cron string gives in Airflow 3
        Run(DagRunType.SCHEDULED, data_interval_start=None, data_interval_end=None),
    ],
)
def test_a_scheduled_run_without_a_window_is_refused(run: Run) -> None:
    with pytest.raises(NoSlot, match="the run"):
        named(run)

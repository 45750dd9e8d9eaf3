"""Which month a run archives."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk.api.datamodels._generated import DagRunType

from include.operators.archive import NoMonth, month_of

FIRST = datetime(2026, 12, 1, 2, tzinfo=UTC)


@dataclass
class Run:
    run_type: DagRunType
    run_after: datetime = datetime(2027, 1, 15, tzinfo=UTC)
    data_interval_end: datetime | None = FIRST


def month(asked: str, run: Any) -> str:
    return f"{month_of(asked, run):%Y-%m}"


@pytest.mark.requirement("R8.1")
def test_a_scheduled_or_backfilled_run_archives_the_month_that_its_interval_ends_in() -> None:
    assert month("", Run(DagRunType.SCHEDULED)) == month("", Run(DagRunType("backfill"))) == "2026-12"


@pytest.mark.requirement("R8.1")
def test_a_manual_run_archives_the_month_that_is_asked_for_or_its_own() -> None:
    manual = Run(DagRunType.MANUAL)
    assert (month("", manual), month("2026-03", manual)) == ("2027-01", "2026-03")


@pytest.mark.parametrize("asked", ["2026-13", "2026-00", "26-03", "2026-3", "latest"])
def test_what_is_no_month_is_refused(asked: str) -> None:
    with pytest.raises(NoMonth, match=asked):
        month_of(asked, Run(DagRunType.MANUAL))  # type: ignore[arg-type]

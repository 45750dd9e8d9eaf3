"""Steps that say when they began and ended: RTO and RPO are measured, not assumed (R5.4, R5.5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

TIMES = "times"
"""The XCom in which a step says when it began and ended, however it ended."""


class Timed(BaseOperator):
    """Leaves behind when the step began and ended, and whether well: RTO is measured, not assumed (R5.4)."""

    def execute(self, context: Context) -> Any:
        """Take the step."""
        began, well = datetime.now(UTC), False
        try:
            told = super().execute(context)
            well = True
        finally:
            times = {"began": began.isoformat(), "ended": datetime.now(UTC).isoformat(), "well": well}
            context["ti"].xcom_push(key=TIMES, value=times)
        return told

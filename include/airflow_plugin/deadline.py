"""From when on a recovery's time counts: the moment at which its run was made, which is when it was declared (R5.4)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow.sdk.definitions.deadline import BaseDeadlineReference

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class Declared(BaseDeadlineReference):
    """The moment at which a run is made; clearing it later gives nobody more time.

    Airflow's own `DAGRUN_QUEUED_AT` counts anew when a run is cleared, and in 3.3 a run that has it cannot be cleared
    at all (https://github.com/apache/airflow/issues/70368): on the worst day that is how a recovery goes on.
    """

    def _evaluate_with(self, *, session: Session) -> datetime:
        return datetime.now(UTC)

"""Which backup a DAG run makes: its id, and the schedule slot that it stands for (ARCHITECTURE.md, *Identity*)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include.errors import Hopeless
from include.repository.layout import BackupId, BackupType
from include.repository.manifest import Slot

if TYPE_CHECKING:
    from airflow.sdk.types import DagRunProtocol

SLOTTED = frozenset({"scheduled", "backfill"})
"""The run types that stand for a slot; any other (manual, triggered by something) is a backup of its own."""


class NoSlot(Hopeless):
    """A scheduled run without a data interval."""


def name_backup(backup_type: BackupType, dag_run: DagRunProtocol) -> tuple[BackupId, Slot | None]:
    """The id and slot of a run: a retried, cleared or backfilled run has the same again.

    The run's type decides, for a manual run may carry the data interval of the *scheduled* run of that time, or none at
    all and no logical date; it is named by `run_after`. Raises `NoSlot` for a scheduled run whose DAG keeps no windows.
    """
    if str(dag_run.run_type.value) not in SLOTTED:
        return BackupId(backup_type, dag_run.run_after, manual=True), None
    start, end = dag_run.data_interval_start, dag_run.data_interval_end
    if start is None or end is None or start >= end:
        raise NoSlot(
            f"The run {dag_run.run_id} has no data interval.",
            mend="Schedule the DAG with CronDataIntervalTimetable: a plain cron string gives windows without width.",
        )
    return BackupId(backup_type, end), Slot(start=start, end=end)

"""The steps that make a month's archives, one a retention class (R8.1)."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import TriggerRule

from include.errors import BackupError
from include.operators.report import Teller, links_of
from include.operators.step import Facts, Step

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import DagRunProtocol

    from include.monitoring.messages import Notification
    from include.operators.run import Surroundings
    from include.repository.layout import BackupId

MONTH = r"^(\d{4}-(0[1-9]|1[0-2]))?$"
"""How the form takes a month: 2026-11, or nothing."""
NIGHTS_PROOF = {"retries": 6, "retry_delay": timedelta(hours=1), "retry_exponential_backoff": False}
"""The night's full backup may still be on its way to be verified: it is waited for through the morning."""


class NoMonth(BackupError):
    """A month that nobody can mean."""


def month_of(asked: str | None, dag_run: DagRunProtocol) -> datetime:
    """The month that a run archives: the one asked for; else that in which the run's interval ends, or it was started.

    The schedule comes round after the night's full backup, so the month has just begun, and that backup is its first.
    Raises `NoMonth`.
    """
    if asked:
        if not re.match(MONTH, asked):
            raise NoMonth(f"{asked!r} is no month.", mend="Write it as in 2026-11.")
        return datetime.strptime(asked, "%Y-%m").replace(tzinfo=UTC)
    from include.operators.slots import SLOTTED  # noqa: PLC0415 - the engine

    scheduled = str(dag_run.run_type.value) in SLOTTED and dag_run.data_interval_end
    return scheduled or dag_run.run_after


class ArchiveStep(Step):
    """One step of the archive of one class.

    :param retention_class: as in the policy's compliance.retention.
    """

    def __init__(self, *, retention_class: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.retention_class = retention_class

    def _take(self, context: Context) -> Facts:
        from include.operators.run import Surroundings  # noqa: PLC0415 - the engine: over a second
        from include.repository.layout import BackupId  # noqa: PLC0415

        month = month_of(context["params"]["month"], context["dag_run"])
        here = Surroundings(scratch_root=self.scratch_root)
        here.root.mkdir(parents=True, exist_ok=True)
        return self.step(here, BackupId.archive(self.retention_class, month))

    @abstractmethod
    def step(self, here: Surroundings, archive: BackupId) -> Facts:
        """Call the engine; returns the facts for the XCom."""


class ChooseFull(Step):
    """Find the month's first full backup that is verified: the archives are copied out of it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**NIGHTS_PROOF, **kwargs})

    def _take(self, context: Context) -> Facts:
        from include.backup.archive import choose_full  # noqa: PLC0415
        from include.operators.run import Surroundings  # noqa: PLC0415

        month = month_of(context["params"]["month"], context["dag_run"])
        full = choose_full(Surroundings(scratch_root=self.scratch_root).catalog, month)
        self.log.info("The archives of %s are copied out of %s.", f"{month:%Y-%m}", full.id)
        return {"month": f"{month:%Y-%m}", "full": full.id}


class MakeArchive(ArchiveStep):
    """Copy one class's share of the month's full backup, under a key of its own; its XCom is the summary."""

    ui_color = "#cfe3d4"

    def step(self, here: Surroundings, archive: BackupId) -> Facts:
        """The summary of the committed archive."""
        from include.backup.archive import make_archive  # noqa: PLC0415
        from include.backup.summary import summary  # noqa: PLC0415

        return summary(make_archive(archive, catalog=here.catalog, policy=here.policy, scratch=here.root))


class VerifyArchive(ArchiveStep):
    """Read the archive back, every byte of it, and compare it with its manifest (R4.5)."""

    def step(self, here: Surroundings, archive: BackupId) -> Facts:
        """How much was read."""
        from include.backup.verify import prove_integrity  # noqa: PLC0415

        return prove_integrity(here.catalog, archive, here.policy, scratch=here.root)


class ReplicateArchives(Step):
    """Bring the archives, and whatever else is not there yet, to the second region (R3.2).

    Behind their verification: what the bucket's own replication brings is there by then. One class that failed keeps
    no other from being brought.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.ALL_DONE_MIN_ONE_SUCCESS, **kwargs})

    def _take(self, context: Context) -> Facts:
        from include.backup.replicate import catch_up  # noqa: PLC0415
        from include.operators.run import Surroundings  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        return catch_up(
            application=None, primary=here.catalog, replica=here.replica, policy=here.policy, everything=False
        )


class ReportArchives(Teller):
    """The success report: which archives were made, of which full backup, and how large they are (R4.6).

    :param chosen_by: the task whose XCom says the month and the full backup.
    :param made_by: for each class, the task whose XCom is the summary of its archive.
    """

    def __init__(self, *, chosen_by: str, made_by: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.chosen_by, self.made_by = chosen_by, tuple(made_by)

    def _take(self, context: Context) -> Facts:
        from include.policy import load_policy  # noqa: PLC0415

        return self.tell(load_policy(), partial(self._words, context))

    def _words(self, context: Context) -> Notification:
        from include.monitoring.messages import Notification  # noqa: PLC0415

        told = context["ti"].xcom_pull
        chosen, made = told(task_ids=self.chosen_by), [told(task_ids=task) for task in self.made_by]
        raw, stored = (sum(each[name] for each in made) for name in ("raw_bytes", "stored_bytes"))
        facts = {
            "copied from": chosen["full"],
            **{each["id"]: _line(each) for each in made},
            "size": f"{raw / 1e6:,.1f} MB, stored {stored / 1e6:,.1f} MB",
            "duration": f"{sum(each['seconds'] for each in made):.1f} s",
            "dag run": context["dag_run"].run_id,
        }
        return Notification("success_report", f"Archives of {chosen['month']}", facts, links=links_of(context))


def _line(archive: Facts) -> str:
    return (
        f"{archive['tables']} tables, {archive['rows']:,} rows, {archive['objects']:,} objects, "
        f"{archive['stored_bytes'] / 1e6:,.1f} MB stored, {archive['warnings']} warnings"
    )

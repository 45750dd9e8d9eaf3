"""The steps that tell people (R4.6), and the watcher that makes a run fail when work or teardown failed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseOperator, TriggerRule
from airflow.sdk.exceptions import AirflowFailException

from include.errors import BackupError
from include.operators.step import CHECK_TIMEOUT, ERROR, BackupStep, Facts

if TYPE_CHECKING:
    from airflow.sdk import Context

    from include.monitoring.notifications import Notification
    from include.operators.run import BackupRun

NOTIFICATIONS = "synapse_notifications"


class Report(BackupStep):
    """A step that tells people something: in the log, and by mail where the connection is there.

    Telling never fails a backup: what goes wrong with it is a warning in the log and in the XCom.

    :param connection: the Airflow connection of type `smtp`; without it the log is all. (templated)
    """

    template_fields: Sequence[str] = (*BackupStep.template_fields, "connection")
    ui_color = "#f7f1de"

    def __init__(self, *, connection: str = NOTIFICATIONS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connection = connection

    def _take(self, context: Context) -> Facts:
        self._context = context
        return super()._take(context)

    def step(self, run: BackupRun) -> Facts:
        """Whom it was mailed to, and the warning, if any."""
        from include.monitoring.notifications import Notifier  # noqa: PLC0415
        from include.operators.connections import mail_server  # noqa: PLC0415

        notification = self.notification(run, self._context)
        try:
            server, unusable = mail_server(self.connection), None
        except BackupError as error:
            self.log.warning("Nobody can be mailed: %s", error)
            server, unusable = None, str(error)
        delivery = Notifier(run.policy.notifications.model_dump(), server).send(notification)
        return {"recipients": list(delivery.recipients), "warning": unusable or delivery.warning}

    @abstractmethod
    def notification(self, run: BackupRun, context: Context) -> Notification:
        """What there is to tell."""


class ReportStatus(Report):
    """A status update: the backup is committed, its verification has begun (R4.6).

    :param made_by: the task whose XCom is the summary of the backup.
    """

    def __init__(self, *, made_by: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.made_by = made_by

    def notification(self, run: BackupRun, context: Context) -> Notification:
        """The backup's summary."""
        from include.monitoring.notifications import Notification  # noqa: PLC0415

        facts = told(_facts_of(context, self.made_by))
        return Notification("status_update", f"{run.backup} is made and is being verified", facts)


class ReportSuccess(Report):
    """The success report: what was backed up, and what proved it (R4.6).

    :param made_by: the task whose XCom is the summary of the backup.
    :param proved_by: the tasks whose XComs say what was verified.
    """

    def __init__(self, *, made_by: str, proved_by: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.made_by = made_by
        self.proved_by = tuple(proved_by)

    def notification(self, run: BackupRun, context: Context) -> Notification:
        """The backup's summary, then the facts of each proof."""
        from include.monitoring.notifications import Notification  # noqa: PLC0415

        proofs = {task.rpartition(".")[2]: _line(_facts_of(context, task)) for task in self.proved_by}
        facts = told(_facts_of(context, self.made_by)) | proofs
        return Notification("success_report", f"{run.backup} succeeded and is verified", facts)


class AlertError(Report):
    """The error alert: which task failed, what happened, how to mend it (R4.6)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.ONE_FAILED, **kwargs})

    def notification(self, run: BackupRun, context: Context) -> Notification:
        """Each task of the run that has failed until now, with its error as the step left it."""
        from include.monitoring.notifications import Notification  # noqa: PLC0415

        ti = context["ti"]
        states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
        facts: dict[str, object] = {"dag run": ti.run_id}
        for task in sorted(task for task, state in states.items() if state == "failed"):
            error = ti.xcom_pull(task_ids=task, key=ERROR)
            facts[task] = f"{error['what']} {error['mend']}" if error else "failed; its log says why"
        return Notification("error_alert", f"{run.backup} FAILED", facts)


class Watcher(BaseOperator):
    """The last task: it fails, and the run with it, when any work *or* teardown failed; otherwise it is skipped.

    A failed teardown alone leaves a run green; one that may fail the run is its only leaf, and turns failed work green.
    """

    ui_color = "#f2d5d5"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.ONE_FAILED, "execution_timeout": CHECK_TIMEOUT, **kwargs})

    def execute(self, context: Context) -> None:
        """Fail the run."""
        raise AirflowFailException("A task of this run failed: the run fails, whatever came after it.")


def told(summary: Mapping[str, Any]) -> dict[str, str]:
    """The summary of a backup in words, in an order of our own: XComs lose theirs."""
    seconds = summary["seconds"]
    speed = f", {summary['bytes_per_second'] / 1e6:.1f} MB/s" if summary.get("bytes_per_second") else ""
    ratio = f" ({summary['ratio']} times smaller)" if summary.get("ratio") else ""
    return {
        "backup": f"{summary['id']}, attempt {summary['attempt']}",
        "as of": str(summary["consistency_point"]),
        "database": f"{summary['tables']} tables, {summary['rows']:,} rows",
        "objects": f"{summary['objects']:,}",
        "configuration": f"commit {summary['commit']}",
        "size": f"{summary['raw_bytes'] / 1e6:,.1f} MB, stored {summary['stored_bytes'] / 1e6:,.1f} MB{ratio}",
        "duration": f"{seconds} s{speed}",
        "write stop": f"{summary['write_stop_ms']} ms, locks held {summary['locks_held_ms']} ms",
        "warnings": f"{summary['warnings']}",
    }


def _facts_of(context: Context, task: str) -> Facts:
    return cast("Facts", context["ti"].xcom_pull(task_ids=task))


def _line(facts: Facts) -> str:
    return ", ".join(f"{name} {facts[name]}" for name in sorted(facts))

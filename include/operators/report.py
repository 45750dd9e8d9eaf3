"""The steps that tell people (R4.6), and the watcher that makes a run fail when work or teardown failed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseOperator, TriggerRule
from airflow.sdk.exceptions import AirflowFailException

from include.errors import BackupError
from include.operators.places import run_url, runbook_url
from include.operators.step import CHECK_TIMEOUT, ERROR, BackupStep, Facts, Step

if TYPE_CHECKING:
    from airflow.sdk import Context

    from include.monitoring.messages import Failure, Notification
    from include.monitoring.notifications import Way
    from include.operators.run import BackupRun
    from include.policy import Policy

NOTIFICATIONS = "synapse_notifications"
WATCHER = "watcher"
UNEXPLAINED = {
    "what": "The task ended without a word of its own: it was killed, ran out of time, or met what nobody foresaw.",
    "mend": "Read its log.",
}


class Teller(Step):
    """A step that tells people something: in the log, by mail, and over the channels that the policy names.

    Telling never fails what it tells of: who could not be told is a warning in the log and in the XCom, and makes
    `Delivered` red.

    :param connection: the Airflow connection of type `smtp` that mails go through. (templated)
    """

    template_fields: Sequence[str] = (*Step.template_fields, "connection")
    ui_color = "#f7f1de"

    def __init__(self, *, connection: str = NOTIFICATIONS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connection = connection

    def tell(self, policy: Policy, words: Callable[[], Notification]) -> Facts:
        """Tell everybody whom the policy names for this kind; returns who was told, and why the others were not."""
        try:
            return deliver(words(), policy, connection=self.connection)
        except Exception as error:  # whatever it is, what it was to tell of is as good as it was
            self.log.exception("Nobody was told.")
            return {"told": [], "untold": {"everybody": f"{type(error).__name__}: {error}"}}


def deliver(notification: Notification, policy: Policy, *, connection: str) -> Facts:
    """Send it to everybody whom the policy names for its kind; returns who was told, and why the others were not."""
    from include.monitoring.messages import heard_by  # noqa: PLC0415
    from include.monitoring.notifications import Notifier  # noqa: PLC0415

    recipients = policy.notifications.model_dump()
    ways = _ways(recipients[heard_by(notification.kind)], connection)
    delivery = Notifier(recipients, ways).send(notification)
    return {"told": list(delivery.told), "untold": dict(delivery.untold)}


def _ways(recipients: Sequence[str], connection: str) -> dict[str, Way | BackupError]:
    """How each recipient is reached; what is wrong with a connection stands in the place of its way."""
    from include.monitoring.notifications import MAIL  # noqa: PLC0415
    from include.operators.connections import channel, mail_server  # noqa: PLC0415

    ways: dict[str, Way | BackupError] = {}
    for name in {MAIL if "@" in recipient else recipient for recipient in recipients}:
        try:
            ways[name] = mail_server(connection) if name == MAIL else channel(name)
        except BackupError as error:
            ways[name] = error
    return ways


class Report(Teller, BackupStep):
    """What is told of a backup."""

    def _take(self, context: Context) -> Facts:
        self._context = context
        return super()._take(context)

    def step(self, run: BackupRun) -> Facts:
        """Who was told, and why the others were not."""
        return self.tell(run.policy, partial(self.notification, run, self._context))

    @abstractmethod
    def notification(self, run: BackupRun, context: Context) -> Notification:
        """What there is to tell."""

    def _about_the_run(self, run: BackupRun, context: Context) -> dict[str, object]:
        """Who asked for the run, the note that they gave it, and when the next one comes by itself."""
        from croniter import croniter  # noqa: PLC0415

        dag_run = context["dag_run"]
        asked = {"asked for by": dag_run.triggering_user_name, "note": getattr(dag_run, "note", None)}
        schedule = getattr(run.policy.backups, self.backup_type).schedule
        following = croniter(schedule, datetime.now(UTC)).get_next(datetime)
        given = {name: value for name, value in asked.items() if value}
        return {**given, "dag run": dag_run.run_id, "next run": f"{following:%Y-%m-%d %H:%M} UTC, unless it is paused"}


class ReportStatus(Report):
    """A status update: the backup is committed, its verification has begun (R4.6).

    :param made_by: the task whose XCom is the summary of the backup.
    """

    def __init__(self, *, made_by: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.made_by = made_by

    def notification(self, run: BackupRun, context: Context) -> Notification:
        """The backup's summary."""
        from include.monitoring.messages import Notification  # noqa: PLC0415

        facts = told(_facts_of(context, self.made_by)) | self._about_the_run(run, context)
        return Notification("status_update", str(run.backup), facts, links=links_of(context))


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
        from include.monitoring.messages import Notification  # noqa: PLC0415

        proofs = {task.rpartition(".")[2]: _line(_facts_of(context, task)) for task in self.proved_by}
        facts = told(_facts_of(context, self.made_by)) | proofs | self._about_the_run(run, context)
        return Notification("success_report", str(run.backup), facts, links=links_of(context))


class AlertError(Report):
    """The error alert: which task failed, what happened, how to mend it (R4.6)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.ONE_FAILED, **kwargs})

    def notification(self, run: BackupRun, context: Context) -> Notification:
        """Each task of the run that has failed until now, with its error as the step left it."""
        from include.monitoring.messages import Notification  # noqa: PLC0415

        failures = failures_of(context)
        links = links_of(context, failures[0].task if failures else "")
        return Notification("error_alert", str(run.backup), self._about_the_run(run, context), failures, links)


class AlertRun(Teller):
    """The error alert of a run that makes no backup: which task failed, what happened, how to mend it (R4.6)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.ONE_FAILED, **kwargs})

    def _take(self, context: Context) -> Facts:
        from include.policy import load_policy  # noqa: PLC0415

        return self.tell(load_policy(), partial(self._notification, context))

    def _notification(self, context: Context) -> Notification:
        from include.monitoring.messages import Notification  # noqa: PLC0415

        failures, run = failures_of(context), context["dag_run"]
        links = links_of(context, failures[0].task if failures else "")
        return Notification("run_failed", run.dag_id, {"dag run": run.run_id}, failures, links)


class Delivered(BaseOperator):
    """Red when somebody could not be told: a dead alert channel shows in Airflow without failing the backup.

    A teardown, because a teardown that fails leaves its run green.

    :param reports: the tasks that told people.
    """

    ui_color = "#f7f1de"

    def __init__(self, *, reports: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**{"execution_timeout": CHECK_TIMEOUT, "retries": 0, **kwargs})
        self.reports = tuple(reports)

    def execute(self, context: Context) -> dict[str, list[str]]:
        """Who was told of what; raises `AirflowFailException` naming who was not, and why."""
        facts = {task: _facts_of(context, task) for task in self.reports}
        made = {task: each for task, each in facts.items() if each}
        untold = [f"{whom}: {why}" for each in made.values() for whom, why in each["untold"].items()]
        if untold:
            for line in untold:
                self.log.error("NOT TOLD: %s", line)
            raise AirflowFailException(
                f"The backup is not concerned, but somebody was not told. {' '.join(dict.fromkeys(untold))}"
                " Mend the connection or the policy's notifications, then clear the report's task."
            )
        return {task: each["told"] for task, each in made.items()}


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
    tables = f"{summary['tables']} tables, {summary['rows']:,} rows" if summary["tables"] is not None else ""
    told = {
        "backup": f"{summary['id']}, attempt {summary['attempt']}",
        "as of": str(summary["consistency_point"]),
        "database": tables,
        "log": summary.get("log", ""),
        "objects": f"{summary['objects']:,}",
        "configuration": f"commit {summary['commit']}",
        "size": f"{summary['raw_bytes'] / 1e6:,.1f} MB, stored {summary['stored_bytes'] / 1e6:,.1f} MB{ratio}",
        "duration": f"{seconds} s{speed}",
        "write stop": f"{summary['write_stop_ms']} ms, locks held {summary['locks_held_ms']} ms",
        "warnings": f"{summary['warnings']}",
    }
    return {name: value for name, value in told.items() if value}


def links_of(context: Context, task: str = "") -> dict[str, str]:
    """The run (or its failed task) and the runbook, as far as Airflow knows its own address."""
    ti = context["ti"]
    links = {
        "The failed task" if task else "The run": run_url(ti.dag_id, ti.run_id, task),
        "What to do about it" if task else "The runbook": runbook_url(ti.dag_id, task),
    }
    return {name: url for name, url in links.items() if url}


def failures_of(context: Context) -> tuple[Failure, ...]:
    """Each task of the run that has failed until now, with its error as the step left it."""
    from include.monitoring.messages import Failure  # noqa: PLC0415

    ti = context["ti"]
    states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
    failures = []
    for task in sorted(task for task, state in states.items() if state == "failed" and task != WATCHER):
        error = ti.xcom_pull(task_ids=task, key=ERROR) or UNEXPLAINED
        failures.append(Failure(task, error["what"], error["mend"]))
    return tuple(failures)


def _facts_of(context: Context, task: str) -> Facts:
    return cast("Facts", context["ti"].xcom_pull(task_ids=task))


def _line(facts: Facts) -> str:
    return ", ".join(f"{name} {facts[name]}" for name in sorted(facts))

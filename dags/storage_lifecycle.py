"""The stores, kept tidy (law 5): daily, what dead runs left behind is removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable

from include.operators.report import WATCHER, AlertRun, Watcher
from include.operators.storage import Reap
from include.policy import load_policy

policy = load_policy()

with DAG(
    dag_id="storage_lifecycle",
    description="What dead runs left behind, removed after the policy's time",
    doc_md=f"""
    ### Storage lifecycle

    1. **reap**: tries that no manifest names and no session holds, unfinished uploads, probes, sessions of lost tries,
       scratch databases, temporary directories: found by what they are, and removed when they are older than
       `storage.attempts_reaped_after` ({policy.storage.attempts_reaped_after}).

    What any manifest names is never touched. A manifest that cannot be read may name anything: then its id and all
    packs stay, and the log says so.

    **See first what it would remove?** `python -m include.cli reap` shows it, and removes only with `--remove`.

    **It is red?** The log says what stays and why: an Object Lock that has not ended, a missing permission to delete
    versions. Everything else is gone already. The button **Runbook** leads to what helps; then clear the run, or leave
    it to tomorrow's.
    """,
    schedule=CronDataIntervalTimetable(policy.storage.lifecycle_schedule, timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["storage"],
    default_args={"owner": "backup"},
) as dag:
    reap = Reap(
        task_id="reap",
        execution_timeout=timedelta(hours=2),
        doc_md="**Law 5** What dead runs left behind: found, looked at once more, removed.",
    )
    alert = AlertRun(task_id="error_alert", doc_md="**R4.6** What failed, and how to mend it.")
    watcher = Watcher(
        task_id=WATCHER, doc_md="Fails, and the run with it, when work failed, though the alert was sent."
    )

    reap >> [alert, watcher]

"""The stores, kept as the policy has them (R3): daily, in both regions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable, TriggerRule

from include.operators.cold import ApplyLifecycle, ReportCold
from include.operators.replicate import RepairReplica
from include.operators.report import WATCHER, AlertRun, Delivered, Watcher
from include.operators.storage import Reap
from include.policy import load_policy

policy = load_policy()

LONG = timedelta(hours=4)

with DAG(
    dag_id="storage_lifecycle",
    description="The replica repaired, the buckets' rules kept, dead runs' leavings removed",
    doc_md=f"""
    ### Storage lifecycle (R3)

    1. **repair_replica**: every object of every backup is compared in both regions; what is missing or wrong in the
       replica is copied again (R3.2).
    2. **apply_lifecycle**: archives move to Glacier after {policy.storage.cold.transition_after}, and nothing else
       does; what drifted is shown as a diff, and mended (R3.3).
    3. **report_cold**: what is cold, what having it back would cost, and how long it would take.
    4. **reap**: what dead runs left behind, after `storage.attempts_reaped_after`
       ({policy.storage.attempts_reaped_after}), whatever became of the steps before.

    **See first what would go?** `python -m include.cli reap` shows what dead runs left, and removes only with
    `--remove`.

    **It is red?** Open the first red task: its log ends with *what happened* and *how to mend it*, and its button
    **Runbook** leads to what helps. Clear it, or leave it to tomorrow's run: each goes on where the last one ended.
    """,
    schedule=CronDataIntervalTimetable(policy.storage.lifecycle_schedule, timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["storage", "R3"],
    default_args={"owner": "backup"},
) as dag:
    repair = RepairReplica(
        task_id="repair_replica",
        execution_timeout=LONG,
        doc_md="**R3.2** Both regions are compared, object by object; what the replica lacks is copied.",
    )
    lifecycle = ApplyLifecycle(
        task_id="apply_lifecycle",
        doc_md="**R3.3** Both buckets have the policy's lifecycle rules, and no others; drift is shown, and mended.",
    )
    cold = ReportCold(
        task_id="report_cold",
        doc_md="**R3.3** What is in Glacier, what having it back costs, and how long it takes.",
    )
    reap = Reap(
        task_id="reap",
        trigger_rule=TriggerRule.ALL_DONE,
        execution_timeout=timedelta(hours=2),
        doc_md="**Law 5** What dead runs left behind: found, looked at once more, removed.",
    )
    alert = AlertRun(task_id="error_alert", doc_md="**R4.6** What failed, and how to mend it.")
    delivered = Delivered(
        task_id="delivered", reports=["error_alert"], doc_md="Red in a green run: somebody could not be told of it."
    ).as_teardown(on_failure_fail_dagrun=False)
    watcher = Watcher(
        task_id=WATCHER, doc_md="Fails, and the run with it, when work failed, though the alert was sent."
    )

    repair >> reap
    lifecycle >> cold >> reap
    work = [repair, lifecycle, cold, reap]
    work >> alert >> delivered
    work >> watcher

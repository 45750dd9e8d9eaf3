"""The stores, kept as the policy has them (R1, R3, R8.1): daily, in both regions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable, TriggerRule

from include.operators.cold import ApplyLifecycle, ReportCold
from include.operators.replicate import RepairReplica
from include.operators.report import WATCHER, AlertRun, Delivered, Watcher
from include.operators.retain import Retain
from include.operators.storage import Reap, ReapDrills
from include.policy import load_policy

policy = load_policy()

LONG = timedelta(hours=4)

with DAG(
    dag_id="storage_lifecycle",
    description="The replica repaired, what has had its time deleted, the buckets' rules kept, dead runs' rest removed",
    doc_md=f"""
    ### Storage lifecycle (R1, R3, R8.1)

    1. **repair_replica**: every object of every backup is compared in both regions; what is missing or wrong in the
       replica is copied again (R3.2).
    2. **retain_primary**, **retain_replica**: what no rule keeps is deleted, each bucket by its own catalog, the
       primary's first: nothing that goes is brought back. What goes, and **which moments can be restored no more**, is
       in the log before anything goes. At most {policy.storage.retention.deletions_per_run:,} versions a run.
    3. **apply_lifecycle**: archives move to Glacier after {policy.storage.cold.transition_after}, and nothing else
       does; what drifted is shown as a diff, and mended (R3.3).
    4. **report_cold**: what is cold, what having it back would cost, and how long it would take.
    5. **reap**: what dead runs left behind, after `storage.attempts_reaped_after`
       ({policy.storage.attempts_reaped_after}), whatever became of the steps before;
       **reap_drills**: the same of drills.

    Nothing is deleted while the replica is not whole.

    **See first what would go?** `python -m include.cli retention` shows it, and why each object stays;
    `python -m include.cli reap` shows what dead runs left. Neither removes anything unless it is told to.

    **It is red?** Open the first red task: its log ends with *what happened* and *how to mend it*, and its button
    **Runbook** leads to what helps. Clear it, or leave it to tomorrow's run: each goes on where the last one ended.
    """,
    schedule=CronDataIntervalTimetable(policy.storage.lifecycle_schedule, timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["storage", "R1", "R3", "R8.1"],
    default_args={"owner": "backup"},
) as dag:
    repair = RepairReplica(
        task_id="repair_replica",
        execution_timeout=LONG,
        doc_md="**R3.2** Both regions are compared, object by object; what the replica lacks is copied.",
    )
    retain_primary = Retain(
        task_id="retain_primary",
        store="primary",
        doc_md="**R1, R8.1** What no rule keeps is deleted from the primary bucket; what goes is in the log first.",
    )
    retain_replica = Retain(
        task_id="retain_replica",
        store="replica",
        doc_md="**R1, R8.1** The same in the replica, by its own catalog.",
    )
    lifecycle = ApplyLifecycle(
        task_id="apply_lifecycle",
        doc_md="**R3.3** Both buckets have the policy's lifecycle rules, and no others; drift is shown, and mended.",
    )
    cold = ReportCold(
        task_id="report_cold", doc_md="**R3.3** What is in Glacier, what having it back costs, and how long it takes."
    )
    reap = Reap(
        task_id="reap",
        trigger_rule=TriggerRule.ALL_DONE,
        execution_timeout=timedelta(hours=2),
        doc_md="**Law 5** What dead runs left behind: found, looked at once more, removed.",
    )
    reap_drills = ReapDrills(
        task_id="reap_drills",
        trigger_rule=TriggerRule.ALL_DONE,
        execution_timeout=timedelta(hours=2),
        doc_md="**Law 5** What drills left that were killed with all around them: databases, objects, directories.",
    )
    alert = AlertRun(task_id="error_alert", doc_md="**R4.6** What failed, and how to mend it.")
    delivered = Delivered(
        task_id="delivered", reports=["error_alert"], doc_md="Red in a green run: somebody could not be told of it."
    ).as_teardown(on_failure_fail_dagrun=False)
    watcher = Watcher(
        task_id=WATCHER, doc_md="Fails, and the run with it, when work failed, though the alert was sent."
    )

    repair >> retain_primary >> retain_replica >> reap
    lifecycle >> cold >> reap >> reap_drills
    work = [repair, retain_primary, retain_replica, lifecycle, cold, reap, reap_drills]
    work >> alert >> delivered
    work >> watcher

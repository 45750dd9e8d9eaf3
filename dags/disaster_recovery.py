"""The recovery runbook (R5.3): drilled every month, timed against RTO and RPO, and the same in earnest."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, AsyncCallback, CronTriggerTimetable, DeadlineAlert, Param

from include.airflow_plugin.deadline import Declared
from include.disaster.plan import COPIES, MODES, TASKS, load_plan
from include.operators.approval import APPROVE
from include.operators.deadline import tell_rto_missed
from include.operators.declared import PLAN
from include.operators.disaster import (
    IN_TURN,
    ActivatePlan,
    CheckApplicationState,
    CheckDataConsistency,
    CheckServiceHealth,
    CleanUp,
    PlanRecovery,
    RestoreFromBackup,
    SwitchToReplica,
)
from include.operators.drill_report import ReportDrill
from include.operators.failover import ApproveFailover
from include.operators.report import WATCHER, Delivered, Watcher
from include.operators.site import SwitchSite
from include.policy import load_policy

policy, plan = load_policy(), load_plan()
scenarios = "\n".join(f"    - **{name}**: {scenario.title}" for name, scenario in plan.scenarios.items())

params = {
    "mode": Param(
        "drill",
        enum=list(MODES),
        title="Drill or failover",
        description="`drill`: beside everything that is live, and removed afterwards. `failover`: **the real thing**; "
        "somebody else has to approve.",
    ),
    "scenario": Param(
        IN_TURN,
        enum=[IN_TURN, *plan.scenarios],
        title="Scenario",
        description="What has happened. `in_turn`: the one whose drill was longest ago.",
    ),
    "copy": Param(
        "",
        enum=["", *COPIES],
        title="Which copy",
        description="From which copy of the backups. Empty: the first that the plan names for the scenario.",
    ),
    "target": Param(
        "",
        type="string",
        title="To when",
        description="`latest`; a moment **with its offset**, `2026-11-22T10:37:12+00:00`; a backup's id; `last_good`. "
        "Empty: what the plan says of the scenario.",
    ),
    "table": Param(
        "",
        type="string",
        title="Which table",
        description="For `table_dropped`: schema.table. Empty: the plan's.",
    ),
    "failed_at": Param(
        "",
        type="string",
        title="Lost since",
        description="The moment of failure, with its offset: the RPO is measured back from there. Empty: now.",
    ),
    "site": Param(
        "",
        enum=["", *plan.sites],
        title="To which site",
        description="For a failover: where Synapse goes. `home` is the way back.",
    ),
}

with DAG(
    dag_id="disaster_recovery",
    description="Activate the plan, switch to the replica, restore, verify the services, report: drilled monthly",
    doc_md=f"""
    ### Disaster recovery (R5.3), within {policy.recovery.rto} (R5.4), losing at most {policy.recovery.rpo} (R5.5)

    The runbook that people run on their worst day, and every month before it. *Trigger* it: the form asks for the
    scenario, the copy, the moment. Left as it is, it is a **drill** of whatever was drilled longest ago, and touches
    nothing that is live.

{scenarios}

    1. **activate_plan** declares it: the clock of the RTO starts when the run was asked for.
    2. **switch_to_replica** takes the copy that survives, and asks nothing of the other. After ransomware it looks for
       the last good point.
    3. **plan_recovery**: base and log, or a full backup where the chain is broken; the forecast for today's size.
    4. **approve** asks *somebody else* than who declared it, for a failover only.
    5. **restore_from_backup** brings everything back. Where Airflow is the loss, a break-glass script does it.
    6. **check_data_consistency** and **check_application_state**, side by side; then **check_service_health** starts
       the application and uses it. Each keeps a page, which its button *Validation* opens.
    7. **switch_site**, for a failover only: the pointer to the active site, its configuration, the service record.
       `undo_failover` takes it back.
    8. **clean_up** removes everything that a drill made.
    9. **report**: each step's time, RTO, RPO, each check; kept in the bucket.

    **It is red?** A drill has changed nothing that is live. Open the first red task: its log ends with *what happened*
    and *how to mend it*, and its button **Runbook** leads to what helps. *Clear* it, and the run goes on from there.
    """,
    schedule=CronTriggerTimetable(plan.drills.schedule, timezone="UTC"),  # without a start: unpausing begins no drill
    catchup=False,
    max_active_runs=4,
    params=params,
    tags=["recovery", "R5.3"],
    default_args={"owner": "backup"},
    deadline=DeadlineAlert(
        reference=Declared(),
        interval=policy.recovery.rto,
        callback=AsyncCallback(tell_rto_missed),
    ),
) as dag:

    def step(task: str) -> dict[str, Any]:
        """What the plan says of a step: who answers for it, its limit, and its words."""
        said = plan.steps[task]  # type: ignore[index]
        doc = f"{said.does}.\n\n**Insists on**: {said.checks}.\n\n**Undo**: {said.undo}."
        return {"task_id": task, "owner": said.owner, "execution_timeout": said.limit, "doc_md": doc}

    activate = ActivatePlan(**step("activate_plan"))
    switch = SwitchToReplica(**step("switch_to_replica"))
    locate = PlanRecovery(**step("plan_recovery"))
    approve = ApproveFailover(
        **step(APPROVE),
        shows=PLAN,
        subject="Fail over to {{ ti.xcom_pull(task_ids='activate_plan')['site'] }}?",
        body="{{ ti.xcom_pull(task_ids='activate_plan')['scenario'] }}, declared by "
        "{{ dag_run.triggering_user_name }}.\n\n```\n{{ ti.xcom_pull(task_ids='plan_recovery')['words'] }}\n```",
        response_timeout=plan.steps["approve"].limit,
    )
    restore = RestoreFromBackup(**step("restore_from_backup"))
    data = CheckDataConsistency(**step("check_data_consistency"), restored_by="restore_from_backup")
    state = CheckApplicationState(**step("check_application_state"), restored_by="restore_from_backup")
    health = CheckServiceHealth(**step("check_service_health"), restored_by="restore_from_backup")
    switch_site = SwitchSite(**step("switch_site"))
    clean = CleanUp(**step("clean_up")).as_teardown(on_failure_fail_dagrun=False)
    report = ReportDrill(
        task_id="report", steps=TASKS, doc_md="**R5.4, R5.5** Each step's time, RTO, RPO, each check: kept, and told."
    )
    delivered = Delivered(
        task_id="delivered", reports=["report"], doc_md="Red in a green run: somebody could not be told of it."
    ).as_teardown(on_failure_fail_dagrun=False)
    watcher = Watcher(task_id=WATCHER, doc_md="Fails, and the run with it, when work *or* a teardown failed.")

    # Health comes last: the application that is started writes, and what it wrote would be compared.
    activate >> switch >> locate >> approve >> restore >> [data, state] >> health >> switch_site >> clean
    work = [activate, switch, locate, approve, restore, data, state, health, switch_site, clean]
    work >> report >> delivered
    work >> watcher

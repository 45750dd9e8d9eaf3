"""Undoing a failover (R5.3): service record, configuration and pointer go back to what they were, the last first."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, Param

from include.disaster.plan import load_plan
from include.operators.approval import APPROVE, Approve
from include.operators.report import WATCHER, Delivered, Watcher
from include.operators.site import FIND, SWITCH_BACK, FindFailover, ReportUndone, SwitchBack

plan = load_plan()
FOUND = f"ti.xcom_pull(task_ids='{FIND}')"

params = {
    "run": Param(
        "",
        type="string",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.:+-]*)?$",
        maxLength=100,
        title="Which failover",
        description="Empty: the newest, and no other can be undone. `python -m include.cli site show` lists them.",
    ),
    "because": Param(
        type="string",
        minLength=1,
        title="Because",
        description="Why; kept with your name and that of who approves, for whoever audits it.",
    ),
}

with DAG(
    dag_id="undo_failover",
    description="Take back what the newest failover switched: service record, configuration, pointer",
    doc_md=f"""
    ### Undoing a failover (R5.3)

    What the newest run of `disaster_recovery` switched goes back to exactly what it was, **the last switch first**:
    the name `{plan.switches.service.name}` in Route 53, the settings in `{plan.switches.configuration}`, the pointer
    that says which site is active. A failover that stopped half-way is undone as far as it came.

    **It moves no data.** What users wrote at the other site since is there, and nowhere else. To bring that back,
    too, *fail back*: docs/runbooks/failback.md.

    1. **find_failover**: which run, to which site, how far it came. *Trigger* with nothing but the reason: the newest.
    2. **approve**: *somebody else* than who triggered this run says yes, within {plan.steps["approve"].limit}.
    3. **switch_back**: each switch is looked at, put back, read back, and written down in both buckets.
    4. **report**: which site is active now.

    **It is red?** `switch_back` names what is switched back and what is not. Mend what its log says and *clear* it: it
    goes on with what is left. What somebody else changed meanwhile is never overwritten, but told.
    """,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params=params,
    tags=["recovery", "R5.3"],
    default_args={"owner": "backup"},
) as dag:
    find = FindFailover(task_id=FIND, doc_md="**R5.3** Which failover it is, and how far it came. Nothing is changed.")
    approve = Approve(
        task_id=APPROVE,
        shows=FIND,
        subject=f"Switch from {{{{ {FOUND}['site'] }}}} back to {{{{ {FOUND}['back_to'] }}}}?",
        body=f"{{{{ dag_run.triggering_user_name }}}} asks for it, because: {{{{ {FOUND}['because'] }}}}\n\n"
        f"The failover {{{{ {FOUND}['run'] }}}} of {{{{ {FOUND}['by'] }}}}: {{{{ {FOUND}['stands'] }}}}.\n\n"
        f"**No data is moved**: what was written at {{{{ {FOUND}['site'] }}}} since stays there.",
        response_timeout=plan.steps["approve"].limit,
        execution_timeout=plan.steps["approve"].limit,
        doc_md="**R5.3** Somebody else than who triggered the run says yes.",
    )
    switch_back = SwitchBack(
        task_id=SWITCH_BACK,
        execution_timeout=plan.steps["switch_site"].limit,
        doc_md="**R5.3** Service record, configuration, pointer, as they were. Cleared, it goes on with what is left.",
    )
    report = ReportUndone(task_id="report", doc_md="**R4.6** Which site is active now; or what failed.")
    delivered = Delivered(
        task_id="delivered", reports=["report"], doc_md="Red in a green run: somebody could not be told of it."
    ).as_teardown(on_failure_fail_dagrun=False)
    watcher = Watcher(task_id=WATCHER, doc_md="Fails, and the run with it, when any work failed.")

    find >> approve >> switch_back
    work = [find, approve, switch_back]
    work >> report >> delivered
    work >> watcher

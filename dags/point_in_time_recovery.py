"""Recovery of Synapse to a moment (R5.1): planned before anything is written, into a scratch place unless told."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, Param

from include.operators.approval import APPROVE
from include.operators.recovery import (
    EVERYTHING,
    LIVE,
    LOCATE,
    SCRATCH,
    ApproveRecovery,
    LocateBackup,
    RemoveRecoveryDirectory,
    ReportRecovery,
    RestoreData,
    SelectTimestamp,
    VerifyPlan,
)
from include.operators.report import WATCHER, Delivered, Watcher
from include.operators.validation import (
    DATA,
    SERVICE,
    STATE,
    CheckApplicationState,
    CheckDataConsistency,
    CheckServiceHealth,
)
from include.policy import load_policy

policy = load_policy()

NAME = "Empty: one of this run's own. "
params = {
    "target": Param(
        "latest",
        type="string",
        minLength=1,
        title="To when",
        description="`latest`; a moment **with its offset**, `2026-11-22T10:37:12+00:00`; the id of a backup; or the "
        "name of a restore point. `python -m include.cli windows` shows which moments there are.",
    ),
    "what": Param(
        EVERYTHING,
        enum=[EVERYTHING, "database", "objects", "configuration", *policy.components],
        title="What",
        description="Everything, one of the three stores, or one component of one.",
    ),
    "where": Param(
        SCRATCH,
        enum=[SCRATCH, LIVE],
        title="Where to",
        description="`scratch`: beside what is live, to look at, compare with and copy from. `live`: **over** it.",
    ),
    "database": Param(
        "",
        type="string",
        pattern=r"^([a-z_][a-z0-9_]*)?$",
        maxLength=63,
        title="Name of the scratch database",
        description=NAME + "On the server of the policy's `sources.database.scratch_connection`.",
    ),
    "objects": Param(
        "",
        type="string",
        pattern=r"^([^/].*/)?$",
        title="Prefix of the scratch objects",
        description=NAME + "In the bucket of the policy's `recovery.objects_connection`; it ends with a slash.",
    ),
    "configuration": Param(
        "",
        type="string",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]*)?$",
        title="Directory of the scratch configuration",
        description=NAME + "On the worker, below its directory for temporary files.",
    ),
    "replace_live": Param(
        False,
        type="boolean",
        title="Replace what is live",
        description="Needed with `live`, and not enough: somebody else has to approve, with the plan before them.",
    ),
}

with DAG(
    dag_id="point_in_time_recovery",
    description="Any moment since the first base: select it, locate its backups, prove them, restore, validate",
    doc_md=f"""
    ### Recovery to a moment (R5.1)

    Database, objects and configuration as they were at **one moment**: any since the first snapshot that is kept, to
    the transaction. *Trigger* it: the form asks to when, what and where to. Left as it is, it brings all of the latest
    moment back **into scratch places**, and touches nothing that is live.

    1. **select_timestamp** reads the form, and refuses what nobody may mean.
    2. **locate_backup** plans: which base, which of the log, how many bytes, how many minutes, the moment that it will
       really reach, and how far the three stores are from it. **The plan is in its log before anything is written.**
       A moment in the future, before the first base or in a gap is refused with the nearest that can be reached.
    3. **verify_integrity** proves that all of it is there and genuine.
    4. **approve** asks a person, for `live` only: *somebody else* than who triggered the run, within
       {policy.recovery.rto}, in Airflow's *Required Actions*, where the plan is, too.
    5. **restore_data** carries that plan out. Every byte is proved as it comes.
    6. **check_data_consistency** and **check_application_state** look at what was brought back, side by side;
       **check_service_health** starts the application on it (R5.2). Each has a button **Validation**: every check.
    7. **report**: what is where, and how to remove it.

    **It is red?** What is live is as it was until `restore_data` with `live`. Open the first red task: its log ends
    with *what happened* and *how to mend it*, and its button **Runbook** leads to what helps. *Clear* it: the same plan
    is carried out, and what an earlier try left in this run's own places is removed first.

    **Over what is live?** Recover to scratch first, and look. Then `live` with `replace_live`: what is there is kept
    beside it, under another name.
    """,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=4,
    params=params,
    tags=["recovery", "R5.1"],
    default_args={"owner": "backup"},
) as dag:
    select = SelectTimestamp(
        task_id="select_timestamp", doc_md="**R5.1** To when, what, and where to. Nothing is looked at yet."
    )
    locate = LocateBackup(
        task_id="locate_backup",
        execution_timeout=policy.recovery.rto / 4,
        doc_md="**R5.1** The plan: base, log, bytes, minutes, the moment that it reaches, the skew. In this log.",
    )
    verify = VerifyPlan(
        task_id="verify_integrity",
        execution_timeout=policy.recovery.rto,
        doc_md="**R5.1** What the plan names is there and genuine; what was never proved since it was made is, now.",
    )
    approve = ApproveRecovery(
        task_id=APPROVE,
        shows=LOCATE,
        subject="Replace what is live with {{ ti.xcom_pull(task_ids='select_timestamp')['target'] }}?",
        body="{{ ti.xcom_pull(task_ids='select_timestamp')['parts'] | join(', ') }} of Synapse will be replaced, as "
        "{{ dag_run.triggering_user_name }} asks. What is there is kept under another name.\n\n"
        "```\n{{ ti.xcom_pull(task_ids='locate_backup')['words'] }}\n```",
        response_timeout=policy.recovery.rto,
        doc_md="**R5.1** For `live` only: somebody else than who triggered the run says yes, the plan before them.",
    )
    restore = RestoreData(
        task_id="restore_data",
        execution_timeout=2 * policy.recovery.rto,
        doc_md="**R5.1** The plan, carried out. A second try removes first what the first one left in scratch places.",
    )
    data = CheckDataConsistency(
        task_id=DATA,
        restored_by="restore_data",
        execution_timeout=policy.recovery.rto,
        doc_md="**R5.2** Rows and digests as recorded; keys, foreign keys, sequences and indexes sound.",
    )
    state = CheckApplicationState(
        task_id=STATE,
        restored_by="restore_data",
        execution_timeout=policy.recovery.rto,
        doc_md="**R5.2** Every object that the database names, the commit, the schema version, the invariants.",
    )
    health = CheckServiceHealth(
        task_id=SERVICE,
        restored_by="restore_data",
        execution_timeout=policy.recovery.rto,
        doc_md="**R5.2** The application is started on what came back, and used; of a part the database takes a write.",
    )
    remove = RemoveRecoveryDirectory(
        task_id="remove_temporary_directory", doc_md="Runs whatever happened."
    ).as_teardown(on_failure_fail_dagrun=False)
    report = ReportRecovery(
        task_id="report",
        doc_md="**R4.6, R5.2** What is where, and how to remove it; or what failed, and how to mend it.",
    )
    delivered = Delivered(
        task_id="delivered", reports=["report"], doc_md="Red in a green run: somebody could not be told of it."
    ).as_teardown(on_failure_fail_dagrun=False)
    watcher = Watcher(task_id=WATCHER, doc_md="Fails, and the run with it, when work *or* a teardown failed.")

    # Health comes last: the application that is started writes, and what it wrote would be compared.
    select >> locate >> verify >> approve >> restore >> [data, state] >> health >> remove
    work = [select, locate, verify, approve, restore, data, state, health, remove]
    work >> report >> delivered
    work >> watcher

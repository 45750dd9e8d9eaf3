"""An archive, back from Glacier, alone, into places to look at (R3.3, R5.1, R8.1)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param

from include.operators.cold import (
    SELECT,
    ReportArchived,
    RestoreArchive,
    RetrieveFromCold,
    SelectArchive,
    ValidateArchived,
)
from include.operators.recovery import RemoveRecoveryDirectory
from include.operators.report import WATCHER, Delivered, Watcher
from include.policy import load_policy

policy = load_policy()

NAME = "Empty: one of this run's own. "
cold = policy.storage.cold
params = {
    "archive": Param(
        type="string",
        pattern=r"^archive-[a-z][a-z0-9_]*-\d{4}-\d{2}$",
        title="Which archive",
        description_md="As in `archive-financial-2026-11`. `python -m include.cli list` shows which there are, and "
        "`python -m include.cli cold` what having each back costs.",
    ),
    "tier": Param(
        cold.retrieval,
        enum=list(cold.retrievals),
        title="How fast",
        description_md=", ".join(f"`{name}` within {each.within}" for name, each in cold.retrievals.items())
        + ". What is not in Glacier is there at once.",
    ),
    "database": Param(
        "",
        type=["null", "string"],
        pattern=r"^([a-z_][a-z0-9_]*)?$",
        maxLength=63,
        title="Name of the scratch database",
        description_md=NAME + "On the server of the policy's `sources.database.scratch_connection`.",
    ),
    "objects": Param(
        "",
        type=["null", "string"],
        pattern=r"^([^/].*/)?$",
        title="Prefix of the scratch objects",
        description_md=NAME + "In the bucket of the policy's `recovery.objects_connection`; it ends with a slash.",
    ),
    "configuration": Param(
        "",
        type=["null", "string"],
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]*)?$",
        title="Directory of the scratch configuration",
        description_md=NAME + "On the worker, below its directory for temporary files.",
    ),
}

with DAG(
    dag_id="archive_restore",
    description="One class's month, back from Glacier, alone, into scratch places",
    doc_md=f"""
    ### An archive comes back (R3.3, R5.1, R8.1)

    One retention class's month, years later, **alone**: it needs no other backup, and touches nothing that is live.
    *Trigger* it: the form asks which archive, how fast, and where to.

    1. **select_archive** reads the form, and says what the archive has. One that was shredded is refused: nothing
       brings it back.
    2. **retrieve** asks Glacier for it, and waits without a worker until every object can be read; it stays so for
       {cold.thawed_for}.
    3. **restore_data** brings its rows into a new database, its objects below a prefix, its configuration into a new
       directory. Every byte is proved as it comes.
    4. **validate** looks at what was brought back (R5.2).
    5. **report**: what is where, and how to remove it.

    **It is red?** Nothing that is live was touched. Open the first red task: its log ends with *what happened* and
    *how to mend it*, and its button **Runbook** leads to what helps. *Clear* it: what is on its way from Glacier is not
    asked for twice, and what an earlier try left in this run's own places is removed first.
    """,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=4,
    params=params,
    tags=["recovery", "archive", "R3.3", "R8.1"],
    default_args={"owner": "backup"},
) as dag:
    select = SelectArchive(task_id=SELECT, doc_md="**R5.1** Which archive, what it has, how fast, and where to.")
    retrieve = RetrieveFromCold(
        task_id="retrieve",
        execution_timeout=timedelta(hours=1),  # of asking and looking; the wait is in the triggerer
        doc_md="**R3.3** Out of Glacier: asked for, and waited for without a worker, until every object can be read.",
    )
    restore = RestoreArchive(
        task_id="restore_data",
        execution_timeout=2 * policy.recovery.rto,
        doc_md="**R5.1** Rows, objects and configuration, each into its place. A second try clears it first.",
    )
    validate = ValidateArchived(
        task_id="validate",
        execution_timeout=policy.recovery.rto,
        doc_md="**R5.2** What came back is all there, and answers.",
    )
    remove = RemoveRecoveryDirectory(
        task_id="remove_temporary_directory", selected_by=SELECT, doc_md="Runs whatever happened."
    ).as_teardown(on_failure_fail_dagrun=False)
    report = ReportArchived(
        task_id="report",
        doc_md="**R4.6, R5.2** What is where, and how to remove it; or what failed, and how to mend it.",
    )
    delivered = Delivered(
        task_id="delivered", reports=["report"], doc_md="Red in a green run: somebody could not be told of it."
    ).as_teardown(on_failure_fail_dagrun=False)
    watcher = Watcher(task_id=WATCHER, doc_md="Fails, and the run with it, when work *or* a teardown failed.")

    select >> retrieve >> restore >> validate >> remove
    work = [select, retrieve, restore, validate, remove]
    work >> report >> delivered
    work >> watcher

"""The hourly increment of Synapse (R1.2): everything since the last one, so that any moment can be recovered."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, CronDataIntervalTimetable

from include.operators import groups
from include.operators.execute import MakeIncrement
from include.policy import load_policy

policy = load_policy()

with DAG(
    dag_id="incremental_backup",
    description="Increment: the log, the objects and the commits since the last window, contiguous with it, verified",
    doc_md="""
    ### Increment (R1.2)

    One **window** of the log a run, from where the last one ended: no moment between two windows is lost, however late
    a run comes. With it the objects that were made, changed and deleted, and new commits. What `wal_stream` shipped
    already is only closed over.

    1. **prepare**: room, permissions, database, log, stores and keys in one task (R4.1, R4.2).
    2. **execute**: writes are stopped for milliseconds for the **consistency point**; the segment of the log is ended,
       and shipped; the signed manifest commits the window (R4.3, R4.4).
    3. **verify**: every byte is read back and compared (R4.5).
    4. **replicate**, beside it: the window is durable in the second region (R3.2); only then may the server forget that
       log.
    5. **report**: success report or error alert (R4.6).

    **It is red?** Nothing is lost yet: the server keeps the log for the next run. Open the first red task: its log ends
    with *what happened* and *how to mend it*, and its button **Runbook** leads to what helps.

    | red | in short |
    |---|---|
    | *prepare* | something is missing or may not be used; nothing was touched |
    | `create_backup` | *no base*, *a gap*, *another cluster*: **trigger `snapshot_backup`**; else mend it and clear |
    | `resume_writes` | **look first**: it could not prove that Synapse's writes are free |
    | `integrity` | the window is there, and is not to be trusted: trigger `snapshot_backup`, then find out why |
    | `replicate` | the window is there, in one region, and the server keeps its log; the next run brings both |
    | `delivered`, in a green run | the increment is good; a mail or chat did not arrive |
    | `watcher` | only says that another task is red |

    **`create_backup` is skipped, and the run green?** Its hour was **adopted**: the window of another run covers it
    already, and the log of the task names it. That is what becomes of hours that were missed.

    **Missed hours?** The next run's window covers them all, by itself. A *backfill* makes the record say so: each hour
    is complete or adopted, once, in whatever order. An hour whose log the server has given up is declared a **gap**:
    its run is red, and says what cannot be recovered. `python -m include.cli windows` prints all of it.

    **Marked as success, cleared, deleted here?** The bucket decides what is there, and this page does not change it.
    """,
    schedule=CronDataIntervalTimetable(policy.backups.incremental.schedule, timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["backup", "incremental", "R1.2"],
    default_args={"owner": "backup"},
) as dag:
    prepare = groups.prepare_increment()
    execute = groups.execute(
        "incremental", MakeIncrement, timeout=2 * policy.monitoring.warnings.slow_backup.longest.incremental
    )
    verify = groups.verify("incremental")
    replicate = groups.replicate("incremental")

    prepare.group >> execute.group >> [verify.group, replicate]
    groups.report("incremental", prepare, execute, verify, replicate)

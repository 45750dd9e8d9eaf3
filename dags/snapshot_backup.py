"""The weekly snapshot of Synapse (R1.3): the base that any moment after it is recovered from."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, CronDataIntervalTimetable

from include.operators import groups
from include.operators.execute import MakeSnapshot
from include.policy import load_policy

policy = load_policy()

with DAG(
    dag_id="snapshot_backup",
    description="Snapshot: the whole cluster and all files, the base of every recovery to a moment, proved by a start",
    doc_md="""
    ### Snapshot (R1.3)

    The whole database cluster as it runs (`pg_basebackup`), the log up to a **consistency point**, the objects and the
    configuration as of that point. It restores alone, and every moment after it is recovered from it and the log that
    `incremental_backup` and `wal_stream` keep.

    1. **prepare**: room, permissions, a temporary directory (R4.1); database, log, buckets, keys (R4.2).
    2. **execute**: the copy is streamed while the application works; then writes are stopped for milliseconds, for the
       consistency point; the log up to it follows; the signed manifest, written last, commits it (R4.3, R4.4).
    3. **verify**: every byte is read back and weighed, and the cluster is **started**: unpacked, recovered to the point
       in a private directory, walked through, every table compared (R4.5).
    4. **replicate**, beside it: the snapshot is durable in the second region (R3.2). The run is green only then.
    5. **report**: status update, success report or error alert (R4.6).

    **It is red?** Writes are not stopped, and the last green snapshot is as good as it was; increments go on from it.
    Open the first red task: its log ends with *what happened* and *how to mend it*, and its button **Runbook** leads to
    what helps. Mend it, then *clear* the failed tasks: a snapshot that was committed already is kept.

    | red | in short |
    |---|---|
    | *prepare* | something is missing or may not be used; nothing was touched |
    | `stop_writes`, `create_backup` | no snapshot of this week yet; clear the run as soon as it is mended |
    | `resume_writes` | **look first**: it could not prove that Synapse's writes are free |
    | *verify* | the snapshot is there, and is not to be trusted: trigger another one, then find out why |
    | `replicate` | the snapshot is there, in one region; the next run brings what is missing. Mend it, and clear |
    | `delivered`, in a green run | the snapshot is good; a mail or chat did not arrive |
    | `watcher` | only says that another task is red |

    **The first one?** *Trigger* it before you unpause `incremental_backup`: increments stand on it. After a gap in the
    log (an increment says so), trigger it again: what comes after the gap needs a new base.

    **A missed window?** The cluster as it was then cannot be copied any more. A *backfill* of it is **adopted** by the
    snapshot that came after it: `create_backup` is skipped, and the run is green. Is there none, it is taken now, and
    its manifest says how late.
    """,
    schedule=CronDataIntervalTimetable(policy.backups.snapshot.schedule, timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["backup", "snapshot", "R1.3"],
    default_args={"owner": "backup"},
) as dag:
    prepare = groups.prepare("snapshot")
    execute = groups.execute(
        "snapshot", MakeSnapshot, timeout=2 * policy.monitoring.warnings.slow_backup.longest.snapshot
    )
    verify = groups.verify("snapshot")
    replicate = groups.replicate("snapshot")

    prepare.group >> execute.group >> [verify.group, replicate]
    groups.report("snapshot", prepare, execute, verify, replicate)

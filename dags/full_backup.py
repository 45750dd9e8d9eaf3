"""The full backup of Synapse (R1.1): daily, or whenever it is triggered."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, CronDataIntervalTimetable

from include.operators import groups
from include.operators.execute import MakeFullBackup
from include.policy import load_policy

policy = load_policy()

with DAG(
    dag_id="full_backup",
    description="Full backup: database, objects and configuration as of one moment, verified",
    doc_md="""
    ### Full backup (R1.1)

    Database, object store and configuration **as of one moment**, compressed, encrypted, in the primary bucket.

    1. **prepare**: room, permissions, a temporary directory (R4.1); database, buckets, keys (R4.2).
    2. **execute**: writes are stopped for milliseconds while the consistency point is taken; everything is copied
       behind it; the signed manifest, written last, commits the backup (R4.3, R4.4).
    3. **verify**: every byte is read back, weighed, and one component restored and compared (R4.5). A record of each
       proof is kept; one that fails takes the backup out of every plan.
    4. **replicate**, beside it: the backup is durable in the second region (R3.2). The run is green only then.
    5. **report**: status update, success report or error alert (R4.6).

    **It is red?** Writes are not stopped, and the last green backup is as good as it was. Open the first red task: its
    log ends with *what happened* and *how to mend it*, and its button **Runbook** leads to what helps. Mend it, then
    *clear* the failed tasks: the run has the same backup id, and a backup that was committed already is kept.

    | red | in short |
    |---|---|
    | *prepare* | something is missing or may not be used; nothing was touched |
    | `stop_writes`, `create_backup` | no backup of this slot yet; clear the run as soon as it is mended |
    | `resume_writes` | **look first**: it could not prove that Synapse's writes are free |
    | *verify* | the backup is there, and is not to be trusted: trigger another one, then find out why |
    | `replicate` | the backup is there, in one region; the next run brings what is missing. Mend it, and clear |
    | `delivered`, in a green run | the backup is good; a mail or chat did not arrive |
    | `watcher` | only says that another task is red |

    **Out of schedule?** *Trigger* it: a manual run is a backup of its own, `full-manual-…`. What you write into the
    run's *note* is in its reports. There is nothing else to choose.

    **A missed window?** *Backfill* it: the run has the id of its slot.
    """,
    schedule=CronDataIntervalTimetable(policy.backups.full.schedule, timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["backup", "full", "R1.1"],
    default_args={"owner": "backup"},
) as dag:
    prepare = groups.prepare("full")
    execute = groups.execute("full", MakeFullBackup, timeout=2 * policy.monitoring.warnings.slow_backup.longest.full)
    verify = groups.verify("full")
    replicate = groups.replicate("full")

    prepare.group >> execute.group >> [verify.group, replicate]
    groups.report("full", prepare, execute, verify, replicate)

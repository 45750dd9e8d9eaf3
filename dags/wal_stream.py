"""The log of Synapse's database between the hours (R5.5): each segment in the bucket within a minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG

from include.operators.stream import ShipWal
from include.policy import load_policy

policy = load_policy()

with DAG(
    dag_id="wal_stream",
    description="The database's log, shipped as it is written; one run after the other, an hour each",
    doc_md=f"""
    ### The log between the hours (R5.5)

    1. **ship**: follows the database's log and stores each segment as soon as it is finished, and at the latest
       {policy.backups.incremental.shipped_within} after it was written. After an hour the run ends, green, and the next
       one begins.

    `incremental_backup` closes its window over what is in the bucket already, and ships what is missing. So nothing is
    lost while this stands still but time: a disaster then costs up to an hour and a run, and not a minute.

    **On and off.** Unpaused it runs, and paused it does not: what runs ends with its hour. It takes one slot of the
    executor for all of the time.

    **Either this or the service** `wal-stream` of `docker-compose.yaml` (`python -m include.cli stream`), which needs
    no Airflow. If both run, one of them ships and the other waits, ready to go on within a minute when the first dies.

    **It is red?** `ship` tries again by itself, for the whole of its hour. Its log ends with *what happened* and *how
    to mend it*. No alert is sent from here: the next increment does the work, and alerts when it cannot.
    """,
    schedule="@continuous",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["backup", "wal", "R5.5"],
    default_args={"owner": "backup"},
) as dag:
    ShipWal(
        task_id="ship",
        hour=timedelta(hours=1),
        doc_md="**R5.5** Ships each segment of the log as it is finished; while somebody else does, it stands by.",
    )

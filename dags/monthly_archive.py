"""The monthly archive (R3.3, R8.1): each retention class's share of the month's first verified full backup."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, TaskGroup

from include.operators.archive import MONTH, ChooseFull, MakeArchive, ReplicateArchives, ReportArchives, VerifyArchive
from include.operators.report import WATCHER, AlertRun, Delivered, Watcher
from include.policy import load_policy

policy = load_policy()

LONG = timedelta(hours=12)
"""Everything is read, sealed anew and read back, and nobody waits for it."""
KEPT = ", ".join(f"*{name}* for {period}" for name, period in policy.compliance.retention.items())

with DAG(
    dag_id="monthly_archive",
    description="A month's archives, one a retention class, each under a key of its own and restorable alone",
    doc_md=f"""
    ### The monthly archive (R3.3, R8.1)

    Full backups, snapshots and increments expire within weeks. What the law wants for years is copied out of the
    month's **first verified full backup**, a retention class at a time: {KEPT}.

    1. **choose_full**: the month's first full backup that is verified.
    2. for each class **make**: its rows with the schema, its objects, its configuration, without secrets, under **one
       key of its own**, below `archive/<class>/`; then **verify**: every byte is read back.
    3. **replicate**: they are durable in the second region (R3.2). The run is green only then.
    4. **success_report** or **error_alert**.

    After {
        policy.storage.cold.transition_after
    } the bucket's lifecycle moves it to Glacier. `archive_restore` brings one
    back. `python -m include.cli shred` destroys a class's month for good, and nothing else.

    **It is red?** The full backup is as good as it was. Open the first red task: its log ends with *what happened* and
    *how to mend it*, and its button **Runbook** leads to what helps. *Clear* it: what was made is kept.

    **A month was missed?** *Trigger* it with that month, or backfill it: as long as a full backup of the month is there
    ({policy.backups.full.retention}), so are its archives.
    """,
    schedule=CronDataIntervalTimetable(policy.backups.archive.schedule, timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={
        "month": Param(
            "",
            type=["null", "string"],
            pattern=MONTH,
            title="Which month",
            description_md="As in `2026-11`. Empty: the month in which the run's interval ends, or it is triggered.",
        )
    },
    tags=["archive", "R3.3", "R8.1"],
    default_args={"owner": "backup"},
) as dag:
    choose = ChooseFull(
        task_id="choose_full",
        doc_md="**R8.1** The month's first verified full backup. Waits through the morning for its verification.",
    )
    made, work = [], [choose]
    for name in policy.compliance.retention:
        with TaskGroup(name, tooltip=f"R8.1 {name}: kept {policy.compliance.retention[name]}"):
            make = MakeArchive(
                task_id="make",
                retention_class=name,
                execution_timeout=LONG,
                doc_md=f"**R8.1** The *{name}* share of the full backup, sealed anew under a key of its own.",
            )
            verify = VerifyArchive(
                task_id="verify",
                retention_class=name,
                execution_timeout=LONG,
                doc_md="**R4.5** Every byte of it is read back, and compared with its manifest.",
            )
        choose >> make >> verify
        made.append(make)
        work += [make, verify]
    replicate = ReplicateArchives(
        task_id="replicate",
        execution_timeout=LONG,
        doc_md="**R3.2** The archives are durable in the second region, whichever class failed.",
    )
    [task for task in work if isinstance(task, VerifyArchive)] >> replicate
    work.append(replicate)
    success = ReportArchives(
        task_id="success_report",
        chosen_by=choose.task_id,
        made_by=[make.task_id for make in made],
        doc_md="**R4.6** What was archived, of which full backup, and how large it is.",
    )
    alert = AlertRun(task_id="error_alert", doc_md="**R4.6** What failed, and how to mend it.")
    delivered = Delivered(
        task_id="delivered",
        reports=["success_report", "error_alert"],
        doc_md="Red in a green run: somebody could not be told of it.",
    ).as_teardown(on_failure_fail_dagrun=False)
    watcher = Watcher(
        task_id=WATCHER, doc_md="Fails, and the run with it, when work failed, though the alert was sent."
    )

    work >> success
    work >> alert
    work >> watcher
    [success, alert] >> delivered

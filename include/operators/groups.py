"""The task groups that the backup DAGs share: prepare, execute, verify, replicate beside it, and report.

Each returns its tasks, for the DAG file to say what comes after what. What comes hourly has fewer tasks: each costs a
second of a worker, so *prepare* and *verify* are one each there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow.sdk import TaskGroup

from include.operators.execute import ResumeWrites, StopWrites
from include.operators.prepare import (
    CheckDiskSpace,
    CreateTemporaryDirectory,
    PrepareIncrement,
    RemoveTemporaryDirectory,
    ValidateDatabase,
    ValidateKeys,
    ValidateStores,
    VerifyPermissions,
)
from include.operators.replicate import Replicate
from include.operators.report import WATCHER, AlertError, Delivered, ReportStatus, ReportSuccess, Watcher
from include.operators.verify import RestoreSample, StartCluster, ValidateSizes, VerifyIntegrity

if TYPE_CHECKING:
    from include.operators.step import BackupStep
    from include.repository.layout import BackupType

LONG = timedelta(hours=4)
"""Reading a whole backup back may take as long as the RTO (R5.4) gives a restore, and no longer."""


@dataclass(frozen=True)
class Prepare:
    """*prepare*: `group`, and in it the set-up whose teardown removes the temporary directory, when it made one."""

    group: TaskGroup
    create_temporary_directory: BackupStep


@dataclass(frozen=True)
class Execute:
    """*execute*: `create` is the creation, `resume_writes` the teardown around it."""

    group: TaskGroup
    create: BackupStep
    resume_writes: BackupStep


@dataclass(frozen=True)
class Verify:
    """*verify*: the proofs of its type, side by side."""

    group: TaskGroup
    proofs: tuple[BackupStep, ...]


def prepare(backup_type: BackupType) -> Prepare:
    """R4.1 and R4.2: nothing is stopped or written before all of it holds."""
    with TaskGroup("prepare", tooltip="R4.1 preparation, R4.2 validations") as group:
        disk = CheckDiskSpace(
            task_id="check_disk_space",
            backup_type=backup_type,
            doc_md="**R4.1** The worker's disk has room for temporary files. Data itself is streamed.",
        )
        permissions = VerifyPermissions(
            task_id="verify_permissions",
            backup_type=backup_type,
            doc_md="**R4.1** The sources can be read, and the backup bucket written, listed and read.",
        )
        directory = CreateTemporaryDirectory(
            task_id="create_temporary_directory",
            backup_type=backup_type,
            doc_md="**R4.1** The run's temporary directory, mode 0700. Removed at the end, whatever happens.",
        )
        with TaskGroup("validate", tooltip="R4.2 before it starts") as validate:
            ValidateDatabase(
                task_id="database_connection",
                backup_type=backup_type,
                doc_md="**R4.2** The logins reach the same primary, and PostgreSQL's tools and settings fit.",
            )
            ValidateStores(
                task_id="s3_access",
                backup_type=backup_type,
                doc_md="**R4.2** Both object stores answer, and keep versions (R3.1).",
            )
            ValidateKeys(
                task_id="encryption_keys",
                backup_type=backup_type,
                doc_md="**R4.2** The keyring opens what it wraps and proves what it signs.",
            )
        [disk, permissions, directory] >> validate
    return Prepare(group, directory)


def prepare_increment() -> Prepare:
    """R4.1 and R4.2 in one task, for what an increment needs: the same checks, and no more of them."""
    with TaskGroup("prepare", tooltip="R4.1 preparation, R4.2 validations") as group:
        check = PrepareIncrement(
            task_id="check_and_make_room",
            backup_type="incremental",
            doc_md="**R4.1, R4.2** Disk, permissions, database, stores and keys; then the run's temporary directory, "
            "mode 0700. Removed at the end, whatever happens.",
        )
    return Prepare(group, check)


def execute(backup_type: BackupType, creation: type[BackupStep], *, timeout: timedelta) -> Execute:
    """R4.3: stop writes, make the backup, resume writes; R4.4 is in the log of the creation."""
    with TaskGroup("execute", tooltip="R4.3 stop writes, create the backup, resume") as group:
        stop = StopWrites(
            task_id="stop_writes",
            backup_type=backup_type,
            doc_md="**R4.3** Nothing long-running stands in the way of the write barrier; what does is named. "
            "The stop itself is milliseconds, inside the creation, on a connection whose death ends it.",
        )
        create = creation(
            task_id="create_backup",
            backup_type=backup_type,
            execution_timeout=timeout,
            doc_md="**R4.3, R4.4** The consistency point, everything behind it, the signed manifest last. "
            "Progress and resource usage are in this log.",
        )
        resume = ResumeWrites(
            task_id="resume_writes",
            backup_type=backup_type,
            doc_md="**R4.3** Runs whatever happened: no session of this run stops writes any more. "
            "Reports how long they were stopped.",
        )
        stop >> create >> resume.as_teardown(setups=stop, on_failure_fail_dagrun=False)
    return Execute(group, create, resume)


def verify(backup_type: BackupType) -> Verify:
    """R4.5: a record of each proof is kept beside the backup, and one that fails takes it out of every plan."""
    with TaskGroup("verify", tooltip="R4.5 integrity, sizes, sample restore") as group:
        integrity = VerifyIntegrity(
            task_id="integrity",
            backup_type=backup_type,
            execution_timeout=LONG,
            doc_md="**R4.5** Every artifact, object and segment of the log is read back, decrypted and compared with "
            "the manifest.",
        )
        proofs: tuple[BackupStep, ...] = (integrity,)
        if backup_type != "incremental":
            proofs = (integrity, _validate_sizes(backup_type), _restore(backup_type))
    return Verify(group, proofs)


def replicate(backup_type: BackupType) -> BackupStep:
    """R3.2: a run is green only when its backup is durable in the second region, too."""
    return Replicate(
        task_id="replicate",
        backup_type=backup_type,
        execution_timeout=LONG,
        doc_md="**R3.2** The backup, and everything older that is not there yet, is in the second region: compared, a "
        "sample opened there with the keys that lie there. Then the server may forget the log that it holds.",
    )


def _validate_sizes(backup_type: BackupType) -> BackupStep:
    return ValidateSizes(
        task_id="sizes",
        backup_type=backup_type,
        doc_md="**R4.5** The sizes fit the source: every row and object has its bytes. Nothing is suddenly "
        "less than in the last backups; when that is right, `python -m include.cli accept` says so.",
    )


def _restore(backup_type: BackupType) -> BackupStep:
    if backup_type == "snapshot":
        return StartCluster(
            task_id="start",
            backup_type=backup_type,
            execution_timeout=LONG,
            doc_md="**R4.5** The whole cluster is unpacked, proved by `pg_verifybackup`, recovered to the consistency "
            "point in a private directory, walked by `pg_amcheck`, and every table compared with the source as it was.",
        )
    return RestoreSample(
        task_id="sample_restore",
        backup_type=backup_type,
        execution_timeout=LONG,
        doc_md="**R4.5** One component, another each day, is restored into a scratch place and compared with "
        "the source as it was.",
    )


def report(
    backup_type: BackupType, prepared: Prepare, executed: Execute, verified: Verify, replicated: BackupStep
) -> None:
    """R4.6, the removal of the temporary directory, and the watcher over all of it."""
    made_by = executed.create.task_id
    remove = RemoveTemporaryDirectory(
        task_id="remove_temporary_directory",
        backup_type=backup_type,
        doc_md="**R4.1** Runs whatever happened.",
    ).as_teardown(setups=prepared.create_temporary_directory, on_failure_fail_dagrun=False)
    with TaskGroup("report", tooltip="R4.6 status update, success report, error alert"):
        success = ReportSuccess(
            task_id="success_report",
            backup_type=backup_type,
            made_by=made_by,
            proved_by=[proof.task_id for proof in (*verified.proofs, replicated)],
            doc_md="**R4.6** What was backed up, how fast, how long writes were stopped, what proved it.",
        )
        alert = AlertError(
            task_id="error_alert",
            backup_type=backup_type,
            doc_md="**R4.6** Which task failed, what happened, how to mend it. Sent at the first failure.",
        )
        reports: list[BackupStep] = [success, alert]
        if backup_type != "incremental":  # its success report follows within seconds
            status = ReportStatus(
                task_id="status_update",
                backup_type=backup_type,
                made_by=made_by,
                doc_md="**R4.6** The backup is made, and is being verified.",
            )
            executed.create >> status
            reports = [status, *reports]
        (
            Delivered(
                task_id="delivered",
                reports=[report.task_id for report in reports],
                doc_md="**R4.6** Red in a green run: the backup is good, but somebody could not be told of it.",
            ).as_teardown(on_failure_fail_dagrun=False)
            << reports
        )
    watcher = Watcher(
        task_id=WATCHER,
        doc_md="Fails, and the run with it, when work *or* a teardown failed. A failed teardown alone would not.",
    )
    teardowns = [executed.resume_writes, remove]
    verified.group >> remove
    [*verified.proofs, replicated, *teardowns] >> success
    work = [*prepared.group, *executed.group, *verified.group, replicated, remove]
    # A set-up may be followed by ALL_SUCCESS only; that it failed shows in the task after it.
    [task for task in work if not task.is_setup] >> alert
    [task for task in work if not task.is_setup] >> watcher

"""The steps before a backup begins: preparation (R4.1) and validation (R4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include.operators.step import BackupStep, Facts

if TYPE_CHECKING:
    from include.operators.run import BackupRun


class CheckDiskSpace(BackupStep):
    """Whether the worker's disk has the policy's room for temporary files (R4.1)."""

    def step(self, run: BackupRun) -> Facts:
        """The free and the needed bytes."""
        from include.backup import prepare  # noqa: PLC0415

        return prepare.check_disk(run.root, run.policy)


class VerifyPermissions(BackupStep):
    """Whether every login may do its part, the sources can be read, and the bucket written, listed and read (R4.1)."""

    def step(self, run: BackupRun) -> Facts:
        """What was found in each source."""
        from include.backup import prepare  # noqa: PLC0415

        return prepare.check_permissions(run.application, run.catalog, run.policy, backup_type=self.backup_type)


class CreateTemporaryDirectory(BackupStep):
    """Make the run's temporary directory, for its owner alone (R4.1)."""

    def step(self, run: BackupRun) -> Facts:
        """Its path."""
        return {"scratch": str(run.scratch)}


class PrepareIncrement(BackupStep):
    """All of it for an increment in one process, the temporary directory last (R4.1, R4.2)."""

    def step(self, run: BackupRun) -> Facts:
        """What was found, and the directory's path."""
        from include.backup import prepare  # noqa: PLC0415

        facts = prepare.check_increment(run.application, run.catalog, run.policy, temporary=run.root)
        return {**facts, "scratch": str(run.scratch)}


class RemoveTemporaryDirectory(BackupStep):
    """Remove the run's temporary directory, on the worker that this task lands on."""

    def step(self, run: BackupRun) -> Facts:
        """Its path."""
        from include.backup import prepare  # noqa: PLC0415

        prepare.remove_scratch(run.root, run.scratch_name)
        return {"removed": str(run.root / run.scratch_name)}


class ValidateDatabase(BackupStep):
    """Whether both logins reach the database, and its settings and PostgreSQL's tools fit (R4.2)."""

    def step(self, run: BackupRun) -> Facts:
        """The server's version and the tools'."""
        from include.backup import prepare  # noqa: PLC0415

        return prepare.check_database(run.application, run.policy, backup_type=self.backup_type)


class ValidateStores(BackupStep):
    """Whether both object stores answer and keep versions, and what the backups' guards against (R4.2)."""

    def step(self, run: BackupRun) -> Facts:
        """The buckets."""
        from include.backup import prepare  # noqa: PLC0415

        return prepare.check_stores(run.application, run.catalog, run.policy)


class ValidateKeys(BackupStep):
    """Whether the keyring opens what it wraps and proves what it signs (R4.2)."""

    def step(self, run: BackupRun) -> Facts:
        """The ids of the keys in use."""
        from include.backup import prepare  # noqa: PLC0415

        return prepare.check_keys(run.catalog, run.policy)

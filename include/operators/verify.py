"""The steps that prove a committed backup, from the bucket alone (R4.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include.operators.step import BackupStep, Facts

if TYPE_CHECKING:
    from include.operators.run import BackupRun


class VerifyIntegrity(BackupStep):
    """Read every artifact and object back, decrypt it, and compare it with the manifest (R4.5)."""

    def step(self, run: BackupRun) -> Facts:
        """How much was read."""
        from include.backup import verify  # noqa: PLC0415

        return verify.check_integrity(run.catalog, run.backup, run.policy, scratch=run.scratch)


class ValidateSizes(BackupStep):
    """Weigh the backup against its source (R4.5)."""

    def step(self, run: BackupRun) -> Facts:
        """The sizes."""
        from include.backup import verify  # noqa: PLC0415

        return verify.check_sizes(run.catalog, run.backup, run.policy, scratch=run.scratch)


class RestoreSample(BackupStep):
    """Restore one component into a scratch database, and compare it with the source as it was (R4.5)."""

    def step(self, run: BackupRun) -> Facts:
        """Which component, and its rows."""
        from include.backup import verify  # noqa: PLC0415
        from include.operators.connections import database_login  # noqa: PLC0415

        return verify.restore_sample(
            run.catalog,
            run.backup,
            run.policy,
            server=database_login(run.policy.sources.database.scratch_connection),
            day=run.backup.moment.date(),
            scratch=run.scratch,
        )

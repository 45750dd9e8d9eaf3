"""The steps that prove a committed backup, and write what they found beside it as verification records (R4.5)."""

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

        return verify.prove_integrity(run.catalog, run.backup, run.policy, scratch=run.scratch)


class ValidateSizes(BackupStep):
    """Weigh the backup against its source, and against the backups before it (R4.5)."""

    def step(self, run: BackupRun) -> Facts:
        """The sizes."""
        from include.backup import verify  # noqa: PLC0415

        return verify.prove_sizes(run.catalog, run.backup, run.policy, scratch=run.scratch)


class RestoreSample(BackupStep):
    """Restore one component, another each day, and compare it with the source as it was (R4.5)."""

    def step(self, run: BackupRun) -> Facts:
        """Which component, and how much of it."""
        from include.backup import verify  # noqa: PLC0415
        from include.backup.sample import turn_of  # noqa: PLC0415
        from include.operators.connections import bucket, database_login  # noqa: PLC0415

        sources, manifest = run.policy.sources, run.catalog.get(run.backup)
        return verify.prove_sample(
            run.catalog,
            manifest,
            run.policy,
            turn_of(manifest, run.policy),
            server=database_login(sources.database.scratch_connection),
            source=bucket(sources.objects.connection),
            scratch=run.scratch,
        )


class StartCluster(BackupStep):
    """Recover a snapshot to its consistency point in a private place, look through it, and compare it (R4.5)."""

    def step(self, run: BackupRun) -> Facts:
        """How much was recovered, how long it took, and what was compared."""
        from include.backup import verify  # noqa: PLC0415

        manifest = run.catalog.get(run.backup)
        return verify.prove_start(run.catalog, manifest, run.policy, scratch=run.scratch)

"""The steps that make a backup (R4.3), with progress and resource usage in the task's log (R4.4)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from include.errors import BackupError
from include.operators.step import BackupStep, Facts

if TYPE_CHECKING:
    from include.operators.run import BackupRun
    from include.repository.manifest import Manifest


class StopWrites(BackupStep):
    """Prove that nothing long-running would make the write barrier wait (R4.3).

    The barrier itself is taken inside the creation, for milliseconds, on a connection whose death releases it.
    """

    def step(self, run: BackupRun) -> Facts:
        """How many tables will be locked."""
        from include.backup import consistency  # noqa: PLC0415

        return consistency.stop_writes(run.application, run.policy)


class MakeBackup(BackupStep):
    """Make the backup and commit it; its XCom is the summary. Each type says which function of the engine makes it."""

    ui_color = "#cfe3d4"

    @abstractmethod
    def maker(self) -> Callable[..., Manifest]:
        """The engine's function, imported inside the task."""

    def step(self, run: BackupRun) -> Facts:
        """The summary of the committed backup."""
        from include.backup.summary import summary  # noqa: PLC0415

        manifest = self.maker()(
            run.backup,
            slot=run.slot,
            application=run.application,
            catalog=run.catalog,
            policy=run.policy,
            scratch=run.scratch,
        )
        return summary(manifest)


class MakeFullBackup(MakeBackup):
    """Stop writes for a moment, take the consistency point, copy everything behind it, and commit (R4.3, R4.4)."""

    def maker(self) -> Callable[..., Manifest]:
        """A full backup."""
        from include.backup.full import make_full_backup  # noqa: PLC0415

        return make_full_backup


class MakeSnapshot(MakeBackup):
    """Copy the whole cluster as it runs, take the consistency point, and the log up to it (R1.3, R4.3, R4.4)."""

    def maker(self) -> Callable[..., Manifest]:
        """A snapshot."""
        from include.backup.snapshot import make_snapshot  # noqa: PLC0415

        return make_snapshot


class MakeIncrement(MakeBackup):
    """Everything since the last window: the log, the objects that changed, new commits (R1.2, R4.3, R4.4)."""

    def maker(self) -> Callable[..., Manifest]:
        """A window."""
        from include.backup.increment import make_increment  # noqa: PLC0415

        return make_increment


class ResumeWrites(BackupStep):
    """Prove that no session of this run stops writes any more (R4.3), ending one that does; tell the measured stop."""

    def step(self, run: BackupRun) -> Facts:
        """The sessions that had to be ended, and the measured write stop when the backup was committed."""
        from include.backup import consistency  # noqa: PLC0415
        from include.backup.summary import summary  # noqa: PLC0415

        facts = consistency.resume_writes(run.application, run.backup)
        try:
            manifest = run.catalog.find(run.backup)
        except BackupError as error:  # writes are free, which is what this step is for
            self.log.warning("How long writes were stopped is not known: %s", error)
            return facts
        if manifest is None:
            return facts
        made = summary(manifest)
        self.log.info(
            "Writes were stopped for %s ms at most, locks held for %s ms.", made["write_stop_ms"], made["locks_held_ms"]
        )
        return facts | {key: made[key] for key in ("write_stop_ms", "locks_held_ms")}

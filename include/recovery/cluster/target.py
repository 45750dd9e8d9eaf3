"""Where the replay of a cluster's log ends."""

from __future__ import annotations

from dataclasses import dataclass

from include.errors import BackupError
from include.repository.lsn import Lsn


@dataclass(frozen=True)
class StopAt:
    """A restore point by its name, or a place in the log; never a time, which an idle server's log may not hold.

    With a name, `lsn` is where the point's record ends, as `pg_create_restore_point` returned it: it is not what is
    searched for, and what was found must equal it (of two points of one name recovery stops at the first). Without one,
    replay ends before the first record that begins at `lsn` or later, or right after it when `inclusive`
    (https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-RECOVERY-TARGET-LSN).
    Raises `BackupError` for neither.
    """

    name: str | None = None
    lsn: Lsn | None = None
    inclusive: bool = True

    def __post_init__(self) -> None:
        if not self.name and self.lsn is None:
            raise BackupError(
                "A recovery without an end would stop wherever the log has a hole.",
                mend="Name a restore point, or a place in the log.",
            )

    def __str__(self) -> str:
        if self.name:
            return f"restore point {self.name}" + (f" at {self.lsn}" if self.lsn is not None else "")
        return f"{'after' if self.inclusive else 'before'} the record at {self.lsn}"

"""Whose temporary directory is whose: a step holds its run's by a lock that dies with the process, a recovery its own.

Between the steps of a run nobody holds it, so the lock alone proves nothing: a directory is dead when no step holds it
and nothing in it has changed for the policy's time. Locks and times are those of one worker: each reaps its own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from include.errors import BackupError
from include.pipeline.account import server_account
from include.pipeline.disk import RECOVERY
from include.repository.layout import named_by

SCRATCH_VARIABLE = "BACKUP_SCRATCH"


class DirectoryInUse(BackupError):
    """A temporary directory that a step works in."""


@dataclass(frozen=True)
class TemporaryDirectory:
    """One that a run or a recovery made: its bytes, and when anything in it changed last (our clock, aware UTC)."""

    path: Path
    bytes: int
    changed: datetime


def hold(directory: Path) -> int:
    """Hold a run's directory for as long as this process lives, or until the returned descriptor is closed.

    Several steps of one run may hold it at once. One that the reaper took at this very moment is made again.
    """
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def temporary_directories(root: Path) -> list[TemporaryDirectory]:
    """Every directory below `root` that is called after a backup, is this user's, and is held by no step."""
    return _unheld(root, lambda name: named_by(name) is not None, owners={os.getuid()})


def recovery_directories(temporary: Path) -> list[TemporaryDirectory]:
    """Every directory among temporary files that is called as a recovery calls its own, and is held by none.

    It is this user's, or belongs to the account that root's recovered servers run as.
    """
    account = server_account()
    owners = {os.getuid(), *([account.uid] if account else [])}
    return _unheld(temporary, lambda name: name.startswith(RECOVERY), owners=owners)


def remove_directory(directory: TemporaryDirectory) -> None:
    """Remove it with all that is in it; raises `DirectoryInUse` when somebody holds it, or has changed it since."""
    with suppress(FileNotFoundError), _alone(directory.path):  # another reaper may have been here
        if _measured(directory.path) != directory:
            raise DirectoryInUse(f"{directory.path} has changed.", mend="Leave it to the run that it belongs to.")
        shutil.rmtree(directory.path)


def _unheld(root: Path, called: Callable[[str], bool], *, owners: Collection[int]) -> list[TemporaryDirectory]:
    found: list[TemporaryDirectory] = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        with suppress(DirectoryInUse, FileNotFoundError):  # what is held, and what has just been removed
            if called(path.name) and stat.S_ISDIR(path.lstat().st_mode) and path.lstat().st_uid in owners:
                with _alone(path):
                    found.append(_measured(path))
    return found


def _measured(path: Path) -> TemporaryDirectory:
    inside = [each.lstat() for each in (path, *path.rglob("*"))]
    changed = datetime.fromtimestamp(max(each.st_mtime for each in inside), UTC)
    return TemporaryDirectory(path, sum(each.st_size for each in inside if stat.S_ISREG(each.st_mode)), changed)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DirectoryInUse(f"A step works in {path}.", mend="Leave it alone.") from None
    finally:
        os.close(descriptor)

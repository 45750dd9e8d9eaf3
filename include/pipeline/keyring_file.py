"""The file that a keyring lies in: written beside, synced and renamed, so that whoever reads it reads all of one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from include.errors import BackupError, Hopeless
from include.pipeline.disk import sync_directory

_MOUNTS = Path("/proc/self/mountinfo")


class KeyringBusy(BackupError):
    """Somebody else is changing the keyring file at this moment."""


class KeyringFixed(Hopeless):
    """The keyring file may be read here, and not replaced."""


def create_file(path: Path, content: bytes) -> None:
    """A new file, mode 0600, durable; raises `FileExistsError`. What fails in the middle is removed."""
    try:
        _write(path, content)
    except FileExistsError:
        raise
    except OSError:
        path.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Be the only one who changes the file; raises `KeyringBusy` when somebody else is. The kernel lets go of the dead.

    The lock is a file beside it, since the file itself is replaced. Raises `KeyringFixed` where none can be made.
    """
    require_replaceable(path)
    try:
        descriptor = os.open(_lock(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:  # root made it, when root rotated
        raise _fixed(path, f"{_lock(path)}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KeyringBusy(
                f"The keyring {path} is being changed by somebody else.",
                mend="Let them end (a rotation takes a moment, a retirement minutes), then run it again.",
            ) from None
        yield
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, *, now: datetime) -> Path:
    """Put `content` in the place of the file, to be called while it is `held`; returns the copy of what was there.

    The copy, `<file>.<moment>-<nonce>`, is durable first. It has the old keys, and we never remove it.
    """
    path = path.resolve()
    before = path.stat()
    copy = path.with_name(f"{path.name}.{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{os.urandom(2).hex()}")
    beside = _beside(path)
    try:
        _write(copy, path.read_bytes(), owner=before)
        _write(beside, content, owner=before)
        sync_directory(path.parent)
        beside.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise _fixed(path, error.strerror or "it cannot be written") from error
    return copy


def require_replaceable(path: Path) -> None:
    """Raise `KeyringFixed` unless this user may put another file into the place of this one."""
    path = path.resolve()
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise _fixed(path, f"{path.parent} may not be written by user {os.geteuid()}")
    with suppress(OSError):
        if any(line.split()[4:5] == [str(path)] for line in _MOUNTS.read_text().splitlines()):
            raise _fixed(path, "it is mounted as a file of its own")
    probe = _beside(path)
    try:
        _write(probe, b"")
    except OSError as error:
        raise _fixed(path, error.strerror or "its directory cannot be written") from error
    finally:
        with suppress(OSError):
            probe.unlink()


def _fixed(path: Path, why: str) -> KeyringFixed:
    return KeyringFixed(
        f"The keyring {path} cannot be replaced here: {why}.",
        mend="Run `python -m include.cli keyring rotate` on the machine and as the user that the file belongs to, "
        "bring the new file to every worker, then run this again: it only wraps then.",
    )


def _write(path: Path, content: bytes, *, owner: os.stat_result | None = None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if owner is not None and (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)  # root rotates what the workers must go on reading
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _beside(path: Path) -> Path:
    """A name of this process's own: one that was killed leaves its own behind, and is in nobody's way."""
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")


def _lock(path: Path) -> Path:
    path = path.resolve()
    return path.with_name(f"{path.name}.lock")

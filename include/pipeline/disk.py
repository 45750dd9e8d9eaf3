"""Disks: their room, looked at before something is written, and what a recovery has among their temporary files."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

RECOVERY = "synapse-recovery-"
"""What a recovery's directories among the machine's temporary files are called; each is held by a shared lock (`flock`)
for as long as the recovery lives."""


def free_bytes(directory: Path) -> int:
    """What this user may still write there; of a directory that is not there yet, where it would be made."""
    return shutil.disk_usage(existing(directory)).free


def existing(directory: Path) -> Path:
    """The directory, or the nearest one above it that is there."""
    return next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())


def sync_directory(directory: Path) -> None:
    """Make the names in a directory last, as `fsync` makes a file's content."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems sync no directory
            raise
    finally:
        os.close(descriptor)

"""The room that a recovery takes, looked at before anything is fetched."""

from __future__ import annotations

from pathlib import Path

from include.errors import BackupError
from include.pipeline.disk import free_bytes
from include.repository.contents import BASE, tablespace_tar
from include.repository.lsn import Lsn, segment_start
from include.repository.manifest import Manifest

ROOM = "Make room there, or recover to another directory: it needs the cluster's size and some of its log."
_LOG_AT_ONCE = (2 << 30) + (256 << 20)
"""So much of the log lies there at once, at most: what the server keeps of what it has replayed (`max_wal_size` of a
private server), and what is fetched ahead of it."""


class NoRoom(BackupError):
    """A disk that could not take what is to be recovered there."""


def room_needed(manifest: Manifest, end: Lsn) -> int:
    """The bytes of a base with its tablespaces, and of as much of its log up to `end` as lies there at once.

    By how much replay makes the cluster grow nobody knows before.
    """
    if manifest.base is None or manifest.wal is None:
        raise ValueError(f"{manifest.id} is no snapshot")
    tars = (BASE, *(tablespace_tar(tablespace.oid) for tablespace in manifest.base.tablespaces))
    log = end - segment_start(manifest.base.start_lsn, manifest.wal.segment_bytes)
    return sum(manifest.artifact(tar).raw_bytes for tar in tars) + min(log, _LOG_AT_ONCE)


def require_room(directory: Path, manifest: Manifest, end: Lsn) -> None:
    """Raise `NoRoom` unless `directory` has the room to recover `manifest` by its log up to `end`."""
    needed, free = room_needed(manifest, end), free_bytes(directory)
    if free < needed:
        raise NoRoom(
            f"Recovering {manifest.id} takes {needed / 1e6:,.0f} MB of the disk of {directory}, "
            f"which has {free / 1e6:,.0f} MB free.",
            mend=ROOM,
        )

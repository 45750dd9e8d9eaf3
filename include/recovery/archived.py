"""What an archive has to bring back, when it comes alone (R5.1, R8.1)."""

from __future__ import annotations

from include.errors import BackupError
from include.repository.manifest import Manifest


class NoArchive(BackupError):
    """A backup that is no archive, where one is needed."""


def parts_of(manifest: Manifest) -> list[str]:
    """Which of database, objects and configuration an archive has something of; raises `NoArchive`."""
    if manifest.type != "archive":
        raise NoArchive(
            f"{manifest.id} is no archive.",
            mend="`python -m include.cli list` shows the archives; point_in_time_recovery brings any moment back.",
        )
    names = [artifact.name for artifact in manifest.artifacts]
    below = {"database": "database/", "objects": "objects/", "configuration": "config/"}
    return [part for part, prefix in below.items() if any(name.startswith(prefix) for name in names)]

"""An archive, brought back alone into places of its own, and looked at (R5.1, R5.2, R8.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from include.errors import BackupError
from include.pipeline.progress import Progress
from include.policy import Policy
from include.recovery.configuration import restore_configuration
from include.recovery.database import restore_part
from include.recovery.moments.places import Places
from include.recovery.objects import return_objects
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
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


def restore_archive(
    manifest: Manifest, catalog: Catalog, policy: Policy, *, places: Places, scratch: Path
) -> dict[str, Any]:
    """Bring all of an archive back; returns what came, small enough for an XCom. Raises what stopped it.

    It is read where it lies, so it must be readable: one in Glacier is retrieved first (`repository/cold.py`).
    """
    scratch.mkdir(parents=True, exist_ok=True)
    label = f"restoring {manifest.id}"
    facts: dict[str, Any] = {}
    with Progress(label, every=policy.pipeline.progress_every, scratch=scratch) as progress:
        progress.expect(manifest.raw_bytes)
        opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
        if places.server and places.database:
            database = restore_part(
                opened,
                server=places.server,
                name=places.database,
                scratch=scratch,
                components=opened.database_components(),
            )
            facts |= {
                "database": database.name,
                "restored_tables": database.tables,
                "restored_rows": database.rows,
                "left_out": len(database.left_out),
            }
        if places.bucket:
            facts["objects"] = return_objects(opened, places.bucket, under=places.prefix).written
        if places.configuration:
            facts["commit"] = restore_configuration(opened, places.configuration)
        facts["seconds"] = round(progress.usage().seconds, 1)
    return facts

"""The full backup: database, objects and configuration as of one consistency point (R1.1, R4.3)."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from include.backup.adoption import late_by, late_warning
from include.backup.application import Application
from include.backup.attempt import Attempt, commit, committed
from include.backup.configuration import ConfigurationCopy
from include.backup.consistency import consistency_point
from include.backup.database import DatabaseCopy
from include.backup.objects import ObjectsCopy
from include.pipeline.progress import Progress
from include.policy import Policy
from include.repository.catalog import Catalog
from include.repository.layout import BackupId, new_attempt
from include.repository.manifest import Manifest, Slot

log = logging.getLogger(__name__)


def make_full_backup(
    backup: BackupId, *, slot: Slot | None, application: Application, catalog: Catalog, policy: Policy, scratch: Path
) -> Manifest:
    """Make the backup, commit it, and return its manifest; when it is committed already, that one is returned.

    Every try writes under an attempt of its own; whichever commits first is the backup. Raises `BackupError` (`Adopted`
    for a slot whose time is past and which a later backup covers); then nothing is committed, and what was written is
    unreferenced.
    """
    if (made := committed(catalog, backup)) is not None:
        return made
    late = late_by(backup, slot, catalog)
    started, name = datetime.now(UTC), new_attempt()
    log.info("Making %s, attempt %s, into %s.", backup, name, catalog.bucket)
    with (
        Progress(str(backup), every=policy.pipeline.progress_every, scratch=scratch) as progress,
        consistency_point(application, f"{backup}.{name}", policy.barrier) as point,
    ):
        attempt = Attempt(backup, name, catalog=catalog, policy=policy, scratch=scratch, progress=progress)
        if late is not None:
            attempt.warn(late_warning(backup, late))
        database = DatabaseCopy(attempt, application, point)
        objects = ObjectsCopy(attempt, application, point)
        configuration = ConfigurationCopy(attempt, application, point)
        # Every dump begins at once, because one that attaches late may wait behind an ALTER TABLE that came meanwhile.
        attempt.side_by_side(
            [
                *(partial(database.write_dump, stream) for stream in database.dumps()),
                database.write_contents,
                objects.write,
                configuration.write,
            ]
        )
        manifest = attempt.manifest(
            point,
            slot=slot,
            started=started,
            database=database.summary(),
            objects=objects.summary(),
            configuration=configuration.summary(),
        )
    return commit(catalog, manifest)

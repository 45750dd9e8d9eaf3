"""The snapshot: the whole cluster as files, and the log up to one consistency point; so it restores alone (R1.3)."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from include.backup.adoption import late_by, late_warning
from include.backup.application import Application
from include.backup.attempt import Attempt, commit, committed
from include.backup.base import write_base
from include.backup.configuration import ConfigurationCopy
from include.backup.consistency import Point, consistency_point
from include.backup.database import DatabaseCopy
from include.backup.objects import ObjectsCopy
from include.backup.wal_collection import collect_wal, read_log
from include.pipeline.progress import Progress
from include.policy import Policy
from include.repository.catalog import Catalog
from include.repository.layout import BackupId, new_attempt
from include.repository.lsn import segment_start
from include.repository.manifest import BaseBackup, Manifest, Slot, WalWindow
from include.sources.postgres.slots import chain_lock, find_anchor, renew_anchor

log = logging.getLogger(__name__)

_UNLOGGED = "SELECT count(*) FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r'"


def make_snapshot(
    backup: BackupId, *, slot: Slot | None, application: Application, catalog: Catalog, policy: Policy, scratch: Path
) -> Manifest:
    """Make the snapshot, commit it, and return its manifest; when it is committed already, that one is returned.

    The base is copied first, and the consistency point comes after it: objects, configuration and the inventory are of
    that moment, and the log leads there. Raises as `make_full_backup`.
    """
    if (made := committed(catalog, backup)) is not None:
        return made
    late = late_by(backup, slot, catalog)
    started, name = datetime.now(UTC), new_attempt()
    log.info("Making %s, attempt %s, into %s.", backup, name, catalog.bucket)
    with Progress(str(backup), every=policy.pipeline.progress_every, scratch=scratch) as progress:
        attempt = Attempt(backup, name, catalog=catalog, policy=policy, scratch=scratch, progress=progress)
        if late is not None:
            attempt.warn(late_warning(backup, late))
        _hold_wal(attempt, application)
        base = write_base(attempt, application)
        with consistency_point(application, f"{backup}.{name}", policy.barrier) as point:
            database = DatabaseCopy(attempt, application, point)
            objects = ObjectsCopy(attempt, application, point)
            configuration = ConfigurationCopy(attempt, application, point)
            wal: list[WalWindow] = []
            attempt.side_by_side(
                [
                    database.write_globals,
                    partial(_write_contents, attempt, database, point),
                    objects.write,
                    configuration.write,
                    lambda: wal.append(_write_wal(attempt, application, base)),
                ]
            )
            manifest = attempt.manifest(
                point,
                slot=slot,
                started=started,
                database=database.summary(),
                objects=objects.summary(),
                configuration=configuration.summary(),
                base=base,
                wal=wal[0],
            )
    return commit(catalog, manifest)


def _hold_wal(attempt: Attempt, application: Application) -> None:
    """From here on the server keeps the log that the base needs, until it is in the bucket."""
    with chain_lock(application.replication, "window", wait=attempt.policy.pipeline.stall_limit) as lock:
        found = find_anchor(lock.session)
        anchor = renew_anchor(lock.session)
    if found is not None and found.lost:
        attempt.warn(
            f"The server had given up log that was in no backup yet ({found.reason or found.wal_status}): between the "
            "last window and this snapshot there are moments that cannot be reached."
        )
    log.info("The server keeps its log from %s on.", anchor.restart_lsn)


def _write_contents(attempt: Attempt, database: DatabaseCopy, point: Point) -> None:
    """One after the other: they have the point's session to themselves."""
    if (row := point.session.execute(_UNLOGGED).fetchone()) and row[0]:
        attempt.warn(
            f"{row[0]} unlogged tables come back empty from here: their rows are in no base and no log, but in a full "
            "backup."
        )
    database.write_contents()
    database.write_server_files()


def _write_wal(attempt: Attempt, application: Application, base: BaseBackup) -> WalWindow:
    """The log from the base's beginning to behind the point; what was shipped meanwhile is there already."""
    return collect_wal(
        application,
        attempt.catalog,
        start=segment_start(base.start_lsn, read_log(application).segment_bytes),
        since=base.started,
        attempt=attempt.name,
        policy=attempt.policy,
        scratch=attempt.scratch,
        progress=attempt.progress,
    )

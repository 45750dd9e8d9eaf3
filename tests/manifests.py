"""Manifests of backups that nobody made, for tests that need nothing behind them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from include.repository.catalog import Catalog
from include.repository.envelopes import create_data_key
from include.repository.layout import BackupId, BackupType, envelope_prefix
from include.repository.lsn import Lsn
from include.repository.manifest import (
    Artifact,
    BaseBackup,
    ConfigurationSummary,
    ConsistencyPoint,
    Cost,
    DatabaseSummary,
    Manifest,
    ObjectsSummary,
    Pack,
    StoredSegment,
    WalFile,
    WalWindow,
    WriteStop,
)
from include.repository.timelines import TimelineHistory

MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)
ATTEMPT = "0123456789abcdef"
SEGMENT = 1 << 20
POINT = 0x100
"""How far before the end of its window a consistency point lies, in the windows that are made here."""


def make(day: int = 0, *, point: datetime | None = None, **changes: Any) -> Manifest:
    """The full backup of `MIDNIGHT` and so many days, of a point seven seconds later; one artifact and one pack."""
    backup = BackupId("full", MIDNIGHT + timedelta(days=day))
    moment = point or backup.moment + timedelta(seconds=7)
    attempt = changes.get("attempt", ATTEMPT)
    manifest = Manifest(
        id=str(backup),
        type="full",
        attempt=attempt,
        slot=None,
        started=moment,
        finished=moment,
        consistency_point=ConsistencyPoint(
            time=moment, lsn="0/1", restore_point="point", objects_as_of=moment, configuration_commit="c" * 40
        ),
        write_stop=WriteStop(requested_us=2, held_us=1),
        database=DatabaseSummary(
            name="Zürich", server_version=180006, system_identifier="1", timeline=1, tools=18, tables=1, rows=1
        ),
        objects=ObjectsSummary(bucket="files", objects=1, raw_bytes=7),
        configuration=ConfigurationSummary(branch=None, files=0),
        artifacts=(
            Artifact(
                name="database/users.pgdump",
                component="user_data",
                retention_class="personal",
                attempt=attempt,
                segments=(StoredSegment(key="k", raw_bytes=3, raw_sha256="r", stored_bytes=2, stored_sha256="s"),),
                milliseconds=5,
            ),
        ),
        packs=(
            Pack(
                id="p",
                component="user_uploads",
                retention_class="personal",
                attempt=attempt,
                members=1,
                raw_bytes=7,
                stored_bytes=5,
                stored_sha256="s",
            ),
        ),
        cost=Cost(milliseconds=1, cpu_milliseconds=1, peak_memory_bytes=1),
        warnings=("mind the gap",),
    )
    return manifest.model_copy(update=changes)


def window(
    type_: BackupType,
    minute: int,
    segments: tuple[int, int],
    *,
    since: int = 0,
    history: TimelineHistory = TimelineHistory(1),  # noqa: B008 - it is frozen
    files: tuple[WalFile, ...] = (),
    **changes: Any,
) -> Manifest:
    """An increment or a snapshot so many minutes after `MIDNIGHT`, of the segments with those numbers, the last apart.

    Its consistency point lies shortly before the end of the window. A snapshot's base began two minutes before its
    point, with the window, and had stopped a minute before it. `files` come besides the segments.
    """
    backup = BackupId(type_, MIDNIGHT + timedelta(minutes=minute))
    start, end = (Lsn(number * SEGMENT) for number in segments)
    base = BaseBackup(
        start_lsn=Lsn(start + 0x28),
        stop_lsn=Lsn(start + 0x800),
        started=backup.moment - timedelta(minutes=2),
        stopped=backup.moment - timedelta(minutes=1),
    )
    wal = WalWindow(
        start_lsn=start,
        end_lsn=end,
        segment_bytes=SEGMENT,
        timeline=history.timeline,
        since=base.started if type_ == "snapshot" else MIDNIGHT + timedelta(minutes=since),
        files=(*files, *(wal_file(name) for name in history.segment_names(start, end, SEGMENT))),
    )
    full = make()
    point = full.consistency_point.model_copy(
        update={
            "time": backup.moment,
            "lsn": str(Lsn(end - POINT)),
            "restore_point": f"{backup}.{ATTEMPT}",
            "objects_as_of": backup.moment.replace(microsecond=0),
        }
    )
    return full.model_copy(
        update={
            "id": str(backup),
            "type": type_,
            "started": backup.moment,
            "finished": backup.moment,
            "consistency_point": point,
            "database": full.database.model_copy(update={"timeline": history.timeline}),
            "wal": wal,
            "base": base if type_ == "snapshot" else None,
            **changes,
        }
    )


def wal_file(name: str) -> WalFile:
    """A segment that nobody shipped."""
    return WalFile(name=name, attempt=ATTEMPT, raw_bytes=SEGMENT, raw_sha256="r", stored_bytes=7, stored_sha256="s")


def commit(catalog: Catalog, manifest: Manifest) -> Manifest:
    """Commit as a try does: its data key is in the bucket first."""
    if not list(catalog.bucket.keys(envelope_prefix(manifest.id, manifest.attempt))):
        create_data_key(catalog.bucket, catalog.keyring, owner=manifest.id, attempt=manifest.attempt)
    return catalog.commit(manifest)

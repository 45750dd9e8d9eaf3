"""Manifests of backups that nobody made, for tests that need nothing behind them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from include.repository.catalog import Catalog
from include.repository.envelopes import create_data_key
from include.repository.layout import BackupId, envelope_prefix
from include.repository.manifest import (
    Artifact,
    ConfigurationSummary,
    ConsistencyPoint,
    Cost,
    DatabaseSummary,
    Manifest,
    ObjectsSummary,
    Pack,
    StoredSegment,
    WriteStop,
)

MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)
ATTEMPT = "0123456789abcdef"


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


def commit(catalog: Catalog, manifest: Manifest) -> Manifest:
    """Commit as a try does: its data key is in the bucket first."""
    if not list(catalog.bucket.keys(envelope_prefix(manifest.id, manifest.attempt))):
        create_data_key(catalog.bucket, catalog.keyring, owner=manifest.id, attempt=manifest.attempt)
    return catalog.commit(manifest)

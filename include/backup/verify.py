"""The proof that a backup can be restored (R4.5): read back, weighed against its source, and a part of it restored."""

from __future__ import annotations

import json
import logging
from datetime import date
from pathlib import Path
from typing import Any

from include.errors import BackupError
from include.pipeline.progress import Progress
from include.policy import Policy
from include.recovery.database import restore_sample as restore_component
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.contents import INVENTORY, component_dump
from include.repository.layout import BackupId
from include.sources.postgres.inventory import Inventory
from include.sources.postgres.login import DatabaseLogin

log = logging.getLogger(__name__)


class SizeSuspect(BackupError):
    """A backup whose sizes do not fit what it was made from."""


def check_integrity(catalog: Catalog, backup: BackupId, policy: Policy, *, scratch: Path) -> dict[str, Any]:
    """Read every artifact and every object back from the bucket, decrypt it and compare it with the manifest (R4.5).

    Raises `StreamRefused`, `ArtifactRefused` or `PackRefused`, naming the object.
    """
    manifest = catalog.get(backup)
    with Progress(f"verifying {backup}", every=policy.pipeline.progress_every, scratch=scratch) as progress:
        progress.expect(manifest.raw_bytes)
        opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
        for artifact in manifest.artifacts:
            opened.check(artifact)
        objects = sum(opened.check_objects(component) for component in opened.object_components())
        usage = progress.usage()
    if objects != manifest.objects.objects:
        raise SizeSuspect(
            f"The indexes of {backup} list {objects} objects, and its manifest counts {manifest.objects.objects}.",
            mend="Do not rely on this backup; run another one.",
        )
    return {
        "artifacts": len(manifest.artifacts),
        "objects": objects,
        "raw_bytes": usage.raw_bytes,
        "stored_bytes": usage.stored_bytes,
        "seconds": round(usage.seconds, 1),
    }


def check_sizes(catalog: Catalog, backup: BackupId, policy: Policy, *, scratch: Path) -> dict[str, Any]:
    """Weigh the backup against its source (R4.5): every table, row and byte that the inventory names has its dump.

    A dump holds at least a byte for every row, and an object's raw size is its size in the source. Raises
    `SizeSuspect`.
    """
    manifest = catalog.get(backup)
    with Progress(f"weighing {backup}", every=policy.pipeline.progress_every, scratch=scratch) as progress:
        opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
        document = json.loads(b"".join(opened.read(INVENTORY)))
    inventory = Inventory.from_json(document)
    weights = {artifact.name: artifact.raw_bytes for artifact in manifest.artifacts}
    wrong = [
        f"{component}: {rows} rows in {weight} bytes"
        for component, tables in document["components"].items()
        if (rows := sum(inventory.tables[table].rows for table in tables))
        > (weight := weights.get(component_dump(component), 0))
    ]
    packed = sum(pack.raw_bytes for pack in manifest.packs)
    if packed != manifest.objects.raw_bytes:
        wrong.append(f"objects: {packed} bytes in packs, {manifest.objects.raw_bytes} in the source")
    if (inventory.rows, len(inventory.tables)) != (manifest.database.rows, manifest.database.tables):
        wrong.append(f"database: {inventory.rows} rows in the inventory, {manifest.database.rows} in the manifest")
    if wrong:
        raise SizeSuspect(
            f"The sizes of {backup} do not fit: {'; '.join(wrong)}.",
            mend="Run another backup now, and look at this one.",
        )
    return {"rows": inventory.rows, "tables": len(inventory.tables), "object_bytes": packed}


def restore_sample(
    catalog: Catalog, backup: BackupId, policy: Policy, *, server: DatabaseLogin, day: date, scratch: Path
) -> dict[str, Any]:
    """Restore one component into a scratch database and compare it with the source as it was (R4.5).

    The policy's components take turns by the day, so that each is restored within as many days as there are. Raises
    `RestoreDiffers`.
    """
    manifest = catalog.get(backup)
    turns = [
        name
        for name in policy.verification.sample_components
        if component_dump(name) in {a.name for a in manifest.artifacts}
    ]
    if not turns:
        raise SizeSuspect(
            f"{backup} has none of {', '.join(policy.verification.sample_components)}.",
            mend="Name components that the database has in verification.sample_components.",
        )
    component = turns[day.toordinal() % len(turns)]
    with Progress(
        f"restoring {component} of {backup}", every=policy.pipeline.progress_every, scratch=scratch
    ) as progress:
        opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
        restored = restore_component(opened, component, server=server, scratch=scratch)
    log.info("%s of %s restored and equal: %d tables, %d rows.", component, backup, restored.tables, restored.rows)
    return {"component": component, "tables": restored.tables, "rows": restored.rows}

"""A whole backup, brought back to places as it is: an archive, or a full one where no log leads further (R5.3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from include.pipeline.progress import Progress
from include.policy import Policy
from include.recovery.configuration import restore_configuration
from include.recovery.database import RestoredDatabase, restore_database, restore_part
from include.recovery.moments.places import Places
from include.recovery.moments.steps import tables_in
from include.recovery.objects import return_objects
from include.recovery.opened import OpenedBackup
from include.recovery.replacement import kept_database_name, kept_name
from include.recovery.validation.recovered import Expected
from include.repository.catalog import Catalog
from include.repository.contents import INVENTORY
from include.repository.manifest import Manifest
from include.sources.postgres.inventory import Inventory


def restore_backup(
    manifest: Manifest,
    catalog: Catalog,
    policy: Policy,
    *,
    places: Places,
    scratch: Path,
    expected: Path | None = None,
) -> dict[str, Any]:
    """Bring all of a backup back to its places; returns what came, small enough for an XCom. Raises what stopped it.

    Over what is live the database comes with its roles, and what was there is kept under another name. It is read where
    it lies, so it must be readable: one in Glacier is retrieved first (`repository/cold.py`). What should be there
    afterwards is written to `expected`.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    label = f"restoring {manifest.id}"
    facts: dict[str, Any] = {}
    with Progress(label, every=policy.pipeline.progress_every, scratch=scratch) as progress:
        progress.expect(manifest.raw_bytes)
        opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
        database = _database(opened, places, scratch)
        if database:
            facts |= {
                "database": database.name,
                "restored_tables": database.tables,
                "restored_rows": database.rows,
                "left_out": len(database.left_out),
                "database_replaced": database.replaced,
            }
        if places.bucket:
            returned = return_objects(opened, places.bucket, under=places.prefix, overwrite=places.live)
            facts |= {"objects": returned.written, "objects_unchanged": returned.unchanged}
        if places.configuration:
            path = places.configuration
            keep_as = path.with_name(kept_name(path.name)) if places.live else None
            facts["commit"] = restore_configuration(opened, path, keep_as=keep_as)
        facts["seconds"] = round(progress.usage().seconds, 1)
        if expected is not None:
            _expected(opened, places, facts, database.left_out if database else ()).write(expected)
    return facts


def _database(opened: OpenedBackup, places: Places, scratch: Path) -> RestoredDatabase | None:
    if places.server is None or places.database is None:
        return None
    if places.live:
        keep_as = kept_database_name(places.database)
        return restore_database(opened, server=places.server, name=places.database, scratch=scratch, keep_as=keep_as)
    return restore_part(
        opened,
        server=places.server,
        name=places.database,
        scratch=scratch,
        components=() if places.tables else opened.database_components(),
        tables=places.tables,
    )


def _expected(opened: OpenedBackup, places: Places, facts: dict[str, Any], left_out: Sequence[str]) -> Expected:
    inventory, tables = None, tuple[str, ...]()
    if "database" in facts and opened.has(INVENTORY):
        inventory = Inventory.from_json(json.loads(b"".join(opened.read(INVENTORY))))
        tables = tables_in(places) if places.tables else ()
    return Expected(
        reaches=opened.manifest.consistency_point.time,
        inventory=inventory,
        tables=tables,
        objects=facts["objects"] + facts["objects_unchanged"] if "objects" in facts else None,
        commit=facts.get("commit"),
        left_out=tuple(left_out),
    )

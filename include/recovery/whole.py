"""A whole backup, brought back to places as it is: an archive, or a full one where no log leads further (R5.3)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from include.pipeline.progress import Progress
from include.policy import Policy
from include.recovery.configuration import restore_configuration
from include.recovery.database import RestoredDatabase, restore_database, restore_part, tables_in
from include.recovery.moments.places import Places
from include.recovery.objects import return_objects
from include.recovery.opened import OpenedBackup
from include.recovery.replacement import kept_database_name, kept_name
from include.recovery.scratch import APPLICATION
from include.recovery.validation.recovered import EXPECTED, Expected
from include.repository.catalog import Catalog
from include.repository.contents import INVENTORY
from include.repository.manifest import Manifest
from include.sources.postgres.constraints import list_constraints
from include.sources.postgres.inventory import Inventory
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.relations import list_relations


def restore_backup(
    manifest: Manifest,
    catalog: Catalog,
    policy: Policy,
    *,
    places: Places,
    scratch: Path,
) -> dict[str, Any]:
    """Bring all of a backup back to its places; returns what came, small enough for an XCom. Raises what stopped it.

    Over what is live the database comes with its roles, and what was there is kept under another name. It is read where
    it lies, so it must be readable: one in Glacier is retrieved first (`repository/cold.py`). `scratch` keeps what the
    validations expect, `expected.json`.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    label = f"restoring {manifest.id}"
    facts: dict[str, Any] = {}
    with Progress(label, every=policy.pipeline.progress_every, scratch=scratch) as progress:
        progress.expect(manifest.raw_bytes)
        opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
        phases: dict[str, float] = {}
        began = time.monotonic()
        database = _database(opened, places, scratch)
        if database:
            facts |= {
                "database": database.name,
                "restored_tables": database.tables,
                "restored_rows": database.rows,
                "left_out": len(database.left_out),
                "database_replaced": database.replaced,
            }
            phases["restore"] = time.monotonic() - began
        if places.bucket:
            began = time.monotonic()
            returned = return_objects(opened, places.bucket, under=places.prefix, overwrite=places.live)
            facts |= {"objects": returned.written, "objects_unchanged": returned.unchanged}
            phases["objects"] = time.monotonic() - began
        if places.configuration:
            began = time.monotonic()
            path = places.configuration
            keep_as = path.with_name(kept_name(path.name)) if places.live else None
            facts["commit"] = restore_configuration(opened, path, keep_as=keep_as)
            phases["configuration"] = time.monotonic() - began
        facts["phases"] = {phase: round(seconds, 2) for phase, seconds in phases.items()}
        facts["seconds"] = round(progress.usage().seconds, 1)
        expected_of(
            opened,
            server=places.server,
            database=database.name if database else None,
            part=bool(places.tables),
            objects=facts["objects"] + facts["objects_unchanged"] if places.bucket else None,
            commit=facts.get("commit"),
            left_out=database.left_out if database else (),
        ).write(scratch / EXPECTED)
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


def expected_of(
    opened: OpenedBackup,
    *,
    server: DatabaseLogin | None = None,
    database: str | None = None,
    part: bool = False,
    objects: int | None = None,
    commit: str | None = None,
    left_out: Sequence[str] = (),
) -> Expected:
    """What must be there once a backup is back, by its own word; of a `part` of the database, what came of it.

    Its constraints are those that its dump has made: each of them, or the restore would have failed.

    `database` is what it is called on `server`, None when it did not come; so are the others.
    """
    inventory, tables, constraints = None, tuple[str, ...](), tuple[str, ...]()
    if server is not None and database is not None and opened.has(INVENTORY):
        inventory = Inventory.from_json(json.loads(b"".join(opened.read(INVENTORY))))
        restored = server.with_database(database)
        tables = tables_in(restored) if part else ()
        with restored.connect(application_name=APPLICATION, autocommit=True) as session:
            constraints = list_constraints(session, list_relations(session).all)
    return Expected(
        reaches=opened.manifest.consistency_point.time,
        inventory=inventory,
        tables=tables,
        constraints=constraints,
        objects=objects,
        commit=commit,
        left_out=tuple(left_out),
    )

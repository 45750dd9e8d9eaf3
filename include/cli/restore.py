"""Bringing a backup back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import boto3
import typer
from rich.markup import escape

from include.cli.place import (
    BackupArgument,
    DespiteOption,
    JsonOption,
    find_sound_backup,
    scratch_directory,
    server,
)
from include.cli.printing import OUT, print_json, progress_bar
from include.pipeline.store import Bucket
from include.recovery.configuration import restore_configuration
from include.recovery.database import restore_database
from include.recovery.objects import restore_objects
from include.recovery.opened import OpenedBackup
from include.repository.manifest import moment_text


def restore(
    context: typer.Context,
    backup: BackupArgument,
    *,
    database: Annotated[
        str | None,
        typer.Option(
            help="Restore the database under this name, on the server that PGHOST, PGPORT, PGUSER and PGPASSWORD name."
        ),
    ] = None,
    objects: Annotated[
        str | None, typer.Option(help="Restore the objects into this bucket, which must be empty.")
    ] = None,
    objects_endpoint_url: Annotated[str | None, typer.Option(help="Of that bucket, when it is elsewhere.")] = None,
    objects_profile: Annotated[
        str | None, typer.Option(help="An AWS profile for that bucket, when its credentials differ.")
    ] = None,
    configuration: Annotated[
        Path | None, typer.Option(help="Restore the configuration checkout to this path, which must not exist.")
    ] = None,
    despite: DespiteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a backup back: the database, the objects, the configuration, whichever have a place named for them.

    Nothing is overwritten: the database is restored beside what exists, compared with what was backed up, and renamed
    when it is equal.
    """
    if not (database or objects or configuration):
        raise typer.BadParameter("Name at least one of --database, --objects and --configuration.")
    catalog, policy = context.obj.catalog(), context.obj.policy()
    manifest = find_sound_backup(catalog, backup, despite=despite)
    facts: dict[str, Any] = {"id": manifest.id, "as_of": manifest.consistency_point.time.isoformat()}
    with scratch_directory() as scratch, progress_bar(f"restoring {manifest.id}", manifest, as_json) as progress:
        opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
        if configuration:
            facts["configuration"] = {
                "path": str(configuration),
                "commit": restore_configuration(opened, configuration),
            }
        if database:
            restored = restore_database(opened, server=server(), name=database, scratch=scratch)
            facts["database"] = {"name": restored.name, "tables": restored.tables, "rows": restored.rows}
        if objects:
            target = Bucket(
                boto3.Session(profile_name=objects_profile),
                objects,
                region=context.obj.region_name(),
                endpoint_url=objects_endpoint_url or context.obj.endpoint_url,
            )
            facts["objects"] = {"bucket": objects, "objects": restore_objects(opened, target)}
        facts["seconds"] = round(progress.usage().seconds, 1)
    if as_json:
        print_json(facts)
        return
    OUT.print(
        f"{manifest.id} is restored, as of {moment_text(manifest.consistency_point.time)}, in {facts['seconds']} s:"
    )
    if database:
        tables, rows = facts["database"]["tables"], facts["database"]["rows"]
        OUT.print(f"  database {escape(database)}: {tables} tables, {rows:,} rows, equal to the source's")
    if objects:
        OUT.print(f"  objects in {objects}: {facts['objects']['objects']:,}, each equal to the source's")
    if configuration:
        OUT.print(f"  configuration in {escape(str(configuration))}: commit {facts['configuration']['commit']}")

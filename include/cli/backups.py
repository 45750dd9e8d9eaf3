"""What backups there are, what is in one, and whether it is whole."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from include.backup.full import summary
from include.backup.verify import check_integrity
from include.cli.place import BackupArgument, JsonOption, find_backup, scratch_directory
from include.cli.printing import ERR, OUT, megabytes, print_json
from include.errors import BackupError
from include.pipeline.progress import Progress
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Entry
from include.repository.manifest import moment_text


def list_(context: typer.Context, as_json: JsonOption = False) -> None:
    """Every backup in the bucket, oldest first; a manifest that cannot be trusted is shown with the reason."""
    entries = context.obj.catalog().entries()
    if as_json:
        print_json(
            [
                summary(entry.manifest) if entry.manifest else {"key": entry.key, "refused": entry.refused}
                for entry in entries
            ]
        )
        return
    refused: list[Entry] = []
    table = Table("backup", "as of", "rows", "objects", "raw", "stored", "ratio", box=None, pad_edge=False)
    for entry in entries:
        if (manifest := entry.manifest) is None:
            refused.append(entry)
            continue
        facts = summary(manifest)
        table.add_row(
            manifest.id,
            moment_text(manifest.consistency_point.time),
            f"{manifest.database.rows:,}",
            f"{manifest.objects.objects:,}",
            megabytes(manifest.raw_bytes),
            megabytes(manifest.stored_bytes),
            f"{facts['ratio']}",
        )
    OUT.print(table if table.rows else "There are no backups in this bucket.")
    for entry in refused:
        OUT.print(f"[red]refused[/]: {escape(str(entry.refused))}", soft_wrap=True)


def show(context: typer.Context, backup: BackupArgument, as_json: JsonOption = False) -> None:
    """What a backup holds: its consistency point, its artifacts, and what making it took."""
    manifest = find_backup(context.obj.catalog(), backup)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    point, facts = manifest.consistency_point, summary(manifest)
    OUT.print(f"[bold]{manifest.id}[/]  attempt {manifest.attempt}")
    OUT.print(f"as of {moment_text(point.time)}, LSN {point.lsn}, restore point {point.restore_point}")
    OUT.print(f"writers waited {facts['write_stop_ms']} ms; it took {facts['seconds']} s")
    OUT.print(
        f"database {escape(manifest.database.name)}: "
        f"{manifest.database.tables} tables, {manifest.database.rows:,} rows; "
        f"objects of {manifest.objects.bucket}: {manifest.objects.objects:,}; "
        f"configuration at {point.configuration_commit}"
    )
    table = Table("artifact", "component", "kept as", "raw", "stored", "segments", box=None, pad_edge=False)
    for artifact in manifest.artifacts:
        table.add_row(
            *(escape(artifact.name), escape(artifact.component), artifact.retention_class),
            *(megabytes(artifact.raw_bytes), megabytes(artifact.stored_bytes), str(len(artifact.segments))),
        )
    for pack in manifest.packs:
        table.add_row(
            *(f"packs/{pack.id}", pack.component, pack.retention_class),
            *(megabytes(pack.raw_bytes), megabytes(pack.stored_bytes), f"{pack.members} members"),
        )
    OUT.print(table)
    for warning in manifest.warnings:
        ERR.print(f"[yellow]warning[/]: {escape(warning)}", soft_wrap=True)


def verify(context: typer.Context, backup: BackupArgument, as_json: JsonOption = False) -> None:
    """Read every byte of a backup back, decrypt it and compare it with the signed manifest."""
    catalog = context.obj.catalog()
    manifest = find_backup(catalog, backup)
    with scratch_directory() as scratch:
        facts = check_integrity(catalog, manifest.backup, context.obj.policy(), scratch=scratch)
    if as_json:
        print_json({"id": manifest.id, **facts})
    else:
        OUT.print(
            f"{manifest.id} is whole: {facts['artifacts']} artifacts and {facts['objects']:,} objects, "
            f"{megabytes(facts['raw_bytes'])} from {megabytes(facts['stored_bytes'])} stored, "
            f"in {facts['seconds']} s."
        )


def decrypt(
    context: typer.Context,
    backup: BackupArgument,
    artifact: Annotated[str, typer.Argument(help="An artifact as `show` names it, such as database/globals.sql.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; standard output unless given.")
    ] = None,
) -> None:
    """Write one artifact, decrypted and decompressed: a pg_dump archive, SQL, JSON, a git bundle or a tar.

    What goes to standard output is proved to be whole only when the command ends with 0.
    """
    catalog = context.obj.catalog()
    manifest = find_backup(catalog, backup)
    progress = Progress(f"decrypting {artifact}")
    opened = OpenedBackup(catalog, manifest, policy=context.obj.policy().pipeline, progress=progress)
    if output is None:
        sys.stdout.buffer.writelines(opened.read(artifact))
        sys.stdout.buffer.flush()
        return
    if output.exists():
        raise BackupError(f"{output} exists already.", mend="Name another file.")
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        with open(unfinished, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.writelines(opened.read(artifact))
        unfinished.rename(output)
    finally:
        unfinished.unlink(missing_ok=True)

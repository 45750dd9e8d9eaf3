"""What backups there are, and what is in one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from include.backup.summary import summary
from include.cli.place import BackupArgument, DespiteOption, JsonOption, find_backup, find_sound_backup
from include.cli.printing import ERR, OUT, megabytes, print_json
from include.errors import BackupError
from include.pipeline.progress import Progress
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Entry
from include.repository.leases import reading
from include.repository.manifest import Manifest, moment_text
from include.repository.shredding import shredded
from include.repository.verification import Verification, told


def list_(context: typer.Context, as_json: JsonOption = False) -> None:
    """Every backup in the bucket, oldest first, and what was proved of it; what cannot be trusted, with the reason."""
    catalog = context.obj.catalog()
    entries = catalog.entries()
    archived = any(entry.manifest.type == "archive" for entry in entries if entry.manifest)
    gone = shredded(catalog) if archived else frozenset()
    if as_json:
        print_json(
            [
                {
                    **summary(entry.manifest),
                    "verification": _facts(entry.verification),
                    "shredded": entry.manifest.id in gone,
                }
                if entry.manifest
                else {"key": entry.key, "refused": entry.refused}
                for entry in entries
            ]
        )
        return
    refused: list[Entry] = []
    doubts: list[str] = []
    table = Table("backup", "as of", "verified", "rows", "objects", "raw", "stored", "ratio", box=None, pad_edge=False)
    for entry in entries:
        if (manifest := entry.manifest) is None:
            refused.append(entry)
            continue
        facts = summary(manifest)
        table.add_row(
            manifest.id,
            moment_text(manifest.consistency_point.time),
            "[red]shredded[/]" if manifest.id in gone else _in_short(entry.verification),
            "-" if manifest.database.rows is None else f"{manifest.database.rows:,}",
            f"{manifest.objects.objects:,}",
            megabytes(manifest.raw_bytes),
            megabytes(manifest.stored_bytes),
            f"{facts['ratio']}",
        )
        doubts += [f"{manifest.id}: {escape(doubt)}" for doubt in _doubts(entry.verification)]
    OUT.print(table if table.rows else "There are no backups in this bucket.")
    for doubt in doubts:
        OUT.print(doubt, soft_wrap=True)
    for entry in refused:
        OUT.print(f"[red]refused[/]: {escape(str(entry.refused))}", soft_wrap=True)


def show(context: typer.Context, backup: BackupArgument, as_json: JsonOption = False) -> None:
    """What a backup holds: its consistency point, its artifacts, what making it took, and what was proved of it."""
    catalog = context.obj.catalog()
    manifest = find_backup(catalog, backup)
    verification = catalog.verification(manifest)
    if as_json:
        print_json({**manifest.model_dump(mode="json"), "verification": _facts(verification)})
        return
    point, facts = manifest.consistency_point, summary(manifest)
    OUT.print(f"[bold]{manifest.id}[/]  attempt {manifest.attempt}")
    OUT.print(f"as of {moment_text(point.time)}, LSN {point.lsn}, restore point {point.restore_point}")
    OUT.print(f"writers waited {facts['write_stop_ms']} ms; it took {facts['seconds']} s")
    OUT.print(
        f"database {escape(manifest.database.name)}: {_database(manifest)}; "
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
            *(pack.key, pack.component, pack.retention_class),
            *(megabytes(pack.raw_bytes), megabytes(pack.stored_bytes), f"{pack.members} members"),
        )
    OUT.print(table)
    OUT.print(f"verification: {_in_short(verification)}")
    for record in verification.newest:
        accepted = f", accepted by {record.by} because: {record.because}" if record.because else ""
        if record.passed:
            OUT.print(f"  {record.title} passed, {moment_text(record.when)}{escape(accepted)}", soft_wrap=True)
    for doubt in _doubts(verification):
        OUT.print(f"  {escape(doubt)}", soft_wrap=True)
    for warning in manifest.warnings:
        ERR.print(f"[yellow]warning[/]: {escape(warning)}", soft_wrap=True)


def _database(manifest: Manifest) -> str:
    """How much of the database there is: rows that were counted, or the log of a window."""
    counted, log = manifest.database, manifest.wal
    told = [] if counted.rows is None else [f"{counted.tables} tables, {counted.rows:,} rows"]
    return ", ".join([*told, *([f"WAL {log.start_lsn} to {log.end_lsn}"] if log else [])])


def decrypt(
    context: typer.Context,
    backup: BackupArgument,
    artifact: Annotated[str, typer.Argument(help="An artifact as `show` names it, such as database/globals.sql.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; standard output unless given.")
    ] = None,
    despite: DespiteOption = False,
) -> None:
    """Write one artifact, decrypted and decompressed: a pg_dump archive, SQL, JSON, a git bundle or a tar.

    What goes to standard output is proved to be whole only when the command ends with 0.
    """
    catalog = context.obj.catalog()
    manifest = find_sound_backup(catalog, backup, despite=despite)
    progress = Progress(f"decrypting {artifact}")
    policy = context.obj.policy()
    opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
    with reading(catalog, [manifest.id], policy, what=f"decrypt {artifact}"):
        _write(opened, artifact, output)


def _write(opened: OpenedBackup, artifact: str, output: Path | None) -> None:
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


def _facts(verification: Verification) -> dict[str, Any]:
    """What was proved, for programs."""
    return {
        "state": verification.state,
        "records": [
            record.model_dump(mode="json", include={"proof", "subject", "passed", "when", "by", "because", "what"})
            | {"key": record.home}
            for record in verification.newest
        ],
        "refused": list(verification.refused),
    }


def _in_short(verification: Verification) -> str:
    """When it was verified, or what speaks against that."""
    if verification.failed:
        return f"[red]FAILED[/]: {', '.join(record.title for record in verification.failed)}"
    return moment_text(verification.verified) if verification.verified else verification.state


def _doubts(verification: Verification) -> list[str]:
    """What failed, and the records that cannot be trusted."""
    return [f"FAILED {told(record)}" for record in verification.failed] + [
        f"in doubt: {refused}" for refused in verification.refused
    ]

"""The break-glass command line: what is in the bucket, and bringing it back, when Airflow itself is lost.

It needs the bucket, a keyring and, for a restore, somewhere to restore to; credentials come from the usual `AWS_*` and
`PG*` variables. Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 3 no such backup.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import boto3
import typer
from botocore.exceptions import BotoCoreError
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from include.backup.full import summary
from include.backup.verify import check_integrity
from include.errors import BackupError
from include.pipeline.keys import KEYRING_VARIABLE, Keyring
from include.pipeline.progress import Progress, Snapshot
from include.pipeline.store import Bucket
from include.policy import Policy, load_policy
from include.recovery.configuration import restore_configuration
from include.recovery.database import restore_database
from include.recovery.objects import restore_objects
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog, Entry, NoSuchBackup
from include.repository.layout import BackupId
from include.repository.manifest import Manifest, moment_text
from include.sources.postgres.login import DatabaseLogin

FAILED, NOT_FOUND = 1, 3

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
keyring_app = typer.Typer(no_args_is_help=True, help="The keyring: without it no backup can be read.")
app.add_typer(keyring_app, name="keyring")

_out, _err = Console(), Console(stderr=True)

BackupArgument = Annotated[
    str, typer.Argument(metavar="BACKUP", help="An id as `list` shows it, or `latest`: the newest full backup.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@dataclass(frozen=True)
class _Place:
    """Where the backups are, as the options say; opened when a command needs it."""

    bucket: str | None
    endpoint_url: str | None
    region: str | None
    keyring: Path | None

    def policy(self) -> Policy:
        return load_policy()

    def catalog(self) -> Catalog:
        primary = self.policy().storage.primary
        bucket = Bucket(
            boto3.Session(),
            self.bucket or primary.bucket,
            region=self.region_name(),
            endpoint_url=self.endpoint_url,
        )
        return Catalog(bucket, Keyring.load(self.keyring) if self.keyring else Keyring.from_environment())

    def region_name(self) -> str:
        # botocore knows AWS_DEFAULT_REGION only; every other SDK, AWS_REGION.
        named = self.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return named or self.policy().storage.primary.region


@app.callback()
def place(
    context: typer.Context,
    *,
    bucket: Annotated[
        str | None, typer.Option(help="The bucket with the backups; the policy's primary unless given.")
    ] = None,
    endpoint_url: Annotated[
        str | None, typer.Option(envvar="AWS_ENDPOINT_URL", help="Of an S3 store that is not AWS.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="The bucket's region; AWS_REGION or the policy's unless given.")
    ] = None,
    keyring: Annotated[Path | None, typer.Option(envvar=KEYRING_VARIABLE, help="The keyring file.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more, on standard error.")] = False,
) -> None:
    """Backups of Synapse: list, show, verify, restore and decrypt them, without Airflow."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=_err, show_path=False, show_time=verbose)],
    )
    context.obj = _Place(bucket, endpoint_url, region, keyring)


@app.command("list")
def list_(context: typer.Context, as_json: JsonOption = False) -> None:
    """Every backup in the bucket, oldest first; a manifest that cannot be trusted is shown with the reason."""
    entries = context.obj.catalog().entries()
    if as_json:
        _print_json(
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
            _megabytes(manifest.raw_bytes),
            _megabytes(manifest.stored_bytes),
            f"{facts['ratio']}",
        )
    _out.print(table if table.rows else "There are no backups in this bucket.")
    for entry in refused:
        _out.print(f"[red]refused[/]: {escape(str(entry.refused))}", soft_wrap=True)


@app.command()
def show(context: typer.Context, backup: BackupArgument, as_json: JsonOption = False) -> None:
    """What a backup holds: its consistency point, its artifacts, and what making it took."""
    manifest = _find(context.obj.catalog(), backup)
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
        return
    point, facts = manifest.consistency_point, summary(manifest)
    _out.print(f"[bold]{manifest.id}[/]  attempt {manifest.attempt}")
    _out.print(f"as of {moment_text(point.time)}, LSN {point.lsn}, restore point {point.restore_point}")
    _out.print(f"writers waited {facts['write_stop_ms']} ms; it took {facts['seconds']} s")
    _out.print(
        f"database {escape(manifest.database.name)}: "
        f"{manifest.database.tables} tables, {manifest.database.rows:,} rows; "
        f"objects of {manifest.objects.bucket}: {manifest.objects.objects:,}; "
        f"configuration at {point.configuration_commit}"
    )
    table = Table("artifact", "component", "kept as", "raw", "stored", "segments", box=None, pad_edge=False)
    for artifact in manifest.artifacts:
        table.add_row(
            *(escape(artifact.name), escape(artifact.component), artifact.retention_class),
            *(_megabytes(artifact.raw_bytes), _megabytes(artifact.stored_bytes), str(len(artifact.segments))),
        )
    for pack in manifest.packs:
        table.add_row(
            *(f"packs/{pack.id}", pack.component, pack.retention_class),
            *(_megabytes(pack.raw_bytes), _megabytes(pack.stored_bytes), f"{pack.members} members"),
        )
    _out.print(table)
    for warning in manifest.warnings:
        _err.print(f"[yellow]warning[/]: {escape(warning)}", soft_wrap=True)


@app.command()
def verify(context: typer.Context, backup: BackupArgument, as_json: JsonOption = False) -> None:
    """Read every byte of a backup back, decrypt it and compare it with the signed manifest."""
    catalog = context.obj.catalog()
    manifest = _find(catalog, backup)
    with _scratch() as scratch:
        facts = check_integrity(catalog, manifest.backup, context.obj.policy(), scratch=scratch)
    if as_json:
        _print_json({"id": manifest.id, **facts})
    else:
        _out.print(
            f"{manifest.id} is whole: {facts['artifacts']} artifacts and {facts['objects']:,} objects, "
            f"{_megabytes(facts['raw_bytes'])} from {_megabytes(facts['stored_bytes'])} stored, "
            f"in {facts['seconds']} s."
        )


@app.command()
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
    as_json: JsonOption = False,
) -> None:
    """Bring a backup back: the database, the objects, the configuration, whichever have a place named for them.

    Nothing is overwritten: the database is restored beside what exists, compared with what was backed up, and renamed
    when it is equal.
    """
    if not (database or objects or configuration):
        raise typer.BadParameter("Name at least one of --database, --objects and --configuration.")
    catalog, policy = context.obj.catalog(), context.obj.policy()
    manifest = _find(catalog, backup)
    facts: dict[str, Any] = {"id": manifest.id, "as_of": manifest.consistency_point.time.isoformat()}
    with _scratch() as scratch, _progress(f"restoring {manifest.id}", manifest, as_json) as progress:
        opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
        if configuration:
            facts["configuration"] = {
                "path": str(configuration),
                "commit": restore_configuration(opened, configuration),
            }
        if database:
            restored = restore_database(opened, server=_server(), name=database, scratch=scratch)
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
        _print_json(facts)
        return
    _out.print(
        f"{manifest.id} is restored, as of {moment_text(manifest.consistency_point.time)}, in {facts['seconds']} s:"
    )
    if database:
        tables, rows = facts["database"]["tables"], facts["database"]["rows"]
        _out.print(f"  database {escape(database)}: {tables} tables, {rows:,} rows, equal to the source's")
    if objects:
        _out.print(f"  objects in {objects}: {facts['objects']['objects']:,}, each equal to the source's")
    if configuration:
        _out.print(f"  configuration in {escape(str(configuration))}: commit {facts['configuration']['commit']}")


@app.command()
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
    manifest = _find(catalog, backup)
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


@keyring_app.command("create")
def create_keyring(path: Annotated[Path, typer.Argument(help="A new file; it gets mode 0600.")]) -> None:
    """Write a new keyring. Put a copy where a fire cannot reach: without it every backup is noise."""
    keyring = Keyring.create(path)
    _out.print(f"{path}: key-encryption key {keyring.current_kek}, signing key {keyring.current_signing_key}")


def _find(catalog: Catalog, name: str) -> Manifest:
    return catalog.latest("full") if name == "latest" else catalog.get(BackupId.parse(name))


def _server() -> DatabaseLogin:
    """The server to restore into, by libpq's own variables; an absent password is libpq's to find (`PGPASSFILE`)."""
    variables = os.environ
    return DatabaseLogin(
        host=variables.get("PGHOST", "localhost"),
        port=_port(variables.get("PGPORT") or "5432"),
        user=variables.get("PGUSER", "postgres"),
        password=variables.get("PGPASSWORD", ""),
        dbname=variables.get("PGDATABASE", "postgres"),
        sslmode=variables.get("PGSSLMODE", "prefer"),
        sslrootcert=variables.get("PGSSLROOTCERT"),
    )


def _port(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BackupError(f"PGPORT is {text!r}, and no number.", mend="Set it to the server's port.") from None


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="synapse-backups-") as directory:
        yield Path(directory)


@contextmanager
def _progress(label: str, manifest: Manifest, quiet: bool) -> Iterator[Progress]:
    """A bar on standard error where a person looks at it, nothing otherwise."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=_err, disable=quiet or not _err.is_terminal, transient=True) as bars:
        bar = bars.add_task(label, total=manifest.raw_bytes)

        def report(snapshot: Snapshot) -> None:
            bars.update(bar, completed=snapshot.raw_bytes)

        with Progress(label, every=timedelta(seconds=0.2), report=report) as progress:
            yield progress


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"


def main() -> None:
    """Run the command line; an error is told in words, not as a traceback."""
    try:
        app()
    except NoSuchBackup as missing:
        _tell(missing)
        sys.exit(NOT_FOUND)
    except BackupError as failure:
        _tell(failure)
        sys.exit(FAILED)
    except (OSError, BotoCoreError) as failure:
        _tell(BackupError(f"{failure}.", mend="Mend what it names, then run the same command again."))
        sys.exit(FAILED)


def _tell(error: BackupError) -> None:
    # Names are told as they are: nothing in them is markup, and no line end is put into them.
    _err.print(f"[bold red]error[/]: {escape(error.what)}", highlight=False, soft_wrap=True)
    _err.print(f"  [bold]next[/]: {escape(error.mend)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()

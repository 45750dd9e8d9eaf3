"""Where the backups are and where they go: the options of every command, and libpq's variables."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import boto3
import typer
from rich.logging import RichHandler

from include.cli.printing import ERR
from include.errors import BackupError
from include.pipeline.keys import KEYRING_VARIABLE, Keyring
from include.pipeline.store import Bucket
from include.policy import Policy, load_policy
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.locks import locked
from include.repository.manifest import Manifest
from include.sources.postgres.login import DatabaseLogin

BackupArgument = Annotated[
    str,
    typer.Argument(
        metavar="BACKUP",
        help="An id as `list` shows it, or `latest`: the newest full backup whose verification did not fail.",
    ),
]
DespiteOption = Annotated[
    bool, typer.Option("--despite-verification", help="Also when the backup failed its verification.")
]
REPLICA = "The second region, where a command writes there"
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@dataclass(frozen=True)
class Place:
    """Where the backups are, as the options say; opened when a command needs it."""

    bucket: str | None
    endpoint_url: str | None
    region: str | None
    keyring: Path | None
    replica_bucket: str | None = None
    replica_endpoint_url: str | None = None
    replica_profile: str | None = None

    def policy(self) -> Policy:
        """The policy in force (`BACKUP_POLICY`)."""
        return load_policy()

    def catalog(self) -> Catalog:
        """The backups in the bucket that the options name, read with the keyring that they name."""
        return Catalog(self.backups(), self.read_keyring())

    def read_keyring(self) -> Keyring:
        """The keyring that the option or the environment names."""
        return Keyring.load(self.keyring) if self.keyring else Keyring.from_environment()

    def backups(self) -> Bucket:
        """The bucket that the options name, or the policy's primary."""
        bucket = Bucket(
            boto3.Session(),
            self.bucket or self.policy().storage.primary.bucket,
            region=self.region_name(),
            endpoint_url=self.endpoint_url,
        )
        return locked(bucket, self.policy())

    def replica(self) -> Catalog:
        """The backups in the second region, read with the same keyring."""
        return Catalog(self.replica_backups(), self.read_keyring())

    def replica_backups(self) -> Bucket:
        """The bucket of the second region: the policy's replica, elsewhere and with other credentials where told."""
        replica = self.policy().storage.replica
        bucket = Bucket(
            boto3.Session(profile_name=self.replica_profile),
            self.replica_bucket or replica.bucket,
            region=replica.region,
            endpoint_url=self.replica_endpoint_url or self.endpoint_url,
        )
        return locked(bucket, self.policy())

    def region_name(self) -> str:
        """The region of the option, of the environment, or of the policy."""
        # botocore knows AWS_DEFAULT_REGION only; every other SDK, AWS_REGION.
        named = self.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return named or self.policy().storage.primary.region


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
    replica_bucket: Annotated[
        str | None, typer.Option(help="The replica's bucket; the policy's unless given.", rich_help_panel=REPLICA)
    ] = None,
    replica_endpoint_url: Annotated[
        str | None,
        typer.Option(
            envvar="REPLICA_ENDPOINT_URL", help="Of its store, when it is another one.", rich_help_panel=REPLICA
        ),
    ] = None,
    replica_profile: Annotated[
        str | None,
        typer.Option(
            envvar="REPLICA_PROFILE",
            help="An AWS profile for it, when its credentials differ.",
            rich_help_panel=REPLICA,
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more, on standard error.")] = False,
) -> None:
    """Backups of Synapse: list, show, verify, restore and decrypt them, without Airflow."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=ERR, show_path=False, show_time=verbose)],
    )
    context.obj = Place(bucket, endpoint_url, region, keyring, replica_bucket, replica_endpoint_url, replica_profile)


def find_backup(catalog: Catalog, name: str) -> Manifest:
    """The manifest of an id, or of `latest`; raises `NoSuchBackup` or `ManifestRefused`."""
    return catalog.latest("full") if name == "latest" else catalog.get(BackupId.parse(name))


def find_sound_backup(catalog: Catalog, name: str, *, despite: bool) -> Manifest:
    """`find_backup`, which also raises `VerificationFailed`, naming the record, unless `despite`."""
    manifest = find_backup(catalog, name)
    if not despite:
        catalog.verification(manifest).require(manifest.id)
    return manifest


def server() -> DatabaseLogin:
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
def scratch_directory() -> Iterator[Path]:
    """A temporary directory for one command."""
    with tempfile.TemporaryDirectory(prefix="synapse-backups-") as directory:
        yield Path(directory)

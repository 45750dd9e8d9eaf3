"""Where it all happens: one server, one store, one Synapse of a data set, and what each side runs there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.data import grow
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.tools import PostgresTools, find_tools

SMALL = 0.05
"""Of the sandbox's Synapse: everything is there, and nothing is large, before it grows."""
PROJECT = Path(__file__).parent.parent
AWS = PROJECT / ".venv" / "awscli" / "bin" / "aws"
FULL_BACKUP = "full-manual-20261122T000000.000000Z"
RESTORED = "restored"

OURS = "full_backup"
PG_DUMP = "pg_dump -Fc | aws s3 cp"
PG_DUMP_ZSTD = "pg_dump | zstd -T2 -3 | aws s3 cp"
SIDES = (OURS, PG_DUMP, PG_DUMP_ZSTD)


@dataclass(frozen=True)
class Command:
    """What is run and measured."""

    argv: tuple[str, ...]
    environment: dict[str, str]


@dataclass(frozen=True)
class Place:
    """One data set in its database, beside a store."""

    installation: Installation
    tools: PostgresTools
    directory: Path
    no_objects: str
    """An empty bucket in place of the application's own: the peers dump the database and nothing else."""
    raw_bytes: int

    def backup(self, side: str, bucket: str) -> Command:
        """The backup of a side, into a bucket that is empty."""
        if side == OURS:
            return self.made(FULL_BACKUP, bucket)
        dump = f'"{self.tools.pg_dump}" --no-password'
        made = f"{dump} --format=custom" if side == PG_DUMP else f"{dump} | {zstd()} -T2 -3"
        return self._shell(f'{made} | "{AWS}" s3 cp --only-show-errors - s3://{bucket}/dump', dump=True)

    def restore(self, side: str, bucket: str) -> Command:
        """The restore of what a side has in a bucket, as the database `RESTORED`, indexes and all."""
        if side == OURS:
            return self.restored(bucket, FULL_BACKUP, f"--database={RESTORED}")
        created = f'"{self.tools.psql}" -qc "CREATE DATABASE {RESTORED} TEMPLATE template0" postgres'
        fetched = f'"{AWS}" s3 cp --only-show-errors s3://{bucket}/dump -'
        if side == PG_DUMP:
            return self._shell(f'{created} && {fetched} | "{self.tools.pg_restore}" --exit-on-error -d {RESTORED}')
        into = f'"{self.tools.psql}" -qXo /dev/null -v ON_ERROR_STOP=1 {RESTORED}'
        return self._shell(f"{created} && {fetched} | {zstd()} -d | {into}")

    def made(self, backup: str, bucket: str) -> Command:
        """One of our backups, of the type that its id says."""
        installation = self.installation
        wanted = {
            "backup": backup,
            "barrier": asdict(installation.barrier),
            "dump": asdict(installation.dump),
            "replication": asdict(installation.replication),
            "objects": self.no_objects,
            "configuration": str(installation.synapse.configuration),
            "backups": bucket,
            "keyring": str(installation.keyring),
            "scratch": str(self.directory),
        }
        environment = {**self.surroundings(), "BENCHMARK": json.dumps(wanted)}
        return Command((sys.executable, "-m", "benchmarks.backup"), environment)

    def restored(self, bucket: str, *arguments: str) -> Command:
        """One of our restores, by the command line."""
        argv = (sys.executable, "-m", "include.cli", f"--bucket={bucket}", "restore", *arguments, "--json")
        return Command(argv, self.surroundings())

    def _shell(self, script: str, *, dump: bool = False) -> Command:
        login = self.installation.dump if dump else self.installation.postgres.superuser
        environment = {**self.surroundings(), **login.environment()}
        return Command(("bash", "-euo", "pipefail", "-c", script), environment)

    def surroundings(self) -> dict[str, str]:
        """The store, the server, and nothing of whoever runs this: no profile, no configuration, no other endpoint."""
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.directory),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # see `CephGateway`
            "LC_ALL": "C",
            **self.installation.break_glass(),
        }


@contextmanager
def place(
    directory: Path, postgres: PostgresServer, store: CephGateway | S3Server, data_set: str, *, raw_bytes: int
) -> Iterator[Place]:
    """A Synapse of that data set, for as long as the block; the store stays in its bucket and goes with it."""
    directory.mkdir()
    installation = Installation.make(
        directory, postgres=postgres, primary=store, replica=store, suffix=f"-{data_set}", scale=SMALL
    )
    grown = grow(installation.synapse.database, data_set, raw_bytes=raw_bytes)
    try:
        empty = store.create_bucket(f"no-objects-{data_set}")
        yield Place(installation, find_tools(postgres.major), directory, empty, grown)
    finally:
        installation.synapse.destroy()


def zstd() -> str:
    """The compressor of the peers' pipe: the system's program, else the same library with the same options."""
    found = shutil.which("zstd", path="/usr/bin:/bin:/usr/local/bin")
    return found or f'"{sys.executable}" "{PROJECT / "benchmarks" / "zstd.py"}"'

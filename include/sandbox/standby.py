"""A streaming standby of a sandbox server, for failovers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from include.errors import BackupError
from include.sandbox.postgres import PostgresServer

PROMOTED_WITHIN = 30


class Standby(PostgresServer):
    """A copy of a running `primary` that follows it, until `promote`; it has the primary's users and passwords.

    Its data are made with `pg_basebackup -R` when it is entered.
    """

    name = "PostgreSQL (standby)"

    def __init__(self, directory: Path, primary: PostgresServer) -> None:
        super().__init__(directory, major=primary.major)
        self._primary = primary
        self._password = primary.superuser.password

    def promote(self) -> None:
        """Make it a primary of its own, on the next timeline; returns when it takes writes."""
        with self.superuser.connect(application_name="sandbox", autocommit=True) as session:
            row = session.execute("SELECT pg_promote(true, %s)", [PROMOTED_WITHIN]).fetchone()
        if row != (True,):
            raise BackupError("The standby was not promoted.", mend=f"See {self.log}.")

    def _initialise(self, password_file: Path) -> None:
        login = self._primary.superuser
        argv = [str(self.binaries / "pg_basebackup"), "-D", str(self.data), "-R", "-c", "fast", "--no-sync", "-w"]
        made = subprocess.run(
            argv, env={**self._environment(), **login.environment()}, capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise BackupError(f"pg_basebackup failed: {made.stderr}", mend="Look at the primary's log.")
        if self._account:
            for path in (self.data, *self.data.rglob("*")):
                os.chown(path, *self._account, follow_symlinks=False)

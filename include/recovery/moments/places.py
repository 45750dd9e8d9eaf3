"""Where a recovery puts what it brings back, and how to remove it again."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import sql

from include.errors import BackupError
from include.recovery.scratch import APPLICATION

if TYPE_CHECKING:
    from include.pipeline.store import Bucket
    from include.sources.postgres.login import DatabaseLogin

log = logging.getLogger(__name__)


class NotCleared(BackupError):
    """What an earlier try left could not be removed."""


@dataclass(frozen=True)
class Places:
    """A place for each part that comes back, None for one that does not.

    `database` is made on `server`; objects go into `bucket`, their keys behind `prefix`; the checkout is made at
    `configuration`. `components` are all, when none is named; `tables` are these alone. With `live` what is there is
    replaced, and kept under another name. `run` is in the names of what only this recovery writes to.
    """

    server: DatabaseLogin | None
    database: str | None
    bucket: Bucket | None
    prefix: str
    configuration: Path | None
    components: tuple[str, ...]
    live: bool
    run: str
    tables: tuple[str, ...] = ()

    def clear(self) -> list[str]:
        """Remove what an earlier try of this very recovery left, and return it; what only bears another name stays.

        Objects get a deletion marker: one that was uploaded in parts cannot be told from another by its ETag, and would
        be in the way. Raises `NotCleared`.
        """
        if self.live:
            return []
        cleared = []
        if self.server and self.database and self.run in self.database and self._drop(self.server, self.database):
            cleared.append(f"database {self.database}")
        if self.configuration and self.run in self.configuration.parts and self.configuration.exists():
            shutil.rmtree(self.configuration)
            cleared.append(f"directory {self.configuration}")
        if self.bucket and self.run in self.prefix and (left := list(self.bucket.keys(self.prefix))):
            for key in left:
                self.bucket.delete(key)
            cleared.append(f"{len(left)} objects of {self.bucket}/{self.prefix}")
        for each in cleared:
            log.info("Removed %s, which an earlier try left.", each)
        return cleared

    def removal(self) -> dict[str, str]:
        """How a person removes what was brought back to look at, a command a place."""
        commands = {}
        if self.server and self.database:
            name = sql.Identifier(self.database).as_string()
            commands["database"] = f"on {self.server.host}:{self.server.port}: DROP DATABASE {name}"
        if self.bucket:
            commands["objects"] = f"aws s3 rm --recursive s3://{self.bucket.name}/{self.prefix}"
        if self.configuration:
            commands["configuration"] = f"on the worker: rm -r {self.configuration}"
        return commands

    @staticmethod
    def _drop(server: DatabaseLogin, name: str) -> bool:
        import psycopg  # noqa: PLC0415 - a quarter of a second

        with server.connect(application_name=APPLICATION, autocommit=True) as session:
            there = session.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is not None
            try:
                session.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
            except psycopg.Error as error:
                raise NotCleared(
                    f"The database {name}, which an earlier try left, could not be dropped: "
                    f"{error.diag.message_primary}.",
                    mend="Drop it, or trigger a recovery of its own.",
                ) from None
        return there

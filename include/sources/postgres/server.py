"""Which server and which database a session is connected to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from include.errors import BackupError

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

# The timeline of the last checkpoint may lag behind a promotion; the name of the WAL file being written does not. It
# begins with the timeline, in eight hexadecimal digits.
_IDENTIFY = """
    SELECT (SELECT system_identifier::text FROM pg_control_system()),
        CASE WHEN NOT pg_is_in_recovery()
            THEN ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END,
        current_setting('server_version_num')::int,
        current_setting('server_version'),
        current_database()::text,
        current_setting('server_encoding')
"""


@dataclass(frozen=True)
class ServerIdentity:
    """One database of one cluster.

    `system_identifier` is text: it has 64 bits, more than JSON's numbers hold. `server_version` is as in 180006,
    `encoding` the database's, as in UTF8.
    """

    system_identifier: str
    timeline: int
    server_version: int
    version_text: str
    database: str
    encoding: str

    def __str__(self) -> str:
        return f"database {self.database} of PostgreSQL {self.version_text} (system {self.system_identifier})"

    @property
    def major(self) -> int:
        """The major version, as in 18."""
        return self.server_version // 10_000


def identify(session: psycopg.Connection[TupleRow]) -> ServerIdentity:
    """Ask the session's server who it is. Raises `BackupError` on a standby, which can stop no writes."""
    row = session.execute(_IDENTIFY).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    system, timeline, version, text, database, encoding = row
    if timeline is None:
        raise BackupError(
            f"{session.info.host}:{session.info.port} is a standby: it takes no writes, and none can be stopped there.",
            mend="Point the database connections at the primary.",
        )
    return ServerIdentity(system, timeline, version, text, database, encoding)

"""Scratch databases: marked when they are made, so that what a killed restore leaves is known for what it is.

The name alone proves nothing, since anybody may call a database `restore_…`. The mark is the database's comment, and
goes in the transaction that gives a restored database its own name. One whose restore is killed between its creation
and its mark is empty, stays, and is only told of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from include.errors import BackupError

if TYPE_CHECKING:
    from psycopg import Connection

    from include.sources.postgres.login import DatabaseLogin

APPLICATION = "synapse-backups"
_NAME = re.compile(r"restore_[0-9a-f]{8}_", re.ASCII)
_MARK = "synapse-backups scratch database, made at "
_FIND = """
    SELECT datname::text, shobj_description(oid, 'pg_database'),
        CASE WHEN has_database_privilege(oid, 'CONNECT') THEN pg_database_size(oid) ELSE 0 END,
        EXISTS (SELECT FROM pg_stat_activity WHERE datid = pg_database.oid)
    FROM pg_database WHERE starts_with(datname, 'restore_') ORDER BY datname
"""
# A background process, such as an autovacuum worker, has no user.
_END = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = %s AND usesysid IS NOT NULL AND pid <> pg_backend_pid()
"""


class ScratchInUse(BackupError):
    """A scratch database that somebody is connected to, or that is none any more."""


@dataclass(frozen=True)
class ScratchDatabase:
    """One that a restore made and did not end. `made` is None when it bears no mark: then it may be anybody's."""

    name: str
    made: datetime | None
    bytes: int
    used: bool


def mark(name: str, *, now: datetime | None = None) -> str:
    """The statement that marks a database as a scratch one, made now."""
    made = (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    return sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(_MARK + made)).as_string()


def scratch_databases(login: DatabaseLogin) -> list[ScratchDatabase]:
    """Every database on that server with a scratch database's name; raises `DatabaseUnreachable`."""
    with login.connect(application_name=APPLICATION, autocommit=True) as session:
        return [
            ScratchDatabase(name, _made(comment), size, used)
            for name, comment, size, used in session.execute(_FIND)
            if _NAME.match(name)
        ]


def drop_scratch(login: DatabaseLogin, database: ScratchDatabase) -> None:
    """Drop it, if it still bears its mark and nobody is connected to it; raises `ScratchInUse`, or what is refused."""
    now = {each.name: each for each in scratch_databases(login)}.get(database.name)
    if now is None or now.used or now.made is None or now.made != database.made:
        raise ScratchInUse(
            f"The database {database.name} is not what it was when it was found.", mend="Leave it to who uses it."
        )
    with login.connect(application_name=APPLICATION, autocommit=True) as session:
        try:
            session.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(database.name)))
        except psycopg.Error as error:
            raise ScratchInUse(
                f"The scratch database {database.name} could not be dropped: {error.diag.message_primary}.",
                mend=f"As its owner or a superuser: DROP DATABASE {database.name}.",
            ) from None


def drop_database(session: Connection, name: str) -> bool:
    """Drop a database with whoever is in it; returns whether it was there. Raises `psycopg.Error` when it is refused.

    Its owner may. `WITH (FORCE)` is refused to whoever is no superuser while an autovacuum worker is in it, which is
    nobody's process; a plain `DROP DATABASE` sends that away by itself, and waits for whoever is leaving.
    """
    if session.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
        return False
    session.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
    session.execute(_END, [name])
    session.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
    return True


def _made(comment: str | None) -> datetime | None:
    if comment is None or not comment.startswith(_MARK):
        return None
    try:
        return datetime.fromisoformat(comment.removeprefix(_MARK)).astimezone(UTC)
    except ValueError:
        return None

"""Taking the place of what exists: the old is kept under another name, never dropped."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg import sql

from include.errors import BackupError

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    Session = psycopg.Connection[TupleRow]

log = logging.getLogger(__name__)

_MOST_BYTES_OF_A_NAME = 63


def kept_name(name: str, *, most_bytes: int | None = None) -> str:
    """What something that is replaced now is called afterwards: `synapse_replaced_20261122T103712Z`."""
    suffix = f"_replaced_{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    if most_bytes is not None:
        name = name.encode()[: most_bytes - len(suffix)].decode(errors="ignore")
    return name + suffix


def kept_database_name(name: str) -> str:
    """The same for a database, whose name has 63 bytes at most."""
    return kept_name(name, most_bytes=_MOST_BYTES_OF_A_NAME)


def swap_databases(session: Session, new: str, *, name: str, keep_as: str, comment: str = "") -> None:
    """Rename `name` to `keep_as` and `new` to `name`, both or neither; `session` is in another database.

    `comment` is the statement that gives the new one its comment, in place of the mark of a scratch database.

    A database in use cannot be renamed: nobody is let in any more, who is in is sent away, and after the renaming the
    old one is open again. Raises `BackupError` with the server's words when it refuses (a prepared transaction in it,
    for one); the old database is then as it was.
    """
    oid, was_open = _one(
        session, "SELECT oid::bigint, datallowconn FROM pg_catalog.pg_database WHERE datname = %s", name
    )
    try:
        _let_in(session, name, allowed=False)
        (ended,) = _one(
            session,
            "SELECT count(pg_terminate_backend(pid, 10000))"  # each has 10 s to be gone
            " FROM pg_catalog.pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'",
            name,
        )
        log.info("%s sessions in %s were ended.", ended, name)
        with session.transaction():
            session.execute(_rename(name, keep_as))
            session.execute(_rename(new, name))
            if comment:
                session.execute(comment.encode())
    except psycopg.Error as error:
        raise BackupError(
            f"The database {name} could not be replaced: {error.diag.message_primary or type(error).__name__}.",
            mend="It is as it was. Mend what the server names, then restore again, or under another name.",
        ) from None
    finally:
        (now,) = _one(session, "SELECT datname FROM pg_catalog.pg_database WHERE oid = %s", oid)
        _let_in(session, now, allowed=was_open)


def _one(session: Session, query: LiteralString, value: object) -> tuple[Any, ...]:
    row = session.execute(query, (value,)).fetchone()
    if row is None:
        raise BackupError("The database that was to be replaced is gone.", mend="Restore again.")
    return row


def _rename(name: str, to: str) -> sql.Composed:
    return sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(name), sql.Identifier(to))


def _let_in(session: Session, name: str, *, allowed: bool) -> None:
    session.execute(
        sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(sql.Identifier(name), sql.Literal(allowed))
    )

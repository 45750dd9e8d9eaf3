"""How a server and a database are set up: what no dump holds, and a person needs to build their like again.

An artifact of its own. It may name hosts and paths, and a setting such as `primary_conninfo`, or the mapping of a user
to a foreign server, may hold a password: it is as confidential as the dumps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

JsonObject = dict[str, Any]
Row = dict[str, Any]

# reset_val, not the present value: it is the server's, whatever this session has set for itself.
_SETTINGS = """
    SELECT name, reset_val AS value, unit, context, pending_restart
    FROM pg_settings
    WHERE reset_val IS DISTINCT FROM boot_val AND source NOT IN ('client', 'user', 'database user') ORDER BY name
"""
_ROLE_SETTINGS = """
    SELECT datname::text AS database, rolname::text AS role, setconfig AS settings
    FROM pg_db_role_setting AS s
    LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
    LEFT JOIN pg_roles AS r ON r.oid = s.setrole
    ORDER BY 1, 2
"""
_EXTENSIONS = """
    SELECT extname::text AS name, extversion AS version, nspname::text AS schema
    FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace ORDER BY 1
"""
_TABLESPACES = """
    SELECT spcname::text AS name, pg_tablespace_location(oid) AS location
    FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1
"""
# The passwords to foreign servers: pg_dump shows them to superusers only. PUBLIC's mapping has the role "public", which
# no role can be called.
_USER_MAPPINGS = """
    SELECT srvname::text AS server, coalesce(rolname, 'public')::text AS role, umoptions AS options
    FROM pg_user_mapping AS m
    JOIN pg_foreign_server AS s ON s.oid = m.umserver LEFT JOIN pg_roles AS r ON r.oid = m.umuser
    WHERE umoptions IS NOT NULL ORDER BY 1, 2
"""
_DATABASE = """
    SELECT datname::text AS name, pg_encoding_to_char(encoding) AS encoding, datcollate::text AS collate,
        datctype::text AS ctype, datlocprovider::text AS locale_provider, datcollversion AS collation_version,
        pg_get_userbyid(datdba)::text AS owner, current_setting('server_version') AS server_version,
        current_setting('block_size') AS block_size, current_setting('wal_segment_size') AS wal_segment_size
    FROM pg_database WHERE datname = current_database()
"""
_HBA = """
    SELECT line_number, type, database, user_name, address, netmask, auth_method, error
    FROM pg_hba_file_rules ORDER BY line_number
"""


@dataclass(frozen=True)
class ServerSettings:
    """Rows of the catalogs, each a JSON object. `hba` is None where the login may not read pg_hba.conf."""

    database: Row
    settings: tuple[Row, ...]
    role_settings: tuple[Row, ...]
    extensions: tuple[Row, ...]
    tablespaces: tuple[Row, ...]
    user_mappings: tuple[Row, ...]
    hba: tuple[Row, ...] | None

    def to_json(self) -> JsonObject:
        """A JSON object that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ServerSettings:
        """Read what `to_json` made."""
        found: JsonObject = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
        }
        return cls(**found)


def read_settings(session: psycopg.Connection[TupleRow]) -> ServerSettings:
    """Read how the session's server and database are set up; a snapshot in use stays in use."""
    return ServerSettings(
        database=rows(session, _DATABASE)[0],
        settings=rows(session, _SETTINGS),
        role_settings=rows(session, _ROLE_SETTINGS),
        extensions=rows(session, _EXTENSIONS),
        tablespaces=rows(session, _TABLESPACES),
        user_mappings=rows(session, _USER_MAPPINGS),
        hba=_hba(session),
    )


def _hba(session: psycopg.Connection[TupleRow]) -> tuple[Row, ...] | None:
    try:
        with session.transaction():  # a savepoint: a refusal must not end the transaction around it
            return rows(session, _HBA)
    except psycopg.errors.InsufficientPrivilege:
        return None


def rows(session: psycopg.Connection[TupleRow], query: LiteralString) -> tuple[Row, ...]:
    """What a query answers, each row by the names of its columns."""
    cursor = session.execute(query)
    names = [column.name for column in cursor.description or ()]
    return tuple(dict(zip(names, row, strict=True)) for row in cursor)

"""The server's own configuration files, as far as SQL tells them: they may lie outside the data directory.

Debian keeps `postgresql.conf`, `pg_hba.conf`, `pg_ident.conf` and the certificates in `/etc`, where no base backup
finds them. What each line of the first three says is told by
https://www.postgresql.org/docs/current/view-pg-file-settings.html, view-pg-hba-file-rules.html and
view-pg-ident-file-mappings.html; where certificates lie, by the settings. Their contents nobody tells.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, LiteralString

import psycopg

from include.sources.postgres.settings import JsonObject, Row, rows

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

_PLACES = """
    SELECT name, setting AS path FROM pg_settings
    WHERE name IN ('config_file', 'hba_file', 'ident_file', 'data_directory', 'ssl_cert_file', 'ssl_key_file',
        'ssl_ca_file', 'ssl_crl_file', 'ssl_crl_dir', 'ssl_dh_params_file', 'krb_server_keyfile')
    ORDER BY name
"""
# to_jsonb, because PostgreSQL 16 gave both of pg_hba.conf and pg_ident.conf their file's name.
_LINES: dict[str, LiteralString] = {
    "settings": "SELECT to_jsonb(line) AS line FROM pg_file_settings AS line ORDER BY seqno",
    "hba": "SELECT to_jsonb(line) AS line FROM pg_hba_file_rules AS line",
    "ident": "SELECT to_jsonb(line) AS line FROM pg_ident_file_mappings AS line",
}
_FILES = {"settings": "postgresql.conf", "hba": "pg_hba.conf", "ident": "pg_ident.conf"}


@dataclass(frozen=True)
class ServerFiles:
    """Where the files lie, and the lines of three of them; None of a file that the login may not read."""

    places: tuple[Row, ...]
    settings: tuple[Row, ...] | None
    hba: tuple[Row, ...] | None
    ident: tuple[Row, ...] | None

    @property
    def unread(self) -> tuple[str, ...]:
        """The files that could not be read."""
        return tuple(name for field, name in _FILES.items() if getattr(self, field) is None)

    def to_json(self) -> JsonObject:
        """A JSON object."""
        return asdict(self)


def read_server_files(session: psycopg.Connection[TupleRow]) -> ServerFiles:
    """Read what the session's server tells of its files; a snapshot in use stays in use."""
    return ServerFiles(
        places=rows(session, _PLACES), **{name: _lines(session, query) for name, query in _LINES.items()}
    )


def _lines(session: psycopg.Connection[TupleRow], query: LiteralString) -> tuple[Row, ...] | None:
    try:
        with session.transaction():  # a savepoint: a refusal must not end the transaction around it
            return tuple(row["line"] for row in rows(session, query))
    except psycopg.errors.InsufficientPrivilege:
        return None

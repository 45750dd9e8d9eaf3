"""Whether two states of the application are the same, judged without any of the engine's own code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

SHOWN = 16
"""How much of a digest a person needs to see."""
LINE_SHOWN = 200
DEFINITIONS = Path(__file__).with_name("definitions.sql")
TABLES = """
    SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2
"""
LARGE_OBJECTS = """
    SELECT oid::text, lomowner::regrole || ' ' || encode(sha256(lo_get(oid)), 'hex') FROM pg_largeobject_metadata
"""


class Table(NamedTuple):
    """What a table holds: how many rows, and the sum of their SHA-256, whatever their order."""

    rows: int
    digest: str

    def __str__(self) -> str:
        return f"{self.rows} rows, {self.digest[:SHOWN]}"


class Object(NamedTuple):
    """What a key of the bucket holds."""

    sha256: str
    content_type: str
    metadata: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.sha256[:SHOWN]}, {self.content_type}, {dict(sorted(self.metadata.items()))}"


class File(NamedTuple):
    """What a file holds, and who may read it."""

    sha256: str
    mode: int

    def __str__(self) -> str:
        return f"{self.sha256[:SHOWN]}, mode {self.mode:04o}"


@dataclass(frozen=True)
class DatabaseState:
    """One state of a database."""

    tables: Mapping[str, Table]
    """By `schema.table`; partitions each by themselves, materialized views too."""
    sequences: Mapping[str, int | None]
    """The last value given out; None before the first."""
    large_objects: Mapping[str, str]
    """Owner and SHA-256 by number."""
    definitions: Mapping[str, str]
    """What defines everything but the rows, by kind and name: see `definitions.sql`."""


@dataclass(frozen=True)
class Fingerprint(DatabaseState):
    """One state of database, object store and configuration. Equal fingerprints mean equal content."""

    objects: Mapping[str, Object]
    configuration: Mapping[str, str]
    """The commit, and what differs from it in the working tree."""
    files: Mapping[str, File]
    """The environment and secret files, which git does not track."""

    def difference(self, other: Fingerprint) -> list[str]:
        """What differs, a line each: `tables public.users: 5000 rows, … | 4999 rows, …`; empty when they are equal."""
        return [line for part in fields(self) for line in _difference(part.name, self, other)]


def read_database(connection: psycopg.Connection[TupleRow]) -> DatabaseState:
    """Read a whole database, as a superuser, in one snapshot and with one way to write a value as text."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
    connection.execute("SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL search_path = ''")
    return DatabaseState(
        tables={f"{schema}.{table}": _table(connection, schema, table) for schema, table in connection.execute(TABLES)},
        sequences=dict(connection.execute("SELECT schemaname || '.' || sequencename, last_value FROM pg_sequences")),
        large_objects=dict(connection.execute(LARGE_OBJECTS)),
        definitions=dict(connection.execute(DEFINITIONS.read_bytes())),
    )


def _table(connection: psycopg.Connection[TupleRow], schema: str, table: str) -> Table:
    """Count the rows and add up their SHA-256 modulo 2^256: order plays no part, and a doubled row shows."""
    count = total = 0
    everything = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(sql.Identifier(schema, table))
    with connection.cursor() as cursor, cursor.copy(everything) as copy:
        for row in copy:  # the server sends a message a row
            count += 1
            total += int.from_bytes(hashlib.sha256(row).digest(), "big")
    return Table(count, f"{total % 2**256:064x}")


def _difference(part: str, one: Fingerprint, other: Fingerprint) -> Iterator[str]:
    here, there = getattr(one, part), getattr(other, part)
    for name in sorted(here.keys() | there.keys()):
        ours, theirs = here.get(name, "missing"), there.get(name, "missing")
        if ours != theirs:
            yield f"{part} {name}: {_shown(ours)} | {_shown(theirs)}"


def _shown(value: object) -> str:
    return shorten(str(value), LINE_SHOWN, placeholder=" …")

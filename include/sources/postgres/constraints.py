"""The constraints of a database, a line each: what a restored copy must promise again (R5.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, LiteralString

from include.sources.postgres.relations import Relation

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

# Of a partitioned table those that were declared, not their copies for each partition, which PostgreSQL names itself.
# The expression of a CHECK is written in other words by another version: its name must do.
_LIST: LiteralString = """
    SELECT n.nspname, c.relname, con.convalidated, con.conname,
        CASE con.contype WHEN 'c' THEN 'CHECK' ELSE pg_get_constraintdef(con.oid) END
    FROM pg_constraint AS con
    JOIN pg_class AS c ON c.oid = con.conrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE con.contype IN ('p', 'u', 'f', 'x', 'c') AND con.conparentid = 0 AND con.conislocal
        AND con.conrelid = ANY (%s::oid[])
"""
NOT_VALID = " NOT VALID"


def list_constraints(session: psycopg.Connection[TupleRow], relations: Iterable[Relation]) -> tuple[str, ...]:
    """`schema.table: name PRIMARY KEY (id)`, sorted; one whose rows were never looked at ends with `NOT VALID`."""
    with session.transaction(force_rollback=True):
        session.execute("SELECT set_config('search_path', 'pg_catalog', true)")  # so that names are written in full
        rows = session.execute(_LIST, ([relation.oid for relation in relations],)).fetchall()
    return tuple(
        sorted(
            f"{Relation(0, schema, table, 'table')}: {name} {definition.removesuffix(NOT_VALID)}"
            + ("" if valid else NOT_VALID)
            for schema, table, valid, name, definition in rows
        )
    )

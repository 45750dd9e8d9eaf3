"""What the rows themselves say of keys and sequences, whatever the indexes say: from the heap (R5.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, LiteralString

from psycopg import sql

from include.recovery.validation.expectations import Measured, Question
from include.sources.postgres.relations import Relation

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    Session = psycopg.Connection[TupleRow]

# A damaged index must not answer for the rows, and a policy that would hide some is an error. With an empty search path
# every name is written in full, by the server when it writes an expression, and so by us.
_FROM_THE_HEAP = {
    "enable_seqscan": "on",
    "enable_indexscan": "off",
    "enable_indexonlyscan": "off",
    "enable_bitmapscan": "off",
    "row_security": "off",
    "search_path": "pg_catalog",
}

# Without those of WITHOUT OVERLAPS, which are of ranges. What is written of a column is its name, in quotes if need be.
_UNIQUE: LiteralString = """
    SELECT n.nspname, c.relname, name.relname, i.indisprimary, i.indnullsnotdistinct,
        ARRAY(SELECT pg_get_indexdef(i.indexrelid, k, false) FROM generate_series(1, i.indnkeyatts) AS k ORDER BY k),
        pg_get_expr(i.indpred, i.indrelid)
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indrelid
    JOIN pg_class AS name ON name.oid = i.indexrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE i.indisunique AND NOT i.indisexclusion AND c.relkind IN ('r', 'm') AND c.oid = ANY (%s::oid[])
    ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C", name.relname COLLATE "C"
"""
# Of a partitioned table the one that was declared, not its copies for each partition. One that the source had as NOT
# VALID is no promise. A key of periods (18) is left out.
_FOREIGN: LiteralString = """
    SELECT n.nspname, c.relname, con.conname, c.relkind::text, pn.nspname, p.relname, p.relkind::text,
        con.confmatchtype::text,
        ARRAY(
            SELECT attname::text FROM unnest(con.conkey) WITH ORDINALITY AS k (number, place)
            JOIN pg_attribute ON attrelid = con.conrelid AND attnum = k.number ORDER BY k.place
        ),
        ARRAY(
            SELECT attname::text FROM unnest(con.confkey) WITH ORDINALITY AS k (number, place)
            JOIN pg_attribute ON attrelid = con.confrelid AND attnum = k.number ORDER BY k.place
        ),
        ARRAY(
            SELECT format('OPERATOR(%%I.%%s)', operators.nspname, o.oprname)
            FROM unnest(con.conpfeqop) WITH ORDINALITY AS k (operator, place)
            JOIN pg_operator AS o ON o.oid = k.operator
            JOIN pg_namespace AS operators ON operators.oid = o.oprnamespace ORDER BY k.place
        )
    FROM pg_constraint AS con
    JOIN pg_class AS c ON c.oid = con.conrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_class AS p ON p.oid = con.confrelid
    JOIN pg_namespace AS pn ON pn.oid = p.relnamespace
    WHERE con.contype = 'f' AND con.conparentid = 0 AND con.convalidated
        AND NOT coalesce((to_jsonb(con) ->> 'conperiod')::boolean, false)
        AND con.conrelid = ANY (%s::oid[])
    ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C", con.conname COLLATE "C"
"""
# Those that fill their column: by its default, or as its identity.
_SEQUENCES: LiteralString = """
    SELECT d.objid::bigint, n.nspname, c.relname, a.attname
    FROM pg_depend AS d
    JOIN pg_sequence AS s ON s.seqrelid = d.objid AND NOT s.seqcycle
    JOIN pg_class AS c ON c.oid = d.refobjid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0
        AND (
            d.deptype = 'i' OR d.deptype = 'a' AND EXISTS (
                SELECT FROM pg_attrdef AS filled JOIN pg_depend AS uses ON uses.objid = filled.oid
                WHERE filled.adrelid = a.attrelid AND filled.adnum = a.attnum
                    AND uses.classid = 'pg_attrdef'::regclass AND uses.refobjid = d.objid
            )
        )
        AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
        AND d.objid = ANY (%s::oid[])
    ORDER BY 1
"""


@contextmanager
def from_the_heap(session: Session) -> Iterator[None]:
    """Within the block rows are read from their tables, and never through an index."""
    with session.transaction(force_rollback=True):
        for name, value in _FROM_THE_HEAP.items():
            session.execute("SELECT set_config(%s, %s, true)", (name, value))
        yield


def unique_keys(session: Session, relations: list[int]) -> Iterator[Question]:
    """Rows too many of each primary and unique key, and rows that a primary key has no value for."""
    duplicates, nulls = [], []
    rows = session.execute(_UNIQUE, (relations,)).fetchall()
    for schema, table, name, primary, nulls_are_equal, columns, predicate in rows:
        subject = f"{_name(schema, table)}: {name}"
        keys = [sql.SQL(column) for column in columns]
        conditions: list[sql.Composable] = [sql.SQL(predicate)] if predicate else []
        if not nulls_are_equal:
            conditions += [sql.SQL("{} IS NOT NULL").format(key) for key in keys]
        query = sql.SQL(
            "SELECT coalesce(sum(times - 1), 0)::bigint FROM"
            " (SELECT count(*) AS times FROM ONLY {} {} GROUP BY {} HAVING count(*) > 1) AS twice"
        ).format(sql.Identifier(schema, table), _where(conditions), sql.SQL(", ").join(keys))
        duplicates.append(Measured(subject, 0, _number(session, query)))
        if primary:
            empty = sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(key) for key in keys)
            query = sql.SQL("SELECT count(*) FROM ONLY {} WHERE {}").format(sql.Identifier(schema, table), empty)
            nulls.append(Measured(subject, 0, _number(session, query)))
    yield Question("rows twice in a unique key", tuple(duplicates))
    yield Question("rows without a value of the primary key", tuple(nulls))


def foreign_keys(session: Session, relations: list[int]) -> Iterator[Question]:
    """Rows that refer to nothing: orphans."""
    orphans = []
    for schema, table, name, kind, there, other, other_kind, match, columns, keys, operators in session.execute(
        _FOREIGN, (relations,)
    ).fetchall():
        own = [sql.Identifier("c", column) for column in columns]
        refers = sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(column) for column in own)
        same = sql.SQL(" AND ").join(
            sql.SQL("{} {} {}").format(sql.Identifier("p", key), sql.SQL(operator), column)
            for key, operator, column in zip(keys, operators, own, strict=True)
        )
        orphan = sql.SQL("({} AND NOT EXISTS (SELECT FROM {} {} AS p WHERE {}))").format(
            refers, _only(other_kind), sql.Identifier(there, other), same
        )
        if match == "f":  # MATCH FULL: all of the columns, or none
            some = sql.SQL(" OR ").join(sql.SQL("{} IS NOT NULL").format(column) for column in own)
            orphan = sql.SQL("{} OR (({}) AND NOT ({}))").format(orphan, some, refers)
        query = sql.SQL("SELECT count(*) FROM {} {} AS c WHERE {}").format(
            _only(kind), sql.Identifier(schema, table), orphan
        )
        orphans.append(Measured(f"{_name(schema, table)}: {name}", 0, _number(session, query)))
    yield Question("orphans of a foreign key", tuple(orphans))


@dataclass(frozen=True)
class _Filled:
    """A sequence and the column that it fills."""

    sequence: Relation
    schema: str
    table: str
    column: str


def sequences_ahead(session: Session, sequences: tuple[Relation, ...]) -> Iterator[Question]:
    """A sequence has given out every number that its column holds: the next one is free."""
    by_oid = {sequence.oid: sequence for sequence in sequences}
    rows = session.execute(_SEQUENCES, (list(by_oid),)).fetchall()
    ahead: list[Measured] = []
    behind: list[Measured] = []
    for filled in (_Filled(by_oid[oid], *rest) for oid, *rest in rows):
        query = sql.SQL(
            "SELECT s.seqincrement, CASE WHEN now.is_called THEN now.last_value ELSE now.last_value - s.seqincrement"
            " END, max(t.{column}), min(t.{column}) FROM pg_sequence AS s CROSS JOIN {sequence} AS now"
            " LEFT JOIN {table} AS t ON true WHERE s.seqrelid = {oid}::oid GROUP BY 1, 2"
        ).format(
            column=sql.Identifier(filled.column),
            sequence=sql.Identifier(filled.sequence.schema, filled.sequence.name),
            table=sql.Identifier(filled.schema, filled.table),
            oid=filled.sequence.oid,
        )
        increment, given, highest, lowest = session.execute(query).fetchone() or (1, 0, None, None)
        if highest is not None:
            into, end = (ahead, highest) if increment > 0 else (behind, lowest)
            into.append(Measured(str(filled.sequence), int(end), int(given)))
    yield Question("last number given out", tuple(ahead), "at least")
    yield Question("last number given out", tuple(behind), "at most")


def _name(schema: str, table: str) -> str:
    return str(Relation(0, schema, table, "table"))


def _only(kind: str) -> sql.SQL:
    """A partitioned table's rows are its partitions'; a plain one's do not include its heirs'."""
    return sql.SQL("") if kind == "p" else sql.SQL("ONLY")


def _where(conditions: list[sql.Composable]) -> sql.Composable:
    return sql.SQL("WHERE {}").format(sql.SQL(" AND ").join(conditions)) if conditions else sql.SQL("")


def _number(session: Session, query: sql.Composed) -> int:
    (number,) = session.execute(query).fetchone() or (0,)
    return int(number)

"""Whether each index has every row of its table: `pg_amcheck`'s word, or a scan through it (R5.2)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, LiteralString

import psycopg
from psycopg import sql

from include.errors import BackupError
from include.pipeline.process import child_environment
from include.recovery.scratch import APPLICATION
from include.recovery.validation.expectations import Measured, Question
from include.sources.postgres.relations import Relation
from include.sources.postgres.tools import find_tools

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from include.sources.postgres.login import DatabaseLogin

    Session = psycopg.Connection[TupleRow]

_CORRUPT = 2
_SOUND, _DAMAGED = "sound", "damaged"
_NAMED = re.compile(r'^(?:btree|gin) index "(?P<name>.*)":$|^heap table "(?P<table>.*?)"(?:,|:)', re.MULTILINE)

# With the direction of each column, as ORDER BY takes it; `plain` is a B-tree of default operators and collations.
_INDEXES: LiteralString = """
    SELECT n.nspname, name.relname, tn.nspname, c.relname, m.amname, i.indisvalid AND i.indisready AND i.indislive,
        m.amname = 'btree' AND NOT EXISTS (
            SELECT FROM unnest(i.indclass) AS class JOIN pg_opclass AS o ON o.oid = class WHERE NOT o.opcdefault
        ),
        ARRAY(
            SELECT pg_get_indexdef(i.indexrelid, k, false)
                || coalesce((
                    SELECT format(' COLLATE %%I.%%I', l.nspname, collname) FROM pg_collation
                    JOIN pg_namespace AS l ON l.oid = collnamespace WHERE pg_collation.oid = i.indcollation[k - 1]
                ), '')
                || CASE WHEN i.indoption[k - 1] & 1 = 1 THEN ' DESC' ELSE ' ASC' END
                || CASE WHEN i.indoption[k - 1] & 2 = 2 THEN ' NULLS FIRST' ELSE ' NULLS LAST' END
            FROM generate_series(1, i.indnkeyatts) AS k ORDER BY k
        ),
        pg_get_expr(i.indpred, i.indrelid)
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indrelid
    JOIN pg_namespace AS tn ON tn.oid = c.relnamespace
    JOIN pg_class AS name ON name.oid = i.indexrelid
    JOIN pg_namespace AS n ON n.oid = name.relnamespace
    JOIN pg_am AS m ON m.oid = name.relam
    WHERE name.relkind = 'i' AND c.oid = ANY (%s::oid[])
    ORDER BY n.nspname COLLATE "C", name.relname COLLATE "C"
"""
_MAY_CHECK: LiteralString = """
    SELECT current_setting('is_superuser') = 'on', EXISTS (
        SELECT FROM pg_extension AS e
        JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
            AND d.classid = 'pg_proc'::regclass
        JOIN pg_proc AS p ON p.oid = d.objid
        WHERE e.extname = 'amcheck' AND p.proname IN ('bt_index_check', 'verify_heapam')
            HAVING bool_and(has_function_privilege(p.oid, 'EXECUTE'))
    )
"""
_THERE = "SELECT FROM pg_extension WHERE extname = 'amcheck'"
# Of every row what it is and where it lies: the same sum, whichever way the rows are come by.
_SUM: LiteralString = (
    "SELECT count(*), coalesce(sum(hashtextextended(line, 0)), 0)::text"
    " FROM (SELECT ctid::text || (t.*)::text AS line FROM ONLY {} AS t {} {} OFFSET 0) AS lines"
)
_THROUGH_THE_INDEX = ("enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_incremental_sort")


class NotChecked(BackupError):
    """`pg_amcheck` could not look."""


@dataclass(frozen=True)
class _Index:
    schema: str
    name: str
    table_schema: str
    table: str
    method: str
    valid: bool
    plain: bool
    columns: list[str]
    predicate: str | None

    def __str__(self) -> str:
        return str(Relation(0, self.schema, self.name, "table"))


def indexes(session: Session, login: DatabaseLogin, relations: list[int]) -> Iterator[Question]:
    """Every index is in use, and B-trees have every row of their tables, and no other.

    Where the login may, `pg_amcheck` says so, of the tables too; the extension that it needs is made, and goes again.
    Elsewhere each is scanned through, and must show what its table does. Raises `NotChecked`.
    """
    found = [_Index(*row) for row in session.execute(_INDEXES, (relations,)).fetchall()]
    yield Question(
        "validity of an index",
        tuple(Measured(str(index), "valid", "valid" if index.valid else "invalid") for index in found),
        together="all indexes",
    )
    usable = [index for index in found if index.valid]
    superuser, granted = session.execute(_MAY_CHECK).fetchone() or (False, False)
    if superuser or granted:
        damaged = _checked_by_amcheck(login, install=superuser and not granted)
        trees = [index for index in usable if index.method == "btree"]
        named = {f"{index.schema}.{index.name}" for index in trees}
        answers = [_measured(index, f"{index.schema}.{index.name}" not in damaged) for index in trees]
        answers += [Measured(other, _SOUND, _DAMAGED) for other in sorted(damaged - named)]
        yield Question("soundness", tuple(answers), together="B-trees and tables, by pg_amcheck")
    else:
        answers = [_measured(index, sound) for index in usable if (sound := _scanned(session, index)) is not None]
        yield Question("soundness", tuple(answers), together="B-trees, each scanned through")


def _measured(index: _Index, sound: bool) -> Measured:
    return Measured(str(index), _SOUND, _SOUND if sound else _DAMAGED)


def _checked_by_amcheck(login: DatabaseLogin, *, install: bool) -> set[str]:
    """What is damaged, `schema.name`."""
    with login.connect(application_name=APPLICATION, autocommit=True) as session:
        tools = find_tools(session.info.server_version // 10_000)
        made = install and session.execute(_THERE).fetchone() is None
        try:
            done = subprocess.run(
                [tools.pg_amcheck, "--heapallindexed", "--jobs=2", "--no-password"]
                + (["--install-missing"] if install else []),
                env={**child_environment(), **login.environment(APPLICATION), "PGCLIENTENCODING": "UTF8"},
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            if made:
                session.execute("DROP EXTENSION IF EXISTS amcheck")
    damaged = {
        (match["name"] or match["table"]).removeprefix(f"{login.dbname}.") for match in _NAMED.finditer(done.stdout)
    }
    if done.returncode not in (0, _CORRUPT) or (done.returncode == _CORRUPT and not damaged):
        said = " ".join((done.stderr or done.stdout).split("\n")[:5])
        raise NotChecked(
            f"pg_amcheck could not look at {login}: {said.strip()}.", mend="Mend that, and clear the task."
        )
    return damaged


def _scanned(session: Session, index: _Index) -> bool | None:
    """Whether the rows that are come by through the index are the table's; None when no scan goes through it alone."""
    if not index.plain:
        return None
    table = sql.Identifier(index.table_schema, index.table)
    where = sql.SQL("WHERE {}").format(sql.SQL(index.predicate)) if index.predicate else sql.SQL("")
    order = sql.SQL("ORDER BY {}").format(sql.SQL(", ").join(map(sql.SQL, index.columns)))
    straight = session.execute(sql.SQL(_SUM).format(table, where, sql.SQL(""))).fetchone()
    with session.transaction(force_rollback=True):
        for setting in _THROUGH_THE_INDEX:
            session.execute("SELECT set_config(%s, 'off', true)", (setting,))
        for setting in ("enable_indexscan", "enable_indexonlyscan"):
            session.execute("SELECT set_config(%s, 'on', true)", (setting,))
        through = sql.SQL(_SUM).format(table, where, order)
        (plan,) = session.execute(sql.SQL("EXPLAIN (FORMAT JSON) {}").format(through)).fetchone() or ([],)
        if index.name not in set(_scans(plan[0]["Plan"])):
            return None
        try:
            return session.execute(through).fetchone() == straight
        except psycopg.errors.IndexCorrupted:
            return False
        except psycopg.errors.DataCorrupted:
            return False


def _scans(plan: dict[str, object]) -> Iterator[str]:
    if "Index Name" in plan:
        yield str(plan["Index Name"])
    below = plan.get("Plans", [])
    for each in below if isinstance(below, list) else []:
        yield from _scans(each)

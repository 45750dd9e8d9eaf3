"""What a database holds, in numbers that a restored copy must show again (R4.5, R5.2).

Row counts and content digests are computed by the server, so that no row leaves it, and in the snapshot of the
consistency point. A row's digest is two 64-bit hashes of its text, PostgreSQL's own with two seeds; a table's is the
sum of its rows', which no order of rows can change. Every setting that bends a value's text is pinned, and hash
partitioning keeps these hashes what they are, so PostgreSQL 15 and 18 give the same digest for the same data, on
machines of one byte order. They tell two honest copies apart and need not withstand a forger: the manifest is signed.
Measured, of a gigabyte on one core: 2.9 s; with SHA-256, where the server was built without OpenSSL, 8.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import errors, sql

from include.errors import BackupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from psycopg.rows import TupleRow

    from include.sources.postgres.relations import Relation, Relations

    Session = psycopg.Connection[TupleRow]

JsonObject = dict[str, Any]

_LARGE_OBJECT_CHUNK = 1 << 20
_SEQUENCES_AT_ONCE = 200
_LARGE_OBJECTS_AT_ONCE = 1000

_PINNED = {
    "search_path": "pg_catalog",  # regclass and its like print what it does not reach with its schema
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmloption": "content",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "row_security": "off",  # a policy that would hide rows is an error, not fewer rows
}
_PIN = """
    SELECT set_config(wanted.name, wanted.value, true)
    FROM unnest(%s::text[], %s::text[]) AS wanted (name, value)
"""

# A database without an encoding (SQL_ASCII) may hold bytes that are no UTF-8: they are hashed as they are.
_ENCODING: LiteralString = "(SELECT CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)"

# Over rows of one column h, 128 bits of a hash as hexadecimal text.
_SUM_OF_WORDS: LiteralString = """
    coalesce(sum(('x' || left(h, 16))::bit(64)::bigint), 0)::text,
    coalesce(sum(('x' || right(h, 16))::bit(64)::bigint), 0)::text
"""

# Two 64-bit hashes of each row's text, in one pass: OFFSET 0 keeps the planner from writing the text twice. (t.*) is
# the row even where a column is called t.
_DIGEST_TABLE: LiteralString = """
    SELECT count(*),
        coalesce(sum(hashtextextended(line COLLATE "C", 0)), 0)::text,
        coalesce(sum(hashtextextended(line COLLATE "C", 1)), 0)::text
    FROM (SELECT (t.*)::text AS line FROM ONLY {} AS t OFFSET 0) AS lines
"""

# A large object has up to 4 TB and lo_get 1 GB at most: it is hashed by chunks, and one of no bytes as one empty chunk.
# Its size is that of its last page; pages that were never written are holes, which lo_get reads as zeros.
_DIGEST_LARGE_OBJECTS: LiteralString = f"""
    SELECT count(DISTINCT oid), coalesce(sum(octet_length(chunk)), 0)::bigint, {_SUM_OF_WORDS}
    FROM (
        SELECT oid, chunk, encode(substr(sha256(convert_to(label, {_ENCODING}) || chunk), 1, 16), 'hex') AS h
        FROM (
            SELECT object.oid,
                concat_ws(' ', object.oid, start, pg_get_userbyid(object.lomowner), ':') AS label,
                lo_get(object.oid, start, {_LARGE_OBJECT_CHUNK}) AS chunk
            FROM pg_largeobject_metadata AS object
            LEFT JOIN LATERAL (
                SELECT pageno * (current_setting('block_size')::bigint / 4) + octet_length(data) AS size
                FROM pg_largeobject WHERE loid = object.oid ORDER BY pageno DESC LIMIT 1
            ) AS last_page ON true
            CROSS JOIN generate_series(0, greatest(coalesce(last_page.size, 0) - 1, 0), {_LARGE_OBJECT_CHUNK}) AS start
            OFFSET 0
        ) AS chunks
        OFFSET 0
    ) AS hashed
"""  # noqa: S608 - constants


# What their owner may ask: pg_largeobject itself is for superusers. 262144 opens to read, 2 seeks to the end.
_COUNT_LARGE_OBJECTS: LiteralString = """
    SELECT count(*), coalesce(sum(lo_lseek64(lo_open(oid, 262144), 0, 2)), 0)::bigint, max(oid::bigint)
    FROM (SELECT oid FROM pg_largeobject_metadata WHERE oid > %s::bigint::oid ORDER BY oid LIMIT %s) AS batch
"""


@dataclass(frozen=True)
class TableContent:
    """One leaf table: `digest` is two decimal numbers."""

    rows: int
    digest: str


@dataclass(frozen=True)
class SequenceState:
    """One sequence, as `setval` would take it."""

    last_value: int
    is_called: bool
    increment: int
    cycles: bool

    @property
    def given(self) -> int:
        """The last number given out, or the one before the first."""
        return self.last_value if self.is_called else self.last_value - self.increment


@dataclass(frozen=True)
class LargeObjects:
    """All large objects together: numbers, owners and bytes are in the digest, their comments and grants are not."""

    count: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class Inventory:
    """What was counted and hashed; the keys are `schema.name`."""

    tables: Mapping[str, TableContent]
    sequences: Mapping[str, SequenceState]
    large_objects: LargeObjects | None = None

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(table.rows for table in self.tables.values())

    def to_json(self) -> JsonObject:
        """A JSON object that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Inventory:
        """Read what `to_json` made."""
        large_objects = document["large_objects"]
        return cls(
            {name: TableContent(**table) for name, table in document["tables"].items()},
            {name: SequenceState(**sequence) for name, sequence in document["sequences"].items()},
            None if large_objects is None else LargeObjects(**large_objects),
        )


def take_inventory(session: Session, relations: Relations) -> Inventory:
    """Count and hash everything in `relations`, in the session's present snapshot.

    Sequences are read first, and at once: they know no snapshot, so they must be recorded *before* the dumps read
    them, for "restored is at least recorded" to hold. On the consistency point's session take `sequence_states` right
    away and hash tables while the dumps run, or call this before they start.
    """
    sequences = sequence_states(session, relations.sequences)
    return Inventory(table_contents(session, relations.tables), sequences, large_objects(session))


def sequence_states(session: Session, sequences: Sequence[Relation]) -> dict[str, SequenceState]:
    """Where each sequence stands now, whatever the session's snapshot."""
    states: dict[str, SequenceState] = {}
    for start in range(0, len(sequences), _SEQUENCES_AT_ONCE):
        some = sequences[start : start + _SEQUENCES_AT_ONCE]
        for name, *state in session.execute(sql.SQL(" UNION ALL ").join(map(_sequence_query, some))):
            states[name] = SequenceState(*state)
    return states


def _sequence_query(sequence: Relation) -> sql.Composed:
    return sql.SQL(
        "SELECT {}::text, s.last_value, s.is_called, p.seqincrement, p.seqcycle"
        " FROM {} AS s, pg_catalog.pg_sequence AS p WHERE p.seqrelid = {}::oid"
    ).format(str(sequence), sql.Identifier(sequence.schema, sequence.name), sequence.oid)


def table_contents(session: Session, tables: Iterable[Relation]) -> dict[str, TableContent]:
    """Rows and digest of each leaf table, in the session's present snapshot.

    Raises `BackupError` when row-level security would hide rows from this login.
    """
    with _pinned(session):
        return {str(table): _table_content(session, table) for table in tables}


def shared_table_contents(
    sessions: Sequence[Callable[[], AbstractContextManager[Session]]], tables: Iterable[Relation]
) -> dict[str, TableContent]:
    """`table_contents`, by several sessions of one snapshot: each takes the next table when it has ended one.

    One that finds a table locked (an `ALTER TABLE` waits for the snapshot's owner) must not wait behind it: it ends,
    and leaves that table to the first session, which has its locks already. Raises as `table_contents`.
    """
    remaining = iter(list(tables))
    left: list[Relation] = []
    lock = threading.Lock()

    def following() -> Relation | None:
        with lock:
            return next(remaining, None)

    def unlocked(session: Session) -> Iterator[Relation]:
        while (table := following()) is not None:
            if not _may_read_at_once(session, table):
                left.append(table)
                return
            yield table

    def assist(open_session: Callable[[], AbstractContextManager[Session]]) -> dict[str, TableContent]:
        with open_session() as session:
            return table_contents(session, unlocked(session))

    first, *others = sessions
    with ThreadPoolExecutor(max(len(others), 1), thread_name_prefix="inventory") as pool, first() as session:
        assisting = [pool.submit(assist, each) for each in others]
        contents = table_contents(session, iter(following, None))
        for each in assisting:
            contents |= each.result()
        return contents | table_contents(session, left)


def largest_first(session: Session, tables: Iterable[Relation]) -> list[Relation]:
    """The tables, those that take longest to read first, so that no session is left with one when others have ended."""
    listed = list(tables)
    query = "SELECT oid::bigint, pg_table_size(oid) FROM unnest(%s::oid[]) AS oid"
    sizes: dict[int, int | None] = dict(session.execute(query, ([table.oid for table in listed],)).fetchall())
    return sorted(listed, key=lambda table: -(sizes[table.oid] or 0))


def _may_read_at_once(session: Session, table: Relation) -> bool:
    lock = sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE NOWAIT")
    try:
        with session.transaction():
            session.execute(lock.format(sql.Identifier(table.schema, table.name)))
    except errors.LockNotAvailable:
        return False
    return True


def _table_content(session: Session, table: Relation) -> TableContent:
    query = sql.SQL(_DIGEST_TABLE).format(sql.Identifier(table.schema, table.name))
    rows, high, low = _aggregate(session, query, str(table))
    return TableContent(rows, f"{high} {low}")


def large_objects(session: Session) -> LargeObjects:
    """Count, bytes and digest of every large object, in the session's present snapshot."""
    with _pinned(session):
        count, size, high, low = _aggregate(session, sql.SQL(_DIGEST_LARGE_OBJECTS), "the large objects")
    return LargeObjects(count, size, f"{high} {low}")


def count_large_objects(session: Session) -> tuple[int, int]:
    """Number and bytes of the large objects, all of which the login owns; the session commits each statement.

    Each stays open to the end of its transaction, so they are counted some at a time.
    """
    number = size = 0
    last: int | None = 0
    while last is not None:
        row = session.execute(_COUNT_LARGE_OBJECTS, (last, _LARGE_OBJECTS_AT_ONCE)).fetchone()
        assert row is not None  # noqa: S101 - an aggregate has one row
        some, some_bytes, last = row
        number += some
        size += some_bytes
    return number, size


def _aggregate(session: Session, query: sql.SQL | sql.Composed, what: str) -> tuple[Any, ...]:
    try:
        row = session.execute(query).fetchone()
    except errors.InsufficientPrivilege as error:
        raise BackupError(
            f"Not all of {what} can be read: {error.diag.message_primary}.",
            mend="Run include/sources/postgres/grants.sql as a superuser in this database.",
        ) from error
    assert row is not None  # noqa: S101 - an aggregate has one row
    return row


@contextmanager
def _pinned(session: Session) -> Iterator[None]:
    """Within the block every value has one text. Rolled back after it, and the settings with it."""
    with session.transaction(force_rollback=True):
        session.execute(_PIN, (list(_PINNED), list(_PINNED.values())))
        yield


def compare(before: Inventory, after: Inventory, tables: Collection[str] | None = None) -> list[str]:
    """The differences, one sentence each; nothing when `after` is a faithful copy of `before`.

    `tables` limits the comparison to some tables (a sample restore), and then neither sequences nor large objects are
    compared. A sequence may have advanced, in the direction of its increment; one that cycles is not compared.
    """
    wanted = sorted(before.tables if tables is None else tables)
    differences = [text for name in wanted if (text := _table_difference(name, before.tables, after.tables))]
    if tables is not None:
        return differences
    surplus = sorted(after.tables.keys() - before.tables.keys())
    return [
        *differences,
        *(f"{name}: not in the backup" for name in surplus),
        *_sequence_differences(before.sequences, after.sequences),
        *_large_object_differences(before.large_objects, after.large_objects),
    ]


def _table_difference(name: str, before: Mapping[str, TableContent], after: Mapping[str, TableContent]) -> str | None:
    if name not in before:
        return f"{name}: not in the backup"
    if name not in after:
        return f"{name}: missing"
    missing = before[name].rows - after[name].rows
    if missing:
        return f"{name}: {_rows(abs(missing))} {'fewer' if missing > 0 else 'more'}"
    return None if before[name] == after[name] else f"{name}: content differs"


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"


def _sequence_differences(before: Mapping[str, SequenceState], after: Mapping[str, SequenceState]) -> Iterator[str]:
    for name, recorded in sorted(before.items()):
        restored = after.get(name)
        if restored is None:
            yield f"{name}: sequence missing"
        elif not recorded.cycles and (restored.given - recorded.given) * recorded.increment < 0:
            yield f"{name}: stands at {restored.given}, behind {recorded.given}"


def _large_object_differences(before: LargeObjects | None, after: LargeObjects | None) -> Iterator[str]:
    if before is None or after is None or before == after:
        return
    missing = before.count - after.count
    if missing:
        yield f"large objects: {abs(missing)} {'fewer' if missing > 0 else 'more'}"
    else:
        yield "large objects: content or owner differs"

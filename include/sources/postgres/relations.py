"""What a database holds that a dump must take, and which dump takes it.

A component of the policy is a set of *leaf* tables: `pg_dump --section=data -t parent` of a partitioned table dumps no
rows, so a pattern that names a parent takes the leaves below it (through `pg_inherits`, for partitions and for plain
inheritance). What no component names goes to the catch-all. Every relation is in exactly one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, cast

from include.errors import BackupError

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

CATCH_ALL = "unclassified_database"
_AMBIGUOUS = re.compile(r'[."]')

Kind = Literal["table", "parent", "sequence", "materialized view", "foreign table"]
_KINDS: Mapping[str, Kind] = {
    "r": "table",
    "p": "parent",
    "S": "sequence",
    "m": "materialized view",
    "f": "foreign table",
}

# As pg_dump decides: not in a system schema (where temporary tables are, too) and not a member of an extension. The
# configuration tables of extensions pg_dump adds by itself to the one dump of data that has no -t, the catch-all. A
# sequence's owner is the table with the column whose default ('a') or identity ('i') it is.
_LIST = """
    WITH RECURSIVE ancestry (oid, ancestor) AS (
        SELECT inhrelid, inhparent FROM pg_catalog.pg_inherits
        UNION
        SELECT ancestry.oid, next.inhparent
        FROM ancestry JOIN pg_catalog.pg_inherits AS next ON next.inhrelid = ancestry.ancestor
    )
    SELECT c.oid::bigint, n.nspname, c.relname, c.relkind::text,
        coalesce(above.ancestors, '{}'),
        (
            SELECT d.refobjid::bigint FROM pg_catalog.pg_depend AS d
            WHERE c.relkind = 'S' AND d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
        )
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN (
        SELECT oid, array_agg(ancestor::bigint ORDER BY ancestor) AS ancestors FROM ancestry GROUP BY oid
    ) AS above ON above.oid = c.oid
    WHERE c.relkind IN ('r', 'p', 'S', 'm', 'f')
        AND pg_catalog.left(n.nspname, 3) <> 'pg_'
        AND n.nspname <> 'information_schema'
        AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_depend AS d
            WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
        )
    ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
"""


class ComponentsOverlap(BackupError):
    """A table that two components of the policy claim."""


@dataclass(frozen=True)
class Relation:
    """One relation: `ancestors` are the oids of the tables it inherits from, `owner` the oid of a sequence's table."""

    oid: int
    schema: str
    name: str
    kind: Kind
    ancestors: tuple[int, ...] = ()
    owner: int | None = None

    def __str__(self) -> str:
        """`schema.name`; a part with a dot or a double quote in it is quoted as in SQL, so that no two are alike."""
        return ".".join(quote(part) if _AMBIGUOUS.search(part) else part for part in (self.schema, self.name))

    @property
    def plain(self) -> str:
        """`schema.name` as the policy's patterns see it, never quoted."""
        return f"{self.schema}.{self.name}"


def quote(name: str) -> str:
    """A name within double quotes, where no character is special but the double quote, which is doubled."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class Relations:
    """Everything dumpable in one database at one moment, ordered by name; equal when nothing came, went or moved."""

    all: tuple[Relation, ...]

    def of_kind(self, kind: Kind) -> tuple[Relation, ...]:
        """The relations of one kind, by name."""
        return tuple(relation for relation in self.all if relation.kind == kind)

    @property
    def tables(self) -> tuple[Relation, ...]:
        """The leaf tables: those that hold rows."""
        return self.of_kind("table")

    @property
    def sequences(self) -> tuple[Relation, ...]:
        """The sequences, owned and loose."""
        return self.of_kind("sequence")

    @property
    def lockable(self) -> tuple[Relation, ...]:
        """What `LOCK TABLE` takes, in the order to take it.

        Parents come before their children, the order in which PostgreSQL itself locks them when a row is written
        through the parent; the other order would invite deadlocks.
        """
        tables = self.of_kind("parent") + self.tables
        return tuple(sorted(tables, key=lambda table: (len(table.ancestors), table.schema, table.name)))

    def difference(self, other: Relations) -> list[str]:
        """Names of what is in one list and not, or not alike, in the other."""
        return sorted({str(relation) for relation in set(self.all) ^ set(other.all)})


@dataclass(frozen=True)
class ComponentRelations:
    """One component's leaf tables and sequences."""

    name: str
    tables: tuple[Relation, ...]
    sequences: tuple[Relation, ...]

    @property
    def relations(self) -> tuple[Relation, ...]:
        """Everything whose data this component's dump holds."""
        return self.tables + self.sequences


@dataclass(frozen=True)
class DumpPlan:
    """Which dump takes which relation.

    `components` are in the policy's order and may be empty; `catch_all` holds what nobody named. `warnings` are for a
    person to read and to mend in the policy.
    """

    components: tuple[ComponentRelations, ...]
    catch_all: ComponentRelations
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __iter__(self) -> Iterator[ComponentRelations]:
        """Every component, the catch-all last."""
        yield from self.components
        yield self.catch_all

    def component_of(self, relation: Relation) -> str:
        """The name of the component that takes `relation`."""
        return next(component.name for component in self if relation in component.relations)


def list_relations(session: psycopg.Connection[TupleRow]) -> Relations:
    """List what is to be dumped from the session's database, in its current snapshot, with one query."""
    rows = session.execute(_LIST).fetchall()
    return Relations(
        tuple(
            Relation(oid, schema, name, _KINDS[cast(str, kind)], tuple(ancestors), owner)
            for oid, schema, name, kind, ancestors, owner in rows
        ),
    )


def plan_dump(relations: Relations, components: Mapping[str, Sequence[str]], *, catch_all: str = CATCH_ALL) -> DumpPlan:
    """Put every relation into exactly one component.

    `components` maps a component's name to its patterns: shell globs over `schema.table`, compared as a whole and with
    case. A pattern takes the leaf tables whose own name, or whose ancestor's name, it matches, and loose sequences;
    owned sequences go where their table goes. Raises `ComponentsOverlap` when two components claim one relation.
    """
    claims = {name: _claimed(relations, patterns) for name, patterns in components.items()}
    taker = _takers(relations, claims)
    _follow_owners(relations, taker)
    parts = [_component(name, relations, taker) for name in components]
    rest = _component(catch_all, relations, taker, default=True)
    _assert_exactly_once(relations, [*parts, rest])
    warnings = (*_unmatched(relations, components), *_unclassified(rest), *_left_out(relations))
    return DumpPlan(tuple(parts), rest, warnings)


def names(relations: Relations) -> dict[int, tuple[str, ...]]:
    """For each leaf table and loose sequence the names by which a pattern may mean it."""
    by_oid = {relation.oid: relation.plain for relation in relations.all}
    return {
        relation.oid: (relation.plain, *(by_oid[oid] for oid in relation.ancestors if oid in by_oid))
        for relation in relations.all
        if relation.kind == "table" or (relation.kind == "sequence" and relation.owner is None)
    }


def _claimed(relations: Relations, patterns: Sequence[str]) -> set[int]:
    return {oid for oid, known in names(relations).items() if any(_matches(known, pattern) for pattern in patterns)}


def _matches(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _takers(relations: Relations, claims: Mapping[str, set[int]]) -> dict[int, str]:
    """The component of each claimed relation, by oid."""
    takers: dict[int, str] = {}
    for name, oids in claims.items():
        for relation in relations.all:
            if relation.oid not in oids:
                continue
            if relation.oid in takers:
                raise ComponentsOverlap(
                    f"{relation} is claimed by two components, {takers[relation.oid]} and {name}.",
                    mend="Narrow the tables of one of them in the backup policy.",
                )
            takers[relation.oid] = name
    return takers


def _follow_owners(relations: Relations, takers: dict[int, str]) -> None:
    """Send each owned sequence to its table's component.

    A partitioned parent has no rows and so no component; its sequence goes with its leaves when one component has them
    all, and else, being shared, to the catch-all.
    """
    for sequence in relations.sequences:
        if sequence.owner is None:
            continue
        family = {t.oid for t in relations.tables if t.oid == sequence.owner or sequence.owner in t.ancestors}
        homes = {takers.get(oid) for oid in family}
        if len(homes) == 1 and (home := homes.pop()) is not None:
            takers[sequence.oid] = home


def _component(
    name: str, relations: Relations, takers: Mapping[int, str], *, default: bool = False
) -> ComponentRelations:
    wanted = None if default else name
    return ComponentRelations(
        name,
        tuple(table for table in relations.tables if takers.get(table.oid) == wanted),
        tuple(sequence for sequence in relations.sequences if takers.get(sequence.oid) == wanted),
    )


def _assert_exactly_once(relations: Relations, components: Sequence[ComponentRelations]) -> None:
    taken = sorted(relation.oid for component in components for relation in component.relations)
    expected = sorted(relation.oid for relation in (*relations.tables, *relations.sequences))
    if taken != expected:
        raise AssertionError(f"dump plan takes {len(taken)} relations of {len(expected)}")


def _unmatched(relations: Relations, components: Mapping[str, Sequence[str]]) -> Iterator[str]:
    known = list(names(relations).values())
    for component, patterns in components.items():
        for pattern in patterns:
            if not any(_matches(candidates, pattern) for candidates in known):
                yield f"Component {component}: nothing in the database matches {pattern}."


def _unclassified(rest: ComponentRelations) -> Iterator[str]:
    for table in rest.tables:
        yield f"Table {table} is in no component: it is backed up in {rest.name} and kept as personal data."


def _left_out(relations: Relations) -> Iterator[str]:
    for table in relations.of_kind("foreign table"):
        yield f"Foreign table {table}: its definition is backed up, its rows are another server's."

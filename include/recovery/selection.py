"""A part of a database: which tables were asked for, what they need, and what cannot come along with them.

PostgreSQL itself is asked, in a scratch database that has the whole schema and no rows: what a table needs (its types'
tables, its parents, the sequences of its defaults) is what `pg_depend` says it needs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from psycopg import sql

from include.errors import BackupError
from include.sources.postgres.relations import Relation, Relations, names, quote

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    Session = psycopg.Connection[TupleRow]

Key = TypeVar("Key")

_NEAR = 3
_TOLD = 5
_TABLES = frozenset({"table", "parent", "foreign table"})
_FIRST_OID_OF_USERS = 16_384

_NAME = r'(?:"(?:[^"]|"")+"|[^\s.,;()"]+)'
_QUALIFIED = rf"{_NAME}\.{_NAME}"
_COLUMNS = r'\((?:"(?:[^"]|"")+"|[^")])*\)'
FOREIGN_KEY = re.compile(
    rf"ALTER TABLE (?:ONLY )?(?P<table>{_QUALIFIED})\s+ADD CONSTRAINT (?P<name>{_NAME}) "
    rf"FOREIGN KEY {_COLUMNS} REFERENCES (?P<to>{_QUALIFIED})"
)
REFRESH = re.compile(rf"REFRESH MATERIALIZED VIEW (?P<name>{_QUALIFIED})")
_POLICY = re.compile(rf"CREATE POLICY (?P<name>{_NAME}) ON (?P<table>{_QUALIFIED})")
_MAPPING = re.compile(rf"CREATE USER MAPPING FOR (?P<role>{_NAME}) SERVER (?P<server>{_NAME})")
_OF_THE_WHOLE = re.compile(rf"CREATE (?P<kind>PUBLICATION|SUBSCRIPTION|EVENT TRIGGER) (?P<name>{_NAME})")

_ENTRY = re.compile(r"^\d+; \d+ \d+ (?P<rest>.*)$")
NAMED_WHEN_LEFT_OUT = ("POLICY", "PUBLICATION", "SUBSCRIPTION", "EVENT TRIGGER", "USER MAPPING")
# A comment on one of those would fail, and its line does not say unmistakably what it is on.
_NOT_AT_ONCE = (
    *(f"{kind} " for kind in NAMED_WHEN_LEFT_OUT),
    *("FK CONSTRAINT ", "MATERIALIZED VIEW DATA ", "ROW SECURITY ", "COMMENT ", "ACL ", "DEFAULT ACL "),
    "SECURITY LABEL ",
)

ALWAYS_LEFT_OUT = (
    "owners, privileges and row-level security: whoever restores owns it all",
    "the database's own settings, and the comments on indexes, constraints and triggers",
)
"""What no part of a database comes with."""

# What a relation needs is what its parts need: its defaults, its constraints, the rule that makes it a view; and its
# own sequences are needed with it.
_NEEDED = """
    WITH RECURSIVE needed (class, object) AS (
        SELECT 'pg_catalog.pg_class'::regclass::oid, wanted FROM unnest(%s::oid[]) AS wanted
        UNION
        SELECT further.class, further.object
        FROM needed CROSS JOIN LATERAL (
            SELECT refclassid, refobjid FROM pg_catalog.pg_depend WHERE classid = class AND objid = object
            UNION ALL
            SELECT classid, objid FROM pg_catalog.pg_depend
            WHERE refclassid = class AND refobjid = object AND deptype IN ('a', 'i')
                AND (
                    classid IN (
                        'pg_catalog.pg_attrdef'::regclass, 'pg_catalog.pg_constraint'::regclass,
                        'pg_catalog.pg_rewrite'::regclass
                    )
                    OR (
                        refobjsubid > 0 AND classid = 'pg_catalog.pg_class'::regclass
                        AND EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = objid AND c.relkind = 'S')
                    )
                )
        ) AS further (class, object)
    )
    SELECT object::bigint FROM needed WHERE class = 'pg_catalog.pg_class'::regclass
"""

_VIEWS_ON = """
    SELECT DISTINCT n.nspname, c.relname, c.relkind::text
    FROM pg_catalog.pg_depend AS d
    JOIN pg_catalog.pg_rewrite AS r ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
    JOIN pg_catalog.pg_class AS c ON c.oid = r.ev_class AND c.relkind IN ('v', 'm')
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = ANY(%s::oid[]) AND c.oid <> ALL(%s::oid[])
"""

_THINGS = """
    SELECT thing.type || ' ' || thing.identity
    FROM (
        SELECT 'pg_catalog.pg_class'::regclass, oid, 0 FROM pg_catalog.pg_class WHERE relkind IN ('v', 'm')
        UNION ALL SELECT 'pg_catalog.pg_proc'::regclass, oid, 0 FROM pg_catalog.pg_proc
        UNION ALL SELECT 'pg_catalog.pg_type'::regclass, oid, 0 FROM pg_catalog.pg_type WHERE typtype = 'd'
        UNION ALL SELECT 'pg_catalog.pg_class'::regclass, attrelid, attnum FROM pg_catalog.pg_attribute
            WHERE attnum > 0 AND NOT attisdropped
                AND (attrelid = ANY(%(kept)s::oid[]) OR attrelid IN (SELECT typrelid FROM pg_catalog.pg_type AS t
                    JOIN pg_catalog.pg_class AS c ON c.oid = t.typrelid WHERE c.relkind = 'c'))
        UNION ALL SELECT 'pg_catalog.pg_class'::regclass, indexrelid, 0 FROM pg_catalog.pg_index
            WHERE indrelid = ANY(%(kept)s::oid[])
        UNION ALL SELECT 'pg_catalog.pg_constraint'::regclass, oid, 0 FROM pg_catalog.pg_constraint
            WHERE conrelid = ANY(%(kept)s::oid[])
        UNION ALL SELECT 'pg_catalog.pg_attrdef'::regclass, oid, 0 FROM pg_catalog.pg_attrdef
            WHERE adrelid = ANY(%(kept)s::oid[])
        UNION ALL SELECT 'pg_catalog.pg_trigger'::regclass, oid, 0 FROM pg_catalog.pg_trigger
            WHERE tgrelid = ANY(%(kept)s::oid[]) AND NOT tgisinternal
        UNION ALL SELECT 'pg_catalog.pg_rewrite'::regclass, oid, 0 FROM pg_catalog.pg_rewrite
            WHERE ev_class = ANY(%(kept)s::oid[])
        UNION ALL SELECT 'pg_catalog.pg_statistic_ext'::regclass, oid, 0 FROM pg_catalog.pg_statistic_ext
            WHERE stxrelid = ANY(%(kept)s::oid[])
    ) AS candidates (class, object, part)
    CROSS JOIN LATERAL pg_catalog.pg_identify_object(class, object, part) AS thing
    WHERE object >= %(first)s
"""


class NothingMatches(BackupError):
    """A name that the backup does not know."""


@dataclass(frozen=True)
class Part:
    """A part of a database.

    `tables` are the leaf tables whose rows come, `sequences` those that go with them, `structure` the tables that must
    be there without rows for their sake (parents, tables whose row type a column has), `surplus` what must go. `needed`
    are the oids of everything that stays.
    """

    tables: tuple[Relation, ...]
    sequences: tuple[Relation, ...]
    structure: tuple[Relation, ...]
    surplus: tuple[Relation, ...]
    needed: frozenset[int]

    @property
    def kept(self) -> tuple[Relation, ...]:
        """Every table that stays, with rows or without."""
        return self.tables + self.structure

    def whole(self) -> frozenset[Relation]:
        """The tables that show all their rows: those of their children, too."""
        without_rows = [table for table in self.structure if table.kind == "table"]
        lacking = {oid for table in (*self.surplus, *without_rows) for oid in (table.oid, *table.ancestors)}
        return frozenset(table for table in self.kept if table.oid not in lacking)

    def without_rows(self) -> list[str]:
        """A readable line for every table that is there for its definition only."""
        return [f"rows of {table}: only its definition is needed" for table in self.structure if table.kind == "table"]


def choose(there: Mapping[Key, Sequence[str]], patterns: Iterable[str], *, what: str) -> set[Key]:
    """The keys of `there` that the patterns mean, by any of the names that each has.

    A pattern is a name, or a shell glob with case. Raises `NothingMatches` for one that means nothing, with names that
    are near it.
    """
    chosen: set[Key] = set()
    for pattern in patterns:
        meant = {key for key, known in there.items() if any(means(pattern, name) for name in known)}
        if not meant:
            raise nothing_matches(pattern, (name for known in there.values() for name in known), what=what)
        chosen |= meant
    return chosen


def means(pattern: str, name: str) -> bool:
    """Whether a pattern, a name or a shell glob, means this name."""
    return pattern == name or fnmatchcase(name, pattern)


def nothing_matches(pattern: str, known: Iterable[str], *, what: str) -> NothingMatches:
    """The error for a name that is not in the backup."""
    near = difflib.get_close_matches(pattern, sorted(set(known)), n=_NEAR, cutoff=0.5)
    return NothingMatches(
        f"The backup has no {what} {pattern}." + (f" Near it: {', '.join(near)}." if near else ""),
        mend="Name one that it has; in a shell, quote a pattern with * or ?.",
    )


def some_of(named: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    told = ", ".join(list(named)[:_TOLD])
    return told if len(named) <= _TOLD else f"{told} and {len(named) - _TOLD} more"


def known_components(asked: Collection[str], there: Collection[str], *, what: str) -> list[str]:
    """`asked`, in the order of `there`; raises `NothingMatches` for one that is not there."""
    for name in asked:
        if name not in there:
            raise NothingMatches(
                f"The backup has no {what} of a component {name}.", mend=f"It has: {', '.join(there) or 'none'}."
            )
    return [name for name in there if name in asked]


def choose_part(session: Session, relations: Relations, patterns: Iterable[str], *, named: Collection[str]) -> Part:
    """The part that holds what the patterns mean, as the policy's would, and the tables and sequences `named`.

    `session` is in a database that has the schema. Raises `NothingMatches`.
    """
    quoted = {relation.oid: str(relation) for relation in relations.all}
    wanted = choose({oid: (*plain, quoted[oid]) for oid, plain in names(relations).items()}, patterns, what="table")
    wanted |= {relation.oid for relation in relations.all if str(relation) in named}
    needed = frozenset(oid for (oid,) in session.execute(_NEEDED, (sorted(wanted),)))
    kept = [relation for relation in relations.all if relation.oid in needed]
    rest = [relation for relation in relations.all if relation.oid not in needed]
    tables = tuple(relation for relation in kept if relation.kind == "table" and relation.oid in wanted)
    return Part(
        tables=tables,
        sequences=tuple(relation for relation in kept if relation.kind == "sequence"),
        structure=tuple(relation for relation in kept if relation.kind in _TABLES and relation not in tables),
        # Leaves before their parents: a drop that cascades to thousands of them would need a lock for each at once.
        surplus=tuple(
            sorted(
                (relation for relation in rest if relation.kind in _TABLES or _is_loose(relation)),
                key=lambda relation: -len(relation.ancestors),
            )
        ),
        needed=needed,
    )


def drop_surplus(session: Session, part: Part) -> list[str]:
    """Drop what the part does not hold, and what cannot be without it; returns the latter, one readable name each.

    A view goes when not all rows are there of what it shows: it would tell something else than it did.
    """
    whole, things = part.whole(), {"kept": [table.oid for table in part.kept], "first": _FIRST_OID_OF_USERS}
    before = {name for (name,) in session.execute(_THINGS, things)}
    for relation in part.surplus:
        _drop(session, "TABLE" if relation.kind == "parent" else relation.kind.upper(), relation.schema, relation.name)
    partial = [table.oid for table in part.kept if table not in whole]
    for schema, name, kind in session.execute(_VIEWS_ON, (partial, list(part.needed))).fetchall():
        _drop(session, "MATERIALIZED VIEW" if kind == "m" else "VIEW", schema, name)
    return sorted(before - {name for (name,) in session.execute(_THINGS, things)})


def _drop(session: Session, kind: str, schema: str, name: str) -> None:
    session.execute(f"DROP {kind} IF EXISTS {sql.Identifier(schema, name).as_string(session)} CASCADE".encode())


def _is_loose(relation: Relation) -> bool:
    return relation.kind == "sequence" and relation.owner is None


def loose_sequences(listed: Iterable[str], relations: Relations) -> set[str]:
    """The loose sequences whose values a dump of a whole component holds, by its table of contents.

    A line has schema, name and owner with spaces between them, whatever is in them; so the longest name is meant.
    """
    labels = {_label(sequence): str(sequence) for sequence in relations.sequences if sequence.owner is None}
    found = set()
    for line in entries_of(listed, "SEQUENCE SET"):
        rest = line.partition(" SEQUENCE SET ")[2]
        meant = [label for label in labels if rest.startswith(f"{label} ")]
        if meant:
            found.add(labels[max(meant, key=len)])
    return found


def entries_at_once(listed: Iterable[str]) -> list[str]:
    """The lines of post-data that a partial restore takes while every table is still there.

    Foreign keys and the refreshing of materialized views come later. What speaks of roles or of the whole database
    (policies, publications, event triggers, privileges) never comes.
    """
    return [line for line in listed if (entry := _ENTRY.match(line)) and not entry["rest"].startswith(_NOT_AT_ONCE)]


def entries_of(listed: Iterable[str], *kinds: str) -> list[str]:
    """The lines of a table of contents that are of some kinds, such as `FK CONSTRAINT`."""
    starts = tuple(f"{kind} " for kind in kinds)
    return [line for line in listed if (entry := _ENTRY.match(line)) and entry["rest"].startswith(starts)]


def without(listed: Iterable[str], kind: str) -> list[str]:
    """The lines of a table of contents that are not of a kind."""
    return [line for line in listed if (entry := _ENTRY.match(line)) and not entry["rest"].startswith(f"{kind} ")]


def named_when_left_out(statements: Iterable[str], tables: Iterable[Relation]) -> Iterator[str]:
    """Readable names of policies on these tables, and of what belongs to roles or to the whole database."""
    kept = {qualified(table) for table in tables}
    for statement in statements:
        if (policy := _POLICY.match(statement)) and normal(policy["table"]) in kept:
            yield f"policy {policy['name']} on {policy['table']}"
        elif mapping := _MAPPING.match(statement):
            yield f"user mapping of {mapping['role']} to server {mapping['server']}"
        elif whole := _OF_THE_WHOLE.match(statement):
            yield f"{whole['kind'].lower()} {whole['name']}"


def possible_foreign_keys(statements: Sequence[str], part: Part) -> tuple[list[bool], list[str]]:
    """For each `ALTER TABLE … FOREIGN KEY` whether it can be restored; and those of the part's tables that cannot.

    It can when its table is there, and all rows of the table that it refers to.
    """
    kept, whole = {qualified(table) for table in part.kept}, {qualified(table) for table in part.whole()}
    possible, left_out = [], []
    for statement in statements:
        key = FOREIGN_KEY.match(statement)
        if key is None:
            raise BackupError(
                "A foreign key of the backup is not written as pg_dump writes it.",
                mend="Restore the whole database instead, and report this.",
            )
        has_table, has_all = normal(key["table"]) in kept, normal(key["to"]) in whole
        possible.append(has_table and has_all)
        if has_table and not has_all:
            left_out.append(f"foreign key {key['name']} of {key['table']}: not all of {key['to']} is restored")
    return possible, left_out


def qualified(relation: Relation) -> str:
    """A relation's name with both parts quoted."""
    return f"{quote(relation.schema)}.{quote(relation.name)}"


def normal(name: str) -> str:
    """A qualified name as a statement spells it, with both parts quoted."""
    return ".".join(part if part.startswith('"') else quote(part) for part in re.findall(_NAME, name))


def _label(relation: Relation) -> str:
    return f"{relation.schema} {relation.name}".replace("\r", " ").replace("\n", " ")

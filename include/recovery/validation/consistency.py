"""Whether the data that came back is the data that was backed up, and agrees with itself (R5.2)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg

from include.recovery.database import undisturbed_login
from include.recovery.scratch import APPLICATION
from include.recovery.validation.expectations import Measured, Question, answer
from include.recovery.validation.indexes import indexes
from include.recovery.validation.keys import foreign_keys, from_the_heap, sequences_ahead, unique_keys
from include.sources.postgres.constraints import list_constraints
from include.sources.postgres.inventory import (
    Inventory,
    SequenceState,
    TableContent,
    count_large_objects,
    large_objects,
    sequence_states,
    table_contents,
)
from include.sources.postgres.relations import Relation, Relations, list_relations

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from include.policy import Policy
    from include.recovery.validation.recovered import Expected, Recovered
    from include.recovery.validation.validation import Validation
    from include.sources.postgres.login import DatabaseLogin

    Session = psycopg.Connection[TupleRow]

MISSING = "missing"
_RECORDED, _OTHER = "as recorded", "something else"


def check_data_consistency(recovered: Recovered, policy: Policy) -> Validation:
    """Rows and digest of every table, keys, foreign keys, sequences, indexes; nothing where no database came back.

    The expectations are made of what the source recorded of itself. In one snapshot, which sees what it began with:
    whoever writes meanwhile is not waited for. Raises `BackupError` when something could not be looked at.
    """
    began = datetime.now(UTC)
    if recovered.database is None:
        return answer("data_consistency", began, [])
    login = undisturbed_login(recovered.database)
    with login.connect(application_name=APPLICATION) as session:
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        session.read_only = True
        questions = list(_questions(session, login, recovered.expected))
        session.rollback()
    return answer("data_consistency", began, questions)


def _questions(session: Session, login: DatabaseLogin, expected: Expected) -> Iterator[Question]:
    relations = _looked_at(list_relations(session), expected)
    oids = [each.oid for each in relations.all]
    if expected.inventory is not None:
        yield from _recorded(session, login, relations, expected, expected.inventory)
    yield from _constraints(session, relations, expected)
    with from_the_heap(session):
        yield from unique_keys(session, oids)
        yield from foreign_keys(session, oids)
        yield from sequences_ahead(session, relations.sequences)
        yield from indexes(session, login, oids)


def _looked_at(relations: Relations, expected: Expected) -> Relations:
    """All of them, or where only some tables came back those, what they are parts of, and the sequences beside."""
    if not expected.tables:
        return relations
    tables = [each for each in relations.tables if str(each) in expected.tables]
    family = {each.oid for each in tables} | {oid for each in tables for oid in each.ancestors}
    return Relations(
        tuple(each for each in relations.all if each.oid in family or (each.kind == "sequence" and _of(each, family)))
    )


def _of(sequence: Relation, family: set[int]) -> bool:
    return sequence.owner in family


def _constraints(session: Session, relations: Relations, expected: Expected) -> Iterator[Question]:
    """Each promise that the source made is made here, and was looked into if it was there.

    Of tables that came alone, those that are about them alone: what refers to a table that stayed cannot come along.
    """
    if not expected.constraints:
        return
    found = list_constraints(session, relations.all)
    wanted = [each for each in expected.constraints if not expected.tables or _alone(each, expected.tables)]
    answers = [Measured(each, "there", "there" if each in found else MISSING) for each in wanted]
    yield Question("constraint", tuple(answers), together="all constraints")


def _alone(constraint: str, tables: tuple[str, ...]) -> bool:
    return " FOREIGN KEY " not in constraint and any(constraint.startswith(f"{table}: ") for table in tables)


def _recorded(
    session: Session, login: DatabaseLogin, relations: Relations, expected: Expected, inventory: Inventory
) -> Iterator[Question]:
    """Every table, sequence and large object that the source counted, and none besides."""
    names = expected.tables or tuple(sorted(inventory.tables))
    found = table_contents(session, relations.tables)
    rows, digests = [], []
    for name in sorted({*names, *found}):
        was, now = inventory.tables.get(name), found.get(name)
        rows.append(Measured(name, _rows(was), _rows(now)))
        if was and now:
            told = (_RECORDED, _RECORDED if was.digest == now.digest else _OTHER)
            digests.append(Measured(name, was.digest, now.digest, told))
    yield Question("rows", tuple(rows))
    yield Question("content", tuple(digests))
    yield from _sequences(session, relations, inventory, some=bool(expected.tables))
    if inventory.large_objects is not None and not expected.tables:
        yield from _large_objects(session, login, inventory, owned=not expected.left_out)


def _rows(content: TableContent | None) -> int | str:
    return MISSING if content is None else content.rows


def _sequences(session: Session, relations: Relations, inventory: Inventory, *, some: bool) -> Iterator[Question]:
    """None is behind where it stood. One that goes round has no such order."""
    found = sequence_states(session, relations.sequences)
    recorded = {name: state for name, state in inventory.sequences.items() if name in found or not some}
    there = Question(
        "sequences",
        tuple(Measured(name, "there", "there" if name in found else MISSING) for name in sorted(recorded)),
        together="all sequences",
    )
    yield there
    for comparison, increasing in (("at least", True), ("at most", False)):
        yield Question(
            "sequence's position",
            tuple(
                Measured(name, state.given, found[name].given)
                for name, state in sorted(recorded.items())
                if name in found and not state.cycles and _increases(state) is increasing
            ),
            "at least" if comparison == "at least" else "at most",
        )


def _increases(state: SequenceState) -> bool:
    return state.increment > 0


def _large_objects(session: Session, login: DatabaseLogin, inventory: Inventory, *, owned: bool) -> Iterator[Question]:
    """Their number and bytes; and their digest, which has their owners in it, where these came, too."""
    was = inventory.large_objects
    assert was is not None  # noqa: S101 - the caller has looked
    with login.connect(application_name=APPLICATION, autocommit=True) as counting:
        number, size = count_large_objects(counting)
    yield Question(
        "large objects", (Measured("their number", was.count, number), Measured("their bytes", was.bytes, size))
    )
    if owned:
        now = large_objects(session)
        told = (_RECORDED, _RECORDED if was.digest == now.digest else _OTHER)
        yield Question("large objects", (Measured("their content and owners", was.digest, now.digest, told),))

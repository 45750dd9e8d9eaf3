"""What rows say of their keys and sequences in the corners of SQL: nulls, parts of a table, heirs, descents (R5.2)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from include.recovery.validation.expectations import Question
from include.recovery.validation.keys import foreign_keys, from_the_heap, sequences_ahead, unique_keys
from include.sandbox.postgres import PostgresServer
from include.sources.postgres.relations import list_relations

TABLES = """
    CREATE TABLE distinct_nulls (a int UNIQUE);
    INSERT INTO distinct_nulls VALUES (NULL), (NULL), (1);
    CREATE TABLE equal_nulls (a int UNIQUE NULLS NOT DISTINCT);
    CREATE TABLE partial (a int, active bool);
    CREATE UNIQUE INDEX partial_active ON partial (a) WHERE active;
    INSERT INTO partial VALUES (1, false), (1, false), (1, true);
    CREATE TABLE parent (a int PRIMARY KEY);
    CREATE TABLE heir () INHERITS (parent);
    INSERT INTO parent VALUES (1), (2);
    INSERT INTO heir VALUES (1), (3);
    CREATE TABLE thrice (a int UNIQUE);
    CREATE TABLE pairs (a int, b int, PRIMARY KEY (a, b));
    CREATE TABLE in_full (a int, b int, CONSTRAINT whole FOREIGN KEY (a, b) REFERENCES pairs MATCH FULL);
    CREATE TABLE simple (a int, b int, CONSTRAINT loosely FOREIGN KEY (a, b) REFERENCES pairs);
    CREATE TABLE unlooked (a int);
    CREATE TABLE to_the_parent (a int, CONSTRAINT own FOREIGN KEY (a) REFERENCES parent);
    CREATE TABLE down (a int GENERATED ALWAYS AS IDENTITY (INCREMENT -1));
    CREATE TABLE up (a int GENERATED ALWAYS AS IDENTITY);
    CREATE TABLE nobody (a int GENERATED ALWAYS AS IDENTITY);
    CREATE TABLE round (a int GENERATED ALWAYS AS IDENTITY (CYCLE));
    INSERT INTO down OVERRIDING SYSTEM VALUE VALUES (-7), (9);
    INSERT INTO up OVERRIDING SYSTEM VALUE VALUES (7), (-9);
    INSERT INTO round OVERRIDING SYSTEM VALUE VALUES (7);
    SET session_replication_role = replica;
    INSERT INTO in_full VALUES (NULL, NULL), (1, NULL), (1, 1);
    INSERT INTO simple VALUES (NULL, NULL), (1, NULL), (1, 1);
    INSERT INTO to_the_parent VALUES (1), (3);
    INSERT INTO unlooked VALUES (9);
    SET session_replication_role = origin;
    ALTER TABLE unlooked ADD CONSTRAINT later FOREIGN KEY (a) REFERENCES parent NOT VALID;
    UPDATE pg_index SET indisready = false WHERE indrelid IN ('equal_nulls'::regclass, 'thrice'::regclass);
"""
BEHIND_THE_INDEX = """
    INSERT INTO equal_nulls VALUES (NULL), (NULL);
    INSERT INTO thrice VALUES (5), (5), (5), (6);
"""


@pytest.fixture(scope="module")
def session(postgres18: PostgresServer) -> Iterator[psycopg.Connection]:
    """A database with all of these."""
    name = f"keys_{secrets.token_hex(4)}"
    with postgres18.superuser.connect(application_name="test", autocommit=True) as superuser:
        superuser.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    login = postgres18.superuser.with_database(name)
    for statements in (TABLES, BEHIND_THE_INDEX):  # in a session of its own, which knows that the index is not kept
        with login.connect(application_name="test", autocommit=True) as made:
            made.execute(statements)
    with login.connect(application_name="test") as opened:
        yield opened
    with postgres18.superuser.connect(application_name="test", autocommit=True) as superuser:
        superuser.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


def told(questions: Iterator[Question]) -> dict[str, tuple[object, object]]:
    """What each question found, and what was expected, by its subject."""
    return {each.subject: (each.found, each.expected) for question in questions for each in question.answers}


@pytest.mark.requirement("R5.2")
def test_rows_too_many_of_a_key_are_counted_as_the_key_means_it(session: psycopg.Connection) -> None:
    with from_the_heap(session):
        twice, empty = unique_keys(session, [each.oid for each in list_relations(session).all])
    found = {each.subject.partition(":")[0]: each.found for each in twice.answers}
    assert found == {
        "public.distinct_nulls": 0,
        "public.equal_nulls": 1,
        "public.pairs": 0,
        "public.parent": 0,
        "public.partial": 0,
        "public.thrice": 2,
    }
    assert {each.subject.partition(":")[0] for each in empty.answers} == {"public.pairs", "public.parent"}


@pytest.mark.requirement("R5.2")
def test_what_refers_to_nothing_is_counted_as_the_key_means_it(session: psycopg.Connection) -> None:
    with from_the_heap(session):
        found = told(foreign_keys(session, [each.oid for each in list_relations(session).all]))
    assert found == {
        "public.in_full: whole": (2, 0),
        "public.simple: loosely": (1, 0),
        "public.to_the_parent: own": (1, 0),  # what an heir has is not the parent's
    }


@pytest.mark.requirement("R5.2")
def test_a_sequence_is_ahead_of_its_column_whichever_way_it_goes(session: psycopg.Connection) -> None:
    with from_the_heap(session):
        up, down = sequences_ahead(session, list_relations(session).sequences)
    assert (up.comparison, told(iter([up]))) == ("at least", {"public.up_a_seq": (0, 7)})
    assert (down.comparison, told(iter([down]))) == ("at most", {"public.down_a_seq": (0, -7)})

"""A digest changes with every value, and with nothing else (R4.5, R5.2)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import psycopg
import pytest

from include.errors import BackupError
from include.sandbox.postgres import PostgresServer
from include.sources.postgres.inventory import (
    compare,
    large_objects,
    largest_first,
    sequence_states,
    shared_table_contents,
    table_contents,
    take_inventory,
)
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.relations import list_relations

TABLES = """
    CREATE TABLE odd (t text, x int, twice int GENERATED ALWAYS AS (x * 2) STORED);
    INSERT INTO odd VALUES ('same', 1), ('same', 2), (NULL, 3), ('', 4), ('same', 1);
    CREATE TABLE family (x int); INSERT INTO family VALUES (1);
    CREATE TABLE child () INHERITS (family); INSERT INTO child VALUES (2), (3);
    CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES;
    CREATE TABLE empty (x int);
    CREATE TABLE styles (d date, at timestamptz, i interval, f float8, b bytea, r regclass, m money);
    INSERT INTO styles
        VALUES ('2026-02-01', '2026-02-01 12:00+00', '1 day 2 hours', 0.1::float8 + 0.2, '\\x00ff', 'odd', 1);
    CREATE SEQUENCE counter INCREMENT 5 CYCLE;
    SELECT lo_from_bytea(1, 'one'), lo_from_bytea(2, 'two'), lo_from_bytea(3, '');
"""
BENT = (
    "-c datestyle=German -c timezone=Asia/Tokyo -c intervalstyle=iso_8601 -c extra_float_digits=-5"
    " -c bytea_output=escape -c search_path=pg_catalog -c quote_all_identifiers=on"
)


@pytest.fixture(params=["postgres15", "postgres18"])
def login(request: pytest.FixtureRequest) -> DatabaseLogin:
    server: PostgresServer = request.getfixturevalue(request.param)
    with server.superuser.connect(application_name="test", autocommit=True) as session:
        session.execute("DROP DATABASE IF EXISTS digests WITH (FORCE)")
        session.execute("CREATE DATABASE digests")
    login = server.superuser.with_database("digests")
    with login.connect(application_name="test") as session:
        session.execute(TABLES)
    return login


@pytest.fixture
def session(login: DatabaseLogin) -> Iterator[psycopg.Connection]:
    with login.connect(application_name="test", autocommit=True) as session:
        yield session


def digests(session: psycopg.Connection) -> dict[str, str]:
    contents = table_contents(session, list_relations(session).tables)
    return {name: content.digest for name, content in contents.items()}


def test_rows_are_each_tables_own(session: psycopg.Connection) -> None:
    contents = table_contents(session, list_relations(session).tables)
    rows = {name.removeprefix("public."): content.rows for name, content in contents.items()}
    assert rows == {"child": 2, "empty": 0, "family": 1, "nothing": 1, "odd": 5, "styles": 1}


@pytest.mark.requirement("R5.2")
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE odd SET t = 'other' WHERE x = 2",
        "UPDATE odd SET x = 5 WHERE x = 2",
        "UPDATE odd SET t = '' WHERE t IS NULL",
        "UPDATE odd SET x = CASE x WHEN 3 THEN 4 ELSE 3 END WHERE x IN (3, 4)",
        "DELETE FROM odd WHERE x = 1",
        "INSERT INTO odd VALUES ('same', 2)",
    ],
)
def test_every_change_shows_in_its_table_only(session: psycopg.Connection, change: str) -> None:
    before = digests(session)
    session.execute(change)
    after = digests(session)
    assert [name for name in before if before[name] != after[name]] == ["public.odd"]


def test_the_order_of_rows_and_the_sessions_style_do_not_show(
    login: DatabaseLogin, session: psycopg.Connection
) -> None:
    before = take_inventory(session, list_relations(session))
    session.execute("UPDATE odd SET x = x WHERE x = 1")  # moves the rows to the end
    with replace(login, options=BENT).connect(application_name="test") as bent:
        assert take_inventory(bent, list_relations(bent)) == before
        assert bent.execute("SHOW timezone").fetchone() == ("Asia/Tokyo",)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("SELECT lo_put(1, 1, 'm')", "large objects: content or owner differs"),
        ("SELECT lo_put(1, 0, 'two'), lo_put(2, 0, 'one')", "large objects: content or owner differs"),
        ("ALTER LARGE OBJECT 3 OWNER TO pg_monitor", "large objects: content or owner differs"),
        ("SELECT lo_unlink(3)", "large objects: 1 fewer"),
    ],
)
def test_large_objects_show_content_number_and_owner(session: psycopg.Connection, change: str, difference: str) -> None:
    relations = list_relations(session)
    before = take_inventory(session, relations)
    session.execute(change)
    assert compare(before, take_inventory(session, relations)) == [difference]


def test_a_large_object_is_read_to_its_end(session: psycopg.Connection) -> None:
    session.execute("SELECT lo_from_bytea(4, decode(repeat('00', 3 * 1024 * 1024 + 1), 'hex'))")
    before = large_objects(session)
    assert (before.count, before.bytes) == (4, 3 + 3 + 0 + 3 * 1024 * 1024 + 1)
    session.execute("SELECT lo_put(4, 3 * 1024 * 1024, '\\x01')")
    assert large_objects(session).digest != before.digest


def test_sequences_say_where_they_stand(session: psycopg.Connection) -> None:
    sequences = list_relations(session).sequences
    (fresh,) = sequence_states(session, sequences).values()
    assert (fresh.last_value, fresh.is_called, fresh.increment, fresh.cycles, fresh.given) == (1, False, 5, True, -4)
    session.execute("SELECT nextval('counter'), nextval('counter')")
    assert sequence_states(session, sequences)["public.counter"].given == 6


def test_hidden_rows_are_an_error(login: DatabaseLogin, session: psycopg.Connection) -> None:
    session.execute("DROP ROLE IF EXISTS reader")
    session.execute("CREATE ROLE reader LOGIN PASSWORD 'r' IN ROLE pg_read_all_data")
    session.execute("ALTER TABLE odd ENABLE ROW LEVEL SECURITY")
    with replace(login, user="reader", password="r").connect(application_name="test") as reader:
        tables = list_relations(reader).tables
        with pytest.raises(BackupError, match=r"Not all of public\.odd can be read: .*row-level security"):
            table_contents(reader, tables)
    session.execute("DROP ROLE reader")


def test_speed(session: psycopg.Connection) -> None:
    session.execute(
        "CREATE TABLE many AS SELECT n AS id, gen_random_uuid() AS u, now() AS at, repeat(md5(n::text), 8) AS body"
        " FROM generate_series(1, 200000) AS n"
    )
    tables = [table for table in list_relations(session).tables if table.name == "many"]
    started = time.monotonic()
    (content,) = table_contents(session, tables).values()
    seconds = time.monotonic() - started
    print(f"\n{content.rows / seconds:,.0f} rows/s")
    assert content.rows == 200_000
    assert seconds < 30


def test_several_sessions_digest_as_one_does(session: psycopg.Connection, login: DatabaseLogin) -> None:
    tables = list_relations(session).tables
    another = partial(login.connect, application_name="test")

    assert shared_table_contents([another, another, another], tables) == table_contents(session, tables)


def test_a_session_that_would_wait_leaves_the_table_to_the_one_that_holds_it(
    session: psycopg.Connection, login: DatabaseLogin
) -> None:
    tables = list_relations(session).tables
    with login.connect(application_name="test") as holder, login.connect(application_name="test") as changer:
        holder.execute("LOCK TABLE odd, styles IN ACCESS SHARE MODE")
        expected = table_contents(holder, tables)
        with ThreadPoolExecutor() as pool:
            altering = pool.submit(changer.execute, "ALTER TABLE styles ADD y int")
            while not session.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall():
                pass
            try:
                assert not altering.done()
                others = [partial(login.connect, application_name="test")] * 2
                assert shared_table_contents([lambda: nullcontext(holder), *others], tables) == expected
            finally:
                holder.rollback()
            altering.result()


def test_the_largest_tables_come_first(session: psycopg.Connection) -> None:
    session.execute("CREATE TABLE large AS SELECT n, repeat('x', 500) FROM generate_series(1, 2000) AS n")
    ordered = [str(table) for table in largest_first(session, list_relations(session).tables)]

    assert ordered[0] == "public.large"
    assert sorted(ordered) == sorted(str(table) for table in list_relations(session).tables)

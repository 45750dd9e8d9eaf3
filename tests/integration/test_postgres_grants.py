"""Each login of grants.sql can do its job, and no more (R7.3's least privilege, R4.1)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from include.sandbox.postgres import PostgresServer
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.tools import find_tools

GRANTS = Path("include/sources/postgres/grants.sql")
KINDS = ("barrier", "dump", "replication")


class Logins:
    """The three logins of one database, its grants made by psql, twice."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.owner = server.superuser.with_database("grants")
        for kind in KINDS:
            setattr(self, kind, server.login(f"synapse_backup_{kind}", kind, "grants"))

    def make(self) -> None:
        self.run(self.server.superuser, "DROP DATABASE IF EXISTS grants", "CREATE DATABASE grants")
        argv = [find_tools(self.server.major).psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(GRANTS)]
        for _ in range(2):
            subprocess.run(argv, env=self.owner.environment(), check=True, capture_output=True)
        self.run(
            self.owner,
            *(f"ALTER ROLE synapse_backup_{kind} PASSWORD '{kind}'" for kind in KINDS),
            "CREATE SCHEMA later",
            "CREATE TABLE later.secrets (id serial, body text)",
            "INSERT INTO later.secrets (body) VALUES ('s')",
            "ALTER TABLE later.secrets ENABLE ROW LEVEL SECURITY",
            "SELECT lo_from_bytea(99, 'large')",
        )

    def run(self, login: DatabaseLogin, *statements: str) -> list[tuple]:
        with login.connect(application_name="test", autocommit=True) as session:
            for statement in statements:
                cursor = session.execute(statement)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module", params=["postgres15", "postgres18"])
def logins(request: pytest.FixtureRequest) -> Logins:
    logins = Logins(request.getfixturevalue(request.param))
    logins.make()
    return logins


@contextmanager
def denied() -> Iterator[None]:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        yield


@pytest.mark.requirement("R4.3")
def test_barrier_stops_writes_and_marks_the_moment(logins: Logins) -> None:
    rows = logins.run(
        logins.barrier,
        "SET deadlock_timeout = '20ms'",
        "BEGIN READ ONLY",
        "LOCK TABLE later.secrets IN SHARE MODE",
        "SELECT pg_create_restore_point('here') IS NOT NULL",
    )
    assert rows == [(True,)]
    assert logins.run(logins.barrier, "SELECT pg_switch_wal() IS NOT NULL") == [(True,)]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM later.secrets",
        "SELECT lo_get(99)",
        "SELECT rolpassword FROM pg_authid",
        "DELETE FROM later.secrets WHERE id = 1",
        "TRUNCATE later.secrets",
        "DROP TABLE later.secrets",
        "CREATE TABLE later.mine ()",
        "CREATE ROLE mine",
        "SET lo_compat_privileges = on",
    ],
)
def test_barrier_can_do_no_more(logins: Logins, statement: str) -> None:
    with denied():
        logins.run(logins.barrier, "SET default_transaction_read_only = off", statement)


def test_barrier_sees_who_is_in_the_way(logins: Logins) -> None:
    with logins.owner.connect(application_name="import") as writer:
        writer.execute("INSERT INTO later.secrets (body) VALUES ('x')")
        seen = logins.run(logins.barrier, "SELECT query FROM pg_stat_activity WHERE application_name = 'import'")
        assert seen == [("INSERT INTO later.secrets (body) VALUES ('x')",)]
        writer.rollback()


@pytest.mark.requirement("R4.1")
def test_dump_reads_everything(logins: Logins) -> None:
    rows = logins.run(
        logins.dump,
        "SET row_security = off",
        "SELECT (SELECT body FROM later.secrets), (SELECT last_value FROM later.secrets_id_seq) > 0, lo_get(99),"
        " (SELECT count(rolpassword) FROM pg_authid) >= 4, (SELECT count(*) FROM pg_hba_file_rules) > 0,"
        " (SELECT count(*) FROM pg_file_settings) > 0, (SELECT count(*) FROM pg_ident_file_mappings),"
        " (SELECT octet_length(data) FROM pg_largeobject)",
    )
    assert [row[1:] for row in rows] == [(True, b"large", True, True, True, 0, 5)]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO later.secrets (body) VALUES ('x')",
        "UPDATE later.secrets SET body = 'x'",
        "DELETE FROM later.secrets",
        "TRUNCATE later.secrets",
        "SELECT nextval('later.secrets_id_seq')",
        "DO $$ BEGIN LOCK TABLE later.secrets IN SHARE MODE; END $$",
        "CREATE TABLE later.mine ()",
        "CREATE ROLE mine",
        "SELECT pg_create_restore_point('here')",
        "SELECT pg_switch_wal()",
        "SELECT pg_create_physical_replication_slot('mine')",
        "SET deadlock_timeout = '20ms'",
    ],
)
def test_dump_can_do_no_more(logins: Logins, statement: str) -> None:
    with denied():
        logins.run(logins.dump, "SET default_transaction_read_only = off", statement)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_mistaken_write_is_refused(logins: Logins, kind: str) -> None:
    """What the barrier's privileges would let it do, its default does not."""
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        logins.run(getattr(logins, kind), "DELETE FROM later.secrets")


def test_a_mistaken_write_to_a_large_object_is_refused_from_16_on(logins: Logins) -> None:
    """The one thing that reading every large object costs; PostgreSQL 15 writes them in read-only transactions too."""
    try:
        logins.run(logins.dump, "SELECT lo_put(99, 0, 'l')")
    except psycopg.errors.ReadOnlySqlTransaction:
        assert logins.server.major >= 16
    else:
        assert logins.server.major == 15


def test_replication_makes_slots_and_reads_nothing(logins: Logins) -> None:
    assert logins.run(
        logins.replication,
        "SELECT pg_create_physical_replication_slot('grants_test', true) IS NOT NULL",
        "SELECT pg_drop_replication_slot('grants_test') IS NULL",
    )
    for statement in ("SELECT * FROM later.secrets", "SELECT pg_switch_wal()", "CREATE ROLE mine"):
        with denied():
            logins.run(logins.replication, statement)

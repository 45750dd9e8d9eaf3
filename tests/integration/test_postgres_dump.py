"""Every dump of a database full of oddities: taken, listed, restored and compared, on real servers (R2.1, R4.5)."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from include.policy import Barrier
from include.sandbox.postgres import PostgresServer
from include.sources.postgres.barrier import hold_consistency_point
from include.sources.postgres.dump import GLOBALS, POST_DATA, PRE_DATA, DumpStream, dump_streams
from include.sources.postgres.inventory import Inventory, compare, take_inventory
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.relations import CATCH_ALL, DumpPlan, list_relations, plan_dump
from include.sources.postgres.settings import ServerSettings, read_settings
from include.sources.postgres.tools import PostgresTools, find_tools

GRANTS = Path("include/sources/postgres/grants.sql").read_text()
DATABASE = 'odd "data.base'
COMPONENTS = {
    "user_data": ["public.users", 'public.weird Table""name', "public.nothing_of_the_kind"],
    "chat_history": ["public.messages", "Sch.em*.dotted*"],
    "billing": ["billing.*"],
    "absent": ["public.absent"],
}
POLICY = Barrier(
    lock_timeout=timedelta(seconds=1),
    deadlock_timeout=timedelta(milliseconds=20),
    statement_timeout=timedelta(seconds=5),
    idle_timeout=timedelta(seconds=5),
    tries=3,
    backoff=timedelta(milliseconds=100),
    long_running=timedelta(minutes=1),
)
SCHEMA = r'''
    CREATE EXTENSION citext;
    CREATE SCHEMA billing; CREATE SCHEMA "Sch.em*";

    CREATE TABLE public.users (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name citext NOT NULL,
        shout text GENERATED ALWAYS AS (upper(name::text)) STORED
    );
    INSERT INTO public.users (name) SELECT 'user ' || n FROM generate_series(1, 50) AS n;

    CREATE TABLE public."weird Table""""name" ("t" text, "a.b" serial);
    INSERT INTO public."weird Table""""name" ("t") VALUES ('one'), (NULL), ('');
    CREATE TABLE public."Weird" (); INSERT INTO public."Weird" DEFAULT VALUES;
    CREATE TABLE public."$x|y(z)*?[a]" (x int); INSERT INTO public."$x|y(z)*?[a]" VALUES (1);
    CREATE TABLE public.zürich (x text); INSERT INTO public.zürich VALUES ('Grüezi');

    CREATE TABLE public.messages (id serial, day date NOT NULL, body text) PARTITION BY RANGE (day);
    CREATE TABLE public.messages_2025 PARTITION OF public.messages FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
    CREATE TABLE public.messages_2026 PARTITION OF public.messages FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')
        PARTITION BY LIST (day);
    CREATE TABLE "Sch.em*"."rest of 2026" PARTITION OF public.messages_2026 DEFAULT;
    INSERT INTO public.messages (day, body)
        SELECT date '2025-06-01' + n, repeat('x', n) FROM generate_series(1, 400) AS n;
    CREATE TABLE "Sch.em*"."dotted.name" (x int REFERENCES public.users);
    INSERT INTO "Sch.em*"."dotted.name" VALUES (1);

    CREATE TABLE billing.invoices (id serial PRIMARY KEY, amount money, rate float8, due interval, at timestamptz);
    CREATE TABLE billing.credits (reason text) INHERITS (billing.invoices);
    INSERT INTO billing.invoices (amount, rate, due, at)
        SELECT n * 1.1, n / 3.0, n * interval '1 day 01:02:03.4',
            '2026-01-01 00:00+02'::timestamptz + n * interval '1 hour'
        FROM generate_series(1, 20) AS n;
    INSERT INTO billing.credits (amount, reason) VALUES (5, 'sorry');
    CREATE SEQUENCE billing.invoice_number INCREMENT -1;
    SELECT nextval('billing.invoice_number'), nextval('billing.invoice_number');

    CREATE TABLE public.unnamed (kind regclass, raw bytea, j jsonb);
    INSERT INTO public.unnamed VALUES ('public.users', '\xdeadbeef', '{"b": 1}');
    ALTER TABLE public.unnamed ENABLE ROW LEVEL SECURITY;
    CREATE UNLOGGED TABLE public.cache (x int); INSERT INTO public.cache VALUES (1);
    CREATE SEQUENCE public.loose START 100;
    CREATE MATERIALIZED VIEW public.totals AS SELECT count(*) FROM public.users;
    CREATE VIEW public.names AS SELECT name FROM public.users;

    SELECT lo_from_bytea(4711, 'large'), lo_from_bytea(4712, ''),
        lo_from_bytea(4713, decode(repeat('ab', 3000000), 'hex'));
    SELECT lo_put(4714, 5000, 'after a hole') FROM lo_create(4714);
'''


@dataclass(frozen=True)
class Backup:
    server: PostgresServer
    tools: PostgresTools
    directory: Path
    plan: DumpPlan
    streams: list[DumpStream]
    inventory: Inventory
    settings: ServerSettings

    def file(self, name: str) -> Path:
        return self.directory / name

    def contents(self, stream: DumpStream) -> list[str]:
        listed = run([self.tools.pg_restore, "--list", str(self.file(stream.name))]).decode()
        return [line for line in listed.splitlines() if not line.startswith(";")]


def run(argv: list[str], login: DatabaseLogin | None = None) -> bytes:
    done = subprocess.run(argv, env=login.environment() if login else {}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def execute(login: DatabaseLogin, *statements: str) -> list[tuple]:
    with login.connect(application_name="test", autocommit=True) as session:
        for statement in statements:
            cursor = session.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module", params=["postgres15", "postgres18"])
def backup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backup:
    server: PostgresServer = request.getfixturevalue(request.param)
    owner = server.superuser.with_database(DATABASE)
    make_database(server.superuser, owner)
    barrier, dump = (server.login(f"synapse_backup_{kind}", kind, DATABASE) for kind in ("barrier", "dump"))
    directory = tmp_path_factory.mktemp(request.param)
    tools = find_tools(server.major)
    with hold_consistency_point(
        barrier,
        dump,
        name="full-20261122T000000Z.1",
        relations=list_relations,
        policy=POLICY,
        while_stopped=lambda: None,
    ) as point:
        plan = plan_dump(point.relations, COMPONENTS)
        inventory = take_inventory(point.session, point.relations)
        settings = read_settings(point.session)
        execute(owner, "INSERT INTO public.users (name) VALUES ('late')", "SELECT nextval('billing.invoice_number')")
        streams = dump_streams(tools, plan, snapshot=point.snapshot, encoding="UTF8", lock_wait=timedelta(seconds=5))
        for stream in streams:
            (directory / stream.name).write_bytes(run(list(stream.argv), dump))
    return Backup(server, tools, directory, plan, streams, inventory, settings)


def make_database(superuser: DatabaseLogin, owner: DatabaseLogin) -> None:
    quoted = psycopg.sql.Identifier(DATABASE).as_string()
    execute(
        superuser,
        f"DROP DATABASE IF EXISTS {quoted}",
        f"CREATE DATABASE {quoted}",
        f"COMMENT ON DATABASE {quoted} IS 'the comment'",
        f"ALTER DATABASE {quoted} SET work_mem = '7MB'",
        f"GRANT CREATE ON DATABASE {quoted} TO pg_monitor",
    )
    execute(
        owner,
        GRANTS,
        SCHEMA,
        "ALTER ROLE synapse_backup_barrier PASSWORD 'barrier'",
        "ALTER ROLE synapse_backup_dump PASSWORD 'dump'",
    )


@pytest.mark.requirement("R2.1")
def test_everything_is_in_exactly_one_dump(backup: Backup) -> None:
    entries = Counter(
        entry
        for stream in backup.streams
        if stream.archive
        for line in backup.contents(stream)
        if (entry := data_entry(line))
    )
    tables = {f"TABLE DATA {t.schema} {t.name} postgres" for part in backup.plan for t in part.tables}
    sequences = {f"SEQUENCE SET {s.schema} {s.name} postgres" for part in backup.plan for s in part.sequences}
    assert len(tables) == 12
    assert len(sequences) == 6
    assert {entry: times for entry, times in entries.items() if times > 1} == {}
    assert {entry for entry in entries if "BLOB" not in entry} == tables | sequences
    assert len([entry for entry in entries if entry.startswith("BLOBS")]) == 1


def data_entry(line: str) -> str | None:
    """The kind, schema, name and owner of what holds data; None for what does not, or is in every archive."""
    found = re.match(r"\d+; \d+ \d+ ((?:TABLE DATA|SEQUENCE SET|BLOBS|BLOB METADATA|BLOB) .*)", line)
    return found[1] if found else None


def test_each_component_holds_its_own(backup: Backup) -> None:
    names = {part.name: {relation.plain for relation in part.relations} for part in backup.plan}
    assert names == {
        "user_data": {
            *("public.users", 'public.weird Table""name', "public.users_id_seq"),
            'public.weird Table""name_a.b_seq',
        },
        "chat_history": {
            *("public.messages_2025", "Sch.em*.rest of 2026", "Sch.em*.dotted.name", "public.messages_id_seq"),
        },
        "billing": {*("billing.invoices", "billing.credits"), *("billing.invoices_id_seq", "billing.invoice_number")},
        "absent": set(),
        CATCH_ALL: {
            *("public.Weird", "public.$x|y(z)*?[a]", "public.zürich", "public.unnamed", "public.cache"),
            "public.loose",
        },
    }
    for part in backup.plan:
        stream = next((stream for stream in backup.streams if stream.component == part.name), None)
        assert (stream is None) == (part.name == "absent")
        if stream:
            entries = [entry for line in backup.contents(stream) if (entry := data_entry(line)) and "BLOB" not in entry]
            assert len(entries) == len(part.relations)


def test_warnings_name_what_the_policy_forgot(backup: Backup) -> None:
    warnings = "\n".join(backup.plan.warnings)
    assert "Component user_data: nothing in the database matches public.nothing_of_the_kind." in warnings
    assert "Table public.zürich is in no component" in warnings
    assert "public.users" not in warnings


@pytest.fixture(params=["same", "newer"])
def target(request: pytest.FixtureRequest, backup: Backup, postgres18: PostgresServer) -> Iterator[PostgresServer]:
    """Where to restore to: the server itself, its database dropped, or a newer server."""
    server = backup.server if request.param == "same" else postgres18
    quoted = psycopg.sql.Identifier(DATABASE).as_string()
    execute(server.superuser, f"DROP DATABASE IF EXISTS {quoted}")
    yield server
    execute(server.superuser, f"DROP DATABASE IF EXISTS {quoted}")


@pytest.mark.requirement("R2.1", "R4.5", "R5.2")
def test_what_is_restored_is_what_was_there(backup: Backup, target: PostgresServer) -> None:
    restored = target.superuser.with_database(DATABASE)
    restore(backup, target)
    with restored.connect(application_name="test") as session:
        relations = list_relations(session)
        inventory = take_inventory(session, relations)
    assert compare(backup.inventory, inventory) == []
    assert inventory.sequences["billing.invoice_number"].given == -3  # it went on while the dumps ran
    assert inventory.tables["public.users"].rows == 50
    assert inventory.large_objects.count == 4
    assert inventory.large_objects.bytes == 5 + 0 + 3_000_000 + 5012
    assert execute(restored, "SELECT count FROM public.totals") == [(50,)]
    assert execute(restored, "SHOW work_mem") == [("7MB",)]
    assert execute(
        restored,
        "SELECT shobj_description(oid, 'pg_database'), datacl::text LIKE '%pg_monitor=C%' FROM pg_database"
        " WHERE datname = current_database()",
    ) == [("the comment", True)]
    assert execute(
        restored,
        "SELECT has_function_privilege('synapse_backup_barrier', 'pg_create_restore_point(text)', 'execute'),"
        " (SELECT count(*) FROM pg_constraint WHERE contype = 'f')",
    ) == [(True, 1)]


def restore(backup: Backup, target: PostgresServer) -> None:
    tools = find_tools(target.major)
    restore_roles(backup, target)
    into = target.superuser.with_database(DATABASE)
    for stream in backup.streams:
        options = ["--create", "--dbname=postgres"] if stream.name == PRE_DATA else [f"--dbname={quoted_for_libpq()}"]
        if stream.archive:
            file = str(backup.file(stream.name))
            run([tools.pg_restore, "--exit-on-error", "--no-password", *options, file], into)


def restore_roles(backup: Backup, target: PostgresServer) -> None:
    """All but the superuser's password: the target's own would be gone, and the tests could not come in again."""
    globals_ = backup.file(GLOBALS).read_text().splitlines(keepends=True)
    roles = backup.directory / "roles.sql"
    roles.write_text("".join(line for line in globals_ if "ROLE postgres" not in line))
    run([find_tools(target.major).psql, "--no-psqlrc", "--quiet", f"--file={roles}"], target.superuser)


def quoted_for_libpq() -> str:
    return "dbname='" + DATABASE.replace("\\", r"\\").replace("'", r"\'") + "'"


@pytest.mark.requirement("R4.5")
def test_one_component_restored_compares_by_itself(backup: Backup) -> None:
    scratch = backup.server.superuser.with_database("scratch_restore")
    execute(backup.server.superuser, "DROP DATABASE IF EXISTS scratch_restore", "CREATE DATABASE scratch_restore")
    for name in (PRE_DATA, "chat_history"):
        file = str(backup.file(name))
        run([backup.tools.pg_restore, "--exit-on-error", "--dbname=scratch_restore", file], scratch)
    tables = [str(table) for table in backup.plan.components[1].tables]
    assert differences(backup, scratch, tables) == []
    execute(scratch, "UPDATE public.messages SET body = 'y' WHERE id = 7", 'DELETE FROM "Sch.em*"."dotted.name"')
    assert differences(backup, scratch, tables) == [
        '"Sch.em*"."dotted.name": 1 row fewer',
        "public.messages_2025: content differs",
    ]


def differences(backup: Backup, login: DatabaseLogin, tables: list[str]) -> list[str]:
    with login.connect(application_name="test") as session:
        return compare(backup.inventory, take_inventory(session, list_relations(session)), tables)


def test_globals_carry_the_roles_with_their_passwords(backup: Backup) -> None:
    said = backup.file(GLOBALS).read_text()
    assert "CREATE ROLE synapse_backup_dump" in said
    assert "SCRAM-SHA-256$" in said


def test_pre_and_post_data_hold_no_rows(backup: Backup) -> None:
    streams = {stream.name: stream for stream in backup.streams}
    for name in (PRE_DATA, POST_DATA):
        entries = [data_entry(line) for line in backup.contents(streams[name])]
        assert [entry for entry in entries if entry and not entry.startswith("BLOB ")] == []


def test_settings_are_recorded(backup: Backup) -> None:
    settings = backup.settings
    assert settings.database["name"] == DATABASE
    assert settings.database["encoding"] == "UTF8"
    assert {"citext", "plpgsql"} == {extension["name"] for extension in settings.extensions}
    assert ["work_mem=7MB"] in [row["settings"] for row in settings.role_settings if row["database"] == DATABASE]
    names = {setting["name"] for setting in settings.settings}
    assert {"fsync", "unix_socket_directories"} <= names  # the second is hidden from an ordinary login
    assert "lo_compat_privileges" not in names  # the login's own
    assert "scram-sha-256" in {rule["auth_method"] for rule in settings.hba}
    assert ServerSettings.from_json(settings.to_json()) == settings


def test_the_inventory_survives_json(backup: Backup) -> None:
    assert Inventory.from_json(backup.inventory.to_json()) == backup.inventory

"""Some tables or components of a database, beside the live one, with what they need and a word on what they lack."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from include.backup.full import make_full_backup
from include.errors import BackupError
from include.pipeline.process import SinkFailed
from include.pipeline.progress import Progress
from include.policy import load_policy
from include.recovery import database as recovery
from include.recovery.database import DatabaseExists, RestoredDatabase, RestoreDiffers, restore_database, restore_part
from include.recovery.opened import OpenedBackup
from include.recovery.replacement import kept_database_name, swap_databases
from include.recovery.selection import NothingMatches
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.tools import PostgresTools, installed

POLICY = load_policy()
BACKUP = BackupId.parse("full-20261122T000000Z")
WEIRD = 'weird Table"na\nme'
QUOTED = WEIRD.replace('"', '""')
HARD = """
    CREATE SCHEMA "od.d";
    CREATE SEQUENCE public.tickets START 500;
    SELECT nextval('public.tickets'), nextval('public.tickets');
    CREATE TABLE "od.d".users (x int PRIMARY KEY);
    INSERT INTO "od.d".users VALUES (1);
    CREATE TABLE public.templates (id int, title text);
    INSERT INTO public.templates VALUES (1, 'one');
    CREATE FUNCTION public.templates_there() RETURNS bigint LANGUAGE sql STABLE
        BEGIN ATOMIC SELECT count(*) FROM public.templates; END;
    CREATE FUNCTION public.flags_there() RETURNS bigint LANGUAGE sql STABLE
        BEGIN ATOMIC SELECT count(*) FROM public.feature_flags; END;
    CREATE TABLE public."weird Table""na
me" (
        "i;d" serial PRIMARY KEY,
        ticket bigint DEFAULT nextval('public.tickets'),
        template public.templates,
        made_of bigint DEFAULT public.templates_there(),
        user_id bigint REFERENCES public.users,
        parent int CONSTRAINT "own, (key)" REFERENCES public."weird Table""na
me" DEFERRABLE INITIALLY DEFERRED,
        odd int REFERENCES "od.d".users
    );
    COMMENT ON TABLE public."weird Table""na
me" IS 'it''s; "odd"';
    CREATE INDEX "odd index" ON public."weird Table""na
me" (user_id) WHERE user_id > 0;
    CREATE STATISTICS public.odd_statistics ON user_id, parent FROM public."weird Table""na
me";
    CREATE TRIGGER "FK CONSTRAINT" BEFORE INSERT ON public."weird Table""na
me" FOR EACH ROW WHEN (NEW.parent > 1) EXECUTE FUNCTION suppress_redundant_updates_trigger();
    CREATE RULE "noted; here" AS ON DELETE TO public."weird Table""na
me" DO ALSO (INSERT INTO public.audit_notes (author, note) VALUES ('a;', 'b'); NOTIFY gone;);
    CREATE VIEW public.weird_view AS SELECT "i;d" FROM public."weird Table""na
me";
    CREATE MATERIALIZED VIEW public.weird_rows AS SELECT count(*) AS n FROM public.weird_view;
    CREATE PUBLICATION everything FOR ALL TABLES;
    CREATE FUNCTION public.watched() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
    CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION public.watched();
    ALTER TABLE public.chats ADD COLUMN last_attachment bigint REFERENCES public.attachments;
    UPDATE public.chats SET last_attachment = (SELECT min(id) FROM public.attachments);
    INSERT INTO public."weird Table""na
me" (template, user_id, parent, odd) SELECT ROW(1, 'x')::public.templates, 1, 1, 1 FROM generate_series(1, 3);
"""


def ask(login: DatabaseLogin, query: str, *values: object) -> list[tuple]:
    with login.connect(application_name="test", autocommit=True) as session:
        return session.execute(query.encode(), values or None).fetchall()


def run(login: DatabaseLogin, script: str) -> None:
    with login.connect(application_name="test", autocommit=True) as session:
        session.execute(script.encode())


def databases(server: DatabaseLogin) -> set[str]:
    return {name for (name,) in ask(server, "SELECT datname FROM pg_database")}


def tables(login: DatabaseLogin) -> set[str]:
    found = ask(
        login,
        "SELECT schemaname || '.' || tablename FROM pg_tables"
        " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
    )
    return {name for (name,) in found}


@pytest.fixture(scope="module", params=["postgres18", "postgres15"])
def installation(
    request: pytest.FixtureRequest, sandbox_directory: Path, s3_primary: S3Server, s3_replica: S3Server
) -> Iterator[Installation]:
    directory = sandbox_directory / f"partial-{request.param}"
    directory.mkdir()
    postgres: PostgresServer = request.getfixturevalue(request.param)
    made = Installation.make(
        directory,
        postgres=postgres,
        primary=s3_primary,
        replica=s3_replica,
        suffix=f"-partial-{request.param}",
        scale=0.05,
    )
    run(postgres.superuser.with_database(made.synapse.database.dbname), HARD)
    yield made
    made.synapse.destroy()


@pytest.fixture(scope="module")
def catalog(installation: Installation) -> Catalog:
    return installation.catalog()


@pytest.fixture(scope="module")
def manifest(installation: Installation, catalog: Catalog, sandbox_directory: Path) -> Manifest:
    return make_full_backup(
        BACKUP,
        slot=None,
        application=installation.application(),
        catalog=catalog,
        policy=POLICY,
        scratch=sandbox_directory,
    )


@pytest.fixture
def server(installation: Installation) -> Iterator[DatabaseLogin]:
    """A superuser; databases that a test made are dropped after it."""
    server = installation.postgres.superuser
    before = databases(server)
    yield server
    for name in databases(server) - before:
        run(server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def opened(catalog: Catalog, manifest: Manifest) -> OpenedBackup:
    return OpenedBackup(catalog, manifest, policy=POLICY.pipeline, progress=Progress("test"))


Restore = Callable[..., RestoredDatabase]


@pytest.fixture
def restore(opened: OpenedBackup, server: DatabaseLogin, tmp_path: Path) -> Restore:
    def restore(*tables: str, components: tuple[str, ...] = (), name: str = "looked_at") -> RestoredDatabase:
        return restore_part(opened, server=server, name=name, scratch=tmp_path, components=components, tables=tables)

    return restore


CONTENT = "SELECT md5(string_agg(t::text, ',' ORDER BY t::text)), count(*) FROM {} AS t"
NEVER = {
    "owners, privileges and row-level security: whoever restores owns it all",
    "the database's own settings, and the comments on indexes, constraints and triggers",
}


@pytest.mark.requirement("R5.1", "R5.2")
def test_one_table_comes_back_beside_the_live_one(
    restore: Restore, installation: Installation, server: DatabaseLogin
) -> None:
    live, back = installation.synapse.database, server.with_database("looked_at")
    restored = restore("public.messages")

    ((digest, rows),) = ask(back, CONTENT.format("public.messages"))
    assert [(digest, rows)] == ask(live, CONTENT.format("public.messages"))
    assert (restored.name, restored.tables, restored.rows, restored.replaced) == ("looked_at", 7, rows, None)
    assert all(name.startswith("public.messages") for name in tables(back))
    assert ask(back, "SELECT indexdef FROM pg_indexes WHERE tablename = 'messages' ORDER BY 1") == ask(
        live, "SELECT indexdef FROM pg_indexes WHERE tablename = 'messages' ORDER BY 1"
    )
    assert ask(back, "SELECT last_value FROM messages_id_seq") == ask(live, "SELECT last_value FROM messages_id_seq")
    assert set(restored.left_out) == NEVER | {
        "foreign key messages_chat_id_fkey of public.messages: not all of public.chats is restored",
        "function public.flags_there()",
        "function public.templates_there()",
        "large objects: 4",
        "materialized view public.weird_rows",
        "publication everything",
        "event trigger watch",
        "view public.active_chats",
        "view public.weird_view",
    }
    assert ask(back, "SELECT sum(messages) FROM public.monthly_usage") == [(rows,)]


@pytest.mark.requirement("R5.1")
def test_a_table_comes_with_everything_that_it_needs(
    restore: Restore, installation: Installation, server: DatabaseLogin
) -> None:
    live, back, name = installation.synapse.database, server.with_database("looked_at"), f'public."{QUOTED}"'
    restored = restore(f"public.{WEIRD}")

    assert ask(back, CONTENT.format(name)) == ask(live, CONTENT.format(name))
    assert tables(back) == {f"public.{WEIRD}", "public.templates"}
    assert ask(back, "SELECT count(*) FROM public.templates") == [(0,)]
    assert ask(back, "SELECT n FROM public.weird_rows") == [(3,)]
    assert ask(back, f'INSERT INTO {name} (parent) VALUES (1) RETURNING "i;d", ticket, made_of') == [(4, 505, 0)]
    about = f"""
        SELECT obj_description('{name}'::regclass),
            (SELECT array_agg(tgname::text) FROM pg_trigger WHERE tgrelid = '{name}'::regclass AND NOT tgisinternal),
            (SELECT array_agg(stxname::text) FROM pg_statistic_ext),
            (SELECT array_agg(relname::text ORDER BY relname) FROM pg_index, pg_class
             WHERE pg_class.oid = indexrelid AND indrelid = '{name}'::regclass)
    """
    assert ask(back, about) == ask(live, about)
    assert ask(back, "SELECT conname, condeferred FROM pg_constraint WHERE contype = 'f'") == [("own, (key)", True)]
    assert set(restored.left_out) == NEVER | {
        f'foreign key "{QUOTED}_odd_fkey" of public."{QUOTED}": not all of "od.d".users is restored',
        f'foreign key "{QUOTED}_user_id_fkey" of public."{QUOTED}": not all of public.users is restored',
        "function public.flags_there()",
        "large objects: 4",
        "materialized view public.monthly_usage",
        "publication everything",
        "event trigger watch",
        "rows of public.templates: only its definition is needed",
        f'rule "noted; here" on public."{QUOTED}"',
        "view public.active_chats",
    }


def test_components_and_single_partitions_come_together(
    restore: Restore, installation: Installation, server: DatabaseLogin
) -> None:
    live, back = installation.synapse.database, server.with_database("looked_at")
    restored = restore("public.messages_2026_1*", components=("user_data",))

    partitions = {"public.messages_2026_10", "public.messages_2026_11"}
    people = {"public.users", "public.user_settings", "public.sessions"}
    assert tables(back) == {"public.messages"} | partitions | people
    assert [ask(back, CONTENT.format(name)) for name in sorted(partitions | people)] == [
        ask(live, CONTENT.format(name)) for name in sorted(partitions | people)
    ]
    keys = {name for (name,) in ask(back, "SELECT conname FROM pg_constraint WHERE contype = 'f'")}
    assert keys == {"sessions_user_id_fkey", "user_settings_user_id_fkey"}
    # Of a view that could show only two of seven months nobody would know it.
    assert {"materialized view public.monthly_usage", "policy own_settings on public.user_settings"} <= set(
        restored.left_out
    )


def test_a_whole_component_comes_with_its_loose_sequences_and_large_objects(
    restore: Restore, installation: Installation, server: DatabaseLogin
) -> None:
    live, back = installation.synapse.database, server.with_database("looked_at")
    restored = restore(components=("unclassified_database",))

    assert tables(back) == {"public.audit_notes", "public.templates", "od.d.users", f"public.{WEIRD}"}
    for query in (
        "SELECT last_value, is_called FROM public.invoice_numbers",
        "SELECT last_value, is_called FROM public.tickets",
        "SELECT count(*), sum(length(lo_get(oid))) FROM pg_largeobject_metadata",
    ):
        assert ask(back, query) == ask(server.with_database(live.dbname), query)
    assert "rows of public.templates: only its definition is needed" not in restored.left_out


def test_circular_foreign_keys_come_when_all_their_tables_do(restore: Restore, server: DatabaseLogin) -> None:
    restored = restore(components=("chat_history", "user_data"))

    found = ask(server.with_database("looked_at"), "SELECT conname FROM pg_constraint WHERE contype = 'f'")
    assert {"chats_last_attachment_fkey", "messages_chat_id_fkey", "chats_user_id_fkey"} <= {name for (name,) in found}
    assert [said for said in restored.left_out if said.startswith("foreign key")] == []
    assert ask(server.with_database("looked_at"), "SELECT count(*) FROM active_chats")[0][0] > 0


@pytest.mark.parametrize(
    ("tables", "components", "told"),
    [
        (["messages"], (), r"no table messages\. Near it: public\.messages"),
        (["public.mesages_*"], (), r"no table public\.mesages_\*\. Near it: public\.messages"),
        (["public.users", "public.Users"], (), r"no table public\.Users"),
        (["public.active_chats"], (), r"no table public\.active_chats"),
        ([], ("chat",), r"component chat\. It has: billing, chat_history"),
    ],
)
def test_a_name_that_the_backup_does_not_know_is_told_with_those_near_it(
    restore: Restore, server: DatabaseLogin, *, tables: list[str], components: tuple[str, ...], told: str
) -> None:
    before = databases(server)
    with pytest.raises(NothingMatches, match=told):
        restore(*tables, components=components)
    assert databases(server) == before


def test_a_part_takes_the_place_of_nothing(restore: Restore, installation: Installation, server: DatabaseLogin) -> None:
    before = databases(server)
    with pytest.raises(DatabaseExists, match="takes the place of none"):
        restore("public.users", name=installation.synapse.database.dbname)
    assert databases(server) == before


def harm(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    restore_rows_of = recovery._Restore._restore_rows_of

    def harmed(step: recovery._Restore, *arguments: object) -> None:
        restore_rows_of(step, *arguments)  # type: ignore[arg-type]
        run(step._login, script)

    monkeypatch.setattr(recovery._Restore, "_restore_rows_of", harmed)


@pytest.mark.requirement("R5.2")
@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("UPDATE public.users SET locale = 'xx' WHERE id = 1", "public.users: content differs"),
        ("SELECT lo_unlink(oid) FROM pg_largeobject_metadata LIMIT 1", "large objects: 3 of"),
    ],
)
def test_a_part_that_differs_is_never_put_in_place(
    restore: Restore, server: DatabaseLogin, monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    before = databases(server)
    harm(monkeypatch, script)
    with pytest.raises(RestoreDiffers, match=told):
        restore("public.users", components=("unclassified_database",))
    assert databases(server) == before


# Other tools


def newest_tools(_: int) -> PostgresTools:
    return max(installed(), key=lambda tools: tools.major)


@pytest.mark.requirement("R5.1")
def test_tools_newer_than_the_server_restore_it_all(
    opened: OpenedBackup, restore: Restore, server: DatabaseLogin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 17 on pg_restore sets what no server before 17 knows: the one error that is none."""
    monkeypatch.setattr(recovery, "find_tools", newest_tools)
    whole = restore_database(opened, server=server, name="whole", scratch=tmp_path)

    assert whole.rows == opened.manifest.database.rows
    assert restore("public.messages").tables == 7


@pytest.mark.parametrize("tools", [newest_tools, recovery.find_tools])
def test_an_error_of_the_tools_is_one_whatever_their_version_and_tells_no_row(
    restore: Restore,
    server: DatabaseLogin,
    monkeypatch: pytest.MonkeyPatch,
    tools: Callable[[int], PostgresTools],
) -> None:
    before = databases(server)
    monkeypatch.setattr(recovery, "find_tools", tools)
    harm(monkeypatch, "INSERT INTO public.users OVERRIDING SYSTEM VALUE SELECT * FROM public.users WHERE id = 1")
    with pytest.raises(SinkFailed, match="could not create unique index") as failed:
        restore("public.users")
    assert "DETAIL" not in failed.value.said
    assert "=(" not in failed.value.what
    assert databases(server) == before


# In the place of a database that exists


@pytest.mark.requirement("R5.1", "R5.3")
def test_a_database_that_is_replaced_is_kept_and_its_sessions_end(
    opened: OpenedBackup, server: DatabaseLogin, tmp_path: Path
) -> None:
    run(server, "CREATE DATABASE taken")
    taken = server.with_database("taken")
    run(taken, "CREATE TABLE only_here (x int)")
    with taken.connect(application_name="application") as session:
        session.execute("SELECT")
        restored = restore_database(opened, server=server, name="taken", scratch=tmp_path, keep_as="kept")
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT")

    assert restored.replaced == "kept"
    assert "public.only_here" in tables(server.with_database("kept"))
    assert "public.users" in tables(taken)
    assert "public.only_here" not in tables(taken)


@pytest.mark.parametrize(
    ("name", "keep_as", "told"),
    [
        ("taken", None, "taken exists already"),
        ("taken", "postgres", "kept as postgres .* exists, too"),
        ("postgres", "kept", "own session is in"),
    ],
)
def test_nothing_is_replaced_that_was_not_said_or_cannot_be_kept(
    opened: OpenedBackup, server: DatabaseLogin, tmp_path: Path, *, name: str, keep_as: str | None, told: str
) -> None:
    run(server, "CREATE DATABASE taken")
    before = databases(server)
    with pytest.raises(DatabaseExists, match=told):
        restore_database(opened, server=server, name=name, scratch=tmp_path, keep_as=keep_as)
    assert databases(server) == before


def test_a_name_that_is_free_needs_nothing_kept(opened: OpenedBackup, server: DatabaseLogin, tmp_path: Path) -> None:
    restored = restore_database(opened, server=server, name="free", scratch=tmp_path, keep_as="kept")
    assert restored.replaced is None
    assert "kept" not in databases(server)


def test_a_database_that_cannot_be_replaced_is_as_it_was(server: DatabaseLogin) -> None:
    run(server, "CREATE DATABASE taken")
    with (
        server.connect(application_name="test", autocommit=True) as session,
        pytest.raises(BackupError, match=r'could not be replaced: database "absent" does not exist'),
    ):
        swap_databases(session, "absent", name="taken", keep_as="kept")
    assert ask(server.with_database("taken"), "SELECT 1") == [(1,)]
    assert "kept" not in databases(server)


def test_a_long_name_is_kept_under_one_that_postgresql_takes() -> None:
    kept = kept_database_name("ü" * 31)
    assert len(kept.encode()) <= 63
    assert re.fullmatch(r"ü+_replaced_\d{8}T\d{6}Z", kept)

"""A database comes back beside what is there, as it was, or not at all (R5.1, R5.2)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import sql

from include.backup.full import make_full_backup
from include.backup.sample import named
from include.backup.verify import SizeSuspect, check_sizes, prove_sample
from include.errors import BackupError
from include.pipeline.progress import Progress
from include.policy import load_policy
from include.recovery import database as recovery
from include.recovery.database import DatabaseExists, RestoredDatabase, RestoreDiffers, restore_database
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.contents import component_dump
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.sandbox.installation import Installation
from include.sources.postgres.login import DatabaseLogin

POLICY = load_policy()
BACKUP = BackupId.parse("full-20261122T000000Z")
ODD_ROLE = 'odd "; role\u2028'
COMMENT = "it's \"odd;\n-- no comment\n\\connect nowhere\x0b\u2028';"
ABOUT_DATABASE = """
    SELECT pg_get_userbyid(datdba), datacl::text, shobj_description(oid, 'pg_database'), pg_encoding_to_char(encoding),
           (SELECT array_agg((coalesce(setrole::regrole::text, ''), setconfig) ORDER BY 1)::text
            FROM pg_db_role_setting WHERE setdatabase = pg_database.oid)
    FROM pg_database WHERE datname = %s
"""
ABOUT_ROLE = """
    SELECT rolcanlogin, rolconnlimit, rolpassword, shobj_description(oid, 'pg_authid'),
           (SELECT setconfig::text FROM pg_db_role_setting WHERE setdatabase = 0 AND setrole = pg_authid.oid),
           (SELECT array_agg(roleid::regrole::text) FROM pg_auth_members WHERE member = pg_authid.oid)
    FROM pg_authid WHERE rolname = %s
"""


def ask(server: DatabaseLogin, query: str, *values: object) -> list[tuple]:
    with server.connect(application_name="test", autocommit=True) as session:
        return session.execute(query.encode(), values).fetchall()


def execute(server: DatabaseLogin, *statements: sql.Composable) -> None:
    with server.connect(application_name="test", autocommit=True) as session:
        for statement in statements:
            session.execute(statement)


def databases(server: DatabaseLogin) -> set[str]:
    return {name for (name,) in ask(server, "SELECT datname FROM pg_database")}


@pytest.fixture(scope="module")
def server(installation: Installation) -> DatabaseLogin:
    return installation.postgres.superuser


@pytest.fixture(scope="module")
def manifest(
    installation: Installation, catalog: Catalog, server: DatabaseLogin, sandbox_directory: Path
) -> Iterator[Manifest]:
    """A backup of a database that its owner made as hard to bring back as may be."""
    name, role = sql.Identifier(installation.synapse.database.dbname), sql.Identifier(ODD_ROLE)
    execute(
        server,
        sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(COMMENT)),
        sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name),
        sql.SQL("ALTER DATABASE {} SET search_path = 'DATABASE x', public").format(name),
        sql.SQL("ALTER ROLE synapse_app IN DATABASE {} SET work_mem = '8MB'").format(name),
        sql.SQL("CREATE ROLE {} PASSWORD 'hidden'").format(role),
        sql.SQL("COMMENT ON ROLE {} IS {}").format(role, sql.Literal(COMMENT)),
        sql.SQL("ALTER ROLE {} SET work_mem = '9MB'").format(role),
        sql.SQL("GRANT pg_monitor, pg_read_all_stats TO {}").format(role),
        sql.SQL("GRANT TEMPORARY ON DATABASE {} TO {}").format(name, role),
    )
    yield make_full_backup(
        BACKUP,
        slot=None,
        application=installation.application(),
        catalog=catalog,
        policy=POLICY,
        scratch=sandbox_directory,
    )
    execute(server, sql.SQL("DROP OWNED BY {}").format(role), sql.SQL("DROP ROLE {}").format(role))


@pytest.fixture
def restore(
    catalog: Catalog, manifest: Manifest, server: DatabaseLogin, tmp_path: Path
) -> Iterator[Callable[[str], RestoredDatabase]]:
    """Restores under a name; what was restored is dropped afterwards."""
    before = databases(server)

    def restore(name: str) -> RestoredDatabase:
        opened = OpenedBackup(catalog, manifest, policy=POLICY.pipeline, progress=Progress("test"))
        return restore_database(opened, server=server, name=name, scratch=tmp_path)

    yield restore
    for name in databases(server) - before:
        execute(server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.mark.requirement("R5.1", "R5.2")
@pytest.mark.parametrize("name", ["back", "odd \"name\"; = 'x' zürich", "DATABASE", "host=elsewhere", "ü" * 31])
def test_a_database_comes_back_under_any_name_as_it_was(
    restore: Callable[[str], RestoredDatabase], installation: Installation, server: DatabaseLogin, name: str
) -> None:
    restored = restore(name)

    assert restored.name == name
    assert ask(server, ABOUT_DATABASE, name) == ask(server, ABOUT_DATABASE, installation.synapse.database.dbname)
    ((owner, _, comment, _, settings),) = ask(server, ABOUT_DATABASE, name)
    assert (owner, comment) == ("synapse_app", COMMENT)
    assert "work_mem=8MB" in settings


def test_a_name_that_is_taken_is_refused_and_left_alone(
    restore: Callable[[str], RestoredDatabase], installation: Installation, server: DatabaseLogin
) -> None:
    taken, before = installation.synapse.database.dbname, databases(server)
    with pytest.raises(DatabaseExists, match=taken):
        restore(taken)
    assert databases(server) == before


def test_a_name_that_is_taken_meanwhile_is_refused_and_left_alone(
    restore: Callable[[str], RestoredDatabase], server: DatabaseLogin, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = databases(server)
    monkeypatch.setattr(recovery, "_exists", lambda *_: False)
    with pytest.raises(BackupError, match=r"ALTER DATABASE .* already exists"):
        restore("postgres")
    assert databases(server) == before


@pytest.mark.requirement("R5.1")
@pytest.mark.parametrize("step", ["_restore_roles", "_create_as_it_was", "_restore_rows", "_must_equal"])
def test_a_restore_that_fails_leaves_no_database(
    restore: Callable[[str], RestoredDatabase],
    server: DatabaseLogin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    before = databases(server)
    monkeypatch.setattr(recovery._Restore, step, fail)
    with pytest.raises(ZeroDivisionError):
        restore("unlucky")

    assert databases(server) == before
    assert list(tmp_path.iterdir()) == []


def fail(*_: object) -> None:
    raise ZeroDivisionError


def test_an_artifact_that_breaks_off_is_no_end_for_pg_restore(
    restore: Callable[[str], RestoredDatabase], server: DatabaseLogin, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = OpenedBackup.read

    def broken(opened: OpenedBackup, name: str) -> Iterator[bytes]:
        for chunk in read(opened, name):
            if name == component_dump("user_data"):
                yield chunk[: len(chunk) // 2]
                raise ZeroDivisionError
            yield chunk

    monkeypatch.setattr(OpenedBackup, "read", broken)
    before = databases(server)
    with pytest.raises(ZeroDivisionError):
        restore("unlucky")
    assert databases(server) == before


@pytest.mark.requirement("R5.2")
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (
            "DELETE FROM public.feature_flags WHERE ctid = (SELECT min(ctid) FROM public.feature_flags)",
            "flags: 1 row fewer",
        ),
        ("UPDATE public.users SET locale = 'xx' WHERE id = 1", "public.users: content differs"),
        ("CREATE TABLE public.more (x int)", "public.more: not in the backup"),
        ("SELECT setval('public.users_id_seq', 1)", "public.users_id_seq: stands at 1"),
        ("SELECT lo_unlink(oid) FROM pg_largeobject_metadata LIMIT 1", "large objects: 1 fewer"),
    ],
)
def test_what_is_not_what_was_backed_up_is_never_put_in_place(
    restore: Callable[[str], RestoredDatabase],
    server: DatabaseLogin,
    monkeypatch: pytest.MonkeyPatch,
    *,
    harm: str,
    told: str,
) -> None:
    restore_rows = recovery._Restore._restore_rows

    def harmed(step: recovery._Restore) -> None:
        restore_rows(step)
        with step._login.connect(application_name="test", autocommit=True) as session:
            session.execute("SET session_replication_role = replica")
            session.execute(harm.encode())

    before = databases(server)
    monkeypatch.setattr(recovery._Restore, "_restore_rows", harmed)
    with pytest.raises(RestoreDiffers, match=told):
        restore("harmed")
    assert databases(server) == before


def test_roles_that_are_there_are_left_exactly_as_they_are(
    restore: Callable[[str], RestoredDatabase], server: DatabaseLogin
) -> None:
    role = sql.Identifier(ODD_ROLE)
    execute(
        server,
        sql.SQL("ALTER ROLE {} PASSWORD 'another' CONNECTION LIMIT 3").format(role),
        sql.SQL("ALTER ROLE {} SET work_mem = '11MB'").format(role),
        sql.SQL("COMMENT ON ROLE {} IS 'another'").format(role),
        sql.SQL("REVOKE pg_monitor FROM {}").format(role),
    )
    before = ask(server, ABOUT_ROLE, ODD_ROLE)
    restore("with_its_own_roles")

    assert ask(server, ABOUT_ROLE, ODD_ROLE) == before
    assert before[0][1] == 3
    assert "pg_monitor" not in before[0][5]


# A sample


def sample(catalog: Catalog, manifest: Manifest, server: DatabaseLogin, scratch: Path, component: str) -> dict:
    turn = named(manifest, POLICY, component)
    return prove_sample(catalog, manifest, POLICY, turn, server=server, source=None, scratch=scratch)


@pytest.mark.requirement("R4.5")
@pytest.mark.parametrize("component", ["chat_history", "unclassified_database"])
def test_a_sample_needs_only_a_login_that_may_create_databases_and_leaves_nothing(
    catalog: Catalog, manifest: Manifest, installation: Installation, tmp_path: Path, component: str
) -> None:
    before = databases(installation.postgres.superuser)

    assert sample(catalog, manifest, installation.scratch, tmp_path, component)["rows"] > 0
    assert databases(installation.postgres.superuser) == before


@pytest.mark.requirement("R4.5")
@pytest.mark.parametrize(("component", "told"), [("chat_history", "fewer"), ("unclassified_database", "fewer")])
def test_a_sample_that_differs_is_an_error_and_leaves_nothing(
    catalog: Catalog,
    manifest: Manifest,
    server: DatabaseLogin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    component: str,
    told: str,
) -> None:
    pipe = recovery._Restore._pipe

    def half(step: recovery._Restore, artifact: str, *options: str) -> None:
        if "pre-data" in artifact:
            pipe(step, artifact, *options)

    before = databases(server)
    monkeypatch.setattr(recovery._Restore, "_pipe", half)
    with pytest.raises(RestoreDiffers, match=told):
        sample(catalog, manifest, server, tmp_path, component)
    assert databases(server) == before


@pytest.mark.requirement("R4.5")
@pytest.mark.parametrize("harm", ["SELECT lo_unlink(min(oid))", "SELECT lo_truncate(lo_open(min(oid), 131072), 1)"])
def test_a_sample_without_all_large_objects_is_an_error(
    catalog: Catalog,
    manifest: Manifest,
    server: DatabaseLogin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    harm: str,
) -> None:
    pipe = recovery._Restore._pipe

    def harmed(step: recovery._Restore, artifact: str, *options: str) -> None:
        pipe(step, artifact, *options)
        if "pre-data" not in artifact:
            execute(step._login, sql.SQL(f"{harm} FROM pg_largeobject_metadata"))

    monkeypatch.setattr(recovery._Restore, "_pipe", harmed)
    with pytest.raises(RestoreDiffers, match="large objects: "):
        sample(catalog, manifest, server, tmp_path, "unclassified_database")


@pytest.mark.requirement("R4.5")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda manifest: {"database": manifest.database.model_copy(update={"rows": 1})}, "database: "),
        (lambda manifest: {"objects": manifest.objects.model_copy(update={"raw_bytes": 1})}, "objects: "),
        (lambda manifest: {"packs": manifest.packs[:-1]}, "objects: "),
        (lambda manifest: {"artifacts": emptied(manifest, "database/chat_history.pgdump")}, "chat_history: "),
        (lambda manifest: {"artifacts": without(manifest, "database/chat_history.pgdump")}, "chat_history: "),
    ],
)
def test_sizes_that_do_not_fit_their_source_are_suspect(
    catalog: Catalog,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    change: Callable[[Manifest], dict],
    told: str,
) -> None:
    changed = manifest.model_copy(update=change(manifest))
    monkeypatch.setattr(Catalog, "get", lambda *_: changed)
    with pytest.raises(SizeSuspect, match=told):
        check_sizes(catalog, BACKUP, POLICY, scratch=tmp_path)


def without(manifest: Manifest, name: str) -> tuple:
    return tuple(artifact for artifact in manifest.artifacts if artifact.name != name)


def emptied(manifest: Manifest, name: str) -> tuple:
    return (*without(manifest, name), manifest.artifact(name).model_copy(update={"segments": ()}))


@pytest.mark.requirement("R5.1")
def test_roles_that_were_lost_come_back_with_their_passwords(
    restore: Callable[[str], RestoredDatabase], installation: Installation, server: DatabaseLogin
) -> None:
    """The last test of the module: it destroys the application."""
    before = ask(server, ABOUT_ROLE, "synapse_app")
    installation.synapse.destroy()
    gone = ask(server, ABOUT_ROLE, "synapse_app")
    restore(f"back-{secrets.token_hex(4)}")

    assert gone == []
    assert ask(server, ABOUT_ROLE, "synapse_app") == before
    assert before[0][2].startswith("SCRAM-SHA-256$")

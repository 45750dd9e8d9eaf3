"""What dead runs leave, wherever it lies: a try, its sessions, a scratch database, a temporary directory (law 5)."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from include.backup.full import make_full_backup
from include.backup.reaper import Finding, Leftovers, Reaper, WrongServer, remove
from include.backup.scratch import hold
from include.backup.verify import check_integrity
from include.errors import BackupError
from include.pipeline.account import server_account
from include.pipeline.progress import Progress
from include.pipeline.store import StoreError
from include.policy import load_policy
from include.recovery import database as recovery
from include.recovery.opened import OpenedBackup
from include.recovery.scratch import mark, scratch_databases
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.sandbox.airflow import polls
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sources.postgres import barrier
from include.sources.postgres.login import DatabaseLogin, DatabaseUnreachable
from include.sources.postgres.sessions import run_sessions

ROOT = Path(__file__).parents[2]
POLICY = load_policy()
BACKUP = BackupId.parse("full-20261122T000000Z")
UNDECIDED = BackupId.parse("full-20261123T000000Z")
ATTEMPT = "0123456789abcdef"
PERIOD = POLICY.storage.attempts_reaped_after


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def reaper(installation: Installation, catalog: Catalog, manifest: Manifest, scratch: Path) -> Reaper:
    return Reaper(
        catalog,
        POLICY,
        source=[installation.barrier, installation.dump],
        restores=installation.scratch,
        root=scratch,
        temporary=scratch,
    )


@contextmanager
def later(catalog: Catalog) -> Iterator[None]:
    """Inside the block the store's clock says that the policy's time has passed."""
    now = PERIOD.after(catalog.bucket.clock()) + timedelta(minutes=1)
    catalog.bucket.clock = lambda: now  # type: ignore[method-assign]
    try:
        yield
    finally:
        del catalog.bucket.clock  # type: ignore[method-assign]


def of(kind: str, leftovers: Leftovers) -> list[Finding]:
    return [each for each in leftovers.findings if each.kind == kind]


def everything(catalog: Catalog) -> set[tuple[str, str]]:
    return {(version.key, version.version_id) for version in catalog.bucket.versions("")}


def dead_try(installation: Installation, catalog: Catalog, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A try that wrote everything and died before its manifest."""

    def dies(*_: object) -> None:
        raise StoreError("The process is gone.", mend="")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "commit", dies)
        with pytest.raises(StoreError, match="gone"):
            make_full_backup(
                UNDECIDED,
                slot=None,
                application=installation.application(),
                catalog=catalog,
                policy=POLICY,
                scratch=scratch,
            )


def test_a_dead_try_goes_after_its_time_and_the_backup_stays_whole(
    installation: Installation, catalog: Catalog, reaper: Reaper, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(catalog)
    dead_try(installation, catalog, scratch, monkeypatch)
    assert len(everything(catalog)) > len(before) + 10
    assert reaper.find() == Leftovers((), ())
    with later(catalog):
        leftovers = reaper.find()
        assert [each.kind for each in leftovers.findings] == ["attempt"]
        assert leftovers.findings[0].bytes > 10_000
        assert remove(leftovers.findings) == []
        assert reaper.find() == Leftovers((), ())
    assert everything(catalog) == before
    assert check_integrity(catalog, BACKUP, POLICY, scratch=scratch)["artifacts"] > 0


def test_who_is_dead_is_not_told_while_the_database_is_away(
    installation: Installation, catalog: Catalog, manifest: Manifest
) -> None:
    nowhere = DatabaseLogin(host="127.0.0.1", port=1, user="nobody", password="", dbname="none")
    reaper = Reaper(catalog, POLICY, source=[nowhere], restores=installation.scratch, root=None)
    with later(catalog), pytest.raises(DatabaseUnreachable):
        reaper.find()


def test_another_server_cannot_tell_who_lives(
    installation: Installation, catalog: Catalog, manifest: Manifest, postgres15: PostgresServer
) -> None:
    reaper = Reaper(catalog, POLICY, source=[postgres15.superuser], restores=installation.scratch, root=None)
    with later(catalog), pytest.raises(WrongServer, match=manifest.database.system_identifier):
        reaper.find()


# Sessions


@contextmanager
def session_of(login: DatabaseLogin, backup: BackupId, letter: str = "S") -> Iterator[psycopg.Connection]:
    session = login.connect(application_name=f"{backup}.{ATTEMPT}.{letter}")
    try:
        session.execute("SELECT 1")  # idle in its transaction from now on
        yield session
    finally:
        session.close()


@pytest.mark.requirement("R4.3")
@pytest.mark.parametrize(("role", "letter"), [("dump", "S"), ("barrier", "L"), ("dump", "D")])
def test_a_session_whose_backup_is_committed_is_ended_at_once(
    installation: Installation, reaper: Reaper, role: str, letter: str
) -> None:
    with session_of(getattr(installation, role), BACKUP, letter) as session:
        [found] = of("session", reaper.find())
        assert found.name == f"{BACKUP}.{ATTEMPT}.{letter}"
        assert remove([found]) == []
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
        assert run_sessions(installation.barrier) == []
        assert remove([found]) == []  # another reaper's: it is gone already


def test_a_session_of_an_undecided_try_lives_and_its_try_with_it_until_it_has_idled_for_too_long(
    installation: Installation, catalog: Catalog, reaper: Reaper, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead_try(installation, catalog, scratch, monkeypatch)
    [attempt] = {key.split("/")[5] for key in catalog.bucket.keys("full/2026/11/23/")}
    name = f"{UNDECIDED}.{attempt}.S"
    with closing(installation.dump.connect(application_name=name)) as session:
        session.execute("SELECT 1")  # idle in its transaction from now on
        assert of("session", reaper.find()) == []
        with later(catalog):
            found = reaper.find().findings
            assert [each.kind for each in found] == ["session"]
            session.execute("SELECT 1")  # it wakes up, and does something again
            assert remove(found) == []
            assert session.execute("SELECT 2").fetchone() == (2,)
            assert remove(reaper.find().findings) == []
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
    with later(catalog):
        found = reaper.find().findings
        assert [each.kind for each in found] == ["attempt"]
        assert remove(found) == []


def test_a_stranger_with_a_name_of_his_own_is_no_session_of_ours(installation: Installation, reaper: Reaper) -> None:
    with installation.dump.connect(application_name=f"{BACKUP}.report") as session:
        session.execute("SELECT 1")
        assert of("session", reaper.find()) == []


def test_a_session_that_may_not_be_ended_is_told(installation: Installation, reaper: Reaper) -> None:
    superuser = installation.postgres.superuser.with_database(installation.dump.dbname)
    with session_of(superuser, BACKUP) as session:
        [found] = of("session", reaper.find())
        [told] = remove([found])
        assert "may not end" in told
        assert session.execute("SELECT 1").fetchone() == (1,)


# Scratch databases


def databases(server: DatabaseLogin) -> set[str]:
    with server.connect(application_name="test", autocommit=True) as session:
        return {name for (name,) in session.execute("SELECT datname FROM pg_database")}


@pytest.fixture
def server(installation: Installation) -> DatabaseLogin:
    return installation.postgres.superuser


def create(server: DatabaseLogin, name: str, *more: str) -> None:
    with server.connect(application_name="test", autocommit=True) as session:
        for statement in (sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)), *map(sql.SQL, more)):
            session.execute(statement)


def drop(server: DatabaseLogin, name: str) -> None:
    with server.connect(application_name="test", autocommit=True) as session:
        session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.mark.parametrize("how", ["whole", "sample"])
def test_what_a_killed_restore_leaves_is_found_by_its_mark_and_dropped(
    *,
    installation: Installation,
    catalog: Catalog,
    manifest: Manifest,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    login = installation.postgres.superuser if how == "whole" else installation.scratch
    reaper = Reaper(catalog, POLICY, source=[installation.barrier], restores=login, root=None)
    before = databases(login)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, Progress("restore", scratch=scratch) as progress:
        patch.setattr(recovery._Restore, "_must_equal", killed)
        patch.setattr(recovery._Restore, "_drop", lambda _: None)
        opened = OpenedBackup(catalog, manifest, policy=POLICY.pipeline, progress=progress)
        with pytest.raises(KeyboardInterrupt):
            if how == "whole":
                recovery.restore_database(opened, server=login, name="never", scratch=scratch)
            else:
                recovery.restore_sample(opened, "system_config", server=login, scratch=scratch)
    [left] = databases(login) - before

    assert of("scratch database", reaper.find()) == []
    with later(catalog):
        with login.with_database(left).connect(application_name="somebody"):
            assert of("scratch database", reaper.find()) == []
        until_nobody_is_in(login, left)
        [found] = of("scratch database", reaper.find())
        assert found.name == left
        assert found.bytes > 1_000_000
        with login.with_database(left).connect(application_name="somebody"):
            assert "not what it was" in remove([found])[0]
        until_nobody_is_in(login, left)
        assert remove([found]) == []
    assert databases(login) == before


def until_nobody_is_in(login: DatabaseLogin, name: str) -> None:
    """A session that was closed is gone a moment later."""
    with login.connect(application_name="test", autocommit=True) as session:
        for _ in polls(10.0, f"the last session in {name} to end"):
            if not session.execute("SELECT FROM pg_stat_activity WHERE datname = %s", [name]).fetchone():
                return


def test_a_restored_database_has_its_own_comment_and_no_mark(
    catalog: Catalog, manifest: Manifest, server: DatabaseLogin, scratch: Path
) -> None:
    with Progress("restore", scratch=scratch) as progress:
        opened = OpenedBackup(catalog, manifest, policy=POLICY.pipeline, progress=progress)
        recovery.restore_database(opened, server=server, name="restore_01234567_kept", scratch=scratch)
    try:
        [restored] = [each for each in scratch_databases(server) if each.name == "restore_01234567_kept"]
        assert restored.made is None
        with server.connect(application_name="test", autocommit=True) as session:
            told = session.execute(
                "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'restore_01234567_kept'"
            ).fetchone()
        assert told == ("Synapse",)
    finally:
        drop(server, "restore_01234567_kept")


@pytest.mark.parametrize("comment", [None, "Ours since 2020", "synapse-backups scratch database, made at noon"])
def test_a_users_database_of_such_a_name_is_only_told_of(
    catalog: Catalog, reaper: Reaper, server: DatabaseLogin, comment: str | None
) -> None:
    name = "restore_89abcdef_users"
    create(server, name, *([f"COMMENT ON DATABASE {name} IS '{comment}'"] if comment else []))
    try:
        with later(catalog):
            leftovers = reaper.find()
        assert of("scratch database", leftovers) == []
        [told] = leftovers.left_alone
        assert name in told
        assert name in databases(server)
    finally:
        drop(server, name)


def test_one_that_was_put_in_place_meanwhile_is_left_alone(
    catalog: Catalog, installation: Installation, server: DatabaseLogin
) -> None:
    reaper = Reaper(catalog, POLICY, source=[installation.barrier], restores=server, root=None)
    name = "restore_89abcdef_late"
    create(server, name, mark(name, now=datetime(2026, 1, 1, tzinfo=UTC)))
    try:
        [found] = of("scratch database", reaper.find())
        with server.connect(application_name="test", autocommit=True) as session:
            session.execute(f"COMMENT ON DATABASE {name} IS NULL")
        assert "not what it was" in remove([found])[0]
        assert name in databases(server)
    finally:
        drop(server, name)


# Temporary directories

HOLDER = """
import sys
from pathlib import Path
from include.backup.scratch import hold
hold(Path(sys.argv[1]))
print("HELD", flush=True)
sys.stdin.read()
"""


def test_a_directory_is_held_by_a_step_and_dies_with_it(catalog: Catalog, reaper: Reaper, scratch: Path) -> None:
    directory = scratch / str(UNDECIDED)
    directory.mkdir()
    (directory / "spool").write_bytes(b"x" * 1000)
    for stranger in ("notes", "full-20261123"):
        (scratch / stranger).mkdir()
    step = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert step.stdout is not None
        assert step.stdout.readline() == b"HELD\n"
        with later(catalog):
            assert of("temporary directory", reaper.find()) == []
    finally:
        step.kill()
        step.wait()
        step.communicate()
    assert of("temporary directory", reaper.find()) == []
    with later(catalog):
        [found] = of("temporary directory", reaper.find())
        assert (found.name, found.bytes) == (str(UNDECIDED), 1000)
        descriptor = hold(directory)
        assert "A step works in" in remove([found])[0]
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
        (directory / "more").touch()
        assert "has changed" in remove([found])[0]
        assert remove(of("temporary directory", reaper.find())) == []
    assert {path.name for path in scratch.iterdir()} == {"notes", "full-20261123"}


def test_what_a_killed_recovery_left_among_the_temporary_files_goes_after_its_time(
    catalog: Catalog, reaper: Reaper, scratch: Path
) -> None:
    """Of the account that root's recovered servers run as, too; one that a recovery holds, however old it is, stays."""
    socket, whole, living, elsewhere = (scratch / f"synapse-recovery-{name}" for name in ("a", "b", "c", "d"))
    for directory in (socket, whole, living, scratch / "recovery-e", scratch / "not-synapse-recovery-f"):
        directory.mkdir(mode=0o700)
    (whole / "data").mkdir()
    (whole / "data" / "PG_VERSION").write_text("18\n")
    elsewhere.symlink_to(scratch / "recovery-e")
    if account := server_account():
        os.chown(socket, *account)
    descriptor = os.open(living, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    stays = {path.name for path in scratch.iterdir()} - {socket.name, whole.name}
    assert of("temporary directory", reaper.find()) == []
    with later(catalog):
        found = of("temporary directory", reaper.find())
        assert [(each.name, each.bytes) for each in found] == [(socket.name, 0), (whole.name, 3)]
        assert remove(found) == []
        assert remove(found) == []  # another reaper was faster
        assert of("temporary directory", reaper.find()) == []
    os.close(descriptor)
    assert {path.name for path in scratch.iterdir()} == stays


def test_a_directory_that_the_reaper_takes_while_a_step_comes_is_made_again(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = scratch / str(UNDECIDED)
    lock, taken = fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not taken:
            taken.append(directory)
            directory.rmdir()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    descriptor = hold(directory)
    assert taken
    assert os.fstat(descriptor).st_ino == directory.stat().st_ino
    os.close(descriptor)


# The command line


def test_the_command_line_shows_and_removes_only_when_told(
    installation: Installation, catalog: Catalog, manifest: Manifest, scratch: Path
) -> None:
    def reap(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "include.cli", "--bucket", installation.backups, "reap", *arguments],
            env={
                "PATH": os.environ["PATH"],
                "COLUMNS": "300",
                **installation.break_glass(),
                "BACKUP_SCRATCH": str(scratch),
                "TMPDIR": str(temporary),
            },
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    temporary, directory = scratch / "temporary", scratch / str(UNDECIDED)
    socket = temporary / "synapse-recovery-a"
    socket.mkdir(parents=True)
    directory.mkdir()
    for each in (directory, socket):
        os.utime(each, times=(0, 0))
    shown = reap()
    assert shown.returncode == 0, shown.stderr
    assert str(UNDECIDED) in shown.stdout
    assert socket.name in shown.stdout
    assert "add --remove" in shown.stdout
    assert directory.exists()

    told = json.loads(reap("--remove", "--json").stdout)
    assert [each["name"] for each in told["findings"]] == [str(UNDECIDED), socket.name]
    assert (told["removed"], told["stays"]) == (True, [])
    assert not directory.exists()
    assert not socket.exists()


def test_what_stays_keeps_nothing_else_from_going() -> None:
    gone = []

    def refuse() -> None:
        raise BackupError("It is locked.", mend="Wait.")

    def finding(name: str, how: object) -> Finding:
        return Finding("attempt", name, "there", datetime.now(UTC), 0, "dead", how)  # type: ignore[arg-type]

    stays = remove([finding("first", refuse), finding("second", lambda: gone.append("second"))])
    assert gone == ["second"]
    assert stays == ["attempt first: It is locked. Wait."]


def test_the_server_is_told_to_miss_a_client_that_vanished(
    installation: Installation,
) -> None:
    told: list[tuple[str, ...]] = []
    of_s = barrier._settings_of_s(POLICY.barrier)
    with barrier._session(installation.dump, "test", of_s) as s:
        of_l = barrier._settings_of_l(POLICY.barrier, s)
    for login, settings in ((installation.dump, of_s), (installation.barrier, of_l)):
        with barrier._session(login, "test", settings) as session:
            row = session.execute(
                "SELECT current_setting('tcp_keepalives_idle'), current_setting('tcp_user_timeout'),"
                " current_setting('client_connection_check_interval')"
            ).fetchone()
            assert row is not None
            told.append(row)
    assert told == [("30", "60000", "5s")] * 2

"""The write barrier and the consistency point, on real servers under real load (R4.3)."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from include.errors import BackupError
from include.policy import Barrier
from include.sandbox.postgres import PostgresServer
from include.sources.postgres.barrier import (
    ConsistencyPoint,
    PointVoid,
    WritersInTheWay,
    WritesStillStopped,
    hold_consistency_point,
    release_writes,
)
from include.sources.postgres.blockers import find_blockers
from include.sources.postgres.relations import Relations, list_relations
from include.sources.postgres.tools import find_tools

GRANTS = Path("include/sources/postgres/grants.sql").read_text()
NAME = "full-20261122T000000Z.a1b2c3"
BACKUP_ID = NAME.partition(".")[0]
ATTEMPTS = itertools.count(1)


def policy(**changes: object) -> Barrier:
    quick = {
        "lock_timeout": timedelta(milliseconds=300),
        "deadlock_timeout": timedelta(milliseconds=20),
        "statement_timeout": timedelta(seconds=5),
        "idle_timeout": timedelta(seconds=5),
        "tries": 2,
        "backoff": timedelta(milliseconds=10),
        "long_running": timedelta(minutes=1),
    }
    return Barrier(**(quick | changes))


class Application:
    """A database that somebody writes to, and the logins of its backup."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.owner = server.superuser.with_database("application")
        self.barrier = server.login("synapse_backup_barrier", "b", "application")
        self.dump = server.login("synapse_backup_dump", "d", "application")

    @contextmanager
    def session(self, name: str = "application", *, autocommit: bool = False) -> Iterator[psycopg.Connection]:
        session = self.owner.connect(application_name=name, autocommit=autocommit)
        try:
            yield session
        finally:
            session.close()

    def run(self, *statements: str) -> list[tuple]:
        with self.session(autocommit=True) as session:
            for statement in statements:
                cursor = session.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def hold(
        self, name: str = NAME, relations=list_relations, while_stopped: Callable = lambda: None, **changes: object
    ):
        return hold_consistency_point(
            self.barrier,
            self.dump,
            name=name,
            relations=relations,
            policy=policy(**changes),
            while_stopped=while_stopped,
        )

    def lockable(self):
        with self.session() as session:
            return list_relations(session).lockable

    def locks(self, application_name: str) -> list[tuple[str, bool]]:
        return self.run(
            "SELECT mode, granted FROM pg_locks JOIN pg_stat_activity USING (pid)"
            f" WHERE locktype = 'relation' AND relation >= 16384 AND application_name = '{application_name}'"
        )

    def wait_until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come to pass"

    def wait_for_l(self) -> None:
        """Until L waits for a lock."""
        self.wait_until(lambda: ("ShareLock", False) in self.locks(f"{NAME}.L"))

    def can_write(self, timeout: str = "100ms") -> bool:
        with self.session(autocommit=True) as session:
            session.execute(f"SET lock_timeout = '{timeout}'")
            try:
                session.execute("INSERT INTO notes VALUES ('can I write?')")
            except psycopg.errors.LockNotAvailable:
                return False
            return True


@pytest.fixture(scope="module", params=[pytest.param(15, marks=pytest.mark.soak), 18])
def server(request: pytest.FixtureRequest, sandbox_directory: Path) -> Iterator[PostgresServer]:
    """A server of its own: prepared transactions must be allowed when it starts."""
    directory = sandbox_directory / f"barrier{request.param}"
    settings = {"max_prepared_transactions": "4", "autovacuum": "off"}
    with PostgresServer(directory, major=request.param, durable=False, settings=settings) as server:
        with server.superuser.connect(application_name="test", autocommit=True) as session:
            session.execute("CREATE DATABASE application")
        application = Application(server)
        application.run(
            GRANTS,
            "ALTER ROLE synapse_backup_barrier PASSWORD 'b'",
            "ALTER ROLE synapse_backup_dump PASSWORD 'd'",
        )
        yield server


@pytest.fixture
def application(server: PostgresServer) -> Application:
    application = Application(server)
    application.run(
        "DROP SCHEMA public CASCADE",
        "CREATE SCHEMA public",
        "CREATE TABLE notes (body text)",
        "CREATE TABLE days (day date, body text) PARTITION BY RANGE (day)",
        "CREATE TABLE days_2026 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
        'CREATE TABLE "Zebra ""x"".y" (body text)',
    )
    return application


@pytest.mark.requirement("R4.3")
def test_writes_stop_and_reads_do_not_while_the_moment_is_noted(application: Application) -> None:
    def stopped() -> str:
        assert not application.can_write()
        assert application.run("SELECT count(*) FROM notes") == [(0,)]
        return "noted"

    with application.hold(while_stopped=stopped) as point:
        assert application.can_write()
        assert point.observations == "noted"
        assert point.session.execute("SELECT count(*) FROM notes").fetchone() == (0,)
        with application.session() as other:
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.execute(f"SET TRANSACTION SNAPSHOT '{point.snapshot}'")
            assert other.execute("SELECT count(*) FROM notes").fetchone() == (0,)
    assert application.locks(f"{NAME}.S") == []


def test_the_point_says_where_and_when_it_is(application: Application) -> None:
    before = datetime.now(UTC)
    with application.hold() as point:
        assert before <= point.time <= datetime.now(UTC)
        assert point.time.tzinfo is UTC
        assert point.server.major == application.server.major
        assert point.server.database == "application"
        assert point.server.timeline == 1
        assert int(point.server.system_identifier) > 2**32
        assert point.restore_point == NAME
        assert point.tries == 1
        assert point.relations.lockable == application.lockable()
        assert application.run(f"SELECT pg_current_wal_insert_lsn() >= '{point.lsn}'") == [(True,)]
        assert 0 < point.held <= point.stopped < 5
        assert point.session.execute("SHOW statement_timeout").fetchone() == ("0",)


@pytest.mark.requirement("R4.3")
def test_a_transaction_that_was_writing_is_in_the_snapshot(application: Application) -> None:
    with ThreadPoolExecutor(1) as pool, application.session() as writer:
        writer.execute("INSERT INTO notes VALUES ('in flight')")
        held = pool.submit(_read_in_snapshot, application, "SELECT body FROM notes", lock_timeout=timedelta(seconds=5))
        application.wait_for_l()
        writer.commit()
        assert held.result() == [("in flight",)]


def _read_in_snapshot(application: Application, query: str, **changes: object) -> list[tuple]:
    with application.hold(**changes) as point:
        return point.session.execute(query).fetchall()


@pytest.mark.requirement("R4.3")
def test_it_tries_again_after_a_lock_timeout(application: Application) -> None:
    with application.session() as writer:
        writer.execute("INSERT INTO days VALUES ('2026-05-05', 'x')")
        tries = itertools.count(1)

        def list_after_commit(session: psycopg.Connection) -> Relations:
            if next(tries) == 2:
                writer.commit()
            return list_relations(session)

        with application.hold(relations=list_after_commit) as point:
            assert point.tries == 2
            assert point.restore_point == f"{NAME}.2"
            assert point.session.execute("SELECT body FROM days").fetchall() == [("x",)]


@pytest.mark.requirement("R4.3")
def test_a_writer_that_stays_is_named_and_nothing_stays_locked(application: Application) -> None:
    with application.session("nightly import") as writer:
        writer.execute("INSERT INTO days VALUES ('2026-05-05', 'a very long statement indeed')" + " " * 20)
        pid = writer.info.backend_pid
        with pytest.raises(WritersInTheWay) as caught, application.hold():
            pass
        assert f"Process {pid} (nightly import, postgres)" in caught.value.what
        assert "public.days" in caught.value.what
        assert "idle in transaction: INSERT INTO days" in caught.value.what
        assert "lock timeout" in caught.value.what
        assert f"pg_terminate_backend({pid})" in caught.value.mend
        assert [blocker.pid for blocker in caught.value.blockers] == [pid]
        assert application.can_write()


def test_a_prepared_transaction_is_named_by_its_gid(application: Application) -> None:
    application.run("BEGIN", "INSERT INTO notes VALUES ('x')", "PREPARE TRANSACTION 'forgotten'")
    try:
        with pytest.raises(WritersInTheWay) as caught, application.hold():
            pass
        assert "Prepared transaction 'forgotten' of postgres (pid 0)" in caught.value.what
        assert "ROLLBACK PREPARED 'forgotten'" in caught.value.mend
    finally:
        application.run("ROLLBACK PREPARED 'forgotten'")


def test_who_waits_before_the_barrier_is_named_with_whom_it_waits_for(application: Application) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        application.session("migration") as migration,
        application.session("report") as reader,
    ):
        reader.execute("SELECT * FROM notes")
        altering = pool.submit(migration.execute, "ALTER TABLE notes ADD COLUMN more text")
        application.wait_until(lambda: ("AccessExclusiveLock", False) in application.locks("migration"))
        with pytest.raises(WritersInTheWay, match="migration") as caught, application.hold():
            pass
        assert caught.value.blockers[0].waits_for == (reader.info.backend_pid,)
        assert "ACCESS SHARE" in caught.value.what
        assert "ALTER TABLE notes" in caught.value.what
        reader.rollback()
        altering.result()


@pytest.mark.requirement("R4.3")
def test_the_barrier_and_not_the_application_is_the_victim_of_a_deadlock(application: Application) -> None:
    """L has aaa and waits for bbb; the application has ccc and waits for aaa; then L comes to wait for ccc.

    The application checks for a deadlock a second after it began to wait, before L would without its own short timeout.
    """
    application.run(*(f"CREATE TABLE {name} (x int)" for name in ("aaa", "bbb", "ccc")))
    with ThreadPoolExecutor(2) as pool, application.session() as other, application.session("writer") as writer:
        other.execute("INSERT INTO bbb VALUES (1)")
        writer.execute("INSERT INTO ccc VALUES (1)")
        count = "SELECT (SELECT count(*) FROM aaa), (SELECT count(*) FROM bbb), (SELECT count(*) FROM ccc)"
        held = pool.submit(_read_in_snapshot, application, count, tries=10, lock_timeout=timedelta(seconds=5))
        application.wait_for_l()
        writing = pool.submit(writer.execute, "INSERT INTO aaa VALUES (1)")
        application.wait_until(lambda: ("RowExclusiveLock", False) in application.locks("writer"))
        other.commit()
        writing.result()
        writer.commit()
        assert held.result() == [(1, 1, 1)]


@pytest.mark.requirement("R4.3")
def test_a_deadlock_that_closes_late_does_not_end_the_application_either(application: Application) -> None:
    """L has looked for a deadlock, found none, and waits on; only then does the application wait for L."""
    application.run(*(f"CREATE TABLE {name} (x int)" for name in ("aaa", "bbb")))
    with ThreadPoolExecutor(1) as pool, application.session("writer") as writer:
        writer.execute("INSERT INTO bbb VALUES (1)")
        count = "SELECT (SELECT count(*) FROM aaa), (SELECT count(*) FROM bbb)"
        held = pool.submit(_read_in_snapshot, application, count, tries=10, lock_timeout=timedelta(seconds=5))
        application.wait_for_l()
        application.run("SELECT pg_sleep(0.1)")  # five times L's deadlock_timeout
        writer.execute("INSERT INTO aaa VALUES (1)")
        writer.commit()
        assert held.result() == [(1, 1)]


@pytest.mark.requirement("R4.3")
def test_a_table_made_while_locking_voids_the_point(application: Application) -> None:
    calls = itertools.count(1)

    def list_then_create(session: psycopg.Connection) -> Relations:
        listed = list_relations(session)
        if next(calls) == 1:
            application.run("CREATE TABLE late AS SELECT 1 AS x")
        return listed

    with application.hold(relations=list_then_create) as point:
        assert point.tries == 2
        assert "public.late" in map(str, point.relations.tables)


def test_tables_that_never_stop_coming_are_named(application: Application) -> None:
    names = itertools.count(1)

    def list_then_create(session: psycopg.Connection) -> Relations:
        listed = list_relations(session)
        application.run(f"CREATE TABLE staging_{next(names)} (x int)")
        return listed

    with pytest.raises(WritersInTheWay, match=r"list.*changed.*staging_"), application.hold(relations=list_then_create):
        pass
    assert application.can_write()


def test_a_table_dropped_before_it_is_locked_is_another_try(application: Application) -> None:
    calls = itertools.count(1)

    def list_then_drop(session: psycopg.Connection) -> Relations:
        listed = list_relations(session)
        if next(calls) == 1:
            application.run("DROP TABLE days")
        return listed

    with application.hold(relations=list_then_drop) as point:
        assert point.tries == 2


def test_an_error_while_stopped_is_raised_and_frees_writers(application: Application) -> None:
    def fails() -> None:
        raise ConnectionError("the object store is away")

    with pytest.raises(ConnectionError, match="object store"), application.hold(while_stopped=fails):
        pass
    assert application.can_write()


@pytest.mark.requirement("R4.3")
def test_a_barrier_held_too_long_is_ended_by_the_server_and_void(application: Application) -> None:
    def dawdle() -> None:
        application.wait_until(lambda: application.locks(f"{NAME}.L") == [])
        assert application.can_write()

    bounded = application.hold(while_stopped=dawdle, idle_timeout=timedelta(milliseconds=200))
    with pytest.raises(PointVoid, match="void"), bounded:
        pass


def test_two_connections_that_mean_two_databases_are_refused(application: Application) -> None:
    application.barrier = application.barrier.with_database("postgres")
    with pytest.raises(BackupError, match=r"reaches database application .* database postgres"), application.hold():
        pass


def test_a_name_too_long_for_a_restore_point_is_refused(application: Application) -> None:
    with pytest.raises(BackupError, match="64 bytes"), application.hold(name="n" * 62):
        pass


HOLDER = """
import sys
from datetime import timedelta
from include.policy import Barrier
from include.sources.postgres.barrier import hold_consistency_point
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.relations import list_relations

host, port, name = sys.argv[1:]
logins = [
    DatabaseLogin(host, int(port), user, password, "application")
    for user, password in (("synapse_backup_barrier", "b"), ("synapse_backup_dump", "d"))
]
policy = Barrier(
    lock_timeout=timedelta(seconds=1),
    deadlock_timeout=timedelta(milliseconds=20),
    statement_timeout=timedelta(minutes=1),
    idle_timeout=timedelta(minutes=1),
    tries=1,
    backoff=timedelta(seconds=1),
    long_running=timedelta(minutes=1),
)
def hang():
    print("stopped", flush=True)
    sys.stdin.read()
with hold_consistency_point(*logins, name=name, relations=list_relations, policy=policy, while_stopped=hang):
    pass
"""


@contextmanager
def stray_holder(application: Application, name: str = NAME) -> Iterator[subprocess.Popen[str]]:
    """Another process that has stopped writes and hangs."""
    login = application.barrier
    argv = [sys.executable, "-c", HOLDER, login.host, str(login.port), name]
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    ) as holder:
        try:
            assert holder.stdout.readline() == "stopped\n", holder.stderr.read()
            yield holder
        finally:
            holder.kill()


@pytest.mark.requirement("R4.3")
def test_a_killed_holder_frees_writers(application: Application) -> None:
    with stray_holder(application) as holder:
        assert not application.can_write()
        holder.send_signal(signal.SIGKILL)
        started = time.monotonic()
        assert application.can_write(timeout="5s")
        freed = time.monotonic() - started
    print(f"\nPostgreSQL {application.server.major}: writers free {freed * 1000:.0f} ms after SIGKILL")
    assert freed < 2


@pytest.mark.requirement("R4.3")
def test_release_writes_ends_a_stray_holder_of_this_backup_only(application: Application) -> None:
    with stray_holder(application):
        assert release_writes(application.barrier, "full-20261122T00000_Z") == []  # no pattern
        assert release_writes(application.barrier, "full-20261122") == []  # no prefix of an id
        assert not application.can_write()
        released = release_writes(application.barrier, BACKUP_ID)
        assert [session.application for session in released] == [f"{NAME}.L"]
        assert "notes" in released[0].tables
        assert application.can_write()
        assert release_writes(application.barrier, BACKUP_ID) == []


def test_release_writes_leaves_a_point_whose_writes_flow_alone(application: Application) -> None:
    with application.hold() as point:
        assert release_writes(application.barrier, BACKUP_ID) == []
        assert point.session.execute("SELECT count(*) FROM notes").fetchone() == (0,)


def test_release_writes_says_when_it_cannot(application: Application) -> None:
    with application.session(f"{NAME}.L") as superuser:
        superuser.execute("LOCK TABLE notes IN SHARE MODE")
        with pytest.raises(WritesStillStopped, match=str(superuser.info.backend_pid)):
            release_writes(application.barrier, BACKUP_ID)


@pytest.mark.requirement("R4.3")
def test_long_writers_are_found_before_the_barrier_is_tried(application: Application) -> None:
    tables = application.lockable()
    assert find_blockers(application.barrier, tables, timedelta(0)) == []
    with application.session("import") as writer:
        writer.execute("INSERT INTO notes VALUES ('x')")
        (blocker,) = find_blockers(application.barrier, tables, timedelta(0))
        assert (blocker.pid, blocker.application, blocker.tables) == (
            writer.info.backend_pid,
            "import",
            ("public.notes",),
        )
        assert blocker.query == "INSERT INTO notes VALUES ('x')"
        assert find_blockers(application.barrier, tables, timedelta(hours=1)) == []


def test_a_reader_is_no_blocker(application: Application) -> None:
    with application.session() as reader:
        reader.execute("SELECT * FROM notes")
        assert find_blockers(application.barrier, application.lockable(), timedelta(0)) == []
        with application.hold() as point:
            assert point.tries == 1


@pytest.fixture
def load(application: Application, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """16 pgbench clients that write for five seconds, each transaction's latency in a log."""
    pgbench = find_tools(application.server.major).pgbench
    environment = application.owner.environment("pgbench")
    subprocess.run([pgbench, "-i", "-s", "4", "-q"], env=environment, check=True, capture_output=True)
    argv = [pgbench, "-n", "-c", "16", "-j", "2", "-T", "5", "--log", "--log-prefix", str(tmp_path / "log")]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as bench:
        try:
            yield bench
        finally:
            bench.kill()


@pytest.mark.requirement("R4.3")
def test_write_stop_under_load(application: Application, load: subprocess.Popen[str], tmp_path: Path) -> None:
    application.wait_until(lambda: application.run("SELECT count(*) > 100 FROM pgbench_history") == [(True,)])
    points = [_point_of_balance(application) for _ in range(10)]
    said = load.communicate()[0]
    assert load.returncode == 0, said
    latencies = sorted(int(line.split()[2]) / 1000 for log in tmp_path.glob("log*") for line in log.open())
    waited, held = [sorted(getattr(point, name) * 1000 for point in points) for name in ("waited", "held")]
    p50, p99 = (latencies[len(latencies) * share // 100] for share in (50, 99))
    print(
        f"\nPostgreSQL {application.server.major}, 16 pgbench clients, {len(latencies)} transactions, 10 points:"
        f" waited {waited[5]:.0f} ms (worst {waited[-1]:.0f}), held {held[5]:.0f} ms (worst {held[-1]:.0f});"
        f" transactions p50 {p50:.0f} ms, p99 {p99:.0f} ms, worst {latencies[-1]:.0f} ms"
    )
    assert "number of failed transactions: 0 " in said
    assert held[-1] < 1000
    assert p99 < 1000


def _point_of_balance(application: Application) -> ConsistencyPoint[None]:
    """Take a point and prove that it is one: pgbench moves the same amount in all four tables of a transaction."""
    with application.hold(tries=5) as point:
        (balanced,) = point.session.execute(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)"
            " AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history)"
        ).fetchone()
        assert balanced
        return point

"""The anchor slot keeps the WAL that is not durable yet, through everything that happens to a server (R1.2, R5.5)."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from include.repository.lsn import Lsn
from include.sandbox.postgres import PostgresServer
from include.sources.postgres.slots import (
    ANCHOR,
    AnchorLost,
    ChainBusy,
    ChainLockLost,
    NoSlotLeft,
    advance_anchor,
    chain_lock,
    copied_slot,
    drop_inactive_copies,
    find_anchor,
    renew_anchor,
    secure_anchor,
)
from tests.replication import Cluster

AT_ONCE = timedelta(0)
ATTEMPT = "0123456789abcdef"
SETTINGS = {
    "max_replication_slots": "3",
    "max_slot_wal_keep_size": "-1",
    "min_wal_size": "32MB",
    "max_wal_size": "64MB",
    "autovacuum": "off",
}


@pytest.fixture(scope="module", params=[15, 18])
def servers(request: pytest.FixtureRequest, sandbox_directory: Path) -> Iterator[Cluster]:
    directory = sandbox_directory / f"slots-{request.param}"
    with PostgresServer(directory, major=request.param, durable=False, settings=SETTINGS) as server:
        yield Cluster(server)


@pytest.fixture
def cluster(servers: Cluster) -> Iterator[Cluster]:
    yield servers
    if not servers.server.running:
        servers.server.start()
    servers.run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


@pytest.fixture
def session(cluster: Cluster) -> Iterator[psycopg.Connection]:
    with cluster.session() as session:
        yield session


def test_the_anchor_is_made_once_and_keeps_the_wal_from_then_on(cluster: Cluster, session: psycopg.Connection) -> None:
    assert find_anchor(session) is None
    made = secure_anchor(session)
    assert (made.made, made.lost, made.wal_status, made.safe_wal_size) == (True, False, "reserved", None)
    assert made.restart_lsn is not None
    assert made.restart_lsn <= cluster.position()

    again = secure_anchor(session)
    assert (again.made, again.restart_lsn) == (False, made.restart_lsn)
    for _ in range(8):
        cluster.fill(1)
        cluster.switch()
    cluster.run("CHECKPOINT")
    assert cluster.value(f"SELECT count(*) FROM pg_ls_waldir() WHERE name = '{cluster.segment(made.restart_lsn)}'") == 1


def test_the_anchor_advances_stays_and_never_goes_back(
    cluster: Cluster, session: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    start = secure_anchor(session).restart_lsn
    assert start is not None
    cluster.fill(1)
    boundary = cluster.switch()
    assert advance_anchor(session, boundary) == boundary
    assert caplog.text == ""
    assert advance_anchor(session, boundary) == boundary
    assert caplog.text == ""
    assert advance_anchor(session, start) == boundary
    assert f"The anchor stays at {boundary}: {start} is behind it" in caplog.text
    assert find_anchor(session).restart_lsn == boundary
    assert boundary <= advance_anchor(session, Lsn(boundary + (1 << 40))) <= cluster.position()


@pytest.mark.requirement("R4.4")
def test_a_crash_may_take_the_anchor_back_and_a_restart_does_not(cluster: Cluster, session: psycopg.Connection) -> None:
    before = secure_anchor(session).restart_lsn
    cluster.run("CHECKPOINT")
    cluster.fill(1)
    boundary = cluster.switch()
    assert advance_anchor(session, boundary) == boundary
    cluster.server.crash()
    cluster.server.start()
    with cluster.session() as after:
        assert find_anchor(after).restart_lsn == before
        assert advance_anchor(after, boundary) == boundary
    cluster.server.restart()
    with cluster.session() as after:
        assert find_anchor(after).restart_lsn == boundary


@pytest.mark.requirement("R4.4")
def test_a_dropped_anchor_is_told_and_made_again(cluster: Cluster, session: psycopg.Connection) -> None:
    secure_anchor(session)
    cluster.run(f"SELECT pg_drop_replication_slot('{ANCHOR}')")
    with pytest.raises(AnchorLost, match="is not there"):
        advance_anchor(session, cluster.position())
    with pytest.raises(AnchorLost, match="is not there"), copied_slot(session, "window", ATTEMPT):
        pass
    assert secure_anchor(session).made


@pytest.mark.requirement("R4.4")
def test_a_lost_anchor_is_told_and_made_again_only_on_demand(cluster: Cluster, session: psycopg.Connection) -> None:
    lost_at = secure_anchor(session).restart_lsn
    assert lost_at is not None
    cluster.fill(1)
    cluster.run("CHECKPOINT")
    assert renew_anchor(session).restart_lsn == lost_at  # not lost: left alone
    cluster.run("ALTER SYSTEM SET max_slot_wal_keep_size = '32MB'", "SELECT pg_reload_conf()")
    try:
        endangered = secure_anchor(session)
        while endangered.safe_wal_size is None:  # the reload has not been heard yet
            endangered = secure_anchor(session)
        assert 0 < endangered.safe_wal_size <= 64 << 20
        while not (state := secure_anchor(session)).lost:
            cluster.fill(8)
            cluster.switch()
            cluster.run("CHECKPOINT")
    finally:
        cluster.run("ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")
    assert (state.made, state.wal_status, state.restart_lsn) == (False, "lost", None)
    assert state.reason == ("wal_removed" if cluster.server.major >= 17 else None)
    with pytest.raises(AnchorLost, match="has given up the WAL"):
        advance_anchor(session, cluster.position())
    with pytest.raises(AnchorLost, match="has given up the WAL"), copied_slot(session, "window", ATTEMPT):
        pass

    renewed = renew_anchor(session)
    assert (renewed.made, renewed.lost) == (True, False)
    assert renewed.restart_lsn > lost_at


def test_a_server_that_ends_idle_slots_is_told_as_the_reason(cluster: Cluster, session: psycopg.Connection) -> None:
    """From PostgreSQL 18 on; moving the anchor counts as using it."""
    if cluster.server.major < 18:
        assert cluster.run("SELECT 1 FROM pg_settings WHERE name = 'idle_replication_slot_timeout'") == []
        return
    secure_anchor(session)
    cluster.fill(1)
    cluster.switch()
    cluster.run("ALTER SYSTEM SET idle_replication_slot_timeout = '1s'", "SELECT pg_reload_conf()")
    try:
        while not secure_anchor(session).lost:
            cluster.run("CHECKPOINT")
    finally:
        cluster.run("ALTER SYSTEM RESET idle_replication_slot_timeout", "SELECT pg_reload_conf()")
    assert secure_anchor(session).reason == "idle_timeout"


def test_a_copy_begins_where_the_anchor_is_and_goes_with_its_try(cluster: Cluster, session: psycopg.Connection) -> None:
    start = secure_anchor(session).restart_lsn
    with copied_slot(session, "window", ATTEMPT) as name:
        assert name == f"synapse_backup_window_{ATTEMPT}"
        found = cluster.run(f"SELECT restart_lsn::text, temporary FROM pg_replication_slots WHERE slot_name = '{name}'")
        assert found == [(str(start), False)]
    assert cluster.slots() == {ANCHOR}
    with pytest.raises(ZeroDivisionError), copied_slot(session, "window", ATTEMPT):
        raise ZeroDivisionError
    assert cluster.slots() == {ANCHOR}


def test_a_copy_that_is_streamed_from_is_dropped_too(cluster: Cluster, session: psycopg.Connection) -> None:
    secure_anchor(session)
    with ExitStack() as stack:
        with copied_slot(session, "stream", ATTEMPT) as name:
            argv = [cluster.tools.pg_receivewal, "-D", str(cluster.server.directory), "-S", name, "--no-loop", "-w"]
            streaming = subprocess.Popen(argv, env=cluster.login.environment(), stderr=subprocess.DEVNULL)
            stack.callback(streaming.wait)
            stack.callback(streaming.kill)
            while not cluster.value(f"SELECT active FROM pg_replication_slots WHERE slot_name = '{name}'"):
                assert streaming.poll() is None
        assert cluster.slots() == {ANCHOR}


def test_copies_that_dead_tries_left_are_dropped_and_no_others(cluster: Cluster, session: psycopg.Connection) -> None:
    secure_anchor(session)
    for name in ("synapse_backup_window_dead", "synapse_backup_stream_dead"):
        session.execute("SELECT pg_copy_physical_replication_slot(%s, %s)", [ANCHOR, name])
    assert drop_inactive_copies(session, "window") == ["synapse_backup_window_dead"]
    assert cluster.slots() == {ANCHOR, "synapse_backup_stream_dead"}
    assert drop_inactive_copies(session, "window") == []
    assert drop_inactive_copies(session, "stream") == ["synapse_backup_stream_dead"]


def test_a_server_without_a_free_slot_is_named(cluster: Cluster, session: psycopg.Connection) -> None:
    secure_anchor(session)
    for number in (1, 2):
        session.execute("SELECT pg_copy_physical_replication_slot(%s, %s)", [ANCHOR, f"other_{number}"])
    with pytest.raises(NoSlotLeft, match=f"synapse_backup_window_{ATTEMPT}"), copied_slot(session, "window", ATTEMPT):
        pass
    cluster.run(f"SELECT pg_drop_replication_slot('{ANCHOR}')")
    session.execute("SELECT pg_create_physical_replication_slot('other_3')")
    with pytest.raises(NoSlotLeft, match=ANCHOR):
        secure_anchor(session)


def test_a_copy_outlives_a_server_that_crashed_and_the_next_run_drops_it(
    cluster: Cluster, session: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    secure_anchor(session)
    with copied_slot(session, "window", ATTEMPT) as name:
        cluster.server.crash()
    assert f"The slot {name} stays until the next run drops it" in caplog.text
    cluster.server.start()
    with cluster.session() as after:
        assert drop_inactive_copies(after, "window") == [name]


def test_one_window_and_one_stream_at_a_time(cluster: Cluster) -> None:
    with chain_lock(cluster.login, "window", wait=AT_ONCE, application_name="first") as lock:
        pid = lock.session.info.backend_pid
        for wait in (AT_ONCE, timedelta(milliseconds=50)):
            with (
                pytest.raises(ChainBusy, match=rf"window lock is held by first \(pid {pid}\)"),
                chain_lock(cluster.login, "window", wait=wait),
            ):
                pass
        with chain_lock(cluster.login, "stream", wait=AT_ONCE):
            lock.require()
    with chain_lock(cluster.login, "window", wait=AT_ONCE):
        pass


def test_who_waits_gets_the_lock_when_it_is_let_go(cluster: Cluster) -> None:
    got = threading.Event()

    def second() -> None:
        with chain_lock(cluster.login, "window", wait=timedelta(seconds=30)):
            got.set()

    with chain_lock(cluster.login, "window", wait=AT_ONCE):
        thread = threading.Thread(target=second)
        thread.start()
        while not cluster.run("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            assert thread.is_alive()
        assert not got.is_set()
    thread.join()
    assert got.is_set()


@pytest.mark.requirement("R4.4")
def test_a_lock_whose_session_was_ended_is_noticed(cluster: Cluster) -> None:
    with chain_lock(cluster.login, "window", wait=AT_ONCE) as lock:
        lock.require()
        cluster.run(f"SELECT pg_terminate_backend({lock.session.info.backend_pid}, 5000)")
        with pytest.raises(ChainLockLost, match="window lock has ended"):
            lock.require()
        with chain_lock(cluster.login, "window", wait=AT_ONCE) as other:
            other.require()
            with pytest.raises(ChainLockLost):
                lock.require()


def test_a_lock_ends_with_a_killed_process(cluster: Cluster) -> None:
    script = (
        "import sys\nfrom datetime import timedelta\nfrom include.sources.postgres.login import DatabaseLogin\n"
        "from include.sources.postgres.slots import chain_lock\n"
        f"login = DatabaseLogin('127.0.0.1', {cluster.server.port}, 'synapse_backup_replication', 'r', 'postgres')\n"
        "with chain_lock(login, 'window', wait=timedelta(0)):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ChainBusy), chain_lock(cluster.login, "window", wait=AT_ONCE):
            pass
        process.kill()
    with chain_lock(cluster.login, "window", wait=timedelta(seconds=30)):
        pass


def test_a_server_that_ends_idle_sessions_leaves_the_lock_alone(cluster: Cluster) -> None:
    cluster.run("ALTER ROLE synapse_backup_replication SET idle_session_timeout = '200ms'")
    try:
        with cluster.session() as idle, chain_lock(cluster.login, "window", wait=AT_ONCE) as lock:
            idle_pid = idle.info.backend_pid
            while cluster.run(f"SELECT 1 FROM pg_stat_activity WHERE pid = {idle_pid}"):
                time.sleep(0.02)
            lock.require()
    finally:
        cluster.run("ALTER ROLE synapse_backup_replication RESET idle_session_timeout")

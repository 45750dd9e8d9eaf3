"""WAL is received from exactly where it is missing to exactly a boundary, and nothing passes for it that is not."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from include.repository.lsn import Lsn, segment_start
from include.repository.timelines import TimelineHistory
from include.sandbox.postgres import PostgresServer
from include.sandbox.standby import Standby
from include.sources.postgres import receive
from include.sources.postgres.login import DatabaseUnreachable
from include.sources.postgres.receive import (
    ReceiveFailed,
    Receiver,
    ReceiveStalled,
    WalGone,
    receive_continuously,
    receive_until,
)
from include.sources.postgres.replication import HistoryMissing, identify_system, timeline_history
from include.sources.postgres.slots import ANCHOR, copied_slot, drop_inactive_copies, find_anchor, secure_anchor
from tests.replication import SEGMENT, Cluster

PATIENT, IMPATIENT = timedelta(seconds=30), timedelta(seconds=0.5)
ATTEMPT = "0123456789abcdef"
SETTINGS = {"min_wal_size": "32MB", "max_wal_size": "64MB", "autovacuum": "off", "max_prepared_transactions": "2"}


@pytest.fixture(scope="module", params=[15, 18])
def servers(request: pytest.FixtureRequest, sandbox_directory: Path) -> Iterator[Cluster]:
    directory = sandbox_directory / f"receive-{request.param}"
    with PostgresServer(directory, major=request.param, durable=False, settings=SETTINGS) as server:
        yield Cluster(server)


@pytest.fixture
def cluster(servers: Cluster) -> Iterator[Cluster]:
    if not servers.server.running:
        servers.server.start()
    with servers.session() as session:
        secure_anchor(session)
    servers.run(f"SELECT pg_replication_slot_advance('{ANCHOR}', pg_current_wal_lsn())")
    yield servers
    if not servers.server.running:
        servers.server.start()
    with servers.session() as session:
        drop_inactive_copies(session, "window")
        drop_inactive_copies(session, "stream")


@contextmanager
def copy(cluster: Cluster) -> Iterator[str]:
    with cluster.session() as session, copied_slot(session, "window", ATTEMPT) as name:
        yield name


def anchored_segment(cluster: Cluster) -> str:
    with cluster.session() as session:
        state = find_anchor(session)
        assert state is not None
        assert state.restart_lsn is not None
        return cluster.segment(state.restart_lsn)


def window(cluster: Cluster, directory: Path, start: str, end: Lsn, stall_limit: timedelta = PATIENT) -> Iterator[Path]:
    with copy(cluster) as slot:
        yield from receive_until(
            cluster.tools,
            cluster.login,
            slot=slot,
            start=start,
            end=end,
            segment_bytes=SEGMENT,
            directory=directory,
            stall_limit=stall_limit,
        )


def receivers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name() == "pg_receivewal":
                found.append(child)
    return found


def finish(receiver: Receiver) -> Exception:
    """Why it ended."""
    try:
        for _ in range(30):
            receiver.finished(timedelta(seconds=1))
    except (ReceiveFailed, WalGone) as error:
        return error
    raise AssertionError("it did not end")


@pytest.mark.requirement("R1.2")
def test_a_window_is_whole_segments_as_the_server_has_them(cluster: Cluster, tmp_path: Path) -> None:
    """On an idle server: nothing is written behind the end."""
    start = anchored_segment(cluster)
    cluster.fill(20)
    end = cluster.switch()
    files = list(window(cluster, tmp_path, start, end))
    at = segment_start(Lsn(end - 1), SEGMENT)
    assert [path.name for path in files][0 :: len(files) - 1] == [start, cluster.segment(at)]
    assert len(files) >= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in files]
    for path in files:
        there = cluster.server.data / "pg_wal" / path.name
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(there.read_bytes()).digest()
        assert path.stat().st_mode & 0o777 == 0o600
    assert receivers() == []


def test_a_window_comes_while_writers_write_behind_its_end(cluster: Cluster, tmp_path: Path) -> None:
    start = anchored_segment(cluster)
    end = cluster.switch()
    cluster.fill(20)
    assert [path.name for path in window(cluster, tmp_path, start, end)] == [start]


def test_nothing_is_asked_for_when_the_end_is_the_beginning(cluster: Cluster, tmp_path: Path) -> None:
    end = cluster.switch()
    assert list(window(cluster, tmp_path, cluster.segment(end), end)) == []
    with pytest.raises(ValueError, match="no boundary"):
        list(window(cluster, tmp_path, cluster.segment(end), Lsn(end + 1)))


def test_no_more_is_received_ahead_than_fits(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "ROUND_BYTES", 2 * SEGMENT)
    start = anchored_segment(cluster)
    cluster.fill(60)
    end = cluster.switch()
    names, most = [], 0
    for path in window(cluster, tmp_path, start, end):
        while receivers():  # it may get ahead as far as it can
            pass
        most = max(most, len(list(tmp_path.iterdir())))
        names.append(path.name)
        path.unlink()
    assert most <= 2
    first = int(start[16:], 16)
    assert names == [f"{start[:16]}{number:08X}" for number in range(first, first + len(names))]
    assert len(names) >= 4
    assert names[-1] == cluster.segment(Lsn(end - 1))


def test_a_directory_with_anything_in_it_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """The stream would begin behind what lies there."""
    (tmp_path / "000000010000000000000009").touch()
    with pytest.raises(ReceiveFailed, match="is not empty"):
        list(window(cluster, tmp_path, anchored_segment(cluster), cluster.switch()))


@pytest.mark.requirement("R4.4")
def test_wal_that_the_server_has_removed_is_told_by_name(cluster: Cluster, tmp_path: Path) -> None:
    gone = anchored_segment(cluster)
    cluster.switch()  # it may not have been begun
    while (cluster.server.data / "pg_wal" / gone).exists():
        cluster.fill(4)
        cluster.switch()
        cluster.run(f"SELECT pg_replication_slot_advance('{ANCHOR}', pg_current_wal_lsn())", "CHECKPOINT")
    with pytest.raises(WalGone, match=gone) as raised:
        list(window(cluster, tmp_path, gone, cluster.switch()))
    assert raised.value.segment == gone


@pytest.mark.requirement("R4.4")
def test_an_end_that_does_not_come_is_a_stall(cluster: Cluster, tmp_path: Path) -> None:
    """An idle server never reaches a boundary that nobody switched to."""
    start = anchored_segment(cluster)
    end = cluster.switch()
    received = []
    with pytest.raises(ReceiveStalled, match=r"received nothing for 0.5 s"):
        received.extend(window(cluster, tmp_path, start, Lsn(end + SEGMENT), IMPATIENT))
    assert receivers() == []


def test_a_wrong_password_is_told_and_not_repeated(cluster: Cluster, tmp_path: Path) -> None:
    login = cluster.server.login("synapse_backup_replication", "a-wrong-secret")
    with (
        pytest.raises(ReceiveFailed, match="password authentication failed") as raised,
        receive_continuously(
            cluster.tools, login, slot=ANCHOR, start=anchored_segment(cluster), directory=tmp_path
        ) as receiver,
    ):
        while True:
            receiver.finished(PATIENT)
    assert "a-wrong-secret" not in str(raised.value)


def test_a_slot_that_is_not_there_is_told(cluster: Cluster, tmp_path: Path) -> None:
    stream = receive_continuously(
        cluster.tools, cluster.login, slot="dropped", start=anchored_segment(cluster), directory=tmp_path
    )
    with stream as receiver, pytest.raises(ReceiveFailed, match='"dropped" does not exist'):
        receiver.finished(PATIENT)


def test_the_stream_hands_on_each_segment_when_it_is_finished(cluster: Cluster, tmp_path: Path) -> None:
    start = anchored_segment(cluster)
    with (
        copy(cluster) as slot,
        receive_continuously(
            cluster.tools, cluster.login, slot=slot, start=start, directory=tmp_path, application_name="here"
        ) as receiver,
    ):
        assert receiver.finished(timedelta(0)) == []
        for _ in range(3):
            end = cluster.switch()
            cluster.fill(0.1)
            assert [path.name for path in receiver.finished(PATIENT)] == [cluster.segment(Lsn(end - 1))]
            (tmp_path / cluster.segment(Lsn(end - 1))).unlink()
        assert cluster.value("SELECT application_name FROM pg_stat_replication") == "here"
        argv = " ".join(psutil.Process(receiver.pid).cmdline())
        assert "password=" not in argv
        assert receiver.pid in {child.pid for child in receivers()}
    assert receivers() == []


@pytest.mark.requirement("R4.4")
@pytest.mark.parametrize("how", ["restart", "crash", "dropped sender", "killed", "interrupted"])
def test_a_stream_that_ended_says_so_after_its_last_segment(cluster: Cluster, tmp_path: Path, how: str) -> None:
    start = anchored_segment(cluster)
    with (
        copy(cluster) as slot,
        receive_continuously(cluster.tools, cluster.login, slot=slot, start=start, directory=tmp_path) as receiver,
    ):
        end = cluster.switch()
        while not (tmp_path / cluster.segment(Lsn(end - 1))).exists():
            assert psutil.pid_exists(receiver.pid)
        match how:
            case "restart":
                cluster.server.restart()
            case "crash":
                cluster.server.crash()
            case "dropped sender":
                cluster.run("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_replication")
            case "killed":
                os.kill(receiver.pid, signal.SIGKILL)
            case "interrupted":
                os.kill(receiver.pid, signal.SIGINT)
        assert receiver.finished(PATIENT)[-1].name == cluster.segment(Lsn(end - 1))
        error = finish(receiver)
    assert isinstance(error, ReceiveFailed)
    assert {"killed": "exit code -9", "interrupted": "exit code 0: "}.get(how, "exit code 1: ") in error.what


@pytest.mark.requirement("R4.4")
def test_a_window_whose_receiver_ended_well_too_early_has_no_end(cluster: Cluster, tmp_path: Path) -> None:
    start = anchored_segment(cluster)
    end = cluster.switch()
    files = window(cluster, tmp_path, start, Lsn(end + SEGMENT))
    assert next(files).name == start
    for receiver in receivers():
        receiver.send_signal(signal.SIGINT)
    with pytest.raises(ReceiveFailed, match=f"ended at {end}, before {Lsn(end + SEGMENT)}"):
        next(files)


@pytest.mark.requirement("R4.4")
def test_a_stream_goes_on_after_a_crash_where_it_was(cluster: Cluster, tmp_path: Path) -> None:
    start = anchored_segment(cluster)
    first = cluster.switch()
    cluster.fill(1)
    cluster.server.crash()
    cluster.server.start()
    cluster.fill(1)
    end = cluster.switch()
    assert [path.name for path in window(cluster, tmp_path, start, end)] == [start, cluster.segment(first)]


@pytest.mark.requirement("R4.4")
def test_a_receiver_does_not_outlive_a_killed_process(cluster: Cluster, tmp_path: Path) -> None:
    """An orphan would stream for ever, and keep its slot active."""
    script = f"""
import sys
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.receive import receive_continuously
from include.sources.postgres.tools import find_tools
login = DatabaseLogin("127.0.0.1", {cluster.server.port}, "synapse_backup_replication", "r", "postgres")
stream = receive_continuously(
    find_tools({cluster.server.major}), login, slot={ANCHOR!r}, start={anchored_segment(cluster)!r},
    directory=Path({str(tmp_path)!r}),
)
with ThreadPoolExecutor(1) as pool:
    receiver = pool.submit(stream.__enter__).result()  # by a thread that ends before the stream does
print(receiver.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        active = f"SELECT active FROM pg_replication_slots WHERE slot_name = '{ANCHOR}'"
        while not cluster.value(active):
            assert psutil.pid_exists(pid)
        receiver = psutil.Process(pid)
        process.kill()
    receiver.wait(timeout=10)
    while cluster.value(active):
        pass


@pytest.mark.requirement("R4.4")
def test_a_promoted_standby_goes_on_on_its_own_timeline(cluster: Cluster, tmp_path: Path) -> None:
    assert timeline_history(cluster.login, 1) is None
    with pytest.raises(HistoryMissing, match="TIMELINE_HISTORY 2"):
        timeline_history(cluster.login, 2)
    before = identify_system(cluster.login)
    directory = tmp_path_of(cluster, "standby")
    with Standby(directory, cluster.server) as standby:
        follower = Cluster.__new__(Cluster)
        follower.server = standby
        assert identify_system(follower.login).system_identifier == before.system_identifier
        with follower.session() as session:
            start = secure_anchor(session).restart_lsn
        assert start is not None
        cluster.switch()
        written = cluster.position()
        while identify_system(follower.login).flushed < written:
            pass
        standby.promote()
        follower.fill(1)
        end = follower.switch()

        after = identify_system(follower.login)
        assert (after.system_identifier, after.timeline) == (before.system_identifier, 2)
        text = timeline_history(follower.login, 2)
        assert text is not None
        history = TimelineHistory.parse(2, text)
        spool = tmp_path / "spool"
        spool.mkdir()
        names = [path.name for path in window(follower, spool, follower.segment(segment_start(start, SEGMENT)), end)]
        segments = list(history.segment_names(segment_start(start, SEGMENT), end, SEGMENT))
        assert names == sorted([*segments, "00000002.history"])
        assert (spool / "00000002.history").read_text() == text
        assert {name[:8] for name in segments} == {"00000001", "00000002"}


def test_a_login_without_the_right_is_told(cluster: Cluster) -> None:
    cluster.run("DROP ROLE IF EXISTS nobody", "CREATE ROLE nobody LOGIN PASSWORD 'n'")
    with pytest.raises(DatabaseUnreachable, match="Give this user the attribute REPLICATION"):
        identify_system(cluster.server.login("nobody", "n"))


def tmp_path_of(cluster: Cluster, name: str) -> Path:
    """Beside the server, where PostgreSQL may pass."""
    return cluster.server.directory.with_name(f"{cluster.server.directory.name}-{name}")

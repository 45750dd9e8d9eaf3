"""WAL between the hours: shipped within the promise, by one stream at a time, and nothing hangs on its life."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from include.backup import stream
from include.backup.stream import Shipments, ship_continuously
from include.pipeline.store import StoreAway
from include.policy import Policy, load_policy
from include.repository.catalog import Catalog
from include.repository.lsn import Lsn, segment_name, segment_start
from include.repository.replica import Replica
from include.repository.wal import WalArchive
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.login import DatabaseUnreachable

SEGMENT = 16 << 20
PROMISE = timedelta(seconds=2)
SEED = int(os.environ.get("STREAM_SEED", "20261123"))


@pytest.fixture(scope="module")
def installation(sandbox_directory: Path, s3_primary: S3Server, s3_replica: S3Server) -> Iterator[Installation]:
    """On a server of its own, which is crashed here."""
    directory = sandbox_directory / "stream"
    directory.mkdir()
    with PostgresServer(directory / "postgres", major=18, settings={"autovacuum": "off"}) as server:
        yield Installation.make(
            directory, postgres=server, primary=s3_primary, replica=s3_replica, suffix="-stream", scale=0.01
        )


@pytest.fixture
def policy() -> Policy:
    policy = load_policy()
    incremental = policy.backups.incremental.model_copy(update={"shipped_within": PROMISE})
    return policy.model_copy(update={"backups": policy.backups.model_copy(update={"incremental": incremental})})


@pytest.fixture
def spool() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="stream-"))
    yield directory / "spool"
    shutil.rmtree(directory)


class Log:
    """The server's log, and what of it is in the bucket."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation

    def value(self, statement: str) -> str:
        with self.installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
            row = session.execute(statement.encode()).fetchone()
        assert row is not None
        return str(row[0])

    def write(self) -> str:
        """Commit something; returns the segment that it is in."""
        self.value("SELECT pg_logical_emit_message(true, 'test', repeat('x', 2000))")
        return self.segment(Lsn.parse(self.value("SELECT (pg_current_wal_insert_lsn() - 1)::text")))

    def segment(self, lsn: Lsn) -> str:
        return segment_name(1, lsn, SEGMENT)

    def shipped(self) -> set[str]:
        return self._in(self.installation.catalog())

    def replicated(self) -> set[str]:
        """What of it is in the second region."""
        return self._in(self.installation.replica_catalog())

    def _in(self, catalog: Catalog) -> set[str]:
        system = self.value("SELECT system_identifier FROM pg_control_system()")
        return set(WalArchive(catalog.bucket, catalog.keyring, system, policy=load_policy().pipeline).shipped())

    def from_anchor(self) -> list[str]:
        """Every segment from the anchor to the end of the last whole one."""
        start = Lsn.parse(
            self.value("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'synapse_backup_anchor'")
        )
        end = segment_start(Lsn.parse(self.value("SELECT pg_current_wal_insert_lsn()::text")), SEGMENT)
        return [self.segment(Lsn(at)) for at in range(segment_start(start, SEGMENT), end, SEGMENT)]

    def copies(self) -> int:
        return int(
            self.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'synapse_backup_stream%'")
        )


@pytest.fixture
def log(installation: Installation) -> Log:
    return Log(installation)


@contextmanager
def streaming(installation: Installation, policy: Policy, spool: Path) -> Iterator[Shipments]:
    """A stream in a thread; its `Shipments` are complete when the block has ended."""
    over, made = threading.Event(), Shipments()
    application, catalog, replica = installation.application(), installation.catalog(), installation.replica_catalog()
    outcome: list[Shipments | BaseException] = []

    def run() -> None:
        try:
            outcome.append(ship_continuously(application, catalog, policy, replica=replica, spool=spool, until=over))
        except BaseException as failure:
            outcome.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield made
    finally:
        over.set()
        thread.join(30)
    assert not thread.is_alive()
    [done] = outcome
    if isinstance(done, BaseException):
        raise done
    vars(made).update(vars(done))


def until(condition: Callable[[], bool], *, within: float) -> float:
    """Wait for something to become true; returns the seconds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within:
            raise TimeoutError(f"not within {within} s")
        time.sleep(0.05)
    return time.monotonic() - began


def pass_by(seconds: float) -> None:
    """Let time go by, where nothing must happen or anything may."""
    ends = time.monotonic() + seconds
    until(lambda: time.monotonic() > ends, within=seconds + 5)


def receivers() -> list[psutil.Process]:
    """The children that receive log; one that has just ended is none."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name() == "pg_receivewal":
                found.append(child)
    return found


@pytest.mark.requirement("R5.5")
def test_what_is_written_is_in_the_bucket_within_the_promise(
    installation: Installation, policy: Policy, spool: Path, log: Log
) -> None:
    with streaming(installation, policy, spool) as done:
        until(lambda: log.copies() == 1, within=10)
        for _ in range(2):
            segment = log.write()
            until(lambda wanted=segment: wanted in log.shipped(), within=4 * PROMISE.total_seconds())
        assert log.from_anchor()
        assert set(log.from_anchor()) <= log.shipped()
        # On an idle server nothing is ended, nothing is shipped, though it notes what nobody has to hear of.
        log.value("SELECT pg_log_standby_snapshot()")
        before, at = log.shipped(), log.segment(Lsn.parse(log.value("SELECT pg_current_wal_insert_lsn()::text")))
        pass_by(2 * PROMISE.total_seconds())
        assert log.segment(Lsn.parse(log.value("SELECT pg_current_wal_insert_lsn()::text"))) == at
        assert log.shipped() == before
    assert done.interruptions == 0
    assert done.ended_early >= 2
    assert log.copies() == 0


@pytest.mark.requirement("R3.2", "R5.5")
def test_a_replica_that_is_away_keeps_nothing_from_the_primary_and_is_caught_up(
    installation: Installation, policy: Policy, spool: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring, away = Replica.bring_log, threading.Event()

    def refuse_while_away(replica: Replica, *arguments: Any) -> Any:
        if away.is_set():
            raise StoreAway("It does not answer.", mend="Wait.", bucket=installation.replica_backups)
        return bring(replica, *arguments)

    monkeypatch.setattr(Replica, "bring_log", refuse_while_away)
    monkeypatch.setattr(stream, "_LONGEST_PAUSE", 0.5)
    away.set()
    with streaming(installation, policy, spool) as done:
        segment = log.write()
        until(lambda: segment in log.shipped(), within=20)
        assert segment not in log.replicated()
        away.clear()
        until(lambda: segment in log.replicated(), within=20)
        another = log.write()
        until(lambda: another in log.replicated(), within=20)
    assert done.interruptions == 0
    assert done.replicated >= 2
    assert set(log.from_anchor()) <= log.replicated()


def test_a_receiver_that_hangs_is_noticed_and_replaced(
    installation: Installation, policy: Policy, spool: Path, log: Log
) -> None:
    """A hung connection looks like a quiet server's, but for the segment that was ended and never comes."""
    pipeline = policy.pipeline.model_copy(update={"stall_limit": timedelta(seconds=3)})
    with streaming(installation, policy.model_copy(update={"pipeline": pipeline}), spool) as done:
        until(lambda: bool(receivers()), within=10)
        [hung] = receivers()
        hung.suspend()
        segment = log.write()
        until(lambda: segment in log.shipped(), within=60)
    assert not hung.is_running()
    assert done.interruptions == 1


def test_a_second_stream_waits_and_goes_on_where_the_first_ended(
    installation: Installation, policy: Policy, spool: Path, log: Log
) -> None:
    with streaming(installation, policy, spool.with_name("second")) as second:
        with streaming(installation, policy, spool) as first:
            first_segment = log.write()
            until(lambda: first_segment in log.shipped(), within=20)
            assert log.copies() == 1
        last_segment = log.write()
        until(lambda: last_segment in log.shipped(), within=20)
    assert first.shipped + second.shipped >= 2
    assert (second.interruptions, second.failure) == (0, None)  # standing by is no failure
    assert set(log.from_anchor()) <= log.shipped()


def test_a_crashed_server_only_interrupts_it(installation: Installation, policy: Policy, spool: Path, log: Log) -> None:
    with streaming(installation, policy, spool) as done:
        until(lambda: log.copies() == 1, within=10)
        log.write()
        installation.postgres.crash()
        installation.postgres.start()
        segment = log.write()
        until(lambda: segment in log.shipped(), within=60)
    assert done.interruptions >= 1
    assert set(log.from_anchor()) <= log.shipped()
    assert log.copies() == 0


def _killed(installation: Installation, policy: Policy, spool: Path, log: Log, rounds: int) -> None:
    """SIGKILL the command line's stream at random moments, its disk thrown away; then one that ends well."""
    rng = random.Random(SEED)
    print(f"STREAM_SEED={SEED}")
    environment = {
        "PATH": os.environ["PATH"],
        **installation.variables(),
        **{f"AIRFLOW_CONN_{name.upper()}": json.dumps(value) for name, value in installation.connections().items()},
    }
    for _ in range(rounds):
        with subprocess.Popen(
            [sys.executable, "-m", "include.cli", "stream", f"--spool={spool}"], env=environment, cwd=Path.cwd()
        ) as process:
            try:
                until(lambda: log.copies() == 1 and spool.exists(), within=60)
                children = psutil.Process(process.pid).children(recursive=True)
                for _ in range(rng.randrange(1, 4)):
                    log.write()
                    log.value("SELECT pg_switch_wal()")
                pass_by(rng.uniform(0, 0.5))
            finally:
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(children, timeout=20)
        assert not [child for child in children if child.is_running()]
        shutil.rmtree(spool, ignore_errors=True)
    with streaming(installation, policy, spool):
        segment = log.write()
        until(lambda: segment in log.shipped(), within=60)
    assert set(log.from_anchor()) <= log.shipped()
    assert log.copies() == 0


def test_killed_at_random_moments_it_leaves_no_hole(
    installation: Installation, policy: Policy, spool: Path, log: Log
) -> None:
    _killed(installation, policy, spool, log, rounds=2)


def test_a_stream_that_could_not_ship_at_its_end_says_so(
    installation: Installation, policy: Policy, spool: Path, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that ended green would hide a server that was away for all of its hour."""
    installation.postgres.crash()
    try:
        with streaming(installation, policy, spool) as done:
            until(lambda: "The stream was interrupted" in caplog.text, within=60)
    finally:
        installation.postgres.start()
    assert isinstance(done.failure, DatabaseUnreachable)
    assert done.shipped == 0
    assert log.copies() == 0


@pytest.mark.soak
def test_killed_a_hundred_times_it_leaves_no_hole(
    installation: Installation, policy: Policy, spool: Path, log: Log
) -> None:
    _killed(installation, policy, spool, log, rounds=100)

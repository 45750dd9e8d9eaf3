"""Windows of the log: contiguous whatever happens, each segment whole in the bucket, nothing left behind."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pytest

from include.backup import increment
from include.backup.adoption import Adopted
from include.backup.increment import NeverKept
from include.backup.stream import ship_continuously
from include.backup.verify import check_integrity, check_sizes
from include.backup.window_proof import check_log
from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.leash import LeashedProcess
from include.pipeline.progress import Progress
from include.pipeline.sealing import StreamRefused
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.chain import ClusterChanged, NoBase, OldPrimary
from include.repository.layout import BackupId
from include.repository.ledger import GapDeclared
from include.repository.lsn import Lsn
from include.repository.manifest import Manifest, Slot, moment_text
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.standby import Standby
from include.sources.objects import Deletion, IndexEntry
from include.sources.postgres import receive
from include.sources.postgres.slots import ANCHOR, copy_name
from include.sources.postgres.tools import find_tools
from include.sources.postgres.waldump import WalBroken
from tests.damage import flip
from tests.windows import HOUR, POLICY, Chain, fresh_bucket

SCALE = 0.02
SEED = int(os.environ.get("BACKUP_KILL_SEED") or secrets.randbelow(10**6))


@pytest.fixture(scope="module")
def installation(sandbox_directory: Path, s3_primary: S3Server, s3_replica: S3Server) -> Iterator[Installation]:
    """On a server of its own, whose slots nobody else has."""
    directory = sandbox_directory / "increment"
    directory.mkdir(mode=0o711)
    with PostgresServer(directory / "postgres", major=18, durable=False) as server:
        yield Installation.make(
            directory, postgres=server, primary=s3_primary, replica=s3_replica, suffix="-increment", scale=SCALE
        )


@pytest.fixture
def chain(installation: Installation, tmp_path: Path) -> Iterator[Chain]:
    """A chain that begins in this test: the buckets are fresh, the server is the module's."""
    keyring = Keyring.load(installation.keyring)
    primary, replica = (fresh_bucket(server) for server in (installation.primary, installation.replica))
    made = Chain(installation, Catalog(primary, keyring), tmp_path, replica=Catalog(replica, keyring))
    yield made
    assert made.slots() <= {ANCHOR}
    made.sql(f"SELECT pg_drop_replication_slot('{ANCHOR}') FROM pg_replication_slots")


@pytest.mark.requirement("R1.2")
def test_windows_follow_each_other_without_a_hole(chain: Chain) -> None:
    with pytest.raises(NoBase, match="no base to stand on"):
        chain.increment()
    base = chain.base()
    first = chain.increment()
    chain.write(3)
    chain.sql(f"SELECT pg_copy_physical_replication_slot('{ANCHOR}', '{copy_name('window', 'f' * 16)}')")
    second = chain.increment()  # which drops what a dead try left
    idle = chain.increment()
    chain.whole(base, first, second, idle)
    assert idle.wal is not None
    chain.replicate(idle)
    assert chain.sql("SELECT restart_lsn::text FROM pg_replication_slots") == [(str(idle.wal.end_lsn),)]
    told = json.loads(chain.cli("windows", "--json"))
    assert told["newest"]["backup"] == idle.id
    assert told["newest"]["reaches"] == str(idle.wal.end_lsn)
    assert {each["state"] for each in told["slots"]} == {"missing"}  # the schedule is the policy's, these are by hand
    assert len(told["slots"]) in range(7 * 24 - 1, 7 * 24 + 1)
    assert f"newest recoverable moment: {moment_text(idle.consistency_point.time)}" in chain.cli("windows")
    assert "compared with none before it" in chain.cli("verify", second.id)


@pytest.mark.requirement("R1.2", "R4.3")
def test_a_second_run_of_the_same_slot_changes_nothing(chain: Chain) -> None:
    chain.base(ago=2 * HOUR)
    backup, slot = chain.slot(0)
    made = chain.increment(backup, slot=slot)
    before = list(chain.catalog.bucket.versions(""))
    assert chain.increment(backup, slot=slot) == made
    assert list(chain.catalog.bucket.versions("")) == before


@pytest.mark.requirement("R1.2", "R5.5")
def test_of_two_missed_hours_at_once_one_is_made_and_covers_the_other(chain: Chain) -> None:
    base = chain.base(ago=5 * HOUR)
    made: list[Manifest] = []
    adopted: list[Adopted] = []

    def run(hours: int) -> None:
        backup, slot = chain.slot(hours)
        try:
            made.append(chain.increment(backup, slot=slot))
        except Adopted as covered:
            adopted.append(covered)

    threads = [threading.Thread(target=run, args=[hours]) for hours in (-1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.by.id for each in adopted] == [each.id for each in made]
    chain.whole(base, *made)
    backup, slot = chain.slot(-9)
    with pytest.raises(NeverKept, match=str(backup)):
        chain.increment(backup, slot=slot)


@pytest.mark.requirement("R1.2", "R4.3")
def test_two_tries_at_one_slot_at_once_make_one_backup(chain: Chain) -> None:
    base = chain.base(ago=2 * HOUR)
    backup, slot = chain.slot(0)
    made: list[Manifest] = []
    threads = [threading.Thread(target=lambda: made.append(chain.increment(backup, slot=slot))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert made[0] == made[1]
    chain.whole(base, made[0])


@pytest.mark.requirement("R1.2", "R5.1")
def test_a_restart_and_a_crash_of_the_server_make_no_hole(chain: Chain) -> None:
    base, server = chain.base(), chain.installation.postgres
    chain.write()
    server.stop()
    server.start()
    first = chain.increment()
    chain.write()
    server.crash()
    server.start()
    chain.whole(base, first, chain.increment())


def _behind(what: Callable[..., Any], then: Callable[[], None]) -> Callable[..., Any]:
    """The same function, which does something more at its end."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = what(*arguments, **named)
        then()
        return result

    return wrapped


@contextmanager
def _and_then(entered: AbstractContextManager[Any], then: Callable[[Any], None]) -> Iterator[Any]:
    with entered as value:
        then(value)
        yield value


@pytest.mark.requirement("R1.2", "R5.1")
@pytest.mark.parametrize(
    "moment", ["the log is asked for", "the log is received", "the point is there", "it is committed"]
)
def test_a_server_that_crashes_in_the_middle_of_an_increment_makes_no_hole(
    chain: Chain, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there again at once: the increment fails, or not; nothing is lost, and nothing is left on the server."""
    base, server, crashes = chain.base(), chain.server, []

    def crash() -> None:
        if crashes:
            return
        crashes.append(moment)
        server.stop_at_once()
        server.start()
        chain.sql("SELECT pg_logical_emit_message(true, 'test', 'behind the crash')")

    def crash_while_it_streams(child: LeashedProcess) -> None:
        with server.superuser.connect(application_name="test", autocommit=True) as session:
            while not (child.ended or session.execute("SELECT pid FROM pg_stat_replication").fetchone()):
                pass
        crash()

    with monkeypatch.context() as patch:
        if moment == "the log is asked for":
            patch.setattr(increment, "read_log", _behind(increment.read_log, crash))
        elif moment == "the log is received":
            started = receive.leashed
            patch.setattr(receive, "leashed", lambda *a, **n: _and_then(started(*a, **n), crash_while_it_streams))
        elif moment == "the point is there":
            point = increment.consistency_point
            patch.setattr(increment, "consistency_point", lambda *a: _and_then(point(*a), lambda _: crash()))
        else:
            patch.setattr(increment, "commit", _behind(increment.commit, crash))
        chain.write(8)
        backup = BackupId("incremental", datetime.now(UTC), manual=True)
        windows = [base]
        try:
            windows.append(chain.increment(backup))
        except BackupError as failed:
            print(f"{moment}: {failed}")
        assert crashes == [moment]
    chain.write(2)
    assert (len(windows) == 2) == (moment == "it is committed")
    again = chain.increment(backup)
    windows += [again] if again not in windows else []
    windows.append(chain.increment())
    chain.whole(*windows)
    for window in windows[1:]:
        check_integrity(chain.catalog, window.backup, POLICY, scratch=chain.scratch)
    assert chain.gaps() == ()


@pytest.mark.requirement("R1.2")
def test_a_slot_that_was_dropped_costs_nothing_while_its_log_is_there(chain: Chain) -> None:
    base = chain.base()
    chain.write()
    chain.drop_anchor()
    first = chain.increment()
    chain.write()
    chain.drop_anchor()
    chain.sql(f"SELECT pg_create_physical_replication_slot('{ANCHOR}', true)")  # by hand, and later than the window
    chain.whole(base, first, chain.increment())


@pytest.mark.requirement("R1.2")
def test_log_that_was_shipped_is_no_gap_when_the_server_has_it_no_more(chain: Chain) -> None:
    base = chain.base()
    assert base.wal is not None
    chain.write(2)
    shipped = chain.collect(base.wal.end_lsn)  # as the stream between the hours does
    chain.sql(f"SELECT pg_replication_slot_advance('{ANCHOR}', '{shipped.end_lsn}')")
    chain.forget()
    chain.whole(base, chain.increment())


def _dropped(chain: Chain) -> None:
    chain.drop_anchor()
    chain.forget()


def _dropped_and_made_again(chain: Chain) -> None:
    chain.drop_anchor()
    chain.forget()
    chain.sql(f"SELECT pg_create_physical_replication_slot('{ANCHOR}', true)")


def _lost(chain: Chain) -> None:
    chain.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '32MB'")
    chain.sql("SELECT pg_reload_conf()")
    try:
        chain.forget()
        assert chain.sql("SELECT wal_status FROM pg_replication_slots") == [("lost",)]
    finally:
        chain.sql("ALTER SYSTEM RESET max_slot_wal_keep_size")
        chain.sql("SELECT pg_reload_conf()")


@pytest.mark.requirement("R1.2", "R5.5")
@pytest.mark.parametrize("lose", [_dropped, _dropped_and_made_again, _lost])
def test_log_that_is_gone_is_declared_and_the_chain_goes_on_behind_it_on_a_new_base(
    chain: Chain, lose: Callable[[Chain], None]
) -> None:
    chain.base()
    before = chain.increment()
    chain.write()
    lose(chain)
    with pytest.raises(GapDeclared, match="snapshot_backup") as told:
        chain.increment()
    gap = told.value.gap
    assert before.wal is not None
    assert gap.start_lsn == before.wal.end_lsn
    assert gap.after == before.consistency_point.time
    assert gap in chain.gaps()
    with pytest.raises(NoBase, match="before the last declared gap"):
        chain.increment()
    chain.base()
    made = chain.increment()
    assert made.wal is not None
    assert made.wal.start_lsn == gap.end_lsn
    assert made.wal.since == gap.before
    chain.whole(made)
    slot = Slot(start=before.consistency_point.time, end=gap.before)
    with pytest.raises(GapDeclared):  # that time is gone, whatever came after
        chain.increment(BackupId("incremental", slot.end), slot=slot)
    assert chain.gaps() == (gap,)
    chain.whole(made, chain.increment())


def test_a_damaged_copy_is_passed_over(chain: Chain) -> None:
    base = chain.base()
    assert base.wal is not None
    chain.write(2)
    shipped = chain.collect(base.wal.end_lsn)
    flip(chain.catalog.bucket, chain.archive().key_of(shipped.files[0]))
    made = chain.increment()
    chain.whole(base, made)
    assert made.wal is not None
    assert made.wal.files[0].attempt != shipped.files[0].attempt
    assert made.wal.files[1].attempt == shipped.files[1].attempt


def test_another_cluster_behind_the_same_connection_is_refused(chain: Chain) -> None:
    chain.base(system_identifier="7123456789012345678")
    with pytest.raises(ClusterChanged, match=r"7123456789012345678.*snapshot_backup"):
        chain.increment()


class OneTry(threading.Event):
    """An end that comes when somebody would wait for a second try; and soon, where nobody does."""

    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return True

    def __enter__(self) -> Self:
        self._clock = threading.Timer(20, self.set)
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._clock.cancel()


@pytest.mark.requirement("R1.2", "R5.1")
def test_a_cluster_that_was_re_initialised_is_refused_until_it_has_a_base(
    chain: Chain, sandbox_directory: Path
) -> None:
    """A second `initdb` in the same place, and the same databases and logins in it, as a dump brings them."""
    source = chain.installation.postgres
    dump = subprocess.run(
        [find_tools(source.major).pg_dumpall], env=source.superuser.environment(), capture_output=True, check=True
    ).stdout

    def fill(server: PostgresServer) -> None:
        restore = [find_tools(server.major).psql, "--no-psqlrc", "--quiet", "--output=/dev/null"]
        subprocess.run(restore, env=server.superuser.environment(), input=dump, capture_output=True, check=True)

    server = PostgresServer(sandbox_directory / "increment" / "reborn", major=18, durable=False)
    server._password = source.superuser.password
    with server:
        fill(server)
        before = chain.on(server)
        base = before.base()
        first = before.increment()
        before.whole(base, first)
        server.reinitialise()
        fill(server)
        after, there = chain.on(server), list(chain.catalog.bucket.versions(""))
        [(identifier,)] = after.sql("SELECT system_identifier::text FROM pg_control_system()")
        assert identifier != base.database.system_identifier
        refusal = rf"cluster {identifier}, and {first.id}.* cluster {base.database.system_identifier}.*snapshot_backup"

        starting = POLICY.backups.incremental.model_copy(update={"starts_base": True})
        policy = POLICY.model_copy(update={"backups": POLICY.backups.model_copy(update={"incremental": starting})})
        with pytest.raises(ClusterChanged, match=refusal):  # no base is made of it either: a person has to mean it
            after.increment(policy=policy)
        spool = chain.scratch / "stream"
        with OneTry() as over:
            done = ship_continuously(
                after.application, chain.catalog, POLICY, replica=chain.replica, spool=spool, until=over
            )
        assert isinstance(done.failure, ClusterChanged)
        assert re.search(refusal, str(done.failure))
        assert (done.shipped, spool.exists()) == (0, False)
        assert list(chain.catalog.bucket.versions("")) == there
        assert after.slots() == set()  # nothing keeps the log of a server that nobody backs up

        made = after.base()
        assert made.database.system_identifier == identifier
        second = after.increment()
        after.whole(made, second)
        over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            streaming = pool.submit(
                ship_continuously,
                after.application,
                chain.catalog,
                POLICY,
                replica=chain.replica,
                spool=spool,
                until=over,
            )
            try:
                while not any(str(name).startswith(copy_name("stream", "")) for name in after.slots()):
                    assert not streaming.done()
            finally:
                over.set()
        assert streaming.result().failure is None
        assert set(there) <= set(chain.catalog.bucket.versions(""))


@pytest.mark.requirement("R1.2", "R5.1")
def test_a_failover_is_followed_and_the_old_primary_refused(chain: Chain, sandbox_directory: Path) -> None:
    # A promoted standby forgets the log of before at once, unless it is told to keep it, or the stream has shipped it.
    chain.sql("ALTER SYSTEM SET wal_keep_size = '1GB'")
    with Standby(sandbox_directory / "increment" / "standby", chain.installation.postgres) as standby:
        chain.sql("ALTER SYSTEM RESET wal_keep_size")
        base = chain.base()
        before = chain.increment()
        chain.write(2)
        chain.caught_up(standby)
        standby.promote()
        after = chain.on(standby)
        first = after.increment()
        assert first.wal is not None
        assert first.wal.timeline == 2
        assert first.wal.files[0].name == "00000002.history"
        second = after.increment()
        after.whole(base, before, first, second)
        with pytest.raises(OldPrimary, match=first.id):
            chain.increment()


def _change(chain: Chain) -> dict[str, str]:
    """What happens to objects and configuration within an hour; returns the versions that there were."""
    objects, checkout = chain.application.objects, chain.installation.synapse.configuration
    for body in (b"first", b"second"):
        objects.put("uploads/twice.txt", body)
        chain.installation.settle()
    objects.put("media/deleted.txt", b"gone")
    chain.installation.settle()
    objects.delete("media/deleted.txt")
    objects.put("nobody/claims.this", b"")
    (checkout / "README").write_text(str(time.time_ns()))
    for command in (("add", "README"), ("commit", "--quiet", "--message=a change")):
        subprocess.run(
            ["git", "-C", str(checkout), "-c", "user.name=t", "-c", "user.email=t@example", *command], check=True
        )
    chain.installation.settle()
    return {version.version_id: version.key for version in objects.versions("") if version.deleted or version.size < 7}


def _hollow(chain: Chain, made: Manifest) -> Manifest:
    """The same with a last segment that is sealed well, begins well, and has lost a record."""
    assert made.wal is not None
    archive, last = chain.archive(), made.wal.files[-1]
    with tempfile.TemporaryDirectory() as directory:
        segment = Path(directory) / last.name
        archive.fetch(last, segment)
        raw = bytearray(segment.read_bytes())
        place = Lsn.parse(made.consistency_point.lsn) - made.wal.end_lsn + made.wal.segment_bytes
        raw[place - 64 : place] = bytes(64)
        segment.write_bytes(raw)
        shipped = archive.session().ship(segment, last.name)
    files = (*made.wal.files[:-1], shipped)
    return made.model_copy(update={"wal": made.wal.model_copy(update={"files": files})})


@pytest.mark.requirement("R1.2", "R2.2", "R2.3", "R4.5")
def test_an_increment_has_what_changed_and_is_proved(chain: Chain) -> None:
    starting = POLICY.backups.incremental.model_copy(update={"starts_base": True})
    policy = POLICY.model_copy(update={"backups": POLICY.backups.model_copy(update={"incremental": starting})})
    first = chain.increment(policy=policy)  # there is no base: it makes one
    [base] = [entry.manifest for entry in chain.catalog.entries("snapshot")]
    assert base is not None
    assert [artifact.name for artifact in first.artifacts if "repository" in artifact.name] == []
    assert first.configuration.refs_sha256 == base.configuration.refs_sha256
    there = _change(chain)
    objects = chain.application.objects
    upload = objects.client.create_multipart_upload(Bucket=objects.name, Key="uploads/under way")
    made = chain.increment()
    objects.client.abort_multipart_upload(Bucket=objects.name, Key="uploads/under way", UploadId=upload["UploadId"])
    assert made.configuration.refs_sha256 != first.configuration.refs_sha256
    assert made.artifact("config/repository.bundle").segments
    assert made.objects.since == first.consistency_point.objects_as_of
    opened = OpenedBackup(chain.catalog, made, policy=POLICY.pipeline, progress=Progress("test"))
    assert list(opened.uploading()) == ["uploads/under way"]
    lines = [line for component in opened.changed_components() for line in opened.changes(component)]
    told = {line.version_id: line for line in lines if there.get(line.version_id) == line.key}
    assert sorted((line.key, isinstance(line, Deletion)) for line in told.values()) == [
        ("media/deleted.txt", False),
        ("media/deleted.txt", True),
        ("nobody/claims.this", False),
        ("uploads/twice.txt", False),
        ("uploads/twice.txt", False),
    ]
    contents = {b"".join(opened.read_object(line)) for line in told.values() if isinstance(line, IndexEntry)}
    assert contents == {b"first", b"second", b"gone", b""}
    chain.whole(first, made)
    for each in (first, made):
        check_integrity(chain.catalog, each.backup, POLICY, scratch=chain.scratch)
        check_sizes(chain.catalog, each.backup, POLICY, scratch=chain.scratch)
    assert made.wal is not None
    with pytest.raises(WalBroken, match=made.wal.files[-1].name):
        check_log(chain.catalog, _hollow(chain, made), POLICY, scratch=chain.scratch, progress=Progress("test"))
    flip(chain.catalog.bucket, chain.archive().key_of(made.wal.files[-1]))
    with pytest.raises(StreamRefused, match=made.wal.files[-1].name):
        check_integrity(chain.catalog, made.backup, POLICY, scratch=chain.scratch)


def _killed(chain: Chain, seed: int, rounds: int) -> None:
    windows = [chain.base()]
    began = time.monotonic()
    assert chain.task(BackupId("incremental", datetime.now(UTC), manual=True), chain.scratch).wait(60) == 0
    usual = time.monotonic() - began
    windows += [entry.manifest for entry in chain.catalog.entries("incremental") if entry.manifest]
    for number in range(rounds):
        share = random.Random(f"{seed}.{number}").random()
        print(f"BACKUP_KILL_SEED={seed}, round {number}: at {share:.3f} of {usual:.2f} s")
        chain.write(3)
        backup = BackupId("incremental", datetime.now(UTC), manual=True)
        with tempfile.TemporaryDirectory() as thrown_away:
            task = chain.task(backup, Path(thrown_away))
            with suppress(subprocess.TimeoutExpired):
                task.wait(share * usual)  # the moment itself
            task.kill()
            task.wait()
        windows.append(chain.increment(backup))
        chain.whole(*windows[-2:])
        assert chain.gaps() == ()


@pytest.mark.requirement("R1.2", "R5.1")
def test_killed_at_random_moments_the_next_run_ships_every_byte(chain: Chain) -> None:
    _killed(chain, 4, 2)


@pytest.mark.soak
@pytest.mark.requirement("R1.2", "R5.1")
def test_killed_a_hundred_times_the_next_run_ships_every_byte(chain: Chain) -> None:
    _killed(chain, SEED, 100)


@pytest.mark.soak
@pytest.mark.requirement("R1.2")
def test_on_another_store_an_increment_is_the_same(
    installation: Installation, ceph: CephGateway, tmp_path: Path
) -> None:
    keyring = Keyring.load(installation.keyring)
    primary, replica = (Catalog(fresh_bucket(server), keyring) for server in (ceph, installation.replica))
    chain = Chain(installation, primary, tmp_path, replica=replica)
    base = chain.base()
    chain.write(2)
    backup = BackupId("incremental", datetime.now(UTC), manual=True)
    made = chain.increment(backup)
    assert chain.increment(backup) == made
    last = chain.increment()
    chain.whole(base, made, last)
    chain.replicate(last)
    assert last.wal is not None
    assert chain.slot_at() == last.wal.end_lsn
    check_integrity(chain.catalog, backup, POLICY, scratch=chain.scratch)

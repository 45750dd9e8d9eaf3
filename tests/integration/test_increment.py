"""Windows of the log: contiguous whatever happens, each segment whole in the bucket, nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from include.backup.adoption import Adopted
from include.backup.increment import make_increment
from include.backup.wal_collection import collect_wal, read_log
from include.errors import BackupError
from include.pipeline.progress import Progress
from include.policy import load_policy
from include.repository.catalog import Catalog
from include.repository.chain import ClusterChanged, NoBase, OldPrimary
from include.repository.layout import BackupId
from include.repository.ledger import GapDeclared, read_gaps
from include.repository.lsn import Lsn, segment_start
from include.repository.manifest import BaseBackup, Manifest, Slot
from include.repository.wal import WalArchive
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.slots import ANCHOR, secure_anchor
from tests import manifests

POLICY = load_policy()
SCALE = 0.02
HOUR = timedelta(hours=1)


class Chain:
    """An installation with a chain, and the hours of its schedule."""

    def __init__(self, installation: Installation, scratch: Path) -> None:
        self.installation, self.scratch = installation, scratch
        self.application, self.catalog = installation.application(), installation.catalog()
        self._hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)

    def base(self) -> Manifest:
        """A snapshot in all but its base, which nobody here restores."""
        with self.application.replication.connect(application_name="test", autocommit=True) as session:
            secure_anchor(session)
        state = read_log(self.application)
        backup = BackupId("snapshot", state.time, manual=True)
        start = segment_start(state.flushed, state.segment_bytes)
        made = manifests.make(
            id=str(backup),
            type="snapshot",
            base=BaseBackup(start_lsn=state.flushed, stop_lsn=state.flushed, started=state.time, stopped=state.time),
            wal=collect_wal(
                self.application,
                self.catalog,
                start=start,
                since=state.time,
                attempt=manifests.ATTEMPT,
                policy=POLICY,
                scratch=self.scratch,
                progress=Progress("base"),
            ),
        )
        database = made.database.model_copy(
            update={
                "system_identifier": state.server.system_identifier,
                "timeline": state.server.timeline,
            }
        )
        point = made.consistency_point.model_copy(
            update={"time": state.time, "objects_as_of": self.application.objects.clock()}
        )
        return manifests.commit(
            self.catalog, made.model_copy(update={"database": database, "consistency_point": point})
        )

    def increment(self, backup: BackupId | None = None, *, slot: Slot | None = None) -> Manifest:
        return make_increment(
            backup or BackupId("incremental", datetime.now(UTC), manual=True),
            slot=slot,
            application=self.application,
            catalog=self.catalog,
            policy=POLICY,
            scratch=self.scratch,
        )

    def slot(self, hours: int) -> tuple[BackupId, Slot]:
        """A slot that ends so many hours after the one that the test began in."""
        slot = Slot(start=self._hour + (hours - 1) * HOUR, end=self._hour + hours * HOUR)
        return BackupId("incremental", slot.end), slot

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        with self.installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
            cursor = session.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def write(self, segments: int = 1) -> None:
        """So many finished segments of log."""
        for _ in range(segments):
            self.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000))")
            self.sql("SELECT pg_switch_wal()")

    def slots(self) -> set[object]:
        return {name for (name,) in self.sql("SELECT slot_name FROM pg_replication_slots")}

    def archive(self) -> WalArchive:
        system = read_log(self.application).server.system_identifier
        return WalArchive(self.catalog.bucket, self.catalog.keyring, system, policy=POLICY.pipeline)

    def whole(self, *windows: Manifest) -> None:
        """Each window continues the one before it, and every file of it reads back."""
        archive = self.archive()
        for before, window in zip(windows, windows[1:], strict=False):
            assert before.wal is not None
            assert window.wal is not None
            assert window.wal.start_lsn == before.wal.end_lsn
            assert window.wal.since == before.consistency_point.time
        for window in windows:
            assert window.wal is not None
            segments = [file for file in window.wal.files if not file.name.endswith(".history")]
            assert len(segments) * window.wal.segment_bytes == window.wal.end_lsn - window.wal.start_lsn
            for file in window.wal.files:
                assert sum(map(len, archive.read(file))) == file.raw_bytes
            assert window.wal.start_lsn < Lsn.parse(window.consistency_point.lsn) <= window.wal.end_lsn
        assert self.slots() <= {ANCHOR}
        assert list(self.scratch.iterdir()) == []


@pytest.fixture
def server(sandbox_directory: Path, tmp_path: Path) -> Iterator[PostgresServer]:
    """A server of the test's own, whose log and slots nobody else has."""
    with PostgresServer(sandbox_directory / f"chain-{tmp_path.name}", major=18, durable=False) as made:
        yield made


@pytest.fixture
def chain(
    sandbox_directory: Path, tmp_path: Path, server: PostgresServer, s3_primary: S3Server, s3_replica: S3Server
) -> Chain:
    directory = sandbox_directory / f"installation-{tmp_path.name}"
    directory.mkdir(mode=0o711)
    scratch = directory / "scratch"
    scratch.mkdir()
    made = Installation.make(
        directory,
        postgres=server,
        primary=s3_primary,
        replica=s3_replica,
        suffix=f"-{tmp_path.name.replace('_', '-')[:24].strip('-')}",
        scale=SCALE,
    )
    return Chain(made, scratch)


@pytest.mark.requirement("R1.2")
def test_windows_follow_each_other_without_a_hole(chain: Chain) -> None:
    with pytest.raises(NoBase, match="no base to stand on"):
        chain.increment()
    base = chain.base()
    first = chain.increment()
    chain.write(3)
    second = chain.increment()
    idle = chain.increment()
    chain.whole(first, second, idle)
    assert base.wal is not None
    assert first.wal is not None
    assert first.wal.start_lsn == base.wal.end_lsn
    assert idle.wal is not None
    assert [(restart,) for restart in [str(idle.wal.end_lsn)]] == chain.sql(
        "SELECT restart_lsn::text FROM pg_replication_slots"
    )

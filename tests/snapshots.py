"""A snapshot and the log after it, made by hand of a cluster of a test's own, for tests of what recovers them."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from include.pipeline.artifacts import write_artifact
from include.pipeline.progress import Progress
from include.pipeline.sealing import Sealer
from include.policy import Pipeline, load_policy
from include.recovery.cluster.recover import RecoveredCluster, recover
from include.recovery.cluster.target import StopAt
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.contents import BASE, BASE_FILES, tablespace_tar
from include.repository.envelopes import create_data_key, open_data_key
from include.repository.layout import BackupId, new_attempt, wal_key, wal_owner
from include.repository.lsn import Lsn, is_segment, segment_lsn, segment_start
from include.repository.manifest import (
    Artifact,
    BaseBackup,
    DatabaseSummary,
    Manifest,
    Tablespace,
    WalFile,
    WalWindow,
    artifact_place,
    describe,
)
from include.repository.timelines import TimelineHistory
from include.repository.wal import WalArchive
from include.sources.postgres.basebackup import TarScanner
from tests.manifests import MIDNIGHT, make
from tests.replication import SEGMENT, Cluster

POLICY: Pipeline = load_policy().pipeline.model_copy(update={"segment_bytes": 512 << 10})


@dataclass(frozen=True)
class Point:
    """A restore point, and the rows that were committed by then."""

    name: str
    lsn: Lsn
    rows: int


class Ledger:
    """A table of numbered rows, and what of it was committed at each restore point."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self.rows = cluster, 0
        cluster.run("CREATE TABLE entry (n bigint PRIMARY KEY, body text)")

    def write(self, count: int) -> None:
        first, self.rows = self.rows + 1, self.rows + count
        self._cluster.run(f"INSERT INTO entry SELECT n, repeat('x', 200) FROM generate_series({first}, {self.rows}) n")

    def write_one(self) -> Lsn:
        """Commit one row, and return where the record of its commit begins."""
        self.rows += 1
        with self._cluster.server.superuser.connect(application_name="test") as session:
            session.execute("INSERT INTO entry VALUES (%s)", (self.rows,))
            row = session.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        return Lsn.parse(row[0])

    def point(self, name: str) -> Point:
        lsn = self._cluster.value(f"SELECT pg_create_restore_point('{name}')::text")
        return Point(name, Lsn.parse(lsn), self.rows)


@dataclass(frozen=True)
class Chain:
    """A base, and the log after it, in a bucket."""

    catalog: Catalog
    archive: WalArchive
    manifest: Manifest
    wal: tuple[WalFile, ...]
    history: TimelineHistory

    def opened(self) -> OpenedBackup:
        return OpenedBackup(self.catalog, self.manifest, policy=POLICY, progress=Progress("test"))

    @contextmanager
    def recovered(self, stop: StopAt, directory: Path, **changes: Any) -> Iterator[RecoveredCluster]:
        """Recover with some of `recover`'s arguments changed."""
        arguments: dict[str, Any] = {
            "wal": self.wal,
            "history": self.history,
            "archive": self.archive,
            "policy": POLICY,
            "progress": Progress("test"),
            **changes,
        }
        with recover(self.opened(), stop=stop, directory=directory, **arguments) as cluster:
            yield cluster


def take_base(cluster: Cluster, catalog: Catalog, scratch: Path, *, day: int = 0) -> Manifest:
    """A base backup of the cluster, as an uncommitted snapshot; its window is of no files."""
    attempt = new_attempt()
    backup = BackupId("snapshot", make(day).backup.moment)
    create_data_key(catalog.bucket, catalog.keyring, owner=str(backup), attempt=attempt)
    directory = scratch / f"base-{attempt}"
    started = datetime.now(UTC)
    subprocess.run(
        [cluster.tools.pg_basebackup, "-D", directory, "-Ft", "-X", "none", "--checkpoint=fast", "--no-sync"],
        env=cluster.server.superuser.environment(),
        check=True,
        capture_output=True,
    )
    _carry_manifest(directory)
    tars = {path: BASE if path.stem == "base" else tablespace_tar(int(path.stem)) for path in directory.glob("*.tar")}
    lines, label = [], ""
    for path, name in tars.items():
        scanner = TarScanner(lambda entry, name=name: lines.append(json.dumps({"tar": name, **asdict(entry)}) + "\n"))
        scanner.feed(path.read_bytes())
        scanner.finish()
        label = label or scanner.label

    artifacts = [store(catalog, backup, attempt, name, path.read_bytes()) for path, name in tars.items()]
    artifacts.append(store(catalog, backup, attempt, BASE_FILES, "".join(lines).encode()))
    shutil.rmtree(directory)
    start = Lsn.parse(re.search(r"START WAL LOCATION: (\S+)", label)[1])
    stop = cluster.position()
    spaces = cluster.run("SELECT oid::int, pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 16383")
    return make(
        day,
        id=str(backup),
        type="snapshot",
        attempt=attempt,
        artifacts=tuple(artifacts),
        packs=(),
        database=DatabaseSummary(
            name="postgres",
            server_version=cluster.server.major * 10_000,
            system_identifier=cluster.value("SELECT system_identifier::text FROM pg_control_system()"),
            timeline=1,
            tools=cluster.server.major,
            tables=1,
            rows=1,
        ),
        base=BaseBackup(
            start_lsn=start,
            stop_lsn=stop,
            started=started,
            stopped=datetime.now(UTC),
            tablespaces=tuple(Tablespace(oid=oid, location=location) for oid, location in spaces),
        ),
        wal=WalWindow(
            start_lsn=segment_start(start, SEGMENT),
            end_lsn=segment_start(start, SEGMENT),
            segment_bytes=SEGMENT,
            timeline=1,
            since=MIDNIGHT,
            files=(),
        ),
    )


def store(catalog: Catalog, backup: BackupId, attempt: str, name: str, content: bytes) -> Artifact:
    """Write one artifact of an attempt."""
    written = write_artifact(
        iter([content]),
        bucket=catalog.bucket,
        place=artifact_place(backup, attempt, name, component="structure", retention_class="system_config"),
        key=open_data_key(catalog.bucket, catalog.keyring, owner=str(backup), attempt=attempt),
        policy=POLICY,
        progress=Progress("test"),
    )
    return describe(written, name, component="structure", retention_class="system_config", attempt=attempt)


def ship(cluster: Cluster, archive: WalArchive, start: Lsn) -> tuple[WalFile, ...]:
    """Ship every finished segment from `start` on, out of the server's own directory."""
    end = cluster.switch()
    first = segment_start(start, SEGMENT)
    return ship_files(
        archive,
        cluster.server.data / "pg_wal",
        lambda name: is_segment(name) and first <= segment_lsn(name, SEGMENT) < end,
    )


def ship_files(archive: WalArchive, log: Path, wanted: Callable[[str], bool]) -> tuple[WalFile, ...]:
    """Ship some files of a server's own directory, in the order of their names."""
    session = archive.session()
    return tuple(session.ship(log / name, name) for name in sorted(path.name for path in log.iterdir()) if wanted(name))


def archive_of(catalog: Catalog, manifest: Manifest) -> WalArchive:
    return WalArchive(catalog.bucket, catalog.keyring, manifest.database.system_identifier, policy=POLICY)


def smuggle(archive: WalArchive, name: str, raw: bytes) -> WalFile:
    """Store any bytes as a segment, sealed under a genuine key, as `ship` would not."""
    attempt = archive.session().attempt
    owner = wal_owner(archive.system_identifier)
    key = open_data_key(archive.bucket, archive.keyring, owner=owner, attempt=attempt)
    sealer = Sealer(key, archive.context_of(name, attempt), level=1)
    archive.bucket.put(wal_key(archive.system_identifier, name, attempt), sealer.add(raw) + sealer.finish())
    return WalFile(name=name, attempt=attempt, **asdict(sealer.measure()))


def reship(archive: WalArchive, file: WalFile) -> WalFile:
    """Another copy of a segment, to be damaged."""
    return smuggle(archive, file.name, b"".join(archive.read(file)))


def _carry_manifest(directory: Path) -> None:
    """Put the manifest into the tar, where a stream to standard output has it."""
    content = (directory / "backup_manifest").read_bytes()
    with tarfile.open(directory / "base.tar", "a") as tar:
        member = tarfile.TarInfo("backup_manifest")
        member.size, member.mode = len(content), 0o600
        tar.addfile(member, io.BytesIO(content))

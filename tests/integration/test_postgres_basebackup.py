"""A base backup's stream, its files and its WAL, as PostgreSQL's own tools see them (R1.3)."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from include.pipeline.process import SourceFailed, SourceStalled, run_source
from include.sandbox.postgres import PostgresServer
from include.sources.postgres.basebackup import BaseBackupRefused, FileEntry, TarScanner, base_backup_command, wal_range
from include.sources.postgres.tools import tools_of
from tests.replication import Cluster

PATIENT = timedelta(seconds=60)
ARCHIVING = {"archive_mode": "on", "archive_command": "/bin/true", "autovacuum": "off"}
KINDS = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink"}


@pytest.fixture(scope="module", params=[15, 18])
def cluster(request: pytest.FixtureRequest, sandbox_directory: Path) -> Iterator[Cluster]:
    directory = sandbox_directory / f"basebackup-{request.param}"
    with PostgresServer(directory, major=request.param, durable=False, settings=ARCHIVING) as server:
        yield Cluster(server)


def streamed(cluster: Cluster, stall_limit: timedelta = PATIENT) -> tuple[bytes, list[FileEntry], TarScanner]:
    found: list[FileEntry] = []
    scanner = TarScanner(found.append)
    argv = base_backup_command(cluster.tools)
    with run_source(argv, environment=cluster.login.environment(), stall_limit=stall_limit) as chunks:
        return b"".join(scanner.passing(chunks)), found, scanner


def as_tarfile_reads(tar: tarfile.TarFile) -> list[FileEntry]:
    return [
        FileEntry(m.name, KINDS[m.type], m.mode, m.size, int(m.mtime), m.offset_data, m.linkname or None)
        for m in tar.getmembers()
    ]


def put_in_place(raw: bytes, files: list[FileEntry], target: Path) -> None:
    """As a recovery does: directories, then every file from where its content lies."""
    target.mkdir()
    for entry in files:
        path = target / entry.name
        match entry.kind:
            case "directory":
                path.mkdir()
            case "symlink":
                path.symlink_to(entry.link or "")
            case "file":
                path.write_bytes(raw[entry.offset : entry.offset + entry.size])


@pytest.mark.requirement("R1.3")
def test_the_stream_tells_every_file_and_the_wal_that_it_needs(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run(
        "DROP TABLE IF EXISTS kept", "CREATE TABLE kept AS SELECT repeat('x', 10000) FROM generate_series(1, 300)"
    )
    before = cluster.position()
    raw, files, scanner = streamed(cluster)
    after = cluster.position()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert files == as_tarfile_reads(tar)
    assert files[0].name == "backup_label"
    assert files[-1].name == "backup_manifest"
    wal = scanner.wal
    assert before <= wal.start_lsn < wal.stop_lsn <= after
    assert wal.timeline == 1
    assert f"START WAL LOCATION: {wal.start_lsn} " in scanner.label

    put_in_place(raw, files, tmp_path / "data")
    argv = [tools_of(cluster.server.major).pg_verifybackup, "--no-parse-wal", str(tmp_path / "data")]
    assert subprocess.run(argv, capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.requirement("R1.3")
def test_a_cluster_with_tablespaces_goes_to_a_directory(cluster: Cluster, tmp_path: Path) -> None:
    place = cluster.server.directory / "elsewhere"
    place.mkdir()
    os.chown(place, *(cluster.server.data.stat().st_uid, cluster.server.data.stat().st_gid))
    with cluster.server.superuser.connect(application_name="test", autocommit=True) as session:
        session.execute(f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
        session.execute("CREATE TABLE there TABLESPACE elsewhere AS SELECT generate_series(1, 1000)")
    try:
        with pytest.raises(SourceFailed, match="can only write single tablespace to stdout"):
            streamed(cluster)
        argv = base_backup_command(cluster.tools, tmp_path / "base")
        with run_source(argv, environment=cluster.login.environment(), stall_limit=PATIENT) as chunks:
            assert b"".join(chunks) == b""
        oid = cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = 'elsewhere'")
        assert {path.name for path in (tmp_path / "base").iterdir()} == {"base.tar", f"{oid}.tar", "backup_manifest"}
        for name in ("base.tar", f"{oid}.tar"):
            found: list[FileEntry] = []
            scanner = TarScanner(found.append)
            with (tmp_path / "base" / name).open("rb") as raw, tarfile.open(tmp_path / "base" / name) as tar:
                for _ in scanner.passing(iter(lambda raw=raw: raw.read(77_777), b"")):
                    pass
                assert found == as_tarfile_reads(tar)
            assert {entry.kind for entry in found} == {"file", "directory"}
            assert scanner.tablespace_map == (f"{oid} {place}\n" if name == "base.tar" else "")
        assert wal_range((tmp_path / "base" / "backup_manifest").read_bytes()).timeline == 1
    finally:
        cluster.run("DROP TABLE there", "CHECKPOINT", "DROP TABLESPACE elsewhere")


def test_a_name_too_long_for_its_tar_fails_the_backup(cluster: Cluster) -> None:
    """PostgreSQL writes neither GNU's nor pax's long names: what the scanner refuses does not come."""
    longest, too_long = cluster.server.data / ("a" * 99), cluster.server.data / ("b" * 100)
    longest.touch()
    try:
        assert longest.name in {entry.name for entry in streamed(cluster)[1]}
        too_long.touch()
        with pytest.raises(SourceFailed, match="file name too long for tar format"):
            streamed(cluster)
    finally:
        longest.unlink()
        too_long.unlink(missing_ok=True)


@pytest.mark.requirement("R4.4")
def test_a_server_that_ends_half_way_is_no_end(cluster: Cluster) -> None:
    scanner = TarScanner(lambda _: None)
    argv = base_backup_command(cluster.tools)
    try:
        with (
            pytest.raises((SourceFailed, BaseBackupRefused)) as raised,
            run_source(argv, environment=cluster.login.environment(), stall_limit=PATIENT) as chunks,
        ):
            for number, _ in enumerate(scanner.passing(chunks)):
                if number == 0:
                    cluster.server.crash()
    finally:
        if not cluster.server.running:
            cluster.server.start()
    assert raised.type is SourceFailed
    with pytest.raises(BaseBackupRefused):
        scanner.finish()


def test_where_archiving_is_broken_the_end_never_comes(cluster: Cluster) -> None:
    """`-X none` waits for the archiver; the limit of a stall ends that."""
    cluster.run("ALTER SYSTEM SET archive_command = '/bin/false'", "SELECT pg_reload_conf()")
    try:
        with pytest.raises(SourceStalled):
            streamed(cluster, timedelta(seconds=2))
    finally:
        cluster.run("ALTER SYSTEM RESET archive_command", "SELECT pg_reload_conf()")

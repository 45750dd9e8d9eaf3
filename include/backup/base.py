"""The base of a snapshot: every file of the cluster as `pg_basebackup` copies it, and a table of where each lies.

One tar goes straight from the server into the bucket. A cluster with tablespaces can only be copied through a disk, one
tar a tablespace.
"""

from __future__ import annotations

import json
import logging
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, TYPE_CHECKING

import psycopg
from psycopg import errors

from include.backup.application import Application
from include.backup.attempt import Attempt
from include.errors import BackupError
from include.pipeline.disk import free_bytes
from include.pipeline.leash import leashed
from include.pipeline.process import SourceFailed, SourceStalled, run_source
from include.repository.contents import BASE, BASE_FILES, STRUCTURE, tablespace_tar
from include.repository.manifest import BaseBackup, Tablespace
from include.sources.postgres.basebackup import (
    MANIFEST,
    BaseRange,
    FileEntry,
    TarScanner,
    base_backup_command,
    wal_range,
)
from include.sources.postgres.tools import find_tools

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    Session = psycopg.Connection[TupleRow]

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_LOOK_SECONDS = 1.0
_TAR_END = 2 * tarfile.BLOCKSIZE
_TABLESPACES = """
    SELECT oid::bigint, pg_tablespace_location(oid) FROM pg_tablespace
    WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid
"""
_CLUSTER_BYTES = "SELECT sum(pg_tablespace_size(oid))::bigint FROM pg_tablespace"
_DATABASE_BYTES = "SELECT sum(pg_database_size(oid))::bigint FROM pg_database"
_LOOK = "SELECT clock_timestamp(), current_setting('server_version_num')::int / 10000"


@dataclass(frozen=True)
class _Look:
    """The server at one moment: its clock, its major version, the bytes of its databases (0 when it does not tell)."""

    clock: datetime
    major: int
    database_bytes: int


def write_base(attempt: Attempt, application: Application) -> BaseBackup:
    """Copy the cluster, with the replication login, and return what the manifest says of the copy.

    Raises `SourceFailed` with `pg_basebackup`'s own words, `BaseBackupRefused`, and `BackupError` when a cluster with
    tablespaces does not fit the disk.
    """
    with closing(_connect(application)) as session:
        before = _look(session)
        tablespaces = tuple(Tablespace(oid=oid, location=at) for oid, at in session.execute(_TABLESPACES))
        if tablespaces:
            _require_room(session, attempt.scratch)
    with TemporaryFile(dir=attempt.scratch) as file:
        table = _FileTable(file)
        copy = _Copy(attempt, application, table, major=before.major)
        found = copy.through_disk([each.oid for each in tablespaces]) if tablespaces else copy.streamed()
        attempt.write_structure(BASE_FILES, table.lines())
    with closing(_connect(application)) as session:
        after = _look(session)
    return BaseBackup(
        start_lsn=found.start_lsn,
        stop_lsn=found.stop_lsn,
        started=before.clock,
        stopped=after.clock,
        tablespaces=tablespaces,
        database_bytes=min(before.database_bytes, after.database_bytes),
    )


class _FileTable:
    """Every member of every tar, on disk: there may be millions."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._lock = file, threading.Lock()

    def record(self, tar: str, entry: FileEntry) -> None:
        """One more member."""
        fields = {name: value for name, value in asdict(entry).items() if value is not None}
        line = json.dumps({"tar": tar, **fields}, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._file.write(line)

    def lines(self) -> Iterator[bytes]:
        """What was recorded."""
        self._file.seek(0)
        return _chunks(self._file)


class _Copy:
    """One run of `pg_basebackup`."""

    def __init__(self, attempt: Attempt, application: Application, table: _FileTable, *, major: int) -> None:
        self._attempt, self._table, self._tools = attempt, table, find_tools(major)
        self._stall_limit = attempt.policy.pipeline.stall_limit
        self._environment = application.replication.environment(f"{attempt.backup}.{attempt.name}.D")

    def streamed(self) -> BaseRange:
        """One tar, from the server into the bucket."""
        argv = base_backup_command(self._tools)
        with run_source(argv, environment=self._environment, stall_limit=self._stall_limit) as chunks:
            return self._write(BASE, chunks).wal

    def through_disk(self, tablespaces: Sequence[int]) -> BaseRange:
        """A tar a tablespace; the manifest, a file beside them, goes where a stream has it: last into the first tar."""
        with TemporaryDirectory(prefix="base-", dir=self._attempt.scratch) as directory:
            self._run(Path(directory))
            manifest = Path(directory) / MANIFEST
            jobs: list[Callable[[], object]] = [partial(self._write_with, Path(directory) / "base.tar", manifest)]
            jobs += [
                partial(self._write_file, tablespace_tar(oid), Path(directory) / f"{oid}.tar") for oid in tablespaces
            ]
            self._attempt.side_by_side(jobs)
            return wal_range(manifest.read_bytes())

    def _run(self, directory: Path) -> None:
        argv, seen, since = base_backup_command(self._tools, directory), -1, time.monotonic()
        with leashed(argv, environment=self._environment) as child:
            while not child.ended:
                child.wait_for_word(_LOOK_SECONDS)
                written = sum(file.stat().st_size for file in directory.iterdir())
                if written != seen:
                    seen, since = written, time.monotonic()
                elif time.monotonic() - since > self._stall_limit.total_seconds():
                    raise SourceStalled(
                        f"pg_basebackup wrote nothing for {self._stall_limit.total_seconds():g} s.",
                        mend="Look for what it waits for (a slow checkpoint, an archiver that fails, a lost "
                        "connection), or raise pipeline.stall_limit in the policy.",
                    )
            if child.exit_code:
                raise SourceFailed(
                    f"pg_basebackup failed with exit code {child.exit_code}: {child.said or 'it said nothing'}",
                    mend="Mend what it names; the run is tried again.",
                )

    def _write_with(self, tar: Path, manifest: Path) -> None:
        self._write(BASE, _with_member(tar, manifest))

    def _write_file(self, name: str, tar: Path) -> None:
        with tar.open("rb") as file:
            self._write(name, _chunks(file))

    def _write(self, name: str, chunks: Iterator[bytes]) -> TarScanner:
        scanner = TarScanner(partial(self._table.record, name))
        # It has every component's rows in it: it is kept like what nobody has classified.
        kept = self._attempt.policy.unclassified("database").retention_class
        self._attempt.write(name, scanner.passing(chunks), component=STRUCTURE, retention_class=kept)
        return scanner


def _with_member(tar: Path, file: Path) -> Iterator[bytes]:
    """The tar with one more member at its end; it ends with two empty blocks, and nothing else."""
    with tar.open("rb") as stream:
        left = tar.stat().st_size - _TAR_END
        while left and (chunk := stream.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk
    member = tarfile.TarInfo(file.name)
    member.size, member.mode, member.mtime = file.stat().st_size, 0o600, int(file.stat().st_mtime)
    yield member.tobuf(tarfile.USTAR_FORMAT)
    with file.open("rb") as stream:
        yield from _chunks(stream)
    yield bytes(-member.size % tarfile.BLOCKSIZE + _TAR_END)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _connect(application: Application) -> Session:
    """The barrier's login may ask for sizes (pg_monitor)."""
    return application.barrier.connect(application_name="synapse-backups", autocommit=True)


def _look(session: Session) -> _Look:
    row = session.execute(_LOOK).fetchone()
    assert row is not None  # noqa: S101 - it has no FROM
    clock, major = row
    try:
        size = session.execute(_DATABASE_BYTES).fetchone()
    except errors.InsufficientPrivilege:
        size = None
    return _Look(clock, major, size[0] if size else 0)


def _require_room(session: Session, scratch: Path) -> None:
    try:
        row = session.execute(_CLUSTER_BYTES).fetchone()
    except errors.InsufficientPrivilege:
        raise BackupError(
            "The cluster has tablespaces, so its base backup goes through a disk; how much it takes may not be asked.",
            mend="Run include/sources/postgres/grants.sql: the barrier's login needs pg_monitor.",
        ) from None
    needed = int(row[0]) if row else 0
    if (free := free_bytes(scratch)) < needed:
        raise BackupError(
            f"The cluster has tablespaces, so its base backup goes through the disk of {scratch}, which has "
            f"{free / 1e9:.1f} GB free; the cluster takes {needed / 1e9:.1f} GB.",
            mend="Free some of it, or name a larger disk in BACKUP_SCRATCH.",
        )

"""One try at a backup: what it writes under its own name and key, side by side, until a manifest commits it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.pipeline.artifacts import write_artifact
from include.pipeline.progress import Progress
from include.policy import Policy
from include.repository.catalog import AlreadyCommitted, Catalog
from include.repository.contents import STRUCTURE
from include.repository.envelopes import create_data_key
from include.repository.layout import PACKS, BackupId
from include.repository.locks import keep
from include.repository.manifest import (
    Artifact,
    BaseBackup,
    ConfigurationSummary,
    ConsistencyPoint,
    Cost,
    DatabaseSummary,
    Manifest,
    ObjectsSummary,
    Pack,
    Slot,
    WalWindow,
    WriteStop,
    artifact_place,
    describe,
)
from include.repository.packs import PackHome

if TYPE_CHECKING:
    from include.backup.consistency import Point

log = logging.getLogger(__name__)

_STREAMS_AT_MOST = 12
"""`grants.sql` gives the dump login 32 sessions: enough for two tries at once, each with its snapshot's own."""
STRUCTURE_CLASS = "operational"
"""Schema, roles and settings are kept as long as the system's own configuration."""


class Attempt:
    """What one try writes, from any thread; `name` is the attempt's, and its data key is durable once this is made.

    Streams share one bound on the parts on their way (`room`), so that many take little more memory than one.
    """

    def __init__(
        self, backup: BackupId, name: str, *, catalog: Catalog, policy: Policy, scratch: Path, progress: Progress
    ) -> None:
        self.backup, self.name, self.catalog, self.policy = backup, name, catalog, policy
        self.scratch, self.progress = scratch, progress
        self.room = threading.BoundedSemaphore(policy.pipeline.parts_in_flight)
        self._key = create_data_key(catalog.bucket, catalog.keyring, owner=str(backup), attempt=name)
        self._artifacts: list[Artifact] = []
        self._packs: list[Pack] = []
        self._warnings: list[str] = []
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def write(self, name: str, source: Iterable[bytes], *, component: str, retention_class: str) -> Artifact:
        """Write one artifact; it is in the manifest then."""
        written = write_artifact(
            self.until_stopped(source),
            bucket=self.catalog.bucket,
            place=artifact_place(self.backup, self.name, name, component=component, retention_class=retention_class),
            key=self._key,
            policy=self.policy.pipeline,
            progress=self.progress,
            room=self.room,
        )
        artifact = describe(written, name, component=component, retention_class=retention_class, attempt=self.name)
        log.info(
            "%s: %s MB raw, %s MB stored, %s s.",
            *(
                name,
                round(artifact.raw_bytes / 1e6, 2),
                round(artifact.stored_bytes / 1e6, 2),
                round(written.seconds, 1),
            ),
        )
        with self._lock:
            self._artifacts.append(artifact)
        return artifact

    def write_structure(self, name: str, source: Iterable[bytes]) -> Artifact:
        """Write an artifact that belongs to no one component."""
        return self.write(name, source, component=STRUCTURE, retention_class=STRUCTURE_CLASS)

    def add_packs(self, packs: Iterable[Pack]) -> None:
        """Packs that are durable, for the manifest."""
        with self._lock:
            self._packs += packs

    def warn(self, warning: str) -> None:
        """Something that a person should read in the manifest."""
        with self._lock:
            self._warnings.append(warning)

    def until_stopped(self, source: Iterable[bytes]) -> Iterator[bytes]:
        """The source's chunks, until another job fails."""
        for chunk in source:
            if self._stopped.is_set():
                raise _StoppedError
            yield chunk

    def side_by_side(self, jobs: Sequence[Callable[[], object]]) -> None:
        """Run all of them at once; the first failure stops the others and is raised."""
        with ThreadPoolExecutor(_STREAMS_AT_MOST, thread_name_prefix="stream") as pool:
            running = [pool.submit(job) for job in jobs]
            try:
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                # Whatever ends this wait, a failure or the task's own end: no stream goes on behind it.
                if not all(job.done() for job in running):
                    self._stopped.set()
                    pool.shutdown(wait=False, cancel_futures=True)
        for job in running:
            if not job.cancelled() and (failure := job.exception()) and not isinstance(failure, _StoppedError):
                raise failure

    @property
    def pack_home(self) -> PackHome:
        """Where packs lie that are this backup's alone, under its own data key."""
        return PackHome(f"{self.backup.attempt_prefix(self.name)}{PACKS}", self._key, self.backup.tags)

    def manifest(
        self,
        point: Point,
        *,
        slot: Slot | None,
        started: datetime,
        database: DatabaseSummary,
        objects: ObjectsSummary,
        configuration: ConfigurationSummary,
        base: BaseBackup | None = None,
        wal: WalWindow | None = None,
    ) -> Manifest:
        """What commits a backup of that point, once everything is written."""
        return self.manifest_of(
            ConsistencyPoint(
                time=point.time,
                lsn=point.lsn,
                restore_point=point.restore_point,
                objects_as_of=point.observations.objects_as_of,
                configuration_commit=point.observations.configuration.commit,
            ),
            WriteStop(requested_us=round(point.stopped * 1e6), held_us=round(point.held * 1e6)),
            slot=slot,
            started=started,
            database=database,
            objects=objects,
            configuration=configuration,
            base=base,
            wal=wal,
        )

    def manifest_of(self, point: ConsistencyPoint, stop: WriteStop, **contents: Any) -> Manifest:
        """The same, of a point that was written down before; `contents` are the manifest's other fields."""
        usage = self.progress.usage()
        return Manifest(
            id=str(self.backup),
            type=self.backup.type,
            attempt=self.name,
            finished=datetime.now(UTC),
            consistency_point=point,
            write_stop=stop,
            artifacts=tuple(sorted(self._artifacts, key=lambda artifact: artifact.name)),
            packs=tuple(self._packs),
            cost=Cost(
                milliseconds=round(usage.seconds * 1000),
                cpu_milliseconds=round(usage.cpu_seconds * 1000),
                peak_memory_bytes=usage.peak_memory_bytes,
            ),
            warnings=tuple(self._warnings),
            **contents,
        )


def commit(catalog: Catalog, manifest: Manifest) -> Manifest:
    """Commit the attempt, and return the manifest that is the backup: another one's when that was first.

    Where objects are locked, what it names is as long as it is itself, whoever wrote it and for how long.
    """
    for warning in manifest.warnings:
        log.warning("%s", warning)
    try:
        made = catalog.commit(manifest)
        if until := catalog.bucket.lock_of(made.home).get("ObjectLockRetainUntilDate"):
            keep(catalog.bucket, made, until)
        return made
    except AlreadyCommitted as late:
        log.warning("%s Attempt %s leaves it as it is.", late.what, manifest.attempt)
        return late.winner


def committed(catalog: Catalog, backup: BackupId) -> Manifest | None:
    """The backup's manifest when it is there already: then nothing is to be done."""
    if (manifest := catalog.find(backup)) is not None:
        log.info("%s was committed by attempt %s: nothing is to be done.", backup, manifest.attempt)
    return manifest


def json_document(document: Mapping[str, Any]) -> Iterator[bytes]:
    """A document as an artifact's source."""
    yield json.dumps(document, ensure_ascii=False, sort_keys=True, default=str).encode()


class _StoppedError(Exception):
    """Another stream failed first; that one's error is the one to tell."""

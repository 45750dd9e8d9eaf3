"""The manifest: the signed document that *is* a backup (`docs/format.md`, *Manifest*)."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import AwareDatetime

from include.errors import BackupError, Hopeless
from include.pipeline.artifacts import ArtifactPlace, Segment, Written
from include.pipeline.sealing import Measure
from include.repository.layout import PACKS, BackupId, BackupType
from include.repository.lsn import LsnField
from include.repository.signed import Frozen, SignedDocument


class ManifestRefused(Hopeless):
    """A manifest that is not genuine, or not one this version reads."""


class StoredSegment(Frozen):
    """One sealed stream of an artifact. Sizes in bytes, digests in hex."""

    key: str
    raw_bytes: int
    raw_sha256: str
    stored_bytes: int
    stored_sha256: str

    def as_written(self) -> Segment:
        """The segment as the pipeline reads it."""
        return Segment(self.key, Measure(self.raw_bytes, self.raw_sha256, self.stored_bytes, self.stored_sha256))


class Artifact(Frozen):
    """One stream of the backup: a row of segments. `attempt` is the try that wrote it."""

    name: str
    component: str
    retention_class: str
    attempt: str
    segments: tuple[StoredSegment, ...]
    milliseconds: int

    @property
    def raw_bytes(self) -> int:
        """Bytes before compression."""
        return sum(segment.raw_bytes for segment in self.segments)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the bucket."""
        return sum(segment.stored_bytes for segment in self.segments)

    def place(self, backup: BackupId) -> ArtifactPlace:
        """Where the streams of this artifact belong."""
        return artifact_place(
            backup, self.attempt, self.name, component=self.component, retention_class=self.retention_class
        )

    def as_written(self) -> tuple[Segment, ...]:
        """The segments as the pipeline reads them."""
        return tuple(segment.as_written() for segment in self.segments)


class Pack(Frozen):
    """One pack of objects that this backup reads from; `attempt` is the try that wrote it.

    Below `packs/` it is shared, and has a data key of its own. An archive's lie with the rest of it, and are opened by
    its key: whoever destroys that one key has destroyed all of it.
    """

    id: str
    component: str
    retention_class: str
    attempt: str
    members: int
    raw_bytes: int
    stored_bytes: int
    stored_sha256: str
    prefix: str = PACKS

    @property
    def key(self) -> str:
        """Where it lies."""
        return self.prefix + self.id

    @property
    def is_shared(self) -> bool:
        """Whether other backups may name it, too."""
        return self.prefix == PACKS

    def owner(self, backup: str) -> str:
        """Whose data key opens it, for `backup` that names it."""
        return self.id if self.is_shared else backup


class Slot(Frozen):
    """The data interval that a scheduled run stands for."""

    start: AwareDatetime
    end: AwareDatetime


class ConsistencyPoint(Frozen):
    """One moment across database, objects and configuration."""

    time: AwareDatetime
    lsn: str
    restore_point: str
    objects_as_of: AwareDatetime
    configuration_commit: str


class WriteStop(Frozen):
    """How long writers were kept waiting, in microseconds.

    From the request of the locks, and from their grant, to their release.
    """

    requested_us: int
    held_us: int


class DatabaseSummary(Frozen):
    """What the database was; the rows and digests of each table are in the artifact `database/inventory.json`.

    `server_version` is as in 180006, `tools` the major version of PostgreSQL's programs that wrote. An increment counts
    no rows: None.
    """

    name: str
    server_version: int
    system_identifier: str
    timeline: int
    tools: int
    tables: int | None
    rows: int | None


class ObjectsSummary(Frozen):
    """How much of the object store is in the backup; each object is in its component's index.

    An increment has what changed after `since` (None: everything is here): `objects` versions and `deleted` deletions.
    """

    bucket: str
    objects: int
    raw_bytes: int
    since: AwareDatetime | None = None
    deleted: int = 0


class ConfigurationSummary(Frozen):
    """What the configuration was; `refs_sha256` is of every ref and where it stood.

    An increment in which no ref moved has no bundle: that of the backup before is still the whole of it.
    """

    branch: str | None
    files: int
    refs_sha256: str | None = None


class WalFile(Frozen):
    """One WAL segment, or one timeline's history, as `attempt` shipped it. Sizes in bytes, digests in hex."""

    name: str
    attempt: str
    raw_bytes: int
    raw_sha256: str
    stored_bytes: int
    stored_sha256: str


class WalWindow(Frozen):
    """The log `[start_lsn, end_lsn)`, both segment boundaries: a row of whole segments, and the histories to follow it.

    `timeline` is the one at its end. `since` is when it begins: of an increment the consistency point before it, of a
    snapshot the start of its base.
    """

    start_lsn: LsnField
    end_lsn: LsnField
    segment_bytes: int
    timeline: int
    since: AwareDatetime
    files: tuple[WalFile, ...]

    @property
    def raw_bytes(self) -> int:
        """Bytes of log."""
        return sum(file.raw_bytes for file in self.files)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the bucket."""
        return sum(file.stored_bytes for file in self.files)


class Tablespace(Frozen):
    """One tablespace of a base backup, and where it was."""

    oid: int
    location: str


class BaseBackup(Frozen):
    """The base of a snapshot: recovery begins at `start_lsn`, and is consistent from `stop_lsn` on.

    `started` and `stopped` are the server's clock: no moment before `stopped` can be reached from here.
    `database_bytes` is what the server said that its databases take, before the base or after it, whichever was less;
    0 when nobody asked.
    """

    start_lsn: LsnField
    stop_lsn: LsnField
    started: AwareDatetime
    stopped: AwareDatetime
    tablespaces: tuple[Tablespace, ...] = ()
    database_bytes: int = 0


class CopiedFrom(Frozen):
    """The full backup that an archive was made from."""

    backup: str
    attempt: str


class Cost(Frozen):
    """What making it took: milliseconds of wall and CPU, bytes of memory."""

    milliseconds: int
    cpu_milliseconds: int
    peak_memory_bytes: int


class Manifest(SignedDocument):
    """Everything a restore needs to know, except the keys. Written last; it commits the backup."""

    kind: ClassVar[str] = "manifest"
    refusal: ClassVar[type[BackupError]] = ManifestRefused

    id: str
    type: BackupType
    attempt: str
    slot: Slot | None
    started: AwareDatetime
    finished: AwareDatetime
    consistency_point: ConsistencyPoint
    write_stop: WriteStop
    database: DatabaseSummary
    objects: ObjectsSummary
    configuration: ConfigurationSummary
    artifacts: tuple[Artifact, ...]
    packs: tuple[Pack, ...]
    cost: Cost
    warnings: tuple[str, ...]
    base: BaseBackup | None = None
    wal: WalWindow | None = None
    copied_from: CopiedFrom | None = None

    @property
    def backup(self) -> BackupId:
        """The parsed id."""
        return BackupId.parse(self.id)

    @property
    def home(self) -> str:
        """Where the manifest of this id lies."""
        return self.backup.manifest_key

    @property
    def raw_bytes(self) -> int:
        """Bytes of the sources."""
        packs = sum(pack.raw_bytes for pack in self.packs)
        return sum(artifact.raw_bytes for artifact in self.artifacts) + packs + (self.wal.raw_bytes if self.wal else 0)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the bucket."""
        packs = sum(pack.stored_bytes for pack in self.packs)
        log = self.wal.stored_bytes if self.wal else 0
        return sum(artifact.stored_bytes for artifact in self.artifacts) + packs + log

    def artifact(self, name: str) -> Artifact:
        """One artifact by name; raises `ManifestRefused`."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        raise ManifestRefused(
            f"{self.id} has no artifact {name!r}.",
            mend=f"It has: {', '.join(artifact.name for artifact in self.artifacts)}.",
        )


def artifact_place(backup: BackupId, attempt: str, name: str, *, component: str, retention_class: str) -> ArtifactPlace:
    """Where an artifact of an attempt belongs, and the context that binds its streams to that place."""
    return ArtifactPlace(
        prefix=backup.attempt_prefix(attempt) + name,
        context={
            "backup": str(backup),
            "attempt": attempt,
            "artifact": name,
            "component": component,
            "retention_class": retention_class,
        },
        tags=backup.tags,
    )


def describe(written: Written, name: str, *, component: str, retention_class: str, attempt: str) -> Artifact:
    """The manifest's entry for an artifact that the pipeline wrote."""
    return Artifact(
        name=name,
        component=component,
        retention_class=retention_class,
        attempt=attempt,
        segments=tuple(
            StoredSegment(
                key=segment.key,
                raw_bytes=segment.measure.raw_bytes,
                raw_sha256=segment.measure.raw_sha256,
                stored_bytes=segment.measure.stored_bytes,
                stored_sha256=segment.measure.stored_sha256,
            )
            for segment in written.segments
        ),
        milliseconds=round(written.seconds * 1000),
    )


def moment_text(moment: datetime) -> str:
    """A moment as people read it: UTC, to the second."""
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")

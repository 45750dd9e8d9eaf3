"""A committed backup in short: when it is of, what it names, what can be restored from it, and what was proved.

A manifest has a line for each object, and a bucket keeps thousands of manifests: whoever weighs all of them against
each other (`retention`) needs only this much of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from include.repository.contents import REPOSITORY_BUNDLE
from include.repository.layout import BackupType
from include.repository.lsn import Lsn
from include.repository.manifest import Manifest
from include.repository.references import envelope_prefixes, references
from include.repository.verification import Verification


@dataclass(frozen=True, slots=True)
class Stretch:
    """The log `[start, end)` of a backup's window; `timeline` is the one at its end."""

    timeline: int
    start: Lsn
    end: Lsn
    segment_bytes: int


@dataclass(frozen=True, slots=True)
class Base:
    """Where recovery from a snapshot begins, and from where and when on it is consistent."""

    start: Lsn
    stop: Lsn
    stopped: datetime


@dataclass(frozen=True, slots=True)
class Committed:
    """One committed backup.

    `time` is its consistency point's; `attempts` wrote its artifacts, which lie below its own prefixes; `shared` are
    the keys of what it names outside of them (packs, copies of WAL) and `envelopes` the prefixes of every data key.
    `objects_since` is None when it lists all objects; `bundle` tells whether it has the configuration's repository.
    """

    id: str
    type: BackupType
    retention_class: str
    attempt: str
    time: datetime
    attempts: frozenset[str]
    shared: tuple[str, ...]
    envelopes: frozenset[str]
    stored_bytes: int
    system: str
    timeline: int
    point: Lsn
    log: Stretch | None
    base: Base | None
    objects_as_of: datetime
    objects_since: datetime | None
    refs: str | None
    bundle: bool
    verified: bool = False
    failed: bool = False

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """What matters of a manifest; of what was proved nothing is known yet."""
        backup, point = manifest.backup, manifest.consistency_point
        attempts = frozenset([manifest.attempt, *(artifact.attempt for artifact in manifest.artifacts)])
        own = tuple(backup.attempt_prefix(attempt) for attempt in attempts)
        wal, base = manifest.wal, manifest.base
        return cls(
            id=manifest.id,
            type=manifest.type,
            retention_class=backup.retention_class,
            attempt=manifest.attempt,
            time=point.time,
            attempts=attempts,
            shared=tuple(one.key for one in references(manifest) if not one.key.startswith(own)),
            envelopes=envelope_prefixes(manifest),
            stored_bytes=manifest.stored_bytes,
            system=manifest.database.system_identifier,
            timeline=manifest.database.timeline,
            point=Lsn.parse(point.lsn),
            log=Stretch(wal.timeline, wal.start_lsn, wal.end_lsn, wal.segment_bytes) if wal else None,
            base=Base(base.start_lsn, base.stop_lsn, base.stopped) if base else None,
            objects_as_of=point.objects_as_of,
            objects_since=manifest.objects.since,
            refs=manifest.configuration.refs_sha256,
            bundle=any(artifact.name == REPOSITORY_BUNDLE for artifact in manifest.artifacts),
        )

    def proved(self, verification: Verification) -> Committed:
        """The same, with what was proved of it."""
        return replace(self, verified=verification.verified is not None, failed=bool(verification.failed))

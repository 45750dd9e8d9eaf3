"""Years of backups that nobody made: manifests by the schedule, and a bucket in memory that holds what they name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from include.pipeline.canonical import canonical_json
from include.pipeline.keys import Keyring, new_data_key
from include.pipeline.sealing import Sealer
from include.pipeline.store import Bucket, ObjectMissing, ObjectVersion
from include.policy import Policy, load_policy
from include.repository.catalog import Catalog, Entry
from include.repository.committed import Committed
from include.repository.contents import REPOSITORY_BUNDLE
from include.repository.envelopes import create_data_key
from include.repository.layout import (
    BackupId,
    BackupType,
    envelope_key,
    envelope_prefix,
    wal_key,
    wal_owner,
)
from include.repository.ledger import Gap
from include.repository.lsn import Lsn, history_name, is_segment, timeline_of
from include.repository.manifest import (
    Artifact,
    BaseBackup,
    ConfigurationSummary,
    Manifest,
    Pack,
    StoredSegment,
    WalFile,
    WalWindow,
)
from include.repository.references import data_keys, references
from include.repository.timelines import TimelineHistory
from include.repository.verification import INTEGRITY, Record, Verification, store_record
from tests.manifests import SEGMENT, make

SYSTEM = "1"
DIGEST = "0" * 64


def name_of(*words: object, digits: int = 16) -> str:
    """A name that is the same in every run of the tests."""
    return hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()[:digits]


@dataclass
class Cluster:
    """A cluster that lives: each backup of it goes on where the one before ended."""

    segment: int = 2
    history: TimelineHistory = field(default_factory=lambda: TimelineHistory(1))
    window_end: int | None = None
    as_of: datetime | None = None
    since: datetime | None = None
    refs: str = "0"
    told_refs: str | None = None
    records: int = 0

    def full(self, at: datetime, **changes: Any) -> Manifest:
        """A full backup."""
        return self._made(BackupId("full", _slot(at)), at, self._point(), bundle=True, **changes)

    def archive(self, retention_class: str, at: datetime) -> Manifest:
        """The archive of a class for the month before."""
        backup = BackupId.archive(retention_class, at.replace(day=1) - timedelta(days=1))
        return self._made(backup, at, self._point(), bundle=True)

    def snapshot(self, at: datetime, **changes: Any) -> Manifest:
        """A base that took ten minutes, and the log that it needs."""
        start, self.segment = self.segment, self.segment + 1
        begin = Lsn(start * SEGMENT)
        base = BaseBackup(
            start_lsn=Lsn(begin + 0x28),
            stop_lsn=Lsn(begin + 0x800),
            started=at - timedelta(minutes=10),
            stopped=at - timedelta(minutes=1),
        )
        point = Lsn(begin + 0x900)
        backup = BackupId("snapshot", _slot(at))
        log = self._window(backup, start, start + 1, since=base.started)
        manifest = self._made(backup, at, point, bundle=True, wal=log, base=base, **changes)
        if self.window_end is None:
            self.window_end, self.since, self.as_of, self.told_refs = start + 1, at, at, self.refs
        return manifest

    def increment(self, at: datetime, **changes: Any) -> Manifest:
        """The window from the last one's end on; there must be a snapshot."""
        assert self.window_end is not None
        assert self.since is not None
        start, self.segment = self.window_end, self.segment + 1
        backup = BackupId("incremental", _slot(at))
        log = self._window(backup, start, self.segment, since=self.since)
        point = Lsn(self.segment * SEGMENT - 0x100)
        moved = self.refs != self.told_refs
        manifest = self._made(backup, at, point, bundle=moved, wal=log, since_objects=self.as_of, **changes)
        self.window_end, self.since, self.as_of, self.told_refs = self.segment, at, at, self.refs
        return manifest

    def fail_over(self) -> TimelineHistory:
        """A standby takes over, in the middle of a segment."""
        left = Lsn(self.segment * SEGMENT + 0x40000)
        self.history = TimelineHistory(
            self.history.timeline + 1, (*self.history.switches, (self.history.timeline, left))
        )
        self.records = 0
        return self.history

    def lose_log(self, at: datetime) -> Gap:
        """What the server wrote since the last window is gone."""
        assert self.window_end is not None
        assert self.since is not None
        start, self.segment = self.window_end, self.segment + 1
        self.window_end = self.segment
        after, self.since = self.since, at
        return Gap(
            system_identifier=SYSTEM,
            timeline=self.history.timeline,
            start_lsn=Lsn(start * SEGMENT),
            end_lsn=Lsn(self.segment * SEGMENT),
            after=after,
            before=at,
            because="The slot was dropped.",
            declared=at,
        )

    def _point(self) -> Lsn:
        self.records += 1
        return Lsn(self.segment * SEGMENT + 0x1000 + self.records)

    def _window(self, backup: BackupId, start: int, end: int, *, since: datetime) -> WalWindow:
        first, last = Lsn(start * SEGMENT), Lsn(end * SEGMENT)
        attempt = name_of("wal", backup)
        histories = [history_name(timeline) for timeline in range(2, self.history.timeline + 1)]
        names = [*histories, *self.history.segment_names(first, last, SEGMENT)]
        files = tuple(
            WalFile.model_construct(
                name=name,
                attempt=attempt if is_segment(name) else name_of("history", timeline_of(name)),
                raw_bytes=SEGMENT,
                raw_sha256=DIGEST,
                stored_bytes=7,
                stored_sha256=DIGEST,
            )
            for name in names
        )
        return WalWindow.model_construct(
            start_lsn=first,
            end_lsn=last,
            segment_bytes=SEGMENT,
            timeline=self.history.timeline,
            since=since,
            files=files,
        )

    def _made(
        self,
        backup: BackupId,
        at: datetime,
        point: Lsn,
        *,
        bundle: bool,
        wal: WalWindow | None = None,
        base: BaseBackup | None = None,
        since_objects: datetime | None = None,
        **changes: Any,
    ) -> Manifest:
        attempt, pack = name_of(backup), name_of("pack", backup, digits=32)
        facts = {"retention_class": "operational", "attempt": attempt}
        names = [*([REPOSITORY_BUNDLE] if bundle else []), "config/environment.tar"]
        artifacts = tuple(
            Artifact.model_construct(
                name=name,
                component="system_settings",
                segments=(
                    StoredSegment.model_construct(
                        key=f"{backup.attempt_prefix(attempt)}{name}.zst.enc/00000",
                        raw_bytes=6,
                        raw_sha256=DIGEST,
                        stored_bytes=6,
                        stored_sha256=DIGEST,
                    ),
                ),
                milliseconds=1,
                **facts,
            )
            for name in names
        )
        packed = Pack.model_construct(
            id=pack,
            component="user_uploads",
            members=1,
            raw_bytes=7,
            stored_bytes=7,
            stored_sha256=DIGEST,
            **facts,
        )
        whole = _PATTERN
        return whole.model_copy(
            update={
                "id": str(backup),
                "type": backup.type,
                "attempt": attempt,
                "started": at,
                "finished": at,
                "consistency_point": whole.consistency_point.model_copy(
                    update={
                        "time": at,
                        "lsn": str(point),
                        "restore_point": f"{backup}.{attempt}",
                        "objects_as_of": at.replace(microsecond=0),
                    }
                ),
                "database": whole.database.model_copy(update={"timeline": self.history.timeline}),
                "objects": whole.objects.model_copy(update={"since": since_objects}),
                "configuration": ConfigurationSummary(branch="main", files=1, refs_sha256=self.refs),
                "artifacts": artifacts,
                "packs": (packed,),
                "wal": wal,
                "base": base,
                **changes,
            }
        )


_PATTERN = make()


def _slot(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def verification(manifest: Manifest, *, passed: bool = True) -> Verification:
    """One proof, of integrity."""
    words = {} if passed else {"what": "A bit is flipped.", "mend": "Use another."}
    return Verification(
        (
            Record.model_construct(
                backup=manifest.id,
                attempt=manifest.attempt,
                proof=INTEGRITY,
                subject=None,
                passed=passed,
                when=manifest.consistency_point.time,
                bucket="memory",
                by="somebody",
                because=None,
                milliseconds=1,
                facts={},
                **{"what": None, "mend": None, **words},
                nonce="0" * 8,
            ),
        )
    )


@dataclass(repr=False)
class Memory:
    """A bucket in memory, as far as retention and the planner ask for it; of most objects it knows no content."""

    keyring: Keyring
    entries: dict[str, Entry] = field(default_factory=dict)
    short: dict[str, Committed] = field(default_factory=dict)
    objects: dict[str, datetime] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    name: str = "memory"

    def __repr__(self) -> str:
        return self.name

    def commit(self, manifest: Manifest, proved: Verification | None = None) -> None:
        """The backup with everything that it names."""
        at, proved = manifest.consistency_point.time, proved or Verification()
        key = manifest.home
        self.entries[manifest.id] = Entry(key, manifest, None, proved)
        self.short[manifest.id] = Committed.of(manifest).proved(proved)
        keys = [key, *(one.key for one in references(manifest))]
        keys += [f"{envelope_prefix(owner, attempt)}kek-1.json" for owner, attempt in data_keys(manifest)]
        keys += [record.home for record in proved.newest]
        for each in keys:
            self.objects.setdefault(each, at)

    def declare(self, gap: Gap) -> None:
        """A declared gap."""
        self.gaps.append(gap)
        self.contents[gap.home] = gap.sealed(self.keyring)
        self.objects[gap.home] = gap.declared

    def tell_history(self, history: TimelineHistory, at: datetime) -> None:
        """A timeline's history, shipped as one copy of its own."""
        attempt, name = name_of("history", history.timeline), history_name(history.timeline)
        dek = new_data_key()
        envelope = self.keyring.wrap(dek, owner=wal_owner(SYSTEM), attempt=attempt)
        key = envelope_key(wal_owner(SYSTEM), attempt, envelope["kek"])
        text = "".join(f"{timeline}\t{left}\tfailed over\n" for timeline, left in history.switches)
        sealer = Sealer(dek, {"system_identifier": SYSTEM, "wal": name, "attempt": attempt}, level=1)
        self.contents[key] = canonical_json(envelope)
        self.contents[wal_key(SYSTEM, name, attempt)] = sealer.add(text.encode()) + sealer.finish()
        self.objects |= dict.fromkeys([key, wal_key(SYSTEM, name, attempt)], at)

    def remove(self, keys: Iterable[str]) -> None:
        """For good."""
        gone = set(keys)
        for key in gone:
            del self.objects[key]
            self.contents.pop(key, None)
        self.gaps = [gap for gap in self.gaps if gap.home not in gone]
        for backup in [backup for backup, entry in self.entries.items() if entry.key in gone]:
            del self.entries[backup]
            del self.short[backup]

    def catalog(self) -> Catalog:
        """What the planner asks."""
        return cast("Catalog", _MemoryCatalog(self))

    # --- what is asked of a bucket -----------------------------------------------------------------------------------

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        """One of each key."""
        for key in sorted(key for key in self.objects if key.startswith(prefix)):
            size = len(self.contents.get(key, b"1234567"))
            yield ObjectVersion(key, "1", self.objects[key], size, "", deleted=False, latest=True)

    def read(self, key: str, *, version_id: str | None = None) -> bytes:
        """What is in it."""
        if key not in self.contents:
            raise ObjectMissing(f"{key} does not exist.", mend="")
        return self.contents[key]

    def read_oldest(self, key: str) -> bytes:
        """The same."""
        return self.read(key)

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """A part of it."""
        return self.read(key)[start:end]


class _MemoryCatalog:
    def __init__(self, memory: Memory) -> None:
        self.bucket, self.keyring, self._memory = cast("Bucket", memory), memory.keyring, memory

    def entries(self, type_: BackupType | None = None) -> list[Entry]:
        found = [
            entry
            for entry in self._memory.entries.values()
            if type_ is None or (entry.manifest and entry.manifest.type == type_)
        ]
        return sorted(found, key=_time)

    def get(self, backup: BackupId) -> Manifest:
        manifest = self._memory.entries[str(backup)].manifest
        assert manifest is not None
        return manifest

    def verification(self, manifest: Manifest) -> Verification:
        return self._memory.entries[manifest.id].verification


def _time(entry: Entry) -> datetime:
    assert entry.manifest is not None
    return entry.manifest.consistency_point.time


def day(number: float) -> datetime:
    """So many days after the beginning of 2026, which is a Thursday."""
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)


POLICY = load_policy()


def policy(*, minimum: int = 1, **changes: object) -> Policy:
    """The policy with small minimums, so that little data is enough."""
    kept = POLICY.storage.retention.minimum_kept.model_copy(
        update={"full": minimum, "incremental": minimum, "snapshot": minimum}
    )
    retention = POLICY.storage.retention.model_copy(update={"minimum_kept": kept, **changes})
    return POLICY.model_copy(update={"storage": POLICY.storage.model_copy(update={"retention": retention})})


SMALL = policy()


def lay_down(catalog: Catalog, manifest: Manifest, *, verified: bool = True) -> Manifest:
    """Everything that it names, the manifest last, and a proof."""
    for owner, attempt in sorted(data_keys(manifest)):
        create_data_key(catalog.bucket, catalog.keyring, owner=owner, attempt=attempt)
    for one in references(manifest):
        catalog.bucket.put(one.key, b"x" * one.stored_bytes)
    committed = catalog.commit(manifest)
    if verified:
        prove(catalog, manifest)
    return committed


def prove(catalog: Catalog, manifest: Manifest, *, passed: bool = True) -> None:
    """A record of its integrity; one that failed is the newer one."""
    store_record(
        catalog.bucket,
        catalog.keyring,
        Record(
            backup=manifest.id,
            attempt=manifest.attempt,
            proof=INTEGRITY,
            passed=passed,
            when=catalog.bucket.clock() + timedelta(seconds=not passed),
            bucket=catalog.bucket.name,
            by="somebody",
            milliseconds=1,
            facts={},
            what=None if passed else "A bit is flipped.",
            mend=None if passed else "Use another.",
        ),
    )


@contextmanager
def at(catalog: Catalog, now: datetime) -> Iterator[None]:
    """Inside the block the store's clock tells this moment."""
    catalog.bucket.clock = lambda: now  # type: ignore[method-assign]
    try:
        yield
    finally:
        del catalog.bucket.clock  # type: ignore[method-assign]


def weeks(catalog: Catalog) -> list[Manifest]:
    """Two Sundays with a full backup, a snapshot, and some increments behind it, each."""
    cluster = Cluster()
    made = []
    for sunday, hours in ((3, (1, 30, 60)), (10, (1, 30))):
        made.append(cluster.full(day(sunday) - timedelta(hours=1)))
        made.append(cluster.snapshot(day(sunday)))
        made += [cluster.increment(day(sunday) + timedelta(hours=hour)) for hour in hours]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda each: lay_down(catalog, each), made))


LATE = day(10) + timedelta(days=3650)
"""Longer after the last Sunday, and after any day on which this test is run, than anything is kept for its age."""

"""The ledger: what of the incremental schedule is in the bucket, computed from it; only gaps are written down.

A gap is write-ahead log that is nowhere any more. Whoever finds it declares it, so that recovery stops there instead of
promoting, and so that the next window begins behind it, once there is a new base (`docs/format.md`, *Declared gaps*).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, ClassVar, Literal, Self

from pydantic import AwareDatetime, model_validator

from include.errors import BackupError, Hopeless
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, ObjectExists
from include.policy import Policy
from include.repository.catalog import Catalog
from include.repository.layout import BackupId, gap_prefix
from include.repository.lsn import Lsn, LsnField, segment_lsn, segment_name
from include.repository.manifest import Manifest, moment_text
from include.repository.signed import SignedDocument
from include.repository.wal import Shipped, WalArchive

State = Literal["complete", "adopted", "gap", "missing"]
_READS_AT_ONCE = 16


class GapRefused(BackupError):
    """A declared gap that is not genuine: who may only write into the bucket must not make recovery stop."""


class GapDeclared(Hopeless):
    """WAL is gone for good: the chain has a gap, which is written down. Nothing restores a moment within it."""

    def __init__(self, gap: Gap) -> None:
        super().__init__(
            f"The write-ahead log from {gap.start_lsn} to {gap.end_lsn} (timeline {gap.timeline}) is gone: "
            f"{gap.because} No moment after {moment_text(gap.after)} can be restored until there is a new base.",
            mend="Run the DAG snapshot_backup now; increments go on behind it by themselves.",
        )
        self.gap = gap


class Gap(SignedDocument):
    """A stretch `[start_lsn, end_lsn)` of one cluster's log that is in no bucket and on no server any more.

    `timeline` is the one at its end. `after` is the last moment before it that can be restored, `before` the moment, by
    the server's clock, from which on there is log again; `because` says how it was lost, `declared` when it was found.
    """

    kind: ClassVar[str] = "declared gap"
    refusal: ClassVar[type[BackupError]] = GapRefused

    system_identifier: str
    timeline: int
    start_lsn: LsnField
    end_lsn: LsnField
    after: AwareDatetime
    before: AwareDatetime
    because: str
    declared: AwareDatetime

    @model_validator(mode="after")
    def _is_a_stretch(self) -> Self:
        if self.end_lsn <= self.start_lsn:
            raise ValueError("a gap ends after it begins")
        return self

    @property
    def home(self) -> str:
        """Where it lies: names sort by place."""
        return f"{gap_prefix(self.system_identifier)}{int(self.start_lsn):016X}-{int(self.end_lsn):016X}.json"


def declare(bucket: Bucket, keyring: Keyring, gap: Gap) -> None:
    """Make the gap durable; one that was declared already stays as it was. Raises `StoreError`."""
    with suppress(ObjectExists):
        bucket.create(gap.home, gap.sealed(keyring))


def read_gaps(bucket: Bucket, keyring: Keyring, system_identifier: str) -> tuple[Gap, ...]:
    """The declared gaps of one cluster, in the order of the log; of each the oldest version counts.

    Raises `GapRefused` for one that is not genuine: what it hides or pretends cannot be told.
    """
    prefix = gap_prefix(system_identifier)
    keys = sorted({version.key for version in bucket.versions(prefix) if not version.deleted})

    def read(key: str) -> Gap:
        return Gap.open(bucket.read_oldest(key), keyring, key=key)

    with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="ledger") as pool:
        return tuple(pool.map(read, keys))


@dataclass(frozen=True)
class Interval:
    """One slot of the incremental schedule, `(start, end]`, and what became of it.

    `backup` is its own, or the one that covers it (adopted); `gap` the gap that it lies in, as far as it does.
    """

    start: datetime
    end: datetime
    state: State
    backup: str | None = None
    gap: Gap | None = None

    def to_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "state": self.state,
            "backup": self.backup,
            "gap": self.gap and self.gap.home,
        }


def slots(schedule: str, since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The data intervals of a cron schedule (UTC) that end in `(since, until]`, oldest first."""
    from croniter import croniter  # noqa: PLC0415 - a tenth of a second, which no manifest needs

    ticks = croniter(schedule, since.astimezone(UTC))
    start = croniter(schedule, ticks.get_next(datetime)).get_prev(datetime)
    ticks = croniter(schedule, start)
    while (end := ticks.get_next(datetime)) <= until:
        if end > since:
            yield start, end
        start = end


def intervals(
    schedule: str,
    since: datetime,
    until: datetime,
    *,
    manifests: Sequence[Manifest],
    gaps: Sequence[Gap] = (),
) -> list[Interval]:
    """Every slot of the schedule that ended in `(since, until]`.

    *complete*: the slot's own increment is committed. *gap*: a part of it lies in a declared gap, which goes on until
    the first base behind it. *adopted*: another increment's window covers it whole. *missing*: nothing does (yet).
    """
    windows = [each for each in manifests if each.type == "incremental" and each.wal]
    return [
        judge(start, end, manifests=manifests, windows=windows, gaps=gaps)
        for start, end in slots(schedule, since, until)
    ]


def judge(
    start: datetime, end: datetime, *, manifests: Sequence[Manifest], windows: Sequence[Manifest], gaps: Sequence[Gap]
) -> Interval:
    """What became of one slot; `manifests` are those with bases, `windows` the increments. See `intervals`."""
    own = str(BackupId("incremental", end))
    gap = next((gap for gap in gaps if gap.after < end and start < _ended(gap, manifests)), None)
    if any(each.id == own for each in windows):
        return Interval(start, end, "complete", own, gap)
    if gap is not None:
        return Interval(start, end, "gap", None, gap)
    if covering := covered_by(start, end, windows):
        return Interval(start, end, "adopted", covering.id)
    return Interval(start, end, "missing")


def covered_by(start: datetime, end: datetime, windows: Sequence[Manifest]) -> Manifest | None:
    """The window that holds the end of a slot, when windows without a hole between hold all of it; None otherwise."""
    covering: Manifest | None = None
    reached = end
    for window in sorted(windows, key=lambda each: each.consistency_point.time, reverse=True):
        assert window.wal is not None  # noqa: S101 - windows have one
        if window.wal.since < reached <= window.consistency_point.time:
            covering = covering or window
            reached = window.wal.since
            if reached <= start:
                return covering
    return None


def _of_what_was_live(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Without the windows of a cluster that was failed over from, and came back: while another cluster was backed up,
    what its log has is not what users saw.
    """
    points = sorted((each.consistency_point.time, each.database.system_identifier) for each in manifests)

    def others(window: Manifest) -> bool:
        assert window.wal is not None  # noqa: S101 - the caller looked
        first = bisect_right(points, window.wal.since, key=itemgetter(0))
        last = bisect_left(points, window.consistency_point.time, key=itemgetter(0))
        return any(system != window.database.system_identifier for _, system in points[first:last])

    return [each for each in manifests if each.wal is None or not others(each)]


def _ended(gap: Gap, manifests: Sequence[Manifest]) -> datetime:
    """When moments can be restored again after a gap: from the first base behind it; never while there is none."""
    behind = [
        each.base.stopped
        for each in manifests
        if each.base and each.database.system_identifier == gap.system_identifier and each.base.start_lsn >= gap.end_lsn
    ]
    return min(behind, default=datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True)
class Newest:
    """The newest moment that can be restored: a backup's consistency point, and where the log shipped since then ends.

    `reaches` is that backup's own end when nothing was shipped beyond it. What lies beyond has no time before it is
    read: it is less than the policy's `shipped_within` old as long as the stream runs.
    """

    backup: str
    time: datetime
    reaches: Lsn
    shipped: datetime | None

    def to_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "backup": self.backup,
            "time": self.time.isoformat(),
            "reaches": str(self.reaches),
            "shipped": self.shipped and self.shipped.isoformat(),
        }


def newest_recoverable(manifests: Sequence[Manifest], shipped: Mapping[str, tuple[Shipped, ...]]) -> Newest | None:
    """How far recovery reaches along the newest backup's timeline; None when nothing has WAL.

    `shipped` is the bucket's listing for that cluster.
    """
    with_wal = [each for each in manifests if each.wal]
    if not with_wal:
        return None
    newest = max(with_wal, key=lambda each: each.consistency_point.time)
    assert newest.wal is not None  # noqa: S101 - filtered above
    reaches, last = newest.wal.end_lsn, None
    while copies := shipped.get(name := segment_name(newest.wal.timeline, reaches, newest.wal.segment_bytes)):
        last = copies[0].modified
        reaches = Lsn(segment_lsn(name, newest.wal.segment_bytes) + newest.wal.segment_bytes)
    return Newest(newest.id, newest.consistency_point.time, reaches, last)


@dataclass(frozen=True)
class Ledger:
    """All that there is to tell of a period: its slots, the gaps of the cluster, and how far recovery reaches."""

    slots: tuple[Interval, ...]
    gaps: tuple[Gap, ...]
    newest: Newest | None

    @classmethod
    def read(cls, catalog: Catalog, policy: Policy, *, since: datetime, until: datetime) -> Self:
        """Compute it from the bucket: each hour of whichever cluster was backed up then, the rest of the newest one.

        Raises `GapRefused`, and what the store raises. A backup that is refused, or whose verification failed, is
        missing.
        """
        entries = [*catalog.entries("snapshot"), *catalog.entries("incremental")]
        with_wal = [
            entry.manifest
            for entry in entries
            if entry.manifest and entry.manifest.wal and not entry.verification.failed
        ]
        schedule = policy.backups.incremental.schedule
        if not with_wal:
            return cls(tuple(intervals(schedule, since, until, manifests=())), (), None)
        newest = max(with_wal, key=lambda each: each.consistency_point.time)
        system = newest.database.system_identifier
        own = [each for each in with_wal if each.database.system_identifier == system]
        gaps = read_gaps(catalog.bucket, catalog.keyring, system)
        archive = WalArchive(catalog.bucket, catalog.keyring, system, policy=policy.pipeline)
        return cls(
            tuple(intervals(schedule, since, until, manifests=_of_what_was_live(with_wal), gaps=gaps)),
            gaps,
            newest_recoverable(own, archive.shipped()),
        )

    def to_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "slots": [each.to_json() for each in self.slots],
            "gaps": [{**gap.model_dump(mode="json"), "key": gap.home} for gap in self.gaps],
            "newest": self.newest and self.newest.to_json(),
        }

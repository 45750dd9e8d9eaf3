"""Retention over 10,000 backups and a million objects: seconds, and memory.

    python -m benchmarks.retention [--quick]

The view is made in memory, as `Survey` makes it of a bucket: a year of hourly increments, fulls and snapshots, of which
nobody ever deleted any. What is measured is the decision, a verdict on every object, and the moments before and after.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from benchmarks.benchmark import benchmark
from benchmarks.results import Result
from include.policy import load_policy
from include.repository.committed import Base, Committed, Stretch
from include.repository.layout import BackupId, BackupType, envelope_prefix, pack_key, wal_key, wal_owner
from include.repository.lsn import Lsn, segment_name
from include.repository.retention import View, WalCopy, decide

OBJECTS, OBJECT_BYTES = 100, 1_000
"""Of each backup, and what each would take: the benchmarks' gigabyte is a million objects, of 10,000 backups."""
SEGMENT = 16 << 20
NOW = datetime(2027, 6, 1, 4, tzinfo=UTC)
ARTIFACTS, PACKS, LOG = 30, 20, 25
"""With their envelopes, manifest and record a hundred objects."""


def main() -> None:
    """Make the view, decide, judge every object."""
    benchmark("python -m benchmarks.retention", str(__doc__), lambda _, size, __: _measure(size // OBJECT_BYTES))


def _measure(objects: int) -> list[Result]:
    policy = load_policy()
    backups = list(_backups(objects // OBJECTS))
    wal = [WalCopy(key, SEGMENT, each.time) for each in backups for key in each.shared if key.startswith("wal/")]
    begin = time.perf_counter()
    decisions = decide(View(backups=backups, wal=wal), policy, NOW)
    decided = time.perf_counter()
    judged = going = 0
    for key, modified in _objects(backups):
        judged += 1
        going += not decisions.of(key, modified).stays
    told = time.perf_counter()
    lost = decisions.moments_lost
    ended = time.perf_counter()
    conditions = (
        f"{os.cpu_count()} cores, Python {platform.python_version()}; {len(backups):,} backups and {judged:,} objects, "
        f"of which {len(decisions.going):,} and {going:,} go, and {len(lost)} intervals of moments; the view in memory"
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return [
        Result(f"retention.{name}", round(value, 1), unit, None, None, conditions)
        for name, value, unit in (
            ("decided", decided - begin, "s"),
            ("every_object", told - decided, "s"),
            ("moments", ended - told, "s"),
            ("memory", memory, "MB"),
        )
    ]


def _backups(count: int) -> Iterator[Committed]:
    """Hour after hour up to now; each Sunday a snapshot, each midnight a full backup."""
    hours = count * 24 // 25
    segment = 1
    for number in range(hours, 0, -1):
        at = NOW - timedelta(hours=number)
        segment += LOG
        yield _backup("incremental", at, segment - LOG, segment)
        if at.hour == 0:
            type_: BackupType = "snapshot" if at.isoweekday() == 7 else "full"  # noqa: PLR2004 - Sunday
            yield _backup(type_, at + timedelta(minutes=10), segment, segment + 1 if type_ == "snapshot" else segment)
            segment += type_ == "snapshot"


def _backup(type_: BackupType, at: datetime, start: int, end: int) -> Committed:
    backup = BackupId(type_, at.replace(minute=0))
    attempt = _name(backup, 16)
    log = Stretch(1, Lsn(start * SEGMENT), Lsn(end * SEGMENT), SEGMENT) if end > start else None
    names = [segment_name(1, Lsn(number * SEGMENT), SEGMENT) for number in range(start, end)]
    packs = [_name(f"{backup} {number}", 32) for number in range(PACKS)]
    shared = (*map(pack_key, packs), *(wal_key("1", name, attempt) for name in names))
    owners = [str(backup), *packs, *([wal_owner("1")] if log else [])]
    snapshot = type_ == "snapshot"
    return Committed(
        id=str(backup),
        type=type_,
        retention_class="",
        attempt=attempt,
        time=at,
        attempts=frozenset([attempt]),
        shared=shared,
        envelopes=frozenset(envelope_prefix(owner, attempt) for owner in owners),
        stored_bytes=10**9,
        system="1",
        timeline=1,
        point=Lsn(end * SEGMENT - 0x100),
        log=log,
        base=Base(Lsn(start * SEGMENT + 0x28), Lsn(start * SEGMENT + 0x800), at) if snapshot else None,
        objects_as_of=at,
        objects_since=at - timedelta(hours=1) if type_ == "incremental" else None,
        refs="0",
        bundle=type_ != "incremental",
        verified=True,
    )


def _objects(backups: list[Committed]) -> Iterator[tuple[str, datetime]]:
    """Every key that a bucket would list for them."""
    for each in backups:
        backup = BackupId.parse(each.id)
        yield backup.manifest_key, each.time
        yield f"verification/{each.id}/20270101T000000.000000Z-integrity-00000000.json", each.time
        prefix = backup.attempt_prefix(each.attempt)
        yield from ((f"{prefix}database/part.pgdump.zst.enc/{number:05d}", each.time) for number in range(ARTIFACTS))
        yield from ((key, each.time) for key in each.shared)
        yield from ((f"{prefix}kek-1.json", each.time) for prefix in each.envelopes)


def _name(words: object, digits: int) -> str:
    return hashlib.sha256(str(words).encode()).hexdigest()[:digits]


if __name__ == "__main__":
    main()

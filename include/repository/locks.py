"""Object Lock: until when nobody may delete what is written, by where it lies (policy: `storage.object_lock`).

One place says it, and the bucket asks whenever it writes: a lock follows retention, and is never longer than that. Of
a backup the moment in its id counts, so a copy that is made later is locked no longer than the first. What is shared,
packs and shipped log, is locked for as long as the shortest thing that may need it; committing a backup extends
whatever it names to its own time, and so does whoever keeps a backup longer than that (`keep`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from include.pipeline.store import Bucket
from include.policy import Policy
from include.policy.quantities import runs_on
from include.repository.layout import KEYS, MANIFESTS, PACKS, VERIFICATION, WAL, BackupId, named_by, place_of
from include.repository.manifest import Manifest
from include.repository.references import envelope_prefixes, references

_AT_ONCE = 16
_YEAR = 366


def locked(bucket: Bucket, policy: Policy, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Bucket:
    """The bucket, locking what it writes as the policy says; untouched where the policy locks nothing."""
    if policy.storage.object_lock != "off":
        bucket.lock_with(policy.storage.object_lock, lambda key: locked_until(key, policy, clock()))
    return bucket


def locked_until(key: str, policy: Policy, now: datetime) -> datetime | None:
    """Until when an object of that key, written now, is locked; None for one that is not.

    Not locked are probes and declared gaps, holds and shreddings: what they are about is.
    """
    until = _until(key, policy, now)
    return until if until is not None and until > now else None


def keep(bucket: Bucket, manifest: Manifest, until: datetime) -> int:
    """Extend the lock of everything that a backup stands on: its pieces, keys and manifest; returns how many were.

    A lock that is longer already stays; a bucket that locks nothing is left alone. Raises `StoreError`.
    """
    if not bucket.locks:
        return 0
    keys = [each.key for each in references(manifest)]
    keys += [key for prefix in envelope_prefixes(manifest) for key in bucket.keys(prefix)]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lock") as pool:
        return sum(pool.map(lambda key: bucket.retain(key, until), [*keys, manifest.home]))


def _until(key: str, policy: Policy, now: datetime) -> datetime | None:
    if key.startswith(PACKS):
        return policy.backups.full.retention.after(now)
    if key.startswith((WAL, f"{KEYS}wal-")):
        return _window_end(policy, now)
    if (backup := _backup_of(key)) is not None:
        return _retained(backup, policy)
    place = place_of(key)
    return policy.backups.full.retention.after(now) if place and place.pack else None


def _retained(backup: BackupId, policy: Policy) -> datetime | None:
    if backup.type == "archive":
        period = policy.compliance.retention.get(backup.retention_class)
        return period.after(backup.moment) if period else None
    if backup.type == "incremental":
        return _window_end(policy, backup.moment)
    rolling = policy.backups.full if backup.type == "full" else policy.backups.snapshot
    return rolling.retention.after(backup.moment)


def _window_end(policy: Policy, moment: datetime) -> datetime:
    """Until when log may be replayed: the window, behind a base that was a whole interval old when it began."""
    return policy.backups.incremental.retention.after(moment + _between(policy.backups.snapshot.schedule))


def _between(schedule: str) -> timedelta:
    """The longest time between two days on which a schedule comes round."""
    year = [datetime(2028, 1, 1, tzinfo=UTC) + timedelta(days=number) for number in range(2 * _YEAR)]
    days = [day for day in year if runs_on(schedule, day)]
    return max(later - earlier for earlier, later in pairwise(days))


def _backup_of(key: str) -> BackupId | None:
    """The backup that an object is a part of, as its key says."""
    if key.startswith(MANIFESTS):
        return named_by(key.rpartition("/")[2].removesuffix(".json"))
    if key.startswith(VERIFICATION):
        return named_by(key.split("/")[1])
    place = place_of(key)
    return place.backup if place else None

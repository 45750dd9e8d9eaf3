"""Leases: who reads what, so that nothing is deleted under a restore (`docs/format.md`, *Leases*).

A reader writes down which backups it reads, says again and again that it lives, and removes that when it has ended; one
that died is forgotten after the policy's time. It writes first and looks for tombstones then; who deletes writes the
tombstone first and looks for leases then: of the two, at least one sees the other.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from include.errors import BackupError
from include.pipeline.canonical import canonical_json
from include.pipeline.store import Bucket, ObjectMissing, ObjectVersion, StoreError
from include.policy import Policy
from include.repository.catalog import Catalog
from include.repository.layout import READING
from include.repository.signed import writer
from include.repository.tombstones import read_tombstones

log = logging.getLogger(__name__)

_SIGNS = 3
"""How often in the policy's time a reader says that it lives."""


class BeingDeleted(BackupError):
    """A backup that retention is deleting at this moment."""


@dataclass(frozen=True)
class Readings:
    """What is being read: `backups` by id, and by whom. A living lease that cannot be read may name `anything`."""

    backups: dict[str, str] = field(default_factory=dict)
    anything: str | None = None

    def of(self, backup: str) -> str | None:
        """Who reads it, in words; None when nobody does."""
        return self.backups.get(backup, self.anything)


@contextmanager
def reading(catalog: Catalog, backups: Collection[str], policy: Policy, *, what: str) -> Iterator[None]:
    """Keep these backups from being deleted inside the block, which reads them to do `what`.

    A login that may not write is warned, and reads all the same. Raises `BeingDeleted`.
    """
    bucket, prefix = catalog.bucket, f"{READING}{secrets.token_hex(8)}/"
    body = canonical_json({"format": 1, "backups": sorted(backups), "by": writer(), "what": what})
    if not _told(bucket, f"{prefix}000000.json", body):
        yield
        return
    try:
        _require_living(catalog, backups)
        with _signs_of_life(bucket, prefix, body, every=policy.storage.retention.lease / _SIGNS):
            yield
    finally:
        _end(bucket, prefix)


def living(bucket: Bucket, lease: timedelta, now: datetime) -> Readings:
    """What is read now, by the store's clock."""
    leases: dict[str, list[ObjectVersion]] = defaultdict(list)
    for version in bucket.versions(READING):
        leases[version.key.rpartition("/")[0]].append(version)
    found: dict[str, str] = {}
    anything = None
    for prefix, versions in leases.items():
        signs = [version for version in versions if not version.deleted and version.latest]
        if not signs or max(sign.modified for sign in signs) < now - lease:
            continue
        try:
            told = json.loads(bucket.read(signs[-1].key, version_id=signs[-1].version_id))
            words = f"{told['by']} reads it: {told['what']}"
            found |= dict.fromkeys([str(each) for each in told["backups"]], words)
        except ObjectMissing:
            continue  # it ended meanwhile
        except (ValueError, KeyError, TypeError):
            anything = f"{bucket}/{prefix} is a lease that cannot be read, and may name it"
    return Readings(found, anything)


def _told(bucket: Bucket, key: str, body: bytes) -> bool:
    """Whether the lease could be written down."""
    try:
        bucket.create(key, body)
    except StoreError as refused:
        log.warning("Nobody is told what is read: retention may delete it meanwhile. %s", refused)
        return False
    return True


def _require_living(catalog: Catalog, backups: Collection[str]) -> None:
    for tombstone in read_tombstones(catalog.bucket, catalog.keyring).values():
        if tombstone.backup in backups:
            raise BeingDeleted(
                f"{tombstone.backup} is being deleted from {catalog.bucket}: its time is over.",
                mend="Restore another backup or the replica's copy. To keep it, if its manifest is still listed: "
                "`python -m include.cli hold`, then try again in a minute.",
            )


@contextmanager
def _signs_of_life(bucket: Bucket, prefix: str, body: bytes, *, every: timedelta) -> Iterator[None]:
    ended = threading.Event()

    def renew() -> None:
        number = 0
        while not ended.wait(every.total_seconds()):
            number += 1
            try:
                bucket.create(f"{prefix}{number:06d}.json", body)
            except StoreError as failed:
                log.warning("A lease could not be renewed, and is tried again: %s", failed)

    renewing = threading.Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()


def _end(bucket: Bucket, prefix: str) -> None:
    """Nothing of it stays; where versions may not be deleted, markers say that it has ended."""
    try:
        for version in list(bucket.versions(prefix)):
            try:
                bucket.delete_version(version.key, version.version_id)
            except StoreError:
                bucket.delete(version.key)
    except StoreError as failed:
        log.warning("A lease could not be removed, and ends by its age: %s", failed)

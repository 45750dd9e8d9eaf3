"""Tombstones: what is being deleted, said before the first of it is gone (`docs/format.md`, *Deleting*).

A backup is deleted manifest first. Whoever is killed behind that leaves artifacts, packs, keys and records that no
manifest names any more; the tombstone says whose they were, so that the next run ends what this one began, and so that
nobody takes them for a backup whose manifest was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import ClassVar

from pydantic import AwareDatetime

from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, ObjectExists
from include.repository.committed import Committed
from include.repository.layout import DELETED, BackupId, envelope_prefix
from include.repository.signed import SignedDocument

log = logging.getLogger(__name__)


class TombstoneRefused(BackupError):
    """A tombstone that is not genuine: nobody deletes anything because of it."""


class Tombstone(SignedDocument):
    """That one bucket's copy of a backup is being deleted.

    `attempt` is the committed one, `attempts` all that wrote its artifacts; `shared` what it named beside them, which
    other backups may name too; `envelopes` the prefixes of its data keys.
    """

    kind: ClassVar[str] = "tombstone"
    refusal: ClassVar[type[BackupError]] = TombstoneRefused

    bucket: str
    backup: str
    attempt: str
    time: AwareDatetime
    deleted: AwareDatetime
    attempts: tuple[str, ...]
    shared: tuple[str, ...]
    envelopes: tuple[str, ...]
    stored_bytes: int

    @classmethod
    def of(cls, backup: Committed, *, bucket: str, deleted: AwareDatetime) -> Tombstone:
        """That of a backup that goes."""
        return cls(
            bucket=bucket,
            backup=backup.id,
            attempt=backup.attempt,
            time=backup.time,
            deleted=deleted,
            attempts=tuple(sorted(backup.attempts)),
            shared=backup.shared,
            envelopes=tuple(sorted(backup.envelopes)),
            stored_bytes=backup.stored_bytes,
        )

    @property
    def home(self) -> str:
        """Where it lies."""
        return f"{DELETED}{self.backup}/{self.attempt}.json"

    @property
    def id(self) -> BackupId:
        """The parsed id."""
        return BackupId.parse(self.backup)

    @property
    def own_prefixes(self) -> tuple[str, ...]:
        """Under which its artifacts lie."""
        return tuple(self.id.attempt_prefix(attempt) for attempt in self.attempts)

    @property
    def own_envelopes(self) -> tuple[str, ...]:
        """Under which the keys of its artifacts lie."""
        return tuple(envelope_prefix(self.backup, attempt) for attempt in self.attempts)


def bury(bucket: Bucket, keyring: Keyring, tombstone: Tombstone) -> None:
    """Make the tombstone durable; one that a killed run left says the same. Raises `StoreError`."""
    try:
        bucket.create(tombstone.home, tombstone.sealed(keyring))
    except ObjectExists:
        Tombstone.open(bucket.read_oldest(tombstone.home), keyring, key=tombstone.home)


def read_tombstones(bucket: Bucket, keyring: Keyring, backup: str = "") -> dict[str, Tombstone]:
    """The genuine tombstones of this bucket, by key; of all backups, or of one.

    One that came here from another bucket, or that is refused, says nothing, and is logged.
    """
    found = {}
    for key in _keys(bucket, f"{DELETED}{backup}/" if backup else DELETED):
        try:
            tombstone = Tombstone.open(bucket.read_oldest(key), keyring, key=key)
        except TombstoneRefused as refused:
            log.warning("A tombstone is passed over: %s", refused)
            continue
        if tombstone.bucket == bucket.name:
            found[key] = tombstone
    return found


def _keys(bucket: Bucket, prefix: str) -> Iterator[str]:
    yield from sorted({version.key for version in bucket.versions(prefix) if not version.deleted})

"""A class's month, shredded: the one data key of its archive destroyed, and written down that it was (R8.1).

What is left are bytes that nobody can read any more, in every storage class and in every copy of the bucket: that is
why an archive has one key. It is written down *before* the key goes, so that whoever is killed in between can go on,
and so that a missing key is never taken for a loss.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import datetime
from typing import ClassVar

from pydantic import AwareDatetime

from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, ObjectExists, ObjectMissing
from include.repository.catalog import Catalog
from include.repository.holds import read_holds
from include.repository.layout import KEYS, SHREDDED, BackupId, named_by
from include.repository.manifest import moment_text
from include.repository.signed import SignedDocument

log = logging.getLogger(__name__)


class ShreddingRefused(BackupError):
    """A record of a shredding that is not genuine."""


class NotShreddable(BackupError):
    """A backup that shares its keys with others, or that somebody holds."""


class ArchiveShredded(BackupError):
    """An archive whose key was destroyed on purpose: nothing brings it back."""


class Shredding(SignedDocument):
    """That the data key of an archive is destroyed in one bucket: by whom, when, and because of what."""

    kind: ClassVar[str] = "shredding"
    refusal: ClassVar[type[BackupError]] = ShreddingRefused

    archive: str
    bucket: str
    when: AwareDatetime
    by: str
    because: str

    @property
    def home(self) -> str:
        """Where it lies."""
        return _home(self.archive)


def shred(
    catalog: Catalog,
    archive: BackupId,
    *,
    by: str,
    because: str,
    now: datetime,
    bypass_governance: bool = False,
) -> int:
    """Destroy every version of every wrap of the archive's data key in one bucket; returns how many there were.

    The record is written first. One that is there already stays, and the rest is done again. A lock in governance mode
    gives way to `bypass_governance`. Raises as `require_shreddable`, and `StoreError` where the store keeps a wrap
    (Object Lock, a missing permission): then it is not shredded yet.
    """
    require_shreddable(catalog, archive)
    record = Shredding(archive=str(archive), bucket=catalog.bucket.name, when=now, by=by, because=because)
    with suppress(ObjectExists):
        catalog.bucket.create(record.home, record.sealed(catalog.keyring))
    destroyed = 0
    while wraps := list(catalog.bucket.versions(f"{KEYS}{archive}/")):
        for wrap in wraps:
            catalog.bucket.delete_version(wrap.key, wrap.version_id, bypass_governance=bypass_governance)
        destroyed += sum(not wrap.deleted for wrap in wraps)
    log.warning("%s is shredded in %s: %d wraps of its key are destroyed.", archive, catalog.bucket, destroyed)
    return destroyed


def require_shreddable(catalog: Catalog, archive: BackupId) -> None:
    """Raise `NotShreddable` for what is no archive, or what somebody holds; `NoSuchBackup` for one that is not there.

    Whoever shreds in both regions asks in both first: half of it would help nobody.
    """
    if archive.type != "archive":
        raise NotShreddable(
            f"{archive} is no archive: other backups stand on what it wrote.",
            mend="Shred the archive of a class's month; the rolling backups expire by themselves.",
        )
    if held := read_holds(catalog.bucket, catalog.keyring, archive).get(str(archive)):
        raise NotShreddable(
            f"{archive} is {held}.", mend="Have the hold released first, by who may: `python -m include.cli release`."
        )
    catalog.get(archive)


def read_shredding(bucket: Bucket, keyring: Keyring, archive: BackupId) -> Shredding | None:
    """What was written down of an archive's shredding in this bucket; None for one that was not shredded.

    A record that is not genuine is none, and told in the log: who may only write into the bucket must not be able to
    stop a restore. Without its key an archive is unreadable in any case.
    """
    key = _home(str(archive))
    try:
        return Shredding.open(bucket.read_oldest(key), keyring, key=key)
    except ObjectMissing:
        return None
    except ShreddingRefused as refused:
        log.warning("That %s was shredded is not believed: %s", archive, refused.what)
        return None


def shredded(catalog: Catalog) -> frozenset[str]:
    """The ids of the archives that were shredded in this bucket."""
    names = (key.removeprefix(SHREDDED).removesuffix(".json") for key in catalog.bucket.keys(SHREDDED))
    ids = filter(None, map(named_by, names))
    return frozenset(str(each) for each in ids if read_shredding(catalog.bucket, catalog.keyring, each))


def require_key(catalog: Catalog, archive: BackupId) -> None:
    """Raise `ArchiveShredded` for an archive whose key was destroyed, so that nobody looks for it."""
    if (record := read_shredding(catalog.bucket, catalog.keyring, archive)) is not None:
        raise ArchiveShredded(
            f"{archive} was shredded in {catalog.bucket}, {moment_text(record.when)}, by {record.by}: {record.because}",
            mend="Nothing brings it back from here. A bucket that it was not shredded in still has it.",
        )


def _home(archive: str) -> str:
    return f"{SHREDDED}{archive}.json"

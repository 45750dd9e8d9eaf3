"""Legal holds: a backup that nobody may delete, whatever its age, until somebody releases it.

Each hold and each release is one more signed object (`docs/format.md`, *Holds*); the newest of a backup decides. What
is not genuine releases nothing.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar

from pydantic import AwareDatetime, Field, StringConstraints

from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, ObjectVersion
from include.repository.catalog import Catalog
from include.repository.layout import HOLDS, BackupId
from include.repository.signed import SignedDocument

_STAMP = "%Y%m%dT%H%M%S.%fZ"
_NAME = re.compile(
    rf"{HOLDS}(?P<backup>[^/]+)/(?P<when>\d{{8}}T\d{{6}}\.\d{{6}}Z)-(?P<what>hold|release)-[0-9a-f]{{8}}\.json",
    re.ASCII,
)


class HoldRefused(BackupError):
    """A hold or a release that is not genuine."""


class NotHeld(BackupError):
    """A backup that is to be released and that nobody holds."""


class Hold(SignedDocument):
    """That a backup is held, or (`held` is false) released: by whom, when, and because of what."""

    kind: ClassVar[str] = "hold"
    refusal: ClassVar[type[BackupError]] = HoldRefused

    backup: str
    held: bool
    when: AwareDatetime
    by: str
    because: str
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")] = Field(
        default_factory=lambda: secrets.token_hex(4)
    )

    @property
    def home(self) -> str:
        """Where it lies: names sort by time, and say which of the two it is."""
        when = self.when.astimezone(UTC).strftime(_STAMP)
        return f"{HOLDS}{self.backup}/{when}-{'hold' if self.held else 'release'}-{self.nonce}.json"


def hold(catalog: Catalog, backup: BackupId, *, by: str, because: str) -> Hold:
    """Hold a backup that is there; raises `NoSuchBackup`, `ManifestRefused` or `StoreError`."""
    catalog.get(backup)
    return _write(catalog, backup, held=True, by=by, because=because)


def release(catalog: Catalog, backup: BackupId, *, by: str, because: str) -> Hold:
    """End what holds a backup; raises `NotHeld` when nothing does."""
    if str(backup) not in read_holds(catalog.bucket, catalog.keyring, backup):
        raise NotHeld(f"Nobody holds {backup}.", mend="`python -m include.cli retention --why BACKUP` says what does.")
    return _write(catalog, backup, held=False, by=by, because=because)


def read_holds(bucket: Bucket, keyring: Keyring, backup: BackupId | None = None) -> dict[str, str]:
    """Why each held backup is held, by id, in words; of all of them, or of one.

    A release that is refused is none. A hold that is refused is one: whoever may have held it must be asked.
    """
    return judge_holds(bucket, keyring, bucket.versions(f"{HOLDS}{backup}/" if backup else HOLDS))


def judge_holds(bucket: Bucket, keyring: Keyring, versions: Iterable[ObjectVersion]) -> dict[str, str]:
    """`read_holds`, of a listing of versions. Of each name the oldest version counts."""
    oldest: dict[str, ObjectVersion] = {}
    for version in versions:  # of one key, newest first
        if not version.deleted:
            oldest[version.key] = version
    records: dict[str, list[ObjectVersion]] = defaultdict(list)
    for key in sorted(oldest, reverse=True):
        if name := _NAME.fullmatch(key):
            records[name["backup"]].append(oldest[key])
    return {backup: why for backup, found in records.items() if (why := _held(bucket, keyring, found)) is not None}


def _held(bucket: Bucket, keyring: Keyring, newest_first: Iterable[ObjectVersion]) -> str | None:
    for version in newest_first:
        try:
            stored = bucket.read(version.key, version_id=version.version_id)
            record = Hold.open(stored, keyring, key=version.key)
        except HoldRefused as refused:
            if "-hold-" in version.key:
                return f"a hold that cannot be proved: {refused.what}"
            continue
        return f"held by {record.by}: {record.because}" if record.held else None
    return None


def _write(catalog: Catalog, backup: BackupId, *, held: bool, by: str, because: str) -> Hold:
    bucket = catalog.bucket
    when = bucket.clock()
    names = (_NAME.fullmatch(version.key) for version in bucket.versions(f"{HOLDS}{backup}/"))
    told = [datetime.strptime(name["when"], _STAMP).replace(tzinfo=UTC) for name in names if name]
    when = max([when, *(each + timedelta(microseconds=1) for each in told)])  # the store tells whole seconds
    record = Hold(backup=str(backup), held=held, when=when, by=by, because=because)
    bucket.create(record.home, record.sealed(catalog.keyring))
    return record

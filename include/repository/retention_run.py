"""What a run of retention did and left, written down once (`docs/format.md`, *Runs of retention*).

The next run compares: a backup that was there, and that nobody said would be deleted, must still be there. So a listing
that tells too little deletes nothing.
"""

from __future__ import annotations

import logging
import secrets
from datetime import UTC
from typing import Annotated, ClassVar

from pydantic import AwareDatetime, Field, StringConstraints

from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.repository.catalog import oldest
from include.repository.layout import RETENTION_RUNS
from include.repository.signed import Frozen, SignedDocument

log = logging.getLogger(__name__)


class RunRefused(BackupError):
    """The record of a run that is not genuine."""


class Deleted(Frozen):
    """One backup that a run deleted: of when it was, and its stored bytes."""

    backup: str
    time: AwareDatetime
    stored_bytes: int


class RetentionRun(SignedDocument):
    """What one run did to one bucket.

    `manifests` are the keys of every manifest that is there after it, `holds` those of every hold and release;
    `deleted` what went, `put_off` why a backup that was to go is still there, `locked` what Object Lock keeps, since
    the first run that found it so.
    """

    kind: ClassVar[str] = "retention run"
    refusal: ClassVar[type[BackupError]] = RunRefused

    bucket: str
    when: AwareDatetime
    by: str
    manifests: tuple[str, ...]
    holds: tuple[str, ...]
    deleted: tuple[Deleted, ...]
    put_off: dict[str, str]
    locked: dict[str, AwareDatetime]
    objects: int
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")] = Field(
        default_factory=lambda: secrets.token_hex(4)
    )

    @property
    def home(self) -> str:
        """Where it lies: names sort by time."""
        return f"{RETENTION_RUNS}{self.when.astimezone(UTC):%Y%m%dT%H%M%SZ}-{self.nonce}.json"


def last_run(bucket: Bucket, keyring: Keyring) -> RetentionRun | None:
    """The newest genuine record of this bucket's; None when there is none yet. One that is refused is logged."""
    records = sorted(oldest(bucket.versions(RETENTION_RUNS)), key=lambda version: (version.modified, version.key))
    for version in reversed(records):
        try:
            run = RetentionRun.open(bucket.read(version.key, version_id=version.version_id), keyring, key=version.key)
        except RunRefused as refused:
            log.warning("A record of retention is passed over: %s", refused)
            continue
        if run.bucket == bucket.name:
            return run
    return None

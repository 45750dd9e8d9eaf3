"""What was proved about a backup, when, and from which copy: one signed record a result (`docs/format.md`).

The newest record of each proof decides. Verdicts are about the data: a proof that could not be carried out leaves none.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal, Protocol, Self

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, ObjectMissing, ObjectVersion
from include.repository.layout import VERIFICATION
from include.repository.manifest import Manifest, moment_text
from include.repository.signed import SignedDocument

INTEGRITY, SIZES, SAMPLE = "integrity", "sizes", "sample"
State = Literal["verified", "not yet", "failed", "in doubt"]

_OF_EVERY_COPY = {SIZES}
"""What a backup holds is the same in every copy of it. That its bytes can be read is said of one copy only."""
_READS_AT_ONCE = 16
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_WORD = r"[a-z][a-z0-9_]*"
_NAME = re.compile(
    rf"{VERIFICATION}(?P<backup>[^/]+)/\d{{8}}T\d{{6}}\.\d{{6}}Z-(?P<proof>{_WORD})(?:-(?P<subject>{_WORD}))?"
    r"-[0-9a-f]{8}\.json",
    re.ASCII,
)

Word = Annotated[str, StringConstraints(pattern=rf"^{_WORD}$")]


class RecordRefused(BackupError):
    """A verification record that is not genuine: it proves nothing."""


class VerificationFailed(BackupError):
    """A backup of which some proof failed last: it is in no plan."""


class Record(SignedDocument):
    """The result of one proof of one backup.

    `subject` is the component that a sample was of; `bucket` the copy that was read; `by` who proved it, and `because`
    why somebody accepted what the proof alone would refuse. `what` and `mend` are there when it failed. `nonce` keeps
    two records of one moment apart.
    """

    kind: ClassVar[str] = "verification record"
    refusal: ClassVar[type[BackupError]] = RecordRefused

    backup: str
    attempt: str
    proof: Word
    subject: Word | None = None
    passed: bool
    when: AwareDatetime
    bucket: str
    by: str
    because: str | None = None
    milliseconds: int
    facts: dict[str, int | str]
    what: str | None = None
    mend: str | None = None
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")] = Field(
        default_factory=lambda: secrets.token_hex(4)
    )

    @model_validator(mode="after")
    def _tells_what_failed(self) -> Self:
        if self.passed != (self.what is None) or self.passed != (self.mend is None):
            raise ValueError("a failure says what and mend, and nothing else does")
        return self

    @property
    def home(self) -> str:
        """Where it lies: names sort by time, and tell what a reader need not open."""
        words = [self.when.astimezone(UTC).strftime(_STAMP), self.proof, self.subject, self.nonce]
        return f"{VERIFICATION}{self.backup}/{'-'.join(word for word in words if word)}.json"

    @property
    def title(self) -> str:
        """`integrity`, or `sample of user_data`."""
        return f"{self.proof} of {self.subject}" if self.subject else self.proof


class Proved(Protocol):
    """A backup that records speak of."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def attempt(self) -> str:
        """The try that committed it."""


@dataclass(frozen=True)
class Verification:
    """What is known of a backup: the `newest` genuine record of each proof and subject, oldest first.

    `refused` says what is newer than those and not genuine. It counts as no result, so that nobody who can only write
    into the bucket can take a backup out of the plans; and until the proof is repeated the backup is *in doubt* instead
    of verified, because it may have said that something failed.
    """

    newest: tuple[Record, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Record, ...]:
        """The proofs that failed last. One is enough: the backup is in no plan."""
        return tuple(record for record in self.newest if not record.passed)

    @property
    def verified(self) -> datetime | None:
        """When every byte was last read back and proved, and nothing speaks against it."""
        if self.failed or self.refused:
            return None
        return next((record.when for record in self.newest if record.proof == INTEGRITY), None)

    @property
    def state(self) -> State:
        """In one word."""
        if self.failed:
            return "failed"
        if self.refused:
            return "in doubt"
        return "verified" if self.verified else "not yet"

    def require(self, backup: str) -> None:
        """Raise `VerificationFailed`, naming the records, when `backup` must not be restored unasked."""
        if self.failed:
            raise VerificationFailed(
                f"{backup} failed its verification: {'; '.join(map(told, self.failed))}.",
                mend="Restore another backup; or verify it again when that is mended, which lifts it; "
                "or take it as it is with --despite-verification.",
            )


def told(failure: Record) -> str:
    """What a failed record says, and where it lies."""
    return f"{failure.title}, {moment_text(failure.when)}: {(failure.what or '').rstrip('.')} ({failure.home})"


def store_record(bucket: Bucket, keyring: Keyring, record: Record) -> None:
    """Make the result durable; raises `StoreError`."""
    bucket.create(record.home, record.sealed(keyring))


def read_verifications(
    bucket: Bucket, keyring: Keyring, manifests: Iterable[Proved], versions: Iterable[ObjectVersion]
) -> dict[str, Verification]:
    """What is known of each backup, by id, from a listing of the oldest versions of the records.

    Only the newest record of each proof and subject is read, and those after it when that one says nothing. One that is
    refused never hides another.
    """
    wanted = {manifest.id: manifest for manifest in manifests}
    listed = _listed(versions)
    groups = [(wanted[backup], records) for (backup, *_), records in listed.items() if backup in wanted]
    found: dict[str, list[_Newest]] = defaultdict(list)
    with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="verification") as pool:
        looked = pool.map(lambda group: _newest(group[1], _reader(bucket, keyring, group[0])), groups)
        for (manifest, _), newest in zip(groups, looked, strict=True):
            found[manifest.id].append(newest)
    return {backup: _summed_up(found[backup]) for backup in wanted}


def read_history(
    bucket: Bucket, keyring: Keyring, manifest: Manifest, versions: Iterable[ObjectVersion], proof: str
) -> list[Record]:
    """Every genuine record of one proof of one backup, newest first."""
    read = _reader(bucket, keyring, manifest)
    history = []
    for (backup, of, _), records in _listed(versions).items():
        if backup == manifest.id and of == proof:
            found = [_newest([version], read).record for version in records]
            history += [record for record in found if record is not None]
    return sorted(history, key=lambda record: record.when, reverse=True)


@dataclass(frozen=True)
class _Newest:
    """Of one proof and subject: the newest record that counts, and why each after it was refused."""

    record: Record | None
    refused: tuple[str, ...]


_Reader = Callable[[ObjectVersion], Record | None]
_Group = tuple[str, str, str | None]


def _listed(versions: Iterable[ObjectVersion]) -> dict[_Group, list[ObjectVersion]]:
    """The records of each backup, proof and subject, newest first; what is no record is left out."""
    groups: dict[_Group, list[ObjectVersion]] = defaultdict(list)
    for version in versions:
        if name := _NAME.fullmatch(version.key):
            groups[name["backup"], name["proof"], name["subject"]].append(version)
    return {group: sorted(found, key=lambda version: version.key, reverse=True) for group, found in groups.items()}


def _reader(bucket: Bucket, keyring: Keyring, manifest: Proved) -> _Reader:
    """Reads a record; None for one that is gone, or says nothing of this attempt or of this copy of it."""

    def read(version: ObjectVersion) -> Record | None:
        try:
            stored = bucket.read(version.key, version_id=version.version_id)
        except ObjectMissing:
            return None
        record = Record.open(stored, keyring, key=version.key)
        of_this_copy = record.bucket == bucket.name or record.proof in _OF_EVERY_COPY
        return record if record.attempt == manifest.attempt and of_this_copy else None

    return read


def _newest(records: Sequence[ObjectVersion], read: _Reader) -> _Newest:
    refused = []
    for version in records:
        try:
            record = read(version)
        except RecordRefused as refusal:
            refused.append(str(refusal))
            continue
        if record is not None:
            return _Newest(record, tuple(refused))
    return _Newest(None, tuple(refused))


def _summed_up(found: Iterable[_Newest]) -> Verification:
    found = list(found)
    newest = [each.record for each in found if each.record is not None]
    refused = [text for each in found for text in each.refused]
    return Verification(tuple(sorted(newest, key=lambda record: (record.when, record.nonce))), tuple(sorted(refused)))

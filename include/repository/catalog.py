"""Which backups there are: one flat listing of signed manifests, and nothing else is asked (law 1)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, ObjectExists, ObjectMissing, ObjectVersion
from include.repository.layout import MANIFESTS, VERIFICATION, BackupId, BackupType, envelope_prefix, named_by
from include.repository.manifest import Manifest, ManifestRefused
from include.repository.verification import Record, Verification, read_history, read_verifications, told

log = logging.getLogger(__name__)

_READS_AT_ONCE = 16


class NoSuchBackup(BackupError):
    """A backup that was never committed, or was deleted."""


class AttemptReaped(BackupError):
    """A try that slept so long that what it wrote was given up: it may not commit any more."""


class AlreadyCommitted(BackupError):
    """Another try of the same backup committed first; that one is the backup."""

    def __init__(self, winner: Manifest) -> None:
        super().__init__(
            f"{winner.id} was committed by attempt {winner.attempt}.",
            mend="Nothing is to be done: that one is the backup.",
        )
        self.winner = winner


@dataclass(frozen=True)
class Entry:
    """One manifest as the listing found it: its content and what was proved about it, or why it was refused."""

    key: str
    manifest: Manifest | None
    refused: str | None
    verification: Verification = field(default_factory=Verification)


class Catalog:
    """The committed backups of one bucket, read with one keyring.

    The *oldest* version of a manifest is the backup: a store that ignores `If-None-Match` keeps a late writer's copy as
    a newer version, and that changes nothing.
    """

    def __init__(self, bucket: Bucket, keyring: Keyring) -> None:
        self.bucket, self.keyring = bucket, keyring

    def entries(self, type_: BackupType | None = None) -> list[Entry]:
        """Every manifest, oldest consistency point first and refused ones last.

        One that is refused never hides the others.
        """
        prefix = f"{MANIFESTS}{type_}/" if type_ else MANIFESTS
        with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="catalog") as pool:
            entries = list(pool.map(self._entry, oldest(self.bucket.versions(prefix))))
        genuine = [entry.manifest for entry in entries if entry.manifest is not None]
        known = self._verifications(genuine, f"{VERIFICATION}{type_}-" if type_ else VERIFICATION)
        entries = [
            replace(entry, verification=known[entry.manifest.id]) if entry.manifest else entry for entry in entries
        ]
        return sorted(
            entries,
            key=lambda entry: (
                entry.manifest is None,
                entry.manifest.consistency_point.time.timestamp() if entry.manifest else 0,
                entry.key,
            ),
        )

    def ids(self) -> list[BackupId]:
        """What the listing says that there is; nothing is read, and so nothing is proved."""
        keys = {version.key for version in self.bucket.versions(MANIFESTS) if not version.deleted}
        return [backup for key in sorted(keys) if (backup := _named_by(key)) and backup.manifest_key == key]

    def get(self, backup: BackupId) -> Manifest:
        """One backup's manifest; raises `NoSuchBackup` or `ManifestRefused`."""
        try:
            stored = self.bucket.read_oldest(backup.manifest_key)
        except ObjectMissing:
            raise NoSuchBackup(
                f"{backup} is not in {self.bucket}.",
                mend="`python -m include.cli list` shows what is; an unfinished run commits nothing.",
            ) from None
        return Manifest.open(stored, self.keyring, key=backup.manifest_key)

    def find(self, backup: BackupId) -> Manifest | None:
        """One backup's manifest, or None when it was never committed; raises `ManifestRefused`."""
        try:
            return self.get(backup)
        except NoSuchBackup:
            return None

    def verification(self, manifest: Manifest) -> Verification:
        """What was proved about one backup."""
        return self._verifications([manifest], f"{VERIFICATION}{manifest.id}/")[manifest.id]

    def history(self, manifest: Manifest, proof: str) -> list[Record]:
        """Every genuine record of one proof of a backup, newest first."""
        versions = oldest(self.bucket.versions(f"{VERIFICATION}{manifest.id}/"))
        return read_history(self.bucket, self.keyring, manifest, versions, proof)

    def latest(self, type_: BackupType) -> Manifest:
        """The backup of that type with the newest consistency point, of those whose verification did not fail.

        One that is passed over is named in the log. Raises `NoSuchBackup`, and `ManifestRefused` when a manifest that
        may be newer is refused: "the latest" must not quietly become an older one.
        """
        entries = self.entries(type_)
        genuine = [(entry.manifest, entry.verification) for entry in entries if entry.manifest is not None]
        if not genuine:
            raise NoSuchBackup(
                f"{self.bucket} holds no {type_} backup that this keyring can prove.",
                mend=f"Run the {type_}_backup DAG first.",
            )
        passed_over = []
        while genuine and genuine[-1][1].failed:
            passed_over.append(genuine.pop())
        if not genuine:
            raise NoSuchBackup(
                f"Every {type_} backup in {self.bucket} failed its verification.",
                mend="`python -m include.cli list` says of each what failed: mend that and verify it again, use the "
                "replica, or restore one by its id with --despite-verification.",
            )
        newest, verification = genuine[-1]
        for entry in entries:
            if entry.refused and (named := _named_by(entry.key)) and named.moment > newest.backup.moment:
                raise ManifestRefused(
                    f"The latest {type_} backup cannot be told: {entry.refused}",
                    mend=f"{newest.id} is the newest that is genuine: name it, if that is the one you want.",
                )
        for manifest, failing in passed_over:
            failures = "; ".join(map(told, failing.failed))
            log.warning("%s is passed over, because its verification failed: %s.", manifest.id, failures)
        for refused in verification.refused:
            log.warning("%s is in doubt: %s", newest.id, refused)
        return newest

    def commit(self, manifest: Manifest) -> Manifest:
        """Make the backup exist, and return it as it was committed.

        The first manifest written for an id wins; raises `AlreadyCommitted` with the winner otherwise. A try whose own
        envelope is gone was given up by the reaper (`repository/attempts.py`): raises `AttemptReaped`, and nothing is
        committed. It is looked for before, and again after: the reaper hides the envelope and then looks for the
        manifest, so that of the two at least one sees the other, whoever comes first.
        """
        key = manifest.backup.manifest_key
        sealed = manifest.sealed(self.keyring)
        if not self._is_living(manifest):
            if (winner := self.find(manifest.backup)) is not None:
                raise AlreadyCommitted(winner)
            raise _reaped(manifest)
        try:
            self.bucket.create(key, sealed)
        except ObjectExists:
            raise AlreadyCommitted(self.get(manifest.backup)) from None
        winner = self.get(manifest.backup)
        if winner.attempt != manifest.attempt:
            raise AlreadyCommitted(winner)
        if not self._is_living(manifest):
            self._withdraw(key, sealed)
            raise _reaped(manifest)
        return winner

    def _is_living(self, manifest: Manifest) -> bool:
        """Whether the try's envelopes are there and none is hidden: a rotation may add one as the reaper hides them."""
        prefix = envelope_prefix(manifest.id, manifest.attempt)
        newest = [each for each in self.bucket.versions(prefix) if each.latest]
        return bool(newest) and not any(each.deleted for each in newest)

    def _withdraw(self, key: str, sealed: bytes) -> None:
        """Take our own manifest back: what it names may be gone."""
        for version in list(self.bucket.versions(key)):
            if version.key == key and not version.deleted:
                with suppress(ObjectMissing):
                    if self.bucket.read(key, version_id=version.version_id) == sealed:
                        self.bucket.delete_version(key, version.version_id)

    def _verifications(self, manifests: list[Manifest], prefix: str) -> dict[str, Verification]:
        return read_verifications(self.bucket, self.keyring, manifests, oldest(self.bucket.versions(prefix)))

    def _entry(self, version: ObjectVersion) -> Entry:
        try:
            stored = self.bucket.read(version.key, version_id=version.version_id)
            return Entry(version.key, Manifest.open(stored, self.keyring, key=version.key), None)
        except (ManifestRefused, ObjectMissing) as refused:
            return Entry(version.key, None, str(refused))


def _named_by(key: str) -> BackupId | None:
    """The backup that a manifest's key names, None for a stray object."""
    return named_by(key.rpartition("/")[2].removesuffix(".json"))


def _reaped(manifest: Manifest) -> AttemptReaped:
    return AttemptReaped(
        f"Attempt {manifest.attempt} of {manifest.id} was given up while it slept: its data key is gone.",
        mend="Run the backup again: it makes a new attempt.",
    )


def oldest(versions: Iterator[ObjectVersion]) -> Iterator[ObjectVersion]:
    """Of a listing of versions the first ever written of each key. A key whose versions are all gone is not yielded."""
    last: ObjectVersion | None = None
    for version in versions:
        if version.deleted:
            continue
        if last is not None and last.key != version.key:
            yield last
        last = version
    if last is not None:
        yield last

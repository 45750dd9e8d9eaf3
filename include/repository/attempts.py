"""What tries that came to nothing left in the bucket: found by what it is, and removed for good (law 5).

This is the only code that deletes from the backups' bucket, so it fails closed at every step:

- What any version of any manifest names is never touched, whoever put a deletion marker on whatever.
- A manifest that is refused may name anything: its id, every attempt whose name occurs in it, and all packs stay. So
  does an id that has verification records and no manifest: it was committed once, and a person must say what became
  of it, unless retention did (`tombstones`). What that is deleting it also ends: nothing of it is touched here.
- A try is dead when its newest byte *and* every session of it are; either alone proves nothing.

**A zombie.** A try may sleep for longer than the policy waits, and wake up when what it wrote is gone. Its envelope is
its lease: the reaper first *hides* it (a deletion marker, which readers of a backup look through, so nothing is lost
yet), then looks for the manifest once more, and only then deletes; `Catalog.commit` writes the manifest and then looks
for the envelope. Whatever the order, at least one of the two sees the other: the reaper takes its marker back, or the
try its manifest. A backup type that lists packs of other tries must look for those packs' envelopes too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from include.errors import BackupError
from include.pipeline.store import Bucket, ObjectMissing, ObjectVersion, StoreError, UnfinishedUpload
from include.repository.catalog import Catalog
from include.repository.layout import (
    BACKUP_TYPES,
    KEYS,
    MANIFESTS,
    PACKS,
    PROBES,
    VERIFICATION,
    BackupId,
    envelope_prefix,
    named_by,
    place_of,
)
from include.repository.manifest import Manifest, ManifestRefused
from include.repository.references import data_keys, envelope_prefixes, references
from include.repository.tombstones import read_tombstones

log = logging.getLogger(__name__)

_AT_ONCE = 16

Living = Callable[[], frozenset[str]]
"""The attempts that have a session in the database at this moment; raises when it cannot be told."""


class NotVersioned(BackupError):
    """A bucket that keeps no versions: nothing in it can be hidden before it is deleted."""


class StillNeeded(BackupError):
    """A try that turned out to live, or to be a backup, when it was about to be removed. Nothing of it is gone."""


@dataclass(frozen=True)
class DeadAttempt:
    """What one try left and no manifest names: every version of it, and the uploads that it never ended.

    `backups` are the ids that its keys say: one, or none for a pack without an envelope, which `attempt` then names.
    `committed` is a try that did become a backup, and left something beside it. `written` is its newest byte, by the
    store's clock.
    """

    attempt: str
    backups: tuple[BackupId, ...]
    committed: bool
    objects: tuple[ObjectVersion, ...]
    uploads: tuple[UnfinishedUpload, ...]
    written: datetime

    def __str__(self) -> str:
        return ", ".join(f"{backup}.{self.attempt}" for backup in self.backups) or self.attempt

    @property
    def bytes(self) -> int:
        """What it takes in the bucket."""
        return sum(each.size for each in self.objects) + sum(each.bytes for each in self.uploads)


@dataclass(frozen=True)
class Removed:
    """How much is gone for good, and in the store's words what is not (Object Lock, a missing permission)."""

    objects: int
    refused: tuple[str, ...] = ()


class Attempts:
    """The tries in one bucket. `living` is asked anew each time before anything is judged or deleted.

    In a replica, what the `primary` names is somebody's too: it is on its way, and its manifest comes last.
    """

    def __init__(self, catalog: Catalog, living: Living, *, primary: Catalog | None = None) -> None:
        self._bucket, self._living = catalog.bucket, living
        self._named = _Named([catalog, primary] if primary else [catalog])
        self.kept: list[str] = []
        """What `find_dead` left alone though no manifest names it, and why."""

    def find_dead(self, *, before: datetime) -> list[DeadAttempt]:
        """What no manifest names, of every try that has no session and wrote nothing since `before` (aware UTC).

        The bucket is listed first and the manifests after it, so that what is committed meanwhile counts as named.
        """
        tries = _tries(self._bucket)
        living = self._living()
        self._named.look_again()
        self.kept = []
        found = []
        for each in tries:
            dead = self._unnamed(each)
            if dead is None or dead.written >= before or dead.attempt in living or self._named.is_buried(dead):
                continue
            if reason := self._named.protects(dead):
                self.kept.append(f"{dead} is left alone: {reason}")
            else:
                found.append(dead)
        return found

    def remove(self, dead: DeadAttempt) -> Removed:
        """Delete it for good: uploads, then what was stored, keys last.

        Raises `StillNeeded`, with nothing gone, when it lives or is a backup after all; `NotVersioned`; or what the
        store says when it does not answer. What the store refuses to delete is told, and its keys stay with it.
        """
        if not self._bucket.is_versioned():
            raise NotVersioned(
                f"{self._bucket} keeps no versions, so nothing there can be given up before it is deleted.",
                mend="Turn versioning on (R3.1), as prepare demands.",
            )
        if dead.attempt in self._living():
            raise StillNeeded(f"{dead} has a session in the database again.", mend="Leave it alone: it lives.")
        self._give_up(dead)
        content, pack_keys, own_keys = self._what_is_left(dead)
        count, refused = self._delete(content, dead.uploads)
        for keys in (pack_keys, own_keys):
            if not refused:
                more, refused = self._delete(keys)
                count += more
        return Removed(count, tuple(refused))

    def _unnamed(self, tried: _Try) -> DeadAttempt | None:
        objects = tuple(each for each in tried.objects if not self._named.names(each.key))
        committed = len(objects) < len(tried.objects) or tried.attempt in self._named.attempts
        # A marker that a cut reaper left on an envelope is not the try's own doing.
        written = [each.modified for each in objects if not each.deleted] or [each.modified for each in objects]
        written += [each.touched for each in tried.uploads]
        if not written:
            return None
        return DeadAttempt(
            tried.attempt, tuple(sorted(tried.backups)), committed, objects, tuple(tried.uploads), max(written)
        )

    def _give_up(self, dead: DeadAttempt) -> None:
        """Hide its envelopes, then look whether it was committed before it could see that."""
        markers = []
        if not dead.committed:
            for backup in dead.backups:
                for key in list(self._bucket.keys(envelope_prefix(str(backup), dead.attempt))):
                    markers.append((key, self._bucket.hide(key)))
        self._named.look_again()
        needed = self._named.protects(dead)
        if not dead.committed and (
            dead.attempt in self._named.attempts or any(self._named.names(each.key) for each in dead.objects)
        ):
            needed = "it was committed while we looked."
        if needed:
            for key, marker in markers:
                if marker is not None:
                    self._bucket.delete_version(key, marker)
            raise StillNeeded(f"{dead} is left alone: {needed}", mend="Nothing is to be done; nothing of it is gone.")

    def _what_is_left(self, dead: DeadAttempt) -> tuple[list[ObjectVersion], list[ObjectVersion], list[ObjectVersion]]:
        """Its versions as they are now: content, its packs' envelopes, its own. What was found may have grown since."""
        found = {(each.key, each.version_id): each for each in dead.objects}
        if not dead.committed:
            for backup in dead.backups:
                for prefix in (backup.attempt_prefix(dead.attempt), envelope_prefix(str(backup), dead.attempt)):
                    found |= {(each.key, each.version_id): each for each in self._bucket.versions(prefix)}
        content: list[ObjectVersion] = []
        pack_keys: list[ObjectVersion] = []
        own_keys: list[ObjectVersion] = []
        for version in found.values():
            place = place_of(version.key)
            if place is None or not place.envelope:
                content.append(version)
            else:
                (pack_keys if place.pack else own_keys).append(version)
        return content, pack_keys, own_keys

    def _delete(
        self, versions: Iterable[ObjectVersion], uploads: Iterable[UnfinishedUpload] = ()
    ) -> tuple[int, list[str]]:
        jobs = [
            *(partial(self._bucket.abort, upload) for upload in uploads),
            *(partial(self._delete_version, version) for version in versions),
        ]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="reaper") as pool:
            refused = [said for said in pool.map(_refusal, jobs) if said]
        return len(jobs) - len(refused), refused

    def _delete_version(self, version: ObjectVersion) -> None:
        if self._named.names(version.key):
            raise StillNeeded(f"{version.key} is named by a manifest.", mend="Leave it alone.")
        self._bucket.delete_version(version.key, version.version_id)


@dataclass(frozen=True)
class Probes:
    """What checks left of their probes: every version and marker, and uploads; `written` is the newest of them."""

    objects: tuple[ObjectVersion, ...]
    uploads: tuple[UnfinishedUpload, ...]
    written: datetime


def find_probes(bucket: Bucket, *, before: datetime) -> Probes | None:
    """Those that are older than `before`."""
    objects = tuple(each for each in bucket.versions(PROBES) if each.modified < before)
    uploads = tuple(each for each in bucket.unfinished_uploads(PROBES) if each.touched < before)
    written = [*(each.modified for each in objects), *(each.touched for each in uploads)]
    return Probes(objects, uploads, max(written)) if written else None


def remove_probes(bucket: Bucket, probes: Probes) -> Removed:
    """Delete them for good; a probe is nobody's data."""
    jobs = [
        *(partial(bucket.abort, upload) for upload in probes.uploads),
        *(partial(bucket.delete_version, probe.key, probe.version_id) for probe in probes.objects),
    ]
    refused = tuple(said for job in jobs if (said := _refusal(job)))
    return Removed(len(jobs) - len(refused), refused)


@dataclass
class _Try:
    """Everything that one try wrote, whether a manifest names it or not."""

    attempt: str
    backups: set[BackupId] = field(default_factory=set)
    objects: list[ObjectVersion] = field(default_factory=list)
    uploads: list[UnfinishedUpload] = field(default_factory=list)


def _tries(bucket: Bucket) -> list[_Try]:
    """Every try that left a key. Envelopes are listed last: each is older than what it opens."""
    prefixes = (*(f"{type_}/" for type_ in BACKUP_TYPES), PACKS)
    uploads = [upload for prefix in prefixes for upload in bucket.unfinished_uploads(prefix)]
    objects = [version for prefix in (*prefixes, KEYS) for version in bucket.versions(prefix)]
    tries: dict[str, _Try] = {}
    packed_by: dict[str, str] = {}
    for version in objects:
        place = place_of(version.key)
        if place is not None and place.pack and place.attempt:
            packed_by[place.pack] = place.attempt

    def whose(key: str) -> _Try | None:
        place = place_of(key)
        if place is None:
            return None  # nothing that a try writes: a stranger's
        # A pack whose envelope is gone is a try of its own: nobody can say whose it was, and nobody can read it.
        attempt = place.attempt or packed_by.get(place.pack or "") or f"pack {place.pack}"
        found = tries.setdefault(attempt, _Try(attempt))
        if place.backup is not None:
            found.backups.add(place.backup)
        return found

    for version in objects:
        if (tried := whose(version.key)) is not None:
            tried.objects.append(version)
    for upload in uploads:
        if (tried := whose(upload.key)) is not None:
            tried.uploads.append(upload)
    return list(tries.values())


class _Named:
    """What the manifests name: every version of each, and what was named once stays so for as long as this lives."""

    def __init__(self, catalogs: Sequence[Catalog]) -> None:
        self._catalogs = catalogs
        self._seen: set[tuple[Catalog, str, str]] = set()
        self._keys: set[str] = set()
        self._packs: set[str] = set()
        self._prefixes: set[str] = set()
        self._manifests: set[BackupId] = set()
        self._verified: set[BackupId] = set()
        self._refused: dict[str, bytes] = {}
        self._given_up: set[BackupId] = set()
        self._buried: set[str] = set()
        self.attempts: set[str] = set()
        """Those that became backups, or that a backup has something of."""

    def look_again(self) -> None:
        """Read the manifests that came since the last look."""
        for catalog in self._catalogs:
            self._look(catalog)

    def _look(self, catalog: Catalog) -> None:
        bucket = catalog.bucket
        new = [
            version
            for version in bucket.versions(MANIFESTS)
            if not version.deleted and (catalog, version.key, version.version_id) not in self._seen
        ]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="manifests") as pool:
            for version, manifest in zip(new, pool.map(partial(self._read, catalog), new), strict=True):
                if isinstance(manifest, Manifest):
                    self._note(manifest)
                else:
                    self._refused[version.key] = self._refused.get(version.key, b"") + manifest
                if (backup := _id_of_manifest(version.key)) is not None:
                    self._manifests.add(backup)
        self._seen |= {(catalog, version.key, version.version_id) for version in new}
        for version in bucket.versions(VERIFICATION):
            if (backup := named_by(version.key.split("/")[1])) is not None:
                self._verified.add(backup)
        for tombstone in read_tombstones(bucket, catalog.keyring).values():
            if tombstone.id not in self._manifests:
                self._given_up.add(tombstone.id)
                self._buried.update(tombstone.attempts, tombstone.shared)

    def names(self, key: str) -> bool:
        """Whether a manifest names this object, or what it opens."""
        if key in self._keys:
            return True
        place = place_of(key)
        if place is not None and place.pack is not None:
            return place.pack in self._packs
        return key.rpartition("/")[0] + "/" in self._prefixes

    def is_buried(self, dead: DeadAttempt) -> bool:
        """Whether retention is deleting it, and goes on with that: its manifest is gone, and a tombstone says so."""
        return dead.attempt in self._buried or any(each.key in self._buried for each in dead.objects)

    def protects(self, dead: DeadAttempt) -> str | None:
        """Why it must stay although no manifest that can be read names it; None when it need not."""
        keys = [*(each.key for each in dead.objects), *(each.key for each in dead.uploads)]
        packed = any((place := place_of(key)) is not None and place.pack for key in keys)
        for key, content in self._refused.items():
            backup = _id_of_manifest(key)
            why = f"{key} is refused, and may name it."
            if backup is None or backup in dead.backups or packed or dead.attempt.encode() in content:
                return why
        for backup in dead.backups:
            if backup in self._verified - self._manifests - self._given_up:
                return f"{backup} was verified, so it was a backup, and its manifest is gone."
        return None

    def _read(self, catalog: Catalog, version: ObjectVersion) -> Manifest | bytes:
        """The manifest, or the bytes of one that cannot be believed."""
        try:
            stored = catalog.bucket.read(version.key, version_id=version.version_id)
        except ObjectMissing:
            return b""
        try:
            return Manifest.open(stored, catalog.keyring, key=version.key)
        except ManifestRefused:
            return stored

    def _note(self, manifest: Manifest) -> None:
        self.attempts |= {attempt for _, attempt in data_keys(manifest)}
        self._prefixes |= envelope_prefixes(manifest)
        self._packs |= {pack.id for pack in manifest.packs if pack.is_shared}
        self._keys |= {reference.key for reference in references(manifest)}


def _id_of_manifest(key: str) -> BackupId | None:
    """The backup whose manifest this is; None for anything else below `manifests/`."""
    backup = named_by(key.rpartition("/")[2].removesuffix(".json"))
    return backup if backup is not None and backup.manifest_key == key else None


def _refusal(job: Callable[[], None]) -> str | None:
    """None when it is done, otherwise what the store said: one object that stays does not keep the others."""
    try:
        job()
    except (StoreError, StillNeeded) as refused:
        return refused.what
    return None

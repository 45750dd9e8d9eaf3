"""The second region: what a manifest names is brought there, proved on its way, and the manifest last (R3.2).

Stored bytes are copied as they are: whoever has the keyring reads a replica with the envelopes that lie in it, and
nothing of the primary. Where the primary bucket replicates by itself, its copies count as ours do once they are there;
what it does not bring is copied. It must leave `manifests/` to us, or the replica would show backups that it does not
have yet. Two at once, and any that are killed, only make copies that the next one finds.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from itertools import chain
from os.path import commonprefix
from typing import Any

from include.errors import BackupError
from include.pipeline.artifacts import FETCH_BYTES
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket, NotAllowed, ObjectCold, ObjectCut, ObjectExists, ObjectMissing, ObjectVersion
from include.pipeline.transfer import Upload, fetch_ranges
from include.policy import Policy
from include.repository.catalog import Catalog
from include.repository.layout import (
    HOLDS,
    KEYS,
    LEDGER,
    MANIFESTS,
    PACKS,
    VERIFICATION,
    WAL,
    envelope_prefix,
    place_of,
    wal_key,
    wal_owner,
)
from include.repository.lsn import Lsn, is_segment, segment_lsn, timeline_of
from include.repository.manifest import Manifest, ManifestRefused, WalFile
from include.repository.references import envelope_prefixes, references
from include.repository.shredding import shredded
from include.repository.wal import PART_BYTES, Shipped, WalArchive

log = logging.getLogger(__name__)

BUCKET_REPLICATES = ("full/", "incremental/", "snapshot/", "archive/", PACKS, WAL, KEYS, LEDGER, HOLDS, VERIFICATION)
"""What a bucket's own replication may bring, a rule for each: all but `manifests/`, for S3 knows no exceptions."""
_PENDING = "PENDING"
_DOCUMENTS_AT_ONCE = 16
_FEW = 64
"""So many keys are listed one by one; more of them as what they have in common, a thousand a call."""
_RANGES_AHEAD = 2


class CopyRefused(BackupError):
    """An object of the primary that is not the one that its manifest names: it is not brought anywhere."""


class ReplicaDiffers(BackupError):
    """The replica holds something else where a document of the primary belongs; nothing replaces a document."""


class RuleCoversManifests(BackupError):
    """The primary's own replication brings manifests: the replica could show what it does not have yet."""


class NotReplicated(BackupError):
    """A part of what the primary holds is not durable in the replica."""


_OF_ONE_BACKUP = (CopyRefused, ReplicaDiffers, ObjectCold, ObjectMissing, ObjectCut, ManifestRefused)
"""What keeps one backup from being brought, and no other one; anything else is about the stores themselves."""


@dataclass(frozen=True)
class Piece:
    """One stored object that is to be in both buckets; where no manifest says its SHA-256, the primary's copy does."""

    key: str
    stored_bytes: int
    stored_sha256: str | None


@dataclass
class Brought:
    """What one look at the replica came to.

    `backups` are the ids whose manifest was created, `objects` and `stored_bytes` what was copied, `mended` how many of
    those were there and wrong, `compared` the objects that were looked at on both sides. `failures` say what could not
    be brought, and why.
    """

    backups: list[str] = field(default_factory=list)
    objects: int = 0
    stored_bytes: int = 0
    mended: int = 0
    compared: int = 0
    failures: list[BackupError] = field(default_factory=list)

    def require(self) -> None:
        """Raise `NotReplicated`, naming the objects, unless everything is there."""
        if self.failures:
            told = " ".join(failure.what for failure in self.failures[:3])
            more = f" And {len(self.failures) - 3} more." if len(self.failures) > 3 else ""  # noqa: PLR2004 - those three
            raise NotReplicated(
                f"The replica is not whole: {told}{more}",
                mend=f"{self.failures[0].mend} Then replicate again: `python -m include.cli replicate`.",
            )

    def facts(self) -> dict[str, Any]:
        """The same for an XCom, or a program."""
        return {
            "backups": len(self.backups),
            "objects": self.objects,
            "bytes": self.stored_bytes,
            "mended": self.mended,
            "compared": self.compared,
        }


class Replica:
    """Two buckets, of which the second is to hold what the first holds."""

    def __init__(self, primary: Catalog, replica: Catalog, policy: Policy, *, progress: Progress) -> None:
        self.primary, self.replica, self._policy, self._progress = primary, replica, policy, progress
        self._room = threading.BoundedSemaphore(policy.pipeline.parts_in_flight)

    @cached_property
    def replicates(self) -> bool:
        """Whether the primary bucket replicates into this one by itself.

        Raises `RuleCoversManifests`. Where it may not be asked, it is taken not to: copying is never wrong.
        """
        primary, replica = self.primary.bucket, self.replica.bucket
        try:
            rules = [rule for rule in primary.replication_rules() if rule.bucket == replica.name]
        except NotAllowed as denied:
            log.warning("Whether %s replicates by itself cannot be asked, so we copy: %s", primary, denied.what)
            return False
        for rule in rules:
            if MANIFESTS.startswith(rule.prefix) or rule.prefix.startswith(MANIFESTS):
                raise RuleCoversManifests(
                    f"The replication of {primary} brings {rule.prefix or 'everything'} to {replica}, and manifests "
                    "with it: the replica would show backups that it does not have yet.",
                    mend=f"Give it a rule for each of {', '.join(BUCKET_REPLICATES)} instead: `python -m include.cli "
                    "setup` writes them.",
                )
        return bool(rules)

    def waiting(self, manifest: Manifest) -> int:
        """How many objects of a backup the replica lacks, while the bucket still means to bring one of them; else 0.

        The replica's listing says what is there, and costs a call a thousand objects; of what is missing the primary is
        asked until one is pending. What failed, or is none of the rules', is not waited for: it is to be copied.
        """
        if not self.replicates:
            return 0
        envelopes = _oldest(self.primary.bucket, envelope_prefixes(manifest))
        wanted = [*envelopes, *(reference.key for reference in references(manifest))]
        there = _current(self.replica.bucket, wanted)
        missing = [key for key in wanted if key not in there]
        pending = any(self.primary.bucket.replication_status(key) == _PENDING for key in missing)
        return len(missing) if pending else 0

    def bring(self, *, everything: bool = False) -> Brought:
        """Bring what is not there yet, oldest backup first: a killed run has made the beginning of the next.

        Declared gaps and holds come first, then each backup with its manifest last, the log that was shipped since the
        last window, and what was proved. With `everything`, backups whose manifest is there are looked at, too, and
        what is missing or wrong of them is copied again. What cannot be brought of one backup keeps no other back, and
        is in the result; raises `RuleCoversManifests`, and `StoreError` when a store fails.
        """
        if self.replicates:
            log.info("%s replicates by itself: what it has not brought is copied.", self.primary.bucket)
        brought = Brought()
        self._bring_documents([LEDGER, HOLDS], brought)
        there = _oldest(self.replica.bucket, [MANIFESTS])
        destroyed = shredded(self.primary) | shredded(self.replica)
        manifests = []
        for entry in self.primary.entries():
            if entry.manifest and entry.manifest.id in destroyed:
                continue  # what somebody destroyed on purpose is not brought back, and its key is no loss
            if entry.manifest is None:
                log.warning("%s is not brought to the replica: %s", entry.key, entry.refused)
                continue
            manifests.append(entry.manifest)
            if everything or entry.key not in there:
                try:
                    self._bring_backup(entry.manifest, brought, committed=entry.key in there)
                except _OF_ONE_BACKUP as failure:
                    log.error("%s is not whole in the replica: %s", entry.manifest.id, failure)
                    brought.failures.append(failure)
        for system_identifier, copies in self._log_beyond(manifests).items():
            try:
                self.bring_log(system_identifier, copies, brought)
            except _OF_ONE_BACKUP as failure:
                log.error("The log of %s is not whole in the replica: %s", system_identifier, failure)
                brought.failures.append(failure)
        self._bring_records(manifests, brought)
        return brought

    def bring_log(
        self, system_identifier: str, copies: Iterable[WalFile | Shipped], brought: Brought | None = None
    ) -> Brought:
        """Bring some shipped copies of one cluster's log, with the data keys that open them.

        Raises `ObjectMissing`, `CopyRefused` and `StoreError`.
        """
        brought = brought or Brought()
        copies = list(copies)
        owner = wal_owner(system_identifier)
        self._bring_envelopes({envelope_prefix(owner, copy.attempt) for copy in copies}, brought)
        self._bring_pieces(
            [
                Piece(
                    wal_key(system_identifier, copy.name, copy.attempt),
                    copy.stored_bytes,
                    copy.stored_sha256 if isinstance(copy, WalFile) else None,
                )
                for copy in copies
            ],
            brought,
        )
        return brought

    def lag(self, manifest: Manifest) -> timedelta | None:
        """How long after its consistency point a backup was durable in the replica; None when it is not.

        It is read off the manifest's copy, by the replica's clock, whenever somebody asks: nothing is written down.
        """
        key = manifest.backup.manifest_key
        found = _oldest(self.replica.bucket, [key]).get(key)
        return found.modified - manifest.consistency_point.time if found else None

    def _bring_backup(self, manifest: Manifest, brought: Brought, *, committed: bool) -> None:
        self._bring_envelopes(envelope_prefixes(manifest), brought)
        self._bring_pieces(
            [Piece(each.key, each.stored_bytes, each.stored_sha256) for each in references(manifest)], brought
        )
        key = manifest.backup.manifest_key
        stored = self.primary.bucket.read_oldest(key)
        if Manifest.open(stored, self.primary.keyring, key=key) != manifest:
            raise CopyRefused(f"{key} changed while it was brought to the replica.", mend="Replicate again.")
        self._create(key, stored, there=committed)
        if not committed:
            brought.backups.append(manifest.id)
            log.info("%s is in the replica.", manifest.id)

    def _bring_pieces(self, pieces: Sequence[Piece], brought: Brought) -> None:
        """Copy what is missing or wrong, and compare once more: nothing is taken for there that a listing lacks."""
        lacking = self._lacking(pieces, brought)
        brought.compared += len(pieces)
        if not lacking:
            return
        self._at_once(self._copy, lacking)
        brought.objects += len(lacking)
        brought.stored_bytes += sum(piece.stored_bytes for piece in lacking)
        if still := self._lacking(lacking, Brought()):
            raise CopyRefused(
                f"{self.replica.bucket}/{still[0].key} was copied, and is not there as it was copied"
                f"{f' (and {len(still) - 1} more)' if len(still) > 1 else ''}.",
                mend="Replicate again; if it stays so, look at the store itself and at who else writes into it.",
            )

    def _lacking(self, pieces: Sequence[Piece], brought: Brought) -> list[Piece]:
        """What the replica does not have, or has in another size or with other content.

        Equal ETags say that both stores were sent the same parts; of others the content decides.
        """
        keys = [piece.key for piece in pieces]
        ours, theirs = self._both(_current, keys)
        lacking, doubtful = [], []
        for piece in pieces:
            here, there = ours.get(piece.key), theirs.get(piece.key)
            if there is None or there.size != piece.stored_bytes:
                lacking.append(piece)
                brought.mended += there is not None
            elif here is None or here.etag != there.etag:
                doubtful.append(piece)
        for piece, wrong in zip(doubtful, self._at_once(self._is_wrong, doubtful), strict=True):
            if wrong:
                log.warning("%s/%s is not what was copied: it is copied again.", self.replica.bucket, piece.key)
                lacking.append(piece)
                brought.mended += 1
        return lacking

    def _is_wrong(self, piece: Piece) -> bool:
        wanted = piece.stored_sha256 or self._digest(self.primary.bucket, piece)
        return self._digest(self.replica.bucket, piece) != wanted

    def _digest(self, bucket: Bucket, piece: Piece) -> str:
        digest = hashlib.sha256()
        for chunk in _read(bucket, piece):
            digest.update(chunk)
        return digest.hexdigest()

    def _copy(self, piece: Piece) -> None:
        """Stream one object over; it appears in the replica when its content is what it must be, or not at all."""
        pipeline = self._policy.pipeline
        # In the parts in which it was first sent, so that both stores call it by the same ETag.
        part_bytes = PART_BYTES if piece.key.startswith(WAL) else pipeline.part_bytes
        digest = hashlib.sha256()
        with Upload(
            self.replica.bucket,
            piece.key,
            part_bytes=part_bytes,
            in_flight=pipeline.parts_in_flight,
            room=self._room,
            tags=_tags(piece.key),
        ) as upload:
            for chunk in _read(self.primary.bucket, piece):
                digest.update(chunk)
                upload.write(chunk)
                self._progress.add(raw=len(chunk), stored=len(chunk))
            if piece.stored_sha256 not in (None, digest.hexdigest()):
                raise CopyRefused(
                    f"{self.primary.bucket}/{piece.key} is not the object that its manifest names: it was not brought "
                    "to the replica.",
                    mend="Verify that backup: `python -m include.cli verify`; then make another one.",
                )
            upload.complete()

    def _log_beyond(self, manifests: Sequence[Manifest]) -> dict[str, list[Shipped]]:
        """By cluster, what was shipped since the last window and is not in the replica; histories always count."""
        ends: dict[tuple[str, int], Lsn] = {}
        sizes: dict[str, int] = {}
        for manifest in manifests:
            if (wal := manifest.wal) is not None:
                system = manifest.database.system_identifier
                ends[system, wal.timeline] = max(wal.end_lsn, ends.get((system, wal.timeline), Lsn(0)))
                sizes[system] = wal.segment_bytes

        def counts(system: str, name: str) -> bool:
            if not is_segment(name):
                return True
            return segment_lsn(name, sizes[system]) >= ends.get((system, timeline_of(name)), Lsn(0))

        found = {}
        for system in sizes:
            shipped, there = self._both(self._shipped, system)
            found[system] = [
                copy
                for name, copies in shipped.items()
                if counts(system, name)
                for copy in copies
                if copy.attempt not in {each.attempt for each in there.get(name, ())}
            ]
        return found

    def _shipped(self, bucket: Bucket, system_identifier: str) -> Mapping[str, tuple[Shipped, ...]]:
        return WalArchive(bucket, self.primary.keyring, system_identifier, policy=self._policy.pipeline).shipped()

    def _bring_records(self, manifests: Sequence[Manifest], brought: Brought) -> None:
        """What was proved of each backup that the replica shows."""
        there = _oldest(self.replica.bucket, [MANIFESTS])
        shown = [manifest.id for manifest in manifests if manifest.backup.manifest_key in there]
        self._bring_documents([f"{VERIFICATION}{backup}/" for backup in shown], brought)

    def _bring_envelopes(self, prefixes: Collection[str], brought: Brought) -> None:
        """Every wrap of some data keys; raises `ObjectMissing` for a key that has none on either side."""
        opened = {f"{key.rpartition('/')[0]}/" for key in self._bring_documents(prefixes, brought)}
        for prefix in prefixes:
            if prefix not in opened:
                raise ObjectMissing(
                    f"No wrap of the data key at {self.primary.bucket}/{prefix} is in either bucket.",
                    mend="Without one nothing of that backup can be read: make another one.",
                )

    def _bring_documents(self, prefixes: Collection[str], brought: Brought) -> set[str]:
        """Small objects that are never rewritten; of each the oldest version counts. Returns the keys on both sides."""
        ours, theirs = self._both(_oldest, prefixes)

        def bring(key: str) -> bool:
            here, there = ours[key], theirs.get(key)
            if there is not None and (here.etag, here.size) == (there.etag, there.size):
                return False
            stored = self.primary.bucket.read(key, version_id=here.version_id)
            self._create(key, stored, there=there is not None)
            return there is None

        brought.objects += sum(self._at_once(bring, list(ours), threads=_DOCUMENTS_AT_ONCE))
        brought.compared += len(ours)
        return {*ours, *theirs}

    def _create(self, key: str, stored: bytes, *, there: bool) -> None:
        """Create a document that is not there, compare one that is; raises `ReplicaDiffers`."""
        bucket = self.replica.bucket
        try:
            if not there:
                bucket.create(key, stored)
            elif bucket.read_oldest(key) != stored:
                raise ObjectExists(f"{bucket}/{key} holds something else.", mend="See below.")
        except ObjectExists:
            raise ReplicaDiffers(
                f"{bucket}/{key} is not what lies at the same place in {self.primary.bucket}.",
                mend="Somebody else wrote into the replica. Find out who; then delete that version there (`aws s3api "
                "delete-object --version-id`).",
            ) from None

    def _both(self, look: Callable[[Bucket, Any], Any], what: Any) -> tuple[Any, Any]:
        """The same asked of both buckets at once."""
        with ThreadPoolExecutor(2, thread_name_prefix="look") as pool:
            ours = pool.submit(look, self.primary.bucket, what)
            theirs = pool.submit(look, self.replica.bucket, what)
            return ours.result(), theirs.result()

    def _at_once(self, do: Callable[[Any], Any], each: Sequence[Any], *, threads: int | None = None) -> list[Any]:
        """Do it to each, several side by side; the first failure ends what has not begun, and is raised."""
        with ThreadPoolExecutor(
            threads or self._policy.storage.replica.copied_at_once, thread_name_prefix="replica"
        ) as pool:
            running = [pool.submit(do, one) for one in each]
            try:
                return [job.result() for job in running]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _tags(key: str) -> Mapping[str, str]:
    """As whoever wrote it first tagged it."""
    place = place_of(key)
    return place.backup.tags if place and place.backup else {}


def _read(bucket: Bucket, piece: Piece) -> Iterator[bytes]:
    size = piece.stored_bytes
    ranges = ((piece.key, start, min(start + FETCH_BYTES, size)) for start in range(0, size, FETCH_BYTES))
    return fetch_ranges(bucket, ranges, in_flight=_RANGES_AHEAD)


def _current(bucket: Bucket, keys: Collection[str]) -> dict[str, ObjectVersion]:
    """The version that a reader gets of each key, where it gets one."""
    wanted = frozenset(keys)
    return {
        version.key: version
        for version in _listed(bucket, keys, wanted.__contains__)
        if version.latest and not version.deleted
    }


def _oldest(bucket: Bucket, prefixes: Collection[str]) -> dict[str, ObjectVersion]:
    """The first version of each key below some prefixes, or of some keys, whatever hides it."""
    exact = frozenset(prefixes)
    # Newest first: the last one that is seen of a key is the oldest.
    return {
        version.key: version
        for version in _listed(bucket, prefixes, lambda key: key in exact or not exact.isdisjoint(_folders(key)))
        if not version.deleted
    }


def _folders(key: str) -> frozenset[str]:
    """`a/` and `a/b/`, of `a/b/c`."""
    parts = key.split("/")[:-1]
    return frozenset("/".join(parts[: depth + 1]) + "/" for depth in range(len(parts)))


def _listed(bucket: Bucket, names: Collection[str], wanted: Callable[[str], bool]) -> Iterator[ObjectVersion]:
    """Every version of the `wanted` keys, all of which begin as one of `names` does, page by page."""
    rooms: dict[str, list[str]] = defaultdict(list)
    for name in names:
        rooms[name.partition("/")[0]].append(name)
    prefixes = [
        prefix
        for room in rooms.values()
        for prefix in (room if len(room) <= _FEW else [commonprefix(room)])  # noqa: RUF071 - of keys, not of paths
    ]
    with ThreadPoolExecutor(_DOCUMENTS_AT_ONCE, thread_name_prefix="list") as pool:
        looks = pool.map(lambda prefix: [each for each in bucket.versions(prefix) if wanted(each.key)], prefixes)
        return chain.from_iterable(list(looks))

"""The newest backup from before anything looks wrong, after ransomware: what a recovery then goes back to (R5.3).

Two things can be wrong with a backup. Its *content* may be that of an application that was encrypted or emptied: then
whoever did it was in, and everything later is doubtful, too. Or the backup itself was *tampered* with (deleted, hidden,
overwritten, forged): it is of no use, and whatever was made after that happened is doubtful; what was made before it,
and is whole, is not. When something vanished nobody can tell: after it was proved for the last time.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import attrgetter

from include.backup.sizes import Sizes, shrunk
from include.disaster.signs import changed_many, may_have_changed_many, rewritten_log, stopped_compressing
from include.errors import BackupError, Hopeless
from include.pipeline.progress import Progress
from include.pipeline.store import ObjectMissing, ObjectVersion
from include.policy import Policy
from include.recovery.moments.plan import iso
from include.recovery.moments.reach import base_of, point_lsn, read_reach
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog, Entry, oldest
from include.repository.contents import INVENTORY, object_changes
from include.repository.layout import (
    KEYS,
    MANIFESTS,
    PACKS,
    ROLLING_TYPES,
    VERIFICATION,
    WAL,
    BackupId,
    BackupType,
    named_by,
)
from include.repository.manifest import Manifest, ManifestRefused
from include.repository.references import Reference, envelope_prefixes, references
from include.repository.retention_run import last_run
from include.repository.tombstones import read_tombstones
from include.repository.verification import INTEGRITY, SIZES, Record, RecordRefused, Verification, told
from include.sources.objects import parse_changes

log = logging.getLogger(__name__)

_TOLD = 3


class NoneIsGood(Hopeless):
    """Every backup of a bucket is in doubt."""


@dataclass(frozen=True)
class Doubted:
    """A backup that looks wrong, or was made after something did; `reasons` say what, `time` is what it is of."""

    id: str
    time: datetime
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.id}, of {iso(self.time)}: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class Weighed:
    """One backup, looked at; `manifest` is None where there is none any more, or none that is genuine."""

    id: str
    time: datetime
    manifest: Manifest | None
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class LastGood:
    """The backup to go back to, and all that are in doubt, the newest first."""

    backup: Manifest
    doubted: tuple[Doubted, ...]

    def lines(self) -> Iterator[str]:
        """For people: what is good, and why not what is newer."""
        yield f"last good      {self.backup.id}, of {iso(self.backup.consistency_point.time)}"
        for one in self.doubted:
            yield f"in doubt       {one}"


class Trusted(Catalog):
    """A catalog without some backups: nothing is planned from them, whatever else they could vouch for."""

    def __init__(self, catalog: Catalog, *, without: Collection[str]) -> None:
        super().__init__(catalog.bucket, catalog.keyring)
        self._whole, self._without = catalog, frozenset(without)

    def entries(self, type_: BackupType | None = None) -> list[Entry]:
        """Those of the whole catalog that are genuine, and not among the ones left out."""
        return [one for one in self._whole.entries(type_) if one.manifest and one.manifest.id not in self._without]


def find_last_good(catalog: Catalog, policy: Policy) -> LastGood:
    """The newest backup of a bucket that nothing speaks against and that can be recovered.

    Its consistency point is the target: `Target.parse(found.backup.id)`, planned with `Trusted` and without those in
    doubt. Raises `NoneIsGood`, or `StoreError`.
    """
    weighed = weigh_backups(catalog, policy)
    doubted = {one.id: Doubted(one.id, one.time, one.doubts) for one in weighed if one.doubts}
    trusted = Trusted(catalog, without=doubted)
    reachable = _reachable(trusted, policy)
    for one in weighed:
        if one.manifest is None or one.id in doubted:
            continue
        if one.manifest.type == "full" or one.id in reachable:
            newest = sorted(doubted.values(), key=lambda each: (each.time, each.id), reverse=True)
            return LastGood(one.manifest, tuple(newest))
        reason = "no base that is above doubt leads to it, with all of its log"
        doubted[one.id] = Doubted(one.id, one.time, (reason,))
    told_of = "; ".join(f"{one.id}: {one.doubts[0]}" for one in weighed[-_TOLD:] if one.doubts)
    raise NoneIsGood(
        f"No backup in {catalog.bucket} is above doubt" + (f": {told_of}." if told_of else ": it holds none."),
        mend="Look in the other copy. When what is told here is harmless, name the moment to recover to yourself.",
    )


def weigh_backups(catalog: Catalog, policy: Policy) -> tuple[Weighed, ...]:
    """Every backup that there is, or was, the newest first, with all that speaks against it. Archives are left out."""
    entries = [entry for entry in catalog.entries() if _is_rolling(entry.key)]
    listing = _Listing(catalog)
    manifests = {version.key: version for version in _newest(catalog.bucket.versions(MANIFESTS))}
    looked = [*_vanished(catalog, {entry.key for entry in entries})]
    content = _Content(catalog, policy)
    for entry in entries:
        version = manifests[entry.key]
        if entry.manifest is None:
            named = _named(entry.key)
            time = named.moment if named else version.modified
            sign = _Sign(f"its manifest is refused: {entry.refused}", version.modified)
            looked.append(_Looked(str(named or entry.key), time, None, [sign]))
            continue
        signs = [*_tampered(catalog, entry.manifest, entry.verification, version, listing)]
        # Only what was whole, and made while all was well, says what is usual.
        signs += [] if signs else content.signs(entry.manifest, entry.verification)
        looked.append(_Looked(entry.manifest.id, entry.manifest.consistency_point.time, entry.manifest, signs))
    return tuple(_spread(looked))


@dataclass(frozen=True)
class _Sign:
    """One thing that looks wrong; `since` is from when on nothing that was made is above doubt because of it."""

    words: str
    since: datetime


@dataclass(frozen=True)
class _Looked:
    id: str
    time: datetime
    manifest: Manifest | None
    signs: Sequence[_Sign] = field(default=())


def _spread(looked: Iterable[_Looked]) -> Iterator[Weighed]:
    """The newest first; what was made after something looked wrong is doubtful, too."""
    every = sorted(looked, key=lambda one: (one.time, one.id), reverse=True)
    first = min(((sign.since, one) for one in every for sign in one.signs), default=None, key=lambda found: found[0])
    for one in every:
        reasons = [sign.words for sign in one.signs]
        if not reasons and first is not None and one.time >= first[0]:
            since, cause = first
            reasons = [f"made after {iso(since)}, since when {cause.id} looks wrong: {cause.signs[0].words}"]
        yield Weighed(one.id, one.time, one.manifest, tuple(reasons))


# --- what was done to the backup -------------------------------------------------------------------------------------


def _tampered(
    catalog: Catalog, manifest: Manifest, verification: Verification, version: ObjectVersion, listing: _Listing
) -> Iterator[_Sign]:
    """Its proofs, its manifest, every object that it names, and the keys that open them."""
    for record in verification.failed:
        since = _whole_until(catalog, manifest) if record.proof == INTEGRITY else manifest.consistency_point.time
        yield _Sign(f"its verification failed: {told(record)}", since)
    if version.deleted:
        yield _Sign(f"its manifest was hidden by a deletion marker on {iso(version.modified)}", version.modified)
    elif (refused := _is_forged(catalog, version)) is not None:
        yield _Sign(f"its manifest was overwritten on {iso(version.modified)}: {refused}", version.modified)
    wrong: list[tuple[str, datetime | None]] = []
    for reference in references(manifest):
        if (found := listing.wrong(reference)) is not None:
            wrong.append(found)
    wrong += [found for prefix in sorted(envelope_prefixes(manifest)) if (found := listing.locked_out(prefix))]
    if wrong:
        dated = [when for _, when in wrong if when is not None]
        since = min(dated) if len(dated) == len(wrong) else _whole_until(catalog, manifest)
        words = "; ".join(text for text, _ in wrong[:_TOLD])
        more = f"; and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
        yield _Sign(f"{words}{more}", since)


def _is_forged(catalog: Catalog, version: ObjectVersion) -> str | None:
    """Why the newest version of a manifest is refused, although the oldest, which is the backup, is genuine.

    Where a store ignores `If-None-Match` a try that lost leaves a later one, and that is genuine, too.
    """
    try:
        Manifest.open(catalog.bucket.read(version.key, version_id=version.version_id), catalog.keyring, key=version.key)
    except (ManifestRefused, ObjectMissing) as refused:
        return str(refused)
    return None


def _whole_until(catalog: Catalog, manifest: Manifest) -> datetime:
    """When every byte of it was last proved; when it was made, where that never was."""
    passed = [record.when for record in catalog.history(manifest, INTEGRITY) if record.passed]
    return passed[0] if passed else manifest.consistency_point.time


def _vanished(catalog: Catalog, there: Collection[str]) -> Iterator[_Looked]:
    """Backups that were there and are not, although nobody deleted them by the policy: every version is gone.

    That they were is told by what was proved of them, and by what retention saw.
    """
    bucket, keyring = catalog.bucket, catalog.keyring
    deleted = {tombstone.backup for tombstone in read_tombstones(bucket, keyring).values()}
    seen: dict[str, datetime] = {}
    if (run := last_run(bucket, keyring)) is not None:
        deleted |= {each.backup for each in run.deleted}
        for key in run.manifests:
            if (named := _named(key)) is not None:
                seen[str(named)] = run.when
    for version in oldest(bucket.versions(VERIFICATION)):
        backup = version.key.removeprefix(VERIFICATION).partition("/")[0]
        if _is_missed(backup, there, deleted) and (record := _record(catalog, version)) is not None:
            seen[backup] = max(record.when, seen.get(backup, record.when))
    for backup, when in seen.items():
        if _is_missed(backup, there, deleted) and (named := named_by(backup)) is not None:
            words = f"its manifest is gone; on {iso(when)} it was there"
            yield _Looked(backup, named.moment, None, [_Sign(words, when)])


def _is_missed(backup: str, there: Collection[str], deleted: Collection[str]) -> bool:
    """Whether nothing commits it any more, and nobody deleted it by the policy."""
    named = named_by(backup)
    return (
        named is not None and named.type in ROLLING_TYPES and named.manifest_key not in there and backup not in deleted
    )


def _record(catalog: Catalog, version: ObjectVersion) -> Record | None:
    """A genuine record; who may only write into the bucket cannot make a backup be missed that never was."""
    try:
        stored = catalog.bucket.read(version.key, version_id=version.version_id)
        return Record.open(stored, catalog.keyring, key=version.key)
    except (RecordRefused, ObjectMissing):
        return None


class _Listing:
    """What the bucket holds of everything that backups name: size of each object, and what was done to it."""

    def __init__(self, catalog: Catalog) -> None:
        self._bucket = catalog.bucket
        self._sizes: dict[str, int] = {}
        self._hidden: dict[str, datetime] = {}
        self._rewritten: dict[str, tuple[ObjectVersion, ObjectVersion]] = {}
        self._digests: dict[str, str] = {}
        self._opened: set[str] = set()
        for prefix in (*(f"{type_}/" for type_ in ROLLING_TYPES), PACKS, WAL):
            for key, found in groupby(self._bucket.versions(prefix), key=attrgetter("key")):
                self._note(key, list(found))
        for newest in _newest(self._bucket.versions(KEYS)):
            prefix = newest.key.rpartition("/")[0] + "/"
            if newest.deleted:
                self._hidden[prefix] = newest.modified
            else:
                self._opened.add(prefix)

    def wrong(self, reference: Reference) -> tuple[str, datetime | None] | None:
        """What is wrong with an object that a manifest names, and since when, where that is known."""
        key = reference.key
        if (hidden := self._hidden.get(key)) is not None:
            return f"{key} was hidden by a deletion marker on {iso(hidden)}", hidden
        if (size := self._sizes.get(key)) is None:
            return f"{key} is gone", None
        first, newest = self._rewritten.get(key, (None, None))
        if first and newest and (size != reference.stored_bytes or self._digest(newest) != reference.stored_sha256):
            return f"{key} was overwritten on {iso(newest.modified)}", newest.modified
        if size != reference.stored_bytes:
            return f"{key} has {size:,} bytes, not {reference.stored_bytes:,}", None
        return None

    def locked_out(self, prefix: str) -> tuple[str, datetime | None] | None:
        """That no wrap of a data key is left under a prefix, and since when, where that is known."""
        if prefix in self._opened:
            return None
        hidden = self._hidden.get(prefix)
        return f"no key is left below {prefix}" + (f" since {iso(hidden)}" if hidden else ""), hidden

    def _note(self, key: str, versions: Sequence[ObjectVersion]) -> None:
        """Newest first."""
        newest = versions[0]
        if newest.deleted:
            self._hidden[key] = newest.modified
            return
        self._sizes[key] = newest.size
        contents = [version for version in versions if not version.deleted]
        if any((version.etag, version.size) != (newest.etag, newest.size) for version in contents):
            self._rewritten[key] = contents[-1], newest

    def _digest(self, version: ObjectVersion) -> str:
        """Of what was written again: the replica mends what was damaged so, and then it is right."""
        if version.key not in self._digests:
            digest = hashlib.sha256()
            _, content = self._bucket.open_version(version.key, version_id=version.version_id, etag=version.etag)
            for chunk in content:
                digest.update(chunk)
            self._digests[version.key] = digest.hexdigest()
        return self._digests[version.key]


# --- what is in it ---------------------------------------------------------------------------------------------------


class _Content:
    """Weighs one backup after another, oldest first, each against the sound ones before it."""

    def __init__(self, catalog: Catalog, policy: Policy) -> None:
        self._catalog, self._policy, self._progress = catalog, policy, Progress("looking for the last good backup")
        self._sound: list[Manifest] = []
        self._sizes: dict[str, Sizes] = {}
        self._keys: dict[str, frozenset[str]] = {}

    def signs(self, manifest: Manifest, verification: Verification) -> list[_Sign]:
        """What looks wrong with it. What somebody accepted, saying why, is not weighed again, and begins anew."""
        if any(record.proof == SIZES and record.because for record in verification.newest):
            self._sound = [one for one in self._sound if one.type != manifest.type]
            found = []
        elif manifest.type == "incremental":
            found = [*self._of_increment(manifest)]
        else:
            found = [*self._of_whole(manifest, weighed=any(record.proof == SIZES for record in verification.newest))]
        if not found:
            self._sound.append(manifest)
        return [_Sign(words, manifest.consistency_point.time) for words in found]

    def _of_whole(self, manifest: Manifest, *, weighed: bool) -> Iterator[str]:
        before = self._before(manifest.type)
        verification = self._policy.verification
        yield from stopped_compressing(manifest, before, verification)
        if weighed:  # whoever verified it compared its sizes, and signed that
            return
        try:
            now, others = self._sizes_of(manifest), [self._sizes_of(one) for one in before]
        except BackupError as unreadable:
            yield f"its inventory cannot be read: {unreadable.what}"
            return
        if now is not None:
            components = [component.name for component in self._policy.sample_turns]
            less = shrunk(now, [one for one in others if one is not None], verification, components)
            yield from (f"suddenly smaller, {words}" for words in less)

    def _of_increment(self, manifest: Manifest) -> Iterator[str]:
        verification = self._policy.verification
        snapshots = self._before("snapshot")
        yield from rewritten_log(manifest, snapshots[0] if snapshots else None, verification)
        listing = self._listing_before(manifest)
        if listing is None:
            return
        if not may_have_changed_many(manifest, listing, self._between(listing, manifest), verification):
            return
        try:
            there, touched = self._touched(manifest)
            usually = [self._touched(one)[1] for one in self._before("incremental")]
        except BackupError as unreadable:
            yield f"which of its many changes of objects are of old ones cannot be read: {unreadable.what}"
            return
        yield from changed_many(touched, there, usually)

    def _touched(self, manifest: Manifest) -> tuple[int, int]:
        """How many objects there were, by the last whole listing and the increments since; how many it touches."""
        if (listing := self._listing_before(manifest)) is None:
            return 0, 0
        known = set(self._listed(listing))
        for one in self._between(listing, manifest):
            known |= self._changed(one)
        return len(known), len(known & self._changed(manifest))

    def _listing_before(self, manifest: Manifest) -> Manifest | None:
        whole = [one for one in self._sound if one.type != "incremental" and _point(one) < _point(manifest)]
        return max(whole, key=_point, default=None)

    def _between(self, listing: Manifest, manifest: Manifest) -> list[Manifest]:
        increments = (one for one in self._sound if one.type == "incremental")
        return [one for one in increments if _point(listing) < _point(one) < _point(manifest)]

    def _listed(self, manifest: Manifest) -> frozenset[str]:
        if manifest.id not in self._keys:
            opened = self._opened(manifest)
            names = opened.object_components()
            self._keys[manifest.id] = frozenset(entry.key for name in names for entry in opened.objects(name))
        return self._keys[manifest.id]

    def _changed(self, manifest: Manifest) -> frozenset[str]:
        if manifest.id not in self._keys:
            opened = self._opened(manifest)
            names = [one.name for one in manifest.artifacts if one.name == object_changes(one.component)]
            self._keys[manifest.id] = frozenset(line.key for name in names for line in parse_changes(opened.read(name)))
        return self._keys[manifest.id]

    def _before(self, type_: BackupType) -> list[Manifest]:
        """The last sound ones of a type, newest first."""
        found = [one for one in reversed(self._sound) if one.type == type_]
        return found[: self._policy.verification.compared_with]

    def _sizes_of(self, manifest: Manifest) -> Sizes | None:
        opened = self._opened(manifest)
        if manifest.id not in self._sizes and opened.has(INVENTORY):
            self._sizes[manifest.id] = Sizes.of(opened)
        return self._sizes.get(manifest.id)

    def _opened(self, manifest: Manifest) -> OpenedBackup:
        return OpenedBackup(self._catalog, manifest, policy=self._policy.pipeline, progress=self._progress)


def _reachable(catalog: Catalog, policy: Policy) -> frozenset[str]:
    """The backups whose consistency point a recovery reaches."""
    found: set[str] = set()
    for branch in read_reach(catalog, policy.pipeline).branches:
        for run in branch.runs:
            stops = [base_of(base).stop_lsn for base in run.bases]
            found |= {mark.id for mark in run.marks if any(stop < point_lsn(mark) for stop in stops)}
    return frozenset(found)


def _newest(versions: Iterable[ObjectVersion]) -> Iterator[ObjectVersion]:
    for _, found in groupby(versions, key=attrgetter("key")):
        yield next(found)


def _is_rolling(key: str) -> bool:
    return any(key.startswith(f"{MANIFESTS}{type_}/") for type_ in ROLLING_TYPES)


def _named(key: str) -> BackupId | None:
    """The backup that a manifest's key names."""
    return named_by(key.rpartition("/")[2].removesuffix(".json"))


def _point(manifest: Manifest) -> datetime:
    return manifest.consistency_point.time

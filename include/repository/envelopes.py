"""Data keys in the bucket: each wrapped by key-encryption keys, one small object a wrap (`docs/format.md`, *Keys*)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from include.errors import BackupError
from include.pipeline.canonical import canonical_json
from include.pipeline.keys import Keyring, KeyringError, UnknownKey, WrapRefused, new_data_key
from include.pipeline.kms import KmsUnavailable
from include.pipeline.store import Bucket, ObjectExists, ObjectMissing, ObjectVersion
from include.repository.layout import KEYS, envelope_key, envelope_place, envelope_prefix


@dataclass(frozen=True)
class StoredWrap:
    """One wrap as a listing tells it: its oldest version, which counts, and when that was written (store's clock)."""

    kek: str
    version_id: str
    modified: datetime


@dataclass(frozen=True)
class StoredDataKey:
    """One data key as a listing tells it: whose it is, and its wraps, by KEK."""

    owner: str
    attempt: str
    wraps: Mapping[str, StoredWrap]

    def __str__(self) -> str:
        return f"the data key of {self.owner} (attempt {self.attempt})"


def create_data_key(bucket: Bucket, keyring: Keyring, *, owner: str, attempt: str) -> bytes:
    """A new data key whose wraps, one by every current KEK, are durable before the first byte is encrypted under it.

    Raises `KmsUnavailable` when one of them cannot be made: a backup that only one region can read is none (R3.2).
    """
    dek = new_data_key()
    if not keyring.current_keks:
        raise KeyringError("This keyring wraps nothing.", mend="It is for auditing: use the full one.")
    envelopes = [keyring.wrap(dek, owner=owner, attempt=attempt, kek=kek) for kek in keyring.current_keks]
    for envelope in envelopes:
        bucket.create(envelope_key(owner, attempt, envelope["kek"]), canonical_json(envelope))
    return dek


def open_data_key(bucket: Bucket, keyring: Keyring, *, owner: str, attempt: str) -> bytes:
    """The data key of a backup's attempt, of a pack or of a session, by whichever of its wraps this keyring opens.

    Raises `ObjectMissing` when it has no wrap at all, `UnknownKey` when none is by a key of ours; and, when none of
    those that are opens, `WrapRefused`, naming the envelope, or `KmsUnavailable`.
    """
    prefix = envelope_prefix(owner, attempt)
    for data_key in stored_data_keys(bucket, prefix):
        return open_stored(bucket, keyring, data_key)
    raise ObjectMissing(
        f"No wrap of the data key of {owner} (attempt {attempt}) is in {bucket}/{prefix}.",
        mend="Without one nothing of it can be read: use the replica, which has its own.",
    )


def open_stored(bucket: Bucket, keyring: Keyring, data_key: StoredDataKey) -> bytes:
    """As `open_data_key`, of one that was listed."""
    failures: list[BackupError] = []
    # Keys of our own first: they ask nobody.
    for kek in sorted(data_key.wraps.keys() & keyring.keks.keys(), key=lambda kek: keyring.keks[kek].kind != "local"):
        try:
            return open_wrap(bucket, keyring, data_key, kek)
        except (WrapRefused, KmsUnavailable, ObjectMissing) as refused:
            failures.append(refused)
    if failures:
        raise failures[0]
    owner, attempt = data_key.owner, data_key.attempt
    raise UnknownKey(
        f"The data key of {owner} (attempt {attempt}), in {bucket}/{envelope_prefix(owner, attempt)}, is wrapped by "
        f"{', '.join(data_key.wraps)}, which this keyring does not hold.",
        mend="Use the keyring of the time, or bring that key back from its escrow.",
    )


def open_wrap(bucket: Bucket, keyring: Keyring, data_key: StoredDataKey, kek: str) -> bytes:
    """The data key by one KEK alone; raises `WrapRefused`, naming the envelope, or `KmsUnavailable`."""
    owner, attempt = data_key.owner, data_key.attempt
    key = envelope_key(owner, attempt, kek)
    stored = bucket.read(key, version_id=data_key.wraps[kek].version_id)
    try:
        return keyring.unwrap(_parsed(stored, kek), owner=owner, attempt=attempt)
    except KeyringError as refused:
        raise WrapRefused(f"The envelope {bucket}/{key} is refused. {refused.what}", mend=refused.mend) from refused


def add_wrap(
    bucket: Bucket, keyring: Keyring, data_key: StoredDataKey, dek: bytes, *, kek: str, primary: Bucket | None = None
) -> bool:
    """One more wrap of a data key, read back and proved with that KEK alone; False when the data key is gone meanwhile.

    `primary` is given for a replica: the wrap is its one, byte by byte, made there first if need be, unless the data
    key is in the replica alone. Whoever makes the same wrap at the same time wins or loses, and both have it. Raises
    `WrapRefused` when what lies there does not open, or opens to something else.
    """
    owner, attempt = data_key.owner, data_key.attempt
    key, prefix = envelope_key(owner, attempt, kek), envelope_prefix(owner, attempt)
    envelope = _wrap_of(primary, keyring, data_key, dek, kek) if primary is not None else None
    if envelope is None:
        envelope = canonical_json(keyring.wrap(dek, owner=owner, attempt=attempt, kek=kek))
    with suppress(ObjectExists):  # another rotation, or the store's replication, was first: theirs is proved as ours is
        bucket.create(key, envelope)
    now_there = next(stored_data_keys(bucket, prefix), None)
    if now_there is None or not data_key.wraps.keys() & now_there.wraps.keys():
        # It was reaped, shredded, or has expired while we looked: a wrap that stayed would bring it back. Only what was
        # just made goes: were the listing wrong, the data key would have the wraps that it had.
        bucket.hide(key)
        for version in list(bucket.versions(key)):
            bucket.delete_version(key, version.version_id)
        return False
    if open_wrap(bucket, keyring, now_there, kek) != dek:
        raise WrapRefused(
            f"The envelope {bucket}/{key} opens, and to another data key than the others of it.",
            mend="Do not use it: find out who wrote it, delete that version, and run this again.",
        )
    return True


def _wrap_of(primary: Bucket, keyring: Keyring, data_key: StoredDataKey, dek: bytes, kek: str) -> bytes | None:
    """The primary's envelope of a data key, made where it lacks it; None when the primary has no such data key."""
    owner, attempt = data_key.owner, data_key.attempt
    theirs = next(stored_data_keys(primary, envelope_prefix(owner, attempt)), None)
    if theirs is None or (kek not in theirs.wraps and not add_wrap(primary, keyring, theirs, dek, kek=kek)):
        return None
    return primary.read_oldest(envelope_key(owner, attempt, kek))


def stored_data_keys(bucket: Bucket, prefix: str = KEYS) -> Iterator[StoredDataKey]:
    """Every data key with a wrap below a prefix, as the listing comes; what is no envelope's key is passed over.

    Versions, not current keys: a deletion marker must not be able to make a backup unreadable.
    """
    for (owner, attempt), versions in groupby(_wraps(bucket.versions(prefix)), key=lambda found: found[0]):
        wraps: dict[str, StoredWrap] = {}
        for _, kek, version in versions:
            wraps[kek] = StoredWrap(kek, version.version_id, version.modified)  # newest first: the oldest stays
        yield StoredDataKey(owner, attempt, wraps)


def _wraps(versions: Iterable[ObjectVersion]) -> Iterator[tuple[tuple[str, str], str, ObjectVersion]]:
    for version in versions:
        place = envelope_place(version.key)
        if place is not None and not version.deleted:
            yield (place[0], place[1]), place[2], version


def _parsed(stored: bytes, kek_id: str) -> dict[str, Any]:
    """An envelope that is spelled as it was written, and is of the key that its name says."""
    try:
        envelope = json.loads(stored)
        genuine = canonical_json(envelope) == stored and envelope["kek"] == kek_id
    except (ValueError, KeyError, TypeError, RecursionError):
        genuine = False
    if not genuine:
        raise WrapRefused("It is not an envelope of format 1.", mend="Use the replica's copy.")
    return dict(envelope)

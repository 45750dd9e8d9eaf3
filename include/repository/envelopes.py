"""Data keys in the bucket: each wrapped by a key-encryption key, one small object a wrap (`docs/format.md`, *Keys*)."""

from __future__ import annotations

import json
from typing import Any

from include.pipeline.canonical import canonical_json
from include.pipeline.keys import Keyring, KeyringError, UnknownKey, WrapRefused, new_data_key
from include.pipeline.store import Bucket, ObjectMissing
from include.repository.layout import envelope_key, envelope_prefix


def create_data_key(bucket: Bucket, keyring: Keyring, *, owner: str, attempt: str) -> bytes:
    """A new data key whose wrap is durable before the first byte is encrypted under it."""
    dek = new_data_key()
    envelope = keyring.wrap(dek, owner=owner, attempt=attempt)
    bucket.create(envelope_key(owner, attempt, envelope["kek"]), canonical_json(envelope))
    return dek


def open_data_key(bucket: Bucket, keyring: Keyring, *, owner: str, attempt: str) -> bytes:
    """The data key of a backup's attempt or of a pack, by whichever of its wraps this keyring opens.

    Raises `ObjectMissing` when it has no wrap at all, `UnknownKey` when none is by a key of ours, and `WrapRefused`,
    naming the envelope, when one is and does not open.
    """
    wrapped_by = []
    prefix = envelope_prefix(owner, attempt)
    # Versions, not current keys: a deletion marker must not be able to make a backup unreadable.
    for key in sorted({version.key for version in bucket.versions(prefix) if not version.deleted}):
        kek_id = key.rpartition("/")[2].removesuffix(".json")
        wrapped_by.append(kek_id)
        if kek_id in keyring.keks:
            try:
                envelope = _parsed(bucket.read_oldest(key), kek_id)
                return keyring.unwrap(envelope, owner=owner, attempt=attempt)
            except KeyringError as refused:
                raise WrapRefused(
                    f"The envelope {bucket}/{key} is refused. {refused.what}", mend=refused.mend
                ) from refused
    if not wrapped_by:
        raise ObjectMissing(
            f"No wrap of the data key of {owner} (attempt {attempt}) is in {bucket}/{prefix}.",
            mend="Without one nothing of it can be read: use the replica, which has its own.",
        )
    raise UnknownKey(
        f"The data key of {owner} (attempt {attempt}), in {bucket}/{prefix}, is wrapped by {', '.join(wrapped_by)}, "
        "which this keyring does not hold.",
        mend="Use the keyring of the time, or bring that key back from its escrow.",
    )


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

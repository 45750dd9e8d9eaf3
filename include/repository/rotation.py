"""Rotation (R7.1): new keys in the keyring, one more wrap of every data key, and the old keys' end.

What is stored is never encrypted anew: a data key gets one more wrap, by each KEK that no other follows, and its old
wraps stay until it goes itself. What a rotation has done is read from the keyring and from the bucket, and nowhere
else; so one that was cut goes on where it was, and two at once do the same work.

A KEK is removed from the keyring by `retire` alone, and only when it is proved that nothing needs it.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, get_args

from include.errors import Hopeless
from include.pipeline.keyring_file import held, replace_file
from include.pipeline.keys import (
    LONG_AGO,
    Keyring,
    KeyringError,
    LocalKey,
    UnknownKey,
    WrapRefused,
    new_local_key,
)
from include.pipeline.kms import KmsKey, KmsUnavailable, Sessions, session_of_environment
from include.pipeline.store import Bucket, ObjectMissing
from include.policy.model import Keys
from include.repository.envelopes import StoredDataKey, add_wrap, open_stored, open_wrap, stored_data_keys
from include.repository.layout import envelope_prefix

log = logging.getLogger(__name__)

KeyKind = Literal["kek", "signing"]
KEY_KINDS: tuple[KeyKind, ...] = get_args(KeyKind)

_AT_ONCE = 16
_PASSES = 10
"""How often a bucket is gone through again because data keys came meanwhile; what comes later is the next run's."""
_STAMPED = re.compile(r"[a-z]+-(\d{8})-")

T = TypeVar("T")


class NotWrapped(Hopeless):
    """Data keys that could not be given another wrap, or whose wrap does not open."""


class NotRotated(Hopeless):
    """Keys that cannot be made as they were asked for."""


class StillNeeded(Hopeless):
    """A key that something needs: it stays."""


@dataclass(frozen=True)
class Refused:
    """One data key with which it could not be done, and why."""

    data_key: str
    why: str

    def __str__(self) -> str:
        return f"{self.data_key}: {self.why}"


@dataclass(frozen=True)
class Outcome:
    """What came of going through a bucket: data keys that it holds, wraps made or proved, and what was refused."""

    data_keys: int
    wraps: int
    refused: tuple[Refused, ...] = ()

    def require(self, bucket: Bucket) -> None:
        """Raise `NotWrapped`, which names the first, unless nothing was refused."""
        if self.refused:
            more = f", and {len(self.refused) - 1} more (they are in the log)" if len(self.refused) > 1 else ""
            raise NotWrapped(
                f"{len(self.refused)} of {self.data_keys} data keys in {bucket} lack a wrap that opens: "
                f"{self.refused[0]}{more}. All others are done.",
                mend="Bring the key that is named back from its escrow, or the envelope from the other bucket, and run "
                "this again; what cannot be had any more is lost with that key, and `verify` says which backups are.",
            )


# --- the keyring ------------------------------------------------------------------------------------------------------


def made_on(key_id: str) -> datetime | None:
    """The day that a key's id tells; None for one that tells none."""
    found = _STAMPED.match(key_id)
    try:
        return datetime.strptime(found[1], "%Y%m%d").replace(tzinfo=UTC) if found else None
    except ValueError:
        return None


def due(keyring: Keyring, policy: Keys, *, now: datetime) -> tuple[KeyKind, ...]:
    """Which kinds of keys are as old as the policy's rotation. One whose id tells no day is."""
    newest = {"kek": keyring.lasting_keks, "signing": (keyring.newest_signing_key,)}
    return tuple(kind for kind in KEY_KINDS if any(due_on(each, policy) <= now for each in newest[kind]))


def due_on(key_id: str, policy: Keys) -> datetime:
    """When a key is to be followed by another; at once, if its id tells no day."""
    made = made_on(key_id)
    return LONG_AGO if made is None else policy.rotation.after(made)


def under_way(keyring: Keyring, *, now: datetime) -> tuple[KeyKind, ...]:
    """The kinds of which a new key was made, and the time for it to reach every worker is not over."""
    found: list[KeyKind] = []
    if any(kek.until is not None and now < kek.until for kek in keyring.keks.values()):
        found.append("kek")
    if any(key.starts is not None and now < key.starts for key in keyring.signing_keys.values()):
        found.append("signing")
    return tuple(found)


def make_keys(
    path: Path,
    kinds: Collection[KeyKind],
    policy: Keys,
    *,
    kms: Sequence[KmsKey] = (),
    sessions: Sessions = session_of_environment,
    now: datetime | None = None,
) -> tuple[str, ...]:
    """Put a new key of each kind into the keyring file; returns the ids of those that were made.

    A kind whose rotation is under way already gets no second one, so that this can be done again, and by two at once.
    The new KEKs wrap from now on, *beside* those of before; the new signing key proves from now on, and signs when the
    policy's `handover` is over: until then, everything opens and is believed with the file of before, too.

    `kms` are the new keys where KMS has them, one a region. Raises `NotRotated` when KEKs are KMS's and none are named,
    or one is in the keyring already; `KmsUnavailable`; `KeyringFixed`; `KeyringBusy`.
    """
    pinned = [key.pinned() for key in kms]
    with held(path):
        keyring, now = Keyring.load(path, sessions=sessions), now or datetime.now(UTC)
        wanted = set(kinds) - set(under_way(keyring, now=now))
        rotated, handed_over = keyring, policy.handover.after(now)
        if "kek" in wanted:
            rotated = rotated.with_keks(_new_keks(keyring, pinned), now=now, until=handed_over)
        if "signing" in wanted:
            rotated = rotated.with_signing_key(now=now, starts=handed_over)
        if rotated is keyring:
            return ()
        replace_file(path, rotated.content(), now=now)
    return tuple(each for each in (*rotated.keks, *rotated.signing_keys) if each not in keyring.ids)


def _new_keks(keyring: Keyring, kms: Sequence[KmsKey]) -> Sequence[KmsKey | LocalKey]:
    known = {kek.key.key for kek in keyring.keks.values() if isinstance(kek.key, KmsKey)}
    again = [key for key in kms if key.key in known]
    if again:
        raise NotRotated(
            f"{again[0]} is in the keyring already.", mend="Make another key in KMS, and name that one's ARN."
        )
    theirs = [kek.key for kek in keyring.keks.values() if kek.until is None and isinstance(kek.key, KmsKey)]
    if theirs and not kms:
        raise NotRotated(
            f"The key-encryption keys are of AWS KMS ({', '.join(map(repr, theirs))}), which makes them itself.",
            mend="Make a new one in each of these regions, and name their ARNs: `keyring rotate --kms ARN --kms ARN`, "
            "or `kms` in the run's form.",
        )
    lacking = {key.region for key in theirs} - {key.region for key in kms}
    if lacking:
        raise NotRotated(
            f"No new key is named for {', '.join(sorted(lacking))}: what is written could not be read there alone.",
            mend="Name one for each region.",
        )
    return list(kms) or [new_local_key()]


# --- the buckets ------------------------------------------------------------------------------------------------------


def wrap_all(bucket: Bucket, keyring: Keyring, *, primary: Bucket | None = None) -> Outcome:
    """One more wrap of every data key that lacks one by a lasting KEK, until a pass finds none without.

    Of a replica `primary` is given, whose wraps it gets: the two never differ.

    Data keys that running backups make meanwhile are found by the next pass. Memory does not grow with the bucket. A
    data key that opens with no key of ours, or has a wrap that is refused, is in the outcome, and stops no other;
    raises `KmsUnavailable` and `StoreError` at once.
    """
    made = 0
    for _ in range(_PASSES):
        found = _go_through(bucket, partial(_wrap, bucket, keyring, primary))
        made += found.wraps
        if not found.wraps:
            break
    return Outcome(found.data_keys, made, found.refused)


def prove_all(bucket: Bucket, keyring: Keyring, *, primary: Bucket | None = None) -> Outcome:
    """Open every data key in a bucket with each lasting KEK alone, and see that all its wraps give the same.

    What came since the bucket was wrapped is wrapped now.
    """
    return _go_through(bucket, partial(_prove, bucket, keyring, primary))


def _wrap(bucket: Bucket, keyring: Keyring, primary: Bucket | None, data_key: StoredDataKey) -> int:
    missing = [kek for kek in keyring.lasting_keks if kek not in data_key.wraps]
    if not missing:
        return 0
    dek = open_stored(bucket, keyring, data_key)
    return sum(add_wrap(bucket, keyring, data_key, dek, kek=kek, primary=primary) for kek in missing)


def _prove(bucket: Bucket, keyring: Keyring, primary: Bucket | None, data_key: StoredDataKey) -> int:
    wrapped = _wrap(bucket, keyring, primary, data_key)
    by = [kek for kek in keyring.lasting_keks if kek in data_key.wraps]
    old = data_key.wraps.keys() & keyring.keks.keys() - {*by}
    proved = {open_wrap(bucket, keyring, data_key, kek) for kek in by}
    if len(proved | {_opened(bucket, keyring, data_key, kek) for kek in old} - {None}) > 1:
        raise WrapRefused("Its wraps open to different data keys.", mend="Find out who wrote them.")
    return wrapped + len(by)


def _go_through(bucket: Bucket, work: Callable[[StoredDataKey], int]) -> Outcome:
    def one(data_key: StoredDataKey) -> int | Refused:
        try:
            return work(data_key)
        except (KeyringError, ObjectMissing) as refused:
            if not any(bucket.versions(envelope_prefix(data_key.owner, data_key.attempt))):
                return 0  # it expired, or was reaped, while we looked
            log.error("In %s, %s is refused: %s", bucket, data_key, refused.what)
            return Refused(f"{data_key}", refused.what)

    count = wraps = 0
    refused: list[Refused] = []
    for result in _side_by_side(one, stored_data_keys(bucket)):
        count += 1
        if isinstance(result, Refused):
            refused.append(result)
        else:
            wraps += result
    return Outcome(count, wraps, tuple(refused))


def _side_by_side(work: Callable[[StoredDataKey], T], data_keys: Iterable[StoredDataKey]) -> Iterator[T]:
    """The results in order; the listing is never far ahead of the work."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="rotation") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for data_key in data_keys:
                waiting.append(pool.submit(work, data_key))
                if len(waiting) > 4 * _AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()


# --- the end of a key -------------------------------------------------------------------------------------------------


def retire(
    path: Path,
    key_id: str,
    buckets: Sequence[Bucket],
    policy: Keys,
    *,
    sessions: Sessions = session_of_environment,
    now: datetime | None = None,
) -> None:
    """Take an old key out of the keyring file: a KEK wholly, of a signing key the half that signs.

    Raises `StillNeeded`, naming why, when it is current, when somebody used it within the last `handover`, or when in
    any of `buckets` (all that there are) a data key that it wraps lacks a wrap by a lasting KEK, or has one that does
    not open; `UnknownKey`; `KeyringFixed`; `KeyringBusy`. The copy that is kept beside the file has the key still.
    """
    with held(path):
        now = now or datetime.now(UTC)
        keyring = Keyring.load(path, sessions=sessions)
        if key_id in keyring.keks:
            _require_over(keyring, key_id, policy, now)
            for bucket in buckets:
                _require_unneeded(bucket, keyring, key_id, policy, now)
            without = keyring.without_kek(key_id)
        elif key_id in keyring.signing_keys:
            _require_silent(keyring, key_id, now)
            without = keyring.without_private(key_id)
        else:
            raise UnknownKey(f"{key_id} is not in {path}.", mend="`python -m include.cli keyring show` names them all.")
        replace_file(path, without.content(), now=now)


def _require_over(keyring: Keyring, kek: str, policy: Keys, now: datetime) -> None:
    until = keyring.keks[kek].until
    if until is None:
        raise StillNeeded(f"{kek} is current: no other follows it.", mend="Rotate first (`keyring rotate`).")
    if now < until:
        raise StillNeeded(
            f"{kek} wraps until {until:%Y-%m-%d %H:%M} UTC: workers with the file of before have no other key.",
            mend=f"Bring the new file to every worker, and retire it then (keys.handover is {policy.handover}).",
        )


def _require_unneeded(bucket: Bucket, keyring: Keyring, kek: str, policy: Keys, now: datetime) -> None:
    """Raise `StillNeeded`, naming the first data key that needs it, or was wrapped by it too lately."""
    stays = keyring.without_kek(kek)
    since = policy.handover.before(now)

    def why(data_key: StoredDataKey) -> StillNeeded | None:
        if kek not in data_key.wraps:
            return None
        used = data_key.wraps[kek].modified
        if used >= since:
            return StillNeeded(
                f"Somebody wrapped {data_key} in {bucket} with {kek} on {used:%Y-%m-%d %H:%M} UTC, within the last "
                f"{policy.handover}.",
                mend="Where a worker or a stream still has the old keyring file, give it the new one, and start it "
                "again; retire the key when nobody has used it for that long.",
            )
        try:
            others = data_key.wraps.keys() & {*keyring.lasting_keks}
            opened = {open_wrap(bucket, stays, data_key, other) for other in others}
            lacking = [other for other in keyring.lasting_keks if other not in others]
        except (KeyringError, ObjectMissing) as refused:
            failure = refused.what
        else:
            if not lacking and len(opened | {_opened(bucket, keyring, data_key, kek)} - {None}) == 1:
                return None
            failure = f"It has no wrap by {', '.join(lacking)}." if lacking else "The others open it to another one."
        return StillNeeded(
            f"{kek} is needed for {data_key} in {bucket}. {failure}",
            mend="Wrap everything first (`keyring wrap`, or the DAG key_rotation), and mend what that names.",
        )

    for needed in _side_by_side(why, stored_data_keys(bucket)):
        if needed is not None:
            raise needed


def _opened(bucket: Bucket, keyring: Keyring, data_key: StoredDataKey, kek: str) -> bytes | None:
    """The data key by the KEK that is to go; None where it opens no more, so that nothing is lost with it."""
    try:
        return open_wrap(bucket, keyring, data_key, kek)
    except (KeyringError, ObjectMissing, KmsUnavailable):
        return None


def _require_silent(keyring: Keyring, key_id: str, now: datetime) -> None:
    if key_id in (keyring.signing_key_at(now), keyring.newest_signing_key):
        raise StillNeeded(
            f"{key_id} signs what is written now, or will.",
            mend="Rotate first (`keyring rotate --kind signing`), and retire it when the new one signs: "
            "`keyring show` says when.",
        )

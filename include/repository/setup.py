"""Both buckets, made or checked: what each must be, what it is, and what was changed (R3.1 to R3.3, R7.1).

Each aspect is looked at, and set only where it is not as it should be; so a second set-up changes nothing, and a dry
run never does. What a store does not know is told as that, beside what stands in for it. What a set-up cannot change
(a bucket of somebody else's, a lock that a bucket must be made with) is told, too, and left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from botocore.exceptions import ClientError

from include.errors import BackupError
from include.pipeline.store import Bucket
from include.policy import Policy
from include.repository import lifecycle
from include.repository.replica import BUCKET_REPLICATES

State = Literal["as it should be", "to be changed", "changed", "not known to this store", "left to a person"]
Answer = TypeVar("Answer")

_UNKNOWN = {"NotImplemented", "MethodNotAllowed"}
_ABROAD = {"InvalidLocationConstraint", "IllegalLocationConstraintException"}
_CLOSED = {"BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": True, "RestrictPublicBuckets": True}


class SetupFailed(BackupError):
    """A bucket that cannot be made what it must be."""


@dataclass(frozen=True)
class Finding:
    """One aspect of one bucket: its state, what it is, and what it should be or why it is not."""

    bucket: str
    aspect: str
    state: State
    detail: str


@dataclass(frozen=True)
class _Aspect:
    """How one aspect is asked for, in words; what the words should be; and how it is set.

    `unknown` are the store's codes that mean that it has no such thing, `by_hand` those that mean that a person must
    act; `otherwise` says what stands in for it, or what that is.
    """

    name: str
    wanted: str
    look: Callable[[], str]
    mend: Callable[[], object]
    otherwise: str
    unknown: frozenset[str] = frozenset()
    by_hand: frozenset[str] = frozenset()


class _CannotError(Exception):
    """What the store, or this set-up, cannot do; its text says why."""

    def __init__(self, state: State, why: str) -> None:
        super().__init__(why)
        self.state: State = state


def set_up(
    primary: Bucket, replica: Bucket, policy: Policy, *, replication_role: str = "", dry_run: bool = False
) -> list[Finding]:
    """Make both buckets, or check them; returns every aspect of each, in order. Raises `StoreError`, `SetupFailed`.

    `replication_role` is the IAM role with which AWS replicates; without one, and without a rule that has one already,
    what is not there is copied by us. The replica comes first: nothing replicates to what is not there.
    """
    storage = policy.storage
    found = [
        *_set_up(replica, storage.replica.region, policy, [], dry_run=dry_run),
        *_set_up(primary, storage.primary.region, policy, [_replication(primary, replica, replication_role)], dry_run),
    ]
    return sorted(found, key=lambda finding: finding.bucket != primary.name)


def _set_up(bucket: Bucket, region: str, policy: Policy, more: list[_Aspect], dry_run: bool) -> Iterator[Finding]:
    locked = policy.storage.object_lock != "off"
    if not _exists(bucket):
        if dry_run:
            yield Finding(bucket.name, "bucket", "to be changed", f"it is to be made in {region}, and set up")
            return
        _create(bucket, region, locked=locked)
        yield Finding(bucket.name, "bucket", "changed", f"made in {region}")
    else:
        yield Finding(bucket.name, "bucket", "as it should be", "it is there")
    aspects = [_versioning(bucket), _encryption(bucket), _public_access(bucket), _lifecycle(bucket, policy)]
    for aspect in (*aspects, *([_object_lock(bucket)] if locked else []), *more):
        yield _settle(bucket, aspect, dry_run=dry_run)


def _settle(bucket: Bucket, aspect: _Aspect, *, dry_run: bool) -> Finding:
    """Look at one aspect, set it where it differs, and look again."""
    try:
        there = _asked(bucket, aspect, "look at", aspect.look)
        if there == aspect.wanted:
            return Finding(bucket.name, aspect.name, "as it should be", there)
        if dry_run:
            return Finding(bucket.name, aspect.name, "to be changed", f"{there} -> {aspect.wanted}")
        _asked(bucket, aspect, "set", aspect.mend)
        now = _asked(bucket, aspect, "look at", aspect.look)
        if now != aspect.wanted:
            raise _CannotError("not known to this store", f"it took {aspect.wanted!r}, and has {now!r}")
    except _CannotError as cannot:
        return Finding(bucket.name, aspect.name, cannot.state, f"{aspect.otherwise} ({cannot})")
    return Finding(bucket.name, aspect.name, "changed", f"{there} -> {now}")


def _versioning(bucket: Bucket) -> _Aspect:
    return _Aspect(
        "versions",
        "on",
        look=lambda: "on" if bucket.is_versioned() else "off",
        mend=lambda: bucket.client.put_bucket_versioning(
            Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"}
        ),
        otherwise="Use a store that keeps versions: nothing is written where none are kept.",
    )


def _encryption(bucket: Bucket) -> _Aspect:
    def look() -> str:
        absent = "ServerSideEncryptionConfigurationNotFoundError"
        answer = _unless(absent, lambda: bucket.client.get_bucket_encryption(Bucket=bucket.name))
        rules = _told(answer).get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
        told = [rule.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm") for rule in rules]
        return ", ".join(map(str, told)) or "none"

    return _Aspect(
        "encryption",
        "AES256",
        look=look,
        mend=lambda: bucket.client.put_bucket_encryption(
            Bucket=bucket.name,
            ServerSideEncryptionConfiguration={
                "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
            },
        ),
        otherwise="What is written here is encrypted with AES-256 before it leaves.",
        unknown=frozenset({"InvalidArgument"}),  # Ceph's word, where it has no key service
    )


def _public_access(bucket: Bucket) -> _Aspect:
    def look() -> str:
        absent = "NoSuchPublicAccessBlockConfiguration"
        answer = _unless(absent, lambda: bucket.client.get_public_access_block(Bucket=bucket.name))
        told = _told(answer).get("PublicAccessBlockConfiguration", {})
        open_ = [name for name in _CLOSED if not told.get(name)]
        return f"not blocked: {', '.join(open_)}" if open_ else "blocked"

    return _Aspect(
        "public access",
        "blocked",
        look=look,
        mend=lambda: bucket.client.put_public_access_block(
            Bucket=bucket.name,
            PublicAccessBlockConfiguration=cast(Any, _CLOSED),
        ),
        otherwise="Let no policy and no access list of the bucket name everybody.",
    )


def _lifecycle(bucket: Bucket, policy: Policy) -> _Aspect:
    return _Aspect(
        "lifecycle",
        str(lifecycle.Drift(bucket.name, ())),
        look=lambda: "; ".join(str(lifecycle.find_drift(bucket, policy)).splitlines()),
        mend=lambda: lifecycle.apply(bucket, policy),
        otherwise="Archives stay where they are, and the reaper and retention remove the rest.",
    )


def _object_lock(bucket: Bucket) -> _Aspect:
    def look() -> str:
        absent = "ObjectLockConfigurationNotFoundError"
        answer = _unless(absent, lambda: bucket.client.get_object_lock_configuration(Bucket=bucket.name))
        told = _told(answer).get("ObjectLockConfiguration", {}).get("ObjectLockEnabled")
        return "possible" if told == "Enabled" else "not possible"

    return _Aspect(
        "object lock",
        "possible",
        look=look,
        mend=lambda: bucket.client.put_object_lock_configuration(
            Bucket=bucket.name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"}
        ),
        otherwise="This store locks objects only in buckets that were made for it: make a new one.",
        by_hand=frozenset({"InvalidBucketState"}),
    )


def _replication(bucket: Bucket, replica: Bucket, role: str) -> _Aspect:
    """One rule a prefix, since rules can name what they take and not what they leave out."""
    target = f"arn:aws:s3:::{replica.name}"

    def there() -> dict[str, Any]:
        absent = "ReplicationConfigurationNotFoundError"
        answer = _unless(absent, lambda: bucket.client.get_bucket_replication(Bucket=bucket.name))
        return dict(_told(answer).get("ReplicationConfiguration", {}))

    def look() -> str:
        replication = there()
        if not (role or replication.get("Role")):
            raise _CannotError("left to a person", "no role is named")
        return "; ".join(sorted(map(_rule_in_words, replication.get("Rules", [])))) or "none"

    def mend() -> None:
        used = role or there()["Role"]
        rules = [
            {
                "ID": f"replicate-{prefix.rstrip('/')}",
                "Priority": number,
                "Status": "Enabled",
                "Filter": {"Prefix": prefix},
                "DeleteMarkerReplication": {"Status": "Disabled"},
                "Destination": {"Bucket": target},
            }
            for number, prefix in enumerate(BUCKET_REPLICATES, start=1)
        ]
        bucket.client.put_bucket_replication(
            Bucket=bucket.name, ReplicationConfiguration={"Role": used, "Rules": cast(Any, rules)}
        )

    return _Aspect(
        "replication",
        "; ".join(sorted(f"{prefix} to {target}" for prefix in BUCKET_REPLICATES)),
        look=look,
        mend=mend,
        otherwise="Every run copies what it made into the replica; on AWS the bucket does, with --replication-role.",
    )


def _rule_in_words(rule: dict[str, Any]) -> str:
    prefix = (rule.get("Filter") or {}).get("Prefix", rule.get("Prefix", ""))
    markers = (rule.get("DeleteMarkerReplication") or {}).get("Status") == "Enabled"
    return (
        f"{prefix or 'everything'} to {rule['Destination']['Bucket']}"
        + (", deletions too" if markers else "")
        + ("" if rule.get("Status") == "Enabled" else ", switched off")
    )


def _exists(bucket: Bucket) -> bool:
    with bucket.naming("look at", ""):
        return _unless("404", lambda: bucket.client.head_bucket(Bucket=bucket.name)) is not None


def _create(bucket: Bucket, region: str, *, locked: bool) -> None:
    wanted: Any = {"Bucket": bucket.name, **({"ObjectLockEnabledForBucket": True} if locked else {})}

    def make(where: str) -> None:
        # The one region that may not be named.
        abroad: Any = {"CreateBucketConfiguration": {"LocationConstraint": where}} if where != "us-east-1" else {}
        bucket.client.create_bucket(**wanted, **abroad)

    with bucket.naming("make", ""):
        try:
            make(region)
        except ClientError as error:
            code = error.response["Error"].get("Code")
            if code in ("BucketAlreadyExists", "OperationAborted"):
                raise SetupFailed(
                    f"{bucket} cannot be made: its name is taken ({code}).",
                    mend="Names are shared by everybody: choose another in the policy's storage section.",
                ) from error
            if code not in _ABROAD or bucket.endpoint_url is None:
                raise
            make(bucket.client.meta.region_name)  # a store that is not AWS has regions of its own


def _told(answer: object) -> dict[str, Any]:
    """What an answer says; nothing, where there is none."""
    return cast("dict[str, Any]", answer or {})


def _unless(absent: str, ask: Callable[[], Answer]) -> Answer | None:
    """The answer, or None where the store says that nothing is set."""
    try:
        return ask()
    except ClientError as error:
        if error.response["Error"].get("Code") == absent:
            return None
        raise


def _asked(bucket: Bucket, aspect: _Aspect, verb: str, ask: Callable[[], Answer]) -> Answer:
    """The answer; raises `_CannotError` where the store has no such thing, and `StoreError` otherwise."""
    with bucket.naming(f"{verb} the {aspect.name} of", ""):
        try:
            return ask()
        except ClientError as error:
            code = str(error.response["Error"].get("Code"))
            if code in _UNKNOWN | aspect.unknown:
                raise _CannotError("not known to this store", code) from error
            if code in aspect.by_hand:
                raise _CannotError("left to a person", code) from error
            raise

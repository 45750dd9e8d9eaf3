"""The buckets' own lifecycle rules, as the policy has them: shown where they drifted, mended, and read back (R3.3).

Three things are left to the store, and no more. Archives move to Glacier, and nothing else does. Of content, versions
that are not current any more expire. Uploads that were never ended are thrown away. What is current expires through the
retention function alone, which knows what depends on what; a rule knows ages only.

Versions that are not current expire where the current one counts: segments and packs. Of manifests, envelopes, declared
gaps, records and shipped log the *oldest* version counts, and there no rule may touch any.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from botocore.exceptions import ClientError

from include.errors import BackupError
from include.pipeline.store import Bucket
from include.policy import Policy
from include.repository.layout import BACKUP_TYPES, PACKS

log = logging.getLogger(__name__)

Rules = dict[str, str]
"""What a bucket does, by a rule's id, in words; two buckets of the same words do the same."""
CURRENT_COUNTS = (*(f"{type_}/" for type_ in BACKUP_TYPES), PACKS)
_NONE = "NoSuchLifecycleConfiguration"


class LifecycleDrifted(BackupError):
    """A bucket that does not keep the rules that it was given."""


@dataclass(frozen=True)
class Drift:
    """How a bucket's rules differ from the policy's: a line a rule, `-` what is there and `+` what should be."""

    bucket: str
    lines: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.lines)

    def __str__(self) -> str:
        return "\n".join(self.lines) if self.lines else "as the policy says"


def desired(policy: Policy) -> list[dict[str, Any]]:
    """The rules of either bucket, as S3's API spells them."""
    cold, lifecycle = policy.storage.cold, policy.storage.lifecycle
    return [
        _rule(
            "archives-to-glacier",
            "archive/",
            Transitions=[{"Days": cold.transition_after.days, "StorageClass": cold.storage_class}],
        ),
        *(
            _rule(
                f"noncurrent-{prefix.rstrip('/')}",
                prefix,
                NoncurrentVersionExpiration={"NoncurrentDays": lifecycle.noncurrent_expire_after.days},
            )
            for prefix in CURRENT_COUNTS
        ),
        _rule(
            "unended-uploads",
            "",
            AbortIncompleteMultipartUpload={"DaysAfterInitiation": lifecycle.uploads_aborted_after.days},
        ),
    ]


def find_drift(bucket: Bucket, policy: Policy) -> Drift:
    """Compare the bucket's rules with the policy's; raises `StoreError`."""
    there, wanted = in_words(_read(bucket)), in_words(desired(policy))
    lines = []
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            lines += [f"- {name}: {there[name]}"] if name in there else []
            lines += [f"+ {name}: {wanted[name]}"] if name in wanted else []
    return Drift(bucket.name, tuple(lines))


def apply(bucket: Bucket, policy: Policy) -> Drift:
    """Give the bucket the policy's rules where they drifted, read them back, and return what was mended.

    Rules of somebody else's go: one of them could expire a backup. Raises `LifecycleDrifted` when the bucket keeps
    others than it was given, and `StoreError`.
    """
    drift = find_drift(bucket, policy)
    if not drift:
        return drift
    for line in drift.lines:
        log.warning("Lifecycle of %s: %s", bucket, line)
    with bucket.naming("set the lifecycle of", ""):
        bucket.client.put_bucket_lifecycle_configuration(
            Bucket=bucket.name, LifecycleConfiguration={"Rules": cast(Any, desired(policy))}
        )
    if left := find_drift(bucket, policy):
        raise LifecycleDrifted(
            f"{bucket} does not keep the lifecycle rules that it was given: {'; '.join(left.lines)}.",
            mend="Look at what the store can do: without the transition archives stay where they are, and cost more; "
            "without the others the reaper and retention have more to do.",
        )
    return drift


def in_words(rules: list[dict[str, Any]]) -> Rules:
    """What rules do, in words that do not depend on how a store spells them."""
    return {rule.get("ID", f"rule {number}"): _told(rule) for number, rule in enumerate(rules)}


def _told(rule: Mapping[str, Any]) -> str:
    selected = dict(rule.get("Filter") or {})
    prefix = selected.pop("Prefix", rule.get("Prefix", ""))
    parts = [f"{prefix or 'everything'}" + (f" with {selected}" if selected else "")]
    for transition in rule.get("Transitions", []):
        parts.append(f"to {transition.get('StorageClass')} after {_age(transition)}")
    if noncurrent := rule.get("NoncurrentVersionExpiration"):
        kept = noncurrent.get("NewerNoncurrentVersions")
        parts.append(
            f"versions not current expire after {noncurrent.get('NoncurrentDays')} days"
            + (f", but for the newest {kept}" if kept else "")
        )
    for transition in rule.get("NoncurrentVersionTransitions", []):
        parts.append(f"versions not current to {transition.get('StorageClass')}")
    if aborted := rule.get("AbortIncompleteMultipartUpload"):
        parts.append(f"uploads never ended go after {aborted.get('DaysAfterInitiation')} days")
    if expiration := rule.get("Expiration"):
        parts.append(f"EXPIRES WHAT IS CURRENT {expiration}")
    if rule.get("Status") != "Enabled":
        parts.append("switched off")
    return ", ".join(parts)


def _age(transition: Mapping[str, Any]) -> str:
    return f"{transition['Days']} days" if "Days" in transition else str(transition.get("Date"))


def _read(bucket: Bucket) -> list[dict[str, Any]]:
    with bucket.naming("read the lifecycle of", ""):
        try:
            answer = bucket.client.get_bucket_lifecycle_configuration(Bucket=bucket.name)
        except ClientError as error:
            if error.response["Error"].get("Code") == _NONE:
                return []
            raise
    return cast("list[dict[str, Any]]", answer.get("Rules", []))


def _rule(name: str, prefix: str, **does: Any) -> dict[str, Any]:
    return {"ID": name, "Status": "Enabled", "Filter": {"Prefix": prefix}, **does}

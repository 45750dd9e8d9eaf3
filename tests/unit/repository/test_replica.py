"""Which rules a bucket may replicate by, and how what is missing is told."""

from __future__ import annotations

import pytest

from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket, NotAllowed, ReplicationRule
from include.policy import load_policy
from include.repository.catalog import Catalog
from include.repository.replica import (
    BUCKET_REPLICATES,
    Brought,
    CopyRefused,
    NotReplicated,
    Replica,
    RuleCoversManifests,
)
from include.sandbox.s3 import S3Server

POLICY = load_policy()


def replica_of(catalog: Catalog, name: str = "replica") -> Replica:
    there = Bucket.__new__(Bucket)
    there.name = name
    return Replica(catalog, Catalog(there, catalog.keyring), POLICY, progress=Progress("test"))


@pytest.mark.requirement("R3.2")
@pytest.mark.parametrize("prefix", ["", "man", "manifests/", "manifests/full/"])
def test_rules_that_bring_manifests_are_refused(catalog: Catalog, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setattr(Bucket, "replication_rules", lambda _: [ReplicationRule("replica", prefix)])
    with pytest.raises(RuleCoversManifests) as refused:
        _ = replica_of(catalog).replicates
    assert all(each in refused.value.mend for each in BUCKET_REPLICATES)
    assert not replica_of(catalog, "another").replicates  # a rule to elsewhere is none of ours


@pytest.mark.requirement("R3.2")
def test_a_rule_for_each_other_prefix_is_what_is_awaited(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [ReplicationRule("replica", prefix) for prefix in BUCKET_REPLICATES]
    monkeypatch.setattr(Bucket, "replication_rules", lambda _: rules)
    assert replica_of(catalog).replicates


def test_a_store_without_replication_and_one_that_does_not_tell_are_copied_from(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert catalog.bucket.replication_rules() == []
    assert not replica_of(catalog).replicates

    def denied(_: Bucket) -> list[ReplicationRule]:
        raise NotAllowed("You may not.", mend="Ask.")

    monkeypatch.setattr(Bucket, "replication_rules", denied)
    assert not replica_of(catalog).replicates


@pytest.mark.requirement("R3.2")
def test_only_enabled_rules_without_tags_are_rules(s3_primary: S3Server, catalog: Catalog) -> None:
    target = s3_primary.create_bucket(f"{catalog.bucket.name}-target")

    def rule(number: int, status: str, rule_filter: dict[str, object]) -> dict[str, object]:
        return {
            "ID": str(number),
            "Priority": number,
            "Status": status,
            "Filter": rule_filter,
            "DeleteMarkerReplication": {"Status": "Disabled"},
            "Destination": {"Bucket": f"arn:aws:s3:::{target}"},
        }

    tag = {"Key": "k", "Value": "v"}
    catalog.bucket.client.put_bucket_replication(
        Bucket=catalog.bucket.name,
        ReplicationConfiguration={
            "Role": "arn:aws:iam::000000000000:role/replication",
            "Rules": [  # type: ignore[typeddict-item]
                rule(1, "Enabled", {"Prefix": "packs/"}),
                rule(2, "Disabled", {"Prefix": "keys/"}),
                rule(3, "Enabled", {"Tag": tag}),
                rule(4, "Enabled", {"And": {"Prefix": "wal/", "Tags": [tag]}}),
            ],
        },
    )
    assert catalog.bucket.replication_rules() == [ReplicationRule(target, "packs/")]


def test_what_is_not_whole_is_named(keyring: Keyring) -> None:
    Brought().require()
    failures: list[BackupError] = [CopyRefused(f"object {n}.", mend="Look.") for n in range(5)]
    with pytest.raises(NotReplicated, match=r"object 0\. object 1\. object 2\. And 2 more") as told:
        Brought(failures=failures).require()
    assert told.value.mend.startswith("Look.")

"""Both buckets, set up on stores that know more and less; their lifecycle, mended where it drifted (R3.1 to R3.3)."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from typer.testing import CliRunner

from include.cli.__main__ import app
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.repository import lifecycle
from include.repository.replica import BUCKET_REPLICATES
from include.repository.setup import Finding, set_up
from include.sandbox.s3 import S3Server

POLICY = load_policy()
LOCKED = POLICY.model_copy(update={"storage": POLICY.storage.model_copy(update={"object_lock": "governance"})})
ROLE = "arn:aws:iam::000000000000:role/replicates"


def bucket_of(store: S3Server) -> Bucket:
    return Bucket(
        store.session(), f"set-up-{secrets.token_hex(6)}", region=store.region, endpoint_url=store.endpoint_url
    )


@pytest.fixture
def pair(s3_primary: S3Server) -> tuple[Bucket, Bucket]:
    """Two names that no bucket has yet. On one server, for there it can replicate."""
    return bucket_of(s3_primary), bucket_of(s3_primary)


def states(found: list[Finding]) -> dict[tuple[str, str], str]:
    return {(finding.bucket, finding.aspect): finding.state for finding in found}


def settings(bucket: Bucket) -> dict[str, Any]:
    """Everything that a set-up may set, as the store tells it."""
    client, name = bucket.client, bucket.name
    answers = {
        "versions": client.get_bucket_versioning(Bucket=name),
        "encryption": client.get_bucket_encryption(Bucket=name),
        "public": client.get_public_access_block(Bucket=name),
        "lifecycle": client.get_bucket_lifecycle_configuration(Bucket=name),
    }
    return {
        what: {key: value for key, value in each.items() if key != "ResponseMetadata"} for what, each in answers.items()
    }


@pytest.mark.requirement("R3.1", "R3.2", "R3.3", "R7.1")
def test_both_are_made_and_a_second_set_up_changes_nothing(pair: tuple[Bucket, Bucket]) -> None:
    primary, replica = pair
    first = set_up(primary, replica, POLICY, replication_role=ROLE)
    there = settings(primary)
    second = set_up(primary, replica, POLICY, replication_role=ROLE)
    without_role = set_up(primary, replica, POLICY)

    assert {finding.state for finding in first} == {"changed", "as it should be"}
    assert states(first)[primary.name, "bucket"] == states(first)[replica.name, "bucket"] == "changed"
    assert {finding.state for finding in second} == {"as it should be"}
    assert second == without_role
    assert settings(primary) == there
    assert there["versions"]["Status"] == "Enabled"
    assert all(there["public"]["PublicAccessBlockConfiguration"].values())


@pytest.mark.requirement("R3.2")
def test_the_store_replicates_everything_but_manifests_and_no_deletion(pair: tuple[Bucket, Bucket]) -> None:
    primary, replica = pair
    set_up(primary, replica, POLICY, replication_role=ROLE)
    rules = primary.client.get_bucket_replication(Bucket=primary.name)["ReplicationConfiguration"]["Rules"]

    assert {rule["Filter"]["Prefix"] for rule in rules} == set(BUCKET_REPLICATES)
    assert "manifests/" not in BUCKET_REPLICATES
    assert {rule["DeleteMarkerReplication"]["Status"] for rule in rules} == {"Disabled"}
    assert len({rule["Priority"] for rule in rules}) == len(rules)


def test_a_dry_run_changes_nothing_and_says_what_would_be(pair: tuple[Bucket, Bucket]) -> None:
    primary, replica = pair
    missing = set_up(primary, replica, POLICY, dry_run=True)
    owned = {bucket["Name"] for bucket in primary.client.list_buckets()["Buckets"]}
    primary.client.create_bucket(Bucket=primary.name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    bare = states(set_up(primary, replica, POLICY, dry_run=True))

    assert {finding.state for finding in missing} == {"to be changed"}
    assert primary.name not in owned
    assert bare[primary.name, "bucket"] == "as it should be"
    assert bare[primary.name, "versions"] == bare[primary.name, "lifecycle"] == "to be changed"
    assert not primary.is_versioned()
    assert lifecycle.find_drift(primary, POLICY)


@pytest.mark.requirement("R3.3")
def test_a_lifecycle_that_drifted_is_shown_and_mended(pair: tuple[Bucket, Bucket]) -> None:
    primary, _ = pair
    set_up(*pair, POLICY)
    rules = lifecycle.desired(POLICY)
    rules[0]["Transitions"][0]["Days"] = 30
    rules[1]["Filter"]["Prefix"] = "manifests/"
    rules.append({"ID": "helpful", "Status": "Enabled", "Filter": {"Prefix": "full/"}, "Expiration": {"Days": 7}})
    primary.client.put_bucket_lifecycle_configuration(
        Bucket=primary.name,
        LifecycleConfiguration={"Rules": rules},  # type: ignore[typeddict-item]
    )
    mended = lifecycle.apply(primary, POLICY)

    assert mended.lines == (
        "- archives-to-glacier: archive/, to GLACIER after 30 days",
        "+ archives-to-glacier: archive/, to GLACIER after 90 days",
        "- helpful: full/, EXPIRES WHAT IS CURRENT {'Days': 7}",
        "- noncurrent-full: manifests/, versions not current expire after 30 days",
        "+ noncurrent-full: full/, versions not current expire after 30 days",
    )
    assert not lifecycle.find_drift(primary, POLICY)
    assert not lifecycle.apply(primary, POLICY)


def test_with_object_lock_buckets_can_lock(pair: tuple[Bucket, Bucket]) -> None:
    primary, replica = pair
    made = states(set_up(primary, replica, LOCKED))
    assert made[primary.name, "object lock"] == made[replica.name, "object lock"] == "as it should be"
    assert primary.client.get_object_lock_configuration(Bucket=primary.name)["ObjectLockConfiguration"]


def test_a_bucket_that_cannot_lock_yet_is_told_to(pair: tuple[Bucket, Bucket]) -> None:
    primary, replica = pair
    set_up(primary, replica, POLICY)
    assert states(set_up(primary, replica, LOCKED))[primary.name, "object lock"] == "changed"


def test_the_command_prints_a_table_of_it(s3_primary: S3Server, pair: tuple[Bucket, Bucket]) -> None:
    credentials = s3_primary.session().get_credentials()
    assert credentials is not None
    done = CliRunner().invoke(
        app,
        ["--bucket", pair[0].name, "--replica-bucket", pair[1].name, "setup", "--dry-run"],
        env={
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            "AWS_ENDPOINT_URL": s3_primary.endpoint_url,
            "COLUMNS": "200",
        },
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.count("to be changed") == 2
    assert "Nothing was changed" in done.stdout

"""Which backup is the last good one, by what proofs, manifests and a bucket's listing tell."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from include.disaster.last_good import NoneIsGood, Trusted, find_last_good, weigh_backups
from include.policy import load_policy
from include.repository.catalog import Catalog
from include.repository.committed import Committed
from include.repository.envelopes import create_data_key
from include.repository.layout import envelope_prefix
from include.repository.manifest import Manifest
from include.repository.references import data_keys, references
from include.repository.retention_run import Deleted, RetentionRun
from include.repository.tombstones import Tombstone, bury
from include.repository.verification import INTEGRITY, SIZES, Record, store_record
from tests import manifests
from tests.rolling import Cluster, day

POLICY = load_policy()


def made(catalog: Catalog) -> list[Manifest]:
    """A snapshot, then a full backup and an increment a day, with everything that they name."""
    cluster = Cluster()
    backups = [cluster.snapshot(day(0))]
    for number in range(1, 4):
        backups += [cluster.increment(day(number)), cluster.full(day(number + 0.5))]
    for manifest in backups:
        for reference in references(manifest):
            catalog.bucket.put(reference.key, b"x" * reference.stored_bytes)
        for owner, attempt in data_keys(manifest):
            if not list(catalog.bucket.keys(envelope_prefix(owner, attempt))):
                create_data_key(catalog.bucket, catalog.keyring, owner=owner, attempt=attempt)
        manifests.commit(catalog, manifest)
    return backups


def prove(catalog: Catalog, manifest: Manifest, proof: str, *, passed: bool = True, after: float = 0.0) -> None:
    """A record of a proof, so many days after the backup."""
    store_record(
        catalog.bucket,
        catalog.keyring,
        Record(
            backup=manifest.id,
            attempt=manifest.attempt,
            proof=proof,
            passed=passed,
            when=manifest.consistency_point.time + timedelta(days=after),
            bucket=catalog.bucket.name,
            by="somebody",
            milliseconds=1,
            facts={},
            what=None if passed else "A bit is flipped.",
            mend=None if passed else "Use another.",
        ),
    )


def remove(catalog: Catalog, keys: Sequence[str]) -> None:
    """Every version, for good."""
    for key in keys:
        for version in list(catalog.bucket.versions(key)):
            catalog.bucket.delete_version(key, version.version_id)


def doubtful(catalog: Catalog) -> dict[str, tuple[str, ...]]:
    return {one.id: one.doubts for one in weigh_backups(catalog, POLICY) if one.doubts}


def test_the_newest_is_good_when_nothing_is_wrong(catalog: Catalog) -> None:
    backups = made(catalog)

    assert doubtful(catalog) == {}
    assert find_last_good(catalog, POLICY).backup.id == backups[-1].id


def test_content_that_failed_its_proof_makes_all_that_is_later_doubtful(catalog: Catalog) -> None:
    backups = made(catalog)
    prove(catalog, backups[4], SIZES, passed=False)

    found = find_last_good(catalog, POLICY)

    assert found.backup.id == backups[3].id
    assert [one.id for one in found.doubted] == [one.id for one in reversed(backups[4:])]
    assert "verification failed" in found.doubted[-1].reasons[0]
    assert backups[4].id in found.doubted[0].reasons[0]


def test_what_is_damaged_later_says_nothing_of_what_was_made_before_that(catalog: Catalog) -> None:
    backups = made(catalog)
    prove(catalog, backups[2], INTEGRITY, after=1)
    prove(catalog, backups[2], INTEGRITY, passed=False, after=30)

    found = find_last_good(catalog, POLICY)

    # It was whole a day later, at the next full backup; what is of later than that is doubtful.
    assert [one.id for one in reversed(found.doubted)] == [
        one.id for one in backups if one is backups[2] or one.consistency_point.time >= day(2.5)
    ]
    assert found.backup.id == backups[3].id


def test_pieces_that_vanished_are_doubted_since_the_last_proof(catalog: Catalog) -> None:
    backups = made(catalog)
    for manifest in backups:
        prove(catalog, manifest, INTEGRITY, after=0.01)
    remove(catalog, [one.key for manifest in backups[3:] for one in references(manifest)])

    found = find_last_good(catalog, POLICY)

    assert found.backup.id == backups[2].id
    assert all("is gone" in one.reasons[0] for one in found.doubted)


@pytest.mark.parametrize("gone", [True, False])
def test_a_backup_whose_keys_are_gone_or_hidden_is_passed_over(catalog: Catalog, gone: bool) -> None:
    backups = made(catalog)
    keys = list(catalog.bucket.keys(envelope_prefix(backups[-1].id, backups[-1].attempt)))
    if gone:
        remove(catalog, keys)
    else:
        catalog.bucket.hide(keys[0])

    found = find_last_good(catalog, POLICY)

    assert found.backup.id == backups[-2].id
    assert "no key is left" in found.doubted[0].reasons[0]


def test_a_manifest_that_vanished_is_missed_unless_it_was_deleted_by_the_policy(catalog: Catalog) -> None:
    backups = made(catalog)
    for manifest in backups:
        prove(catalog, manifest, INTEGRITY, after=0.01)
    remove(catalog, [backups[4].home])

    found = find_last_good(catalog, POLICY)

    assert found.backup.id == backups[3].id
    gone = next(one for one in found.doubted if one.id == backups[4].id)
    assert "its manifest is gone" in gone.reasons[0]

    tombstone = Tombstone.of(
        Committed.of(backups[4]), bucket=catalog.bucket.name, deleted=backups[-1].consistency_point.time
    )
    bury(catalog.bucket, catalog.keyring, tombstone)
    assert find_last_good(catalog, POLICY).backup.id == backups[-1].id


def test_whoever_may_only_write_cannot_make_a_backup_be_missed(catalog: Catalog) -> None:
    backups = made(catalog)
    for key in ("full-20200101T000000Z/20200101T000000.000000Z-integrity-00000000.json", "stray"):
        catalog.bucket.put(f"verification/{key}", b"{}")

    assert find_last_good(catalog, POLICY).backup.id == backups[-1].id


def test_a_forged_manifest_is_told_and_never_taken(catalog: Catalog) -> None:
    backups = made(catalog)
    remove(catalog, [backups[-1].home])
    catalog.bucket.put(backups[-1].home, b"{}")

    found = find_last_good(catalog, POLICY)

    assert found.backup.id == backups[-2].id
    assert "refused" in found.doubted[0].reasons[0]


def test_when_everything_is_doubtful_nothing_is_taken(catalog: Catalog) -> None:
    backups = made(catalog)
    prove(catalog, backups[0], SIZES, passed=False)

    with pytest.raises(NoneIsGood, match=backups[0].id):
        find_last_good(catalog, POLICY)


@pytest.mark.requirement("R5.3")
def test_an_increment_to_which_no_base_leads_is_never_the_last_good_one(catalog: Catalog) -> None:
    backups = made(catalog)
    for gone in (one for one in backups if one.type == "snapshot"):
        remove(catalog, [gone.home])  # of which nothing was ever proved: nobody misses it
    prove(catalog, backups[-1], INTEGRITY, passed=False)

    found = find_last_good(catalog, POLICY)

    assert (backups[-2].type, backups[-3].type) == ("incremental", "full")
    assert found.backup.id == backups[-3].id
    assert "no base that is above doubt" in found.doubted[-1].reasons[0]


@pytest.mark.requirement("R5.3")
def test_nothing_is_planned_from_what_is_in_doubt(catalog: Catalog) -> None:
    backups = made(catalog)
    left = Trusted(catalog, without=[backups[-1].id])
    assert {one.manifest.id for one in left.entries() if one.manifest} == {one.id for one in backups[:-1]}
    assert len(left.entries("full")) == sum(one.type == "full" for one in backups) - 1


@pytest.mark.requirement("R5.3")
def test_a_manifest_behind_a_deletion_marker_is_told_and_not_taken(catalog: Catalog) -> None:
    backups = made(catalog)
    catalog.bucket.hide(backups[-1].home)

    found = find_last_good(catalog, POLICY)

    assert found.backup.id == backups[-2].id
    assert "hidden by a deletion marker" in found.doubted[0].reasons[0]


@pytest.mark.requirement("R5.3")
def test_what_a_run_of_retention_says_it_deleted_is_not_missed(catalog: Catalog) -> None:
    backups = made(catalog)
    prove(catalog, backups[3], INTEGRITY, after=0.01)
    remove(catalog, [backups[3].home])
    assert backups[3].id in doubtful(catalog)
    gone = Deleted(backup=backups[3].id, time=backups[3].consistency_point.time, stored_bytes=1)
    run = RetentionRun(
        bucket=catalog.bucket.name,
        when=day(9),
        by="somebody",
        manifests=(),
        holds=(),
        deleted=(gone,),
        put_off={},
        locked={},
        objects=0,
    )
    catalog.bucket.create(run.home, run.sealed(catalog.keyring))
    assert backups[3].id not in doubtful(catalog)


@pytest.mark.requirement("R5.3")
def test_of_pieces_that_were_hidden_and_pieces_that_are_gone_nobody_knows_since_when(catalog: Catalog) -> None:
    """What was hidden today says nothing of when the other piece went."""
    backups = made(catalog)
    for manifest in backups:
        prove(catalog, manifest, INTEGRITY, after=0.01)
    first, second, *_ = sorted({one.key for one in references(backups[2])})
    remove(catalog, [first])
    catalog.bucket.hide(second)

    assert set(doubtful(catalog)) >= {one.id for one in backups[3:]}

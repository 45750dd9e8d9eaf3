"""Retention carried out in a real store: what goes is gone for good, killed anywhere it is ended by the next run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, StoreError
from include.policy import Policy
from include.recovery.moments.planning import Target, plan_recovery, recoverable
from include.repository import expiry
from include.repository.attempts import Attempts
from include.repository.catalog import Catalog
from include.repository.committed import Committed
from include.repository.envelopes import create_data_key
from include.repository.expiry import CatalogShrank, NotDeleted, Outcome, Plan, Retention
from include.repository.holds import hold, release
from include.repository.layout import DELETED, READING, RETENTION_RUNS, BackupId, envelope_key
from include.repository.leases import BeingDeleted, reading
from include.repository.manifest import Manifest
from include.repository.references import data_keys, references
from include.repository.retention_run import last_run
from include.repository.tombstones import Tombstone, bury
from include.sandbox.ceph import CephGateway
from include.sandbox.s3 import S3Server
from tests.rolling import LATE, SMALL, Cluster, at, day, lay_down, policy, prove, weeks


def everything(catalog: Catalog, but: tuple[str, ...] = (RETENTION_RUNS,)) -> set[str]:
    """The keys of every version and marker."""
    return {version.key for version in catalog.bucket.versions("") if not version.key.startswith(but)}


def run(
    catalog: Catalog, now: datetime, rules: Policy = SMALL, *, accept_missing: bool = False
) -> tuple[Plan, Outcome]:
    with at(catalog, now):
        retention = Retention(catalog, rules)
        plan = retention.plan()
        return plan, retention.apply(plan, accept_missing=accept_missing)


def kept_ids(catalog: Catalog) -> list[str]:
    return [entry.manifest.id for entry in catalog.entries() if entry.manifest]


def must_be_of(catalog: Catalog, manifests: list[Manifest]) -> None:
    """The bucket holds these backups with everything of theirs, and nothing else at all."""
    expected = {each.home for each in manifests}
    expected |= {one.key for each in manifests for one in references(each)}
    kek = catalog.keyring.current_kek
    expected |= {envelope_key(owner, attempt, kek) for each in manifests for owner, attempt in data_keys(each)}
    ids = {each.id for each in manifests}
    found = everything(catalog)
    assert {key for key in found if not key.startswith("verification/")} == expected
    assert {key.split("/")[1] for key in found if key.startswith("verification/")} == ids


@pytest.mark.requirement("R1.1", "R1.2", "R1.3")
def test_what_goes_is_gone_for_good_and_what_stays_is_whole(catalog: Catalog) -> None:
    made = weeks(catalog)
    before = everything(catalog)
    plan, outcome = run(catalog, day(9))
    assert plan.going == ()
    assert (outcome.objects, everything(catalog)) == (0, before)

    plan, outcome = run(catalog, LATE)
    stays = made[5:]  # the last of each type, and the chain of the last increment
    assert [each.id for each in plan.going] == [each.id for each in reversed(made) if each not in stays]
    assert (len(outcome.deleted), outcome.objects, outcome.all_done) == (5, plan.objects, True)
    must_be_of(catalog, stays)
    assert not plan.missing
    assert run(catalog, LATE)[1].deleted == []
    must_be_of(catalog, stays)


def test_the_plan_tells_which_moments_go_and_changes_nothing(catalog: Catalog) -> None:
    weeks(catalog)
    before = everything(catalog)
    spans = recoverable(catalog, SMALL)
    with at(catalog, LATE):
        plan = Retention(catalog, SMALL).plan()
    assert everything(catalog, ()) == before
    assert [(each.since, each.until) for each in plan.decisions.restorable] == [(one.since, one.until) for one in spans]
    (lost,) = plan.moments_lost
    (left,) = plan.decisions.restorable_after
    assert (lost.since, lost.until) == (spans[0].since, left.since)
    run(catalog, LATE)
    assert [(one.since, one.until) for one in recoverable(catalog, SMALL)] == [(left.since, left.until)]


def test_each_of_the_bytes_that_stay_has_its_reasons(catalog: Catalog) -> None:
    made = weeks(catalog)
    with at(catalog, LATE):
        plan = Retention(catalog, SMALL).plan()
    snapshot = made[6]
    kinds = {reason.kind for reason in plan.decisions.backups[snapshot.id].reasons}
    assert kinds == {"last verified", "minimum", "chain"}
    segment = next(one.key for one in references(snapshot) if one.key.startswith("wal/"))
    (named,) = plan.decisions.of(segment, LATE).reasons
    assert "names it" in named.words
    document = plan.to_json()
    assert document["stays"][snapshot.id][0]["because"]
    assert document["objects"] == plan.objects > 0


class Killed(BaseException):
    """The process is gone."""


def killed_at(catalog: Catalog, number: int, rules: Policy = SMALL) -> bool:
    """A run that is killed before its so-manieth deletion or writing; whether there were so many."""
    bucket, count = catalog.bucket, 0

    def counting(verb: str) -> object:
        real = getattr(Bucket, verb)

        def call(*args: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count > number:
                raise Killed
            return real(bucket, *args, **named)

        return call

    for verb in ("delete_version", "create"):
        setattr(bucket, verb, counting(verb))
    try:
        run(catalog, LATE, rules)
    except Killed:
        return True
    finally:
        for verb in ("delete_version", "create"):
            delattr(bucket, verb)
    return False


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "_AT_ONCE", 1)
    made = weeks(catalog)
    number, deaths = 1, 0
    while killed_at(catalog, number):
        deaths += 1
        number += 7 * (deaths % 2)
        for entry in catalog.entries():  # a manifest that is there has everything that it names
            assert entry.manifest is not None
            there = everything(catalog)
            assert {one.key for one in references(entry.manifest)} <= there
        assert Attempts(catalog, frozenset).find_dead(before=LATE) == []  # all of it is retention's to end
    assert deaths > 3
    must_be_of(catalog, made[5:])


def test_the_bound_of_a_run_is_kept_and_the_next_goes_on(catalog: Catalog) -> None:
    made = weeks(catalog)
    small = policy(deletions_per_run=12)
    runs = 0
    while not (outcome := run(catalog, LATE, small)[1]).all_done:
        assert outcome.objects <= 12
        runs += 1
        recoverable(catalog, small)
    assert runs > 1
    must_be_of(catalog, made[5:])


# --- what is not deleted ---------------------------------------------------------------------------------------------


def test_a_hold_in_the_middle_of_a_chain_keeps_what_restores_it(catalog: Catalog, tmp_path: Path) -> None:
    made = weeks(catalog)
    held = made[3]  # the second increment of the first week
    hold(catalog, held.backup, by="counsel", because="case 17")
    plan, outcome = run(catalog, LATE)
    assert outcome.all_done
    assert set(kept_ids(catalog)) == {each.id for each in (*made[1:4], *made[5:])}
    planned = plan_recovery(catalog, Target.parse(held.id), SMALL, scratch=tmp_path)
    assert (planned.base, planned.at) == (made[1], held)
    there = everything(catalog)
    assert {file.name for file in planned.wal} <= {key.split("/")[-1].split(".")[0] for key in there}
    assert any(reason.words == "held by counsel: case 17" for reason in plan.decisions.backups[held.id].reasons)

    release(catalog, held.backup, by="counsel", because="case closed")
    run(catalog, LATE)
    must_be_of(catalog, made[5:])


def test_a_hold_that_comes_when_the_run_has_begun_is_seen(catalog: Catalog) -> None:
    made = weeks(catalog)
    with at(catalog, LATE):
        retention = Retention(catalog, SMALL)
        plan = retention.plan()
    hold(catalog, made[0].backup, by="counsel", because="case 18")
    with at(catalog, LATE):
        retention.apply(plan)
    assert made[0].id in kept_ids(catalog)


def test_a_living_lease_puts_it_off_until_it_ends_or_dies(catalog: Catalog) -> None:
    made = weeks(catalog)
    now = catalog.bucket.clock()
    aged = policy()
    with reading(catalog, [made[2].id], aged, what="restore"):
        assert len(list(catalog.bucket.keys(READING))) == 1
        retention = Retention(catalog, aged)
        plan = retention.plan()
        assert made[2].id not in [each.id for each in plan.going]
        assert any(reason.kind == "reading" for reason in plan.decisions.backups[made[2].id].reasons)
    assert list(catalog.bucket.versions(READING)) == []
    catalog.bucket.create(
        f"{READING}0123456789abcdef/000000.json", b'{"backups":["' + made[2].id.encode() + b'"],"by":"a","what":"b"}'
    )
    with at(catalog, now + aged.storage.retention.lease * 3):
        decisions = Retention(catalog, aged).plan().decisions
    assert not any(reason.kind == "reading" for verdict in decisions.backups.values() for reason in verdict.reasons)


def test_a_reader_and_a_run_at_one_time_see_each_other(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    made = weeks(catalog)
    real = bury

    def slow(bucket: Bucket, keyring: Keyring, tombstone: Tombstone) -> None:
        if tombstone.backup == made[3].id:  # a lease that was written just before
            bucket.create(
                f"{READING}0123456789abcdef/000000.json",
                b'{"backups":["' + made[3].id.encode() + b'"],"by":"a","what":"b"}',
            )
        real(bucket, keyring, tombstone)
        if tombstone.backup == made[2].id:  # a reader that comes just after
            with (
                pytest.raises(BeingDeleted, match=r"is being deleted"),
                reading(catalog, [made[2].id], SMALL, what="x"),
            ):
                pass

    monkeypatch.setattr(expiry, "bury", slow)
    forever = policy(lease=timedelta(days=36500))
    outcome = run(catalog, LATE, forever)[1]
    assert list(outcome.put_off) == [made[3].id]
    assert made[3].id in kept_ids(catalog)
    assert made[2].id not in kept_ids(catalog)
    assert not [key for key in everything(catalog) if key.startswith(DELETED)]


def test_what_two_that_go_share_stays_while_one_of_them_is_there(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    first, second, *rest = (cluster.full(day(number)) for number in range(3))
    second = second.model_copy(update={"packs": (*first.packs, *second.packs)})
    lay_down(catalog, first)
    for one in references(second):
        catalog.bucket.put(one.key, b"x" * one.stored_bytes)
    for owner, attempt in data_keys(second) - data_keys(first):
        create_data_key(catalog.bucket, catalog.keyring, owner=owner, attempt=attempt)
    catalog.commit(second)
    last = lay_down(catalog, rest[0])
    with monkeypatch.context() as patch:
        patch.setattr(
            "include.repository.expiry._Run._needed_after_all",
            lambda _, backup: "somebody came" if backup.id == first.id else None,
        )
        assert run(catalog, LATE)[1].put_off == {first.id: "somebody came"}
    there = everything(catalog)
    assert {one.key for one in references(first)} <= there
    assert {envelope_key(*key, catalog.keyring.current_kek) for key in data_keys(first)} <= there
    assert second.home not in there
    run(catalog, LATE)
    must_be_of(catalog, [last])


def test_a_login_that_may_not_write_reads_all_the_same(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise StoreError("Access denied.", mend="")

    monkeypatch.setattr(catalog.bucket, "create", refuses)
    with reading(catalog, ["full-20261122T000000Z"], SMALL, what="restore"):
        pass
    assert "retention may delete it meanwhile" in caplog.text


def test_what_was_verified_or_failed_meanwhile_is_judged_anew(catalog: Catalog) -> None:
    cluster = Cluster()
    made = [lay_down(catalog, cluster.full(day(number))) for number in range(3)]
    with at(catalog, LATE):
        retention = Retention(catalog, SMALL)
        plan = retention.plan()
    assert [each.id for each in plan.going] == [made[1].id, made[0].id]
    prove(catalog, made[2], passed=False)  # so the one before is the last that is good
    with at(catalog, LATE):
        outcome = retention.apply(plan)
    assert [each.backup for each in outcome.deleted] == [made[0].id]
    assert made[1].id in kept_ids(catalog)


def test_a_refused_manifest_keeps_what_it_may_name(catalog: Catalog) -> None:
    made = weeks(catalog)
    forged = BackupId.parse("full-20250101T000000Z").manifest_key
    catalog.bucket.create(forged, b'{"attempt":"' + made[0].attempt.encode() + b'"}')
    packs = {key for key in everything(catalog) if key.startswith("packs/")}
    run(catalog, LATE)
    there = everything(catalog)
    assert packs <= there
    assert made[0].home in there
    assert made[1].home not in there
    catalog.bucket.delete_version(forged, next(catalog.bucket.versions(forged)).version_id)
    run(catalog, LATE, accept_missing=True)
    dead = Attempts(catalog, frozenset)  # packs whose backups are gone are the reaper's now
    for each in dead.find_dead(before=LATE):
        dead.remove(each)
    must_be_of(catalog, made[5:])


def test_what_a_try_left_that_has_not_ended_is_the_reapers(catalog: Catalog) -> None:
    made = weeks(catalog)
    other = BackupId.parse("full-20270101T000000Z").attempt_prefix("f" * 16) + "database/users.pgdump.zst.enc/00000"
    beside = made[0].backup.attempt_prefix("e" * 16) + "database/users.pgdump.zst.enc/00000"
    for key in (other, beside, "packs/" + "d" * 32, "somebody/else"):
        catalog.bucket.put(key, b"bytes")
    run(catalog, LATE)
    assert {other, beside, "packs/" + "d" * 32, "somebody/else"} <= everything(catalog)


def test_the_reaper_leaves_what_a_tombstone_names_and_takes_the_rest_of_that_id(catalog: Catalog) -> None:
    made = weeks(catalog)
    loser = made[4].backup.attempt_prefix("e" * 16) + "database/users.pgdump.zst.enc/00000"
    catalog.bucket.put(loser, b"bytes")
    attempts = Attempts(catalog, frozenset)
    assert [dead.attempt for dead in attempts.find_dead(before=LATE)] == ["e" * 16]
    run(catalog, LATE, policy(deletions_per_run=2))  # the newest that goes, its manifest and one object: cut short
    assert made[4].home not in everything(catalog)
    attempts = Attempts(catalog, frozenset)  # one that has never seen the manifest: only records and the tombstone
    (dead,) = attempts.find_dead(before=LATE)
    assert (dead.attempt, attempts.kept) == ("e" * 16, [])
    attempts.remove(dead)
    run(catalog, LATE)
    must_be_of(catalog, made[5:])


# --- when nothing is deleted -----------------------------------------------------------------------------------------


def test_a_catalog_that_shrank_is_refused(catalog: Catalog) -> None:
    made = weeks(catalog)
    run(catalog, day(9))
    lost = made[5]
    catalog.bucket.delete_version(lost.home, next(catalog.bucket.versions(lost.home)).version_id)
    before = everything(catalog)
    with pytest.raises(CatalogShrank, match=rf"lacks 1 of .*{lost.id}"):
        run(catalog, LATE)
    assert everything(catalog) == before
    with at(catalog, LATE):
        assert Retention(catalog, SMALL).plan().missing == (lost.home,)
    run(catalog, LATE, accept_missing=True)
    run(catalog, LATE)


def test_a_listing_that_tells_too_little_while_it_deletes_stops_the_run(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    weeks(catalog)
    monkeypatch.setattr(expiry, "_LOOK_EVERY", 2)
    real, looks = Bucket.versions, 0

    def short(bucket: Bucket, prefix: str) -> Iterator[object]:
        nonlocal looks
        looks += prefix == "manifests/"
        for version in real(bucket, prefix):
            if not (prefix == "manifests/" and looks > 2 and "snapshot" in version.key):
                yield version

    monkeypatch.setattr(Bucket, "versions", short)
    with pytest.raises(CatalogShrank):
        run(catalog, LATE)
    monkeypatch.undo()
    assert len([each for each in kept_ids(catalog) if each.startswith("snapshot")]) >= 2


def test_a_listing_that_fails_half_way_deletes_nothing(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    weeks(catalog)
    before = everything(catalog)
    real = Bucket.versions

    def fails(bucket: Bucket, prefix: str) -> Iterator[object]:
        for number, version in enumerate(real(bucket, prefix)):
            if prefix == "verification/" and number > 3:
                raise StoreError("Could not list the versions.", mend="Start again.")
            yield version

    monkeypatch.setattr(Bucket, "versions", fails)
    with pytest.raises(StoreError):
        run(catalog, LATE)
    monkeypatch.undo()
    assert everything(catalog) == before


def test_the_record_of_another_bucket_and_a_forged_one_are_passed_over(catalog: Catalog) -> None:
    weeks(catalog)
    run(catalog, day(9))
    genuine = last_run(catalog.bucket, catalog.keyring)
    assert genuine is not None
    other = genuine.model_copy(update={"bucket": "another", "manifests": ("manifests/full/x.json",), "when": LATE})
    catalog.bucket.create(other.home, other.sealed(catalog.keyring))
    catalog.bucket.create(f"{RETENTION_RUNS}29990101T000000Z-00000000.json", b"{}")
    assert last_run(catalog.bucket, catalog.keyring) == genuine


def test_a_tombstone_of_a_backup_that_stays_means_nothing(catalog: Catalog) -> None:
    made = weeks(catalog)
    stone = Tombstone.of(Committed.of(made[7]), bucket=catalog.bucket.name, deleted=LATE)
    bury(catalog.bucket, catalog.keyring, stone)
    run(catalog, LATE)
    must_be_of(catalog, made[5:])


def test_the_tombstone_of_another_bucket_deletes_nothing(catalog: Catalog) -> None:
    made = weeks(catalog)
    run(catalog, day(9))
    lost = made[7]
    catalog.bucket.delete_version(lost.home, next(catalog.bucket.versions(lost.home)).version_id)
    stone = Tombstone.of(Committed.of(lost), bucket="another", deleted=LATE)
    bury(catalog.bucket, catalog.keyring, stone)
    with pytest.raises(CatalogShrank):
        run(catalog, LATE)
    assert {one.key for one in references(lost)} <= everything(catalog)


# --- Object Lock, and another store ----------------------------------------------------------------------------------


def test_what_is_locked_waits_with_all_that_comes_after_it_and_fails_only_when_overdue(
    s3_primary: S3Server, keyring: Keyring
) -> None:
    name = f"locked-{day(0):%Y%m%d}-{id(keyring)}"
    client = s3_primary.client()
    client.create_bucket(
        Bucket=name,
        ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": "eu-west-1"},
    )
    store = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    catalog = Catalog(store, keyring)
    cluster = Cluster()
    made = [lay_down(catalog, cluster.full(day(number))) for number in range(3)]
    until = LATE + timedelta(days=30)
    segment = made[0].artifacts[0].segments[0].key
    for key in (segment, made[1].home):
        client.put_object_retention(Bucket=name, Key=key, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until})

    _, outcome = run(catalog, LATE)
    assert set(outcome.locked) == {made[0].id, made[1].id}
    outcome.require(SMALL, LATE)
    there = everything(catalog)
    assert made[1].home in there  # its manifest is locked: all of it stays
    assert {one.key for one in references(made[1])} <= there
    assert made[0].home not in there  # its manifest is gone: its keys stay with what is locked
    assert segment in there
    assert [key for key in there if key.startswith(f"keys/{made[0].id}/")]
    assert not [key for key in there if key.startswith(f"{DELETED}{made[1].id}/")]

    later = LATE + timedelta(days=3)
    _, outcome = run(catalog, later)
    assert outcome.locked == {made[0].id: LATE, made[1].id: LATE}
    with pytest.raises(NotDeleted, match=r"kept by Object Lock for longer than 2 days"):
        outcome.require(SMALL, later)


@pytest.fixture
def gateway(ceph: CephGateway, keyring: Keyring) -> Catalog:
    name = ceph.create_bucket(f"retention-{id(keyring)}")
    return Catalog(Bucket(ceph.session(), name, endpoint_url=ceph.endpoint_url), keyring)


def test_on_a_store_that_ignores_conditions_a_late_manifest_never_becomes_the_backup(gateway: Catalog) -> None:
    cluster = Cluster()
    made = [lay_down(gateway, cluster.full(day(number))) for number in range(2)]
    late = made[0].model_copy(update={"attempt": "f" * 16})
    gateway.bucket.put(made[0].home, late.sealed(gateway.keyring))
    assert gateway.get(made[0].backup) == made[0]
    run(gateway, LATE)
    must_be_of(gateway, made[1:])

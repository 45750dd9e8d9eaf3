"""Object Lock: what is committed cannot be deleted before its retention is over, on a real store; and no longer."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from include.backup.attempt import commit
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, NotAllowed
from include.pipeline.transfer import Upload
from include.policy import Policy, load_policy
from include.repository.catalog import Catalog
from include.repository.envelopes import create_data_key
from include.repository.layout import BackupId, envelope_key, pack_key, wal_key
from include.repository.locks import keep, locked, locked_until
from include.repository.manifest import Manifest
from include.repository.references import references
from include.repository.shredding import shred
from include.sandbox.s3 import S3Server
from tests.manifests import ATTEMPT, make

POLICY = load_policy()
NOW = datetime(2026, 11, 22, 5, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)
PACK = "f" * 32


def policy_of(lock: str) -> Policy:
    return POLICY.model_copy(update={"storage": POLICY.storage.model_copy(update={"object_lock": lock})})


def in_days(number: int, since: datetime = MIDNIGHT) -> datetime:
    return since + timedelta(days=number)


FULL, SNAPSHOT, HOUR = (BackupId(name, MIDNIGHT) for name in ("full", "snapshot", "incremental"))
FINANCIAL = BackupId.archive("financial", MIDNIGHT)
LOCKED = {
    FULL.attempt_prefix(ATTEMPT) + "database/users.pgdump.zst.enc/00000": in_days(30),
    FULL.manifest_key: in_days(30),
    envelope_key(str(FULL), ATTEMPT, "kek"): in_days(30),
    f"verification/{FULL}/20261122T050000.000000Z-integrity-0a0a0a0a.json": in_days(30),
    SNAPSHOT.attempt_prefix(ATTEMPT) + "database/base.tar.zst.enc/00000": in_days(84),
    HOUR.manifest_key: in_days(14),  # the window, behind a base of a week before
    wal_key("7", "000000010000000000000003", ATTEMPT): in_days(14, NOW),
    envelope_key("wal-7", ATTEMPT, "kek"): in_days(14, NOW),
    pack_key(PACK): in_days(30, NOW),
    envelope_key(PACK, ATTEMPT, "kek"): in_days(30, NOW),
    FINANCIAL.attempt_prefix(ATTEMPT) + f"packs/{PACK}": datetime(2033, 11, 1, tzinfo=UTC),
    FINANCIAL.manifest_key: datetime(2033, 11, 1, tzinfo=UTC),
    envelope_key(str(FINANCIAL), ATTEMPT, "kek"): datetime(2033, 11, 1, tzinfo=UTC),
}


@pytest.mark.requirement("R1.1", "R1.2", "R1.3", "R8.1")
@pytest.mark.parametrize("key", LOCKED)
def test_a_lock_follows_retention(key: str) -> None:
    assert locked_until(key, POLICY, NOW) == LOCKED[key]


@pytest.mark.parametrize(
    "key", ["state/probe-1", "shredded/archive-personal-2026-11.json", "ledger/7/0-1.json", "else"]
)
def test_what_is_no_backups_is_not_locked(key: str) -> None:
    assert locked_until(key, POLICY, NOW) is None


def test_what_is_past_its_retention_is_not_locked_any_more() -> None:
    assert locked_until(FULL.manifest_key, POLICY, in_days(31)) is None


@pytest.fixture
def store(s3_primary: S3Server) -> Bucket:
    """A fresh bucket that can lock."""
    name = f"locks-{secrets.token_hex(6)}"
    region: Any = {"LocationConstraint": s3_primary.region}
    s3_primary.client().create_bucket(Bucket=name, ObjectLockEnabledForBucket=True, CreateBucketConfiguration=region)
    return Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)


def version(bucket: Bucket, key: str) -> str:
    [only] = [each.version_id for each in bucket.versions(key) if each.key == key]
    return only


def until(bucket: Bucket, key: str) -> datetime:
    answer = bucket.client.head_object(Bucket=bucket.name, Key=key)
    return answer["ObjectLockRetainUntilDate"].astimezone(UTC)


@pytest.mark.parametrize("size", [1, (5 << 20) + 1])
@pytest.mark.parametrize("lock", ["governance", "compliance"])
def test_what_is_written_cannot_be_deleted_by_whoever_may_delete_versions(
    store: Bucket, *, size: int, lock: str
) -> None:
    bucket, key = locked(store, policy_of(lock)), pack_key(PACK)
    with Upload(bucket, key, part_bytes=5 << 20, in_flight=1) as upload:
        upload.write(bytes(size))
        upload.complete()
    with pytest.raises(NotAllowed, match="lock"):
        bucket.delete_version(key, version(bucket, key))
    if lock == "compliance":
        with pytest.raises(NotAllowed, match="lock"):
            bucket.delete_version(key, version(bucket, key), bypass_governance=True)


def test_a_policy_without_locks_locks_nothing(store: Bucket) -> None:
    bucket = locked(store, POLICY)
    bucket.create(FULL.manifest_key, b"{}")
    assert not bucket.locks
    bucket.delete_version(FULL.manifest_key, version(bucket, FULL.manifest_key))
    assert keep(bucket, make(), in_days(99)) == 0


def _stored(bucket: Bucket, keyring: Keyring) -> Manifest:
    """A snapshot that names a pack which another backup had written, locked for less."""
    now = datetime.now(UTC).replace(microsecond=0)
    snapshot = BackupId("snapshot", now)
    key = snapshot.attempt_prefix(ATTEMPT) + "database/base.tar.zst.enc/00000"
    [artifact], [pack] = make().artifacts, make().packs
    segment = artifact.segments[0].model_copy(update={"key": key})
    for name in (key, pack_key(PACK)):
        bucket.create(name, b"stored")
    create_data_key(bucket, keyring, owner=str(snapshot), attempt=ATTEMPT)
    create_data_key(bucket, keyring, owner=PACK, attempt=ATTEMPT)
    return make(
        id=str(snapshot),
        type="snapshot",
        artifacts=(artifact.model_copy(update={"segments": (segment,)}),),
        packs=(pack.model_copy(update={"id": PACK}),),
    )


def test_a_backup_locks_what_it_names_for_as_long_as_itself_and_who_keeps_it_longer_extends_all(
    store: Bucket, keyring: Keyring
) -> None:
    bucket = locked(store, policy_of("governance"))
    before = _stored(bucket, keyring)
    assert until(bucket, pack_key(PACK)) < POLICY.backups.snapshot.retention.after(before.backup.moment)
    made = commit(Catalog(bucket, keyring), before)
    own = POLICY.backups.snapshot.retention.after(made.backup.moment)
    wraps = [*bucket.keys(f"keys/{made.id}/"), *bucket.keys(f"keys/{PACK}/")]
    everything = [*(each.key for each in references(made)), *wraps, made.home]

    assert {until(bucket, key) for key in everything} == {own}
    assert keep(bucket, made, own - timedelta(days=1)) == 0
    longer = own + timedelta(days=7)
    assert keep(bucket, made, longer) == len(everything) == 5
    assert {until(bucket, key) for key in everything} == {longer}


def test_a_key_that_is_locked_is_shredded_only_by_who_may_bypass_the_lock(store: Bucket, keyring: Keyring) -> None:
    bucket = locked(store, policy_of("governance"))
    catalog = Catalog(bucket, keyring)
    archive = BackupId.archive("personal", datetime.now(UTC))
    create_data_key(bucket, keyring, owner=str(archive), attempt=ATTEMPT)
    catalog.commit(make(id=str(archive), type="archive", artifacts=(), packs=()))
    words = {"by": "x", "because": "y", "now": datetime.now(UTC)}

    with pytest.raises(NotAllowed, match="lock"):
        shred(catalog, archive, **words)  # type: ignore[arg-type]
    assert list(bucket.keys(f"keys/{archive}/"))
    assert shred(catalog, archive, **words, bypass_governance=True) == 1  # type: ignore[arg-type]

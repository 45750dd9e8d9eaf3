"""What the reaper deletes from the bucket, and what it must never: on made-up tries in a real store (law 5)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.repository.attempts import Attempts, NotVersioned, StillNeeded, find_probes, remove_probes
from include.repository.catalog import AttemptReaped, Catalog
from include.repository.envelopes import create_data_key
from include.repository.layout import BackupId, pack_key
from include.repository.manifest import Artifact, Manifest, Pack, StoredSegment
from include.sandbox.s3 import S3Server
from tests.manifests import MIDNIGHT, make

LOST, WON, OTHER = "1" * 16, "2" * 16, "3" * 16
MANIFEST = BackupId("full", MIDNIGHT).manifest_key


def attempt_at(catalog: Catalog, attempt: str, *, day: int = 0, segments: int = 2) -> Manifest:
    """A try that has written everything but its manifest, which is returned."""
    backup, bucket = BackupId("full", MIDNIGHT + timedelta(days=day)), catalog.bucket
    create_data_key(bucket, catalog.keyring, owner=str(backup), attempt=attempt)
    pack = attempt * 2
    create_data_key(bucket, catalog.keyring, owner=pack, attempt=attempt)
    bucket.put(pack_key(pack), b"members")
    name = "database/users.pgdump"
    keys = [f"{backup.attempt_prefix(attempt)}{name}.zst.enc/{number:05d}" for number in range(segments)]
    for key in keys:
        bucket.put(key, b"stored")
    digest = "0" * 64
    facts = {"component": "users", "retention_class": "personal", "attempt": attempt}
    artifact = Artifact(
        name=name,
        segments=tuple(
            StoredSegment(key=key, raw_bytes=6, raw_sha256=digest, stored_bytes=6, stored_sha256=digest) for key in keys
        ),
        milliseconds=1,
        **facts,
    )
    packed = Pack(id=pack, members=1, raw_bytes=7, stored_bytes=7, stored_sha256=digest, **facts)
    return make(day, attempt=attempt, artifacts=(artifact,), packs=(packed,))


def everything(catalog: Catalog) -> set[tuple[str, str]]:
    """Every version and marker."""
    return {(version.key, version.version_id) for version in catalog.bucket.versions("")}


def reaper(catalog: Catalog, *living: str) -> Attempts:
    return Attempts(catalog, lambda: frozenset(living))


def soon(catalog: Catalog) -> datetime:
    return catalog.bucket.clock() + timedelta(minutes=1)


def reap(attempts: Attempts, before: datetime) -> list[str]:
    """Remove all that is dead; returns the attempts."""
    found = attempts.find_dead(before=before)
    assert [attempts.remove(dead).refused for dead in found] == [()] * len(found)
    return [dead.attempt for dead in found]


def test_what_no_manifest_names_goes_with_its_keys_and_all_else_stays(catalog: Catalog) -> None:
    catalog.commit(attempt_at(catalog, WON))
    catalog.bucket.put("somebody/else", b"theirs")
    catalog.bucket.put("verification/full-20261122T000000Z/1.json", b"a record")
    kept = everything(catalog)
    attempt_at(catalog, LOST)
    attempt_at(catalog, OTHER, day=1)
    for key in (pack_key(OTHER * 2), BackupId("full", MIDNIGHT).attempt_prefix(LOST) + "config/repository.bundle"):
        catalog.bucket.client.create_multipart_upload(Bucket=catalog.bucket.name, Key=key)

    assert reap(reaper(catalog), soon(catalog)) == [LOST, OTHER]
    assert everything(catalog) == kept
    assert list(catalog.bucket.unfinished_uploads("")) == []
    assert reaper(catalog).find_dead(before=soon(catalog)) == []


@pytest.mark.requirement("R3.2")
def test_in_a_replica_what_the_primary_names_is_on_its_way(catalog: Catalog, s3_primary: S3Server) -> None:
    name = s3_primary.create_bucket(f"bucket-{secrets.token_hex(8)}")
    bucket = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    replica = Catalog(bucket, catalog.keyring)
    catalog.commit(attempt_at(catalog, WON))
    attempt_at(replica, WON)
    kept = everything(replica)
    attempt_at(replica, LOST)

    attempts = Attempts(replica, frozenset, primary=catalog)
    assert reap(attempts, soon(replica)) == [LOST]
    assert everything(replica) == kept


def test_more_than_a_page_goes(catalog: Catalog) -> None:
    bucket = catalog.bucket
    for listing, size in (("ListObjectVersions", "MaxKeys"), ("ListObjectsV2", "MaxKeys"), ("ListParts", "MaxParts")):
        bucket.client.meta.events.register(
            f"provide-client-params.s3.{listing}", lambda params, size=size, **_: {**params, size: 2}
        )
    bucket.client.meta.events.register(
        "provide-client-params.s3.ListMultipartUploads", lambda params, **_: {**params, "MaxUploads": 2}
    )
    attempt_at(catalog, LOST, segments=7)
    prefix = BackupId("full", MIDNIGHT).attempt_prefix(LOST)
    for number in range(5):
        upload = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"{prefix}more/{number}")["UploadId"]
        for part in range(1, 4):
            bucket.client.upload_part(
                Bucket=bucket.name, Key=f"{prefix}more/{number}", UploadId=upload, PartNumber=part, Body=b"part"
            )
    [dead] = reaper(catalog).find_dead(before=soon(catalog))

    assert len(dead.objects) == 7 + 3
    assert dead.bytes > 7 * 6 + 5 * 3 * 4
    assert reaper(catalog).remove(dead).objects == 7 + 4 + 5  # and the marker that gave it up
    assert everything(catalog) == set()
    assert list(bucket.unfinished_uploads("")) == []


@pytest.mark.parametrize("newest", ["object", "upload", "part"])
def test_a_try_that_wrote_lately_lives(catalog: Catalog, newest: str) -> None:
    bucket = catalog.bucket
    backup = BackupId("full", MIDNIGHT)
    attempt_at(catalog, LOST)
    key = backup.attempt_prefix(LOST) + "database/more"
    if newest == "part":
        upload = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)["UploadId"]
    before = next_second(bucket)
    if newest == "object":
        bucket.put(key, b"late")
    elif newest == "upload":
        bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
    else:
        bucket.client.upload_part(Bucket=bucket.name, Key=key, UploadId=upload, PartNumber=1, Body=b"late")

    assert reaper(catalog).find_dead(before=before) == []
    assert [dead.attempt for dead in reaper(catalog).find_dead(before=soon(catalog))] == [LOST]


def next_second(bucket: Bucket) -> datetime:
    """The store's clock, once everything that was written is older."""
    now = bucket.clock()
    while (then := bucket.clock()) <= now + timedelta(seconds=1):
        pass
    return then


def test_a_try_with_a_session_lives_also_when_it_shows_up_late(catalog: Catalog) -> None:
    attempt_at(catalog, LOST)
    before = everything(catalog)
    assert reaper(catalog, LOST).find_dead(before=soon(catalog)) == []
    [dead] = reaper(catalog).find_dead(before=soon(catalog))
    with pytest.raises(StillNeeded, match="session"):
        reaper(catalog, LOST).remove(dead)
    assert everything(catalog) == before


def test_nobody_is_dead_when_it_cannot_be_told_who_lives(catalog: Catalog) -> None:
    attempt_at(catalog, LOST)

    def unreachable() -> frozenset[str]:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        Attempts(catalog, unreachable).find_dead(before=soon(catalog))


def test_what_a_backup_names_stays_whatever_was_hidden(catalog: Catalog) -> None:
    manifest = attempt_at(catalog, WON)
    catalog.commit(manifest)
    for key in list(catalog.bucket.keys("")):
        catalog.bucket.delete(key)
    before = everything(catalog)

    assert reap(reaper(catalog), soon(catalog)) == []
    assert everything(catalog) == before


def test_what_a_later_version_of_a_manifest_names_stays_too(catalog: Catalog) -> None:
    catalog.commit(attempt_at(catalog, WON))
    late = attempt_at(catalog, LOST)
    catalog.bucket.put(MANIFEST, late.sealed(catalog.keyring))  # as where If-None-Match is ignored

    assert reap(reaper(catalog), soon(catalog)) == []


def test_what_a_backup_left_beside_itself_goes(catalog: Catalog) -> None:
    manifest = catalog.commit(attempt_at(catalog, WON))
    kept = everything(catalog)
    catalog.bucket.put(manifest.backup.attempt_prefix(WON) + "database/unnamed", b"x")
    catalog.bucket.client.create_multipart_upload(Bucket=catalog.bucket.name, Key=manifest.artifacts[0].segments[0].key)
    [dead] = reaper(catalog).find_dead(before=soon(catalog))

    assert dead.committed
    assert reaper(catalog).remove(dead).refused == ()
    assert everything(catalog) == kept
    assert list(catalog.bucket.unfinished_uploads("")) == []


@pytest.mark.parametrize("change", ["damaged", "another key", "moved", "a stranger below manifests/"])
def test_a_manifest_that_is_refused_may_name_anything(
    catalog: Catalog, tmp_path: Path, change: str, request: pytest.FixtureRequest
) -> None:
    manifest = attempt_at(catalog, LOST)
    sealed = manifest.sealed(catalog.keyring)
    key, content = MANIFEST, sealed
    if change == "damaged":
        content = sealed.replace(b'"tables":1', b'"tables":2')
    elif change == "another key":
        content = manifest.sealed(Keyring.create(tmp_path / "other.json"))
    elif change == "moved":
        key = BackupId("full", MIDNIGHT + timedelta(days=9)).manifest_key
    else:
        key, content = "manifests/README", b"hello"
    catalog.bucket.put(key, content)
    attempt_at(catalog, OTHER, day=1)  # another id's: its packs are kept, and so is it
    before = everything(catalog)
    attempts = reaper(catalog)

    assert attempts.find_dead(before=soon(catalog)) == []
    assert everything(catalog) == before
    assert sorted(words.split(" ")[0] for words in attempts.kept) == [
        f"full-20261122T000000Z.{LOST}",
        f"full-20261123T000000Z.{OTHER}",
    ]
    assert all(key in words for words in attempts.kept)


def test_a_refused_manifest_keeps_no_other_ids_try_that_has_no_pack(catalog: Catalog) -> None:
    catalog.bucket.put(MANIFEST, b"{}")
    other = BackupId("full", MIDNIGHT + timedelta(days=1))
    create_data_key(catalog.bucket, catalog.keyring, owner=str(other), attempt=OTHER)
    create_data_key(catalog.bucket, catalog.keyring, owner="full-20261122T000000Z", attempt=LOST)

    assert reap(reaper(catalog), soon(catalog)) == [OTHER]


def test_what_was_verified_was_a_backup_though_its_manifest_is_gone(catalog: Catalog) -> None:
    attempt_at(catalog, LOST)
    catalog.bucket.put("verification/full-20261122T000000Z/20261122T010000Z.json", b"a record")
    attempts = reaper(catalog)

    assert attempts.find_dead(before=soon(catalog)) == []
    assert "manifest is gone" in attempts.kept[0]


# A zombie: every order of its commit and the reaper.


def in_between(monkeypatch: pytest.MonkeyPatch, name: str, first: Callable[[], None], *, then: bool) -> None:
    """Do something once, before (`then`: after) the next call of a bucket's method."""
    method, done = getattr(Bucket, name), []

    def wrapped(bucket: Bucket, *arguments: object, **options: object) -> object:
        if done:
            return method(bucket, *arguments, **options)
        done.append(True)
        if not then:
            first()
        result = method(bucket, *arguments, **options)
        if then:
            first()
        return result

    monkeypatch.setattr(Bucket, name, wrapped)


def test_a_zombie_whose_try_is_gone_commits_nothing(catalog: Catalog) -> None:
    zombie = attempt_at(catalog, LOST)
    reap(reaper(catalog), soon(catalog))
    with pytest.raises(AttemptReaped):
        catalog.commit(zombie)
    assert everything(catalog) == set()


@pytest.mark.parametrize(("step", "then"), [("hide", False), ("versions", False)])
def test_a_zombie_that_commits_before_it_is_given_up_is_the_backup(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, step: str, *, then: bool
) -> None:
    zombie = attempt_at(catalog, LOST)
    attempts = reaper(catalog)
    [dead] = attempts.find_dead(before=soon(catalog))
    if step == "hide":
        in_between(monkeypatch, step, lambda: catalog.commit(zombie) and None, then=then)
    else:
        catalog.commit(zombie)
    with pytest.raises(StillNeeded, match="committed"):
        attempts.remove(dead)

    assert catalog.get(zombie.backup) == zombie
    assert not [version for version in catalog.bucket.versions("") if version.deleted]
    names = {segment.key for segment in zombie.artifacts[0].segments} | {pack_key(LOST * 2), MANIFEST}
    assert names <= set(catalog.bucket.keys(""))


def test_a_zombie_that_commits_after_it_is_given_up_is_told(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    zombie = attempt_at(catalog, LOST)
    attempts = reaper(catalog)
    [dead] = attempts.find_dead(before=soon(catalog))

    def commit() -> None:
        with pytest.raises(AttemptReaped):
            catalog.commit(zombie)

    in_between(monkeypatch, "hide", commit, then=True)
    attempts.remove(dead)
    assert everything(catalog) == set()


@pytest.mark.parametrize("then", [False, True], ids=["reaped before its manifest is there", "after"])
def test_a_zombie_that_is_reaped_while_it_commits(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, *, then: bool
) -> None:
    zombie = attempt_at(catalog, LOST)
    attempts = reaper(catalog)
    [dead] = attempts.find_dead(before=soon(catalog))
    reaped: list[bool] = []

    def remove() -> None:
        try:
            attempts.remove(dead)
            reaped.append(True)
        except StillNeeded:
            reaped.append(False)

    in_between(monkeypatch, "create", remove, then=then)
    if then:
        assert catalog.commit(zombie) == zombie
        assert reaped == [False]
        assert {segment.key for segment in zombie.artifacts[0].segments} <= set(catalog.bucket.keys(""))
    else:
        with pytest.raises(AttemptReaped):
            catalog.commit(zombie)
        assert reaped == [True]
        assert everything(catalog) == set()


def test_a_zombie_that_loses_to_a_reaper_between_its_manifest_and_its_last_look_takes_it_back(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie = attempt_at(catalog, LOST)
    [envelope] = catalog.bucket.keys(f"keys/{zombie.id}/")
    in_between(monkeypatch, "create", lambda: catalog.bucket.hide(envelope) and None, then=True)
    with pytest.raises(AttemptReaped):
        catalog.commit(zombie)

    assert list(catalog.bucket.versions("manifests/")) == []
    monkeypatch.undo()
    assert reap(reaper(catalog), soon(catalog)) == [LOST]
    assert everything(catalog) == set()


def test_two_reapers_do_no_harm(catalog: Catalog) -> None:
    catalog.commit(attempt_at(catalog, WON))
    kept = everything(catalog)
    attempt_at(catalog, LOST)
    first, second = reaper(catalog), reaper(catalog)
    [of_first], [of_second] = (each.find_dead(before=soon(catalog)) for each in (first, second))
    first.remove(of_first)

    assert second.remove(of_second).refused == ()
    assert everything(catalog) == kept


def test_a_reaper_that_was_cut_is_followed_by_one_that_ends_it(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt_at(catalog, LOST)
    before = next_second(catalog.bucket)
    attempts = reaper(catalog)
    [dead] = attempts.find_dead(before=before)

    def cut(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "delete_version", cut)
        with pytest.raises(ZeroDivisionError):
            attempts.remove(dead)
    assert len(list(catalog.bucket.keys("full/"))) == 2
    assert reap(reaper(catalog), before) == [LOST]  # the marker that it left made the try no younger
    assert everything(catalog) == set()


def test_what_an_object_lock_holds_is_told_and_keeps_its_keys(s3_primary: S3Server, keyring: Keyring) -> None:
    client, name = s3_primary.client(), "locked-attempts"
    client.create_bucket(
        Bucket=name,
        ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": s3_primary.region},  # type: ignore[typeddict-item]
    )
    store = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    catalog = Catalog(store, keyring)
    held = attempt_at(catalog, LOST).artifacts[0].segments[0].key
    client.put_object_retention(
        Bucket=name,
        Key=held,
        Retention={"Mode": "COMPLIANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(days=1)},
    )
    [dead] = reaper(catalog).find_dead(before=soon(catalog))
    removed = reaper(catalog).remove(dead)

    assert len(removed.refused) == 1
    assert held in removed.refused[0]
    left = {key for key, _ in everything(catalog)}
    assert {key for key in left if not key.startswith("keys/")} == {held}
    assert len({key for key in left if key.startswith("keys/")}) == 2


def test_nothing_is_deleted_where_no_versions_are_kept(s3_primary: S3Server, keyring: Keyring) -> None:
    client, name = s3_primary.client(), "unversioned-attempts"
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": s3_primary.region})  # type: ignore[typeddict-item]
    store = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    catalog = Catalog(store, keyring)
    attempt_at(catalog, LOST)
    [dead] = reaper(catalog).find_dead(before=soon(catalog))
    with pytest.raises(NotVersioned):
        reaper(catalog).remove(dead)
    assert len(list(store.keys(""))) == 5


def test_a_pack_whose_key_is_gone_is_nobodys_and_goes(catalog: Catalog) -> None:
    catalog.bucket.put(pack_key("f" * 32), b"members")
    assert reap(reaper(catalog), soon(catalog)) == [f"pack {'f' * 32}"]
    assert everything(catalog) == set()


def test_a_preparations_probe_goes_for_good(catalog: Catalog) -> None:
    bucket = catalog.bucket
    bucket.put("state/probe-0123", b"x")
    bucket.put("state/other", b"x")
    bucket.delete("state/probe-0123")
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key="state/probe-4567")
    assert find_probes(bucket, before=bucket.clock() - timedelta(minutes=1)) is None
    probes = find_probes(bucket, before=soon(catalog))

    assert probes is not None
    assert remove_probes(bucket, probes).objects == len(probes.objects) + len(probes.uploads) == 3
    assert list(bucket.unfinished_uploads("")) == []
    assert {key for key, _ in everything(catalog)} == {"state/other"}


def archive_at(catalog: Catalog, attempt: str) -> Manifest:
    """A try at an archive that has written everything but its manifest, which is returned: packs of its own."""
    backup, bucket = BackupId.archive("personal", MIDNIGHT), catalog.bucket
    create_data_key(bucket, catalog.keyring, owner=str(backup), attempt=attempt)
    prefix = f"{backup.attempt_prefix(attempt)}packs/"
    bucket.put(prefix + attempt * 2, b"members")
    bucket.put(f"{backup.attempt_prefix(attempt)}objects/user_uploads.index.jsonl.zst.enc/00000", b"index")
    [artifact], [pack] = make().artifacts, make().packs
    [segment] = artifact.segments
    key = f"{backup.attempt_prefix(attempt)}objects/user_uploads.index.jsonl.zst.enc/00000"
    return make(
        id=str(backup),
        type="archive",
        attempt=attempt,
        artifacts=(
            artifact.model_copy(update={"attempt": attempt, "segments": (segment.model_copy(update={"key": key}),)}),
        ),
        packs=(pack.model_copy(update={"id": attempt * 2, "attempt": attempt, "prefix": prefix}),),
    )


@pytest.mark.requirement("R8.1")
def test_a_dead_try_at_an_archive_goes_with_its_own_packs_and_the_committed_one_stays(catalog: Catalog) -> None:
    catalog.commit(archive_at(catalog, WON))
    kept = everything(catalog)
    archive_at(catalog, LOST)

    assert reap(reaper(catalog), soon(catalog)) == [LOST]
    assert everything(catalog) == kept

"""Which backups there are: what the bucket says, in order, and the first that was committed (R4.3)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from include.pipeline.canonical import canonical_json
from include.pipeline.keys import Keyring, UnknownKey, WrapRefused, new_local_key
from include.pipeline.store import Bucket, ObjectMissing
from include.repository.catalog import AlreadyCommitted, AttemptReaped, Catalog, NoSuchBackup
from include.repository.envelopes import create_data_key, open_data_key
from include.repository.layout import envelope_key
from include.repository.manifest import Manifest, ManifestRefused
from include.repository.rotation import wrap_all
from tests.manifests import MIDNIGHT, commit, make

# The catalog


def test_an_empty_bucket_has_no_backups(catalog: Catalog) -> None:
    backup = make().backup

    assert catalog.entries() == []
    assert catalog.find(backup) is None
    with pytest.raises(NoSuchBackup, match=str(backup)):
        catalog.get(backup)
    with pytest.raises(NoSuchBackup, match="no full backup"):
        catalog.latest("full")


def test_backups_are_listed_by_their_consistency_points(catalog: Catalog) -> None:
    late = make(1, point=MIDNIGHT + timedelta(days=9))
    for manifest in (make(3), late, make(2)):
        commit(catalog, manifest)

    assert [entry.manifest for entry in catalog.entries("full")] == [make(2), make(3), late]
    assert catalog.latest("full") == late
    assert catalog.entries("snapshot") == []


def test_a_refused_manifest_is_shown_and_hides_nothing(catalog: Catalog) -> None:
    commit(catalog, make(1))
    moved = make(0).backup.manifest_key
    catalog.bucket.put(moved, make(1).sealed(catalog.keyring))
    catalog.bucket.put("manifests/full/README", b"not a manifest")
    genuine, *refused = catalog.entries()

    assert genuine.manifest == make(1)
    assert [(entry.key, entry.manifest) for entry in refused] == [("manifests/full/README", None), (moved, None)]
    assert all(entry.key in str(entry.refused) for entry in refused)
    assert catalog.latest("full") == make(1)


def test_the_latest_never_quietly_becomes_an_older_one(catalog: Catalog) -> None:
    commit(catalog, make(1))
    catalog.bucket.put(make(2).backup.manifest_key, b"{}")
    with pytest.raises(ManifestRefused, match=make(2).backup.manifest_key) as refused:
        catalog.latest("full")
    assert make(1).id in refused.value.mend


def test_a_manifest_that_goes_while_it_is_listed_hides_nothing(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (1, 2):
        commit(catalog, make(day))
    read = Bucket.read

    def gone(bucket: Bucket, key: str, *, version_id: str | None = None) -> bytes:
        if key == make(2).backup.manifest_key:
            raise ObjectMissing(f"{key} is gone.", mend="")
        return read(bucket, key, version_id=version_id)

    monkeypatch.setattr(Bucket, "read", gone)
    assert [entry.manifest for entry in catalog.entries()] == [make(1), None]


def test_the_first_commit_of_an_id_wins(catalog: Catalog) -> None:
    first = commit(catalog, make(attempt="1" * 16))
    with pytest.raises(AlreadyCommitted) as late:
        commit(catalog, make(attempt="2" * 16))

    assert late.value.winner == first == catalog.get(first.backup)
    assert "1" * 16 in late.value.what


def race(catalog: Catalog, commit: Callable[[Manifest], Manifest]) -> list[Manifest]:
    """Two tries that commit at the same moment; each one's answer: its own manifest, or the winner's."""
    ready, answers = threading.Barrier(2, timeout=30), []

    def try_one(attempt: str) -> None:
        ready.wait()
        try:
            answers.append(commit(make(attempt=attempt)))
        except AlreadyCommitted as late:
            answers.append(late.winner)

    tries = [threading.Thread(target=try_one, args=(digit * 16,)) for digit in "12"]
    for one in tries:
        one.start()
    for one in tries:
        one.join()
    return answers


def test_two_that_commit_at_once_agree_on_the_winner(catalog: Catalog) -> None:
    for _ in range(5):
        answers = race(catalog, partial(commit, catalog))
        assert answers == [catalog.get(make().backup)] * 2


def test_where_the_store_ignores_the_condition_the_oldest_version_wins(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "create", lambda bucket, key, body: bucket.put(key, body))
    first = commit(catalog, make(attempt="1" * 16))
    with pytest.raises(AlreadyCommitted) as late:
        commit(catalog, make(attempt="2" * 16))

    assert late.value.winner == first
    assert catalog.get(first.backup) == first
    assert [entry.manifest for entry in catalog.entries()] == [first]


def test_a_try_that_was_given_up_commits_nothing(catalog: Catalog) -> None:
    manifest = make()
    create_data_key(catalog.bucket, catalog.keyring, owner=manifest.id, attempt=manifest.attempt)
    catalog.bucket.hide(envelope_key(manifest.id, manifest.attempt, catalog.keyring.current_kek))
    with pytest.raises(AttemptReaped, match=manifest.attempt):
        catalog.commit(manifest)

    assert list(catalog.bucket.versions("manifests/")) == []


def test_a_wrap_that_a_rotation_adds_does_not_bring_a_try_back(catalog: Catalog) -> None:
    manifest, keyring = make(), catalog.keyring
    create_data_key(catalog.bucket, keyring, owner=manifest.id, attempt=manifest.attempt)
    rotated = keyring.with_keks([new_local_key()], now=keyring.clock(), until=keyring.clock())
    catalog.bucket.hide(envelope_key(manifest.id, manifest.attempt, keyring.current_kek))
    assert wrap_all(catalog.bucket, rotated).wraps == 1
    with pytest.raises(AttemptReaped, match=manifest.attempt):
        catalog.commit(manifest)


def test_a_try_that_is_given_up_while_it_commits_takes_its_manifest_back(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, create = make(), Bucket.create
    create_data_key(catalog.bucket, catalog.keyring, owner=manifest.id, attempt=manifest.attempt)

    def slept(bucket: Bucket, key: str, body: bytes) -> None:
        catalog.bucket.hide(envelope_key(manifest.id, manifest.attempt, catalog.keyring.current_kek))
        create(bucket, key, body)

    monkeypatch.setattr(Bucket, "create", slept)
    with pytest.raises(AttemptReaped, match=manifest.attempt):
        catalog.commit(manifest)

    assert list(catalog.bucket.versions("manifests/")) == []


def test_a_late_try_that_was_given_up_is_told_who_won(catalog: Catalog) -> None:
    first = commit(catalog, make(attempt="1" * 16))
    with pytest.raises(AlreadyCommitted) as late:
        catalog.commit(make(attempt="2" * 16))

    assert late.value.winner == first


def test_a_deletion_marker_hides_no_backup(catalog: Catalog) -> None:
    manifest = commit(catalog, make())
    catalog.bucket.delete(manifest.backup.manifest_key)

    assert catalog.get(manifest.backup) == manifest
    assert len(catalog.entries()) == 1


# Envelopes

OWNER = {"owner": "full-20261122T000000Z", "attempt": "a" * 16}


def test_a_data_key_is_in_the_bucket_before_it_is_used(catalog: Catalog) -> None:
    store, keyring = catalog.bucket, catalog.keyring
    dek = create_data_key(store, keyring, **OWNER)

    assert list(store.keys("keys/")) == [envelope_key(**OWNER, kek_id=keyring.current_kek)]
    assert open_data_key(store, keyring, **OWNER) == dek


def test_whichever_wrap_this_keyring_opens_is_used(catalog: Catalog, tmp_path: Path) -> None:
    other = Keyring.create(tmp_path / "other.json")
    dek = create_data_key(catalog.bucket, catalog.keyring, **OWNER)
    rotated = other.wrap(dek, **OWNER)
    catalog.bucket.create(envelope_key(**OWNER, kek_id=rotated["kek"]), canonical_json(rotated))

    assert open_data_key(catalog.bucket, other, **OWNER) == dek
    assert open_data_key(catalog.bucket, catalog.keyring, **OWNER) == dek


def test_neither_a_marker_nor_a_later_version_takes_a_key_away(catalog: Catalog) -> None:
    dek = create_data_key(catalog.bucket, catalog.keyring, **OWNER)
    key = envelope_key(**OWNER, kek_id=catalog.keyring.current_kek)
    catalog.bucket.put(key, b"{}")
    catalog.bucket.delete(key)
    assert open_data_key(catalog.bucket, catalog.keyring, **OWNER) == dek


def test_a_key_without_a_wrap_and_one_of_another_keyring_are_named(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing, match=f"keys/{OWNER['owner']}/{OWNER['attempt']}/"):
        open_data_key(catalog.bucket, catalog.keyring, **OWNER)
    create_data_key(catalog.bucket, catalog.keyring, **OWNER)
    with pytest.raises(UnknownKey, match=catalog.keyring.current_kek):
        open_data_key(catalog.bucket, Keyring.create(tmp_path / "other.json"), **OWNER)


@pytest.mark.parametrize("stored", [b"", b"[]", b"{}", b'"text"', b'{"kek":"other"}', b"\xff"])
def test_what_is_no_envelope_is_refused_by_name(catalog: Catalog, stored: bytes) -> None:
    key = envelope_key(**OWNER, kek_id=catalog.keyring.current_kek)
    catalog.bucket.put(key, stored)
    with pytest.raises(WrapRefused, match=key):
        open_data_key(catalog.bucket, catalog.keyring, **OWNER)


def test_an_envelope_of_another_owner_is_refused_by_name(catalog: Catalog) -> None:
    other = {**OWNER, "attempt": "b" * 16}
    create_data_key(catalog.bucket, catalog.keyring, **other)
    moved = catalog.bucket.read(envelope_key(**other, kek_id=catalog.keyring.current_kek))
    key = envelope_key(**OWNER, kek_id=catalog.keyring.current_kek)
    catalog.bucket.put(key, moved)
    with pytest.raises(WrapRefused, match=key):
        open_data_key(catalog.bucket, catalog.keyring, **OWNER)

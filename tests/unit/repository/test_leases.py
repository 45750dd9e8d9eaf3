"""A reader says that it lives for as long as it does; holds are believed as far as they are genuine."""

from __future__ import annotations

from datetime import timedelta

import pytest

from include.pipeline.keys import Keyring
from include.repository.catalog import Catalog, NoSuchBackup
from include.repository.holds import Hold, NotHeld, hold, read_holds, release
from include.repository.layout import HOLDS, READING, BackupId
from include.repository.leases import living, reading
from tests.manifests import commit, make
from tests.rolling import policy

BACKUP = BackupId.parse("full-20261122T000000Z")


def test_a_reader_renews_its_lease_until_it_ends(catalog: Catalog) -> None:
    quick = policy(lease=timedelta(seconds=1))
    with reading(catalog, [str(BACKUP)], quick, what="restore"):
        while len(signs := list(catalog.bucket.keys(READING))) < 3:
            assert living(catalog.bucket, timedelta(hours=1), catalog.bucket.clock()).of(str(BACKUP))
        assert signs[0].endswith("/000000.json")
        now = catalog.bucket.clock()
        assert "restore" in str(living(catalog.bucket, timedelta(hours=1), now).of(str(BACKUP)))
        assert living(catalog.bucket, timedelta(hours=1), now + timedelta(hours=2)).of(str(BACKUP)) is None
    assert list(catalog.bucket.versions(READING)) == []


def test_a_lease_that_cannot_be_read_names_everything_and_one_that_is_hidden_nothing(catalog: Catalog) -> None:
    key = f"{READING}0123456789abcdef/000000.json"
    catalog.bucket.put(key, b"not JSON")
    now = catalog.bucket.clock()
    assert "cannot be read" in str(living(catalog.bucket, timedelta(hours=1), now).of("any"))
    catalog.bucket.hide(key)
    assert living(catalog.bucket, timedelta(hours=1), now).of("any") is None


def test_the_newest_genuine_record_decides_who_holds(
    catalog: Catalog, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(NoSuchBackup):
        hold(catalog, BACKUP, by="counsel", because="case 17")
    commit(catalog, make())
    with pytest.raises(NotHeld):
        release(catalog, BACKUP, by="counsel", because="nothing")
    records = [hold(catalog, BACKUP, by="counsel", because="case 17")]
    assert read_holds(catalog.bucket, catalog.keyring) == {str(BACKUP): "held by counsel: case 17"}
    records += [release(catalog, BACKUP, by="counsel", because="closed")]
    assert read_holds(catalog.bucket, catalog.keyring) == {}
    records += [hold(catalog, BACKUP, by="counsel", because="case 18")]
    assert [each.home for each in records] == sorted(each.home for each in records)  # of one second, in their order

    stranger = Keyring.create(tmp_path_factory.mktemp("stranger") / "keyring.json")
    later = records[-1].when + timedelta(days=1)
    forged = Hold(backup=str(BACKUP), held=False, when=later, by="mallory", because="please")
    catalog.bucket.create(forged.home, forged.sealed(stranger))
    assert read_holds(catalog.bucket, catalog.keyring) == {str(BACKUP): "held by counsel: case 18"}
    catalog.bucket.put(records[-1].home, b"{}")  # over it: the oldest version counts
    assert read_holds(catalog.bucket, catalog.keyring) == {str(BACKUP): "held by counsel: case 18"}
    unknown = Hold(backup="full-20261123T000000Z", held=True, when=later, by="mallory", because="please")
    catalog.bucket.create(unknown.home, unknown.sealed(stranger))
    assert "cannot be proved" in read_holds(catalog.bucket, catalog.keyring)[unknown.backup]
    catalog.bucket.put(f"{HOLDS}{BACKUP}/notes.txt", b"no record")
    assert len(read_holds(catalog.bucket, catalog.keyring)) == 2

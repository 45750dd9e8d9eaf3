"""The same full backup on another S3 server: Ceph's gateway, which ignores `If-None-Match` and checksum headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.backup.full import make_full_backup
from include.backup.verify import check_integrity
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.recovery.objects import restore_objects
from include.recovery.opened import OpenedBackup
from include.repository.catalog import AlreadyCommitted
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import Installation
from tests.damage import tell_the_story
from tests.manifests import commit

BACKUP = BackupId.parse("full-20261122T000000Z")


@pytest.fixture(scope="module")
def primary(ceph: CephGateway) -> CephGateway:
    return ceph


def test_it_reads_back_whole(installation: Installation, manifest: Manifest, tmp_path: Path) -> None:
    facts = check_integrity(installation.catalog(), BACKUP, load_policy(), scratch=tmp_path)

    assert facts["artifacts"] == len(manifest.artifacts)
    assert facts["objects"] == manifest.objects.objects > 0


def test_a_late_writer_changes_nothing_though_the_store_lets_it_write(
    installation: Installation, manifest: Manifest
) -> None:
    catalog = installation.catalog()
    late = manifest.model_copy(update={"attempt": "f" * 16})

    with pytest.raises(AlreadyCommitted) as told:
        commit(catalog, late)

    versions = [version for version in catalog.bucket.versions(BACKUP.manifest_key) if not version.deleted]
    assert len(versions) > 1, "this store should have ignored If-None-Match; otherwise the test proves nothing"
    assert told.value.winner == manifest
    assert catalog.get(BACKUP) == manifest
    assert [entry.manifest for entry in catalog.entries()] == [manifest]


def test_its_objects_come_back_equal(
    installation: Installation, ceph: CephGateway, manifest: Manifest, tmp_path: Path
) -> None:
    name = ceph.create_bucket("restored-gateway")
    target = Bucket(ceph.session(), name, region=ceph.region, endpoint_url=ceph.endpoint_url)
    before = installation.synapse.fingerprint().objects
    with Progress("restore", scratch=tmp_path) as progress:
        opened = OpenedBackup(installation.catalog(), manifest, policy=load_policy().pipeline, progress=progress)

        restored = restore_objects(opened, target)

    installation.synapse.bucket = name
    assert restored == len(before)
    assert installation.synapse.fingerprint().objects == before


@pytest.mark.requirement("R4.5", "R6.4")
def test_a_flipped_byte_takes_a_backup_out_of_the_plans_until_it_is_mended(
    installation: Installation, manifest: Manifest, tmp_path: Path
) -> None:
    """The last test of the module: it makes another backup."""
    catalog = installation.catalog()
    newer = make_full_backup(
        BackupId.parse("full-20261123T000000Z"),
        slot=None,
        application=installation.application(),
        catalog=catalog,
        policy=load_policy(),
        scratch=tmp_path,
    )
    assert "is in no plan until this proof passes" in tell_the_story(catalog, manifest, newer, tmp_path)

"""The same backups on another S3 server: Ceph's gateway, which ignores `If-None-Match` and checksum headers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from include.backup.full import make_full_backup
from include.backup.increment import make_increment
from include.backup.snapshot import make_snapshot
from include.backup.stream import ship_continuously
from include.backup.verify import check_integrity
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.pipeline.transfer import Upload
from include.policy import load_policy
from include.recovery.moments.planning import Target, plan_recovery
from include.recovery.moments.restore import Chosen, Destinations
from include.recovery.moments.restore import restore_to as restore_moment
from include.recovery.objects import restore_objects
from include.recovery.opened import OpenedBackup
from include.repository.catalog import AlreadyCommitted, Catalog
from include.repository.layout import BackupId, BackupType
from include.repository.manifest import Manifest
from include.repository.setup import set_up
from include.repository.wal import WalArchive
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import Installation
from include.sources.postgres.slots import ANCHOR
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


@pytest.mark.requirement("R1.2", "R5.1", "R5.5")
def test_a_moment_is_recovered_of_a_snapshot_an_increment_and_what_was_streamed(
    installation: Installation, ceph: CephGateway, sandbox_directory: Path
) -> None:
    policy, server, application = load_policy(), installation.postgres.superuser, installation.application()
    incremental = policy.backups.incremental.model_copy(update={"shipped_within": timedelta(seconds=2)})
    policy = policy.model_copy(update={"backups": policy.backups.model_copy(update={"incremental": incremental})})
    name = ceph.create_bucket("moment-gateway")
    bucket = Bucket(ceph.session(), name, region=ceph.region, endpoint_url=ceph.endpoint_url)
    catalog, scratch = Catalog(bucket, installation.catalog().keyring), sandbox_directory / "gateway-moment"
    replica = installation.replica_catalog()
    scratch.mkdir(mode=0o711)

    def back_up(make: Callable[..., Manifest], type_: BackupType) -> Manifest:
        backup = BackupId(type_, datetime.now(UTC), manual=True)
        return make(backup, slot=None, application=application, catalog=catalog, policy=policy, scratch=scratch)

    with installation.synapse.database.connect(application_name="test", autocommit=True) as session:
        session.execute("CREATE TABLE public.entry AS SELECT n FROM generate_series(1, 10) AS n")
        try:
            snapshot = back_up(make_snapshot, "snapshot")
            archive = WalArchive(bucket, catalog.keyring, snapshot.database.system_identifier, policy=policy.pipeline)
            over, spool = threading.Event(), scratch / "stream"
            session.execute("INSERT INTO public.entry VALUES (11)")
            row = session.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn() - 1)").fetchone()
            assert row is not None
            with ThreadPoolExecutor(1) as pool:
                stream = pool.submit(
                    ship_continuously, application, catalog, policy, replica=replica, spool=spool, until=over
                )
                try:
                    deadline = time.monotonic() + 60
                    while not (streamed := archive.shipped([row[0]])):
                        assert not stream.done(), stream.result()
                        assert time.monotonic() < deadline
                finally:
                    over.set()
            assert stream.result().failure is None
            session.execute("INSERT INTO public.entry VALUES (12)")
            increment = back_up(make_increment, "incremental")
            assert increment.wal is not None
            first, last = increment.wal.files
            assert (first.name, first.attempt) == (row[0], streamed[row[0]][0].attempt)
            assert last.attempt != first.attempt
            check_integrity(catalog, increment.backup, policy, scratch=scratch)
            session.execute("INSERT INTO public.entry VALUES (13)")

            plan = plan_recovery(
                catalog, Target.parse(increment.consistency_point.restore_point), policy, scratch=scratch
            )
            to = Destinations(server=server, database="gateway_moment")
            with Progress("recovery", scratch=scratch) as progress:
                restore_moment(
                    plan,
                    catalog,
                    policy,
                    to,
                    scratch=scratch,
                    progress=progress,
                    chosen=Chosen(tables=["public.entry"]),
                )
            with server.with_database("gateway_moment").connect(application_name="test") as recovered:
                assert recovered.execute("SELECT array_agg(n ORDER BY n) FROM public.entry").fetchone() == (
                    list(range(1, 13)),
                )
        finally:
            session.execute("DROP TABLE public.entry")
            session.execute("SELECT pg_drop_replication_slot(%s)", (ANCHOR,))
            session.execute("DROP DATABASE IF EXISTS gateway_moment")
    assert list(scratch.iterdir()) == [spool]


@pytest.mark.requirement("R3.1", "R3.3")
def test_it_is_set_up_as_far_as_it_goes(ceph: CephGateway) -> None:
    """It knows neither encryption (without a key service) nor replication, and locks only in buckets made for it."""
    primary, replica = (
        Bucket(ceph.session(), f"set-up-{name}", region=ceph.region, endpoint_url=ceph.endpoint_url)
        for name in ("primary", "replica")
    )
    policy = load_policy()
    locked = policy.model_copy(update={"storage": policy.storage.model_copy(update={"object_lock": "governance"})})
    first = set_up(primary, replica, policy, replication_role="arn:aws:iam::000000000000:role/replicates")
    second = {finding.aspect: finding for finding in set_up(primary, replica, locked)[:6]}

    unknown = {finding.aspect for finding in first if finding.state == "not known to this store"}
    assert unknown == {"encryption", "replication"}
    for aspect in ("bucket", "versions", "public access", "lifecycle"):
        assert (second[aspect].bucket, second[aspect].state) == (primary.name, "as it should be")
    assert second["object lock"].state == "left to a person"
    assert "make a new one" in second["object lock"].detail


def test_it_keeps_the_tags_of_an_upload_in_parts(ceph: CephGateway) -> None:
    name = ceph.create_bucket("tagged-in-parts")
    bucket = Bucket(ceph.session(), name, region=ceph.region, endpoint_url=ceph.endpoint_url)
    tags = {"retention-class": "financial", "month": "2026-11", "in words": "a + b"}
    with Upload(bucket, "parts", part_bytes=5 << 20, in_flight=1, tags=tags) as upload:
        upload.write(bytes((5 << 20) + 1))
        upload.complete()
    assert bucket.tags("parts") == tags

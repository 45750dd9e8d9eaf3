"""The last good backup after ransomware, on real buckets: encrypted data, vanished backups, and no false alarm."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from include.backup.full import make_full_backup
from include.backup.increment import make_increment
from include.backup.snapshot import make_snapshot
from include.disaster.last_good import NoneIsGood, Trusted, find_last_good, weigh_backups
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.recovery.moments.planning import Target, plan_recovery
from include.repository.catalog import Catalog
from include.repository.layout import BackupId, BackupType, wal_key
from include.repository.manifest import Manifest
from include.repository.references import references
from include.sandbox.installation import Installation
from include.sandbox.life import Life
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server

POLICY = load_policy()
SCALE = 0.1
MAKE = {"full": make_full_backup, "snapshot": make_snapshot, "incremental": make_increment}
IMPORT = """
    INSERT INTO messages (chat_id, role, body, tokens)
    SELECT chat_id, role, body || ' ' || chat_id, tokens FROM messages
"""
ENCRYPT = """
    CREATE FUNCTION encrypted(length int) RETURNS text LANGUAGE sql VOLATILE AS $$
        SELECT string_agg(encode(sha256((random()::text || n)::bytea), 'base64'), '')
        FROM generate_series(0, length / 32) n
    $$
"""


@dataclass
class Story:
    """An installation's backups in the order in which they were made; from `attacked` on it had been encrypted."""

    installation: Installation
    scratch: Path
    made: list[Manifest]
    attacked: int = 0

    @property
    def catalog(self) -> Catalog:
        return self.installation.catalog()

    @property
    def bucket(self) -> Bucket:
        return self.catalog.bucket

    def back_up(self, type_: BackupType) -> None:
        self.installation.settle()
        backup = BackupId(type_, datetime.now(UTC), manual=True)
        self.made.append(
            MAKE[type_](
                backup,
                slot=None,
                application=self.installation.application(),
                catalog=self.catalog,
                policy=POLICY,
                scratch=self.scratch,
            )
        )

    def live(self, transactions: int) -> None:
        files = self.installation.application().objects
        with Life(self.installation.synapse.database, files.client, files.name, pause=0.0) as life:
            life.wait_for(transactions, within=60)

    def sql(self, statement: str) -> None:
        with self.installation.synapse.database.connect(application_name="test", autocommit=True) as session:
            session.execute(statement.encode())

    def upload(self, objects: int) -> None:
        """Photographs, which no compression makes smaller."""
        files = self.installation.application().objects
        for number in range(objects):
            files.client.put_object(Bucket=files.name, Key=f"uploads/{number}.jpg", Body=os.urandom(60_000))

    def encrypt(self) -> None:
        """What ransomware does: other rows of about the same length, other objects of the same."""
        self.sql(ENCRYPT)
        self.sql("UPDATE messages SET body = encrypted(length(body))")
        files = self.installation.application().objects
        for stored in list(files.objects("")):
            files.client.put_object(Bucket=files.name, Key=stored.key, Body=os.urandom(stored.size))

    def weighed(self) -> dict[str, tuple[str, ...]]:
        return {one.id: one.doubts for one in weigh_backups(self.catalog, POLICY)}


@pytest.fixture(scope="module")
def story(
    sandbox_directory: Path, postgres18: PostgresServer, s3_primary: S3Server, s3_replica: S3Server
) -> Iterator[Story]:
    """Two busy days, at the end of which everything is encrypted, and then backed up."""
    directory = sandbox_directory / "last-good"
    directory.mkdir()
    directory.chmod(0o711)
    scratch = directory / "scratch"
    scratch.mkdir()
    scratch.chmod(0o711)
    installation = Installation.make(
        directory, postgres=postgres18, primary=s3_primary, replica=s3_replica, suffix="-last-good", scale=SCALE
    )
    told = Story(installation, scratch, [])
    for type_ in ("full", "snapshot"):
        told.back_up(type_)
    told.live(400)
    told.back_up("incremental")
    told.live(1000)
    told.upload(100)
    told.back_up("incremental")
    told.sql(IMPORT)
    told.back_up("incremental")
    told.back_up("full")
    told.attacked = len(told.made)
    told.encrypt()
    for type_ in ("incremental", "full", "snapshot"):
        told.back_up(type_)
    yield told
    installation.synapse.destroy()


@contextmanager
def deleted(bucket: Bucket, key: str) -> Iterator[None]:
    """Every version of an object is gone for good, for as long as this lasts."""
    body = bucket.read(key)
    for version in list(bucket.versions(key)):
        bucket.delete_version(key, version.version_id)
    yield
    bucket.put(key, body)


@contextmanager
def hidden(bucket: Bucket, key: str) -> Iterator[None]:
    """A deletion marker is over an object."""
    marker = bucket.hide(key)
    yield
    assert marker is not None
    bucket.delete_version(key, marker)


@contextmanager
def overwritten(bucket: Bucket, key: str, body: bytes) -> Iterator[None]:
    """Another version is over an object."""
    bucket.put(key, body)
    yield
    [newest, *_] = [version for version in bucket.versions(key) if version.latest]
    bucket.delete_version(key, newest.version_id)


@pytest.mark.requirement("R5.3")
def test_busy_days_are_not_suspected_and_encrypted_data_is(story: Story) -> None:
    weighed = story.weighed()
    increment, full, snapshot = story.made[story.attacked :]

    for manifest in story.made[: story.attacked]:
        assert weighed[manifest.id] == ()
    assert any("its log takes" in reason for reason in weighed[increment.id]), increment.wal
    assert any("objects that were there were changed" in reason for reason in weighed[increment.id])
    assert any("chat_history compresses" in reason for reason in weighed[full.id])
    assert any(increment.id in reason for reason in weighed[snapshot.id])


@pytest.mark.requirement("R5.3")
def test_the_last_good_is_the_newest_before_it_and_can_be_planned(story: Story) -> None:
    found = find_last_good(story.catalog, POLICY)

    assert found.backup.id == story.made[story.attacked - 1].id
    assert [one.id for one in found.doubted] == [one.id for one in reversed(story.made[story.attacked :])]
    trusted = Trusted(story.catalog, without=[one.id for one in found.doubted])
    plan = plan_recovery(trusted, Target.parse(found.backup.id), POLICY, scratch=story.scratch)
    assert plan.reaches == found.backup.consistency_point.time
    assert not {one.id for one in story.made[story.attacked :]} & set(plan.backups)


@pytest.mark.parametrize("how", [hidden, deleted])
def test_a_backup_whose_pieces_are_gone_is_passed_over(story: Story, how: type) -> None:
    *_, increment, full = story.made[: story.attacked]
    [key, *_] = [one.key for one in references(full) if "chat_history" in one.key]

    with how(story.bucket, key):
        found = find_last_good(story.catalog, POLICY)

    assert found.backup.id == increment.id, list(found.lines())
    reasons = {one.id: one.reasons for one in found.doubted}
    assert key in reasons[full.id][0]


def test_an_increment_whose_base_or_log_is_gone_is_no_way_back(story: Story) -> None:
    first_full, snapshot, *_, increment, full = story.made[: story.attacked]
    assert increment.wal is not None
    file = increment.wal.files[0]
    log = wal_key(increment.database.system_identifier, file.name, file.attempt)
    [base, *_] = [one.key for one in references(snapshot) if "base.tar" in one.key]
    [dump, *_] = [one.key for one in references(full) if "chat_history" in one.key]

    with hidden(story.bucket, dump), hidden(story.bucket, log):
        assert find_last_good(story.catalog, POLICY).backup.id == story.made[story.attacked - 3].id
    with hidden(story.bucket, dump), hidden(story.bucket, base):
        found = find_last_good(story.catalog, POLICY)
    assert found.backup.id == first_full.id
    reasons = {one.id: one.reasons for one in found.doubted}
    assert "no base" in reasons[increment.id][0]


def test_what_was_overwritten_is_read_and_told_from_what_was_mended(story: Story) -> None:
    *_, increment, full = story.made[: story.attacked]
    [(key, size), *_] = [(one.key, one.stored_bytes) for one in references(full) if "chat_history" in one.key]
    right = story.bucket.read(key)

    with overwritten(story.bucket, key, os.urandom(size)):
        found = find_last_good(story.catalog, POLICY)
        with overwritten(story.bucket, key, right):
            mended = find_last_good(story.catalog, POLICY)

    assert found.backup.id == increment.id, list(found.lines())
    assert "overwritten" in next(one.reasons[0] for one in found.doubted if one.id == full.id)
    assert mended.backup.id == full.id


@pytest.mark.parametrize("how", ["hidden", "forged"])
def test_a_manifest_that_was_hidden_or_forged_over_is_a_sign(story: Story, how: str) -> None:
    *_, increment, full = story.made[: story.attacked]
    over = hidden(story.bucket, full.home) if how == "hidden" else overwritten(story.bucket, full.home, b"{}")

    with over:
        found = find_last_good(story.catalog, POLICY)

    assert found.backup.id == increment.id, list(found.lines())
    assert "manifest" in next(one.reasons[0] for one in found.doubted if one.id == full.id)


def test_without_any_that_is_good_it_says_where_to_look(story: Story, s3_primary: S3Server) -> None:
    name = s3_primary.create_bucket(f"bucket-{secrets.token_hex(8)}")
    empty = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)

    with pytest.raises(NoneIsGood, match="other copy"):
        find_last_good(Catalog(empty, story.catalog.keyring), POLICY)

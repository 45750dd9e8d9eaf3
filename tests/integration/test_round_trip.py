"""The main job, without Airflow: back up, lose everything, restore, and find it equal."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from include.backup.adoption import Adopted
from include.backup.consistency import resume_writes, stop_writes
from include.backup.full import make_full_backup
from include.backup.sample import named
from include.backup.summary import summary
from include.backup.verify import check_integrity, check_sizes, prove_sample
from include.pipeline.progress import Progress
from include.policy import load_policy
from include.recovery.configuration import restore_configuration
from include.recovery.database import restore_database
from include.recovery.objects import restore_objects
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.manifest import Manifest, Slot
from include.sandbox.fingerprint import Fingerprint
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.objects import PackedComponent

MIDNIGHT = BackupId("full", datetime(2026, 11, 22, tzinfo=UTC))
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
SLOT = Slot(start=TODAY - timedelta(days=1), end=TODAY)
LATE = Slot(start=TODAY - timedelta(days=3), end=TODAY - timedelta(days=2))
POLICY = load_policy()


@dataclass(frozen=True)
class BackedUp:
    """An application, what it was, and its backup."""

    installation: Installation
    before: Fingerprint
    manifest: Manifest
    scratch: Path

    def backup_again(self, backup: BackupId = MIDNIGHT) -> Manifest:
        return back_up(self.installation, self.scratch, backup)


def back_up(
    installation: Installation, scratch: Path, backup: BackupId, *, catalog: Catalog | None = None, slot: Slot = SLOT
) -> Manifest:
    return make_full_backup(
        backup,
        slot=slot,
        application=installation.application(),
        catalog=catalog or installation.catalog(),
        policy=POLICY,
        scratch=scratch,
    )


@pytest.fixture(scope="module", params=["postgres18", "postgres15"])
def backed_up(
    request: pytest.FixtureRequest,
    s3_primary: S3Server,
    s3_replica: S3Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackedUp]:
    directory = tmp_path_factory.mktemp("round-trip")
    installation = Installation.make(
        directory,
        postgres=request.getfixturevalue(request.param),
        primary=s3_primary,
        replica=s3_replica,
        suffix=f"-trip-{request.param}",
        scale=0.05,
    )
    before = installation.synapse.fingerprint()
    yield BackedUp(installation, before, back_up(installation, directory, MIDNIGHT), directory)
    installation.synapse.destroy()


@pytest.mark.requirement("R1.1", "R2.1", "R2.2", "R2.3", "R4.5")
def test_the_backup_is_whole_and_its_samples_equal_their_source(backed_up: BackedUp) -> None:
    catalog, scratch = backed_up.installation.catalog(), backed_up.scratch
    integrity = check_integrity(catalog, MIDNIGHT, POLICY, scratch=scratch)
    sizes = check_sizes(catalog, MIDNIGHT, POLICY, scratch=scratch)
    samples = [
        prove_sample(
            catalog,
            backed_up.manifest,
            POLICY,
            named(backed_up.manifest, POLICY, component.name),
            server=backed_up.installation.scratch,
            source=backed_up.installation.application().objects,
            scratch=scratch,
        )
        for component in POLICY.sample_turns
        if component.name != "unclassified_objects"  # there are none
    ]

    assert integrity["objects"] == len(backed_up.before.objects)
    assert integrity["artifacts"] == len(backed_up.manifest.artifacts)
    assert sizes["rows"] == sum(table.rows for table in rows_of(backed_up.before))
    assert {sample["component"] for sample in samples} == {*POLICY.components, "unclassified_database"}
    kinds = {component.name: component.source for component in POLICY.sample_turns}
    for sample in samples:
        match kinds[sample["component"]]:
            case "database":
                assert sample["rows"] > 0
            case "objects":
                assert sample["objects"] == sample["compared_with_source"] > 0
            case "configuration":
                assert sample.get("commit") == backed_up.before.configuration["HEAD"] or sample["files"] > 0
    assert catalog.verification(backed_up.manifest).state == "not yet"  # nobody wrote down that every byte was read


def rows_of(before: Fingerprint) -> list:
    # The fingerprint counts materialized views too; a backup makes them again from their definitions.
    return [table for name, table in before.tables.items() if name != "public.monthly_usage"]


@pytest.mark.requirement("R4.3")
def test_the_backup_is_made_by_logins_that_own_nothing(backed_up: BackedUp) -> None:
    application = backed_up.installation.application()

    assert (application.barrier.user, application.dump.user) == ("synapse_backup_barrier", "synapse_backup_dump")
    assert stop_writes(application, POLICY)["blockers"] == 0
    assert resume_writes(application, MIDNIGHT) == {"ended": []}


@pytest.mark.requirement("R6.1", "R6.3")
def test_its_summary_tells_size_speed_and_write_stop(backed_up: BackedUp) -> None:
    facts = summary(backed_up.manifest)

    assert facts["raw_bytes"] > facts["stored_bytes"] > 0
    assert facts["ratio"] > 1
    assert 0 < facts["locks_held_ms"] <= facts["write_stop_ms"] < 5_000
    assert facts["objects"] == len(backed_up.before.objects)
    assert facts["commit"] == backed_up.before.configuration["HEAD"]


def test_the_same_id_again_is_the_committed_one(backed_up: BackedUp) -> None:
    again = backed_up.backup_again()

    assert again == backed_up.manifest
    assert len(backed_up.installation.catalog().entries()) == 1


@pytest.mark.requirement("R5.5")
def test_a_slot_that_is_past_is_adopted_by_the_backup_after_it(backed_up: BackedUp) -> None:
    before = sorted(backed_up.installation.catalog().bucket.keys(""))
    with pytest.raises(Adopted, match=str(MIDNIGHT)):
        back_up(backed_up.installation, backed_up.scratch, BackupId("full", LATE.end), slot=LATE)

    assert sorted(backed_up.installation.catalog().bucket.keys("")) == before


def test_another_try_that_comes_late_changes_nothing(backed_up: BackedUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zombie that believes nothing is committed works to its end, and loses."""
    monkeypatch.setattr(Catalog, "find", lambda *_: None)
    late = backed_up.backup_again()

    assert late == backed_up.manifest
    assert [entry.manifest for entry in backed_up.installation.catalog().entries()] == [backed_up.manifest]


def test_two_tries_at_once_commit_one_backup(backed_up: BackedUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both reach their commit before either writes; the loser hands back the winner's manifest."""
    backup = BackupId("full", datetime(2026, 11, 23, tzinfo=UTC))
    both, commit, tried = threading.Barrier(2, timeout=120), Catalog.commit, []

    def meet(catalog: Catalog, manifest: Manifest) -> Manifest:
        tried.append(manifest.attempt)
        both.wait()
        return commit(catalog, manifest)

    monkeypatch.setattr(Catalog, "commit", meet)
    made: list[Manifest] = []
    tries = [threading.Thread(target=lambda: made.append(backed_up.backup_again(backup))) for _ in range(2)]
    for one in tries:
        one.start()
    for one in tries:
        one.join()

    assert len(set(tried)) == 2
    assert made[0] == made[1]
    assert made[0].attempt in tried
    assert backed_up.installation.catalog().get(backup) == made[0]


def test_a_failure_of_one_stream_stops_the_others_and_commits_nothing(
    backed_up: BackedUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = BackupId("full", datetime(2026, 11, 24, tzinfo=UTC))
    monkeypatch.setattr(PackedComponent, "_pack", fail)
    with pytest.raises(ZeroDivisionError):
        backed_up.backup_again(backup)

    installation = backed_up.installation
    assert installation.catalog().find(backup) is None
    assert unfinished_uploads(installation) == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("pack-", "stream"))]
    assert sessions(installation.postgres) == []


def fail(*_: object) -> None:
    raise ZeroDivisionError


def unfinished_uploads(installation: Installation) -> list:
    return installation.primary.client().list_multipart_uploads(Bucket=installation.backups).get("Uploads", [])


def sessions(server: PostgresServer) -> list:
    with server.superuser.connect(application_name="test") as session:
        return session.execute(
            "SELECT application_name FROM pg_stat_activity WHERE application_name ~ '^full-'"
        ).fetchall()


@pytest.mark.requirement("R5.1", "R2.1", "R2.2", "R2.3")
def test_everything_that_was_lost_comes_back_equal(backed_up: BackedUp) -> None:
    """The last test of the module: it destroys the application."""
    installation, synapse = backed_up.installation, backed_up.installation.synapse
    catalog = installation.catalog()
    synapse.destroy()
    with Progress("restore") as progress:
        opened = OpenedBackup(catalog, catalog.get(MIDNIGHT), policy=POLICY.pipeline, progress=progress)
        server = installation.postgres.superuser
        restored = restore_database(opened, server=server, name=synapse.database.dbname, scratch=backed_up.scratch)
        objects = restore_objects(opened, installation.application().objects)
        commit = restore_configuration(opened, synapse.configuration)

    assert backed_up.before.difference(synapse.fingerprint()) == []
    assert (restored.rows, restored.tables) == (backed_up.manifest.database.rows, backed_up.manifest.database.tables)
    assert objects == len(backed_up.before.objects)
    assert commit == backed_up.before.configuration["HEAD"]

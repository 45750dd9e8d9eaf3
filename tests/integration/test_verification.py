"""A byte flips, half of a table goes: found, written down, passed over; put right or accepted, it is back (R4.5)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from include.backup import verify
from include.backup.full import make_full_backup
from include.backup.sample import named
from include.backup.verify import NothingToAccept, SizeSuspect, accept_sizes, prove_integrity, prove_sample, prove_sizes
from include.errors import BackupError
from include.pipeline.keys import Keyring, KeyringError
from include.pipeline.sealing import StreamRefused
from include.pipeline.store import Bucket, NotAllowed, ObjectVersion, StoreError
from include.policy import load_policy
from include.recovery.database import RestoreDiffers
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.layout import VERIFICATION, BackupId
from include.repository.manifest import Manifest
from include.repository.verification import VerificationFailed
from include.sandbox.installation import Installation
from tests.damage import flip, repair, tell_the_story
from tests.integration.test_break_glass import cli, told

POLICY = load_policy()


@dataclass
class Backups:
    """An installation that backs itself up, a day after another."""

    installation: Installation
    catalog: Catalog
    scratch: Path
    days: int = 0

    def make(self) -> Manifest:
        self.days += 1
        return make_full_backup(
            BackupId.parse(f"full-202611{self.days:02}T000000Z"),
            slot=None,
            application=self.installation.application(),
            catalog=self.catalog,
            policy=POLICY,
            scratch=self.scratch,
        )

    def records(self, manifest: Manifest) -> list[str]:
        return list(self.catalog.bucket.keys(f"{VERIFICATION}{manifest.id}/"))


@pytest.fixture(scope="module")
def backups(installation: Installation, catalog: Catalog, sandbox_directory: Path) -> Backups:
    return Backups(installation, catalog, sandbox_directory)


@pytest.fixture(scope="module")
def two(backups: Backups) -> tuple[Manifest, Manifest]:
    """Yesterday's backup, and today's."""
    return backups.make(), backups.make()


@pytest.fixture
def damaged(backups: Backups, two: tuple[Manifest, Manifest]) -> Iterator[str]:
    """The key of a segment of today's, a bit of which is flipped."""
    key = two[1].artifact("database/billing.pgdump").segments[0].key
    flip(backups.catalog.bucket, key)
    yield key
    repair(backups.catalog.bucket, key)


@pytest.mark.requirement("R4.5", "R6.4")
def test_a_flipped_byte_takes_a_backup_out_of_the_plans_until_it_is_mended(
    backups: Backups, two: tuple[Manifest, Manifest], tmp_path: Path
) -> None:
    assert "is in no plan until this proof passes (verification/" in tell_the_story(backups.catalog, *two, tmp_path)


@pytest.mark.requirement("R4.5", "R5.1", "R6.4")
def test_the_command_line_passes_over_it_refuses_it_and_lifts_it(
    backups: Backups, two: tuple[Manifest, Manifest], tmp_path: Path
) -> None:
    (older, newer), installation = two, backups.installation
    key = newer.artifact("database/billing.pgdump").segments[0].key
    flip(backups.catalog.bucket, key)

    failed = cli(installation, "verify", newer.id)
    latest = cli(installation, "restore", "latest", "--configuration", str(tmp_path / "latest"), "--json")
    refused = cli(installation, "restore", newer.id, "--configuration", str(tmp_path / "refused"))
    undecrypted = cli(installation, "decrypt", newer.id, "database/globals.sql")
    despite = cli(
        *(installation, "restore", newer.id, "--despite-verification"),
        *("--configuration", str(tmp_path / "despite"), "--json"),
    )
    listed = cli(installation, "list")
    shown = cli(installation, "show", newer.id)
    repair(backups.catalog.bucket, key)
    again = cli(installation, "verify", newer.id)

    assert (failed.returncode, key in told(failed)) == (1, True), told(failed)
    assert json.loads(latest.stdout)["id"] == older.id
    assert f"{newer.id} is passed over" in " ".join(latest.stderr.decode().split())
    [record] = [entry.home for entry in backups.catalog.history(newer, "integrity") if not entry.passed][:1]
    for done in (refused, undecrypted):
        assert done.returncode == 1
        assert record in told(done)
        assert "--despite-verification" in told(done)
    assert not (tmp_path / "refused").exists()
    assert json.loads(despite.stdout)["id"] == newer.id
    assert "FAILED: integrity" in told(listed)
    assert record in told(shown)
    assert again.returncode == 0, told(again)
    assert backups.catalog.latest("full") == newer


def test_a_failure_that_cannot_be_written_down_is_told_all_the_same(
    backups: Backups,
    two: tuple[Manifest, Manifest],
    damaged: str,
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = backups.records(two[1])
    monkeypatch.setattr(verify, "store_record", down)
    with pytest.raises(StreamRefused, match=damaged):
        prove_integrity(backups.catalog, two[1].backup, POLICY, scratch=tmp_path)
    assert "could not be written down: The store is down." in caplog.text
    assert backups.records(two[1]) == before


def down(*_: object) -> None:
    raise StoreError("The store is down.", mend="Wait.")


def test_who_may_only_read_can_still_prove(
    backups: Backups,
    two: tuple[Manifest, Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ring = backups.catalog.keyring
    public = {name: replace(key, private=None) for name, key in ring.signing_keys.items()}
    reader = Catalog(backups.catalog.bucket, replace(ring, signing_keys=public))
    assert prove_integrity(reader, two[0].backup, POLICY, scratch=tmp_path)["record"] is None

    def denied(*_: object) -> None:
        raise NotAllowed("Nobody writes here.", mend="Ask.")

    monkeypatch.setattr(Bucket, "create", denied)
    with caplog.at_level(logging.WARNING):
        assert prove_integrity(backups.catalog, two[0].backup, POLICY, scratch=tmp_path)["record"] is None
    assert "Nobody writes here." in caplog.text


def test_a_proof_that_could_not_be_carried_out_is_no_verdict(
    backups: Backups, two: tuple[Manifest, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, ring = backups.records(two[1]), backups.catalog.keyring
    [wrong] = Keyring.create(tmp_path / "stranger.json").keks.values()
    stranger = Catalog(backups.catalog.bucket, replace(ring, keks=dict.fromkeys(ring.keks, wrong)))
    with pytest.raises(KeyringError):
        prove_integrity(stranger, two[1].backup, POLICY, scratch=tmp_path)
    monkeypatch.setattr(Bucket, "read_range", down)
    for prove in (prove_integrity, prove_sizes):
        with pytest.raises(StoreError, match="is down"):
            prove(backups.catalog, two[1].backup, POLICY, scratch=tmp_path)
    assert backups.records(two[1]) == before


def test_a_cut_segment_is_a_verdict(backups: Backups, two: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    key = two[0].artifact("database/billing.pgdump").segments[0].key
    for cut in (slice(None, -1), slice(0, 0)):
        backups.catalog.bucket.put(key, backups.catalog.bucket.read(key)[cut])
        with pytest.raises(BackupError, match=key):
            prove_integrity(backups.catalog, two[0].backup, POLICY, scratch=tmp_path)
        assert backups.catalog.verification(two[0]).state == "failed"
        repair(backups.catalog.bucket, key)
        prove_integrity(backups.catalog, two[0].backup, POLICY, scratch=tmp_path)


# Samples


@pytest.mark.requirement("R4.5")
def test_an_object_that_is_not_what_the_source_has_fails_the_sample_and_the_backup(
    backups: Backups, two: tuple[Manifest, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prove() -> dict:
        return prove_sample(
            backups.catalog,
            two[1],
            POLICY,
            named(two[1], POLICY, "media_files"),
            server=backups.installation.scratch,
            source=backups.installation.application().objects,
            scratch=tmp_path,
        )

    objects = OpenedBackup.objects
    with monkeypatch.context() as patched:
        patched.setattr(
            OpenedBackup,
            "objects",
            lambda *of: (entry.model_copy(update={"metadata": {"other": "1"}}) for entry in objects(*of)),
        )
        with pytest.raises(RestoreDiffers, match="s3://"):
            prove()
    verification = backups.catalog.verification(two[1])
    assert [record.title for record in verification.failed] == ["sample of media_files"]
    with pytest.raises(VerificationFailed, match="sample of media_files"):
        verification.require(two[1].id)

    facts = prove()
    assert facts["objects"] == facts["compared_with_source"] > 0
    assert backups.catalog.verification(two[1]).failed == ()


def test_versions_that_the_source_has_no_more_are_compared_with_the_index(
    backups: Backups, two: tuple[Manifest, Manifest], tmp_path: Path
) -> None:
    turn, source = named(two[1], POLICY, "generated_content"), backups.installation.application().objects
    gone: ObjectVersion = next(
        version for version in source.versions("generated/") if version.latest and not version.deleted
    )
    content = source.read(gone.key)
    source.client.delete_object(Bucket=source.name, Key=gone.key, VersionId=gone.version_id)
    facts = prove_sample(
        *(backups.catalog, two[1], POLICY, turn), server=backups.installation.scratch, source=source, scratch=tmp_path
    )
    source.put(gone.key, content)
    assert POLICY.verification.sample_objects >= facts["objects"] == facts["compared_with_source"] + 1


# Sizes


@pytest.mark.requirement("R4.5")
def test_a_sudden_shrink_is_refused_until_somebody_accepts_it_once(
    backups: Backups, two: tuple[Manifest, Manifest], tmp_path: Path
) -> None:
    catalog, installation = backups.catalog, backups.installation
    assert prove_sizes(catalog, two[1].backup, POLICY, scratch=tmp_path)["compared_with"] == 1
    with pytest.raises(NothingToAccept):
        accept_sizes(catalog, two[1].backup, POLICY, because="habit", scratch=tmp_path)
    with installation.synapse.database.connect(application_name="test", autocommit=True) as session:
        session.execute("TRUNCATE attachments, messages")

    purged = backups.make()
    with pytest.raises(SizeSuspect, match=r"chat_history: \d+ rows where [\d,]+ are usual") as suspect:
        prove_sizes(catalog, purged.backup, POLICY, scratch=tmp_path)
    assert f"accept {purged.id} --because" in suspect.value.mend
    assert catalog.latest("full") == two[1]

    unsaid = cli(installation, "accept", purged.id, "--because", " ")
    done = cli(installation, "accept", purged.id, "--because", "messages were [purged]: ticket 7")
    assert unsaid.returncode == 2
    assert done.returncode == 0, told(done)
    assert catalog.latest("full") == purged
    shown = told(cli(installation, "show", purged.id))
    assert "because: messages were [purged]: ticket 7" in shown

    # Proved again, it stays accepted, and those who accepted it and why are told again.
    assert "that it shrank was accepted: " in told(cli(installation, "verify", purged.id))
    newest = catalog.history(purged, "sizes")[0]
    assert newest.because == "messages were [purged]: ticket 7"
    # What follows is compared with it, and with nothing before.
    following = backups.make()
    assert prove_sizes(catalog, following.backup, POLICY, scratch=tmp_path)["compared_with"] == 1
    assert catalog.latest("full") == following

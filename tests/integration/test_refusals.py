"""One flipped byte, one missing object, one wrong key: nothing is believed, and the error names the object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from include.backup.verify import check_integrity
from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.recovery.configuration import restore_configuration
from include.recovery.database import restore_database
from include.recovery.objects import restore_objects
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.layout import BackupId, envelope_prefix, pack_key
from include.repository.manifest import Manifest
from include.sandbox.installation import Installation
from include.sandbox.s3 import S3Server

BACKUP = BackupId.parse("full-20261122T000000Z")
POLICY = load_policy()


def segment_of(manifest: Manifest, name: str) -> str:
    return manifest.artifact(name).segments[0].key


ENCRYPTED: dict[str, Callable[[Manifest], str]] = {
    "schema": lambda manifest: segment_of(manifest, "database/pre-data.pgdump"),
    "rows": lambda manifest: segment_of(manifest, "database/chat_history.pgdump"),
    "unclassified rows": lambda manifest: segment_of(manifest, "database/unclassified_database.pgdump"),
    "indexes": lambda manifest: segment_of(manifest, "database/post-data.pgdump"),
    "roles": lambda manifest: segment_of(manifest, "database/globals.sql"),
    "inventory": lambda manifest: segment_of(manifest, "database/inventory.json"),
    "settings": lambda manifest: segment_of(manifest, "database/settings.json"),
    "object index": lambda manifest: segment_of(manifest, "objects/media_files.index.jsonl"),
    "pack": lambda manifest: pack_key(manifest.packs[0].id),
    "repository": lambda manifest: segment_of(manifest, "config/repository.bundle"),
    "secrets": lambda manifest: segment_of(manifest, "config/api_keys.tar"),
}
kinds = pytest.mark.parametrize("kind", ENCRYPTED)


@contextmanager
def replaced(catalog: Catalog, key: str, change: Callable[[bytes], bytes | None]) -> Iterator[None]:
    """Within the block the object is another, or gone, as if it had been so from the beginning: no version tells."""
    original = catalog.bucket.read(key)
    _only_version(catalog, key, change(original))
    try:
        yield
    finally:
        _only_version(catalog, key, original)


def _only_version(catalog: Catalog, key: str, content: bytes | None) -> None:
    client, name = catalog.bucket.client, catalog.bucket.name
    for version in list(catalog.bucket.versions(key)):
        client.delete_object(Bucket=name, Key=version.key, VersionId=version.version_id)
    if content is not None:
        catalog.bucket.put(key, content)


def flipped(at: float) -> Callable[[bytes], bytes]:
    """One bit of the byte at this share of the object."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[min(int(len(changed) * at), len(changed) - 1)] ^= 0x40
        return bytes(changed)

    return change


def gone(_: bytes) -> None:
    return None


def refusal(catalog: Catalog, scratch: Path) -> str:
    with pytest.raises(BackupError) as refused:
        check_integrity(catalog, BACKUP, POLICY, scratch=scratch)
    assert refused.value.mend
    return refused.value.what


@pytest.mark.requirement("R4.5")
def test_untouched_it_is_whole(catalog: Catalog, manifest: Manifest, tmp_path: Path) -> None:
    assert check_integrity(catalog, BACKUP, POLICY, scratch=tmp_path)["artifacts"] == len(manifest.artifacts)


@kinds
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
@pytest.mark.requirement("R4.5", "R6.4")
def test_a_flipped_bit_is_refused_by_name(
    catalog: Catalog, manifest: Manifest, tmp_path: Path, *, kind: str, at: float
) -> None:
    key = ENCRYPTED[kind](manifest)
    with replaced(catalog, key, flipped(at)):
        assert key in refusal(catalog, tmp_path)


@kinds
@pytest.mark.requirement("R4.5", "R6.4")
def test_a_missing_object_is_refused_by_name(catalog: Catalog, manifest: Manifest, tmp_path: Path, kind: str) -> None:
    key = ENCRYPTED[kind](manifest)
    with replaced(catalog, key, gone):
        assert key in refusal(catalog, tmp_path)


@kinds
@pytest.mark.requirement("R4.5")
def test_a_cut_object_is_refused_by_name(catalog: Catalog, manifest: Manifest, tmp_path: Path, kind: str) -> None:
    key = ENCRYPTED[kind](manifest)
    with replaced(catalog, key, lambda content: content[:-1]):
        assert key in refusal(catalog, tmp_path)


def test_swapped_objects_are_refused_by_name(catalog: Catalog, manifest: Manifest, tmp_path: Path) -> None:
    first, second = (ENCRYPTED[kind](manifest) for kind in ("inventory", "settings"))
    contents = {key: catalog.bucket.read(key) for key in (first, second)}
    with replaced(catalog, first, lambda _: contents[second]), replaced(catalog, second, lambda _: contents[first]):
        told = refusal(catalog, tmp_path)
    assert first in told or second in told


@pytest.mark.requirement("R7.1")
@pytest.mark.parametrize("owned_by", ["backup", "pack"])
def test_a_damaged_or_missing_data_key_is_refused_by_its_owners_name(
    catalog: Catalog, manifest: Manifest, tmp_path: Path, owned_by: str
) -> None:
    pack = manifest.packs[0]
    owner, attempt = (manifest.id, manifest.attempt) if owned_by == "backup" else (pack.id, pack.attempt)
    [key] = list(catalog.bucket.keys(envelope_prefix(owner, attempt)))

    def rewrap(content: bytes) -> bytes:
        envelope = json.loads(content)
        first = envelope["wrapped_key"][0]
        return json.dumps(
            envelope | {"wrapped_key": ("B" if first == "A" else "A") + envelope["wrapped_key"][1:]}
        ).encode()

    with replaced(catalog, key, rewrap):
        assert owner in refusal(catalog, tmp_path)
    with replaced(catalog, key, gone):
        assert owner in refusal(catalog, tmp_path)


def edited(content: bytes) -> bytes:
    document = json.loads(content)
    document["database"]["rows"] += 1
    return json.dumps(document).encode()


@pytest.mark.requirement("R4.5")
@pytest.mark.parametrize("change", [edited, flipped(0.5), lambda _: b"{}", lambda _: b""])
def test_an_edited_manifest_is_refused_by_name_and_hides_no_other(
    catalog: Catalog, manifest: Manifest, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    with replaced(catalog, BACKUP.manifest_key, change):
        assert BACKUP.manifest_key in refusal(catalog, tmp_path)
        [entry] = catalog.entries()
        assert entry.manifest is None
        assert entry.refused is not None
        assert BACKUP.manifest_key in entry.refused
    assert catalog.get(BACKUP) == manifest


def test_a_moved_manifest_is_refused(catalog: Catalog, manifest: Manifest) -> None:
    elsewhere = BackupId.parse("full-20261123T000000Z")
    catalog.bucket.put(elsewhere.manifest_key, catalog.bucket.read(BACKUP.manifest_key))
    try:
        with pytest.raises(BackupError, match="moved"):
            catalog.get(elsewhere)
    finally:
        _only_version(catalog, elsewhere.manifest_key, None)


@pytest.mark.requirement("R7.1")
def test_a_wrong_key_is_refused(catalog: Catalog, manifest: Manifest, tmp_path: Path) -> None:
    stranger = Keyring.create(tmp_path / "stranger.json")
    [wrong_key] = stranger.keks.values()
    same_name = replace(catalog.keyring, keks=dict.fromkeys(catalog.keyring.keks, wrong_key))

    assert stranger.current_signing_key not in refusal(Catalog(catalog.bucket, stranger), tmp_path)
    assert manifest.id in refusal(Catalog(catalog.bucket, same_name), tmp_path)


@pytest.mark.requirement("R5.1")
def test_a_refused_restore_leaves_nothing_behind(
    installation: Installation, catalog: Catalog, manifest: Manifest, tmp_path: Path
) -> None:
    server, target = installation.postgres.superuser, tmp_path / "configuration"
    rows, bundle = (ENCRYPTED[kind](manifest) for kind in ("rows", "repository"))
    with (
        Progress("restore", scratch=tmp_path) as progress,
        replaced(catalog, rows, flipped(0.9)),
        replaced(catalog, bundle, flipped(0.9)),
    ):
        opened = OpenedBackup(catalog, manifest, policy=POLICY.pipeline, progress=progress)
        with pytest.raises(BackupError) as of_database:
            restore_database(opened, server=server, name="refused", scratch=tmp_path)
        with pytest.raises(BackupError) as of_configuration:
            restore_configuration(opened, target)

    assert rows in str(of_database.value)
    assert bundle in str(of_configuration.value)
    with server.connect(application_name="test", autocommit=True) as session:
        databases = [name for (name,) in session.execute("SELECT datname FROM pg_database")]
    assert [name for name in databases if "refused" in name] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.requirement("R5.1")
def test_a_damaged_object_never_appears_in_the_target(
    catalog: Catalog, manifest: Manifest, s3_primary: S3Server, tmp_path: Path
) -> None:
    name = s3_primary.create_bucket("refusals-target")
    target = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    key = pack_key(max(manifest.packs, key=lambda pack: pack.stored_bytes).id)
    with Progress("restore", scratch=tmp_path) as progress, replaced(catalog, key, flipped(0.5)):
        opened = OpenedBackup(catalog, manifest, policy=POLICY.pipeline, progress=progress)
        with pytest.raises(BackupError, match=key):
            restore_objects(opened, target)
        whole = {entry.key: entry.sha256 for name in opened.object_components() for entry in opened.objects(name)}
    restored = {key: target.read(key) for key in target.keys("")}
    assert len(restored) < len(whole)
    assert {key: hashlib.sha256(content).hexdigest() for key, content in restored.items()} == {
        key: whole[key] for key in restored
    }

"""A manifest is believed only whole, signed and in its place (R4.5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.pipeline.canonical import canonical_json
from include.pipeline.keys import Keyring
from include.repository.manifest import Manifest, ManifestRefused
from tests.manifests import make

BACKUP = make().backup
KEY = BACKUP.manifest_key


def signed(keyring: Keyring, document: dict[str, Any]) -> bytes:
    return canonical_json({**document, "signature": keyring.sign(document)})


def test_a_signed_manifest_reads_back(keyring: Keyring) -> None:
    manifest = make()
    opened = Manifest.open(manifest.sealed(keyring), keyring, key=KEY)

    assert opened == manifest
    assert (opened.raw_bytes, opened.stored_bytes) == (10, 7)
    assert opened.backup == BACKUP


def test_what_is_stored_is_canonical_and_has_no_floating_point(keyring: Keyring) -> None:
    stored = make().sealed(keyring)

    def refuse(text: str) -> float:
        raise AssertionError(text)

    assert canonical_json(json.loads(stored, parse_float=refuse)) == stored


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_flipped_bit_is_refused_by_name(keyring: Keyring, data: st.DataObject) -> None:
    stored = bytearray(make().sealed(keyring))
    bit = data.draw(st.integers(0, 8 * len(stored) - 1))
    stored[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ManifestRefused, match=KEY):
        Manifest.open(bytes(stored), keyring, key=KEY)


@pytest.mark.parametrize("edit", [{"attempt": "fedcba9876543210"}, {"warnings": []}, {"packs": []}, {"more": 1}])
def test_an_edited_manifest_is_refused_by_name(keyring: Keyring, edit: dict[str, Any]) -> None:
    document = json.loads(make().sealed(keyring))
    with pytest.raises(ManifestRefused, match=rf"{KEY} is refused.*changed after it was written"):
        Manifest.open(canonical_json({**document, **edit}), keyring, key=KEY)


def test_another_spelling_of_a_genuine_manifest_is_refused(keyring: Keyring) -> None:
    document = json.loads(make().sealed(keyring))
    with pytest.raises(ManifestRefused, match=KEY):
        Manifest.open(json.dumps(document).encode(), keyring, key=KEY)


def test_a_manifest_that_somebody_else_signed_is_refused(keyring: Keyring, tmp_path: Path) -> None:
    other = Keyring.create(tmp_path / "other.json")
    with pytest.raises(ManifestRefused, match=rf"{KEY} is refused.*{other.current_signing_key}"):
        Manifest.open(make().sealed(other), keyring, key=KEY)


def test_a_manifest_that_was_moved_is_refused(keyring: Keyring) -> None:
    elsewhere = KEY.replace("22T", "23T")
    with pytest.raises(ManifestRefused, match=rf"{elsewhere} holds the manifest that belongs at {KEY}"):
        Manifest.open(make().sealed(keyring), keyring, key=elsewhere)


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"\xff",
        b'{"signature":1}',
        b'{"signature":"text"}',
        b'{"signature":["a"]}',
        b'{"signature":{}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_manifest_is_refused_by_name(keyring: Keyring, stored: bytes) -> None:
    with pytest.raises(ManifestRefused, match=KEY):
        Manifest.open(stored, keyring, key=KEY)


@pytest.mark.parametrize(
    ("change", "why"),
    [({"format": 2}, "has format 2"), ({"id": "no id"}, "its id"), ({"more": 1}, "1 fields"), ({"cost": None}, "1 f")],
)
def test_a_signed_document_of_another_shape_is_refused(keyring: Keyring, change: dict[str, Any], why: str) -> None:
    document = {**make().model_dump(mode="json"), **change}
    with pytest.raises(ManifestRefused, match=rf"{KEY} .*{why}"):
        Manifest.open(signed(keyring, document), keyring, key=KEY)


def test_an_artifact_that_is_not_there_is_named_and_the_others_told() -> None:
    with pytest.raises(ManifestRefused, match=r"database/chats") as refused:
        make().artifact("database/chats")
    assert "database/users.pgdump" in refused.value.mend


def test_an_artifact_is_bound_to_its_backup_and_attempt() -> None:
    place = make().artifact("database/users.pgdump").place(BACKUP)

    assert place.segment_key(3) == f"{BACKUP.attempt_prefix('0123456789abcdef')}database/users.pgdump.zst.enc/00003"
    assert place.segment_context(3) == {
        "backup": str(BACKUP),
        "attempt": "0123456789abcdef",
        "artifact": "database/users.pgdump",
        "component": "user_data",
        "retention_class": "personal",
        "segment": 3,
    }

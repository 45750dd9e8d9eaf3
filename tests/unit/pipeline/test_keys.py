"""The keyring: private to its owner, silent about its secrets, and deaf to anything that was changed (R7.1)."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from include.pipeline.keys import (
    KEYRING_VARIABLE,
    Kek,
    Keyring,
    KeyringError,
    LocalKey,
    SignatureRefused,
    UnknownKey,
    WrapRefused,
    new_data_key,
    new_local_key,
)

OWNER = {"owner": "full-20261122T000000Z", "attempt": "0123456789abcdef"}
DOCUMENT = {"id": "full-20261122T000000Z", "rows": 12}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keyring.json"
    Keyring.create(path)
    return path


@pytest.fixture(scope="module")
def keyring(path: Path) -> Keyring:
    return Keyring.load(path)


def other_keyring(directory: Path) -> Keyring:
    return Keyring.create(directory / "other.json")


def secrets_of(path: Path) -> list[str]:
    document = json.loads(path.read_text())
    encoded = [document["keks"][0]["key"], document["signing_keys"][0]["private"]]
    raw = [base64.b64decode(text) for text in encoded]
    return [*encoded, *(secret.hex() for secret in raw), *(repr(secret)[2:-1] for secret in raw)]


def test_a_new_keyring_is_for_its_owner_alone(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o644])
def test_a_keyring_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    opened = tmp_path / "keyring.json"
    Keyring.create(opened)
    opened.chmod(mode)
    with pytest.raises(KeyringError, match="reached by others") as refused:
        Keyring.load(opened)
    assert f"chmod 600 {opened}" in refused.value.mend


def test_an_existing_keyring_is_never_replaced(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(KeyringError, match="exists already"):
        Keyring.create(path)
    assert path.read_bytes() == before


def test_the_environment_names_the_keyring(
    path: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(KEYRING_VARIABLE, raising=False)
    with pytest.raises(KeyringError, match="No keyring is named"):
        Keyring.from_environment()
    monkeypatch.setenv(KEYRING_VARIABLE, str(tmp_path / "absent.json"))
    with pytest.raises(KeyringError, match="cannot be read"):
        Keyring.from_environment()
    monkeypatch.setenv(KEYRING_VARIABLE, str(path))
    assert Keyring.from_environment().current_kek == keyring.current_kek


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"format": 2}',
        b'{"format": 1, "keks": [], "current_kek": "x", "signing_keys": [], "current_signing_key": "x"}',
        b'{"format": 1, "keks": [{"id": "x", "key": "c2hvcnQ="}], "current_kek": "x", "signing_keys": []}',
        b'{"format": 3, "keks": [], "signing_keys": []}',
        b'{"format": 2, "keks": [], "signing_keys": []}',
        b'{"format": 2, "keks": [{"id": "x", "kms": {"key": "arn"}}], "signing_keys": []}',
        b'{"format": 2, "keks": [{"id": "x", "kms": {"key": "", "region": "r"}}], "signing_keys": []}',
    ],
)
def test_what_is_no_keyring_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    wrong = tmp_path / "keyring.json"
    wrong.touch(mode=0o600)
    wrong.write_bytes(content)
    with pytest.raises(KeyringError, match="is not a keyring") as refused:
        Keyring.load(wrong)
    assert str(wrong) in refused.value.what


def test_neither_words_nor_reprs_tell_a_secret(path: Path, keyring: Keyring) -> None:
    envelope = keyring.wrap(new_data_key(), **OWNER)
    told = [repr(keyring), str(keyring), *(repr(key) for key in keyring.signing_keys.values())]
    for attempt in ({**OWNER, "attempt": "x"}, {**OWNER, "owner": "x"}):
        with pytest.raises(WrapRefused) as refused:
            keyring.unwrap(envelope, **attempt)
        told += [repr(refused.value), str(refused.value)]

    assert not [secret for secret in secrets_of(path) if any(secret in text for text in told)]


@pytest.mark.requirement("R7.1")
def test_a_wrapped_key_comes_back(keyring: Keyring) -> None:
    dek = new_data_key()
    envelope = keyring.wrap(dek, **OWNER)

    assert keyring.unwrap(envelope, **OWNER) == dek
    assert base64.b64encode(dek).decode() not in json.dumps(envelope)
    assert envelope != keyring.wrap(dek, **OWNER)


def test_a_key_encryption_key_that_is_not_here_is_named(keyring: Keyring, tmp_path: Path) -> None:
    envelope = other_keyring(tmp_path).wrap(new_data_key(), **OWNER)
    with pytest.raises(UnknownKey, match=envelope["kek"]):
        keyring.unwrap(envelope, **OWNER)


def test_a_wrong_key_of_the_right_name_opens_nothing(keyring: Keyring) -> None:
    envelope = keyring.wrap(new_data_key(), **OWNER)
    wrong = replace(keyring, keks={keyring.current_kek: Kek(LocalKey(bytes(32)))})
    with pytest.raises(WrapRefused, match=keyring.current_kek):
        wrong.unwrap(envelope, **OWNER)


@pytest.mark.parametrize(
    "change",
    [
        {"owner": "full-20261123T000000Z"},
        {"attempt": "fedcba9876543210"},
        {"format": 2},
        {"wrapped_key": ""},
        {"wrapped_key": "no base64!"},
        {"wrapped_key": None},
        {"more": 1},
    ],
)
def test_an_edited_envelope_is_refused(keyring: Keyring, change: dict[str, Any]) -> None:
    envelope = keyring.wrap(new_data_key(), **OWNER)
    with pytest.raises(WrapRefused):
        keyring.unwrap({**envelope, **change}, **OWNER)


@settings(deadline=None)
@given(bit=st.integers(0, 8 * 60 - 1))
def test_any_flipped_bit_of_a_wrap_is_refused(keyring: Keyring, bit: int) -> None:
    envelope = keyring.wrap(bytes(32), **OWNER)
    wrapped = bytearray(base64.b64decode(envelope["wrapped_key"]))
    wrapped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WrapRefused):
        keyring.unwrap({**envelope, "wrapped_key": base64.b64encode(wrapped).decode()}, **OWNER)


def test_a_signature_proves_its_document_and_no_other(keyring: Keyring) -> None:
    signature = keyring.sign(DOCUMENT)

    keyring.check(dict(reversed(DOCUMENT.items())), signature)
    for other in ({**DOCUMENT, "rows": 13}, {**DOCUMENT, "more": None}, {"id": DOCUMENT["id"]}):
        with pytest.raises(SignatureRefused):
            keyring.check(other, signature)


def test_every_edit_of_a_signature_is_refused(keyring: Keyring) -> None:
    signature = keyring.sign(DOCUMENT)
    text = signature["ed25519"]
    edits = [text[:at] + chr(ord(text[at]) ^ 1 << bit) + text[at + 1 :] for at in range(len(text)) for bit in range(7)]
    for edited in [*edits, "", None]:
        with pytest.raises(SignatureRefused):
            keyring.check(DOCUMENT, {**signature, "ed25519": edited})
    with pytest.raises(UnknownKey, match="nobody"):
        keyring.check(DOCUMENT, {**signature, "key": "nobody"})


def test_a_keyring_for_restoring_proves_and_does_not_sign(keyring: Keyring, path: Path, tmp_path: Path) -> None:
    document = json.loads(path.read_text())
    del document["signing_keys"][0]["private"]
    public = tmp_path / "public.json"
    public.touch(mode=0o600)
    public.write_text(json.dumps(document))
    restoring = Keyring.load(public)

    restoring.check(DOCUMENT, keyring.sign(DOCUMENT))
    with pytest.raises(KeyringError, match="no private half"):
        restoring.sign(DOCUMENT)


def signing_entry(id_: str) -> dict[str, str]:
    private = Ed25519PrivateKey.generate()
    raw = {"private": private.private_bytes_raw(), "public": private.public_key().public_bytes_raw()}
    return {"id": id_, **{half: base64.b64encode(key).decode() for half, key in raw.items()}}


def write(path: Path, document: dict[str, Any]) -> Path:
    path.touch(mode=0o600)
    path.write_text(json.dumps(document))
    return path


def test_a_keyring_of_format_1_is_read_and_its_one_current_key_of_each_kind_is_used(tmp_path: Path) -> None:
    keks = [{"id": name, "key": base64.b64encode(bytes([at]) * 32).decode()} for at, name in enumerate(("new", "old"))]
    signing_keys = [signing_entry("signs"), signing_entry("signed")]
    read = Keyring.load(
        write(
            tmp_path / "keyring.json",
            {
                "format": 1,
                "current_kek": "new",
                "keks": keks,
                "current_signing_key": "signs",
                "signing_keys": signing_keys,
            },
        )
    )

    assert (read.current_keks, read.lasting_keks, read.current_kek) == (("new",), ("new",), "new")
    assert (read.current_signing_key, read.newest_signing_key) == ("signs", "signs")
    by_the_old_one = replace(read, keks={"old": Kek(LocalKey(b"\x01" * 32))}).wrap(new_data_key(), **OWNER)
    assert read.unwrap(by_the_old_one, **OWNER)
    again = Keyring.load(write(tmp_path / "again.json", json.loads(read.content())))
    assert (again.current_keks, again.current_signing_key, again.ids) == (("new",), "signs", read.ids)


def test_a_followed_key_wraps_until_its_moment_and_a_new_one_signs_from_its_own(path: Path, tmp_path: Path) -> None:
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    then = now + timedelta(days=7)
    keyring = Keyring.load(path)
    rotated = keyring.with_keks([new_local_key()], now=now, until=then).with_signing_key(now=now, starts=then)
    read = Keyring.load(write(tmp_path / "rotated.json", json.loads(rotated.content())))
    old, new = keyring.current_kek, read.lasting_keks[0]

    for moment, keks, signing in (
        (then - timedelta(microseconds=1), (old, new), keyring.current_signing_key),
        (then, (new,), read.newest_signing_key),
    ):
        at = replace(read, clock=lambda moment=moment: moment)
        assert (at.current_keks, at.current_signing_key) == (keks, signing)
        assert at.sign(DOCUMENT)["key"] == signing
        assert at.wrap(new_data_key(), **OWNER)["kek"] == new
    assert read.content() == rotated.content()
    # A second rotation gives those that were followed no more time.
    third = read.with_keks([new_local_key()], now=then, until=then + timedelta(days=7))
    assert third.keks[old].until == then


@pytest.mark.parametrize("moment", ["2026-11-22T12:00:00", "yesterday", 7])
def test_a_moment_that_is_none_is_refused(path: Path, tmp_path: Path, moment: object) -> None:
    document = json.loads(path.read_text())
    document["keks"][0]["until"] = moment
    with pytest.raises(KeyringError, match="is not a keyring"):
        Keyring.load(write(tmp_path / "odd.json", document))


def test_two_keys_of_one_id_are_refused(path: Path, tmp_path: Path) -> None:
    document = json.loads(path.read_text())
    document["keks"].append({**document["keks"][0], "key": base64.b64encode(bytes(32)).decode()})
    with pytest.raises(KeyringError, match="is not a keyring"):
        Keyring.load(write(tmp_path / "twice.json", document))

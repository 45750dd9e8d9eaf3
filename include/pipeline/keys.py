"""The keyring: key-encryption keys that wrap every data key, and the Ed25519 keys that sign every manifest (R7.1).

A keyring is a small JSON file, readable by its owner alone. It is the one thing that a restore needs beside the bucket.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from include.errors import BackupError
from include.pipeline.canonical import canonical_json

KEY_BYTES = 32
NONCE_BYTES = 12
KEYRING_VARIABLE = "BACKUP_KEYRING"


class KeyringError(BackupError):
    """The keyring cannot be read, is open to others, or lacks a key."""


class UnknownKey(KeyringError):
    """A key id that is not in the keyring."""


class WrapRefused(KeyringError):
    """A wrapped data key that its key-encryption key does not open."""


class SignatureRefused(KeyringError):
    """A signature that does not match what it signs."""


@dataclass(frozen=True)
class SigningKey:
    """One Ed25519 key pair; the private half is absent once the key is retired."""

    id: str
    public: Ed25519PublicKey
    private: Ed25519PrivateKey | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Keyring:
    """Keys by id, and which of each kind is used for what is written now."""

    keks: Mapping[str, bytes] = field(repr=False)
    current_kek: str
    signing_keys: Mapping[str, SigningKey]
    current_signing_key: str

    @classmethod
    def create(cls, path: Path, *, now: datetime | None = None) -> Self:
        """Write a new keyring, one key of each kind, to `path`, mode 0600; raises `KeyringError` if the file exists."""
        stamp = (now or datetime.now(UTC)).strftime("%Y%m%d")
        kek_id = f"kek-{stamp}-{secrets.token_hex(4)}"
        signing_id = f"sign-{stamp}-{secrets.token_hex(4)}"
        private = Ed25519PrivateKey.generate()
        document = {
            "format": 1,
            "current_kek": kek_id,
            "keks": [{"id": kek_id, "key": _text(secrets.token_bytes(KEY_BYTES))}],
            "current_signing_key": signing_id,
            "signing_keys": [
                {
                    "id": signing_id,
                    "private": _text(private.private_bytes_raw()),
                    "public": _text(private.public_key().public_bytes_raw()),
                }
            ],
        }
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise KeyringError(
                f"The keyring {path} exists already.",
                mend="A new one would not open the backups that it protects: use it, or name another file.",
            ) from None
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a keyring; raises `KeyringError` when it is missing, malformed, or open to others."""
        try:
            mode = path.stat().st_mode
            content = path.read_bytes()
        except OSError as error:
            raise KeyringError(
                f"The keyring {path} cannot be read: {error.strerror}.",
                mend=f"Name it with {KEYRING_VARIABLE}, bring it back from its escrow, "
                "or create the first one with `python -m include.cli keyring create`.",
            ) from None
        if stat.S_IMODE(mode) & 0o077:
            raise KeyringError(
                f"The keyring {path} can be reached by others (mode {stat.S_IMODE(mode):04o}).",
                mend=f"Run `chmod 600 {path}`; if anyone could have read it, rotate its keys.",
            )
        try:
            return cls._parse(json.loads(content))
        except (ValueError, KeyError, TypeError) as error:
            raise KeyringError(
                f"The keyring {path} is not a keyring of format 1 ({type(error).__name__}).",
                mend="Bring the file back from its escrow.",
            ) from None

    @classmethod
    def from_environment(cls) -> Self:
        """The keyring that `BACKUP_KEYRING` names."""
        path = os.environ.get(KEYRING_VARIABLE)
        if not path:
            raise KeyringError("No keyring is named.", mend=f"Set {KEYRING_VARIABLE} to the path of the keyring file.")
        return cls.load(Path(path))

    @classmethod
    def _parse(cls, document: dict[str, Any]) -> Self:
        if document["format"] != 1:
            raise ValueError("format")
        keks = {entry["id"]: _bytes(entry["key"]) for entry in document["keks"]}
        if any(len(key) != KEY_BYTES for key in keks.values()) or document["current_kek"] not in keks:
            raise ValueError("keks")
        signing_keys = {
            entry["id"]: SigningKey(
                id=entry["id"],
                public=Ed25519PublicKey.from_public_bytes(_bytes(entry["public"])),
                private=Ed25519PrivateKey.from_private_bytes(_bytes(entry["private"]))
                if entry.get("private")
                else None,
            )
            for entry in document["signing_keys"]
        }
        if document["current_signing_key"] not in signing_keys:
            raise ValueError("signing keys")
        return cls(
            keks=keks,
            current_kek=document["current_kek"],
            signing_keys=signing_keys,
            current_signing_key=document["current_signing_key"],
        )

    def wrap(self, dek: bytes, *, owner: str, attempt: str) -> dict[str, Any]:
        """The envelope of a data key: AES-256-GCM under the current KEK, bound to its owner and attempt."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = AESGCM(self.keks[self.current_kek]).encrypt(
            nonce, dek, _wrap_context(owner, attempt, self.current_kek)
        )
        return _envelope(owner, attempt, self.current_kek, _text(nonce + sealed))

    def unwrap(self, envelope: Mapping[str, Any], *, owner: str, attempt: str) -> bytes:
        """The data key inside an envelope.

        Raises `UnknownKey` when its key-encryption key is not here, and `WrapRefused` when that key does not open it,
        or when the envelope says anything else than what is sealed in it.
        """
        kek_id = str(envelope.get("kek"))
        if kek_id not in self.keks:
            raise UnknownKey(
                f"The data key of {owner} (attempt {attempt}) is wrapped by {kek_id}, which this keyring lacks.",
                mend="Use the keyring of the time, or bring that key back from its escrow.",
            )
        try:
            sealed = _bytes(envelope["wrapped_key"])
            if {**envelope, "wrapped_key": ""} != _envelope(owner, attempt, kek_id, ""):
                raise ValueError("other fields")
            dek = AESGCM(self.keks[kek_id]).decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _wrap_context(owner, attempt, kek_id)
            )
        except (InvalidTag, ValueError, KeyError, TypeError):
            raise WrapRefused(
                f"The data key of {owner} (attempt {attempt}) does not open with {kek_id}: key or envelope is wrong.",
                mend="Compare the keyring with its escrow, and the envelope with the replica's.",
            ) from None
        return dek

    def sign(self, document: Mapping[str, Any], *, kind: str = "manifest") -> dict[str, str]:
        """The signature block of a document that has none yet: Ed25519 over its kind and its canonical JSON."""
        key = self.signing_keys[self.current_signing_key]
        if key.private is None:
            raise KeyringError(
                f"The signing key {key.id} has no private half in this keyring.",
                mend="A keyring made for restoring cannot make backups: use the full one.",
            )
        return {"key": key.id, "ed25519": _text(key.private.sign(_signed(document, kind)))}

    def check(self, document: Mapping[str, Any], signature: Mapping[str, str], *, kind: str = "manifest") -> None:
        """Prove that `signature` is of this document as that kind; raises `UnknownKey` or `SignatureRefused`."""
        key_id = str(signature.get("key"))
        if key_id not in self.signing_keys:
            raise UnknownKey(
                f"It is signed by {key_id}, which this keyring does not hold.",
                mend="Use the keyring that holds that public key.",
            )
        try:
            self.signing_keys[key_id].public.verify(_bytes(signature["ed25519"]), _signed(document, kind))
        except (InvalidSignature, ValueError, KeyError, TypeError):
            raise SignatureRefused(
                f"Its signature by {key_id} does not match its content: it was changed after it was written.",
                mend="Do not restore from it. Compare it with the replica's copy.",
            ) from None


def new_data_key() -> bytes:
    """A random 256-bit data-encryption key."""
    return secrets.token_bytes(KEY_BYTES)


def _signed(document: Mapping[str, Any], kind: str) -> bytes:
    """What a signature covers: with the kind in front, no document can be passed off as one of another kind."""
    return f"synapse-backups {kind} 1\n".encode() + canonical_json(document)


def _envelope(owner: str, attempt: str, kek_id: str, wrapped_key: str) -> dict[str, Any]:
    return {"format": 1, "owner": owner, "attempt": attempt, "kek": kek_id, "wrapped_key": wrapped_key}


def _wrap_context(owner: str, attempt: str, kek_id: str) -> bytes:
    return canonical_json({"attempt": attempt, "kek": kek_id, "owner": owner})


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes(text: str) -> bytes:
    """Base64 in its one spelling: spare bits before the padding must be zero, so that no flipped bit is overlooked."""
    raw = base64.b64decode(text, validate=True)
    if _text(raw) != text:
        raise ValueError("not canonical base64")
    return raw

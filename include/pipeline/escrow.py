"""A keyring for the safe: encrypted under a passphrase, in one small text file (`docs/format.md`, *Escrow*)."""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from include.errors import BackupError
from include.pipeline.canonical import canonical_json

KIND = "synapse-backups keyring escrow"
SHORTEST_PASSPHRASE = 16
"""Characters: whoever has the file may guess for years, a guess a second and a core."""
_KEY_BYTES, _NONCE_BYTES, _SALT_BYTES = 32, 12, 32
_SCRYPT = {"n": 1 << 17, "r": 8, "p": 1}
"""128 MiB of memory a guess, and half a second of one core."""


class EscrowRefused(BackupError):
    """An escrow that does not open: another passphrase, or not all of the file."""


class PassphraseRefused(BackupError):
    """A passphrase that is no protection."""


def seal(content: bytes, passphrase: str) -> bytes:
    """The escrow of a keyring file's bytes; raises `PassphraseRefused`."""
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise PassphraseRefused(
            f"The passphrase has {len(passphrase)} characters: too few against somebody who has the file.",
            mend=f"Take {SHORTEST_PASSPHRASE} at least: six random words are good, and can be written down.",
        )
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    head = {"format": 1, "kind": KIND, "scrypt": {**_SCRYPT, "salt": _text(salt)}, "nonce": _text(nonce)}
    sealed = AESGCM(_key(passphrase, salt)).encrypt(nonce, content, canonical_json(head))
    return json.dumps({**head, "sealed": _text(sealed)}, indent=2).encode() + b"\n"


def unseal(escrow: bytes, passphrase: str) -> bytes:
    """The keyring file's bytes; raises `EscrowRefused`, which says whether it is the file or the passphrase."""
    try:
        head: dict[str, Any] = json.loads(escrow)
        sealed = base64.b64decode(head.pop("sealed"), validate=True)
        salt = base64.b64decode(head["scrypt"]["salt"], validate=True)
        nonce = base64.b64decode(head["nonce"], validate=True)
        known = head["format"] == 1 and head["kind"] == KIND and head["scrypt"] == {**_SCRYPT, "salt": _text(salt)}
        if not known or len(nonce) != _NONCE_BYTES:
            raise ValueError("another format")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise EscrowRefused(
            "It is not an escrow of format 1, or not all of it.",
            mend="Compare it with its other copies; a cut or edited file is of no use.",
        ) from None
    try:
        return AESGCM(_key(passphrase, salt)).decrypt(nonce, sealed, canonical_json(head))
    except (InvalidTag, ValueError):
        raise EscrowRefused(
            "The escrow does not open: the passphrase is another one, or a character of the file was changed.",
            mend="Type the passphrase as it was written down, spaces and all; then try another copy of the file.",
        ) from None


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=_KEY_BYTES, n=_SCRYPT["n"], r=_SCRYPT["r"], p=_SCRYPT["p"]).derive(
        passphrase.encode()
    )


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()

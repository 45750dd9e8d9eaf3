"""The keyring: key-encryption keys that wrap every data key, and the Ed25519 keys that sign every manifest (R7.1).

A keyring is a small JSON file, readable by its owner alone (`docs/format.md`, *Keys*). It is the one thing that a
restore needs beside the bucket; where a KEK is KMS's, it holds the name of that key, and not the key.

**Which keys are current is a matter of time**, so that every worker can have a new file before it is needed. A KEK that
was followed by another wraps beside it until its `until`: what is written meanwhile opens with the file of before *and*
with the file of after. A signature has only one key, so a new signing key proves from its first day and signs from its
`starts`.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from include.errors import Hopeless
from include.pipeline.canonical import canonical_json
from include.pipeline.keyring_file import create_file
from include.pipeline.kms import KmsKey, Sessions, session_of_environment

KEY_BYTES = 32
NONCE_BYTES = 12
KEYRING_VARIABLE = "BACKUP_KEYRING"
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class KeyringError(Hopeless):
    """The keyring cannot be read, is open to others, or lacks a key."""


class UnknownKey(KeyringError):
    """A key id that is not in the keyring."""


class WrapRefused(KeyringError):
    """A wrapped data key that its key-encryption key does not open."""


class SignatureRefused(KeyringError):
    """A signature that does not match what it signs."""


@dataclass(frozen=True)
class LocalKey:
    """32 bytes in the keyring file; a data key is sealed under them with AES-256-GCM, behind a random nonce."""

    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise ValueError("a key-encryption key has 32 bytes")

    def seal(self, dek: bytes, context: Mapping[str, str]) -> bytes:
        """Nonce, ciphertext and tag; `context` is authenticated with it."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + AESGCM(self.raw).encrypt(nonce, dek, canonical_json(context))

    def open(self, sealed: bytes, context: Mapping[str, str]) -> bytes:
        """The data key; raises `ValueError` when it does not open."""
        try:
            return AESGCM(self.raw).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], canonical_json(context))
        except InvalidTag:
            raise ValueError("not sealed by this key") from None


@dataclass(frozen=True)
class Kek:
    """One key-encryption key; from `until` on nothing new is wrapped by it (None: no other follows it yet)."""

    key: LocalKey | KmsKey
    until: datetime | None = None

    @property
    def kind(self) -> str:
        """Where the key is, for people."""
        return f"AWS KMS, {self.key.region}" if isinstance(self.key, KmsKey) else "local"


@dataclass(frozen=True)
class SigningKey:
    """One Ed25519 key pair, which signs from `starts` on; the private half is absent once the key is retired."""

    id: str
    public: Ed25519PublicKey
    private: Ed25519PrivateKey | None = field(default=None, repr=False)
    starts: datetime | None = None


def utc_now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Keyring:
    """Keys by id, oldest first; which of them are current, `clock` decides."""

    keks: Mapping[str, Kek] = field(repr=False)
    signing_keys: Mapping[str, SigningKey]
    clock: Callable[[], datetime] = field(default=utc_now, repr=False, compare=False)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        kms: Iterable[KmsKey] = (),
        now: datetime | None = None,
        sessions: Sessions = session_of_environment,
    ) -> Self:
        """Write a new keyring to `path`, mode 0600: a signing key, and the KMS keys, or a key of its own without any.

        Raises `KeyringError` if the file exists.
        """
        made = now or utc_now()
        ring = cls({}, {}).with_keks(list(kms) or [new_local_key()], now=made).with_signing_key(now=made)
        try:
            create_file(path, ring.content())
        except FileExistsError:
            raise KeyringError(
                f"The keyring {path} exists already.",
                mend="A new one would not open the backups that it protects: use it, or name another file.",
            ) from None
        return cls.load(path, sessions=sessions)

    @classmethod
    def load(cls, path: Path, *, sessions: Sessions = session_of_environment) -> Self:
        """Read a keyring; raises `KeyringError` when it is missing, malformed, or open to others.

        `sessions` gives the credentials for KMS in a region; nobody is asked before a key of KMS is used.
        """
        try:
            mode = path.stat().st_mode
            content = path.read_bytes()
        except OSError as error:
            raise KeyringError(
                f"The keyring {path} cannot be read: {error.strerror}.",
                mend=f"Name it with {KEYRING_VARIABLE}, bring it back from its escrow (`python -m include.cli keyring "
                "import`), or create the first one with `python -m include.cli keyring create`.",
            ) from None
        if stat.S_IMODE(mode) & 0o077:
            raise KeyringError(
                f"The keyring {path} can be reached by others (mode {stat.S_IMODE(mode):04o}).",
                mend=f"Run `chmod 600 {path}`; if anyone could have read it, rotate its keys.",
            )
        try:
            return cls.parse(content, sessions=sessions)
        except ValueError as error:
            raise KeyringError(
                f"The keyring {path} is not a keyring of format 1 or 2 ({error}).",
                mend="Bring the file back from its escrow.",
            ) from None

    @classmethod
    def from_environment(cls, *, sessions: Sessions = session_of_environment) -> Self:
        """The keyring that `BACKUP_KEYRING` names."""
        return cls.load(keyring_path(), sessions=sessions)

    @classmethod
    def parse(cls, content: bytes, *, sessions: Sessions = session_of_environment) -> Self:
        """A keyring from the bytes of its file; raises `ValueError`, which names no secret."""
        try:
            document = json.loads(content)
            if document["format"] not in (1, 2):
                raise ValueError("format")
            keks = {entry["id"]: _kek(entry, sessions) for entry in document["keks"]}
            signing_keys = {entry["id"]: _signing_key(entry) for entry in document["signing_keys"]}
            if len(keks) < len(document["keks"]) or len(signing_keys) < len(document["signing_keys"]):
                raise ValueError("two keys of one id")
            if document["format"] == 1:
                keks, signing_keys = _of_format_1(document, keks, signing_keys)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(type(error).__name__) from None
        if not signing_keys:
            raise ValueError("it has no signing key")
        return cls(keks, signing_keys)

    def content(self) -> bytes:
        """The bytes of its file, of format 2."""
        keks = [{"id": id_, **_told(kek.key), **_moment("until", kek.until)} for id_, kek in self.keks.items()]
        signing_keys = [
            {
                "id": key.id,
                **({"private": _text(key.private.private_bytes_raw())} if key.private else {}),
                "public": _text(key.public.public_bytes_raw()),
                **_moment("from", key.starts),
            }
            for key in self.signing_keys.values()
        ]
        return json.dumps({"format": 2, "keks": keks, "signing_keys": signing_keys}, indent=2).encode() + b"\n"

    @property
    def ids(self) -> frozenset[str]:
        """Every key, of either kind."""
        return frozenset((*self.keks, *self.signing_keys))

    @property
    def current_keks(self) -> tuple[str, ...]:
        """Those that wrap what is written now, oldest first."""
        now = self.clock()
        return tuple(id_ for id_, kek in self.keks.items() if kek.until is None or now < kek.until)

    @property
    def lasting_keks(self) -> tuple[str, ...]:
        """Those that no other follows: each data key must have a wrap by every one of them."""
        return tuple(id_ for id_, kek in self.keks.items() if kek.until is None)

    @property
    def current_kek(self) -> str:
        """The newest of those that wrap; raises `KeyringError` when there is none."""
        if not self.current_keks:
            raise KeyringError(
                "This keyring holds no key-encryption key that is current.",
                mend="A keyring made for auditing opens nothing and makes no backups: use the full one.",
            )
        return self.current_keks[-1]

    @property
    def current_signing_key(self) -> str:
        """The one that signs: of those that have a private half and have started, the newest.

        Where none has one, the newest of all: it is what a message may speak of.
        """
        return self.signing_key_at(self.clock())

    def signing_key_at(self, now: datetime) -> str:
        """`current_signing_key` at a moment."""
        private = [key for key in self.signing_keys.values() if key.private]
        started = [key for key in private if key.starts is None or key.starts <= now]
        return (started or private or list(self.signing_keys.values()))[-1].id

    @property
    def newest_signing_key(self) -> str:
        """The one that signs, or will when its time has come."""
        return list(self.signing_keys)[-1]

    def with_keks(self, keys: Iterable[LocalKey | KmsKey], *, now: datetime, until: datetime | None = None) -> Self:
        """The same with new KEKs; those that wrapped till now go on until `until`."""
        followed = {id_: replace(kek, until=kek.until or until) for id_, kek in self.keks.items()}
        return replace(self, keks={**followed, **{_new_id("kek", now): Kek(key) for key in keys}})

    def with_signing_key(self, *, now: datetime, starts: datetime | None = None) -> Self:
        """The same with a new signing key, which signs from `starts` on, and proves at once."""
        private = Ed25519PrivateKey.generate()
        key = SigningKey(_new_id("sign", now), private.public_key(), private, starts)
        return replace(self, signing_keys={**self.signing_keys, key.id: key})

    def without_kek(self, kek: str) -> Self:
        """The same without one KEK."""
        return replace(self, keks={id_: each for id_, each in self.keks.items() if id_ != kek})

    def without_private(self, signing_key: str) -> Self:
        """The same with one signing key that only proves."""
        retired = replace(self.signing_keys[signing_key], private=None)
        return replace(self, signing_keys={**self.signing_keys, signing_key: retired})

    def public(self) -> Self:
        """What an auditor needs: every signing key's public half, and nothing else."""
        keys = {key.id: replace(key, private=None) for key in self.signing_keys.values()}
        return replace(self, keks={}, signing_keys=keys)

    def wrap(self, dek: bytes, *, owner: str, attempt: str, kek: str | None = None) -> dict[str, Any]:
        """The envelope of a data key under one KEK (the newest current one), bound to its owner and attempt.

        Raises `KeyringError` without one, and `KmsUnavailable`.
        """
        kek = kek or self.current_kek
        sealed = self.keks[kek].key.seal(dek, _wrap_context(owner, attempt, kek))
        return _envelope(owner, attempt, kek, _text(sealed))

    def unwrap(self, envelope: Mapping[str, Any], *, owner: str, attempt: str) -> bytes:
        """The data key inside an envelope.

        Raises `UnknownKey` when its key-encryption key is not here, `KmsUnavailable` when KMS does not answer for it,
        and `WrapRefused` when that key does not open it, or when the envelope says anything else than what is sealed
        in it.
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
            dek = self.keks[kek_id].key.open(sealed, _wrap_context(owner, attempt, kek_id))
        except (ValueError, KeyError, TypeError):
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


def keyring_path() -> Path:
    """The file that `BACKUP_KEYRING` names; raises `KeyringError` when it names none."""
    path = os.environ.get(KEYRING_VARIABLE)
    if not path:
        raise KeyringError("No keyring is named.", mend=f"Set {KEYRING_VARIABLE} to the path of the keyring file.")
    return Path(path)


def new_data_key() -> bytes:
    """A random 256-bit data-encryption key."""
    return secrets.token_bytes(KEY_BYTES)


def new_local_key() -> LocalKey:
    """A random key-encryption key."""
    return LocalKey(secrets.token_bytes(KEY_BYTES))


def _signed(document: Mapping[str, Any], kind: str) -> bytes:
    """What a signature covers: with the kind in front, no document can be passed off as one of another kind."""
    return f"synapse-backups {kind} 1\n".encode() + canonical_json(document)


def _envelope(owner: str, attempt: str, kek_id: str, wrapped_key: str) -> dict[str, Any]:
    return {"format": 1, "owner": owner, "attempt": attempt, "kek": kek_id, "wrapped_key": wrapped_key}


def _wrap_context(owner: str, attempt: str, kek_id: str) -> dict[str, str]:
    return {"attempt": attempt, "kek": kek_id, "owner": owner}


def _kek(entry: Mapping[str, Any], sessions: Sessions) -> Kek:
    kms = entry.get("kms")
    key: LocalKey | KmsKey
    if kms is None:
        key = LocalKey(_bytes(entry["key"]))
    else:
        key = KmsKey(kms["key"], region=kms["region"], endpoint_url=kms.get("endpoint"), sessions=sessions)
    return Kek(key, _read_moment(entry, "until"))


def _signing_key(entry: Mapping[str, Any]) -> SigningKey:
    private = entry.get("private")
    return SigningKey(
        id=entry["id"],
        public=Ed25519PublicKey.from_public_bytes(_bytes(entry["public"])),
        private=Ed25519PrivateKey.from_private_bytes(_bytes(private)) if private else None,
        starts=_read_moment(entry, "from"),
    )


def _of_format_1(
    document: Mapping[str, Any], keks: dict[str, Kek], signing_keys: dict[str, SigningKey]
) -> tuple[dict[str, Kek], dict[str, SigningKey]]:
    """Format 1 names the one current key of each kind: every other KEK's time is over, and it comes last."""
    current, signing = document["current_kek"], document["current_signing_key"]
    old = {id_: replace(kek, until=LONG_AGO) for id_, kek in keks.items() if id_ != current}
    others = {id_: key for id_, key in signing_keys.items() if id_ != signing}
    return {**old, current: keks[current]}, {**others, signing: signing_keys[signing]}


def _told(key: LocalKey | KmsKey) -> dict[str, Any]:
    if isinstance(key, LocalKey):
        return {"key": _text(key.raw)}
    endpoint = {"endpoint": key.endpoint_url} if key.endpoint_url else {}
    return {"kms": {"key": key.key, "region": key.region, **endpoint}}


def _new_id(kind: str, now: datetime) -> str:
    return f"{kind}-{now.astimezone(UTC):%Y%m%d}-{secrets.token_hex(4)}"


def _moment(name: str, moment: datetime | None) -> dict[str, str]:
    return {name: moment.astimezone(UTC).isoformat().replace("+00:00", "Z")} if moment else {}


def _read_moment(entry: Mapping[str, Any], name: str) -> datetime | None:
    text = entry.get(name)
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("no time zone")
    return moment.astimezone(UTC)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes(text: str) -> bytes:
    """Base64 in its one spelling: spare bits before the padding must be zero, so that no flipped bit is overlooked."""
    raw = base64.b64decode(text, validate=True)
    if _text(raw) != text:
        raise ValueError("not canonical base64")
    return raw

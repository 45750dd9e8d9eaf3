"""What is believed because it is signed: canonical JSON with an Ed25519 signature (`docs/format.md`, *Signatures*)."""

from __future__ import annotations

import getpass
import json
import os
import socket
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from include.errors import BackupError
from include.pipeline.canonical import canonical_json
from include.pipeline.keys import Keyring, KeyringError
from include.repository.layout import NotABackupId

FORMAT = 1


def writer() -> str:
    """Who writes a document: the user and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class Frozen(BaseModel):
    """A value that says everything that it must, nothing that it need not, and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SignedDocument(Frozen, ABC):
    """A document that is stored signed, and believed only whole, genuine and in its place.

    It holds no floating-point number: its canonical JSON, which is signed, is then the same in every language.
    """

    kind: ClassVar[str]
    refusal: ClassVar[type[BackupError]]

    format: Literal[1] = 1

    @property
    @abstractmethod
    def home(self) -> str:
        """The key at which it lies, and nowhere else."""

    def sealed(self, keyring: Keyring) -> bytes:
        """The signed document, as it is stored."""
        document = self.model_dump(mode="json")
        return canonical_json({**document, "signature": keyring.sign(document, kind=self.kind)})

    @classmethod
    def open(cls, stored: bytes, keyring: Keyring, *, key: str) -> Self:
        """Parse and prove a stored document; raises the refusal of its kind, naming the object `key`."""
        document = cls._proved(stored, keyring, key)
        try:
            opened = cls.model_validate(document)
            home = opened.home
        except (ValidationError, NotABackupId) as invalid:
            what = "its id" if isinstance(invalid, NotABackupId) else f"{invalid.error_count()} fields"
            raise cls.refusal(
                f"{key} is signed, and does not fit format {FORMAT} ({what}).", mend="Use the version that wrote it."
            ) from None
        if home != key:
            raise cls.refusal(
                f"{key} holds the {cls.kind} that belongs at {home}: it was moved here.",
                mend="Do not rely on it; what it is true of is told by where it belongs.",
            )
        return opened

    @classmethod
    def _proved(cls, stored: bytes, keyring: Keyring, key: str) -> dict[str, Any]:
        """The document without its signature, which is right."""
        try:
            document: dict[str, Any] = json.loads(stored)
            canonical = canonical_json(document) == stored
            signature = dict(document.pop("signature"))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            canonical = False
        if not canonical:
            raise cls.refusal(f"{key} is not a signed {cls.kind}.", mend="Compare it with the replica's copy.")
        try:
            keyring.check(document, signature, kind=cls.kind)
        except KeyringError as refused:
            raise cls.refusal(f"{key} is refused. {refused.what}", mend=refused.mend) from refused
        if document.get("format") != FORMAT:
            raise cls.refusal(
                f"{key} has format {document.get('format')!r}, and this version reads format {FORMAT}.",
                mend="Use the version that wrote it.",
            )
        return document

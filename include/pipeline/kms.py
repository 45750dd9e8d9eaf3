"""Key-encryption keys that stay in AWS KMS: it wraps and unwraps, and the key is never on a disk of ours (R7.1)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from include.errors import BackupError, Hopeless

if TYPE_CHECKING:
    import boto3

Sessions = Callable[[str], "boto3.Session"]
"""The credentials with which KMS is asked in a region."""

SILENT_FOR = 60.0
"""Seconds for which a key that did not answer is not asked again: else each of thousands of data keys would wait."""
_CONNECT_SECONDS, _READ_SECONDS, _TRIES = 3, 10, 3
_FAILING = 500
_NOT_OURS = {"InvalidCiphertextException", "IncorrectKeyException"}
_REACH = (
    "Check that the endpoint of KMS in that region is reachable and that credentials are set. To read, the wrap by "
    "another region's key is enough; to write, every current key must answer."
)
_ALLOW = "Allow these credentials kms:Encrypt and kms:Decrypt with that key (its key policy, and their own)."
_STATE = "Enable the key, or cancel its deletion: `aws kms describe-key` tells its state."
_MENDS = {
    "AccessDeniedException": _ALLOW,
    "UnrecognizedClientException": "Correct the credentials: KMS does not know this access key.",
    "NotFoundException": "Correct the key's ARN in the keyring: that region has no such key.",
    "DisabledException": _STATE,
    "KMSInvalidStateException": _STATE,
}
"""What a person does about KMS's own words."""


class KmsUnavailable(BackupError):
    """KMS does not answer for a key, or does not let these credentials use it."""


class NotAKmsKey(Hopeless):
    """Text that names no KMS key."""


def session_of_environment(region: str) -> boto3.Session:
    """What the usual `AWS_*` variables, files and roles give."""
    import boto3  # noqa: PLC0415 - a keyring without KMS needs none of it

    return boto3.Session(region_name=region)


class KmsKey:
    """One symmetric key of AWS KMS, by its ARN or alias, in one region.

    `endpoint_url` is for what is not AWS. The client is made when it is first needed.
    """

    def __init__(
        self,
        key: str,
        *,
        region: str,
        endpoint_url: str | None = None,
        sessions: Sessions = session_of_environment,
    ) -> None:
        if not all(isinstance(each, str) and each for each in (key, region)):
            raise ValueError("a key of KMS has a name and a region")
        self.key, self.region, self.endpoint_url, self._sessions = key, region, endpoint_url, sessions
        self._making = threading.Lock()
        self._silence = (0.0, "")

    @classmethod
    def of_arn(cls, arn: str, *, endpoint_url: str | None = None, sessions: Sessions = session_of_environment) -> Self:
        """From `arn:aws:kms:<region>:<account>:key/<id>`, or an alias's ARN; raises `NotAKmsKey`."""
        parts = arn.split(":")
        if len(parts) != 6 or parts[0] != "arn" or parts[2] != "kms" or not parts[3]:  # noqa: PLR2004 - an ARN's
            raise NotAKmsKey(
                f"{arn!r} is not the ARN of a KMS key.",
                mend="Name it as `aws kms describe-key` tells it: arn:aws:kms:<region>:<account>:key/<id>.",
            )
        return cls(arn, region=parts[3], endpoint_url=endpoint_url, sessions=sessions)

    def __repr__(self) -> str:
        return f"{self.key} in {self.region}"

    def pinned(self) -> Self:
        """The same key by its own ARN, proved to wrap and unwrap: an alias may name another key tomorrow."""
        context = {"check": "pinned"}
        with self._naming("encrypt with"):
            arn = self._client.encrypt(KeyId=self.key, Plaintext=b"check", EncryptionContext=context)["KeyId"]
        found = type(self)(arn, region=self.region, endpoint_url=self.endpoint_url, sessions=self._sessions)
        found.open(found.seal(b"check", context), context)
        return found

    def seal(self, dek: bytes, context: Mapping[str, str]) -> bytes:
        """`kms:Encrypt`; `context` is its EncryptionContext, and must be given again. Raises `KmsUnavailable`."""
        with self._naming("encrypt with"):
            return bytes(
                self._client.encrypt(KeyId=self.key, Plaintext=dek, EncryptionContext=dict(context))["CiphertextBlob"]
            )

    def open(self, sealed: bytes, context: Mapping[str, str]) -> bytes:
        """`kms:Decrypt`; raises `ValueError` when it does not open, and `KmsUnavailable`."""
        from botocore.exceptions import ClientError  # noqa: PLC0415

        with self._naming("decrypt with"):
            try:
                answer = self._client.decrypt(KeyId=self.key, CiphertextBlob=sealed, EncryptionContext=dict(context))
            except ClientError as error:
                if error.response["Error"].get("Code") in _NOT_OURS:
                    raise ValueError("not sealed by this key") from None
                raise
        return bytes(answer["Plaintext"])

    @cached_property
    def _client(self) -> Any:
        from botocore.config import Config  # noqa: PLC0415

        with self._making:
            return self._sessions(self.region).client(
                "kms",
                region_name=self.region,
                endpoint_url=self.endpoint_url,
                config=Config(
                    connect_timeout=_CONNECT_SECONDS,
                    read_timeout=_READ_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": _TRIES},
                    max_pool_connections=32,
                ),
            )

    @contextmanager
    def _naming(self, verb: str) -> Iterator[None]:
        """Turn the client's errors into ours, with the key's name and region; a key that is silent is not asked."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        silent_until, said = self._silence
        if time.monotonic() < silent_until:
            raise self._unavailable(verb, said, _REACH)
        try:
            yield
        except ClientError as error:
            code, words = str(error.response["Error"].get("Code", "")), error.response["Error"].get("Message", "")
            said = f"{code} {words}".rstrip(". ")
            if error.response["ResponseMetadata"]["HTTPStatusCode"] >= _FAILING:
                self._silence = (time.monotonic() + SILENT_FOR, said)
            raise self._unavailable(verb, said, _MENDS.get(code, _REACH)) from error
        except BotoCoreError as error:
            self._silence = (time.monotonic() + SILENT_FOR, str(error).rstrip(". "))
            raise self._unavailable(verb, self._silence[1], _REACH) from error

    def _unavailable(self, verb: str, said: str, mend: str) -> KmsUnavailable:
        return KmsUnavailable(f"Could not {verb} the KMS key {self.key} in {self.region}: {said}.", mend=mend)

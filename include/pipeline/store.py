"""One S3 bucket: the few verbs the engine needs, each of which names the object when it fails."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote_plus

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.handlers import validate_ascii_metadata
from botocore.parsers import ResponseParserError

from include.errors import BackupError

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3.client import S3Client

    from include.policy.model import RetrievalTier

_ABSENT = {"404", "NoSuchKey", "NoSuchVersion", "NotFound"}
_TAKEN = {"412", "PreconditionFailed"}
_BUSY = {"409", "ConditionalRequestConflict"}
_GONE = {"NoSuchUpload"}
_DENIED = {"403", "AccessDenied"}
_PAST_END = {"416", "InvalidRange"}
_UNREPLICATED = {"ReplicationConfigurationNotFoundError", "NoSuchReplicationConfiguration", "NotImplemented"}
"""No replication, or a store that has none."""
_FAILING = {429, 500, 502, 503, 504}
_COLD, _NOT_TO_THAW = "InvalidObjectState", {"RestoreAlreadyInProgress", "ObjectAlreadyInActiveTierError"}
COLD_CLASSES = {"GLACIER", "DEEP_ARCHIVE"}
"""Storage classes whose objects cannot be read before they are retrieved."""

STALL_LIMIT = timedelta(minutes=5)
_TRIES = 6
_LONGEST_BACKOFF = 31.0
"""Seconds that the client waits between so many tries at most: a random share of 1, 2, 4, 8 and 16."""
_READS = 3
"""How often an answer is asked for that was cut after it had begun: the client itself does not ask again for a body."""

_MENDS = {
    "NoSuchBucket": "Check the bucket's name, or create it.",
    "ExpiredToken": "Renew the credentials: they were given for a time, which is over.",
    "InvalidAccessKeyId": "Correct the access key in the credentials: the store does not know it.",
    "SignatureDoesNotMatch": "Correct the secret key in the credentials: it is not this access key's.",
    "RequestTimeTooSkewed": "Set this machine's clock: the store does not believe it.",
    "QuotaExceeded": "Raise the quota of the bucket or of its owner, or make room.",
    "GlacierExpeditedRetrievalNotAvailable": "AWS has no room for expedited retrievals now: ask for Standard.",
}
"""What a person does about the store's own words; other words get the general advice."""


class StoreError(BackupError):
    """The object store refused, or did not answer."""


class StoreAway(StoreError):
    """The store of `bucket` did not answer, or answered with an error of its own, however often it was asked."""

    def __init__(self, what: str, *, mend: str, bucket: str) -> None:
        super().__init__(what, mend=mend)
        self.bucket = bucket


class ObjectMissing(StoreError):
    """An object that must exist does not."""


class ObjectExists(StoreError):
    """An object was to be created, and exists already."""


class ObjectCut(StoreError):
    """An object that has fewer bytes than were stored."""


class NotAllowed(StoreError):
    """These credentials may not do that."""


class ObjectCold(StoreError):
    """An object that is in Glacier, and was not retrieved."""


class ObjectChanged(StoreError):
    """An object is no longer the version that was listed."""


@dataclass(frozen=True)
class ObjectVersion:
    """One version of an object, or the marker of its deletion; `modified` is the store's clock, aware UTC."""

    key: str
    version_id: str
    modified: datetime
    size: int
    etag: str
    deleted: bool
    latest: bool


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing tells it: its stored size in bytes, and its storage class."""

    key: str
    size: int
    storage_class: str

    @property
    def is_cold(self) -> bool:
        """Whether it has to be retrieved before it can be read; it may have been."""
        return self.storage_class in COLD_CLASSES


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload that was begun and neither completed nor aborted.

    `touched` is when its newest part arrived, or when it began: the store's clock, aware UTC. `bytes` is what it holds.
    """

    key: str
    upload_id: str
    touched: datetime
    bytes: int


@dataclass(frozen=True)
class ReplicationRule:
    """An enabled rule by which a bucket replicates what begins with `prefix` into another one."""

    bucket: str
    prefix: str


class Bucket:
    """A bucket, reached with the credentials of a boto3 session (which may refresh them while a long backup runs).

    Every body is signed with its SHA-256, which every S3 store checks, and carries the same as `x-amz-checksum-sha256`,
    which newer stores check and keep.

    A call that the store does not answer, or answers with an error of its own, is tried again, a random and growing
    time later, and given up within `stall_limit` (a minute at least; the policy's, where there is one).
    """

    def __init__(
        self,
        session: boto3.Session,
        name: str,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        connections: int = 32,
        stall_limit: timedelta = STALL_LIMIT,
    ) -> None:
        self.name = name
        self.endpoint_url = endpoint_url
        self._session, self._region = session, region
        self._lock: tuple[Literal["GOVERNANCE", "COMPLIANCE"], Callable[[str], datetime | None]] | None = None
        self._tried = threading.local()
        one_try = max((stall_limit.total_seconds() - _LONGEST_BACKOFF) / _TRIES, 1.0)
        self.client: S3Client = session.client(
            "s3",
            region_name=region,
            endpoint_url=endpoint_url,
            config=Config(
                s3={"addressing_style": "path" if endpoint_url else "auto", "payload_signing_enabled": True},
                retries={"mode": "standard", "total_max_attempts": _TRIES},
                max_pool_connections=connections,
                connect_timeout=one_try / 4,
                read_timeout=one_try * 3 / 4,
                tcp_keepalive=True,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        events = self.client.meta.events
        for operation in ("PutObject", "CreateMultipartUpload"):
            events.unregister(f"before-parameter-build.s3.{operation}", validate_ascii_metadata)
            events.register(f"before-parameter-build.s3.{operation}", _take_expires)
            events.register(f"before-call.s3.{operation}", _give_expires)
            events.register(f"before-send.s3.{operation}", _send_utf8)
        events.register("needs-retry.s3", self._count_try)

    def __repr__(self) -> str:
        return f"s3://{self.name}"

    def environment(self) -> dict[str, str]:
        """AWS's variables, with which a child process reaches the same store, and its secret; not the bucket's name.

        What this machine's own files of AWS say is kept from the child.
        """
        credentials = self._session.get_credentials()
        known = credentials.get_frozen_credentials() if credentials else None
        optional = {
            "AWS_ACCESS_KEY_ID": known and known.access_key,
            "AWS_SECRET_ACCESS_KEY": known and known.secret_key,
            "AWS_SESSION_TOKEN": known and known.token,
            "AWS_REGION": self._region or self._session.region_name,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            # boto3 has no word for it: a session's own setting, else the variable of the same name.
            "AWS_CA_BUNDLE": self._session._session.get_config_variable("ca_bundle"),
        }
        return {
            **{name: str(value) for name, value in optional.items() if value},
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def lock_with(
        self, mode: Literal["governance", "compliance"], locked_until: Callable[[str], datetime | None]
    ) -> None:
        """From now on, lock what is written for as long as `locked_until` says of its key; None is not locked."""
        self._lock = ("GOVERNANCE" if mode == "governance" else "COMPLIANCE"), locked_until

    @property
    def locks(self) -> bool:
        """Whether what is written here is locked."""
        return self._lock is not None

    def lock_of(self, key: str) -> dict[str, Any]:
        """The lock of an object that is written now, as boto3 takes it; nothing for one that is not locked."""
        if self._lock is None or (until := self._lock[1](key)) is None:
            return {}
        return {"ObjectLockMode": self._lock[0], "ObjectLockRetainUntilDate": until}

    def retain(self, key: str, until: datetime) -> bool:
        """Lock the current version of an object at least until then; whether it was not. Needs `lock_with`."""
        mode = self._lock[0] if self._lock else "GOVERNANCE"
        with self.naming("look at the lock of", key):
            there = self.client.head_object(Bucket=self.name, Key=key)
        if (told := there.get("ObjectLockRetainUntilDate")) is not None and told >= until:
            return False
        with self.naming("lock", key):
            self.client.put_object_retention(
                Bucket=self.name,
                Key=key,
                VersionId=there["VersionId"],
                Retention={"Mode": there.get("ObjectLockMode", mode), "RetainUntilDate": until},
            )
        return True

    def put(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Store one small object."""
        with self.naming("write", key):
            self.client.put_object(
                Bucket=self.name,
                Key=key,
                Body=body,
                ChecksumSHA256=checksum(body),
                ContentType=content_type,
                Metadata=dict(metadata or {}),
                **self.lock_of(key),
            )

    def create(self, key: str, body: bytes, *, content_type: str = "application/json") -> None:
        """Store one small object that must not exist yet (`If-None-Match: *`); raises `ObjectExists`.

        A store may ignore the condition (Ceph does): whoever commits with it reads the oldest version back.
        """
        for last in (False, False, True):
            try:
                with self.naming("create", key):
                    self.client.put_object(
                        Bucket=self.name,
                        Key=key,
                        Body=body,
                        IfNoneMatch="*",
                        ChecksumSHA256=checksum(body),
                        ContentType=content_type,
                        **self.lock_of(key),
                    )
            except ObjectExists:
                # An answer that was lost makes the client send the same bytes again: finding our own is success.
                if self.read_oldest(key) != body:
                    raise
            except _Conflict:
                if last:
                    raise
                continue
            return

    def read(self, key: str, *, version_id: str | None = None) -> bytes:
        """A small object, whole; raises `ObjectMissing`."""
        return self._read_body(key, **_version(version_id))

    def read_oldest(self, key: str) -> bytes:
        """The first version ever written under `key`: what committed it, whatever came later."""
        versions = [version for version in self.versions(key) if version.key == key and not version.deleted]
        if not versions:
            raise ObjectMissing(f"{self}/{key} does not exist.", mend="See `python -m include.cli list` for what does.")
        return self.read(key, version_id=versions[-1].version_id)

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """The bytes `[start, end)` of an object; raises `ObjectMissing`, or `ObjectCut` when it is shorter."""
        body = self._read_body(key, Range=f"bytes={start}-{end - 1}")
        if len(body) != end - start:
            raise ObjectCut(
                f"{self}/{key} has {start + len(body)} bytes where at least {end} were stored.",
                mend="It was cut or replaced: use the replica's copy or another backup.",
            )
        return body

    def open_version(
        self, key: str, *, version_id: str, etag: str, chunk_bytes: int = 1 << 20
    ) -> tuple[Mapping[str, Any], Iterator[bytes]]:
        """The headers and the content of one version; raises `ObjectChanged` when it is not the one that was listed.

        Content that is cut on its way goes on where it was cut.
        """
        wanted: Any = {"Bucket": self.name, "Key": key, "IfMatch": etag, **_version(version_id)}
        with self.naming("read", key):
            answer = self.client.get_object(**wanted)

        def content() -> Iterator[bytes]:
            body, position, told, reads = answer["Body"], 0, 0, _READS
            while True:
                try:
                    with self.naming("read", key):
                        for chunk in body.iter_chunks(chunk_bytes):
                            position += len(chunk)
                            if position > told:
                                yield chunk[told - position :]
                                told = position
                    return
                except _AnswerCut:
                    reads -= 1
                    if not reads:
                        raise
                with self.naming("read", key):
                    again = self.client.get_object(**wanted, Range=f"bytes={told}-")
                # Not every store cuts a range out of a version: what was told before is passed over.
                body, position = again["Body"], told if "ContentRange" in again else 0

        return answer, content()

    def tags(self, key: str, *, version_id: str | None = None) -> dict[str, str]:
        """The tags of an object."""
        with self.naming("read the tags of", key):
            answer = self.client.get_object_tagging(Bucket=self.name, Key=key, **_version(version_id))
        return {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}

    def size(self, key: str) -> int:
        """The stored size in bytes; raises `ObjectMissing`."""
        with self.naming("look at", key):
            return self.client.head_object(Bucket=self.name, Key=key)["ContentLength"]

    def keys(self, prefix: str) -> Iterator[str]:
        """Every current key under a prefix, page by page, in the store's order."""
        for stored in self.objects(prefix):
            yield stored.key

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """Every current object under a prefix, page by page, in the store's order."""
        asked: Any = {"Bucket": self.name, "Prefix": prefix, "EncodingType": "url"}
        while True:
            with self.naming("list", prefix):
                page = self.client.list_objects_v2(**asked)
            for entry in page.get("Contents", []):
                yield StoredObject(_listed_key(page, entry), entry["Size"], entry.get("StorageClass", "STANDARD"))
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        """Every version and deletion marker under a prefix, by key, newest first, page by page."""
        asked: Any = {"Bucket": self.name, "Prefix": prefix, "EncodingType": "url"}
        while True:
            with self.naming("list the versions of", prefix):
                page = self.client.list_object_versions(**asked)
            entries: list[Any] = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            found = [
                ObjectVersion(
                    key=_listed_key(page, entry),
                    version_id=entry["VersionId"],
                    modified=entry["LastModified"].astimezone(UTC),
                    size=entry.get("Size", 0),
                    etag=entry.get("ETag", ""),
                    deleted="Size" not in entry,
                    latest=entry["IsLatest"],
                )
                for entry in entries
            ]
            # The store gives versions and markers as two lists. Where a second is shared (AWS keeps no finer time), the
            # version goes before the marker: an object too many is better than one too few.
            found.sort(
                key=lambda entry: (entry.key.encode(), -entry.modified.timestamp(), not entry.latest, entry.deleted)
            )
            yield from found
            if not page.get("IsTruncated"):
                return
            asked |= _next_page(page, found)

    def clock(self) -> datetime:
        """The store's own time, as its `Date` header tells it: whole seconds, aware UTC."""
        with self.naming("reach", ""):
            answer = self.client.head_bucket(Bucket=self.name)
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])

    def is_versioned(self) -> bool:
        """Whether the bucket keeps every version."""
        with self.naming("ask for the versioning of", ""):
            return self.client.get_bucket_versioning(Bucket=self.name).get("Status") == "Enabled"

    def replication_rules(self) -> list[ReplicationRule]:
        """The enabled rules of the bucket's own replication; a rule that asks for tags is none of them.

        Raises `NotAllowed` when these credentials may not ask.
        """
        try:
            with self.naming("ask for the replication of", ""):
                answer = self.client.get_bucket_replication(Bucket=self.name)
        except StoreError as error:
            if isinstance(error.__cause__, ClientError) and error.__cause__.response["Error"]["Code"] in _UNREPLICATED:
                return []
            raise
        rules = []
        # Ceph's gateway answers, and has none.
        for rule in answer.get("ReplicationConfiguration", {}).get("Rules", []):
            only: Any = rule.get("Filter", {})
            tagged = "Tag" in only or only.get("And", {}).get("Tags")
            if rule["Status"] == "Enabled" and not tagged:
                prefix = rule.get("Prefix") or only.get("Prefix") or only.get("And", {}).get("Prefix", "")
                rules.append(ReplicationRule(rule["Destination"]["Bucket"].rpartition(":")[2], prefix))
        return rules

    def replication_status(self, key: str) -> str | None:
        """What became of an object's replication: `PENDING`, `COMPLETED` or `FAILED`; None when no rule is for it.

        Raises `ObjectMissing`.
        """
        with self.naming("look at", key):
            return self.client.head_object(Bucket=self.name, Key=key).get("ReplicationStatus")

    def retrieval(self, key: str) -> Literal["warm", "cold", "coming", "retrieved"]:
        """How an object stands to Glacier; raises `ObjectMissing`. All but *cold* and *coming* can be read."""
        with self.naming("look at", key):
            answer = self.client.head_object(Bucket=self.name, Key=key)
        if answer.get("StorageClass") not in COLD_CLASSES:
            return "warm"
        told = answer.get("Restore", "")
        return "coming" if 'ongoing-request="true"' in told else "retrieved" if told else "cold"

    def retrieve(self, key: str, *, tier: RetrievalTier, days: int) -> None:
        """Ask for a readable copy of an object in Glacier, for so many days; one that is coming, or warm, is fine.

        One that was retrieved already stays for so many days from now.
        """
        with contextlib.suppress(_NothingToRetrieve), self.naming("retrieve", key):
            self.client.restore_object(
                Bucket=self.name, Key=key, RestoreRequest={"Days": days, "GlacierJobParameters": {"Tier": tier}}
            )

    def delete(self, key: str) -> None:
        """Delete the current version of one object; an absent one is fine."""
        with self.naming("delete", key):
            self.client.delete_object(Bucket=self.name, Key=key)

    def hide(self, key: str) -> str | None:
        """Put a deletion marker on an object, whose versions all stay; returns the marker's version."""
        with self.naming("hide", key):
            return self.client.delete_object(Bucket=self.name, Key=key).get("VersionId")

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        """Delete one version, or one deletion marker, for good; an absent one is fine. Object Lock may refuse it.

        A lock in governance mode gives way to `bypass_governance`, for who is allowed to.
        """
        bypass: Any = {"BypassGovernanceRetention": True} if bypass_governance else {}
        with self.naming(f"delete version {version_id} of", key):
            self.client.delete_object(Bucket=self.name, Key=key, VersionId=version_id, **bypass)

    def locked_until(self, key: str, version_id: str) -> datetime | None:
        """Until when Object Lock keeps a version from being deleted; the end of time under the store's own legal hold.

        None where nothing does, or the version is gone.
        """
        try:
            with self.naming("look at", key):
                answer = self.client.head_object(Bucket=self.name, Key=key, VersionId=version_id)
        except ObjectMissing:
            return None
        if answer.get("ObjectLockLegalHoldStatus") == "ON":
            return datetime.max.replace(tzinfo=UTC)
        until = answer.get("ObjectLockRetainUntilDate")
        return until.astimezone(UTC) if until else None

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Every multipart upload under a prefix that was begun and not ended, page by page."""
        with self.naming("list the unfinished uploads of", prefix):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix)
            begun = [entry for page in pages for entry in page.get("Uploads", [])]
        for entry in begun:
            key, upload_id, touched, size = entry["Key"], entry["UploadId"], entry["Initiated"], 0
            try:
                with self.naming("list the parts of", key):
                    for parts in self.client.get_paginator("list_parts").paginate(
                        Bucket=self.name, Key=key, UploadId=upload_id
                    ):
                        for part in parts.get("Parts", []):
                            touched, size = max(touched, part["LastModified"]), size + part["Size"]
            except UploadGone:
                continue  # it ended while we looked
            yield UnfinishedUpload(key, upload_id, touched.astimezone(UTC), size)

    def uploads_under_way(self) -> dict[str, datetime]:
        """The keys that a multipart upload is being made to, and when the oldest of each began; aware UTC."""
        begun: dict[str, datetime] = {}
        with self.naming("list the unfinished uploads of", ""):
            for page in self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name):
                for entry in page.get("Uploads", []):
                    moment = entry["Initiated"].astimezone(UTC)
                    begun[entry["Key"]] = min(begun.get(entry["Key"], moment), moment)
        return begun

    def abort(self, upload: UnfinishedUpload) -> None:
        """Throw an unfinished upload away, with what it holds; one that has ended is fine."""
        with contextlib.suppress(UploadGone), self.naming("abort", upload.key):
            self.client.abort_multipart_upload(Bucket=self.name, Key=upload.key, UploadId=upload.upload_id)

    def _read_body(self, key: str, **wanted: Any) -> bytes:
        for last in (*(False,) * (_READS - 1), True):
            try:
                with self.naming("read", key):
                    body: bytes = self.client.get_object(Bucket=self.name, Key=key, **wanted)["Body"].read()
                break
            except _AnswerCut:
                if last:
                    raise
        return body

    def _count_try(self, attempts: int, **_: object) -> None:
        """What the client tells before it decides whether to try again; answering nothing leaves that to it."""
        self._tried.times = attempts

    @contextlib.contextmanager
    def naming(self, verb: str, key: str) -> Iterator[None]:
        """Turn the client's errors into ours, with the object's name, and never with a credential."""
        self._tried.times = 0
        try:
            yield
        except ClientError as error:
            code, answer = str(error.response["Error"].get("Code", "")), error.response["Error"].get("Message", "")
            place = f"{self}/{key}" if key else f"{self}"
            if code in _TAKEN:
                kind, why = (
                    (ObjectExists, "it exists already")
                    if verb == "create"
                    else (ObjectChanged, "it changed since it was listed")
                )
                raise kind(
                    f"Could not {verb} {place}: {why}.",
                    mend="Start again: what is there now was not made by this try.",
                ) from error
            if code in _BUSY:
                raise _Conflict(f"Could not {verb} {place}: another writer is at it.", mend="Start again.") from error
            if code in _ABSENT:
                raise ObjectMissing(
                    f"Could not {verb} {place}: it does not exist.",
                    mend="Check the bucket's name; use the replica's copy or another backup.",
                ) from error
            if code == _COLD:
                raise ObjectCold(
                    f"Could not {verb} {place}: it is in Glacier.",
                    mend="Retrieve its archive first: `python -m include.cli thaw`, with the archive's id.",
                ) from error
            if code in _NOT_TO_THAW:
                raise _NothingToRetrieve(f"Could not {verb} {place}: {code}.", mend="Nothing is to be done.") from error
            if code in _GONE:
                raise UploadGone(f"Could not {verb} {place}: its upload is gone.", mend="Start again.") from error
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in _FAILING and code not in _MENDS:
                raise StoreAway(
                    f"Could not {verb} {place}: {code} {answer} ({self._tries()})",
                    mend="The store fails, or has too much to do: look at its state, lower pipeline.parts_in_flight "
                    "if it asks to slow down, and start again.",
                    bucket=self.name,
                ) from error
            if code in _PAST_END:
                raise ObjectCut(
                    f"Could not {verb} {place}: it has fewer bytes than were stored.",
                    mend="It was cut or replaced: use the replica's copy or another backup.",
                ) from error
            raise (NotAllowed if code in _DENIED else StoreError)(
                f"Could not {verb} {place}: {code} {answer}".rstrip(". ") + ".",
                mend=_MENDS.get(code, "Check the endpoint, the credentials and what they are allowed to do."),
            ) from error
        except ResponseParserError as error:
            raise StoreError(
                f"Could not {verb} {self}/{key}: the answer is not what S3 answers ({error}).",
                mend="Start again; look at what stands between here and the store.",
            ) from error
        except (ResponseStreamingError, IncompleteReadError, ReadTimeoutError) as error:
            raise _AnswerCut(
                f"Could not {verb} {self}/{key}: the answer was cut ({error}; {self._tries()}).",
                mend="Start again; look at the network.",
            ) from error
        except BotoCoreError as error:
            raise StoreAway(
                f"Could not {verb} {self}/{key}: {error} ({self._tries()})",
                mend="Check that the endpoint is reachable and the credentials are set.",
                bucket=self.name,
            ) from error

    def _tries(self) -> str:
        times = self._tried.times
        return f"tried {times} times" if times > 1 else "tried once"


class _AnswerCut(StoreError):
    """The store answered, and the answer did not arrive whole."""


class _NothingToRetrieve(StoreError):
    """An object that is being retrieved, or can be read as it is."""


class _Conflict(StoreError):
    """Two conditional writes met; S3 asks the client to try again."""


class UploadGone(StoreError):
    """The store knows no such upload: it was completed, or aborted."""


def _listed_key(page: Any, entry: Any) -> str:
    """A listed key. The client's own decoding and paging are not used.

    They decode what Ceph does not encode (its markers: after a page that ends with `%2F` keys were skipped), and begin
    again after a page that ends with a key called `None`.
    """
    key: str = entry["Key"]
    return unquote_plus(key) if page.get("EncodingType") == "url" else key


def _next_page(page: Any, found: list[ObjectVersion]) -> dict[str, str]:
    """Where a listing of versions goes on: after the last of a page, whose key not every store spells alike."""
    version_id = page.get("NextVersionIdMarker", "")
    last = found[-1].key if found else ""
    if any(version.version_id == version_id for version in found if version.key == last):
        return {"KeyMarker": last, "VersionIdMarker": version_id}
    return {
        "KeyMarker": _listed_key(page, {"Key": page["NextKeyMarker"]}),
        **({"VersionIdMarker": version_id} if version_id else {}),
    }


def checksum(body: bytes) -> str:
    """SHA-256 as S3's headers want it."""
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


def _take_expires(params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
    """`Expires` as it was written, which need not be a date: the client would parse it, or refuse it."""
    if "Expires" in params:
        context["expires"] = params.pop("Expires")


def _give_expires(params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
    if "expires" in context:
        params["headers"]["Expires"] = context["expires"]


def _send_utf8(request: AWSPreparedRequest, **_: object) -> None:
    """Headers beyond ASCII leave as the UTF-8 that they were signed as; HTTP's own library encodes as Latin-1."""
    for name, value in request.headers.items():
        if isinstance(value, str) and not value.isascii():
            request.headers.replace_header(name, value.encode().decode("latin-1"))


def _version(version_id: str | None) -> dict[str, Any]:
    return {"VersionId": version_id} if version_id is not None else {}

"""A bucket: whether it answers, keeps versions, takes and gives back what a backup writes, and what it guards against.

Whatever is written for it lies under `state/probe-…` and is deleted again, every version of it where that is allowed.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from botocore.exceptions import BotoCoreError, ClientError

from include.backup.checks.check import Facts, NotReady, Remark, demand, remark
from include.pipeline.store import Bucket, NotAllowed, ObjectExists, StoreError
from include.repository.layout import PROBES
from include.sources.objects import require_versions, versioning_command


def reach(bucket: Bucket) -> Facts:
    """Whether the bucket exists, and its objects can be listed (R4.2)."""
    empty = next(bucket.keys(""), None) is None
    return {"bucket": bucket.name, "empty": empty}


def source(bucket: Bucket) -> Facts:
    """Whether the application's objects can be read as they were: by version, with their content (R4.1, R2.2)."""
    require_versions(bucket)
    first = next((version for version in islice(bucket.versions(""), 100) if not version.deleted), None)
    if first is not None:
        _, content = bucket.open_version(first.key, version_id=first.version_id, etag=first.etag)
        next(content, b"")
    return {"objects": first is not None}


def uploads_told(bucket: Bucket) -> Facts:
    """Whether the uploads that are under way can be listed: an increment finds by it what they become (R1.2)."""
    try:
        return {"uploads_under_way": len(bucket.uploads_under_way())}
    except NotAllowed as refused:
        raise Remark(
            f"{refused.what} An object that is being uploaded in parts during a backup may be in no increment, and "
            "only in the next snapshot.",
            mend="Allow s3:ListBucketMultipartUploads.",
        ) from None


def versioned(bucket: Bucket) -> Facts:
    """Whether the bucket keeps versions (R3.1)."""
    demand(bucket.is_versioned(), f"{bucket} keeps no versions (R3.1).", mend=versioning_command(bucket))
    return {"versioned": True}


def round_trip(bucket: Bucket) -> Facts:
    """Whether what is written is listed, and reads back, whole and in part (R4.1)."""
    with _probe(bucket) as key:
        content = secrets.token_bytes(64)
        bucket.create(key, content)
        demand(bucket.read(key) == content, f"{bucket}/{key} does not read back as it was written.")
        demand(
            bucket.read_range(key, 16, 48) == content[16:48], f"{bucket} does not give the range of {key} asked for."
        )
        demand(key in bucket.keys(key), f"{bucket} does not list what was just written.")
        demand(bucket.read_oldest(key) == content, f"{bucket} does not list the version that was just written.")
    return {"written": True}


def multipart(bucket: Bucket) -> Facts:
    """Whether an upload in parts can be begun, fed and given up (R4.1)."""
    with _probe(bucket) as key, _words(bucket, "take an upload in parts"):
        upload = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)["UploadId"]
        try:
            bucket.client.upload_part(Bucket=bucket.name, Key=key, UploadId=upload, PartNumber=1, Body=b"probe")
        finally:
            bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=key, UploadId=upload)
    return {"multipart": True}


def conditional_writes(bucket: Bucket) -> Facts:
    """Whether a second object of one name is refused (`If-None-Match: *`); if not, the oldest version counts."""
    with _probe(bucket) as key:
        bucket.create(key, b"first")
        try:
            bucket.create(key, b"second")
        except ObjectExists:
            return {"conditional_writes": True}
        demand(bucket.read_oldest(key) == b"first", f"{bucket} forgets what a second writer wrote over.")
    raise Remark(
        f"{bucket} ignores `If-None-Match`: a second writer of a manifest is not refused.",
        mend="Nothing is to be done while the bucket keeps versions: the oldest one is the backup.",
    )


def checksums(bucket: Bucket) -> Facts:
    """Whether the store refuses content that does not have the SHA-256 it is sent with."""
    wrong = base64.b64encode(hashlib.sha256(b"another content").digest()).decode()
    with _probe(bucket) as key:
        try:
            bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"content", ChecksumSHA256=wrong)
        except ClientError:
            return {"checksums": True}
    raise Remark(
        f"{bucket} does not check `x-amz-checksum-sha256`: it took content with the checksum of another.",
        mend="Nothing is to be done: requests are signed with their content's SHA-256, and every backup is read back.",
    )


def locks(bucket: Bucket) -> Facts:
    """Whether the bucket can lock objects, so that nobody deletes a backup before its time."""
    try:
        bucket.client.get_object_lock_configuration(Bucket=bucket.name)
    except ClientError as error:
        raise Remark(
            f"{bucket} has no Object Lock ({error.response['Error'].get('Code')}): "
            "whoever may delete versions can delete backups.",
            mend="Make the bucket with Object Lock, or let nobody delete versions in it.",
        ) from None
    return {"object_lock": True}


def region(bucket: Bucket, wanted: str) -> Facts:
    """Whether the bucket lies in the policy's region (R3.1, R3.2)."""
    with _words(bucket, "say where it is"):
        found = bucket.client.get_bucket_location(Bucket=bucket.name).get("LocationConstraint") or "us-east-1"
    remark(
        found != wanted,
        f"{bucket} lies in {found}, and the policy says {wanted}.",
        mend="Correct the region in the policy's storage section, or move the bucket.",
    )
    return {"region": found}


@contextmanager
def _probe(bucket: Bucket) -> Iterator[str]:
    """A key to write to; whatever is under it at the end is deleted. Raises a `Remark` when something has to stay."""
    key = PROBES + secrets.token_hex(8)
    try:
        yield key
    except BaseException:
        _erase(bucket, key)
        raise
    if left := _erase(bucket, key):
        raise Remark(
            f"{bucket}/{key} stays: {left}",
            mend="It is a few bytes. Allow s3:DeleteObjectVersion on state/probe-* to have it removed.",
        )


def _erase(bucket: Bucket, key: str) -> str:
    """Delete every version of the key; why something of it stays, in the store's words."""
    try:
        for version in list(bucket.versions(key)):
            bucket.client.delete_object(Bucket=bucket.name, Key=version.key, VersionId=version.version_id)
    except (StoreError, ClientError, BotoCoreError) as error:
        return f"{error}."
    return ""


@contextmanager
def _words(bucket: Bucket, verb: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        said = error.response["Error"]
        raise NotReady(
            f"{bucket} does not {verb}: {said.get('Code')} {said.get('Message', '')}".rstrip(". ") + ".",
            mend="Let the connection's credentials do it, or use a store that can.",
        ) from None

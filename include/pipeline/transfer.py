"""Large objects on their way to a bucket and back: parts and ranges side by side, in bounded memory."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlencode

from include.pipeline.store import Bucket, StoreError, UploadGone, checksum


class Upload:
    """One object written as it is made, in parts of `part_bytes`, at most `in_flight` of them on their way.

    `room` is taken by each part on its way: uploads that share it share its memory. `waited` is the seconds that
    `write` has stood still for the network. `headers` are boto3's (`ContentType`, …; `Expires` is text).

    Use as a context manager: leaving it without `complete()` removes what was sent, so that nothing that looks finished
    stays.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        *,
        part_bytes: int,
        in_flight: int,
        room: threading.Semaphore | None = None,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._bucket, self.key = bucket, key
        self._part_bytes, self._in_flight = part_bytes, in_flight
        self._room = room or threading.Semaphore(in_flight)
        self.waited = 0.0
        self._headers: dict[str, Any] = {
            "ContentType": "application/octet-stream",
            **(headers or {}),
            "Metadata": dict(metadata or {}),
            # Some stores take a plus for a plus.
            **({"Tagging": urlencode(tags, quote_via=quote)} if tags else {}),
            **bucket.lock_of(key),
        }
        self._tags = dict(tags or {})
        self._buffer = bytearray()
        self._upload_id: str | None = None
        self._parts: list[Any] = []
        self._sending: deque[Future[Any]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._sent = self._sent_bytes = 0
        self._completed = False

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._upload_id is not None and not self._completed:
            # The error that brought us here is the one to report; what stays behind is the reaper's.
            with contextlib.suppress(StoreError), self._bucket.naming("abort", self.key):
                self._bucket.client.abort_multipart_upload(
                    Bucket=self._bucket.name, Key=self.key, UploadId=self._upload_id
                )

    def write(self, data: bytes) -> None:
        """Take the next bytes; waits when `in_flight` parts are on their way. Raises `StoreError`."""
        self._buffer += data
        while len(self._buffer) >= self._part_bytes:
            part = bytes(memoryview(self._buffer)[: self._part_bytes])
            del self._buffer[: self._part_bytes]
            self._send(part)

    def complete(self) -> None:
        """Send what is left and make the object appear, whole; raises `StoreError`."""
        if self._upload_id is None:
            with self._bucket.naming("write", self.key):
                body = bytes(self._buffer)
                self._bucket.client.put_object(
                    Bucket=self._bucket.name, Key=self.key, Body=body, ChecksumSHA256=checksum(body), **self._headers
                )
        else:
            if self._buffer:
                self._send(bytes(self._buffer))
            while self._sending:
                self._parts.append(self._sending.popleft().result())
            try:
                with self._bucket.naming("complete", self.key):
                    self._bucket.client.complete_multipart_upload(
                        Bucket=self._bucket.name,
                        Key=self.key,
                        UploadId=self._upload_id,
                        MultipartUpload={"Parts": self._parts},
                    )
            except UploadGone:
                # An answer that was lost makes the client ask again, and some stores know the upload no more.
                if not self._has_appeared():
                    raise
            self._insist()
        self._completed = True

    def _insist(self) -> None:
        """Tags and lock, once more: neither Ceph nor ministack keeps all that an upload in parts began with."""
        if until := self._headers.get("ObjectLockRetainUntilDate"):
            self._bucket.retain(self.key, until)
        if not self._tags:
            return
        with self._bucket.naming("tag", self.key):
            self._bucket.client.put_object_tagging(
                Bucket=self._bucket.name,
                Key=self.key,
                Tagging={"TagSet": [{"Key": name, "Value": value} for name, value in self._tags.items()]},
            )

    def _has_appeared(self) -> bool:
        """Whether the object is there, with the size and the ETag (the MD5 of its parts' MD5s) of what was sent."""
        with self._bucket.naming("look at", self.key):
            found = self._bucket.client.head_object(Bucket=self._bucket.name, Key=self.key)
        try:
            digests = b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in self._parts)
        except ValueError:
            return False
        etag = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(self._parts)}"
        return (found["ContentLength"], found["ETag"].strip('"')) == (self._sent_bytes, etag)

    def _send(self, part: bytes) -> None:
        if self._upload_id is None or self._pool is None:
            with self._bucket.naming("write", self.key):
                self._upload_id = self._bucket.client.create_multipart_upload(
                    Bucket=self._bucket.name, Key=self.key, ChecksumAlgorithm="SHA256", **self._headers
                )["UploadId"]
            self._pool = ThreadPoolExecutor(self._in_flight, thread_name_prefix="upload")
        began = time.monotonic()
        if len(self._sending) >= self._in_flight:
            self._parts.append(self._sending.popleft().result())
        self._room.acquire()
        self.waited += time.monotonic() - began
        self._sent += 1
        self._sent_bytes += len(part)
        sending = self._pool.submit(self._send_part, self._upload_id, self._sent, part)
        sending.add_done_callback(lambda _: self._room.release())
        self._sending.append(sending)

    def _send_part(self, upload_id: str, number: int, part: bytes) -> Any:
        digest = checksum(part)
        with self._bucket.naming("write", self.key):
            answer = self._bucket.client.upload_part(
                Bucket=self._bucket.name,
                Key=self.key,
                UploadId=upload_id,
                PartNumber=number,
                Body=part,
                ChecksumSHA256=digest,
            )
        kept = {"ChecksumSHA256": digest} if "ChecksumSHA256" in answer else {}
        return {"PartNumber": number, "ETag": answer["ETag"], **kept}


def fetch_ranges(bucket: Bucket, ranges: Iterator[tuple[str, int, int]], *, in_flight: int) -> Iterator[bytes]:
    """The bytes of each `(key, start, end)` in order, with `in_flight` on their way: one GET does not fill a link."""
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="fetch")
    coming: deque[Future[bytes]] = deque()
    try:
        for key, start, end in ranges:
            coming.append(pool.submit(bucket.read_range, key, start, end))
            if len(coming) > in_flight:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        # Whoever refuses the bytes abandons this, and the garbage collector may end it in the midst of anything: inside
        # the client's own locks, which a request that is still on its way needs. So nothing is waited for.
        pool.shutdown(wait=False, cancel_futures=True)

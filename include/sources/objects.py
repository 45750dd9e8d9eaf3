"""The application's object store: every object as of the consistency point, by version (R2.2).

AWS keeps whole seconds. As of second *t* means: created in *t* is included, deleted in *t* is ignored. An object that
the database names is taken even when it is younger, so that what is restored together belongs together.
"""

from __future__ import annotations

import hashlib
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from queue import Empty, Queue
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter

from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket, ObjectVersion
from include.policy import Component, Pipeline
from include.repository.manifest import Pack
from include.repository.packs import Member, PackWriter

_WAITING_ENTRIES = 1024

Item = TypeVar("Item")


class NotVersioned(BackupError):
    """A source bucket that does not keep versions: its past cannot be read."""


class ObjectGarbled(BackupError):
    """An object whose bytes did not arrive as they are stored."""


class IndexEntry(BaseModel):
    """One object of a backup: what it was called, its headers, and the members of packs that hold it, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    version_id: str
    modified: AwareDatetime
    etag: str
    size: int
    sha256: str
    headers: dict[str, str]
    metadata: dict[str, str]
    tags: dict[str, str]
    members: tuple[Member, ...]


class Deletion(BaseModel):
    """The deletion of an object, as an increment tells it: the store's marker, which hides what was before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    version_id: str
    modified: AwareDatetime
    deleted: Literal[True] = True


KEPT_HEADERS = {
    "ContentType": "ContentType",
    "ContentEncoding": "ContentEncoding",
    "ContentLanguage": "ContentLanguage",
    "ContentDisposition": "ContentDisposition",
    "CacheControl": "CacheControl",
    "ExpiresString": "Expires",
    "WebsiteRedirectLocation": "WebsiteRedirectLocation",
}
"""The headers an object is restored with, as boto3 spells them when they are read, and when they are written.

Its storage class, access list, lock and legal hold are not among them: a restored object has its new bucket's.
"""


def objects_as_of(
    versions: Iterable[ObjectVersion], moment: datetime, *, named: frozenset[str] = frozenset()
) -> Iterator[ObjectVersion]:
    """Of a listing by key, newest first: the version of each object as of the second of `moment`.

    An object that did not exist then, and is `named` by the database, is its oldest version after that moment.
    """
    second = moment.replace(microsecond=0)
    for key, history in groupby(versions, key=lambda version: version.key):
        later: ObjectVersion | None = None
        for version in history:
            created = version.modified.replace(microsecond=0)
            if created > second or (version.deleted and created == second):
                later = version if not version.deleted else later
                continue
            if not version.deleted:
                yield version
                break
            if later is not None and key in named:
                yield later
            break
        else:
            if later is not None and key in named:
                yield later


def objects_between(
    versions: Iterable[ObjectVersion],
    since: datetime,
    as_of: datetime,
    *,
    uploading: Mapping[str, datetime] | None = None,
) -> Iterator[ObjectVersion]:
    """Of a listing by key, newest first: all that turns the objects as of `since` into those of any second to `as_of`.

    Both border seconds belong to it: what was created or deleted in the second of `since` after its listing is in no
    listing yet, and what comes in the second of `as_of` after this one is the next window's. So a line may be told
    twice, and none is lost. Of one key and second only what a later look can see: its newest version, and a marker
    where that is newer still; so that of two lines of one key and second the order is known: the marker is the later.

    `uploading` are the keys of the uploads that were under way at `since`, and when each began: stores date an object
    from there, so one that was completed since then seems older than the window.
    """
    first, last = since.replace(microsecond=0), as_of.replace(microsecond=0)
    begun = {key: min(first, moment.replace(microsecond=0)) for key, moment in (uploading or {}).items()}
    for (key, second), within in groupby(
        versions, key=lambda version: (version.key, version.modified.replace(microsecond=0))
    ):
        if not begun.get(key, first) <= second <= last:
            continue
        for number, version in enumerate(within):
            if number == 0 or not version.deleted:
                yield version
            if not version.deleted:
                break


def component_of(key: str, components: Sequence[Component], unclassified: Component) -> Component:
    """The component whose prefix the key has; the one that takes what nobody named otherwise."""
    for component in components:
        if key.startswith(component.prefixes):
            return component
    return unclassified


def list_component(
    source: Bucket, component: Component, moment: datetime, *, named: frozenset[str], classified: Sequence[Component]
) -> Iterator[ObjectVersion]:
    """The objects of one component as of `moment`; a component without prefixes is everything that no other one has."""
    if component.prefixes:
        for prefix in component.prefixes:
            yield from objects_as_of(source.versions(prefix), moment, named=named)
    else:
        rest = (
            version for version in source.versions("") if component_of(version.key, classified, component) is component
        )
        yield from objects_as_of(rest, moment, named=named)


def list_changes(
    source: Bucket,
    component: Component,
    since: datetime,
    as_of: datetime,
    *,
    uploading: Mapping[str, datetime],
    classified: Sequence[Component],
) -> Iterator[ObjectVersion]:
    """What `objects_between` gives of one component; one without prefixes is everything that no other one has."""
    if component.prefixes:
        for prefix in component.prefixes:
            yield from objects_between(source.versions(prefix), since, as_of, uploading=uploading)
    else:
        rest = (
            version for version in source.versions("") if component_of(version.key, classified, component) is component
        )
        yield from objects_between(rest, since, as_of, uploading=uploading)


class Packing(ABC, Generic[Item]):
    """Packs one component's objects side by side, and tells its index as it goes.

    Use as a context manager, whose end stops the packing whatever ended it, and iterate it once: the entries come in
    the order in which their objects are done, and any failure is raised from the iteration. When it ends, every pack is
    durable, and `packs`, `objects` and `raw_bytes` are complete. `writer` makes what a worker fills.
    """

    def __init__(self, items: Iterator[Item], writer: Callable[[], PackWriter], *, workers: int) -> None:
        self._items, self._writer = items, writer
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._done: Queue[IndexEntry | BaseException | None] = Queue(_WAITING_ENTRIES)
        self._workers = [
            threading.Thread(target=self._work, name=f"pack-{number}", daemon=True) for number in range(workers)
        ]
        self.packs: list[Pack] = []
        self.objects = self.raw_bytes = 0

    @abstractmethod
    def _pack(self, item: Item, writer: PackWriter) -> IndexEntry:
        """Pack one object; runs in a worker."""

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let no worker outlive the block: one that waits to hand over is let go."""
        self._stopped.set()
        for worker in self._workers:
            while worker.is_alive():
                try:
                    self._done.get(timeout=0.05)
                except Empty:
                    worker.join(timeout=0.05)

    def __iter__(self) -> Iterator[IndexEntry]:
        running = len(self._workers)
        while running:
            entry = self._done.get()
            if isinstance(entry, BaseException):
                raise entry
            if entry is None:
                running -= 1
                continue
            self.objects += 1
            self.raw_bytes += entry.size
            yield entry

    def _until_stopped(self, content: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in content:
            if self._stopped.is_set():
                raise _StoppedError
            yield chunk

    def _work(self) -> None:
        try:
            with self._writer() as writer:
                while (item := self._next()) is not None:
                    self._done.put(self._pack(item, writer))
                writer.close()
                with self._lock:
                    self.packs.extend(writer.packs)
        except BaseException as failure:
            self._done.put(failure)
        else:
            self._done.put(None)

    def _next(self) -> Item | None:
        with self._lock:
            return next(self._items, None)


class PackedComponent(Packing[ObjectVersion]):
    """Packs the objects of a component as they are in their source.

    `found` are those of `named` that there are, once the iteration has ended.
    """

    def __init__(
        self,
        versions: Iterator[ObjectVersion],
        *,
        source: Bucket,
        bucket: Bucket,
        keyring: Keyring,
        component: Component,
        named: frozenset[str],
        attempt: str,
        policy: Pipeline,
        progress: Progress,
        room: threading.Semaphore | None = None,
    ) -> None:
        self._source, self._named = source, named
        self.found: set[str] = set()

        def writer() -> PackWriter:
            return PackWriter(
                bucket,
                keyring,
                component=component.name,
                retention_class=component.retention_class,
                attempt=attempt,
                policy=policy,
                progress=progress,
                room=room,
            )

        super().__init__(versions, writer, workers=policy.streams_at_once)

    def __iter__(self) -> Iterator[IndexEntry]:
        for entry in super().__iter__():
            if entry.key in self._named:
                self.found.add(entry.key)
            yield entry

    def _pack(self, version: ObjectVersion, writer: PackWriter) -> IndexEntry:
        source = self._source
        answer, content = source.open_version(version.key, version_id=version.version_id, etag=version.etag)
        digest, size = hashlib.sha256(), 0
        told = hashlib.md5(usedforsecurity=False) if _etag_is_digest(version, answer) else None

        def digested() -> Iterator[bytes]:
            nonlocal size
            for chunk in self._until_stopped(content):
                digest.update(chunk)
                if told is not None:
                    told.update(chunk)
                size += len(chunk)
                yield chunk

        members = writer.add(digested())
        if size != version.size:
            raise BackupError(
                f"{source}/{version.key} (version {version.version_id}) has {size} bytes "
                f"where {version.size} were listed.",
                mend="The run is retried; if it fails again, look at that object.",
            )
        if told is not None and told.hexdigest() != version.etag.strip('"'):
            self._read_again(version, digest.hexdigest())
        return IndexEntry(
            key=version.key,
            version_id=version.version_id,
            modified=version.modified,
            etag=version.etag,
            size=size,
            sha256=digest.hexdigest(),
            **kept_of(answer),
            tags=_tags(source, version, answer),
            members=members,
        )

    def _read_again(self, version: ObjectVersion, first: str) -> None:
        """Some stores' ETags are no digest of the content; then what is read again is what was read before."""
        _, content = self._source.open_version(version.key, version_id=version.version_id, etag=version.etag)
        digest = hashlib.sha256()
        for chunk in content:
            digest.update(chunk)
        if digest.hexdigest() != first:
            raise ObjectGarbled(
                f"{self._source}/{version.key} (version {version.version_id}) was read twice, and differed.",
                mend="The run is retried; if it fails again, look at the network, and at the store's disks.",
            )


class _StoppedError(Exception):
    """The block that wanted the objects has ended; nobody hears this."""


def kept_of(answer: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The `headers` and `metadata` that an index keeps of what a store answered."""
    return {
        "headers": {kept: _text(answer[told]) for told, kept in KEPT_HEADERS.items() if answer.get(told)},
        "metadata": {name: _text(value) for name, value in answer.get("Metadata", {}).items()},
    }


def index_lines(entries: Iterable[IndexEntry]) -> Iterator[bytes]:
    """The index as it is stored: one JSON object a line."""
    for entry in entries:
        yield entry.model_dump_json().encode() + b"\n"


def parse_index(raw: Iterable[bytes]) -> Iterator[IndexEntry]:
    """The entries of a stored index, one at a time."""
    return map(IndexEntry.model_validate_json, _lines(raw))


def change_lines(entries: Iterable[IndexEntry | Deletion]) -> Iterator[bytes]:
    """An increment's changes as they are stored: one JSON object a line."""
    for entry in entries:
        yield entry.model_dump_json().encode() + b"\n"


def parse_changes(raw: Iterable[bytes]) -> Iterator[IndexEntry | Deletion]:
    """The stored changes of an increment, one at a time, in no particular order."""
    return map(_CHANGE.validate_json, _lines(raw))


_CHANGE: TypeAdapter[IndexEntry | Deletion] = TypeAdapter(IndexEntry | Deletion)


def _lines(raw: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in raw:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def require_versions(source: Bucket) -> None:
    """Raise `NotVersioned` unless the bucket keeps versions."""
    if not source.is_versioned():
        raise NotVersioned(
            f"{source} keeps no versions: what an object was at the consistency point cannot be read.",
            mend=f"Switch versioning on: {versioning_command(source)}",
        )


def versioning_command(bucket: Bucket) -> str:
    """What a person runs so that a bucket keeps versions."""
    return f"aws s3api put-bucket-versioning --bucket {bucket.name} --versioning-configuration Status=Enabled"


def _etag_is_digest(version: ObjectVersion, answer: Mapping[str, Any]) -> bool:
    """Whether the ETag looks like the MD5 of the content: not when it came in parts, or is under somebody's key."""
    customers = answer.get("SSECustomerAlgorithm") or answer.get("ServerSideEncryption", "AES256") != "AES256"
    return not customers and re.fullmatch('"?[0-9a-f]{32}"?', version.etag) is not None


def _text(header: str) -> str:
    """A header's text: HTTP's library reads bytes as Latin-1, and stores that are not AWS tell UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _tags(source: Bucket, version: ObjectVersion, answer: Any) -> dict[str, str]:
    """The object's tags: asked for only where the store says that there are some."""
    return source.tags(version.key, version_id=version.version_id) if answer.get("TagCount") else {}

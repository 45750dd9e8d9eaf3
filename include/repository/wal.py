"""One cluster's write-ahead log in the bucket: whole segments and timelines' histories, each a sealed stream.

A segment is shipped as soon as it is finished, by whoever has it: the stream between the hours, or a run that closes a
window. Each of them is a *session* with an attempt and a data key of its own, so that one segment may lie there several
times, under several attempts, and nobody waits for anybody. A window's manifest names the copy that it relies on; what
was shipped since the last window is found by listing (`docs/format.md`, *Write-ahead log*).
"""

from __future__ import annotations

import struct
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from os.path import commonprefix
from pathlib import Path

from include.errors import BackupError
from include.pipeline.artifacts import FETCH_BYTES
from include.pipeline.keys import Keyring
from include.pipeline.sealing import Context, Measure, Opener, Sealer, StreamRefused
from include.pipeline.store import Bucket, ObjectMissing
from include.pipeline.transfer import Upload, fetch_ranges
from include.policy import Pipeline
from include.repository.envelopes import create_data_key, open_data_key
from include.repository.layout import new_attempt, wal_key, wal_owner, wal_place, wal_prefix
from include.repository.lsn import Lsn, is_segment, segment_lsn, timeline_of
from include.repository.manifest import WalFile

_PAGE = struct.Struct("=HHIQI4xQII")
"""`XLogLongPageHeaderData`, with which every segment begins: magic, info, timeline, address, rem_len, system, sizes.

In the server's byte order, which is that of the machine that recovers it: PostgreSQL's files know no other.
"""
PAGE_HEADER_BYTES = _PAGE.size
_READ_BYTES = 1 << 20
PART_BYTES = 32 << 20
"""A segment of the usual 16 MiB goes in one call, whatever a part is elsewhere: in parts it takes a fifth longer."""


class WalRefused(BackupError):
    """A WAL segment that is not the one that its name says: of another cluster, another timeline, another place."""


@dataclass(frozen=True)
class Shipped:
    """One copy of a segment or of a history file in the bucket, as a listing shows it; `modified` by the store's clock.

    It is proved only by opening it.
    """

    name: str
    attempt: str
    stored_bytes: int
    modified: datetime


class WalArchive:
    """The write-ahead log of one cluster in one bucket; safe to use from several threads."""

    def __init__(self, bucket: Bucket, keyring: Keyring, system_identifier: str, *, policy: Pipeline) -> None:
        self.bucket, self.keyring, self.system_identifier, self._policy = bucket, keyring, system_identifier, policy
        self._keys: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def shipped(self, names: Collection[str] | None = None) -> dict[str, tuple[Shipped, ...]]:
        """Every copy of every segment and history file, or of those called `names`, by name, the oldest copy first.

        Of each key the oldest version counts, whatever came over it or hides it.
        """
        found: dict[str, dict[str, Shipped]] = defaultdict(dict)
        wanted = None if names is None else frozenset(names)
        prefix = wal_prefix(self.system_identifier)
        for listed in [prefix] if wanted is None else [f"{prefix}{each}" for each in _prefixes(wanted)]:
            for version in self.bucket.versions(listed):  # of one key, newest first
                place = wal_place(version.key)
                if place is not None and not version.deleted and (wanted is None or place.name in wanted):
                    found[place.name][place.attempt] = Shipped(
                        place.name, place.attempt, version.size, version.modified
                    )
        return {
            name: tuple(sorted(copies.values(), key=lambda copy: (copy.modified, copy.attempt)))
            for name, copies in found.items()
        }

    def session(self) -> WalSession:
        """Begin to ship: a new attempt, whose data key is durable when this returns."""
        attempt = new_attempt()
        key = create_data_key(self.bucket, self.keyring, owner=wal_owner(self.system_identifier), attempt=attempt)
        with self._lock:
            self._keys[attempt] = key
        return WalSession(self, attempt, key, policy=self._policy)

    def key_of(self, file: WalFile | Shipped) -> str:
        """Where that copy lies."""
        return wal_key(self.system_identifier, file.name, file.attempt)

    def context_of(self, name: str, attempt: str) -> Context:
        """What binds a copy to its place."""
        return {"system_identifier": self.system_identifier, "wal": name, "attempt": attempt}

    def measure(self, shipped: Shipped) -> WalFile:
        """Read a shipped copy back, prove it, and say what a window's manifest says of it; raises as `read`."""
        measures: list[Measure] = []
        for _ in self._read(shipped, measures):
            pass
        return _described(shipped.name, shipped.attempt, measures[0])

    def read(self, file: WalFile | Shipped) -> Iterator[bytes]:
        """The raw bytes of one copy, in order; only an iteration that *ends* delivered everything.

        Raises `StreamRefused` for one that is gone, cut or changed, and `WalRefused` for one that is not what its name
        says, naming the object.
        """
        return self._read(file, [])

    def fetch(self, file: WalFile | Shipped, target: Path) -> None:
        """Write the raw bytes to `target`, which appears whole and proved or not at all; raises as `read`."""
        beside = target.with_name(f".{target.name}.{file.attempt}")
        try:
            with beside.open("wb") as stream:
                for chunk in self.read(file):
                    stream.write(chunk)
            beside.rename(target)
        finally:
            with suppress(FileNotFoundError):
                beside.unlink()

    def _read(self, file: WalFile | Shipped, measures: list[Measure]) -> Iterator[bytes]:
        key = self.key_of(file)
        name = f"{self.bucket}/{key}"
        opener = Opener(self._key(file.attempt), self.context_of(file.name, file.attempt), name=name)
        first = b""
        for chunk in self._opened(opener, key, file.stored_bytes):
            if len(first) < PAGE_HEADER_BYTES:
                first += chunk[:PAGE_HEADER_BYTES]
            yield chunk
        measure = opener.measure()
        if isinstance(file, WalFile) and _described(file.name, file.attempt, measure) != file:
            raise StreamRefused(
                f"{name} is a whole stream, and not the one that its manifest names.",
                mend="Do not recover from it: use the replica's copy.",
            )
        if is_segment(file.name):
            check_first_page(first, file.name, self.system_identifier, measure.raw_bytes, called=name)
        measures.append(measure)

    def _opened(self, opener: Opener, key: str, size: int) -> Iterator[bytes]:
        ranges = ((key, start, min(start + FETCH_BYTES, size)) for start in range(0, size, FETCH_BYTES))
        try:
            for stored in fetch_ranges(self.bucket, ranges, in_flight=2):
                yield from opener.add(stored)
        except ObjectMissing as missing:
            raise StreamRefused(
                missing.what, mend="A segment of the write-ahead log is gone: use the replica's copy."
            ) from missing
        yield from opener.finish()

    def _key(self, attempt: str) -> bytes:
        with self._lock:
            if attempt not in self._keys:
                owner = wal_owner(self.system_identifier)
                self._keys[attempt] = open_data_key(self.bucket, self.keyring, owner=owner, attempt=attempt)
            return self._keys[attempt]


class WalSession:
    """One try at shipping WAL, under an attempt and a data key of its own; safe to use from several threads."""

    def __init__(self, archive: WalArchive, attempt: str, key: bytes, *, policy: Pipeline) -> None:
        self._archive, self.attempt, self._key, self._policy = archive, attempt, key, policy

    def ship(self, file: Path, name: str) -> WalFile:
        """Store one finished segment, or one history file, from disk; it is durable when this returns.

        Raises `WalRefused` when the file is not the segment `name` of this cluster, and `StoreError`.
        """
        archive, size = self._archive, file.stat().st_size
        sealer = Sealer(self._key, archive.context_of(name, self.attempt), level=self._policy.compression_lowest)
        key = wal_key(archive.system_identifier, name, self.attempt)
        with (
            file.open("rb") as stream,
            Upload(archive.bucket, key, part_bytes=PART_BYTES, in_flight=1) as upload,
        ):
            if is_segment(name):
                check_first_page(
                    stream.peek(PAGE_HEADER_BYTES), name, archive.system_identifier, size, called=str(file)
                )
            while chunk := stream.read(_READ_BYTES):
                upload.write(sealer.add(chunk))
            upload.write(sealer.finish())
            upload.complete()
        return _described(name, self.attempt, sealer.measure())


def check_first_page(first: bytes, name: str, system_identifier: str, segment_bytes: int, *, called: str) -> None:
    """Prove that what begins with `first` is the segment `name` of that cluster; `called` is what an error calls it.

    The pages before the point at which a timeline began are copies of its ancestor's, so an older timeline is right,
    and a newer one is not. Raises `WalRefused`.
    """
    mend = "Do not recover from it: use another copy, or the replica's."
    if len(first) < PAGE_HEADER_BYTES:
        raise WalRefused(f"{called} has {len(first)} bytes: it is no WAL segment.", mend=mend)
    _, _, timeline, address, _, system, size, _ = _PAGE.unpack_from(first)
    if str(system) != system_identifier:
        raise WalRefused(f"{called} is of the cluster {system}, not of {system_identifier}.", mend=mend)
    if size != segment_bytes:
        raise WalRefused(f"{called} has {segment_bytes} bytes where its cluster's segments have {size}.", mend=mend)
    if (at := segment_lsn(name, segment_bytes)) != address:
        raise WalRefused(f"{called} holds the log from {Lsn(address)} on, not from {at}.", mend=mend)
    if timeline > timeline_of(name):
        raise WalRefused(f"{called} is of timeline {timeline}, not of {timeline_of(name)}.", mend=mend)


def _prefixes(names: Collection[str]) -> list[str]:
    """What to list below a cluster's prefix: a window lies close together in a log that is kept for weeks."""
    alike: dict[tuple[int, bool], list[str]] = defaultdict(list)
    for name in names:
        alike[timeline_of(name), is_segment(name)].append(name)
    # of names, not of paths
    return [f"{timeline:08X}/{commonprefix(group)}" for (timeline, _), group in alike.items()]  # noqa: RUF071


def _described(name: str, attempt: str, measure: Measure) -> WalFile:
    return WalFile(
        name=name,
        attempt=attempt,
        raw_bytes=measure.raw_bytes,
        raw_sha256=measure.raw_sha256,
        stored_bytes=measure.stored_bytes,
        stored_sha256=measure.stored_sha256,
    )

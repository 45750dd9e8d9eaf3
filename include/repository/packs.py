"""Packs: objects side by side in one stored object, each its own sealed stream (`docs/format.md`, *Packs*).

A pack holds one component only, so that a component can be archived alone, and has its own data key; an archive's packs
have the archive's, so that it can be shredded alone.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from pydantic import BaseModel, ConfigDict

from include.errors import BackupError
from include.pipeline.artifacts import FETCH_BYTES
from include.pipeline.keys import Keyring
from include.pipeline.progress import Progress
from include.pipeline.sealing import Context, Sealer, StreamRefused, open_stream
from include.pipeline.store import Bucket, ObjectMissing
from include.pipeline.transfer import Upload, fetch_ranges
from include.policy import Pipeline
from include.repository.envelopes import create_data_key
from include.repository.layout import PACKS, new_pack_id
from include.repository.manifest import Pack

_ROOM_BYTES = 64 << 10
"""What is left free at the end of a pack for the end of its last member."""


class PackRefused(BackupError):
    """A pack that is not what the index says."""


class Member(BaseModel):
    """One sealed stream inside a pack.

    `length` stored bytes at `offset` open to `size` raw bytes of this SHA-256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pack: str
    member: int
    offset: int
    length: int
    size: int
    sha256: str


@dataclass(frozen=True)
class PackHome:
    """Where packs lie that belong to one backup alone: below `prefix`, sealed with that backup's own data key."""

    prefix: str
    key: bytes = field(repr=False)
    tags: Mapping[str, str] = field(default_factory=dict)


class PackWriter:
    """Fills packs of at most `policy.segment_bytes` with objects, one after another, in bounded memory.

    They lie below `packs/`, each with a data key of its own, or at `home`.
    Writers that share `room` share the memory of parts on their way.
    Use as a context manager: a pack that was not finished by `close()` leaves nothing behind.
    """

    def __init__(
        self,
        bucket: Bucket,
        keyring: Keyring,
        *,
        component: str,
        retention_class: str,
        attempt: str,
        policy: Pipeline,
        progress: Progress,
        room: threading.Semaphore | None = None,
        home: PackHome | None = None,
    ) -> None:
        self._bucket, self._keyring, self._room, self._home = bucket, keyring, room, home
        self._component, self._retention_class, self._attempt = component, retention_class, attempt
        self._policy, self._progress = policy, progress
        self._open: _OpenPack | None = None
        self.packs: list[Pack] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._open is not None:
            self._open.abandon()

    def add(self, content: Iterable[bytes]) -> tuple[Member, ...]:
        """Store one object; returns where it lies: one member, or several where it does not fit one pack."""
        members = []
        chunks = iter(content)
        chunk = next(chunks, b"")
        more = True
        while more:
            member, chunk, more = self._add_member(chunk, chunks)
            members.append(member)
        return tuple(members)

    def close(self) -> None:
        """Make the last pack durable."""
        if self._open is not None:
            self.packs.append(self._open.complete())
            self._open = None

    def _add_member(self, first: bytes, chunks: Iterator[bytes]) -> tuple[Member, bytes, bool]:
        pack = self._room_for(len(first))
        number, offset = pack.members, pack.stored_bytes
        context = _member_context(
            pack.id, number, attempt=self._attempt, component=self._component, retention_class=self._retention_class
        )
        sealer = Sealer(pack.key, context, level=self._policy.compression_level)
        chunk: bytes | None = first
        while chunk is not None:
            if sealer.raw_bytes and offset + _ceiling(sealer.raw_bytes + len(chunk)) > self._policy.segment_bytes:
                break
            pack.write(sealer.add(chunk))
            self._progress.add(raw=len(chunk))
            chunk = next(chunks, None)
        pack.write(sealer.finish())
        measure = sealer.measure()
        pack.members += 1
        pack.raw_bytes += measure.raw_bytes
        self._progress.add(stored=measure.stored_bytes)
        member = Member(
            pack=pack.id,
            member=number,
            offset=offset,
            length=measure.stored_bytes,
            size=measure.raw_bytes,
            sha256=measure.raw_sha256,
        )
        return member, chunk or b"", chunk is not None

    def _room_for(self, raw: int) -> _OpenPack:
        if self._open is not None and self._open.stored_bytes + _ceiling(raw) > self._policy.segment_bytes:
            self.close()
        if self._open is None:
            self._open = _OpenPack(
                self._bucket,
                self._keyring,
                component=self._component,
                retention_class=self._retention_class,
                attempt=self._attempt,
                policy=self._policy,
                room=self._room,
                home=self._home,
            )
        return self._open


class _OpenPack:
    def __init__(
        self,
        bucket: Bucket,
        keyring: Keyring,
        *,
        component: str,
        retention_class: str,
        attempt: str,
        policy: Pipeline,
        room: threading.Semaphore | None,
        home: PackHome | None,
    ) -> None:
        self.id = new_pack_id()
        self._prefix = home.prefix if home else PACKS
        self.key = home.key if home else create_data_key(bucket, keyring, owner=self.id, attempt=attempt)
        self._component, self._retention_class, self._attempt = component, retention_class, attempt
        # One part on its way is enough: several packs are written side by side.
        self._upload = Upload(
            bucket,
            self._prefix + self.id,
            part_bytes=policy.part_bytes,
            in_flight=1,
            room=room,
            tags=home.tags if home else {},
        )
        self._sha256 = hashlib.sha256()
        self.stored_bytes = self.raw_bytes = self.members = 0

    def write(self, stored: bytes) -> None:
        self._upload.write(stored)
        self._sha256.update(stored)
        self.stored_bytes += len(stored)

    def complete(self) -> Pack:
        with self._upload as upload:
            upload.complete()
        return Pack(
            id=self.id,
            component=self._component,
            retention_class=self._retention_class,
            attempt=self._attempt,
            members=self.members,
            raw_bytes=self.raw_bytes,
            stored_bytes=self.stored_bytes,
            stored_sha256=self._sha256.hexdigest(),
            prefix=self._prefix,
        )

    def abandon(self) -> None:
        with self._upload:
            pass


def read_member(pack: Pack, member: Member, *, bucket: Bucket, key: bytes, in_flight: int) -> Iterator[bytes]:
    """The raw bytes of one member, by ranged GETs.

    Raises `StreamRefused` or `PackRefused`, naming the pack and the member.
    """
    end = member.offset + member.length
    ranges = [(pack.key, start, min(start + FETCH_BYTES, end)) for start in range(member.offset, end, FETCH_BYTES)]
    try:
        yield from _opened(
            pack,
            member,
            fetch_ranges(bucket, iter(ranges), in_flight=min(in_flight, len(ranges))),
            bucket=bucket,
            key=key,
        )
    except ObjectMissing as missing:
        raise PackRefused(
            missing.what, mend="A pack of this backup is gone: use the replica's copy or another backup."
        ) from missing


def check_pack(
    pack: Pack, members: Iterable[Member], *, bucket: Bucket, key: bytes, in_flight: int, progress: Progress
) -> None:
    """Read a pack once from end to end and prove it and each of `members`, in the order in which they lie (R4.5).

    Raises like `read_member`.
    """
    ranges = (
        (pack.key, start, min(start + FETCH_BYTES, pack.stored_bytes))
        for start in range(0, pack.stored_bytes, FETCH_BYTES)
    )
    whole = _Splitter(fetch_ranges(bucket, ranges, in_flight=in_flight))
    try:
        for member in members:
            if member.offset != whole.position or member.offset + member.length > pack.stored_bytes:
                raise PackRefused(
                    f"{bucket}/{pack.key} has not the members that the index lists at {whole.position}.",
                    mend="The index is inconsistent: use another backup.",
                )
            for raw in _opened(pack, member, whole.take(member.length), bucket=bucket, key=key):
                progress.add(raw=len(raw))
        for _ in whole.take(pack.stored_bytes - whole.position):
            pass
    except ObjectMissing as missing:
        raise PackRefused(
            missing.what, mend="A pack of this backup is gone: use the replica's copy or another backup."
        ) from missing
    if whole.sha256.hexdigest() != pack.stored_sha256:
        raise PackRefused(
            f"{bucket}/{pack.key} is not the pack that the manifest names.",
            mend="Use the replica's copy or another backup.",
        )
    progress.add(stored=pack.stored_bytes)


class _Splitter:
    """Takes runs of exact length out of a row of chunks, digesting everything that passes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")
        self.position = 0
        self.sha256 = hashlib.sha256()

    def take(self, length: int) -> Iterator[bytes]:
        while length:
            if not self._rest:
                self._rest = memoryview(next(self._chunks))
            piece, self._rest = self._rest[:length], self._rest[length:]
            length -= len(piece)
            self.position += len(piece)
            self.sha256.update(piece)
            yield bytes(piece)


def _opened(pack: Pack, member: Member, stored: Iterable[bytes], *, bucket: Bucket, key: bytes) -> Iterator[bytes]:
    context = _member_context(
        pack.id, member.member, attempt=pack.attempt, component=pack.component, retention_class=pack.retention_class
    )
    name = f"{bucket}/{pack.key} member {member.member}"
    digest, size = hashlib.sha256(), 0
    for raw in open_stream(stored, key, context, name=name):
        digest.update(raw)
        size += len(raw)
        yield raw
    if (size, digest.hexdigest()) != (member.size, member.sha256):
        raise StreamRefused(
            f"{name} is not the object that the index names.", mend="Use the replica's copy or another backup."
        )


def _member_context(pack_id: str, number: int, *, attempt: str, component: str, retention_class: str) -> Context:
    return {
        "pack": pack_id,
        "member": number,
        "attempt": attempt,
        "component": component,
        "retention_class": retention_class,
    }


def _ceiling(raw: int) -> int:
    return raw + (raw >> 8) + 16 * (raw // 16_384 + 1) + _ROOM_BYTES

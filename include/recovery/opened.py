"""A committed backup, opened: its data keys, its artifacts as streams, its objects one by one."""

from __future__ import annotations

import json
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from include.pipeline.artifacts import check_artifact, read_artifact, read_segment
from include.pipeline.progress import Progress
from include.policy import Pipeline
from include.repository.catalog import Catalog
from include.repository.contents import STRUCTURE, UPLOADS, object_changes, object_index
from include.repository.envelopes import open_data_key
from include.repository.manifest import Artifact, Manifest, ManifestRefused, Pack
from include.repository.packs import Member, check_pack, read_member
from include.sources.objects import Deletion, IndexEntry, parse_changes, parse_index


class _Members:
    """The members of one pack, 64 bytes each: a bucket of millions of objects is checked in bounded memory."""

    _RECORD = struct.Struct(">QQQQ32s")

    def __init__(self) -> None:
        self._records = bytearray()

    def add(self, member: Member) -> None:
        self._records += self._RECORD.pack(
            member.offset, member.member, member.length, member.size, bytes.fromhex(member.sha256)
        )

    def in_order(self, pack: str) -> Iterator[Member]:
        """As they lie in the pack."""
        for offset, number, length, size, sha256 in sorted(self._RECORD.iter_unpack(self._records)):
            yield Member(pack=pack, member=number, offset=offset, length=length, size=size, sha256=sha256.hex())


class OpenedBackup:
    """Everything of one backup, as streams that prove themselves; safe to use from several threads."""

    def __init__(self, catalog: Catalog, manifest: Manifest, *, policy: Pipeline, progress: Progress) -> None:
        self.manifest = manifest
        self._catalog, self._policy, self._progress = catalog, policy, progress
        self._packs = {pack.id: pack for pack in manifest.packs}
        self._keys: dict[tuple[str, str], bytes] = {}
        self._lock = threading.Lock()

    @property
    def policy(self) -> Pipeline:
        """How bytes move."""
        return self._policy

    def has(self, name: str) -> bool:
        """Whether the backup has an artifact of that name."""
        return any(artifact.name == name for artifact in self.manifest.artifacts)

    def read(self, name: str) -> Iterator[bytes]:
        """The raw bytes of an artifact; raises `ManifestRefused` for one that is not there, and as `read_artifact`."""
        artifact = self.manifest.artifact(name)
        return read_artifact(
            artifact.as_written(),
            bucket=self._catalog.bucket,
            place=artifact.place(self.manifest.backup),
            key=self._key(self.manifest.id, artifact.attempt),
            policy=self._policy,
            progress=self._progress,
        )

    def read_segment(self, name: str, number: int) -> Iterator[bytes]:
        """The raw bytes of one segment of an artifact, counted from 0; raises as `read`."""
        artifact = self.manifest.artifact(name)
        return read_segment(
            artifact.segments[number].as_written(),
            number,
            bucket=self._catalog.bucket,
            place=artifact.place(self.manifest.backup),
            key=self._key(self.manifest.id, artifact.attempt),
            policy=self._policy,
            progress=self._progress,
        )

    def check(self, artifact: Artifact) -> None:
        """Read every byte of an artifact back and prove it (R4.5)."""
        check_artifact(
            artifact.as_written(),
            bucket=self._catalog.bucket,
            place=artifact.place(self.manifest.backup),
            key=self._key(self.manifest.id, artifact.attempt),
            policy=self._policy,
            progress=self._progress,
        )

    def database_components(self) -> list[str]:
        """The components of which the backup holds tables."""
        names = (artifact.name for artifact in self.manifest.artifacts if artifact.component != STRUCTURE)
        return [
            name.removeprefix("database/").removesuffix(".pgdump")
            for name in names
            if name.startswith("database/") and name.endswith(".pgdump")
        ]

    def configuration_components(self) -> list[str]:
        """The components of which the backup holds configuration: the repository's, and those of files beside it."""
        return [artifact.component for artifact in self.manifest.artifacts if artifact.name.startswith("config/")]

    def object_components(self) -> list[str]:
        """The components of which the backup holds objects."""
        names = (artifact.name for artifact in self.manifest.artifacts)
        return [
            name.removeprefix("objects/").removesuffix(".index.jsonl")
            for name in names
            if name.endswith(".index.jsonl")
        ]

    def objects(self, component: str) -> Iterator[IndexEntry]:
        """The objects of a component, in no particular order."""
        return parse_index(self.read(object_index(component)))

    def changed_components(self) -> list[str]:
        """The components of which an increment tells what changed."""
        return [
            artifact.component
            for artifact in self.manifest.artifacts
            if artifact.name == object_changes(artifact.component)
        ]

    def changes(self, component: str) -> Iterator[IndexEntry | Deletion]:
        """The versions and deletions of a component since the backup before, in no particular order."""
        return parse_changes(self.read(object_changes(component)))

    def uploading(self) -> dict[str, datetime]:
        """The objects that were being uploaded in parts when this backup was made, and when each upload began."""
        if not self.has(UPLOADS):
            return {}
        told: dict[str, str] = json.loads(b"".join(self.read(UPLOADS)))
        return {key: datetime.fromisoformat(moment) for key, moment in told.items()}

    def holds(self, entry: IndexEntry) -> bool:
        """Whether the backup's packs have the content of an object."""
        return all(member.pack in self._packs for member in entry.members)

    def read_object(self, entry: IndexEntry) -> Iterator[bytes]:
        """The content of one object; raises as `read_member`."""
        for member in entry.members:
            pack = self._pack(member)
            key = self._key(pack.owner(self.manifest.id), pack.attempt)
            for raw in read_member(
                pack, member, bucket=self._catalog.bucket, key=key, in_flight=self._policy.parts_in_flight
            ):
                self._progress.add(raw=len(raw))
                yield raw

    def check_objects(self, component: str) -> int:
        """Read every pack of a component back, once, and prove each object in it; returns how many there are (R4.5)."""
        members: dict[str, _Members] = defaultdict(_Members)
        count = 0
        for entry in self._versions(component):
            count += 1
            for member in entry.members:
                members[self._pack(member).id].add(member)

        def check(pack_id: str) -> None:
            pack = self._packs[pack_id]
            key = self._key(pack.owner(self.manifest.id), pack.attempt)
            check_pack(
                pack,
                members[pack_id].in_order(pack_id),
                bucket=self._catalog.bucket,
                key=key,
                in_flight=self._policy.parts_in_flight,
                progress=self._progress,
            )

        with ThreadPoolExecutor(self._policy.streams_at_once, thread_name_prefix="check") as pool:
            for result in [pool.submit(check, pack.id) for pack in self._packs.values() if pack.component == component]:
                result.result()
        return count

    def _versions(self, component: str) -> Iterator[IndexEntry]:
        """The objects of a component that the backup holds, whether it lists all or what changed."""
        if self.has(object_index(component)):
            return self.objects(component)
        return (line for line in self.changes(component) if isinstance(line, IndexEntry))

    def _pack(self, member: Member) -> Pack:
        try:
            return self._packs[member.pack]
        except KeyError:
            raise ManifestRefused(
                f"An object of {self.manifest.id} lies in pack {member.pack}, which its manifest does not name.",
                mend="The backup is inconsistent: use another one.",
            ) from None

    def _key(self, owner: str, attempt: str) -> bytes:
        with self._lock:
            if (owner, attempt) not in self._keys:
                self._keys[owner, attempt] = open_data_key(
                    self._catalog.bucket, self._catalog.keyring, owner=owner, attempt=attempt
                )
            return self._keys[owner, attempt]

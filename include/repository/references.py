"""What a manifest names: every object that its backup is made of, and every data key that opens one of them.

Whoever copies, keeps, moves or deletes backups asks here, so that all of them mean the same objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from include.repository.layout import envelope_prefix, wal_key, wal_owner
from include.repository.manifest import Manifest, WalFile


@dataclass(frozen=True)
class Reference:
    """One object that a manifest names: where it lies, how many bytes it has stored, and their SHA-256 in hex."""

    key: str
    stored_bytes: int
    stored_sha256: str


def references(manifest: Manifest) -> Iterator[Reference]:
    """Segments of artifacts, packs, and the copies of WAL that the window relies on; no key twice."""
    for artifact in manifest.artifacts:
        for segment in artifact.segments:
            yield Reference(segment.key, segment.stored_bytes, segment.stored_sha256)
    for pack in manifest.packs:
        yield Reference(pack.key, pack.stored_bytes, pack.stored_sha256)
    if manifest.wal is not None:
        for file in manifest.wal.files:
            key = wal_key(manifest.database.system_identifier, file.name, file.attempt)
            yield Reference(key, file.stored_bytes, file.stored_sha256)


def data_keys(manifest: Manifest) -> frozenset[tuple[str, str]]:
    """The owner and attempt of every data key that opens something of it, its own attempt's among them."""
    return frozenset(
        [
            (manifest.id, manifest.attempt),
            *((manifest.id, artifact.attempt) for artifact in manifest.artifacts),
            *((pack.owner(manifest.id), pack.attempt) for pack in manifest.packs),
            *((wal_owner(manifest.database.system_identifier), file.attempt) for file in _files(manifest)),
        ]
    )


def envelope_prefixes(manifest: Manifest) -> frozenset[str]:
    """Under which the wraps of those data keys lie."""
    return frozenset(envelope_prefix(owner, attempt) for owner, attempt in data_keys(manifest))


def _files(manifest: Manifest) -> Iterator[WalFile]:
    yield from manifest.wal.files if manifest.wal else ()

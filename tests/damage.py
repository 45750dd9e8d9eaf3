"""A byte of a backup changed in its bucket, and put right again."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.backup.verify import prove_integrity
from include.pipeline.sealing import StreamRefused
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.repository.catalog import Catalog
from include.repository.manifest import Manifest


def flip(bucket: Bucket, key: str) -> None:
    """Lay a version with one flipped bit over an object."""
    content = bytearray(bucket.read(key))
    content[len(content) // 2] ^= 0x10
    bucket.put(key, bytes(content))


def repair(bucket: Bucket, key: str) -> None:
    """Remove every version but the first."""
    for version in list(bucket.versions(key))[:-1]:
        bucket.client.delete_object(Bucket=bucket.name, Key=key, VersionId=version.version_id)


def tell_the_story(catalog: Catalog, older: Manifest, newer: Manifest, scratch: Path) -> str:
    """A byte flips: found, recorded, passed over; put right: proved, and back in the plans. Returns what was told."""
    policy = load_policy()
    key = newer.artifact("database/chat_history.pgdump").segments[0].key
    prove_integrity(catalog, newer.backup, policy, scratch=scratch)
    assert catalog.verification(newer).state == "verified"
    assert catalog.latest("full") == newer

    flip(catalog.bucket, key)
    with pytest.raises(StreamRefused, match=key) as refused:
        prove_integrity(catalog, newer.backup, policy, scratch=scratch)
    [failed] = catalog.verification(newer).failed
    assert (failed.what, failed.home in refused.value.mend) == (refused.value.what, True)
    assert catalog.latest("full") == older

    repair(catalog.bucket, key)
    prove_integrity(catalog, newer.backup, policy, scratch=scratch)
    assert catalog.verification(newer).state == "verified"
    assert catalog.latest("full") == newer
    return refused.value.mend

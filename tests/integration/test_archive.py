"""The archive tier on real servers: made of a verified full, restored alone, through Glacier, and shredded (R3.3, R8.1)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from include.backup.archive import NothingToArchive, make_archive
from include.backup.verify import prove_integrity
from include.pipeline.progress import Progress
from include.policy import load_policy
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.repository.references import data_keys, references
from include.sandbox.installation import Installation

POLICY = load_policy()
CLASSES = ("financial", "personal", "operational")


@pytest.fixture(scope="module")
def verified(catalog: Catalog, manifest: Manifest, sandbox_directory: Path) -> Manifest:
    prove_integrity(catalog, manifest.backup, POLICY, scratch=sandbox_directory)
    return manifest


@pytest.fixture(scope="module")
def archives(catalog: Catalog, verified: Manifest, sandbox_directory: Path) -> dict[str, Manifest]:
    month = verified.consistency_point.time
    return {
        name: make_archive(BackupId.archive(name, month), catalog=catalog, policy=POLICY, scratch=sandbox_directory)
        for name in CLASSES
    }


@pytest.mark.requirement("R8.1")
def test_each_class_has_its_own_share_and_no_secret(archives: dict[str, Manifest], verified: Manifest) -> None:
    for m in archives.values():
        print(m.id, [(a.name, a.component) for a in m.artifacts], [p.key for p in m.packs], m.database, m.objects)

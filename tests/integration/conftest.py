"""A small Synapse and one full backup of it, fresh for each test module, in whichever store is its `primary`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from include.backup.full import make_full_backup
from include.policy import load_policy
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server

SCALE = 0.05


@pytest.fixture(scope="module")
def primary(s3_primary: S3Server) -> S3Server | CephGateway:
    """The store that Synapse's files and the backups are in."""
    return s3_primary


@pytest.fixture(scope="module")
def installation(
    request: pytest.FixtureRequest,
    sandbox_directory: Path,
    postgres18: PostgresServer,
    primary: S3Server | CephGateway,
    s3_replica: S3Server,
) -> Iterator[Installation]:
    name = request.path.stem.removeprefix("test_").replace("_", "-")
    directory = sandbox_directory / name
    directory.mkdir()
    made = Installation.make(
        directory, postgres=postgres18, primary=primary, replica=s3_replica, suffix=f"-{name}", scale=SCALE
    )
    yield made
    made.synapse.destroy()


@pytest.fixture(scope="module")
def catalog(installation: Installation) -> Catalog:
    return installation.catalog()


@pytest.fixture(scope="module")
def manifest(installation: Installation, catalog: Catalog, sandbox_directory: Path) -> Manifest:
    """The backup `full-20261122T000000Z`."""
    return make_full_backup(
        BackupId.parse("full-20261122T000000Z"),
        slot=None,
        application=installation.application(),
        catalog=catalog,
        policy=load_policy(),
        scratch=sandbox_directory,
    )

"""What several rooms' unit tests need: a keyring, and a catalog of a fresh bucket."""

from __future__ import annotations

import pytest

from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.repository.catalog import Catalog
from include.sandbox.s3 import S3Server


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring.create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def catalog(s3_primary: S3Server, bucket: str, keyring: Keyring) -> Catalog:
    """An empty, versioned bucket's."""
    store = Bucket(s3_primary.session(), bucket, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    return Catalog(store, keyring)

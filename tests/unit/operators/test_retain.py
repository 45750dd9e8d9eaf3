"""The step that ends what has had its time: which bucket, what it tells, and when it is red (R1, R6.5)."""

from __future__ import annotations

import secrets
from types import SimpleNamespace
from typing import Any

import pytest

from include.operators.retain import Retain
from include.operators.step import ERROR
from include.pipeline.store import Bucket
from include.repository.catalog import Catalog
from include.repository.expiry import CatalogShrank
from include.sandbox.s3 import S3Server
from tests.rolling import LATE, SMALL, at, weeks


@pytest.mark.requirement("R1.1", "R6.5")
@pytest.mark.parametrize("store", ["primary", "replica"])
def test_it_tells_what_goes_and_keeps_small_facts(
    catalog: Catalog, s3_replica: S3Server, monkeypatch: pytest.MonkeyPatch, store: Any
) -> None:
    made = weeks(catalog)
    name = s3_replica.create_bucket(f"bucket-{secrets.token_hex(8)}")
    bucket = Bucket(s3_replica.session(), name, region=s3_replica.region, endpoint_url=s3_replica.endpoint_url)
    empty = Catalog(bucket, catalog.keyring)
    primary, replica = (catalog, empty) if store == "primary" else (empty, catalog)
    here = SimpleNamespace(catalog=primary, replica=replica, policy=SMALL)
    monkeypatch.setattr("include.operators.run.Surroundings", lambda **_: here)
    told: dict[str, Any] = {}
    context: Any = {"ti": SimpleNamespace(xcom_push=lambda key, value: told.update({key: value}))}
    step = Retain(task_id="retain", store=store)
    with at(catalog, LATE):
        facts = step.execute(context)
    assert (facts["backups_going"], facts["backups_deleted"], facts["locked"], facts["all_done"]) == (5, 5, 0, True)
    assert len(facts["moments_lost"]) == 1
    assert list(bucket.versions("")) == []

    catalog.bucket.delete_version(made[5].home, next(catalog.bucket.versions(made[5].home)).version_id)
    with at(catalog, LATE), pytest.raises(Exception, match="lacks 1 of what the last look") as failed:
        step.execute(context)
    assert isinstance(failed.value.__cause__, CatalogShrank)  # no other try mends it
    assert "Nothing more was deleted" in told[ERROR]["mend"]


@pytest.mark.requirement("R3.2")
def test_a_replica_deletes_nothing_that_the_primary_shows(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    weeks(catalog)
    here = SimpleNamespace(catalog=catalog, replica=catalog, policy=SMALL)
    monkeypatch.setattr("include.operators.run.Surroundings", lambda **_: here)
    context: Any = {"ti": SimpleNamespace(xcom_push=lambda key, value: None)}
    with at(catalog, LATE):
        facts = Retain(task_id="retain", store="replica").execute(context)
    assert (facts["backups_going"], facts["backups_deleted"]) == (0, 0)

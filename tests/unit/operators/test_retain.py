"""The step that ends what has had its time: which bucket, what it tells, and when it is red (R1, R6.5)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from include.operators.retain import Retain
from include.operators.step import ERROR
from include.repository.catalog import Catalog
from include.repository.expiry import CatalogShrank
from tests.rolling import LATE, SMALL, at, weeks


@pytest.mark.requirement("R1.1", "R6.5")
@pytest.mark.parametrize("store", ["primary", "replica"])
def test_it_tells_what_goes_and_keeps_small_facts(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, store: Any
) -> None:
    made = weeks(catalog)
    here = SimpleNamespace(catalog=catalog, policy=SMALL)
    asked: list[str] = []

    def bucket(connection: str, *, name: str, **_: object) -> object:
        asked.append(name)
        return catalog.bucket

    monkeypatch.setattr("include.operators.run.Surroundings", lambda **_: here)
    monkeypatch.setattr("include.operators.connections.bucket", bucket)
    told: dict[str, Any] = {}
    context: Any = {"ti": SimpleNamespace(xcom_push=lambda key, value: told.update({key: value}))}
    step = Retain(task_id="retain", store=store)
    with at(catalog, LATE):
        facts = step.execute(context)
    assert (facts["backups_going"], facts["backups_deleted"], facts["locked"], facts["all_done"]) == (5, 5, 0, True)
    assert len(facts["moments_lost"]) == 1
    assert asked == ([SMALL.storage.replica.bucket] if store == "replica" else [])

    catalog.bucket.delete_version(made[5].home, next(catalog.bucket.versions(made[5].home)).version_id)
    with at(catalog, LATE), pytest.raises(Exception, match="lacks 1 of what the last look") as failed:
        step.execute(context)
    assert isinstance(failed.value.__cause__, CatalogShrank)  # no other try mends it
    assert "Nothing more was deleted" in told[ERROR]["mend"]

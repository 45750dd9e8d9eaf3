"""What is told while the primary is away: what the replica has, and so what is lost without the primary."""

from __future__ import annotations

from datetime import timedelta

import pytest

from include.backup.risk import told_at_risk
from include.pipeline.store import StoreAway, StoreError
from include.policy import load_policy
from include.repository.catalog import Catalog
from tests import manifests

AWAY = StoreAway("Could not reach s3://synapse-backups: refused.", mend="Look.", bucket="synapse-backups")


@pytest.mark.requirement("R5.3", "R5.5")
def test_what_came_after_the_replicas_newest_backup_is_at_risk(catalog: Catalog) -> None:
    nothing = told_at_risk(AWAY, catalog, load_policy())
    assert "all that was backed up is at risk" in nothing.what
    manifests.commit(catalog, manifests.make(0))
    newest = manifests.commit(catalog, manifests.make(1))
    now = newest.consistency_point.time + timedelta(minutes=50)
    told = told_at_risk(AWAY, catalog, load_policy(), now=now)
    assert told.what.startswith("Could not reach s3://synapse-backups: refused.")
    assert f"{newest.id}, of 2026-11-23 00:00:07 UTC, 0:50:00 ago: what came after it is lost" in told.what
    assert f"--bucket {catalog.bucket.name}" in told.mend


def test_a_replica_that_is_away_too_is_told(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise StoreError("It is away.", mend="Look there, too.")

    monkeypatch.setattr(Catalog, "entries", away)
    assert told_at_risk(AWAY, catalog, load_policy()).what.endswith("cannot be told either: It is away.")

"""What having an archive back costs, how long it is waited for, and which rules a bucket gets."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from include.pipeline.store import ObjectMissing, StoreError
from include.policy import load_policy
from include.repository import cold
from include.repository.catalog import Catalog
from include.repository.cold import Retrieval, StillCold
from include.repository.lifecycle import CURRENT_COUNTS, desired, in_words

POLICY = load_policy()
GIB = 2**30


@pytest.mark.requirement("R3.3", "R6.2")
def test_a_retrieval_costs_requests_bytes_and_room() -> None:
    room = 10 * 0.023 * 7 / 30
    assert cold.cost(2000, 10 * GIB, "Standard", POLICY) == pytest.approx(0.11 + 0.11 + room)
    assert cold.cost(2000, 10 * GIB, "Expedited", POLICY) == pytest.approx(0.33 + 22 + room)
    assert cold.cost(2000, 10 * GIB, "Bulk", POLICY) == pytest.approx(room)
    assert cold.cost(0, 0, "Expedited", POLICY) == 0


@pytest.mark.requirement("R3.3")
def test_it_is_waited_for_twice_as_long_as_is_promised() -> None:
    assert cold.patience(POLICY) == cold.patience(POLICY, "Standard") == timedelta(hours=10)
    assert cold.patience(POLICY, "Expedited") == timedelta(hours=1)


@pytest.mark.requirement("R3.3")
def test_what_stays_cold_ends_the_wait_with_how_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    stands = Retrieval("archive-financial-2026-11", warm=1, cold=2, coming=3, retrieved=4, waiting_bytes=5_000_000)
    monkeypatch.setattr(cold, "look", lambda *_: stands)
    pauses: list[float] = []
    with pytest.raises(StillCold, match=r"5 of 10 objects can be read; 3 are on their way, 2 are cold \(5.0 MB\)"):
        cold.wait(None, None, POLICY, "Expedited", report=lambda _: None, pause=pauses.append)  # type: ignore[arg-type]
    assert sum(pauses) == pytest.approx(3600 + 300)


@pytest.mark.requirement("R3.3")
def test_what_the_store_says_to_a_retrieval_is_understood(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = catalog.bucket

    def answers(code: str, status: int) -> None:
        told: Any = {"Error": {"Code": code, "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}}

        def refuse(**_: object) -> None:
            raise ClientError(told, "RestoreObject")

        monkeypatch.setattr(bucket.client, "restore_object", refuse)

    for code, status in (("RestoreAlreadyInProgress", 409), ("ObjectAlreadyInActiveTierError", 403)):
        answers(code, status)
        bucket.retrieve("k", tier="Standard", days=7)
    answers("GlacierExpeditedRetrievalNotAvailable", 503)
    with pytest.raises(StoreError, match="ask for Standard"):
        bucket.retrieve("k", tier="Expedited", days=7)
    answers("NoSuchKey", 404)
    with pytest.raises(ObjectMissing):
        bucket.retrieve("k", tier="Bulk", days=7)


@pytest.mark.requirement("R3.3", "R5.4")
def test_only_archives_go_to_glacier_and_nothing_that_is_current_expires() -> None:
    rules = desired(POLICY)
    assert [rule["Filter"]["Prefix"] for rule in rules if "Transitions" in rule] == ["archive/"]
    assert not any("Expiration" in rule or "NoncurrentVersionTransitions" in rule for rule in rules)


def test_versions_expire_only_where_the_current_one_counts() -> None:
    expiring = {rule["Filter"]["Prefix"] for rule in desired(POLICY) if "NoncurrentVersionExpiration" in rule}
    assert expiring == set(CURRENT_COUNTS) == {"full/", "incremental/", "snapshot/", "archive/", "packs/"}


def test_rules_are_compared_in_words_and_not_in_a_stores_spelling() -> None:
    [*_, ours] = desired(POLICY)
    cephs = {**ours, "Prefix": ""}
    del cephs["Filter"]
    assert in_words([ours]) == in_words([cephs])
    assert in_words([{**ours, "Status": "Disabled"}]) != in_words([ours])
    tagged = {**ours, "Filter": {"And": {"Prefix": "", "Tags": [{"Key": "a", "Value": "b"}]}}}
    assert in_words([tagged]) != in_words([ours])

"""Which bucket a failover writes to first, and which others it tells (R3.2, R5.3)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from include.disaster.plan import COPIES, Copy
from include.operators import connections
from include.operators.copies import OTHER_ANSWERS_WITHIN, catalogs
from include.policy import load_policy

STORAGE = load_policy().storage


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run whose buckets are their names; the other copy's is asked with a limit."""

    def bucket(conn_id: str, *, name: str, region: str, stall_limit: object) -> str:
        assert stall_limit == OTHER_ANSWERS_WITHIN
        place = STORAGE.primary if conn_id == STORAGE.primary.connection else STORAGE.replica
        assert (place.bucket, place.region) == (name, region)
        return name

    monkeypatch.setattr(connections, "bucket", bucket)
    own = {"catalog": "the primary", "replica": "the replica"}
    return SimpleNamespace(policy=load_policy(), keyring=None, **own)


@pytest.mark.requirement("R3.2", "R5.3")
@pytest.mark.parametrize("copy", COPIES)
def test_the_copy_that_is_recovered_from_comes_first_and_the_other_one_behind_it(here: Any, copy: Copy) -> None:
    first, other = catalogs(here, copy)
    assert str(first) == f"the {copy}"
    away = STORAGE.replica if copy == "primary" else STORAGE.primary
    assert str(other.bucket) == away.bucket

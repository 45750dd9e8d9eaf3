"""Which full backup a month is archived from, and what of it is a class's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from include.backup.archive import NothingToArchive, choose_full, cut_down
from include.repository.catalog import Catalog
from include.repository.manifest import Manifest
from include.repository.verification import INTEGRITY, Record, store_record
from tests.manifests import commit, make

MONTH = datetime(2026, 11, 30, 12, tzinfo=UTC)


def full(catalog: Catalog, day: int, **changes: object) -> Manifest:
    """A full backup so many days after 22 November."""
    return commit(catalog, make(day, **changes))


def prove(catalog: Catalog, manifest: Manifest, *, passed: bool = True) -> None:
    record = Record(
        backup=manifest.id,
        attempt=manifest.attempt,
        proof=INTEGRITY,
        subject=None,
        passed=passed,
        when=datetime.now(UTC),
        bucket=catalog.bucket.name,
        by="the test",
        because=None,
        milliseconds=1,
        facts={},
        what=None if passed else "It is broken.",
        mend=None if passed else "Mend it.",
    )
    store_record(catalog.bucket, catalog.keyring, record)


@pytest.mark.requirement("R8.1")
def test_it_is_the_first_of_the_month_that_is_verified(catalog: Catalog) -> None:
    october, unproved, failed, first, later, december = (full(catalog, day) for day in (-22, -20, -10, 0, 3, 9))
    for each in (october, first, later, december):
        prove(catalog, each)
    prove(catalog, failed, passed=False)

    assert choose_full(catalog, MONTH).id == first.id
    assert choose_full(catalog, MONTH - timedelta(days=30)).id == october.id
    assert choose_full(catalog, MONTH + timedelta(days=1)).id == december.id
    assert unproved.consistency_point.time < first.consistency_point.time


@pytest.mark.requirement("R8.1")
def test_the_consistency_point_says_which_month_it_is_of(catalog: Catalog) -> None:
    """One that was taken late, in the next month, is not of the month that its name says."""
    late = full(catalog, 0, point=datetime(2026, 12, 1, 0, 0, 1, tzinfo=UTC))
    prove(catalog, late)

    assert choose_full(catalog, MONTH + timedelta(days=1)).id == late.id
    with pytest.raises(NothingToArchive, match="2026-11"):
        choose_full(catalog, MONTH)


def test_those_that_are_not_verified_are_named(catalog: Catalog) -> None:
    unproved = full(catalog, 0)
    with pytest.raises(NothingToArchive, match=f"there are {unproved.id}, and none has passed") as refused:
        choose_full(catalog, MONTH)
    assert f"verify {unproved.id}" in refused.value.mend


WHOLE = {
    "tables": {"public.users": {"rows": 3}, "public.invoices": {"rows": 2}, "public.loose": {"rows": 1}},
    "sequences": {"public.ids": {"last_value": 7}},
    "large_objects": {"count": 1},
    "components": {
        "user_data": ["public.users"],
        "billing": ["public.invoices"],
        "unclassified_database": ["public.loose"],
    },
}


@pytest.mark.requirement("R8.1")
def test_an_inventory_is_cut_down_to_its_components() -> None:
    billing = cut_down(WHOLE, ["billing"])
    rest = cut_down(WHOLE, ["user_data", "unclassified_database"])

    assert billing["tables"] == {"public.invoices": {"rows": 2}}
    assert billing["components"] == {"billing": ["public.invoices"]}
    assert (billing["large_objects"], rest["large_objects"]) == (None, {"count": 1})
    assert set(rest["tables"]) == {"public.users", "public.loose"}
    assert billing["sequences"] == WHOLE["sequences"]

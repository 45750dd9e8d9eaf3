"""A slot that was missed: adopted by a later backup, or taken late and labelled so (R5.5)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from include.backup.adoption import Adopted, late_by, late_warning
from include.repository.catalog import Catalog
from include.repository.manifest import Slot
from include.repository.verification import INTEGRITY, Record, store_record
from tests.manifests import MIDNIGHT, commit, make

DAY = timedelta(days=1)
SLOT = Slot(start=MIDNIGHT - DAY, end=MIDNIGHT)
BACKUP = make().backup


def test_a_slot_is_not_late_before_the_next_one_is_due(catalog: Catalog) -> None:
    commit(catalog, make(1))

    assert late_by(BACKUP, SLOT, catalog, now=MIDNIGHT + DAY - timedelta(seconds=1)) is None


def test_a_manual_run_is_never_late(catalog: Catalog) -> None:
    commit(catalog, make(1))

    assert late_by(BACKUP, None, catalog, now=MIDNIGHT + 7 * DAY) is None


def test_a_late_slot_that_nothing_covers_is_taken_and_says_how_late(catalog: Catalog) -> None:
    commit(catalog, make(-1))
    late = late_by(BACKUP, SLOT, catalog, now=MIDNIGHT + 2 * DAY + timedelta(hours=1, milliseconds=7))

    assert late is not None
    assert "2 days, 1:00:00 after its slot ended" in late_warning(BACKUP, late)


def test_a_late_slot_is_adopted_by_the_first_backup_after_it(catalog: Catalog) -> None:
    for day in (3, 2, -1):
        commit(catalog, make(day))
    with pytest.raises(Adopted, match=r"full-20261122T000000Z is adopted by full-20261124T000000Z") as adopted:
        late_by(BACKUP, SLOT, catalog, now=MIDNIGHT + 4 * DAY)

    assert adopted.value.by == make(2)


def test_what_failed_its_verification_adopts_nothing(catalog: Catalog) -> None:
    failed = commit(catalog, make(1))
    verdict = Record(
        backup=failed.id,
        attempt=failed.attempt,
        proof=INTEGRITY,
        passed=False,
        when=MIDNIGHT + DAY,
        bucket=catalog.bucket.name,
        by="somebody@somewhere",
        milliseconds=5,
        facts={},
        what="It is broken.",
        mend="Mend it.",
    )
    store_record(catalog.bucket, catalog.keyring, verdict)

    assert late_by(BACKUP, SLOT, catalog, now=MIDNIGHT + 2 * DAY) == 2 * DAY

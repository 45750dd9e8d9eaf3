"""The hours of the schedule: complete, adopted, gap or missing; and gaps as they lie in the bucket."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.policy import load_policy
from include.repository.catalog import Catalog
from include.repository.ledger import Gap, GapRefused, Ledger, declare, intervals, newest_recoverable, read_gaps, slots
from include.repository.lsn import Lsn, segment_name
from include.repository.wal import Shipped
from tests.manifests import MIDNIGHT, SEGMENT, commit, window

QUARTER = "*/15 * * * *"


def gap(first: int, last: int, *, after: int, before: int, system_identifier: str = "1") -> Gap:
    return Gap(
        system_identifier=system_identifier,
        timeline=1,
        start_lsn=Lsn(first * SEGMENT),
        end_lsn=Lsn(last * SEGMENT),
        after=MIDNIGHT + timedelta(minutes=after),
        before=MIDNIGHT + timedelta(minutes=before),
        because="it was lost.",
        declared=MIDNIGHT,
    )


def states(until: int, *manifests: object, gaps: tuple[Gap, ...] = ()) -> list[str]:
    found = intervals(
        QUARTER,
        MIDNIGHT,
        MIDNIGHT + timedelta(minutes=until),
        manifests=manifests,
        gaps=gaps,  # type: ignore[arg-type]
    )
    return [each.state for each in found]


def test_an_hour_is_complete_adopted_or_missing() -> None:
    base = window("snapshot", 1, (1, 2))
    made = window("incremental", 15, (2, 3), since=1), window("incremental", 60, (3, 4), since=15)
    assert states(75, base, *made) == ["complete", "adopted", "adopted", "complete", "missing"]
    late = window("incremental", 47, (3, 4), since=15)
    assert states(75, base, made[0], late) == ["complete", "adopted", "adopted", "missing", "missing"]
    assert states(30, base, window("incremental", 35, (2, 3), since=1)) == ["missing", "adopted"]
    beyond = window("incremental", 70, (5, 6), since=32)
    assert states(60, base, made[0], beyond) == ["complete", "missing", "missing", "adopted"]


def test_an_hour_is_of_the_cluster_that_was_backed_up_then(catalog: Catalog) -> None:
    """Failed over after the first hour, and back to the same server in the fourth."""
    for made in (window("snapshot", 1, (1, 2)), window("incremental", 60, (2, 3), since=1)):
        commit(catalog, made)
    for made in (window("snapshot", 90, (1, 2)), window("incremental", 180, (2, 3), since=90)):
        database = made.database.model_copy(update={"system_identifier": "2"})
        commit(catalog, made.model_copy(update={"database": database}))
    commit(catalog, window("incremental", 230, (3, 5), since=60))
    commit(catalog, window("incremental", 300, (5, 6), since=230))
    told = Ledger.read(catalog, load_policy(), since=MIDNIGHT, until=MIDNIGHT + timedelta(hours=5))
    assert [each.state for each in told.slots] == ["complete", "missing", "complete", "missing", "complete"]
    assert told.newest is not None
    assert told.newest.backup == "incremental-20261122T050000Z"


def test_a_gap_goes_on_until_there_is_a_base_behind_it() -> None:
    made = window("snapshot", 1, (1, 2)), window("incremental", 15, (2, 3), since=1)
    lost = gap(3, 5, after=15, before=32)
    assert states(75, *made, gaps=(lost,)) == ["complete", "gap", "gap", "gap", "gap"]
    behind = window("snapshot", 48, (5, 6)), window("incremental", 80, (5, 7), since=32)
    assert states(75, *made, *behind, gaps=(lost,)) == ["complete", "gap", "gap", "gap", "adopted"]


@given(
    st.integers(0, 300 * 86_400).map(lambda seconds: MIDNIGHT - timedelta(seconds=seconds)),
    st.integers(0, 400),
)
def test_slots_are_the_schedules_and_follow_each_other(since: datetime, minutes: int) -> None:
    until = since + timedelta(minutes=minutes)
    found = list(slots(QUARTER, since, until))
    assert all(end - start == timedelta(minutes=15) for start, end in found)
    assert all(before[1] == after[0] for before, after in pairwise(found))
    assert all(end.minute % 15 == end.second == end.microsecond == 0 for _, end in found)
    ticks = {since.replace(minute=0, second=0, microsecond=0) + n * timedelta(minutes=15) for n in range(40)}
    assert {end for _, end in found} == {each for each in ticks if since < each <= until}


def test_the_newest_moment_reaches_as_far_as_was_shipped_without_a_hole() -> None:
    made = window("snapshot", 1, (1, 2)), window("incremental", 15, (2, 3), since=1)
    copies = {
        name: (Shipped(name, "0" * 16, 7, MIDNIGHT),)
        for name in (segment_name(1, Lsn(number * SEGMENT), SEGMENT) for number in (3, 4, 6))
    }
    newest = newest_recoverable(made, copies)
    assert newest is not None
    assert (newest.backup, newest.reaches) == (made[1].id, 5 * SEGMENT)
    alone = newest_recoverable(made, {})
    assert alone is not None
    assert (alone.reaches, alone.shipped) == (3 * SEGMENT, None)
    assert newest_recoverable((), copies) is None


def test_a_gap_is_declared_once_and_read_back(catalog: Catalog) -> None:
    first, second = gap(5, 8, after=1, before=2), gap(9, 10, after=3, before=4)
    for each in (second, first, first.model_copy(update={"because": "another word."})):
        declare(catalog.bucket, catalog.keyring, each)
    declare(catalog.bucket, catalog.keyring, gap(5, 8, after=1, before=2, system_identifier="2"))
    assert read_gaps(catalog.bucket, catalog.keyring, "1") == (first, second)
    assert first.home == "ledger/1/0000000000500000-0000000000800000.json"


def test_a_gap_that_is_not_genuine_is_refused(catalog: Catalog) -> None:
    told = gap(5, 8, after=1, before=2)
    catalog.bucket.create(told.home, told.sealed(catalog.keyring).replace(b"lost", b"kept"))
    with pytest.raises(GapRefused, match="0000000000500000"):
        read_gaps(catalog.bucket, catalog.keyring, "1")

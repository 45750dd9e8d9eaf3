"""Up to where the log is in both regions: the slot never passes what is in one only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.backup.replicate import durable_in_both
from include.repository.chain import Chain
from include.repository.lsn import Lsn
from include.repository.timelines import TimelineHistory
from tests.manifests import SEGMENT, window


def chain(*numbers: int) -> Chain:
    """A base of the first segment, and the windows of so many: number n is of the segment n."""
    made = [window("snapshot", 1, (0, 1)), *(window("incremental", n + 1, (n, n + 1)) for n in numbers)]
    return Chain("1", TimelineHistory(1), SEGMENT, tuple(made))


@pytest.mark.requirement("R3.2", "R5.5")
@given(st.integers(1, 8), st.sets(st.integers(1, 8)))
def test_the_slot_never_passes_a_window_that_is_in_one_region_only(count: int, missing: set[int]) -> None:
    there = [number for number in range(1, count + 1) if number not in missing]
    reached = durable_in_both(chain(*range(1, count + 1)), chain(*there))
    without_a_hole = next((number for number in range(1, count + 1) if number in missing), count + 1)
    # Where nothing is there behind the hole, the replica's own end is before it.
    assert reached == Lsn(without_a_hole * SEGMENT)


def test_without_a_base_in_the_replica_nothing_is_durable() -> None:
    none = Chain("1", TimelineHistory(1), SEGMENT, ())
    assert durable_in_both(chain(1), none) is None
    assert durable_in_both(none, chain(1)) is None


def test_a_window_from_before_the_replicas_base_is_no_hole() -> None:
    newer = window("snapshot", 9, (5, 6))
    primary = Chain("1", TimelineHistory(1), SEGMENT, (*chain(1, 2, 3, 4, 5).manifests, newer))
    replica = Chain("1", TimelineHistory(1), SEGMENT, (*chain(1, 3, 4, 5).manifests, newer))
    assert durable_in_both(primary, replica) == Lsn(6 * SEGMENT)

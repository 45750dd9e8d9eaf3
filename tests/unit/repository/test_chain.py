"""Where the next window begins, and what it stands on; along timelines, behind gaps."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.repository.chain import Chain, ClusterChanged, NoBase, OldPrimary, require_same_cluster
from include.repository.ledger import Gap
from include.repository.lsn import Lsn
from include.repository.manifest import Manifest
from include.repository.timelines import TimelineHistory
from tests.manifests import MIDNIGHT, SEGMENT, wal_file, window

ONE = TimelineHistory(1)


def gap(first: int, last: int, *, timeline: int = 1) -> Gap:
    return Gap(
        system_identifier="1",
        timeline=timeline,
        start_lsn=Lsn(first * SEGMENT),
        end_lsn=Lsn(last * SEGMENT),
        after=MIDNIGHT,
        before=MIDNIGHT + timedelta(minutes=1),
        because="it was lost.",
        declared=MIDNIGHT,
    )


def chain(*manifests: Manifest, history: TimelineHistory = ONE, gaps: tuple[Gap, ...] = (), **others: Any) -> Chain:
    return Chain("1", history, SEGMENT, manifests=manifests, gaps=gaps, **others)


def test_the_first_window_begins_where_the_newest_snapshot_ends() -> None:
    assert chain().durable_end() is None
    told = chain(window("snapshot", 1, (1, 3)), window("snapshot", 2, (4, 6)))
    assert told.durable_end() == 6 * SEGMENT
    assert told.predecessor() == told.manifests[1]


def test_windows_go_on_from_windows_whatever_snapshots_are_made_meanwhile() -> None:
    told = chain(window("snapshot", 1, (1, 3)), window("incremental", 2, (3, 5)), window("snapshot", 3, (5, 9)))
    assert told.durable_end() == 5 * SEGMENT
    assert told.predecessor() == told.manifests[1]
    assert told.require_base() == told.manifests[2]


def test_the_chain_goes_on_behind_a_gap_on_a_base_behind_it() -> None:
    before = window("snapshot", 1, (1, 3)), window("incremental", 2, (3, 5))
    told = chain(*before, gaps=(gap(5, 8),))
    assert told.durable_end() == 8 * SEGMENT
    with pytest.raises(NoBase, match="before the last declared gap"):
        told.require_base()
    behind = chain(*before, window("snapshot", 4, (8, 9)), gaps=(gap(5, 8),))
    assert behind.require_base() == behind.manifests[2]
    assert behind.durable_end() == 8 * SEGMENT
    assert behind.gap_at(Lsn(8 * SEGMENT)) == gap(5, 8)


def test_a_snapshot_whose_verification_failed_is_no_base() -> None:
    made = window("snapshot", 1, (1, 3))
    with pytest.raises(NoBase, match="failed its verification"):
        chain(made, failed=frozenset({made.id})).require_base()


def test_another_cluster_is_refused_until_it_has_a_base() -> None:
    others = window("snapshot", 1, (1, 3))
    others = others.model_copy(update={"database": others.database.model_copy(update={"system_identifier": "2"})})
    with pytest.raises(ClusterChanged, match="cluster 2"):
        require_same_cluster([others], "1", connection="db")
    require_same_cluster([others, window("snapshot", 2, (1, 3))], "1", connection="db")
    assert chain(others).durable_end() is None


def test_a_cluster_that_comes_back_begins_again_with_its_new_base() -> None:
    others = window("snapshot", 4, (1, 3))
    others = others.model_copy(update={"database": others.database.model_copy(update={"system_identifier": "2"})})
    known = window("snapshot", 1, (1, 3)), window("incremental", 2, (3, 6)), others
    assert chain(*known).durable_end() == 6 * SEGMENT
    back = window("snapshot", 6, (11, 13))
    assert chain(*known, back).durable_end() == 13 * SEGMENT
    assert chain(*known, back).predecessor() == back
    assert chain(*known, back, failed=frozenset({back.id})).durable_end() == 6 * SEGMENT
    later = window("incremental", 7, (13, 14))
    assert chain(*known, back, later).windows == [later]


def test_what_was_written_on_an_ancestor_counts_up_to_where_it_was_left() -> None:
    history = TimelineHistory(2, ((1, Lsn(4 * SEGMENT + 77)),))
    base = window("snapshot", 1, (1, 3))
    assert chain(base, window("incremental", 2, (3, 6)), history=history).durable_end() == 4 * SEGMENT
    beside = window("incremental", 3, (6, 8))
    assert chain(base, window("incremental", 2, (3, 6)), beside, history=history).durable_end() == 4 * SEGMENT
    assert chain(base, beside, history=history).durable_end() == 3 * SEGMENT
    assert chain(base, window("incremental", 2, (3, 4)), history=history).durable_end() == 4 * SEGMENT
    assert chain(base, window("incremental", 2, (2, 3)), history=history).durable_end() == 3 * SEGMENT


def test_a_base_that_ended_after_its_timeline_was_left_is_none() -> None:
    history = TimelineHistory(2, ((1, Lsn(SEGMENT + 0x400)),))
    assert chain(window("snapshot", 1, (1, 3)), history=history).base() is None


def test_the_old_primary_is_refused_until_a_base_says_that_it_is_meant() -> None:
    new = TimelineHistory(2, ((1, Lsn(4 * SEGMENT)),))
    known = window("snapshot", 1, (1, 3)), window("incremental", 2, (3, 6), history=new)
    with pytest.raises(OldPrimary, match=r"timeline 1 .* is of timeline 2"):
        chain(*known).require_same_branch(connection="db", histories={})
    chain(*known, window("snapshot", 3, (6, 7))).require_same_branch(connection="db", histories={})
    chain(*known, history=new).require_same_branch(connection="db", histories={})


def test_a_timeline_of_the_same_number_that_began_elsewhere_is_refused() -> None:
    new = TimelineHistory(2, ((1, Lsn(4 * SEGMENT)),))
    history = wal_file("00000002.history")
    known = window("snapshot", 1, (1, 3)), window("incremental", 2, (3, 6), history=new, files=(history,))
    same = {"00000002.history": history.raw_sha256}
    chain(*known, history=new).require_same_branch(connection="db", histories=same)
    with pytest.raises(OldPrimary, match=r"another 00000002\.history"):
        chain(*known, history=new).require_same_branch(connection="db", histories={"00000002.history": "other"})


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("window"), st.integers(1, 4)),
            st.tuples(st.just("gap"), st.integers(1, 4)),
            st.tuples(st.just("base"), st.integers(1, 4)),
            st.tuples(st.just("failover"), st.integers(-3 * SEGMENT, 3 * SEGMENT)),
        ),
        max_size=10,
    )
)
def test_whatever_happened_the_next_window_begins_where_the_last_durable_byte_is(
    events: list[tuple[str, int]],
) -> None:
    """A life of the cluster: windows, lost stretches, new bases, and promotions at any place near the end."""
    made, gaps, history = [window("snapshot", 0, (1, 2)), window("incremental", 1, (2, 20))], [], ONE
    durable, base = Lsn(20 * SEGMENT), made[0]
    for minute, (event, much) in enumerate(events, start=2):
        first, last = durable // SEGMENT, durable // SEGMENT + much
        if event == "window":
            made.append(window("incremental", minute, (first, last), history=history))
            durable = Lsn(last * SEGMENT)
        elif event == "gap":
            gaps.append(gap(first, last, timeline=history.timeline))
            durable, base = Lsn(last * SEGMENT), None
        elif event == "base":
            made.append(window("snapshot", minute, (first, last), history=history))
            base = made[-1]
        else:
            left = Lsn(durable + much)
            known = [each.base.stop_lsn for each in made if each.base] + [each.end_lsn for each in gaps]
            if left < max([*known, *(end for _, end in history.switches)]):
                return  # back to before what the model knows
            history = TimelineHistory(history.timeline + 1, (*history.switches, (history.timeline, left)))
            durable = min(durable, Lsn(left - left % SEGMENT))
        told = chain(*made, history=history, gaps=tuple(gaps))
        assert told.durable_end() == durable
        assert told.base() == base

"""What is taken for a drill's leftover on a worker, and what is not (R5.3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from include.disaster.isolation import directory, drill_places, erase, leftovers, plan_directory, stamp

RUN, OTHER = "20261122t103712123456", "20261122t103712123457"


@pytest.mark.requirement("R5.3")
def test_two_runs_of_one_moment_share_no_places_and_a_cleared_one_finds_its_own() -> None:
    moment = datetime(2026, 11, 22, 10, 37, 12, 123456, tzinfo=UTC)
    one = stamp(moment, "manual__1")
    assert one == stamp(moment.astimezone(timezone(timedelta(hours=2))), "manual__1")
    assert one[:-6] == "20261122t103712"
    assert len({stamp(moment, f"manual__{each}") for each in range(1, 100)} | {one}) == 99  # of these ids no two meet


@pytest.mark.requirement("R5.3")
def test_what_bears_no_moment_is_nobodys_leftover_and_a_plan_that_was_killed_is(tmp_path: Path) -> None:
    names = [directory(RUN), plan_directory(OTHER), "drill-99999999t999999999999", f"drill-{RUN}-plans", f"drill_{RUN}"]
    for name in names:
        (tmp_path / name).mkdir()
    found = leftovers(server=None, bucket=None, root=tmp_path, before=datetime(2026, 11, 23, tzinfo=UTC))
    assert [each.run for each in found] == [RUN, OTHER]
    before = datetime(2026, 11, 22, 10, 37, 12, 123457, tzinfo=UTC)
    assert [each.run for each in leftovers(server=None, bucket=None, root=tmp_path, before=before)] == [RUN]


@pytest.mark.requirement("R5.3")
def test_a_drill_that_was_killed_while_it_was_planned_leaves_nothing(tmp_path: Path) -> None:
    places = drill_places(RUN, server=None, bucket=None, root=tmp_path)
    for name in (directory(RUN), plan_directory(RUN), plan_directory(OTHER)):
        (tmp_path / name).mkdir()
    assert len(erase(places, tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == [plan_directory(OTHER)]

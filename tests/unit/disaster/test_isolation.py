"""What is taken for a drill's leftover on a worker, and what is not (R5.3)."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from include.disaster.isolation import directory, drill_places, erase, leftovers, plan_directory, stamp
from include.recovery.moments.places import Places

OLDER, RUN, OTHER = "20261121t103712123456", "20261122t103712123456", "20261122t103712123457"


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


class Shown:
    """A server and a bucket that have these names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def connect(self, **_: object) -> Any:
        return nullcontext(SimpleNamespace(execute=lambda _: [(name,) for name in self.names]))

    def versions(self, prefix: str) -> list[Any]:
        return [SimpleNamespace(key=name) for name in self.names if name.startswith(prefix)]


@pytest.mark.requirement("R5.3")
def test_a_name_that_only_looks_like_a_drills_is_left_alone_and_the_oldest_goes_first(tmp_path: Path) -> None:
    near = "{0}s", "x{0}", "{0}-plan"
    databases = [f"drill_{RUN}", "synapse", "drill_", *(f"drill_{each.format(OTHER)}" for each in near)]
    databases += [f"my_drill_{OTHER}", f"DRILL_{OTHER}", f"drill_{OTHER[:-1]}٣"]  # a digit, and none of ours
    prefixes = [f"drills/{OLDER}/", *(f"drills/{each.format(OTHER)}/" for each in near), f"recovered/{OTHER}/"]
    objects = [f"{prefix}uploads/{name}" for prefix in prefixes for name in ("a", f"drills/{OTHER}/b")]
    found = leftovers(
        server=cast("Any", Shown(*databases)),
        bucket=cast("Any", Shown(*objects)),
        root=tmp_path / "nobody made it yet",
        before=datetime(2026, 11, 23, tzinfo=UTC),
    )
    assert [each.what for each in found] == [f"objects below drills/{OLDER}/", f"the database drill_{RUN}"]


def test_only_a_drill_is_erased(tmp_path: Path) -> None:
    live = tmp_path / directory(RUN)
    live.mkdir()
    with pytest.raises(ValueError, match="only a drill"):
        erase(Places(None, None, None, "", live, (), live=True, run=RUN), tmp_path)
    assert live.is_dir()

"""The forecast: by today's bytes, by what the last drills took, and what it asks for when it is too long."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from include.disaster.forecast import COSTS, OBJECT_WEIGHT, Cost, Forecast, Measured, Speeds, amounts, forecast
from include.policy import load_policy
from include.recovery.cluster.target import StopAt
from include.recovery.moments.plan import (
    EVERYTHING,
    ConfigurationSource,
    ObjectsSource,
    RecoveryPlan,
    Skew,
    Target,
    What,
)
from include.repository.lsn import Lsn
from include.repository.manifest import Artifact, Manifest, StoredSegment
from include.repository.timelines import TimelineHistory
from tests.manifests import SEGMENT, make, window

POLICY = load_policy()
MB = 1_000_000


def artifact(name: str, raw: int) -> Artifact:
    stored = StoredSegment(key="k", raw_bytes=raw, raw_sha256="r", stored_bytes=raw // 4, stored_sha256="s")
    return Artifact(
        name=name,
        component="structure",
        retention_class="system_config",
        attempt="0123456789abcdef",
        segments=(stored,),
        milliseconds=1,
    )


def snapshot(base: int, *, objects: int = 1000) -> Manifest:
    """One with so many bytes of base."""
    made = window("snapshot", 0, (1, 3), artifacts=(artifact("database/base.tar", base),))
    return made.model_copy(
        update={"objects": made.objects.model_copy(update={"objects": objects, "raw_bytes": 100 * MB})}
    )


def planned(base: int, log: int, what: tuple[What, ...] = EVERYTHING) -> RecoveryPlan:
    """A plan of a base of so many bytes, and so many segments of log."""
    made = snapshot(base)
    point = made.consistency_point
    return RecoveryPlan(
        target=Target.parse("latest"),
        what=what,
        system_identifier="1",
        base=made,
        history=TimelineHistory(1),
        segment_bytes=SEGMENT,
        wal=(),
        end_lsn=Lsn((log + 1) * SEGMENT),
        stop=StopAt(name=point.restore_point, lsn=Lsn.parse(point.lsn)),
        at=None,
        reaches=point.time,
        objects=ObjectsSource(made, (), (), point.objects_as_of) if "objects" in what else None,
        configuration=ConfigurationSource(made, made, point.time) if "configuration" in what else None,
        skew=Skew(None, None),
        download_bytes=0,
        raw_bytes=0,
        download_seconds=0,
        unpack_seconds=0,
        replay_seconds=0,
    )


@pytest.mark.requirement("R5.4")
def test_it_grows_with_the_log_and_the_rows_and_nothing_is_left_out() -> None:
    small, weekly = (forecast(planned(500 * MB, log), Speeds()) for log in (10, 10_000))

    assert weekly.seconds["replay"] - small.seconds["replay"] == pytest.approx(COSTS["replay"].unit * 9_990 * SEGMENT)
    assert weekly.total - small.total == pytest.approx(weekly.seconds["replay"] - small.seconds["replay"])
    assert set(small.seconds) == set(COSTS) - {"restore"}
    assert forecast(planned(5000 * MB, 10), Speeds()).total > 2 * small.total


def test_what_does_not_come_back_takes_no_time() -> None:
    assert set(amounts(planned(500 * MB, 10, ("database",)))) == {
        "steps",
        "unpack",
        "replay",
        "copy",
        "data_consistency",
        "service_health",
    }
    files = set(amounts(planned(500 * MB, 10, ("objects",))))
    assert files == {"steps", "objects", "application_state", "service_health"}


def test_log_counts_from_the_base_on_and_a_base_with_all_its_tablespaces() -> None:
    plan = planned(500 * MB, 10)
    assert amounts(plan)["replay"] == 10 * SEGMENT
    more = (*plan.base.artifacts, artifact("database/tablespace-16384.tar", 70 * MB))
    whole = replace(plan, base=plan.base.model_copy(update={"artifacts": more}))
    assert amounts(whole)["unpack"] == 570 * MB


def test_a_full_backup_is_restored_not_replayed() -> None:
    full = make(0, artifacts=(artifact("database/users.pgdump", 50 * MB), artifact("config/repository.bundle", MB)))

    told = forecast(full, Speeds())

    assert told.amounts["restore"] == 50 * MB
    assert told.amounts["configuration"] == MB
    assert told.amounts["data_consistency"] == 3 * 50 * MB  # a cluster is larger than what was dumped of it
    assert not {"unpack", "replay", "copy"} & set(told.seconds)


@pytest.mark.requirement("R5.4")
def test_each_increment_of_objects_counts_and_an_empty_cluster_has_no_rows() -> None:
    plan, more = planned(MB, 10), snapshot(0, objects=7)
    assert plan.objects is not None
    grown = replace(plan, objects=replace(plan.objects, increments=(more, more)))
    assert amounts(grown)["application_state"] == amounts(plan)["application_state"] + 14
    weight = 2 * (100 * MB + 7 * OBJECT_WEIGHT)
    assert amounts(grown)["objects"] == amounts(plan)["objects"] + weight
    assert (amounts(plan)["copy"], amounts(plan)["data_consistency"]) == (0, 0)


@pytest.mark.requirement("R5.4")
def test_until_somebody_measured_it_a_base_comes_no_faster_than_it_was_stored() -> None:
    plan = replace(planned(500 * MB, 10), download_bytes=250 * MB, download_seconds=1000)
    assert forecast(plan, Speeds()).seconds["unpack"] == pytest.approx(500)  # half of it is the base
    near = replace(plan, download_seconds=1e-3)
    assert forecast(near, Speeds()).seconds["unpack"] == pytest.approx(COSTS["unpack"].of(500 * MB))
    known = Cost(1.0, 1e-9)
    assert forecast(plan, Speeds({"unpack": known})).seconds["unpack"] == pytest.approx(known.of(500 * MB))


@pytest.mark.requirement("R5.4")
def test_what_drills_took_says_how_fast_this_place_is_phase_by_phase() -> None:
    plan = planned(500 * MB, 1000)
    guess = forecast(plan, Speeds())
    slow = [
        Measured("replay", guess.amounts["replay"], 3 * guess.seconds["replay"]),
        Measured("copy", guess.amounts["copy"] // 4, COSTS["copy"].of(guess.amounts["copy"] // 4)),
        Measured("restore", 0, 0.0),
        Measured("a step that nobody forecasts", 1, 100.0),
    ]

    told = forecast(plan, Speeds.measured(slow))

    assert told.seconds["replay"] == pytest.approx(3 * guess.seconds["replay"], rel=0.02)
    assert told.seconds["copy"] == pytest.approx(guess.seconds["copy"], rel=0.02)
    assert "replay" not in told.guessed
    [measured, *_] = told.lines()
    assert "of which nobody has measured here: steps, unpack, objects" in measured
    assert next(Forecast({"steps": 60.0}, {}, ()).lines()) == "forecast       1.0 min"
    assert {"objects", "steps"} <= set(told.guessed)
    assert "restore" not in Speeds.measured(slow).costs  # what took no time was not measured


@pytest.mark.requirement("R5.4")
@pytest.mark.parametrize("times", [0.02, 1 / 3, 1.0, 3.0, 50.0])
def test_one_drill_alone_is_forecast_again_as_it_was(times: float) -> None:
    for phase, usual in COSTS.items():
        for amount in (MB, 100 * MB, 10_000 * MB):
            took = times * usual.of(amount)
            assert Speeds.measured([Measured(phase, amount, took)]).seconds(phase, amount) == pytest.approx(
                took, rel=0.1
            )


def test_a_small_drill_says_what_a_phase_costs_by_itself_and_a_large_one_what_its_bytes_cost() -> None:
    usual = COSTS["copy"]
    tiny, huge = 10_000, 10**12
    from_tiny, from_huge = (
        Speeds.measured([Measured("copy", amount, 4 * usual.of(amount))]) for amount in (tiny, huge)
    )

    assert from_tiny.seconds("copy", huge) == pytest.approx(usual.of(huge), rel=0.05)
    assert from_huge.seconds("copy", tiny) == pytest.approx(usual.of(tiny), rel=0.05)


@pytest.mark.requirement("R5.4")
def test_drills_of_two_sizes_measure_both_costs_and_what_lies_between_and_beyond() -> None:
    true = Cost(4 * COSTS["copy"].fixed, COSTS["copy"].unit / 3)
    speeds = Speeds.measured(Measured("copy", amount, true.of(amount)) for amount in (10 * MB, 2000 * MB))

    for amount in (MB, 300 * MB, 20_000 * MB):
        assert speeds.seconds("copy", amount) == pytest.approx(true.of(amount), rel=0.05)


def test_of_drills_that_differ_by_chance_it_is_what_most_of_them_took() -> None:
    amount = 100 * MB
    usual = COSTS["copy"].of(amount)
    speeds = Speeds.measured(Measured("copy", amount, share * usual) for share in (1.8, 2.0, 2.2))

    assert speeds.seconds("copy", amount) == pytest.approx(2 * usual, rel=0.05)


def test_data_and_state_are_looked_at_side_by_side_and_the_service_after_them() -> None:
    told = Forecast({"replay": 10.0, "data_consistency": 7.0, "application_state": 9.0, "service_health": 2.0}, {}, ())

    assert told.total == pytest.approx(21.0)


@pytest.mark.requirement("R5.4")
def test_above_half_of_the_rto_it_asks_for_a_base_in_midweek() -> None:
    half = POLICY.recovery.rto / 2
    told = forecast(planned(500 * MB, 10), Speeds({"replay": Cost(0.0, 1e5 * COSTS["replay"].unit)}))

    assert forecast(planned(500 * MB, 10), Speeds()).above(half) is None
    words = told.above(half)
    assert words is not None
    assert "base in midweek" in words
    assert "snapshot_backup" in words
    assert "2.0 h" in words
    assert told.above(timedelta(seconds=told.total + 1)) is None
    minute = Forecast({"replay": 60.0}, {}, ())
    assert minute.above(timedelta(seconds=60)) is None
    assert minute.above(timedelta(seconds=59)) is not None


def test_it_fits_an_xcom() -> None:
    told = forecast(planned(500 * MB, 10), Speeds()).to_json()

    assert told["total"] > 0
    assert set(told["seconds"]) == set(told["amounts"])

"""What became of a drill: RTO and RPO as they were, what was not kept, whose turn it is; signed, and in the bucket."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest

from include.disaster.history import (
    Drill,
    Looked,
    StepTime,
    newest_drills,
    next_drill,
    overdue,
    read_drills,
    store_drill,
)
from include.disaster.plan import load_plan
from include.pipeline.store import Bucket, ObjectExists
from include.repository.catalog import Catalog

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
PLAN = load_plan()
HELD = Looked(
    kind="data_consistency", name="rows", subject="public.users", expected="7 rows", found="7 rows", passed=True
)


def made(**changed: Any) -> Drill:
    """A drill that kept everything; `changed` makes it another one."""
    declared = changed.pop("declared", NOW)
    values: dict[str, Any] = {
        "run": f"{declared:%Y%m%dt%H%M%S%f}",
        "mode": "drill",
        "scenario": "region_lost",
        "from_copy": "replica",
        "site": None,
        "by": "ada",
        "target": "latest",
        "failed": declared - timedelta(minutes=5),
        "declared": declared,
        "reaches": declared - timedelta(minutes=6),
        "files_as_of": declared - timedelta(minutes=50),
        "healthy": declared + timedelta(minutes=20),
        "promised_rto": 14_400,
        "promised_rpo": 3_600,
        "promised_rpo_files": 5_400,
        "forecast_seconds": 1_100,
        "steps": (StepTime(task="activate_plan", state="success", began=declared, ended=declared),),
        "checks": (HELD,),
    }
    return Drill(**(values | changed))


@pytest.mark.requirement("R5.4", "R5.5")
def test_rto_counts_from_the_declaration_and_rpo_back_from_the_failure() -> None:
    drill = made()
    assert (drill.rto, drill.rpo, drill.rpo_files) == tuple(timedelta(minutes=number) for number in (20, 1, 45))
    assert drill.passed
    assert drill.facts()["RTO"] == "0:20:00 of 4:00:00"
    assert made(healthy=NOW + timedelta(hours=4)).passed  # on the second
    after_the_failure = made(reaches=NOW, files_as_of=NOW)
    assert (after_the_failure.rpo, after_the_failure.rpo_files) == (timedelta(), timedelta())


@pytest.mark.requirement("R5.4", "R5.5")
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"healthy": NOW + timedelta(hours=4, seconds=1)}, "RTO of 4:00:00 missed: 4:00:01"),
        ({"reaches": NOW - timedelta(minutes=66)}, "RPO of 1:00:00 missed: 1:01:00"),
        ({"files_as_of": NOW - timedelta(hours=2)}, "RPO of files of 1:30:00 missed: 1:55:00"),
        ({"healthy": None}, "nobody found it in health"),
        ({"reaches": None, "healthy": None}, "nothing came back"),
        ({"reaches": None, "healthy": None, "checks": (), "due": ("service_health",)}, "nothing came back"),
        ({"steps": (StepTime(task="clean_up", state="failed"),)}, "clean_up failed"),
        ({"checks": (HELD.model_copy(update={"passed": False, "found": "6 rows"}),)}, "rows of public.users"),
        ({"checks": ()}, "nothing was looked at"),
        ({"due": ("data_consistency", "service_health")}, "no check of service health"),
        (
            {"steps": (StepTime(task="check_service_health", state="by hand"),)},
            "check_service_health was marked as success by hand",
        ),
        ({"steps": (StepTime(task="clean_up", state="not reached"),)}, "clean_up was not reached"),
        (
            {
                "steps": (
                    StepTime(task="switch_site", state="failed"),
                    StepTime(task="clean_up", state="not reached"),  # which comes of it
                )
            },
            "switch_site failed",
        ),
        (
            {
                "steps": (
                    StepTime(task="restore_from_backup", state="success", began=NOW, ended=NOW + timedelta(minutes=9)),
                    StepTime(task="check_service_health", state="success", began=NOW + timedelta(minutes=8), ended=NOW),
                )
            },
            "check_service_health looked before restore_from_backup had ended",
        ),
    ],
)
def test_whatever_was_not_kept_is_told(changed: dict[str, Any], words: str) -> None:
    drill = made(**changed)
    assert not drill.passed
    assert drill.missed == [words]
    assert words in str(drill.facts()["missed"])


@pytest.mark.requirement("R5.3", "R5.4", "R5.5")
def test_a_run_is_told_step_by_step_and_what_failed_first() -> None:
    """As it goes: each step behind the one before it, and nobody looked too early."""
    names = ["plan_recovery", "restore_from_backup", "check_service_health", "clean_up"]
    times = [NOW + timedelta(seconds=12.3 * number) for number in range(5)]
    steps = [
        StepTime(task=task, state="success", began=began, ended=ended)
        for task, began, ended in zip(names, times, times[1:], strict=False)
    ]
    skipped = StepTime(task="switch_site", state="skipped")
    drill = made(steps=(*steps, skipped), due=("data_consistency",))
    assert drill.passed
    facts = drill.facts()
    assert (facts["step clean_up"], facts["step switch_site"]) == ("12.3 s", "skipped")
    assert (facts["forecast"], facts["checks"]) == ("0:18:20", "1 of 1 held")
    assert "missed" not in facts
    broken = HELD.model_copy(update={"passed": False, "found": "6 rows", "subject": "public.chats"})
    red = made(checks=(HELD, broken), files_as_of=None, healthy=None, forecast_seconds=None)
    assert (red.facts()["RTO"], red.facts()["RPO of files"]) == ("not reached of 4:00:00", "not reached of 1:30:00")
    assert red.facts()["checks"] == "1 of 2 held"
    assert "forecast" not in red.facts()
    assert list(red.lines())[-2:] == [
        "data_consistency: rows of public.chats: 6 rows (FAILED, expected 7 rows)",
        "data_consistency: rows of public.users: 7 rows (ok)",
    ]


@pytest.mark.requirement("R5.3", "R9")
def test_the_newest_of_each_is_known_from_the_bucket_and_a_forged_one_is_passed_over(
    catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = made(declared=NOW - timedelta(days=60)), made()
    for drill in (new, old):
        store_drill(catalog.bucket, catalog.keyring, drill)
    forged = json.loads(made(declared=NOW + timedelta(days=1)).sealed(catalog.keyring))
    forged["healthy"] = None
    key = made(declared=NOW + timedelta(days=1)).home
    catalog.bucket.create(key, json.dumps(forged, sort_keys=True, separators=(",", ":")).encode())
    between = made(scenario="airflow_lost", declared=NOW - timedelta(days=30))
    store_drill(catalog.bucket, catalog.keyring, between)
    known = read_drills([catalog, catalog])
    assert known == [old, between, new]
    assert key in caplog.text
    assert newest_drills(PLAN, known)["region_lost", "replica"] == new


@pytest.mark.requirement("R5.3", "R9")
def test_a_run_that_was_cleared_is_reported_again_and_its_last_report_counts(catalog: Catalog) -> None:
    first, then = made(healthy=None), made(healthy=NOW + timedelta(minutes=40))
    keys = [store_drill(catalog.bucket, catalog.keyring, drill) for drill in (then, first, first)]
    assert keys == [first.home.removesuffix(".json") + end for end in (".json", ".2.json", ".2.json")]
    [known] = read_drills([catalog])
    assert (known.report, known.healthy) == (2, None)


@pytest.mark.requirement("R5.3", "R9")
def test_where_a_store_ignores_the_condition_a_second_report_is_not_lost_behind_the_first(catalog: Catalog) -> None:
    held: dict[str, list[bytes]] = {}

    class Careless:
        def create(self, key: str, body: bytes) -> None:
            held.setdefault(key, []).append(body)

        def read_oldest(self, key: str) -> bytes:
            return held[key][0]

    for drill in (made(healthy=None), made()):
        store_drill(cast("Bucket", Careless()), catalog.keyring, drill)
    assert len(held) == 2


@pytest.mark.requirement("R5.3", "R9")
def test_a_record_is_what_was_written_first_and_has_one_name(catalog: Catalog) -> None:
    drill = made()
    store_drill(catalog.bucket, catalog.keyring, drill)
    catalog.bucket.put(drill.home, made(by="mallory").sealed(catalog.keyring))
    assert read_drills([catalog]) == [drill]
    elsewhere = NOW.astimezone(timezone(timedelta(hours=14)))
    assert made(run="r", declared=elsewhere).home == made(run="r").home


@pytest.mark.requirement("R5.3", "R9")
def test_a_store_that_takes_no_record_is_not_asked_for_ever(catalog: Catalog) -> None:
    class Full:
        def create(self, *_: object) -> None:
            raise ObjectExists("It is there.", mend="Look.")

    with pytest.raises(ObjectExists):
        store_drill(cast("Bucket", Full()), catalog.keyring, made(report=998))


@pytest.mark.requirement("R5.3", "R9")
def test_the_turn_of_one_copy_is_among_its_own_drills() -> None:
    assert next_drill(PLAN, [], "primary") == next(each for each in PLAN.subjects() if each[1] == "primary")
    drills = [made(scenario=scenario, from_copy=copy) for scenario, copy in PLAN.subjects() if copy == "replica"]
    assert next_drill(PLAN, drills)[1] == "primary"
    assert next_drill(PLAN, drills, "replica")[1] == "replica"


@pytest.mark.requirement("R5.3", "R9")
def test_the_turn_is_whose_drill_was_longest_ago() -> None:
    assert next_drill(PLAN, []) == PLAN.subjects()[0]
    ages = {subject: days for days, subject in enumerate(PLAN.subjects(), start=1)}
    drills = [
        made(scenario=scenario, from_copy=copy, declared=NOW - timedelta(days=days))
        for (scenario, copy), days in ages.items()
    ]
    assert next_drill(PLAN, sorted(drills, key=lambda drill: drill.declared)) == PLAN.subjects()[-1]
    assert next_drill(PLAN, drills[1:]) == PLAN.subjects()[0]
    of_another_plan = made(scenario="flood", declared=NOW - timedelta(days=999))
    assert next_drill(PLAN, [of_another_plan, *drills]) == PLAN.subjects()[-1]


@pytest.mark.requirement("R9")
def test_what_never_passed_is_overdue_and_so_is_what_is_old() -> None:
    recent = made()
    assert ("region_lost", "replica") not in overdue(PLAN, [recent], NOW)
    assert ("region_lost", "replica") in overdue(PLAN, [made(healthy=None)], NOW)
    assert ("region_lost", "replica") in overdue(PLAN, [recent], NOW + timedelta(days=100))
    assert ("database_lost", "primary") in overdue(PLAN, [recent], NOW)
    failover = made(mode="failover", site="dr")
    assert ("region_lost", "replica") in overdue(PLAN, [failover], NOW)

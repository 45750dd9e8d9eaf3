"""What a run of the runbook is written down as (R4.6, R5.4, R5.5): what each step left, and nobody's mark."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from include.disaster import history
from include.disaster.history import Drill, Phase
from include.disaster.plan import DEFAULT, ENVIRONMENT, TASKS
from include.errors import Hopeless
from include.monitoring.messages import Notification
from include.operators.drill_report import ReportDrill
from include.operators.run import Surroundings
from include.operators.timed import TIMES
from include.operators.validation import VALIDATIONS
from include.policy import load_policy
from include.recovery.validation.kept import keep
from include.recovery.validation.validation import KINDS, Check, Kind, Validation
from tests.memory import MemoryBucket
from tests.runbook import NOW, YES, Run

WELL = Check("rows", "public.users", "7", "7", passed=True)
BAD = Check("rows", "public.chats", "7", "6", passed=False)
RECOVERY = load_policy().recovery


class Catalog:
    """The catalog of one copy."""

    keyring = None

    def __init__(self) -> None:
        self.bucket: Any = MemoryBucket()


class Reported:
    """Runs that are reported: what was written down into which copy, and what was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.replica, self.primary = Catalog(), Catalog()
        self.kept: list[Drill] = []
        self.told: list[Notification] = []
        self._root = str(tmp_path)
        monkeypatch.setattr(Surroundings, "replica", self.replica)
        monkeypatch.setattr(Surroundings, "catalog", self.primary)
        monkeypatch.setattr(ReportDrill, "tell", lambda _, __, words: self.told.append(words()) or {})
        monkeypatch.setattr(history, "store_drill", self._store)

    def _store(self, bucket: MemoryBucket, _: object, drill: Drill) -> str:
        assert bucket is (self.replica if drill.from_copy == "replica" else self.primary).bucket
        self.kept.append(drill)
        return drill.home

    def run(self, mode: str = "drill", *, run_id: str = "manual__1", **form: str) -> Run:
        """A run whose steps went well, each a minute after the one before it; the checks of data were made twice."""
        run = Run(mode, copy="replica", **form).declared()
        run.run_id = run_id
        run.states = dict.fromkeys(TASKS, "success")
        if mode == "drill":
            run.states |= {"approve": "skipped", "switch_site": "skipped"}
        for number, task in enumerate(TASKS):
            began = NOW + timedelta(minutes=number)
            ended = began + timedelta(seconds=30 + number)
            if run.states[task] == "success" and task != "approve":
                run.left[task, TIMES] = {"began": began.isoformat(), "ended": ended.isoformat(), "well": True}
        amounts = {"steps": 1, "restore": 7, "data_consistency": 6, "application_state": 5, "service_health": 1}
        run.left["plan_recovery", "return_value"] = {
            "reaches": (NOW - timedelta(minutes=1)).isoformat(),
            "files_as_of": (NOW - timedelta(minutes=2)).isoformat(),
            "forecast": {"total": 300, "amounts": amounts},
        }
        run.left["restore_from_backup", "return_value"] = {"database": "d", "phases": {"restore": 20.5, "else": 1.0}}
        for kind in KINDS:
            self.look(run, kind, WELL)
        return run

    def look(self, run: Run, kind: Kind, *checks: Check, minutes: int = 5) -> None:
        """A validation of the run, kept in its copy."""
        at = NOW + timedelta(minutes=minutes)
        keep(self.replica.bucket, Validation(kind, at, at, checks), dag=run.dag_id, run=run.run_id, task=kind, about="")

    def of(self, run: Run) -> Drill:
        """The record of a run."""
        run.take(ReportDrill(task_id="report", steps=TASKS, scratch_root=self._root))
        return self.kept[-1]


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Reported:
    return Reported(monkeypatch, tmp_path)


@pytest.mark.requirement("R5.3", "R5.4", "R5.5")
def test_a_drill_that_kept_everything_passed_and_says_how_long_each_phase_took(reported: Reported) -> None:
    run = reported.run()
    reported.look(run, "data_consistency", WELL, BAD, minutes=4)
    drill = reported.of(run)
    assert drill.missed == []  # the checks of the last try are well
    assert len(drill.checks) == len(KINDS)
    assert (drill.reaches, drill.files_as_of) == (NOW - timedelta(minutes=1), NOW - timedelta(minutes=2))
    assert drill.healthy == NOW + timedelta(minutes=7, seconds=37)
    assert drill.forecast_seconds == 300
    promised = (drill.promised_rto, drill.promised_rpo, drill.promised_rpo_files)
    policy = (RECOVERY.rto, RECOVERY.rpo, RECOVERY.rpo_files)
    assert promised == tuple(each.total_seconds() for each in policy)
    assert drill.due == ("data_consistency", "service_health", "application_state")
    phases = {"restore": (7, 20_500), "data_consistency": (6, 35_000), "application_state": (5, 36_000)}
    # What is left: 457 s in all, without 36 s of the two side by side, and 20.5, 1 and 37 s of the others.
    phases |= {"service_health": (1, 37_000), "steps": (1, 362_500)}
    assert set(drill.phases) == {
        Phase(name=name, amount=amount, milliseconds=took) for name, (amount, took) in phases.items()
    }
    [told] = reported.told
    assert (told.kind, told.facts["asked for by"]) == ("drill_passed", "ada")
    assert told.about == "Drill region_lost from the replica"


@pytest.mark.requirement("R5.2", "R5.3", "R7.3")
def test_of_a_failover_an_approval_is_an_answer_and_no_mark(reported: Reported) -> None:
    run = reported.run("failover", site="dr")
    marked = reported.of(run)
    assert marked.missed == ["approve was marked as success by hand"]
    run.left["approve", "return_value"] = YES
    drill = reported.of(run)
    assert drill.passed
    assert "steps" not in {phase.name for phase in drill.phases}  # a person was waited for
    assert [told.kind for told in reported.told] == ["drill_failed", "drill_passed"]


@pytest.mark.requirement("R5.3", "R5.4")
def test_what_failed_is_in_no_forecast_and_what_never_began_was_not_reached(reported: Reported) -> None:
    run = reported.run()
    run.states |= {"check_service_health": "failed", "clean_up": "running", "switch_site": "upstream_failed"}
    drill = reported.of(run)
    assert drill.missed == ["check_service_health failed", "nobody found it in health"]
    states = {step.task: step.state for step in drill.steps}
    assert (states["clean_up"], states["switch_site"]) == ("not reached", "not reached")
    assert {phase.name for phase in drill.phases} == {"restore", "data_consistency", "application_state"}
    green = reported.run(run_id="manual__2")
    green.states["a task that is no step"] = "failed"
    assert reported.of(green).passed
    assert [told.kind for told in reported.told] == ["drill_failed", "drill_failed"]


@pytest.mark.requirement("R5.3", "R5.5")
def test_where_nothing_came_back_no_moment_is_claimed(reported: Reported) -> None:
    run = reported.run()
    for task in ("restore_from_backup", *VALIDATIONS):
        run.states[task] = "failed"
        run.left.pop((task, "return_value"), None)
    drill = reported.of(run)
    assert (drill.reaches, drill.files_as_of, drill.healthy, drill.phases) == (None, None, None, ())
    run.left.pop(("plan_recovery", "return_value"))
    assert reported.of(run).forecast_seconds is None


@pytest.mark.requirement("R5.2", "R5.3")
def test_of_what_comes_back_alone_its_own_validations_are_due(
    reported: Reported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reported.of(reported.run(scenario="table_dropped")).due == ("data_consistency", "service_health")
    plan = tmp_path / "plan.yaml"
    plan.write_text(DEFAULT.read_text().replace("[database, objects, configuration]", "[objects]", 1))
    monkeypatch.setenv(ENVIRONMENT, str(plan))
    assert reported.of(reported.run(run_id="manual__2")).due == ("application_state",)


@pytest.mark.requirement("R4.6")
def test_of_what_was_never_declared_people_are_told_and_nothing_is_written_down(reported: Reported) -> None:
    run = Run()
    run.asked_by = None
    run.states = {"activate_plan": "failed"}
    run.take(ReportDrill(task_id="report", steps=TASKS))
    assert reported.kept == []
    [told] = reported.told
    assert (told.kind, told.facts) == ("recovery_failed", {"asked for by": "the schedule"})


@pytest.mark.requirement("R4.6")
def test_what_no_other_try_mends_is_told_at_once(reported: Reported, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise Hopeless("The keyring is not here.", mend="Bring it.")

    run = reported.run()
    run.try_number = 1
    monkeypatch.setattr(history, "store_drill", refused)
    with pytest.raises(AirflowFailException, match="keyring"):
        reported.of(run)
    [told] = reported.told
    assert (told.kind, told.facts["no record of it"]) == ("drill_failed", "The keyring is not here.")

"""The steps of the runbook on their own: what they refuse, and what the report believes (R5.3)."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from psycopg import sql

from include.disaster import history
from include.disaster.declaration import declare
from include.disaster.plan import TASKS, load_plan
from include.errors import BackupError
from include.monitoring.messages import Notification
from include.operators.disaster import (
    ASKED,
    TIMES,
    ActivatePlan,
    ApproveFailover,
    CheckServiceHealth,
    ReapDrills,
    ReportDrill,
    RestoreFromBackup,
    _told_of_site,
)
from include.operators.recovery import NotAllowedOver
from include.operators.step import ERROR
from include.recovery.moments.places import Places
from include.sandbox.postgres import PostgresServer

PLAN, NOW = load_plan(), datetime(2026, 11, 22, 10, tzinfo=UTC)
YES: dict[str, Any] = {"chosen_options": ["Approve"], "responded_by_user": {"id": "7", "name": "bob"}}


class Run:
    """A run of the runbook: its form, and what its tasks left."""

    dag_id, run_id, try_number, max_tries, when = "disaster_recovery", "manual__1", 3, 2, NOW

    def __init__(self, mode: str = "drill", scenario: str = "region_lost", **form: str) -> None:
        empty = dict.fromkeys(("copy", "site", "target", "table", "failed_at"), "")
        self.params = {"mode": mode, "scenario": scenario, **empty, **form}
        self.left: dict[tuple[str, str], Any] = {}
        self.states: dict[str, str] = {}
        self.task = ""

    def declared(self) -> Run:
        """The first step is done."""
        form = {name: self.params[name] for name in ("mode", "scenario", "copy", "site")}
        said = declare(PLAN, **form, run="20261122t100000000000", declared=self.when, by="ada").to_json()
        parts = list(PLAN.scenarios[self.params["scenario"]].restores)
        self.left["activate_plan", "return_value"] = {**said, "parts": parts}
        return self

    def xcom_push(self, *, key: str, value: object) -> None:
        self.left[self.task, key] = value

    def xcom_pull(self, *, task_ids: str, key: str = "return_value") -> Any:
        return self.left.get((task_ids, key))

    def get_task_states(self, **_: object) -> dict[str, dict[str, str]]:
        return {self.run_id: self.states}

    def take(self, operator: Any) -> Any:
        """Carry out one of its tasks."""
        self.task = operator.task_id
        run = SimpleNamespace(run_id=self.run_id, run_after=NOW, start_date=NOW, triggering_user_name="ada")
        return operator.execute({"ti": self, "dag_run": run, "params": self.params})


@pytest.mark.requirement("R5.3")
def test_in_earnest_nobody_may_mean_whatever_is_drilled_next(tmp_path: Path) -> None:
    run = Run("failover", "in_turn", site="dr")
    with pytest.raises(AirflowFailException, match="no scenario 'in_turn'"):
        run.take(ActivatePlan(task_id="activate_plan", scratch_root=str(tmp_path)))


@pytest.mark.requirement("R5.3", "R7.3")
def test_a_plan_that_was_made_after_the_approval_is_not_approved(tmp_path: Path) -> None:
    run = Run("failover", site="dr")
    run.when = datetime.now(UTC) - timedelta(hours=23)
    run.declared().left["plan_recovery", TIMES] = {"ended": "10:05"}
    with pytest.raises(Exception):  # noqa: B017 - it asks a person, of whom there is none
        run.take(ApproveFailover(task_id="approve", subject="?"))
    assert run.left["approve", ASKED] == {"ended": "10:05"}
    run.left["approve", "return_value"] = YES
    run.left["plan_recovery", TIMES] = {"ended": "10:07"}
    with pytest.raises(AirflowFailException, match="made again after bob had approved"):
        run.take(RestoreFromBackup(task_id="restore_from_backup", scratch_root=str(tmp_path)))


@pytest.mark.requirement("R5.3", "R7.3")
@pytest.mark.parametrize(("told", "now", "refused"), [("home", "dr", True), ("dr", "dr", False), ("home", "", False)])
def test_a_site_that_became_active_after_the_approval_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, now: str, refused: bool
) -> None:
    run = Run("failover", site="dr")
    run.when = datetime.now(UTC)
    run.declared().left["approve", "return_value"] = YES
    run.left["plan_recovery", "return_value"] = {"active": told}
    monkeypatch.setattr("include.operators.disaster._active", lambda *_: now)
    monkeypatch.setattr("include.operators.disaster.places_of", lambda *_: 1 / 0)  # as far as it comes
    restore = RestoreFromBackup(task_id="restore_from_backup", scratch_root=str(tmp_path))
    with pytest.raises(AirflowFailException if refused else ZeroDivisionError) as caught:
        run.take(restore)
    assert ("dr has become the active site" in str(caught.value)) == refused


@pytest.mark.requirement("R5.3", "R7.3")
@pytest.mark.parametrize(
    ("active", "words"), [("dr", "THE ACTIVE SITE"), ("home", "home is active"), ("", "not known")]
)
def test_who_approves_is_told_what_is_at_the_site(
    postgres18: PostgresServer, monkeypatch: pytest.MonkeyPatch, active: str, words: str
) -> None:
    declared = declare(PLAN, mode="failover", scenario="region_lost", site="dr", run="r", declared=NOW, by="ada")
    name = f"told_of_{secrets.token_hex(4)}"
    sites = PLAN.sites | {"dr": PLAN.sites["dr"].model_copy(update={"database": name})}
    plan = PLAN.model_copy(update={"sites": sites})
    lines = "\n".join(_told_of_site(plan, declared, active))
    assert words in lines
    assert "does not answer: There is no Airflow connection" in lines
    login = postgres18.superuser
    connection = {"conn_type": "postgres", "host": login.host, "port": login.port, "schema": "postgres"}
    connection |= {"login": login.user, "password": login.password}
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_DR_DATABASE", json.dumps(connection))
    assert f"has no database {name}" in "\n".join(_told_of_site(plan, declared, active))
    with login.connect(application_name="test", autocommit=True) as session:
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            assert f"a database {name} LIVES there" in "\n".join(_told_of_site(plan, declared, active))
        finally:
            session.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


@pytest.mark.requirement("R5.3", "R7.3")
def test_who_clears_an_old_failover_of_somebody_else_does_not_fail_over_alone(tmp_path: Path) -> None:
    run = Run("failover", site="dr")
    run.when = datetime.now(UTC) - timedelta(hours=25)
    run.declared()
    with pytest.raises(NotAllowedOver, match="ada declared this failover on"):
        run.take(ApproveFailover(task_id="approve", subject="?"))
    assert "ada declared" in run.left["approve", ERROR]["what"]  # for the mail
    run.left["approve", "return_value"] = YES
    with pytest.raises(AirflowFailException, match="more than 1 day ago"):
        run.take(RestoreFromBackup(task_id="restore_from_backup", scratch_root=str(tmp_path)))


@pytest.mark.requirement("R5.3")
def test_of_a_restore_that_was_marked_as_success_nothing_is_valid(tmp_path: Path) -> None:
    check = CheckServiceHealth(
        task_id="check_service_health", restored_by="restore_from_backup", scratch_root=str(tmp_path)
    )
    with pytest.raises(AirflowFailException, match="has not said where it restored to"):
        Run().declared().take(check)


@pytest.mark.requirement("R5.3")
def test_a_part_that_did_not_come_back_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, places = Run().declared(), SimpleNamespace(clear=list, bucket=None, prefix="", configuration=None, tables=())
    monkeypatch.setattr("include.operators.disaster.places_of", lambda *_: places)
    facts = {"database": "drill", "objects": None, "commit": "abc"}
    monkeypatch.setattr(RestoreFromBackup, "_by_route", lambda *_: facts)
    restore = RestoreFromBackup(task_id="restore_from_backup", scratch_root=str(tmp_path))
    with pytest.raises(BackupError, match="without objects, which"):
        run.take(restore)
    assert run.left["restore_from_backup", TIMES]["well"] is False
    facts["objects"] = 0
    run.take(restore)
    assert run.left["restore_from_backup", TIMES]["well"] is True


@pytest.mark.requirement("R5.2", "R5.3")
def test_a_report_believes_no_mark_and_tells_people_also_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is green; of the health check nobody but who marked it as success says so."""
    told: list[Notification] = []
    monkeypatch.setattr(ReportDrill, "tell", lambda self, policy, words: told.append(words()) or {})
    monkeypatch.setattr(ReportDrill, "_looked", lambda *_: [])
    monkeypatch.setattr("include.operators.disaster._copy", lambda *_: SimpleNamespace(bucket=None, keyring=None))
    monkeypatch.setattr("include.operators.disaster.links_of", lambda *_: {})
    kept: list[history.Drill] = []
    monkeypatch.setattr(history, "store_drill", lambda bucket, keyring, drill: kept.append(drill) or drill.home)
    run = Run().declared()
    run.states = dict.fromkeys(TASKS, "success") | {"approve": "skipped", "switch_site": "skipped"}
    for task in TASKS:
        run.left[task, TIMES] = {"began": NOW.isoformat(), "ended": NOW.isoformat(), "well": True}
    run.left["check_service_health", TIMES]["well"] = False
    route = {"reaches": NOW.isoformat(), "files_as_of": NOW.isoformat(), "forecast": {"total": 1, "amounts": {}}}
    run.left["plan_recovery", "return_value"] = route
    run.left["restore_from_backup", "return_value"] = {"reached": "2026-11-22T09:59:00+00:00"}
    report = ReportDrill(task_id="report", steps=TASKS, scratch_root=str(tmp_path))
    facts = run.take(report)
    for words in ("check_service_health was marked as success by hand", "nobody found it in health"):
        assert words in facts["missed"]
    for kind in ("data consistency", "application state", "service health"):
        assert f"no check of {kind}" in facts["missed"]
    assert kept[0].reaches == datetime(2026, 11, 22, 9, 59, tzinfo=UTC)  # what came back, not what was planned
    assert [each.kind for each in told] == ["drill_failed"]

    def away(*_: object) -> None:
        raise BackupError("The replica does not answer.", mend="Wait.")

    monkeypatch.setattr(history, "store_drill", away)
    run.try_number = 1
    with pytest.raises(BackupError):
        run.take(report)
    assert len(told) == 1  # it is tried again first
    run.try_number = 3
    with pytest.raises(BackupError):
        run.take(report)
    assert told[1].kind == "drill_failed"
    assert told[1].facts["no record of it"] == "The replica does not answer."


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize(
    "live", ["synapse_backups_primary", "synapse_backups_replica", "synapse_objects", "synapse_dr_objects"]
)
def test_a_drill_never_goes_into_a_bucket_that_is_used_in_earnest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: str
) -> None:
    def bucket(name: str) -> str:
        extra = {"region_name": "eu-west-1", "service_config": {"s3": {"bucket_name": name}}}
        return json.dumps({"conn_type": "aws", "login": "a", "password": "b", "extra": extra})

    postgres = {"conn_type": "postgres", "host": "h", "login": "l", "password": "p", "schema": "postgres"}
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_DATABASE_SCRATCH", json.dumps(postgres))
    monkeypatch.setenv(f"AIRFLOW_CONN_{PLAN.drills.objects_connection.upper()}", bucket("one"))
    monkeypatch.setenv(f"AIRFLOW_CONN_{live.upper()}", bucket("another"))
    facts = {"database": "drill", "objects": 0, "commit": "abc"}
    cleared: list[str] = []
    monkeypatch.setattr(RestoreFromBackup, "_by_route", lambda *_: facts)
    monkeypatch.setattr(Places, "clear", lambda places: cleared.append(places.prefix))
    restore = RestoreFromBackup(task_id="restore_from_backup", scratch_root=str(tmp_path))
    Run().declared().take(restore)
    assert cleared == ["drills/20261122t100000000000/"]
    monkeypatch.setenv(f"AIRFLOW_CONN_{live.upper()}", bucket("one"))
    with pytest.raises(AirflowFailException, match=f"{live} uses in earnest"):
        Run().declared().take(restore)
    assert len(cleared) == 1


@pytest.mark.requirement("R5.3")
def test_two_runs_that_were_asked_for_with_one_moment_have_names_of_their_own(tmp_path: Path) -> None:
    one, other = Run(copy="replica"), Run(copy="replica")
    other.run_id = "manual__2"
    activate = ActivatePlan(task_id="activate_plan", scratch_root=str(tmp_path))
    first, again, second = (run.take(activate)["run"] for run in (one, one, other))
    assert first == again  # it was cleared
    assert first != second


@pytest.mark.requirement("R5.3")
def test_what_runs_is_nobodys_leftover_however_old_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("database_login", "bucket"):
        monkeypatch.setattr(f"include.operators.connections.{part}", lambda *_: None)
    place = tmp_path / "drill-20200101t000000000000"
    place.mkdir()
    run, asked = Run(), list[dict[str, Any]]()
    reap = ReapDrills(task_id="reap_drills", scratch_root=str(tmp_path))
    for under_way in (1, 0):
        run.get_dr_count = lambda under_way=under_way, **of: asked.append(of) or under_way  # type: ignore[attr-defined]
        removed = run.take(reap)["removed"]
        assert (removed, place.exists()) == ((0, True) if under_way else (1, False))
    assert asked == [{"dag_id": "disaster_recovery", "states": ["queued", "running"]}] * 2


@pytest.mark.requirement("R5.3")
def test_in_a_drill_nobody_is_asked() -> None:
    with pytest.raises(AirflowSkipException):
        Run().declared().take(ApproveFailover(task_id="approve", subject="?"))

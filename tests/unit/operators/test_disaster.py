"""The steps of the runbook on their own: what they refuse, and what the report believes (R5.3)."""

from __future__ import annotations

import json
import os
import secrets
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from psycopg import sql

from include.disaster import history
from include.disaster.declaration import declare
from include.disaster.forecast import Forecast, Measured, Speeds
from include.disaster.history import Phase
from include.disaster.isolation import directory, stamp
from include.disaster.last_good import Doubted, LastGood, Trusted
from include.disaster.plan import COPIES, DEFAULT, ENVIRONMENT, TASKS, load_plan
from include.disaster.route import Route
from include.errors import BackupError
from include.monitoring.messages import Notification
from include.operators.approval import SHOWN, NotAllowedOver, plan_state
from include.operators.declared import parts_of, places_of
from include.operators.disaster import (
    ActivatePlan,
    CheckServiceHealth,
    CleanUp,
    PlanRecovery,
    RestoreFromBackup,
    SwitchToReplica,
)
from include.operators.drill_report import ReportDrill
from include.operators.failover import ApproveFailover, told_active, told_of_site
from include.operators.run import Surroundings
from include.operators.step import ERROR
from include.operators.storage import ReapDrills
from include.operators.timed import TIMES
from include.recovery.moments.places import Places
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from tests.manifests import make as manifest
from tests.runbook import NOW, YES, Run

PLAN = load_plan()


@pytest.mark.requirement("R5.3")
def test_in_earnest_nobody_may_mean_whatever_is_drilled_next(tmp_path: Path) -> None:
    run = Run("failover", "in_turn", site="dr")
    with pytest.raises(AirflowFailException, match="no scenario 'in_turn'"):
        run.take(ActivatePlan(task_id="activate_plan", scratch_root=str(tmp_path)))


@pytest.mark.requirement("R5.3")
def test_a_field_of_the_form_that_was_emptied_says_nothing(tmp_path: Path) -> None:
    told = []
    for empty in ("", None):
        run = Run("drill", **dict.fromkeys(("target", "table", "failed_at"), empty))
        told.append(run.take(ActivatePlan(task_id="activate_plan", scratch_root=str(tmp_path))))
    assert told[0] == told[1]
    assert told[0]["target"] == PLAN.scenarios["region_lost"].target


@pytest.mark.requirement("R5.3")
def test_what_the_form_says_is_declared(tmp_path: Path) -> None:
    activate = ActivatePlan(task_id="activate_plan", scratch_root=str(tmp_path))
    moment, lost = "2026-11-22T09:30:00+00:00", "2026-11-22T09:40:00+00:00"
    run = Run("failover", "database_lost", copy="replica", site="dr", target=moment, failed_at=lost)
    said = run.take(activate)
    form = {"mode": "failover", "scenario": "database_lost", "copy": "replica", "site": "dr", "target": moment}
    assert form.items() <= said.items()
    assert (said["failed"], said["declared"], said["by"]) == (lost, NOW.isoformat(), "ada")
    assert Run(scenario="table_dropped", table="public.users").take(activate)["table"] == "public.users"


@pytest.mark.requirement("R5.4")
@pytest.mark.parametrize(
    ("asked_by", "began", "declared"),
    [("ada", 5, 0), (None, 5, 5), (None, None, 0)],  # a person waits from the click on; a scheduled drill has none
)
def test_the_rto_counts_from_when_somebody_asked(
    tmp_path: Path, asked_by: str | None, began: int | None, declared: int
) -> None:
    run = Run()
    run.asked_by, run.began_after = asked_by, None if began is None else timedelta(minutes=began)
    said = run.take(ActivatePlan(task_id="activate_plan", scratch_root=str(tmp_path)))
    assert datetime.fromisoformat(said["declared"]) == NOW + timedelta(minutes=declared)


@pytest.mark.requirement("R5.3", "R9")
def test_whose_turn_it_is_either_copy_tells_and_the_other_one_may_be_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drilled(run: str, scenario: str, copy: str, days: int) -> Any:
        when = NOW - timedelta(days=days)
        return SimpleNamespace(run=run, mode="drill", scenario=scenario, from_copy=copy, declared=when)

    told: dict[str, Any] = {copy: [] for copy in COPIES}
    for days, (scenario, copy) in enumerate(PLAN.subjects(), start=1):
        told[copy].append(drilled(f"of {scenario} from {copy}", scenario, copy, days))
    scenario, copy = PLAN.subjects()[0]
    # Long ago the newest one of all was drilled, too; the bucket that is read last tells of that.
    told["primary"].insert(0, drilled("of long ago", scenario, copy, 999))

    def read(catalogs: list[str]) -> Any:
        [found] = catalogs
        if isinstance(told[found], BackupError):
            raise told[found]
        return told[found]

    monkeypatch.setattr(history, "read_drills", read)
    monkeypatch.setattr("include.operators.disaster.copy_of", lambda _, copy: copy)
    activate = ActivatePlan(task_id="activate_plan", scratch_root=str(tmp_path))

    def turn(**form: str) -> tuple[str, str]:
        said = Run(scenario="in_turn", **form).take(activate)
        return said["scenario"], said["copy"]

    *_, last = PLAN.subjects()
    assert turn() == last
    assert turn(copy="replica")[1] == "replica"
    assert turn(copy="primary")[1] == "primary"
    away = BackupError("It does not answer.", mend="Wait.")
    for lost in COPIES:
        kept, told[lost] = told[lost], away
        assert turn() == next(each for each in PLAN.subjects()[1:] if each[1] == lost)  # of which nothing is known
        told[lost] = kept


@pytest.mark.requirement("R5.3")
def test_what_the_copy_holds_is_told_and_after_ransomware_what_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = manifest(0), manifest(1)
    held: list[Any] = [SimpleNamespace(manifest=each) for each in (new, old, None)]
    monkeypatch.setattr(
        "include.operators.disaster.copy_of",
        lambda *_: SimpleNamespace(bucket=SimpleNamespace(name="dr"), entries=lambda: held),
    )
    found = LastGood(old, (Doubted(new.id, NOW, ("it stopped compressing",)),))
    monkeypatch.setattr("include.disaster.last_good.find_last_good", lambda *_: found)
    switch = SwitchToReplica(task_id="switch_to_replica", scratch_root=str(tmp_path))
    told = {"bucket": "dr", "backups": 2, "refused": 1, "target": "latest", "newest": new.id}
    told["newest_moment"] = new.consistency_point.time.isoformat()
    assert Run().declared().take(switch) == told
    ransomware = Run(scenario="ransomware").declared().take(switch)
    assert ransomware == told | {"target": old.id, "doubted": [new.id]}
    del held[:2]
    assert Run().declared().take(switch) == {"bucket": "dr", "backups": 0, "refused": 1, "target": "latest"}


@pytest.mark.requirement("R5.3", "R5.4")
def test_a_plan_is_of_the_parts_and_is_warned_of_and_says_where_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the newest three drills of the copy that took their time; and without what is in doubt."""
    asked: dict[str, Any] = {}

    def plan(catalog: Any, target: Any, _: object, *, what: Any, scratch: Path) -> Route:
        assert scratch.is_dir()
        asked.update(catalog=catalog, target=target.text, what=what)
        return Route(full=manifest(0), because="The chain is broken.")

    def forecast(_: object, speeds: Speeds) -> Forecast:
        asked["speeds"] = speeds
        return Forecast({"restore": 3 * 3600.0}, {"restore": 7}, ())

    def phases(seconds: int) -> Any:
        return SimpleNamespace(phases=[Phase(name="restore", amount=10**9, milliseconds=1000 * seconds)])

    drills = [phases(1), phases(60), phases(61), SimpleNamespace(phases=[]), phases(62)]
    monkeypatch.setattr(history, "read_drills", lambda _: drills)
    monkeypatch.setattr("include.disaster.route.plan_route", plan)
    monkeypatch.setattr("include.disaster.forecast.forecast", forecast)
    monkeypatch.setattr("include.operators.declared.copy_of", lambda *_: SimpleNamespace(bucket="b", keyring="k"))
    monkeypatch.setattr("include.operators.disaster.told_active", lambda *_: "home")
    monkeypatch.setattr("include.operators.disaster.told_of_site", lambda _, __, active, ___: [f"{active} is active"])
    locate = PlanRecovery(task_id="plan_recovery", scratch_root=str(tmp_path))

    def planned(run: Run, **switched: Any) -> Any:
        run.declared().left["switch_to_replica", "return_value"] = {"target": "latest", **switched}
        return run.take(locate)

    drill = planned(Run(scenario="table_dropped", copy="primary"))
    assert (asked["target"], asked["what"]) == ("latest", ["database"])
    assert list(tmp_path.iterdir()) == []
    assert asked["speeds"] == Speeds.measured(Measured("restore", 10**9, seconds) for seconds in (60, 61, 62))
    assert drill["active"] == ""
    for words in ("The chain is broken.", "forecast       3.0 h", "above 2.0 h"):
        assert words in drill["words"]
    assert "above 2.0 h" in drill["warning"]
    failover = planned(Run("failover", site="dr"), doubted=["full-20261123T000000Z"])
    assert failover["active"] == "home"
    assert failover["words"].startswith("home is active\n")
    assert isinstance(asked["catalog"], Trusted)
    for site, stays in (("home", ["objects", "configuration"]), ("dr", [])):  # of which home is the active one
        run = Run("failover", "database_lost", site=site)
        assert planned(run)["stays"] == stays
        assert asked["what"] == [part for part in ("database", "objects", "configuration") if part not in stays]
        assert list(parts_of(PLAN, cast("Any", {"ti": run}))) == asked["what"]


@pytest.mark.requirement("R5.3", "R7.3")
def test_a_plan_that_was_made_after_the_approval_is_not_approved(tmp_path: Path) -> None:
    run = Run("failover", site="dr")
    run.when = datetime.now(UTC) - timedelta(hours=23)
    run.declared().left["plan_recovery", "return_value"] = {"words": "to 10:05"}
    with pytest.raises(Exception):  # noqa: B017 - it asks a person, of whom there is none
        run.take(ApproveFailover(task_id="approve", shows="plan_recovery", subject="?"))
    assert run.left["approve", SHOWN]
    run.left["approve", "return_value"] = YES
    run.left["plan_recovery", "return_value"] = {"words": "to 10:07"}
    with pytest.raises(AirflowFailException, match="`plan_recovery` tells is not what bob has approved"):
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
    with pytest.raises(Exception):  # noqa: B017 - it asks a person, of whom there is none
        run.take(ApproveFailover(task_id="approve", shows="plan_recovery", subject="?"))
    monkeypatch.setattr("include.operators.failover.told_active", lambda *_: now)
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
    lines = "\n".join(told_of_site(plan, declared, active, []))
    assert words in lines
    assert "does not answer: There is no Airflow connection" in lines
    login = postgres18.superuser
    connection = {"conn_type": "postgres", "host": login.host, "port": login.port, "schema": "postgres"}
    connection |= {"login": login.user, "password": login.password}
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_DR_DATABASE", json.dumps(connection))
    assert f"has no database {name}" in "\n".join(told_of_site(plan, declared, active, []))
    assert "stays" not in "\n".join(told_of_site(plan, declared, active, []))
    assert "stays          objects and files, as" in "\n".join(
        told_of_site(plan, declared, active, ["objects", "files"])
    )
    with login.connect(application_name="test", autocommit=True) as session:
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            assert f"a database {name} LIVES there" in "\n".join(told_of_site(plan, declared, active, []))
        finally:
            session.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


@pytest.mark.requirement("R5.3", "R7.3")
def test_who_approves_is_told_whether_the_bucket_keeps_what_is_overwritten(
    s3_primary: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = declare(PLAN, mode="failover", scenario="database_lost", site="dr", run="r", declared=NOW, by="ada")

    def told(*stays: str) -> str:
        return "\n".join(told_of_site(PLAN, declared, "dr", stays))

    assert "the bucket does not answer: There is no Airflow connection synapse_dr_objects" in told()
    assert "its objects" not in told("objects")
    credentials = s3_primary.session().get_credentials()
    assert credentials
    extra = {"region_name": s3_primary.region, "endpoint_url": s3_primary.endpoint_url}
    connection = {"conn_type": "aws", "login": credentials.access_key, "password": credentials.secret_key}
    connection |= {"extra": {**extra, "service_config": {"s3": {"bucket_name": bucket}}}}
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_DR_OBJECTS", json.dumps(connection))
    assert f"{bucket} keeps what is overwritten" in told()
    suspended: Any = {"Status": "Suspended"}
    s3_primary.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration=suspended)
    assert f"{bucket} KEEPS NO VERSIONS" in told()


@pytest.mark.requirement("R5.3", "R7.3")
def test_who_clears_an_old_failover_of_somebody_else_does_not_fail_over_alone(tmp_path: Path) -> None:
    run = Run("failover", site="dr")
    run.when = datetime.now(UTC) - timedelta(hours=25)
    run.declared()
    with pytest.raises(NotAllowedOver, match="ada asked for this run on"):
        run.take(ApproveFailover(task_id="approve", shows="plan_recovery", subject="?"))
    assert "ada asked" in run.left["approve", ERROR]["what"]  # for the mail
    run.left["approve", "return_value"] = YES
    with pytest.raises(AirflowFailException, match="more than 1 day ago"):
        run.take(RestoreFromBackup(task_id="restore_from_backup", scratch_root=str(tmp_path)))


@pytest.mark.requirement("R5.2", "R5.3")
@pytest.mark.parametrize("copy", COPIES)
def test_a_page_is_kept_in_the_copy_that_is_there(monkeypatch: pytest.MonkeyPatch, copy: str) -> None:
    monkeypatch.setattr(Surroundings, "backups_in", lambda _, copy: copy)
    check = CheckServiceHealth(task_id="check_service_health", restored_by="restore_from_backup")
    run = Run(scenario="database_lost", copy=copy).declared()
    assert check.kept_in(Surroundings(scratch_root=""), cast("Any", {"ti": run})) == copy


@pytest.mark.requirement("R5.3")
def test_of_a_restore_that_was_marked_as_success_nothing_is_valid(tmp_path: Path) -> None:
    check = CheckServiceHealth(
        task_id="check_service_health", restored_by="restore_from_backup", scratch_root=str(tmp_path)
    )
    with pytest.raises(AirflowFailException, match="has not said where it restored to"):
        Run().declared().take(check)


@pytest.fixture
def connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the drills' places, and of the site dr; of nothing else."""
    postgres = {"conn_type": "postgres", "host": "h", "login": "l", "password": "p", "schema": "postgres"}
    monkeypatch.setenv(f"AIRFLOW_CONN_{PLAN.drills.database_connection.upper()}", json.dumps(postgres))
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_DR_DATABASE", json.dumps(postgres | {"host": "dr"}))
    for conn_id in (PLAN.drills.objects_connection, "synapse_dr_objects"):
        extra = {"region_name": "us-east-1", "service_config": {"s3": {"bucket_name": f"of-{conn_id}"}}}
        aws = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(aws))
    checkout = {"conn_type": "generic", "host": str(tmp_path / "dr")}
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_DR_CONFIGURATION", json.dumps(checkout))


@pytest.mark.requirement("R5.3")
@pytest.mark.usefixtures("connections")
@pytest.mark.parametrize("again", [False, True])
def test_each_part_goes_to_its_place_and_the_validations_are_told_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    went: list[Any] = []

    def by(way: str) -> Any:
        def bring(_: object, here: object, plan: object, context: object, places: Places, scratch: Path) -> Any:
            assert stat.S_IMODE(scratch.stat().st_mode) == 0o711  # a server that is started below it is another user
            went[:] = [way, places]
            parts = {"objects": 0 if places.bucket else None, "commit": "abc" if places.configuration else None}
            return {"database": places.database} | {part: said for part, said in parts.items() if said is not None}

        return bring

    monkeypatch.setattr(RestoreFromBackup, "_by_route", by("route"))
    monkeypatch.setattr(RestoreFromBackup, "_by_script", by("script"))
    monkeypatch.setattr(Places, "clear", lambda _: [])
    monkeypatch.setattr("include.operators.failover.told_active", lambda *_: "home")
    restore = RestoreFromBackup(task_id="restore_from_backup", scratch_root=str(tmp_path))
    assert restore.trigger_rule == TriggerRule.NONE_FAILED  # in a drill nobody is asked, and that is no failure
    directory = tmp_path / "drill-20261122t100000000000"
    if again:
        directory.mkdir(mode=0o711)

    def restored(run: Run) -> Any:
        run.take(restore)
        return run.left["restore_from_backup", "restored"]

    drill = restored(Run().declared())
    assert went[0] == "route"
    assert (went[1].live, went[1].server.host, went[1].database) == (False, "h", f"drill_{directory.name[6:]}")
    place = str(directory / "configuration")
    assert drill == {
        "about": f"drill {directory.name[6:]}: region_lost from the replica",
        "directory": directory.name,
        "database_connection": PLAN.drills.database_connection,
        "database": went[1].database,
        "objects_connection": PLAN.drills.objects_connection,
        "objects_prefix": f"drills/{directory.name[6:]}/",
        "configuration": place,
        "whole": True,
    }
    table = restored(Run(scenario="table_dropped").declared())
    assert went[1].tables == ("public.attachments",)
    assert (went[1].bucket, went[1].configuration) == (None, None)
    assert (table["objects_connection"], table["configuration"], table["whole"]) == (None, None, False)
    Run(scenario="airflow_lost").declared().take(restore)
    assert went[0] == "script"

    run = Run("failover", "airflow_lost", site="dr")
    # That drills would go into a bucket of the application stops no failover.
    objects = "AIRFLOW_CONN_SYNAPSE_DR_OBJECTS"
    monkeypatch.setenv(f"AIRFLOW_CONN_{PLAN.drills.objects_connection.upper()}", os.environ[objects])
    run.when = datetime.now(UTC)
    run.declared().left["approve", "return_value"] = YES
    run.left["plan_recovery", "return_value"] = {"active": "home"}
    run.left["approve", SHOWN] = plan_state(cast("Any", {"ti": run}), "plan_recovery")
    failover = restored(run)
    assert went[0] == "route"  # Airflow, which does it, is there
    live = went[1]
    assert (live.live, live.server.host, live.database, live.prefix) == (True, "dr", "synapse", "")
    assert (live.bucket.name, live.configuration) == ("of-synapse_dr_objects", tmp_path / "dr")
    said = [failover[name] for name in ("database_connection", "objects_connection", "objects_prefix", "configuration")]
    assert said == ["synapse_dr_database", "synapse_dr_objects", "", str(tmp_path / "dr")]


@pytest.mark.requirement("R5.3")
def test_of_what_does_not_come_back_no_connection_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(DEFAULT.read_text().replace("[database, objects, configuration]", "[objects]", 1))
    monkeypatch.setenv(ENVIRONMENT, str(file))
    for conn_id in (PLAN.drills.objects_connection, "synapse_dr_objects"):
        extra = {"region_name": "us-east-1", "service_config": {"s3": {"bucket_name": f"of-{conn_id}"}}}
        aws = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(aws))
    checkout = {"conn_type": "generic", "host": str(tmp_path)}
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_DR_CONFIGURATION", json.dumps(checkout))
    here = Surroundings(scratch_root=str(tmp_path))
    for run in (Run(), Run("failover", site="dr")):
        places = places_of(here, load_plan(), cast("Any", {"ti": run.declared()}))
        assert (places.server, places.database, places.configuration) == (None, None, None)
        assert places.bucket
    monkeypatch.setattr(RestoreFromBackup, "_by_route", lambda *_: {"objects": 0})
    monkeypatch.setattr(Places, "clear", lambda _: [])
    drill = Run().declared()
    drill.take(RestoreFromBackup(task_id="restore_from_backup", scratch_root=str(tmp_path)))
    restored = drill.left["restore_from_backup", "restored"]
    assert (restored["database_connection"], restored["database"], restored["configuration"]) == (None, None, None)
    assert (restored["objects_connection"], restored["whole"]) == (PLAN.drills.objects_connection, False)


@pytest.mark.requirement("R5.3")
def test_with_no_bucket_that_answers_nobody_knows_which_site_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise BackupError("It does not answer.", mend="Wait.")

    monkeypatch.setattr("include.operators.failover.catalogs", away)
    declared = declare(PLAN, mode="failover", scenario="region_lost", site="dr", run="r", declared=NOW, by="ada")
    assert told_active(Surroundings(scratch_root=""), PLAN, declared) == ""


@pytest.mark.requirement("R5.3")
@pytest.mark.usefixtures("connections")
def test_of_a_failover_nothing_but_its_directory_is_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = CleanUp(task_id="clean_up", scratch_root=str(tmp_path))
    assert Run().take(clean) == {}  # nothing was declared
    erased: list[Places] = []
    monkeypatch.setattr("include.disaster.isolation.erase", lambda places, _: erased.append(places) or ["a database"])
    (tmp_path / "drill-20261122t100000000000").mkdir()
    checkout = tmp_path / "dr"
    checkout.mkdir()
    assert Run("failover", site="dr").declared().take(clean) == {"removed": ["drill-20261122t100000000000"]}
    assert (list(tmp_path.iterdir()), erased) == ([checkout], [])
    assert Run().declared().take(clean) == {"removed": ["a database"]}
    assert [places.live for places in erased] == [False]


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
    monkeypatch.setattr("include.operators.drill_report.copy_of", lambda *_: SimpleNamespace(bucket=None, keyring=None))
    monkeypatch.setattr("include.operators.drill_report.links_of", lambda *_: {})
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
    "live",
    [
        "synapse_backups_primary",
        "synapse_backups_replica",
        "synapse_objects",
        "synapse_live_objects",  # to which a recovery of any moment goes: the policy names it, whatever the plan says
        "synapse_dr_objects",
    ],
)
def test_a_drill_never_goes_into_a_bucket_that_is_used_in_earnest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: str
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(DEFAULT.read_text().replace(": synapse_live_objects", ": synapse_home_objects"))
    monkeypatch.setenv(ENVIRONMENT, str(file))

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
    young = tmp_path / directory(stamp(datetime.now(UTC), "manual__1"))
    young.mkdir()
    run, asked = Run(), list[dict[str, Any]]()
    reap = ReapDrills(task_id="reap_drills", scratch_root=str(tmp_path))
    for under_way in (1, 0):
        run.get_dr_count = lambda under_way=under_way, **of: asked.append(of) or under_way  # type: ignore[attr-defined]
        removed = run.take(reap)["removed"]
        assert (removed, place.exists()) == ((0, True) if under_way else (1, False))
    assert young.exists()
    assert asked == [{"dag_id": "disaster_recovery", "states": ["queued", "running"]}] * 2


@pytest.mark.requirement("R5.3")
def test_in_a_drill_nobody_is_asked() -> None:
    with pytest.raises(AirflowSkipException):
        Run().declared().take(ApproveFailover(task_id="approve", shows="plan_recovery", subject="?"))

"""The end of a failover and its undoing (R5.3): a drill switches nothing, and nobody approves what they asked for."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from include.disaster.plan import load_plan
from include.disaster.site_log import SiteLog, active_site
from include.monitoring.messages import Notification
from include.operators.approval import SHOWN, plan_state
from include.operators.run import Surroundings
from include.operators.site import FindFailover, ReportUndone, SwitchBack, SwitchSite
from include.operators.step import ERROR
from include.operators.validation import VALIDATIONS
from include.pipeline.keys import KEYRING_VARIABLE, Keyring
from include.sandbox.s3 import S3Server

PLAN = load_plan()
ASKED = {
    "mode": "failover",
    "site": "dr",
    "run": "20261122t103712123456",
    "scenario": "region_lost",
    "copy": "replica",
    "by": "ada",
}
YES = {"chosen_options": ["Approve"], "responded_by_user": {"id": "7", "name": "bob"}}
Context = Callable[..., Any]


@pytest.fixture
def told() -> dict[str, Any]:
    """What tasks left: each one's XCom by its name, and the error of the last one that failed."""
    back = {"began": "2026-11-22T10:50:00+00:00", "ended": "2026-11-22T11:00:00+00:00", "well": True}
    return {"activate_plan": dict(ASKED), "approve": dict(YES), "times of restore_from_backup": back} | {
        task: {"checks": 9, "failed": 0, "began": "2026-11-22T11:00:01+00:00"} for task in VALIDATIONS
    }


@pytest.fixture
def context(told: dict[str, Any]) -> Context:
    def make(asker: str = "ada", **form: str) -> Any:
        def pull(task_ids: str, key: str = "") -> Any:
            return told.get(f"{key} of {task_ids}" if key else task_ids)

        def push(key: str, value: Any) -> None:
            told[key] = value

        ti = SimpleNamespace(xcom_pull=pull, xcom_push=push)
        run = SimpleNamespace(run_id="r", triggering_user_name=asker, run_after=datetime.now(UTC))
        return {"ti": ti, "dag_run": run, "params": {"run": "", "because": "it came back", **form}}

    show("plan_recovery", make(), told)
    return make


def show(plan: str, context: Any, told: dict[str, Any]) -> None:
    """What a task has told is before who approves."""
    told[f"{SHOWN} of approve"] = plan_state(context, plan)


@pytest.fixture
def site(
    s3_primary: S3Server, s3_replica: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[str, list[str]]]:
    """The connections of a failover after the region was lost: of the primary's there is none."""
    Keyring.create(tmp_path / "keyring.json")
    monkeypatch.setenv(KEYRING_VARIABLE, str(tmp_path / "keyring.json"))
    file = tmp_path / "dr" / PLAN.switches.configuration
    file.parent.mkdir(parents=True)
    file.write_text("SYNAPSE_SITE=home\n")
    credentials = s3_replica.session().get_credentials()
    assert credentials
    name = s3_replica.create_bucket(f"site-{secrets.token_hex(8)}")
    extra = {"region_name": s3_replica.region, "endpoint_url": s3_replica.endpoint_url}
    aws = {"conn_type": "aws", "login": credentials.access_key, "password": credentials.secret_key}
    bucket = {**aws, "extra": {**extra, "service_config": {"s3": {"bucket_name": name}}}}
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_BACKUPS_REPLICA", json.dumps(bucket))
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_DNS", json.dumps({**aws, "extra": extra}))
    configuration = {"conn_type": "generic", "host": str(tmp_path / "dr")}
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_DR_CONFIGURATION", json.dumps(configuration))
    dns = s3_replica.session().client("route53", endpoint_url=s3_replica.endpoint_url)
    zones = dns.list_hosted_zones_by_name(DNSName=PLAN.switches.service.zone)["HostedZones"]
    found = [each["Id"] for each in zones if each["Name"] == PLAN.switches.service.zone]
    made = {"Name": PLAN.switches.service.zone, "CallerReference": secrets.token_hex(8)}
    zone = found[0] if found else dns.create_hosted_zone(**made)["HostedZone"]["Id"]
    for record in _records(dns, zone):
        change: Any = {"Changes": [{"Action": "DELETE", "ResourceRecordSet": record}]}
        dns.change_resource_record_sets(HostedZoneId=zone, ChangeBatch=change)
    return lambda: (file.read_text(), [each["ResourceRecords"][0]["Value"] for each in _records(dns, zone)])


def _records(dns: Any, zone: str) -> list[Any]:
    sets = dns.list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
    return [each for each in sets if each["Name"] == PLAN.switches.service.name]


SWITCHED = ("SYNAPSE_SITE=dr\nSYNAPSE_REGION=us-east-1\n", ["dr.synapse.example"])
BEFORE: tuple[str, list[str]] = ("SYNAPSE_SITE=home\n", [])


@pytest.mark.requirement("R5.3")
def test_a_failover_switches_and_is_undone_with_the_primary_lost(
    site: Callable[[], Any], context: Context, told: dict[str, Any]
) -> None:
    switched = SwitchSite(task_id="switch_site").execute(context())
    assert site() == SWITCHED
    assert (switched["active"], switched["before"], switched["untold"]) == ("dr", "home", {})
    told["find_failover"] = FindFailover(task_id="find_failover").execute(context())
    show("find_failover", context(), told)
    found = {"run": ASKED["run"], "site": "dr", "back_to": "home", "copy": "replica", "by": "ada"}
    assert found.items() <= told["find_failover"].items()
    told["find_failover"]["stands"] += "."
    with pytest.raises(AirflowFailException, match="`find_failover` tells is not what bob has approved"):
        SwitchBack(task_id="switch_back").execute(context())
    assert site() == SWITCHED
    show("find_failover", context(), told)
    undone = SwitchBack(task_id="switch_back").execute(context())
    assert site() == BEFORE
    assert undone["active"] == "home"
    assert SwitchBack(task_id="switch_back").execute(context()) == undone  # cleared
    with pytest.raises(AirflowFailException, match="was undone already"):  # no other try mends it
        FindFailover(task_id="find_failover").execute(context())


@pytest.mark.requirement("R5.3")
def test_when_the_primary_is_back_the_copy_that_knows_of_the_failover_undoes_it_and_tells_the_other(
    site: Callable[[], Any],
    context: Context,
    told: dict[str, Any],
    s3_primary: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    SwitchSite(task_id="switch_site").execute(context())
    credentials = s3_primary.session().get_credentials()
    assert credentials
    name = s3_primary.create_bucket(f"site-{secrets.token_hex(8)}")
    extra = {"region_name": s3_primary.region, "endpoint_url": s3_primary.endpoint_url}
    extra["service_config"] = {"s3": {"bucket_name": name}}
    primary = {"conn_type": "aws", "login": credentials.access_key, "password": credentials.secret_key, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_BACKUPS_PRIMARY", json.dumps(primary))
    find = FindFailover(task_id="find_failover")
    with pytest.raises(AirflowFailException, match="no run 'nobody'"):
        find.execute(context(run="nobody"))
    told["find_failover"] = find.execute(context(run=ASKED["run"]))
    assert told["find_failover"]["copy"] == "replica"
    show("find_failover", context(), told)
    assert SwitchBack(task_id="switch_back").execute(context())["untold"] == {}
    assert active_site(PLAN, [Surroundings(scratch_root="").catalog]).facts()["site"] == "home"
    run = SiteLog(PLAN, [Surroundings(scratch_root="").catalog]).runs[ASKED["run"]]
    assert run.is_undone
    assert run.undo
    assert (run.undo.by, run.undo.approved_by, run.undo.because) == ("ada", "bob", "it came back")


@pytest.mark.requirement("R4.6")
@pytest.mark.parametrize(
    ("done", "state", "kind"),
    [(True, "success", "switched_back"), (False, "skipped", "recovery_refused"), (True, "failed", "run_failed")],
)
def test_of_an_undoing_people_are_told_what_it_came_to(
    context: Context, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, done: bool, state: str, kind: str
) -> None:
    said: list[Notification] = []
    monkeypatch.setattr(ReportUndone, "tell", lambda _, __, words: said.append(words()) or {})
    told["find_failover"] = {"run": "run-1", "site": "dr", "back_to": "home", "because": "it came back"}
    if done:
        told["switch_back"] = {"active": "home", "switched_back": ["pointer"], "untold": {"primary": "away"}}
    made = context()
    states = {"r": {"switch_back": state}}
    made["ti"].dag_id, made["ti"].run_id, made["ti"].get_task_states = "undo_failover", "r", lambda **_: states
    ReportUndone(task_id="report").execute(made)
    [notification] = said
    assert notification.kind == kind
    facts = {"asked for by": "ada", "because": "it came back", "run": "run-1", "site": "dr", "back_to": "home"}
    if done:
        facts |= {"active": "home", "switched back": "pointer", "primary does not tell of it": "away"}
    assert notification.facts == facts


@pytest.mark.requirement("R5.3")
def test_a_drill_switches_nothing(site: Callable[[], Any], context: Context, told: dict[str, Any]) -> None:
    told["activate_plan"]["mode"] = "drill"
    with pytest.raises(AirflowSkipException):
        SwitchSite(task_id="switch_site").execute(context())
    assert site() == BEFORE


@pytest.mark.requirement("R5.3", "R7.3")
@pytest.mark.parametrize("answer", [None, {**YES, "responded_by_user": {"id": "1", "name": "ada"}}])
def test_nobody_switches_or_undoes_alone(
    site: Callable[[], Any], context: Context, told: dict[str, Any], answer: object
) -> None:
    told["approve"] = answer
    with pytest.raises(AirflowFailException, match="approved"):
        SwitchSite(task_id="switch_site").execute(context())
    assert site() == BEFORE
    told["approve"] = YES
    SwitchSite(task_id="switch_site").execute(context())
    told["find_failover"] = FindFailover(task_id="find_failover").execute(context())
    show("find_failover", context(), told)
    told["approve"] = answer
    with pytest.raises(AirflowFailException, match=r"approved this undoing|this undoing and approved"):
        SwitchBack(task_id="switch_back").execute(context())
    assert "Clear `approve`" in told[ERROR]["mend"]
    assert site() == SWITCHED


@pytest.mark.requirement("R5.3")
def test_without_a_connection_to_either_copy_it_is_told_which_are_missing(
    site: Callable[[], Any], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_SYNAPSE_BACKUPS_REPLICA")
    with pytest.raises(AirflowFailException, match="no Airflow connection synapse_backups_"):
        FindFailover(task_id="find_failover").execute(context())
    with pytest.raises(AirflowFailException, match="no Airflow connection synapse_backups_replica"):
        SwitchSite(task_id="switch_site").execute(context())
    assert site() == BEFORE


@pytest.mark.requirement("R5.2", "R5.3")
@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "looked at nothing"),
        ({"checks": 0, "failed": 0, "began": "2026-11-22T11:00:01+00:00"}, "0 of 0 checks failed"),
        ({"checks": 9, "failed": 1, "began": "2026-11-22T11:00:01+00:00"}, "1 of 9 checks failed"),
        ({"checks": 9, "failed": 0, "began": "2026-11-22T10:59:59+00:00"}, "before what is there now"),
    ],
)
def test_nothing_is_switched_to_what_was_only_marked_as_valid(
    site: Callable[[], Any], context: Context, told: dict[str, Any], found: Any, words: str
) -> None:
    for task in VALIDATIONS:
        well, told[task] = told[task], found
        with pytest.raises(AirflowFailException, match=f"`{task}` has not found .*{words}"):
            SwitchSite(task_id="switch_site").execute(context())
        told[task] = well
    assert site() == BEFORE


@pytest.mark.requirement("R5.3")
def test_what_was_recovered_at_the_active_site_needs_no_switch(
    site: Callable[[], Any], context: Context, told: dict[str, Any]
) -> None:
    SwitchSite(task_id="switch_site").execute(context())
    told["activate_plan"] |= {"run": "20261123t000000000000", "scenario": "database_lost"}
    with pytest.raises(AirflowSkipException, match="dr is the active site"):
        SwitchSite(task_id="switch_site").execute(context())
    assert site() == SWITCHED

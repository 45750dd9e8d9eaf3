"""Failing over and back (R5.3): pointer, configuration and service record, on real stores and a real Route 53.

That it may die anywhere is in test_site.py.
"""

from __future__ import annotations

import json
import secrets
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError

from include.cli.__main__ import main
from include.disaster.plan import load_plan
from include.disaster.site import (
    HalfSwitched,
    NotSwitched,
    SwitchRefused,
    find_run,
    foresee_switch,
    foresee_undo,
    switch_site,
    undo_switches,
)
from include.disaster.site_log import LogsDiffer, SiteBusy, SiteLog, active_site
from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, StoreError
from include.repository.catalog import Catalog
from include.sandbox.s3 import S3Server

PLAN = load_plan()
HOME, DR = "home.synapse.example", "dr.synapse.example"
NAME = PLAN.switches.service.name
BEFORE = """# Synapse in production
export SYNAPSE_SITE='home'
SYNAPSE_SESSION_SECRET=7f3a  # do not show
SYNAPSE_LOG_LEVEL=warning"""
AFTER = """# Synapse in production
export SYNAPSE_SITE=dr
SYNAPSE_SESSION_SECRET=7f3a  # do not show
SYNAPSE_LOG_LEVEL=warning
SYNAPSE_REGION=us-east-1
"""
ASKED = {"by": "ada", "approved_by": "bob", "because": "the region is lost"}
UNDO = {"by": "bob", "approved_by": "ada", "because": "it came back"}


@dataclass
class World:
    """Both regions' buckets, a checkout, a zone."""

    catalogs: list[Catalog]
    checkout: Path
    dns: Any
    zone: str

    @property
    def file(self) -> Path:
        return self.checkout / PLAN.switches.configuration

    def switch(self, site: str = "dr", *, run: str = "run-1", dns: Any = None, **other: Any) -> dict[str, Any]:
        said: dict[str, Any] = {**ASKED, "catalogs": self.catalogs, "checkout": self.checkout, **other}
        return switch_site(PLAN, site, run=run, dns=dns or self.dns, **said)

    def undo(self, *, run: str = "run-1", undo: str = "undo-1", dns: Any = None, **other: Any) -> dict[str, Any]:
        said: dict[str, Any] = {**UNDO, "catalogs": self.catalogs, "checkout": self.checkout, **other}
        return undo_switches(PLAN, run=run, undo=undo, dns=dns or self.dns, **said)

    def foresee(self, dns: Any = None) -> list[str]:
        reach: dict[str, Any] = {"catalogs": self.catalogs, "checkout": self.checkout, "dns": dns or self.dns}
        return foresee_switch(PLAN, "dr", run="run-1", **reach)

    def records(self) -> list[dict[str, Any]]:
        found = self.dns.list_resource_record_sets(HostedZoneId=self.zone)["ResourceRecordSets"]
        return [each for each in found if each["Name"] == NAME]

    def set_records(self, *records: dict[str, Any]) -> None:
        changes = [("DELETE", each) for each in self.records()] + [("CREATE", each) for each in records]
        batch = {"Changes": [{"Action": action, "ResourceRecordSet": each} for action, each in changes]}
        if changes:
            self.dns.change_resource_record_sets(HostedZoneId=self.zone, ChangeBatch=batch)

    def state(self) -> tuple[str, ...]:
        """Everything that a failover changes, as each bucket, the file and Route 53 tell it."""
        told = [active_site(PLAN, [catalog]).site for catalog in self.catalogs]
        file = f"{self.file.read_text()}{stat.S_IMODE(self.file.stat().st_mode):o}"
        return (*told, file, repr(self.records()))

    def is_switched(self) -> bool:
        return self.state() == ("dr", "dr", f"{AFTER}640", repr([cname(DR, ttl=60)]))

    def begin_again(self) -> None:
        """As nobody had ever switched."""
        for catalog in self.catalogs:
            for version in list(catalog.bucket.versions("state/site/")):
                catalog.bucket.delete_version(version.key, version.version_id)
        for left in self.file.parent.iterdir():
            left.unlink()
        self.file.write_text(BEFORE)
        self.file.chmod(0o640)
        self.set_records(cname(HOME))


def cname(value: str, *, ttl: int = 300) -> dict[str, Any]:
    return {"Name": NAME, "Type": "CNAME", "TTL": ttl, "ResourceRecords": [{"Value": value}]}


@pytest.fixture(scope="module")
def regions(s3_primary: S3Server, s3_replica: S3Server) -> tuple[S3Server, S3Server]:
    for server in (s3_primary, s3_replica):
        server.create_bucket(f"site-{server.region}")
    return s3_primary, s3_replica


@pytest.fixture(scope="module")
def zone(s3_replica: S3Server) -> str:
    dns = route53(s3_replica)
    dns.create_hosted_zone(Name="other.example.", CallerReference=secrets.token_hex(8))
    wanted = PLAN.switches.service.zone
    zones = dns.list_hosted_zones_by_name(DNSName=wanted)["HostedZones"]
    made = next((each["Id"] for each in zones if each["Name"] == wanted), None)  # another module's
    if made is None:
        made = dns.create_hosted_zone(Name=wanted, CallerReference=secrets.token_hex(8))["HostedZone"]["Id"]
    return str(made).rpartition("/")[2]


@pytest.fixture(scope="module")
def keyring_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keyring.json"
    Keyring.create(file)
    return file


@pytest.fixture(scope="module")
def keyring(keyring_file: Path) -> Keyring:
    return Keyring.load(keyring_file)


def bucket(server: S3Server) -> Bucket:
    return Bucket(server.session(), f"site-{server.region}", region=server.region, endpoint_url=server.endpoint_url)


def route53(server: S3Server) -> Any:
    return server.session().client("route53", endpoint_url=server.endpoint_url)


@pytest.fixture
def world(regions: tuple[S3Server, S3Server], zone: str, keyring: Keyring, tmp_path: Path) -> World:
    """As it is before anything happens: home is active. The copy that a failover uses is the replica's."""
    primary, replica = regions
    (tmp_path / "environment").mkdir()
    made = World(
        [Catalog(bucket(replica), keyring), Catalog(bucket(primary), keyring)], tmp_path, route53(replica), zone
    )
    made.begin_again()
    return made


@pytest.mark.requirement("R5.3")
def test_a_site_is_switched_to_and_back_and_everything_is_as_before(world: World) -> None:
    before = world.state()
    assert active_site(PLAN, world.catalogs).facts()["site"] == "home"
    facts = world.switch()
    assert world.is_switched()
    assert facts == {
        "run": "run-1",
        "active": "dr",
        "before": "home",
        "since": facts["since"],
        "switched": ["pointer", "configuration", "service"],
        "switched_back": [],
        "untold": {},
    }
    active = active_site(PLAN, world.catalogs)
    assert (active.site, active.run, active.by, active.approved_by, active.before) == (
        "dr",
        "run-1",
        "ada",
        "bob",
        "home",
    )
    kept = world.file.with_name("production.env.before-run-1")
    assert kept.read_text() == BEFORE
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert world.switch() == facts  # the same run again changes nothing
    undone = world.undo()
    assert world.state() == before
    assert (undone["active"], undone["switched_back"]) == ("home", ["service", "configuration", "pointer"])
    assert undone["switched"] == []
    assert world.undo() == undone  # the same undoing again changes nothing
    assert len(SiteLog(PLAN, world.catalogs).entries) == 10  # and writes nothing down
    active = active_site(PLAN, world.catalogs)
    assert (active.site, active.run, active.by, active.before) == ("home", "undo-1", "bob", "dr")


@pytest.mark.requirement("R5.3", "R7.1")
def test_the_log_holds_no_secret(world: World) -> None:
    world.switch()
    world.undo()
    for catalog in world.catalogs:
        bodies = [catalog.bucket.read(key) for key in catalog.bucket.keys("state/site/")]
        assert len(bodies) == 10
        assert not any(b"7f3a" in body for body in bodies)


@pytest.mark.requirement("R5.3")
def test_what_stops_half_way_names_what_is_switched_and_is_gone_on_with(world: World) -> None:
    with pytest.raises(HalfSwitched) as half:
        world.switch(dns=Unreachable(world.dns, "change_resource_record_sets"))
    assert "run-1 to dr stands half-way (switched: pointer, configuration; not: service)" in half.value.what
    assert "Could not change app.synapse.example. in Route 53" in half.value.what
    assert "clear the task" in half.value.mend
    assert "undo_failover" in half.value.mend
    assert (active_site(PLAN, world.catalogs).site, world.records()) == ("dr", [cname(HOME)])
    with pytest.raises(SiteBusy, match="run-1 to dr stands half-way"):
        world.switch("home", run="run-2")
    assert [line.partition(":")[0] for line in world.foresee()] == ["service"]
    world.switch()
    assert world.is_switched()
    entries = SiteLog(PLAN, world.catalogs).entries
    assert [(entry.step, entry.switch) for entry in entries] == [
        ("asked", None),
        ("made", "pointer"),
        ("begun", "configuration"),
        ("made", "configuration"),
        ("begun", "service"),
        ("made", "service"),
    ]
    assert {entry.left for entry in entries} == {"home"}


@pytest.mark.requirement("R5.3")
def test_what_stopped_half_way_is_undone_as_far_as_it_came_and_goes_on_no_more(world: World) -> None:
    before = world.state()
    with pytest.raises(HalfSwitched):
        world.switch(dns=Unreachable(world.dns, "change_resource_record_sets"))
    with pytest.raises(HalfSwitched, match=r"undone half-way \(switched back: none of pointer, configuration, service"):
        world.undo(dns=Unreachable(world.dns, "list_resource_record_sets"))
    assert world.undo()["switched_back"] == ["service", "configuration", "pointer"]
    assert world.state() == before
    with pytest.raises(SwitchRefused, match="was undone"):
        world.switch()
    world.switch(run="run-2")
    assert world.is_switched()


@pytest.mark.requirement("R5.3")
def test_nothing_is_switched_where_one_switch_could_not_be(world: World) -> None:
    before = world.state()
    with pytest.raises(NotSwitched, match="in Route 53"):
        world.switch(dns=Unreachable(world.dns, "list_hosted_zones_by_name"))
    with pytest.raises(NotSwitched, match="cannot be switched: No such file"):
        world.switch(checkout=world.checkout / "elsewhere")
    with pytest.raises(NotSwitched, match="in Route 53"):
        world.foresee(dns=Unreachable(world.dns, "list_hosted_zones_by_name"))
    assert world.state() == before
    assert SiteLog(PLAN, world.catalogs).entries == []


@pytest.mark.requirement("R5.3")
def test_what_nobody_can_mean_is_refused(world: World) -> None:
    with pytest.raises(SwitchRefused, match="home is the active site already"):
        world.switch("home")
    with pytest.raises(SwitchRefused, match="no site 'mars'"):
        world.switch("mars")
    for run in ("../run", "run/../../x", "-x", "x" * 101, ""):
        with pytest.raises(SwitchRefused, match="no name of a run"):
            world.switch(run=run)
    with pytest.raises(SwitchRefused, match="Nobody ever switched"):
        find_run(SiteLog(PLAN, world.catalogs))
    world.switch()
    with pytest.raises(SwitchRefused, match="dr is the active site already, since"):
        world.switch(run="run-2")
    with pytest.raises(SwitchRefused, match="no run 'run-9'"):
        world.undo(run="run-9")
    world.switch("home", run="run-2")
    assert find_run(SiteLog(PLAN, world.catalogs)).run == "run-2"
    with pytest.raises(SwitchRefused, match="run-1 is not the newest run: run-2 came after it"):
        world.undo()
    with pytest.raises(SwitchRefused, match="run-1 is not the newest run"):
        world.switch()  # whose task was cleared
    with pytest.raises(SwitchRefused, match="run-1 is not the newest run"):
        find_run(SiteLog(PLAN, world.catalogs), "run-1")
    with pytest.raises(SwitchRefused, match="run-2 is to home, not to dr"):
        world.switch(run="run-2")
    world.undo(run="run-2")
    with pytest.raises(SwitchRefused, match="run-2 was undone already, by bob: dr is active"):
        world.undo(run="run-2", undo="undo-2")


@pytest.mark.requirement("R5.3")
def test_what_somebody_else_changed_meanwhile_is_left_as_it_is_and_told(world: World) -> None:
    world.switch()
    world.file.write_text(f"{AFTER}SYNAPSE_HOTFIX=1\n")
    world.set_records(cname("elsewhere.example"))
    with pytest.raises(HalfSwitched, match=r"app.synapse.example. was changed by somebody else .* elsewhere.example"):
        world.undo()
    assert world.records() == [cname("elsewhere.example")]
    world.set_records(cname(DR, ttl=60))
    with pytest.raises(HalfSwitched, match=r"production.env was changed by somebody else") as half:
        world.undo()
    assert "switched back: service of pointer, configuration, service" in half.value.what
    left = foresee_undo(PLAN, run="run-1", catalogs=world.catalogs)
    assert [line.partition(":")[0] for line in left] == ["configuration", "pointer"]
    assert "production.env.before-run-1" in half.value.mend
    assert world.file.read_text().endswith("SYNAPSE_HOTFIX=1\n")
    assert active_site(PLAN, world.catalogs).site == "dr"
    world.file.write_text(BEFORE)
    assert world.undo()["active"] == "home"


@pytest.mark.requirement("R5.3")
def test_what_was_kept_and_is_gone_is_told_and_not_made_up(world: World) -> None:
    world.switch()
    world.file.with_name("production.env.before-run-1").unlink()
    with pytest.raises(HalfSwitched, match=r"is gone, and .* has the values of this run"):
        world.undo()
    assert world.file.read_text() == AFTER


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize(
    "sets",
    [
        [],
        [{"Name": NAME, "Type": "A", "TTL": 300, "ResourceRecords": [{"Value": "192.0.2.1"}, {"Value": "192.0.2.2"}]}],
        [
            {**cname(f"{each}.example"), "SetIdentifier": each, "Weight": weight}
            for each, weight in (("blue", 90), ("green", 10))
        ],
    ],
    ids=["none", "addresses", "weighted"],
)
def test_whatever_the_name_had_is_put_back_exactly(world: World, sets: list[dict[str, Any]]) -> None:
    world.set_records(*sets)
    before = world.records()
    assert len(before) == len(sets)
    world.switch()
    assert world.records() == [cname(DR, ttl=60)]
    world.undo()
    assert world.records() == before


@pytest.mark.requirement("R5.3")
def test_with_one_bucket_away_the_other_tells_and_the_first_is_brought_up_when_it_is_back(world: World) -> None:
    replica, primary = world.catalogs
    stranger = boto3.Session("AKIANOBODY", "x")  # whom the store does not answer
    away = Catalog(
        Bucket(stranger, primary.bucket.name, region="eu-west-1", endpoint_url=primary.bucket.endpoint_url),
        primary.keyring,
    )
    lost = [replica, away]
    assert list(world.switch(catalogs=lost)["untold"]) == [primary.bucket.name]
    assert active_site(PLAN, lost).site == "dr"
    assert active_site(PLAN, [primary]).site == "home"  # it was away
    with pytest.raises(StoreError, match=primary.bucket.name):
        SiteLog(PLAN, [away])
    with pytest.raises(BackupError, match="No bucket is named"):
        SiteLog(PLAN, [])
    with pytest.raises(StoreError, match="does not answer, and the switches are written down there first"):
        world.undo(catalogs=[away, replica])
    # The way back, with the primary's as the copy that is written first: it is brought up before anything else.
    world.switch("home", run="run-2", catalogs=[primary, replica])
    assert {active_site(PLAN, [each]).run for each in world.catalogs} == {"run-2"}
    assert [entry.number for entry in SiteLog(PLAN, [primary]).entries] == list(range(1, 13))


@pytest.mark.requirement("R5.3")
def test_two_histories_are_told_and_none_is_written_over(world: World) -> None:
    replica, primary = world.catalogs
    world.switch(run="run-1", catalogs=[primary])
    world.set_records(cname(HOME))
    world.switch(run="run-2", catalogs=[replica])
    world.undo(run="run-2", catalogs=[replica])
    world.switch(run="run-3", catalogs=[replica])  # so this is the newer one, also within one second of the store's
    with pytest.raises(LogsDiffer, match="another history"):
        world.switch("home", run="run-4", catalogs=[primary, replica])
    facts = world.switch("home", run="run-4", catalogs=[replica, primary])
    assert list(facts["untold"]) == [primary.bucket.name]
    assert active_site(PLAN, [primary, replica]).run == "run-4"
    assert active_site(PLAN, [primary]).run == "run-1"


@pytest.mark.requirement("R5.3", "R7.1")
def test_what_is_not_genuine_counts_for_nothing(world: World, keyring: Keyring, tmp_path: Path) -> None:
    world.switch()
    replica, primary = world.catalogs
    thief = Catalog(replica.bucket, Keyring.create(tmp_path / "thief.json"))
    last = SiteLog(PLAN, world.catalogs).entries[-1]
    forged = last.model_copy(update={"number": last.number + 1, "switch": "pointer", "site": "mars"})
    replica.bucket.put(forged.home, forged.sealed(thief.keyring))
    stored = replica.bucket.read(last.home)
    replica.bucket.put("state/site/000009.json", stored)  # moved
    replica.bucket.put("state/site/000001.json", stored)  # written over
    record = SiteLog(PLAN, [replica])
    assert (record.active.site, len(record.entries)) == ("dr", last.number)
    assert len(record.refused) == 2
    assert world.undo()["active"] == "home"
    assert active_site(PLAN, [replica]).site == active_site(PLAN, [primary]).site == "home"


class Unreachable:
    """Route 53, of which one call is not answered."""

    def __init__(self, dns: Any, call: str) -> None:
        self._dns, self._call = dns, call

    def __getattr__(self, name: str) -> Any:
        def refused(**_: Any) -> Any:
            raise EndpointConnectionError(endpoint_url="https://route53.amazonaws.com")

        return refused if name == self._call else getattr(self._dns, name)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    regions: tuple[S3Server, S3Server],
    keyring_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    world: World,
) -> Run:
    """Run the command line with the replica's options alone; its exit code and what it printed."""
    _, replica = regions
    credentials = replica.session().get_credentials()
    assert credentials
    name = world.catalogs[0].bucket.name
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials.secret_key)
    place = ["--bucket", name, "--replica-bucket", name, "--endpoint-url", replica.endpoint_url]
    place += ["--region", "us-east-1", "--keyring", str(keyring_file)]

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["synapse-backups", *place, "site", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.mark.requirement("R5.3")
def test_a_person_does_the_same_without_airflow(
    world: World, run: Run, regions: tuple[S3Server, S3Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = replace(world, catalogs=world.catalogs[:1])  # the primary is lost
    before = world.state()
    code, told, _ = run("show")
    assert (code, told.splitlines()[0]) == (0, "home is the active site.")
    assert "synapse-backups does not tell of it" in told
    reach = ("--dns-endpoint-url", regions[1].endpoint_url, "--configuration", str(world.checkout))
    code, told, _ = run("switch", "dr", *reach, "--dry-run")
    assert code == 0
    assert "pointer: s3://site-us-east-1/state/site/: dr (now home)" in told
    assert "production.env: SYNAPSE_SITE=dr, SYNAPSE_REGION=us-east-1" in told
    assert "service: app.synapse.example.: CNAME 60 dr.synapse.example." in told
    assert world.state() == before

    code, _, wrong = run("switch", "dr", "--because", "x", *reach[:2])
    assert (code, "Name its path with --configuration" in wrong) == (1, True)
    said = ("--because", "the region is lost", "--by", "ada", "--approved-by", "bob")
    code, told, _ = run("switch", "dr", *said, *reach)
    assert (code, "dr is the active site; home was before." in told) == (0, True)
    assert world.file.read_text() == AFTER
    assert world.records() == [cname(DR, ttl=60)]
    code, _, wrong = run("switch", "dr", *said, *reach)
    assert (code, "dr is the active site already" in wrong) == (1, True)
    code, told, _ = run("show")
    assert "home to dr, switched: pointer, configuration, service. ada, approved by bob, because: the region is" in told

    # Where Airflow's connections are in the environment, they say where the checkout and the zone are.
    server = regions[1]
    credentials = server.session().get_credentials()
    assert credentials
    dns = {"login": credentials.access_key, "password": credentials.secret_key}
    connection = json.dumps({**dns, "extra": {"endpoint_url": server.endpoint_url}})
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_DNS", connection)
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_DR_CONFIGURATION", json.dumps({"host": str(world.checkout)}))
    code, told, _ = run("undo", "--dry-run")
    assert [line.split(":")[0] for line in told.splitlines()[1:]] == ["  service", "  configuration", "  pointer"]
    code, told, _ = run("undo", "--because", "it came back", "--json")
    assert (code, json.loads(told)["active"]) == (0, "home")
    assert world.state() == before
    code, told, _ = run("show", "--json")
    assert json.loads(told)["runs"][0]["stands"] == "it was undone"

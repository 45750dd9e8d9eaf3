"""Failing over and back dies everywhere (R5.3), and the same run again ends switched, and undoing ends as before.

Before or after any call to either bucket, to Route 53 or to the file system. The file system is real; the buckets keep
what S3 promises of creation and listing, and Route 53 what it promises of a batch: all of it, or nothing. What the real
ones do is in test_switches.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from include.disaster import switches
from include.disaster.plan import load_plan
from include.disaster.site import foresee_switch, is_active, switch_site, undo_switches
from include.disaster.site_log import SiteBusy, SiteLog, active_site
from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.store import ObjectExists, ObjectVersion, StoreError
from include.repository.catalog import Catalog

PLAN = load_plan()
NAME = PLAN.switches.service.name
HOME, DR = "home.synapse.example", "dr.synapse.example"
FILE = PLAN.switches.configuration
BEFORE = b"# Production\nSYNAPSE_SITE=home\nSYNAPSE_SESSION_SECRET=7f3a\nSYNAPSE_REGION=eu-west-1\n"
AFTER = b"# Production\nSYNAPSE_SITE=dr\nSYNAPSE_SESSION_SECRET=7f3a\nSYNAPSE_REGION=us-east-1\n"


class Killed(BaseException):
    """The process is gone at this point."""


@dataclass
class Deaths:
    """Counts what happens outside, each thing before and after; dies where it is told to."""

    dies_at: int | None = None
    calls: list[str] = field(default_factory=list)

    def step(self, what: str) -> None:
        self.calls.append(what)
        if len(self.calls) == self.dies_at:
            raise Killed

    @contextmanager
    def around(self, what: str) -> Iterator[None]:
        self.step(f"before {what}")
        yield
        self.step(f"after {what}")

    @contextmanager
    def watching_files(self) -> Iterator[None]:
        """Count what changes files."""

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*arguments: Any, **named: Any) -> Any:
                with self.around(function.__name__):
                    return function(*arguments, **named)

            return counting

        class CountedOs:
            def __getattr__(self, name: str) -> Any:
                real = getattr(os, name)
                return counted(real) if name in {"open", "fsync", "link", "fchmod"} else real

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(switches, "os", CountedOs())
            patch.setattr(Path, "replace", counted(Path.replace))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            yield


@dataclass
class MemoryBucket:
    """A bucket that keeps what it is given, as S3 promises to; its clock goes on with every look at it."""

    name: str
    objects: dict[str, bytes] = field(default_factory=dict)
    now: datetime = datetime(2026, 11, 22, tzinfo=UTC)
    deaths: Deaths = field(default_factory=Deaths)
    conditions: bool = True
    """Whether it honours `If-None-Match`. A store that does not keeps what came later as one more version."""

    def clock(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def create(self, key: str, body: bytes) -> None:
        with self.deaths.around(f"create in {self.name}"):
            if self.objects.setdefault(key, body) != body and self.conditions:
                raise ObjectExists("It exists already.", mend="-")

    def read(self, key: str, *, version_id: str | None = None) -> bytes:
        return self.objects[key]

    read_oldest = read

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        for key, body in sorted(self.objects.items()):
            yield ObjectVersion(key, "v", self.now, len(body), "e", deleted=False, latest=True)


@dataclass
class MemoryZone:
    """A zone of Route 53: a batch is carried out whole or not at all, and is pending at first."""

    sets: list[dict[str, Any]] = field(default_factory=list)
    pending: int = 0
    deaths: Deaths = field(default_factory=Deaths)

    def list_hosted_zones_by_name(self, *, DNSName: str) -> dict[str, Any]:  # noqa: N803 - boto3's name
        return {"HostedZones": [{"Id": "/hostedzone/Z1", "Name": DNSName, "Config": {"PrivateZone": False}}]}

    def list_resource_record_sets(self, **_: Any) -> dict[str, Any]:
        return {"ResourceRecordSets": [dict(each) for each in self.sets]}

    def change_resource_record_sets(self, *, HostedZoneId: str, ChangeBatch: dict[str, Any]) -> dict[str, Any]:  # noqa: N803
        assert ChangeBatch["Changes"]  # Route 53 refuses a batch of nothing
        with self.deaths.around("change"):
            sets = list(self.sets)
            for change in ChangeBatch["Changes"]:
                wanted = change["ResourceRecordSet"]
                if change["Action"] == "DELETE":
                    if wanted not in sets:
                        raise ClientError({"Error": {"Code": "InvalidChangeBatch"}}, "ChangeResourceRecordSets")
                    sets.remove(wanted)
                else:
                    sets = [each for each in sets if each["Type"] != wanted["Type"]] + [dict(wanted)]
            self.sets, self.pending = sets, 1
        return {"ChangeInfo": {"Id": "/change/C1", "Status": "PENDING"}}

    def get_change(self, *, Id: str) -> dict[str, Any]:  # noqa: N803
        with self.deaths.around("wait"):
            self.pending -= 1
        return {"ChangeInfo": {"Id": Id, "Status": "PENDING" if self.pending >= 0 else "INSYNC"}}


@dataclass
class World:
    """Both regions' buckets, a checkout, a zone."""

    keyring: Keyring
    checkout: Path
    replica: MemoryBucket
    primary: MemoryBucket
    zone: MemoryZone

    @classmethod
    def make(cls, keyring: Keyring, checkout: Path) -> World:
        """Home is active, and nobody ever switched."""
        file = checkout / FILE
        file.parent.mkdir(exist_ok=True)
        for left in file.parent.iterdir():
            left.unlink()
        file.write_bytes(BEFORE)
        file.chmod(0o640)
        return cls(keyring, checkout, MemoryBucket("replica"), MemoryBucket("primary"), MemoryZone([cname(HOME, 300)]))

    @property
    def catalogs(self) -> list[Catalog]:
        return [Catalog(cast("Any", bucket), self.keyring) for bucket in (self.replica, self.primary)]

    def attempt(self, act: str, dies_at: int | None = None, name: str = "undo-1") -> list[str]:
        """One try in a process of its own, as far as it comes; returns what it called."""
        deaths = self.replica.deaths = self.primary.deaths = self.zone.deaths = Deaths(dies_at)
        said: dict[str, Any] = {"by": "ada", "approved_by": "bob", "because": "the region is lost", "run": "run-1"}
        reach: dict[str, Any] = {"catalogs": self.catalogs, "checkout": self.checkout, "dns": self.zone}
        with deaths.watching_files(), suppress(Killed):
            if act == "switch":
                switch_site(PLAN, "dr", **said, **reach)
            else:
                undo_switches(PLAN, undo=name, **said, **reach)
        return deaths.calls

    def state(self) -> tuple[object, ...]:
        """Everything that a failover changes, as each bucket, the file and the zone tell it."""
        file = self.checkout / FILE
        told = [active_site(PLAN, [catalog]).site for catalog in self.catalogs]
        return (*told, file.read_bytes(), stat.S_IMODE(file.stat().st_mode), self.zone.sets)


def cname(value: str, ttl: int) -> dict[str, Any]:
    return {"Name": NAME, "Type": "CNAME", "TTL": ttl, "ResourceRecords": [{"Value": value}]}


BEGUN = ("home", "home", BEFORE, 0o640, [cname(HOME, 300)])
SWITCHED = ("dr", "dr", AFTER, 0o640, [cname(DR, 60)])


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "_FIRST_POLL", 0.0)


@pytest.mark.requirement("R5.3")
def test_whatever_dies_while_switching_the_same_run_ends_switched_and_undoing_ends_as_before(
    keyring: Keyring, tmp_path: Path
) -> None:
    calls = World.make(keyring, tmp_path).attempt("switch")
    assert len(calls) > 40
    assert {"before create in primary", "after change", "before wait", "after link", "before replace"} <= set(calls)
    for dies_at, call in enumerate(calls, start=1):
        world = World.make(keyring, tmp_path)
        world.attempt("switch", dies_at)
        world.attempt("switch")
        assert world.state() == SWITCHED, call
        world.attempt("undo")
        assert world.state() == BEGUN, call
        world = World.make(keyring, tmp_path)
        world.attempt("switch", dies_at)
        if SiteLog(PLAN, world.catalogs).newest:  # else it died before anything, and there is nothing to undo
            world.attempt("undo")
        assert world.state() == BEGUN, call


@pytest.mark.requirement("R5.3")
def test_whatever_dies_while_undoing_the_same_again_or_another_ends_as_before(keyring: Keyring, tmp_path: Path) -> None:
    world = World.make(keyring, tmp_path)
    world.attempt("switch")
    calls = world.attempt("undo")
    assert world.state() == BEGUN
    for dies_at, call in enumerate(calls, start=1):
        world = World.make(keyring, tmp_path)
        world.attempt("switch")
        world.attempt("undo", dies_at)
        world.attempt("undo")  # a cleared task, also behind the last step
        assert world.state() == BEGUN, call
        world = World.make(keyring, tmp_path)
        world.attempt("switch")
        world.attempt("undo", dies_at)
        with suppress(BackupError):  # nothing was left to do
            world.attempt("undo", name="by-hand")
        assert world.state() == BEGUN, call


@pytest.mark.requirement("R5.3")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deaths=st.lists(st.integers(1, 60), max_size=6), back=st.lists(st.integers(1, 60), max_size=6))
def test_however_often_it_dies(keyring: Keyring, tmp_path: Path, deaths: list[int], back: list[int]) -> None:
    world = World.make(keyring, tmp_path)
    for dies_at in deaths:
        world.attempt("switch", dies_at)
    world.attempt("switch")
    assert world.state() == SWITCHED
    for dies_at in back:
        world.attempt("undo", dies_at)
    world.attempt("undo")
    assert world.state() == BEGUN


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize("conditions", [True, False])
def test_of_two_that_switch_at_once_one_loses_and_nothing_that_it_wrote_counts(
    keyring: Keyring, tmp_path: Path, conditions: bool
) -> None:
    world = World.make(keyring, tmp_path)
    world.replica.conditions = world.primary.conditions = conditions
    said = {"site": "dr", "left": "home", "by": "ada", "approved_by": "", "because": "x"}
    first, second = SiteLog(PLAN, world.catalogs), SiteLog(PLAN, world.catalogs)
    first.append("asked", run="run-1", **said)
    with pytest.raises(SiteBusy, match="at this moment"):
        second.append("asked", run="run-2", **said)
    for catalog in world.catalogs:
        assert list(SiteLog(PLAN, [catalog]).runs) == ["run-1"]


SAID = {"site": "dr", "left": "home", "by": "ada", "approved_by": "", "because": "x", "run": "run-1"}


@pytest.mark.requirement("R5.3")
def test_while_a_run_stands_half_way_no_other_begins_and_no_site_is_settled(keyring: Keyring, tmp_path: Path) -> None:
    world = World.make(keyring, tmp_path)
    record = SiteLog(PLAN, world.catalogs)
    record.append("asked", **SAID)
    record.append("made", "pointer", **SAID)
    assert active_site(PLAN, world.catalogs).site == "dr"
    for site in ("home", "dr"):
        with pytest.raises(SiteBusy, match="half-way"):
            foresee_switch(PLAN, site, run="run-2", catalogs=world.catalogs, checkout=tmp_path, dns=world.zone)
        assert not is_active(PLAN, site, run="run-2", catalogs=world.catalogs)
    world.attempt("switch")
    assert is_active(PLAN, "dr", run="run-2", catalogs=world.catalogs)
    assert not is_active(PLAN, "dr", run="run-1", catalogs=world.catalogs)  # it is that run's own doing
    assert not is_active(PLAN, "home", run="run-2", catalogs=world.catalogs)


@pytest.mark.requirement("R5.3")
def test_a_bucket_that_is_lost_meanwhile_stops_no_switch_and_is_told_of(
    keyring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, asked = World.make(keyring, tmp_path), list[str]()
    world.replica.objects[f"{PLAN.switches.pointer}of-000009.json"] = b"somebody's notes"

    def away(key: str, body: bytes) -> None:
        asked.append(key)
        raise StoreError("It does not answer.", mend="Wait.")

    monkeypatch.setattr(world.primary, "create", away)
    said = {key: value for key, value in SAID.items() if key not in {"site", "left"}}
    facts = switch_site(PLAN, "dr", **said, catalogs=world.catalogs, checkout=tmp_path, dns=world.zone)
    assert (facts["active"], facts["untold"]) == ("dr", {"primary": "It does not answer."})
    assert len(asked) == 1  # and is not waited for again
    record = SiteLog(PLAN, world.catalogs[:1])
    assert ([entry.number for entry in record.entries], record.refused) == ([1, 2, 3, 4, 5, 6], [])


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize("values", [{"A B": "x"}, {"1A": "x"}, {"A": "x\nB=y"}, {"A": "x\r"}, {"A": "\0"}, {"": "x"}])
def test_what_is_no_line_of_an_environment_file_is_refused(tmp_path: Path, values: dict[str, str]) -> None:
    file = tmp_path / "production.env"
    file.write_text("A=1\n")
    with pytest.raises(switches.NotSwitched, match="no line of an environment file"):
        switches.EnvironmentFile(file, values, run="r").look()


@pytest.mark.requirement("R5.3")
def test_where_the_log_lies_and_which_site_is_home_the_plan_says(keyring: Keyring, tmp_path: Path) -> None:
    world = World.make(keyring, tmp_path)
    switches = PLAN.switches.model_copy(update={"pointer": "elsewhere/"})
    sites = {name: PLAN.sites[name] for name in ("dr", "home")}
    plan = PLAN.model_copy(update={"switches": switches, "sites": sites})
    assert active_site(plan, world.catalogs).site == "dr"
    entry = SiteLog(plan, world.catalogs).append("asked", **SAID)
    assert entry.home == "elsewhere/000001.json"
    assert list(SiteLog(plan, world.catalogs).runs) == ["run-1"]


@pytest.mark.requirement("R5.3")
def test_the_log_goes_on_in_time_also_by_a_clock_that_is_behind(keyring: Keyring, tmp_path: Path) -> None:
    world = World.make(keyring, tmp_path)
    world.attempt("switch")
    world.replica.now -= timedelta(days=1)
    world.attempt("undo")
    assert world.state() == BEGUN
    moments = [entry.when for entry in SiteLog(PLAN, world.catalogs).entries]
    assert moments == sorted(moments)
    assert moments[0] - datetime(2026, 11, 22, tzinfo=UTC) < timedelta(minutes=1)  # by the store's clock, not by ours


@pytest.mark.requirement("R5.3")
def test_what_was_there_before_a_switch_is_what_was_found_first(keyring: Keyring, tmp_path: Path) -> None:
    """A try that was thought dead looks once more, when the other one has switched already."""
    record = SiteLog(PLAN, World.make(keyring, tmp_path).catalogs)
    record.append("asked", **SAID)
    for found in ("home", "dr"):
        record.append("begun", "service", found, **SAID)
    assert record.runs["run-1"].before == {"service": "home"}
    for _ in range(3):
        record.append("made", "pointer", **SAID)
    assert not record.runs["run-1"].is_over  # one switch, however often it is written down


@pytest.mark.requirement("R5.3", "R7.3")
def test_a_run_whose_first_entry_was_spoilt_is_undone_all_the_same(keyring: Keyring, tmp_path: Path) -> None:
    world = World.make(keyring, tmp_path)
    world.attempt("switch")
    for bucket in (world.replica, world.primary):
        bucket.objects[f"{PLAN.switches.pointer}000001.json"] = b"{}"
    assert list(SiteLog(PLAN, world.catalogs).runs) == ["run-1"]
    world.attempt("undo")
    assert world.state() == BEGUN


@pytest.mark.requirement("R5.3", "R7.3")
def test_a_number_that_a_forged_entry_takes_is_passed_over(keyring: Keyring, tmp_path: Path) -> None:
    """The other bucket tells more than the first, in which somebody put an entry of their own."""
    world = World.make(keyring, tmp_path)
    replica, primary = world.catalogs
    SiteLog(PLAN, [replica, primary]).append("asked", **SAID)
    SiteLog(PLAN, [primary]).append("made", "pointer", **SAID)
    world.replica.objects[f"{PLAN.switches.pointer}000003.json"] = b"{}"
    record = SiteLog(PLAN, [replica, primary])
    record.ready_to_write()
    assert record.append("begun", "service", **SAID).number == 4
    assert [active_site(PLAN, [one]).site for one in (replica, primary)] == ["dr", "dr"]


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", b"SYNAPSE_SITE=dr\nSYNAPSE_REGION=us-east-1\n"),
        (b"A=1", b"A=1\nSYNAPSE_SITE=dr\nSYNAPSE_REGION=us-east-1\n"),
        (b"A=1\r\nSYNAPSE_SITE=x\r\n", b"A=1\r\nSYNAPSE_SITE=dr\r\nSYNAPSE_REGION=us-east-1\r\n"),
        (b"# SYNAPSE_SITE=x\n", b"# SYNAPSE_SITE=x\nSYNAPSE_SITE=dr\nSYNAPSE_REGION=us-east-1\n"),
        (b"SYNAPSE_SITES=x\n", b"SYNAPSE_SITES=x\nSYNAPSE_SITE=dr\nSYNAPSE_REGION=us-east-1\n"),
        (b"SYNAPSE_REGION =a\nexport SYNAPSE_SITE='b'", b"SYNAPSE_REGION =us-east-1\nexport SYNAPSE_SITE=dr"),
        (
            b"SYNAPSE_SITE=a\nSYNAPSE_SITE=b\nSYNAPSE_REGION=\nN=\xff\x85\x0b\n",
            b"SYNAPSE_SITE=dr\nSYNAPSE_SITE=dr\nSYNAPSE_REGION=us-east-1\nN=\xff\x85\x0b\n",
        ),
    ],
)
def test_only_our_lines_of_an_environment_file_change(tmp_path: Path, content: bytes, wanted: bytes) -> None:
    file = tmp_path / "production.env"
    file.write_bytes(content)
    switch = switches.EnvironmentFile(file, PLAN.sites["dr"].environment, run="r")
    before = switch.look()
    switch.make(before)
    assert file.read_bytes() == wanted
    switch.restore(before)
    assert file.read_bytes() == content


@pytest.mark.requirement("R5.3")
def test_what_somebody_else_wrote_before_a_try_that_goes_on_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "production.env"
    file.write_bytes(BEFORE)
    switch = switches.EnvironmentFile(file, PLAN.sites["dr"].environment, run="r")
    before = switch.look()
    switch.make(before)
    file.write_bytes(BEFORE + b"SYNAPSE_HOTFIX=1\n")
    with pytest.raises(switches.ChangedMeanwhile, match="changed by somebody else"):
        switch.make(before)
    assert file.read_bytes() == BEFORE + b"SYNAPSE_HOTFIX=1\n"


@pytest.mark.requirement("R5.3")
def test_what_had_the_values_already_needs_nothing_that_was_kept(tmp_path: Path) -> None:
    file = tmp_path / "production.env"
    file.write_bytes(AFTER)
    switch = switches.EnvironmentFile(file, PLAN.sites["dr"].environment, run="r")
    before = switch.look()
    switch.make(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["production.env", "production.env.before-r"]
    (tmp_path / "production.env.before-r").unlink()
    switch.restore(before)
    assert file.read_bytes() == AFTER


@pytest.mark.requirement("R5.3")
def test_of_a_link_the_file_that_it_leads_to_is_switched(tmp_path: Path) -> None:
    shared, link = tmp_path / "shared.env", tmp_path / "production.env"
    shared.write_bytes(BEFORE)
    link.symlink_to(shared)
    switch = switches.EnvironmentFile(link, PLAN.sites["dr"].environment, run="r")
    before = switch.look()
    switch.make(before)
    assert link.is_symlink()
    assert shared.read_bytes() == AFTER
    switch.restore(before)
    assert shared.read_bytes() == BEFORE


@pytest.mark.requirement("R5.3")
def test_what_somebody_else_writes_in_that_very_moment_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "production.env"
    file.write_bytes(BEFORE)
    switch = switches.EnvironmentFile(file, PLAN.sites["dr"].environment, run="r")
    before = switch.look()
    syncs: list[Path] = []

    def synced(directory: Path) -> None:
        syncs.append(directory)
        if len(syncs) == 2:  # the first one is of what was kept
            file.write_bytes(b"somebody else's")

    monkeypatch.setattr(switches, "sync_directory", synced)
    with pytest.raises(switches.ChangedMeanwhile, match="changed by somebody else"):
        switch.make(before)


@pytest.mark.requirement("R5.3")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_file_stays_its_owners(tmp_path: Path) -> None:
    file = tmp_path / "production.env"
    file.write_bytes(BEFORE)
    os.chown(file, 12345, 23456)
    switch = switches.EnvironmentFile(file, PLAN.sites["dr"].environment, run="r")
    switch.make(switch.look())
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 23456)


@pytest.mark.requirement("R5.3")
def test_of_a_name_that_had_nothing_nothing_stays_and_each_try_waits_for_every_server() -> None:
    zone = MemoryZone()
    name = switches.ServiceName(zone, PLAN.switches.service, DR)
    before = name.look()
    for tries in (1, 2):
        name.make(before)
        assert zone.sets == [cname(DR, 60)]
        # The one before may have died before every server had its change: this one is behind that.
        assert zone.deaths.calls.count("after change") == zone.deaths.calls.count("after wait") / 2 == tries
    for _ in range(2):
        name.restore(before)
        assert zone.sets == []


@pytest.mark.requirement("R5.3")
def test_a_change_that_is_not_there_when_it_is_read_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    zone = MemoryZone([cname(HOME, 300)])
    name = switches.ServiceName(zone, PLAN.switches.service, DR)
    before = name.look()
    monkeypatch.setattr(zone, "change_resource_record_sets", lambda **_: {"ChangeInfo": {"Status": "INSYNC"}})
    with pytest.raises(switches.NotSwitched, match=r"was to have CNAME 60 dr.* and has CNAME 300 home"):
        name.make(before)


ZONE = PLAN.switches.service.zone


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize(
    ("zones", "found"),
    [
        ([(ZONE, False), ("synapse.example.org.", False)], "Z0"),  # the list begins with it, and goes on
        ([(ZONE, True), (ZONE.upper(), False)], "Z1"),
        ([(ZONE, False), (ZONE, False)], "There are 2 public zones"),
        ([("synapse.example.org.", False)], "There are 0 public zones"),
        ([], "There are 0 public zones"),
    ],
)
def test_the_zone_is_the_one_public_one_of_its_name(
    monkeypatch: pytest.MonkeyPatch, zones: list[tuple[str, bool]], found: str
) -> None:
    listed = [
        {"Id": f"/hostedzone/Z{number}", "Name": name, "Config": {"PrivateZone": private}}
        for number, (name, private) in enumerate(zones)
    ]
    zone = MemoryZone()
    monkeypatch.setattr(zone, "list_hosted_zones_by_name", lambda **_: {"HostedZones": listed})
    name = switches.ServiceName(zone, PLAN.switches.service, DR)
    if found.startswith("There"):
        with pytest.raises(switches.NotSwitched, match=found):
            name.look()
    else:
        assert name.look() == {"zone": found, "sets": []}


@pytest.mark.requirement("R5.3")
def test_a_change_that_route_53_does_not_bring_to_its_servers_is_not_waited_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zone = MemoryZone([cname(HOME, 300)])
    name = switches.ServiceName(zone, PLAN.switches.service, DR)
    before = name.look()
    monkeypatch.setattr(zone, "get_change", lambda **_: {"ChangeInfo": {"Id": "C1", "Status": "PENDING"}})
    monkeypatch.setattr(switches, "INSYNC_WITHIN", 0.0)
    with pytest.raises(switches.NotSwitched, match="has not brought it to all of its servers"):
        name.make(before)
    assert zone.sets == [cname(DR, 60)]


@pytest.mark.requirement("R5.3")
def test_what_other_names_of_the_zone_have_is_left_alone() -> None:
    """A list begins with the name, and goes on with those behind it."""
    other = {"Name": "www.synapse.example.", "Type": "A", "TTL": 60, "ResourceRecords": [{"Value": "192.0.2.1"}]}
    zone = MemoryZone([cname(HOME, 300), other])
    name = switches.ServiceName(zone, PLAN.switches.service, DR)
    before = name.look()
    assert before["sets"] == [cname(HOME, 300)]
    name.make(before)
    assert zone.sets == [other, cname(DR, 60)]
    name.restore(before)
    assert zone.sets == [other, cname(HOME, 300)]


@pytest.mark.requirement("R5.3")
def test_what_route_53_refuses_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    zone = MemoryZone([cname(HOME, 300)])
    name = switches.ServiceName(zone, PLAN.switches.service, DR)
    before = name.look()

    def refused(**_: object) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "Not you."}}, "ChangeResourceRecordSets")

    monkeypatch.setattr(zone, "change_resource_record_sets", refused)
    with pytest.raises(switches.NotSwitched, match=r"Could not change app\..* in Route 53: AccessDenied Not you\."):
        name.make(before)

"""Failing over and back (R5.3): pointer, configuration and service record, on real stores and a real Route 53.

Everything dies everywhere: before or after any call to a store, to Route 53 or to the file system. Whatever died, the
same run again ends switched, and undoing ends as it was before.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from include.disaster import switches
from include.disaster.plan import load_plan
from include.disaster.site import HalfSwitched, NotSwitched, SwitchRefused, find_run, switch_site, undo_switches
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


class Killed(BaseException):
    """The process is gone at this point."""


@dataclass
class Deaths:
    """Counts every call that something outside sees, twice: before it happens, and after. Dies at the one it is told."""

    dies_at: int | None = None
    count: int = 0
    calls: list[str] = field(default_factory=list)

    def step(self, what: str) -> None:
        self.count += 1
        self.calls.append(what)
        if self.count == self.dies_at:
            raise Killed

    def watch(self, client: Any) -> None:
        """Count a boto3 client's calls."""
        client.meta.events.register("before-send", lambda **_: self.step("before"))
        client.meta.events.register("after-call", lambda model, **_: self.step(f"after {model.name}"))

    @contextmanager
    def watching_files(self) -> Iterator[None]:
        """Count what changes files."""

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*arguments: Any, **named: Any) -> Any:
                self.step(f"before {function.__name__}")
                done = function(*arguments, **named)
                self.step(f"after {function.__name__}")
                return done

            return counting

        with pytest.MonkeyPatch.context() as patch:
            stand_in = type(
                "os", (), {name: staticmethod(value) for name, value in vars(os).items() if callable(value)}
            )
            for constant in ("O_WRONLY", "O_CREAT", "O_EXCL", "O_CLOEXEC", "O_RDONLY"):
                setattr(stand_in, constant, getattr(os, constant))
            for name in ("open", "fsync", "link", "fchmod"):
                setattr(stand_in, name, staticmethod(counted(getattr(os, name))))
            patch.setattr(switches, "os", stand_in)
            patch.setattr(Path, "replace", counted(Path.replace))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            yield


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
    dns = s3_replica.session().client("route53", endpoint_url=s3_replica.endpoint_url)
    dns.create_hosted_zone(Name="other.example.", CallerReference="other")
    made = dns.create_hosted_zone(Name=PLAN.switches.service.zone, CallerReference="site")["HostedZone"]["Id"]
    return str(made).rpartition("/")[2]


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring.create(tmp_path_factory.mktemp("keys") / "keyring.json")


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
    assert world.undo() == undone  # the same undoing again changes nothing
    assert active_site(PLAN, world.catalogs).by == "bob"


@pytest.mark.requirement("R5.3", "R7.1")
def test_the_log_holds_no_secret(world: World) -> None:
    world.switch()
    world.undo()
    for catalog in world.catalogs:
        bodies = [catalog.bucket.read(key) for key in catalog.bucket.keys("state/site/")]
        assert len(bodies) == 10
        assert not any(b"7f3a" in body for body in bodies)

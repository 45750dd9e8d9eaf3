"""Failing back as real DAG runs and as its runbook's commands: lost, lived on elsewhere, and home with all of it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from include.policy import load_policy
from include.policy.loader import DEFAULT as POLICY
from include.recovery.moments.plan import Target
from include.recovery.moments.planning import plan_recovery
from include.sandbox.airflow import APPROVER, PROJECT, AirflowClient, AirflowServices
from include.sandbox.fingerprint import Fingerprint
from include.sandbox.installation import DR_RECOVERED, Installation, grant
from include.sandbox.life import Life
from include.sandbox.mailbox import Mailbox
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.synapse import Synapse
from include.sandbox.terminal import in_hand
from include.settings import CONNECTION_FIELDS
from include.sources.postgres.login import DatabaseLogin, DatabaseUnreachable
from tests.backed_up import back_up
from tests.dags.running import DISASTER, FULL, INCREMENTAL, RUN_WITHIN, SNAPSHOT, Running, active
from tests.following import Person, following

SCALE = 0.1
WRITES = 60
REGIONS = ("eu-west-1", "us-east-1", "eu-central-1")
THIRD = "synapse-backups-third"
PLACE = "    bucket: {}\n    region: {}\n"
PRIMARY = PLACE.format("synapse-backups", REGIONS[0])
REPLICA = PLACE.format("synapse-backups-dr", REGIONS[1])
"""Where backups go, in the words of the policy."""
FOLLOWS = (
    "synapse_database_barrier",
    "synapse_database_dump",
    "synapse_database_replication",
    "synapse_database_scratch",
    "synapse_objects",
    "synapse_configuration",
    "synapse_recovery_objects",
    "synapse_live_database",
    "synapse_live_objects",
    "synapse_backups_primary",
    "synapse_backups_replica",
)
"""The connections that failback.md leads to the active site."""
PROBED = (
    "tables public.messages",
    "tables public.attachments",
    "tables public.sessions",
    "tables public.users",
    "sequences public.messages_id_seq",
    "sequences public.attachments_id_seq",
    "sequences public.sessions_id_seq",
    "objects uploads/",
    "files environment/production.env",
)
"""What the check of the service's health writes to what came back, and what the switch does."""


@dataclass
class Sites:
    """Synapse at home, the second site, and an Airflow beside both, whose connections are in its database."""

    home: Installation
    third: S3Server
    services: AirflowServices
    client: AirflowClient
    mailbox: Mailbox
    policy: Path
    directory: Path

    def running(self, installation: Installation) -> Running:
        """The runs of Airflow, when its connections lead to that installation."""
        return Running(installation, self.services, self.client, installation.catalog(), self.mailbox.mails)

    def at_dr(self) -> Installation:
        """The installation, when the second site is active and its backups' replica is in a third place."""
        home = self.home
        server = home.dr_postgres
        synapse = Synapse(server.superuser, home.replica.client(), home.dr_files, home.dr_configuration)
        return replace(
            home,
            postgres=server,
            primary=home.replica,
            replica=self.third,
            synapse=synapse,
            login=replace(home.login, port=server.port),
            backups=home.replica_backups,
            replica_backups=THIRD,
            recovered=home.replica.create_bucket(DR_RECOVERED),
        )

    def connect(self, installation: Installation, file: Path) -> None:
        """Lead Airflow's connections there as an operator does, by a settings file."""
        known = installation.connections()
        told = [astro(name, known[name]) for name in FOLLOWS]
        file.touch(mode=0o600)
        file.write_text(json.dumps({"airflow": {"connections": told}}))
        command = [sys.executable, "-m", "include.operators.settings", "--import", str(file)]
        subprocess.run(command, cwd=PROJECT, env=self.services.environment, check=True, timeout=RUN_WITHIN)

    def fail_over(self, **conf: object) -> None:
        """A failover that somebody else approves; it ends well."""
        self.client.unpause(DISASTER)
        run = self.client.trigger(DISASTER, conf={"mode": "failover", **conf})
        self.services.wait_until_asked(DISASTER, run, within=RUN_WITHIN)
        self.services.client(APPROVER).answer(DISASTER, run, "approve", "Approve")
        self.running(self.home).must_end_well(DISASTER, run)

    def in_hand(self, dr: Installation, directory: Path) -> None:
        """The two files that failback.md has to source."""
        terminal = directory / "terminal"
        given = {"POLICY": str(self.policy), "PROJECT": str(PROJECT), "FILES": dr.synapse.bucket}
        write_exports(directory / "dr.sh", in_hand(dr, terminal) | given)
        store, files = self.home.primary, self.home.synapse.bucket
        key = store.session().get_credentials()
        assert key is not None
        with (terminal / "credentials").open("a") as credentials:
            credentials.write(
                f"[home]\nregion = {store.region}\n"
                f"aws_access_key_id = {key.access_key}\naws_secret_access_key = {key.secret_key}\n"
            )
        here = {
            **self.home.postgres.superuser.environment(),
            "CHECKOUT": str(self.home.synapse.configuration),
            "HOME_FILES": files,
            "HOME_STORE": store.endpoint_url,
        }
        write_exports(directory / "home.sh", here)


@pytest.fixture(scope="module")
def on(sandbox_directory: Path) -> Iterator[Sites]:
    """A Synapse that is backed up to two regions, on servers of its own: each of them dies, and some come back."""
    home = sandbox_directory / "failback"
    home.mkdir(mode=0o711)
    policy = home / "policy.yaml"
    policy.write_text(POLICY.read_text())
    with ExitStack() as stack:
        first = stack.enter_context(PostgresServer(home / "postgres", major=18, durable=False))
        second = stack.enter_context(PostgresServer(home / "postgres-dr", major=18, durable=False))
        stores = [stack.enter_context(S3Server(home / f"s3-{region}", region=region)) for region in REGIONS]
        installation = Installation.make(
            home, postgres=first, primary=stores[0], replica=stores[1], scale=SCALE, dr_postgres=second
        )
        back_up(installation, home)
        mailbox = stack.enter_context(Mailbox(home / "mails"))
        known = installation.connections()
        services = AirflowServices(
            home / "airflow",
            metadata=second.superuser.with_database("airflow_failback"),
            connections={
                "synapse_notifications": mailbox.connection(),
                **{name: known[name] for name in known if name not in FOLLOWS},
            },
            variables={**installation.variables(), "BACKUP_POLICY": str(policy)},
            triggerer=True,
        )
        stack.enter_context(services)
        on = Sites(installation, stores[2], services, services.client(), mailbox, policy, home)
        on.connect(installation, home / "settings.yaml")
        yield on


def astro(name: str, connection: Mapping[str, object]) -> dict[str, object]:
    """A connection in the words of airflow_settings.yaml."""
    return {
        "conn_id": name,
        **{word: connection[ours] for word, ours in CONNECTION_FIELDS.items() if ours in connection},
    }


def write_exports(file: Path, variables: Mapping[str, str]) -> None:
    file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()))


def granted(installation: Installation) -> Installation:
    """The same, when its logins have passwords."""
    logins = grant(installation.synapse.database)
    return replace(installation, **dict(zip(("barrier", "dump", "replication", "scratch"), logins, strict=True)))


def messages(login: DatabaseLogin) -> dict[int, str]:
    """Every message by its number, as a digest."""
    with login.connect(application_name="test") as session:
        return dict(session.execute("SELECT id, md5(body) FROM public.messages").fetchall())


def kept_aside(server: PostgresServer) -> list[str]:
    """The databases that something else has taken the place of, the oldest first."""
    with server.superuser.connect(application_name="test") as session:
        query = "SELECT datname FROM pg_database WHERE datname LIKE 'synapse\\_replaced\\_%' ORDER BY 1"
        return [name for (name,) in session.execute(query).fetchall()]


def lives_on(on: Sites, dr: Installation, person: Person) -> tuple[Installation, datetime]:
    """The second site as the active one: backed up as steps 1 of the runbook says, and written to."""
    person.does("In hand", "1.1 ")
    dr = granted(dr)
    on.connect(dr, person.directory / "settings.yaml")
    said = POLICY.read_text()
    for lost, left in ((REPLICA, PLACE.format(THIRD, REGIONS[2])), (PRIMARY, REPLICA)):
        assert said.count(lost) == 1
        said = said.replace(lost, left)
    on.policy.write_text(said)
    person.does("1.3 ", "1.4 ")
    there = on.running(dr)
    there.triggered(SNAPSHOT)
    with Life(dr.login.with_database("synapse"), dr.synapse.objects, dr.synapse.bucket, seed=2) as life:
        life.wait_for(WRITES)
    during = datetime.now(UTC)
    there.triggered(INCREMENTAL)
    person.does("1.5 ")
    return dr, during


def all_of_it(written: Fingerprint, home: Installation) -> bool:
    """Whether home has what was written, but for what the probe of its health and the switch have added."""
    come = home.synapse.fingerprint()
    different = [line for line in written.difference(come) if not line.startswith(PROBED)]
    assert different == []
    return all(come.objects.get(key) == each for key, each in written.objects.items())


@pytest.mark.soak
@pytest.mark.requirement("R5.3", "R5.5")
def test_what_was_written_at_the_second_site_comes_home(on: Sites) -> None:
    home = on.home
    stale = messages(home.synapse.database)
    home.postgres.crash()
    home.primary.stop()  # killed, it would come back without its buckets' settings, as no other store does
    on.fail_over(scenario="region_lost", site="dr")
    assert active(home) == "dr.synapse.example"

    with following("failback", {}, on.directory) as person:
        dr = on.at_dr()
        on.in_hand(dr, person.directory)
        dr, during = lives_on(on, dr, person)
        there = on.running(dr)

        # The first site is there again, as it was when it was lost; at the second one nobody writes any more.
        home.postgres.start()
        home.primary.start()
        person.does(2, 3)
        with pytest.raises(DatabaseUnreachable, match="reject"):
            dr.login.with_database("synapse").connect(application_name="test")
        with dr.synapse.database.connect(application_name="test", autocommit=True) as session:
            session.execute("REFRESH MATERIALIZED VIEW monthly_usage")  # as a dump brings it back
        dr.settle()
        written, all_messages = dr.synapse.fingerprint(), messages(dr.synapse.database)
        assert len(all_messages) > len(stale)
        last = there.manifest(there.triggered(FULL))
        person.has(BACKUP=last.id)
        person.does(4)

        # With Airflow; and back, because somebody does not like what they see.
        on.fail_over(scenario="database_lost", copy="primary", target=last.id, site="home")
        assert active(home) == "home.synapse.example"
        person.does("6.1 ")
        assert all_of_it(written, home)
        assert all_messages.items() <= messages(home.synapse.database).items()
        [aside] = kept_aside(home.postgres)
        assert messages(home.synapse.database.with_database(aside)) == stale
        person.does("6.2 ")
        assert active(home) == "dr.synapse.example"

        # Without it.
        person.does("5.2 ")
        assert active(home) == "home.synapse.example"
        person.does("6.1 ")
        assert (person.directory / "messages-here").read_text() == (person.directory / "messages-there").read_text()
        assert all_of_it(written, home)

        # Backups at home again. Its store is the old one, and has what was made meanwhile.
        person.does("7.1 ", "7.2 ")
        home = granted(home)
    on.policy.write_text(POLICY.read_text())
    on.connect(home, on.directory / "settings.yaml")
    here = on.running(home)
    here.triggered(SNAPSHOT)
    here.triggered(INCREMENTAL)

    # What users saw while the second site was active is found there, though the first one's log has that time, too.
    target = Target.parse(during.isoformat())
    with tempfile.TemporaryDirectory() as scratch:
        plan = plan_recovery(home.catalog(), target, load_policy(), scratch=Path(scratch), what=["database"])
    assert plan.system_identifier == last.database.system_identifier

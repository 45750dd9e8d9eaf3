"""Failing back as real DAG runs: lost, lived on at the second site, and home again with what was written there."""

from __future__ import annotations

import json
import os
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
from include.recovery.moments.plan import Target
from include.recovery.moments.planning import plan_recovery
from include.sandbox.airflow import APPROVER, PROJECT, AirflowClient, AirflowServices
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

SCALE = 0.1
WRITES = 60
MOVED = (
    "synapse_database_barrier",
    "synapse_database_dump",
    "synapse_database_replication",
    "synapse_database_scratch",
    "synapse_objects",
    "synapse_configuration",
    "synapse_recovery_objects",
    "synapse_backups_primary",
    "synapse_backups_replica",
)
"""The connections that step 1 of failback.md leads to the second site, where the first region's store is lost, too."""
REPLICA_OF_DR = "synapse-backups-third"
REJECTED = "host synapse synapse_app all reject\nlocal synapse synapse_app reject\n"
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
    directory: Path

    def running(self, installation: Installation) -> Running:
        """Its runs, when its connections lead to that installation."""
        return Running(installation, self.services, self.client, installation.catalog(), self.mailbox.mails)

    def connect(self, name: str, connections: Mapping[str, Mapping[str, object]]) -> Path:
        """Lead Airflow's connections there as an operator does, with a settings file, which is returned."""
        file = self.directory / f"{name}.yaml"
        file.touch(mode=0o600)
        file.write_text(json.dumps({"airflow": {"connections": [_astro(*each) for each in connections.items()]}}))
        self._python("include.operators.settings", "--import", str(file))
        return file

    def cli(self, *arguments: str, **variables: str) -> str:
        """The command line, with no more of the environment than these."""
        return self._python("include.cli", *arguments, **variables)

    def _python(self, module: str, *arguments: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**self.services.environment, **variables},
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_WITHIN,
            check=False,
        )
        assert done.returncode == 0, f"{module} {' '.join(arguments)}: {done.stdout}"
        return done.stdout

    def fail_over(self, **conf: object) -> str:
        """A failover that somebody else approves; it ends well."""
        self.client.unpause(DISASTER)
        run = self.client.trigger(DISASTER, conf={"mode": "failover", **conf})
        self.services.wait_until_asked(DISASTER, run, within=RUN_WITHIN)
        self.services.client(APPROVER).answer(DISASTER, run, "approve", "Approve")
        self.running(self.home).must_end_well(DISASTER, run)
        return run


@pytest.fixture(scope="module")
def on(sandbox_directory: Path) -> Iterator[Sites]:
    """A Synapse that is backed up to two regions, on servers of its own: each of them dies, and some come back."""
    home = sandbox_directory / "failback"
    home.mkdir(mode=0o711)
    with ExitStack() as stack:
        first = stack.enter_context(PostgresServer(home / "postgres", major=18, durable=False))
        second = stack.enter_context(PostgresServer(home / "postgres-dr", major=18, durable=False))
        stores = [
            stack.enter_context(S3Server(home / f"s3-{region}", region=region))
            for region in ("eu-west-1", "us-east-1", "eu-central-1")
        ]
        installation = Installation.make(
            home, postgres=first, primary=stores[0], replica=stores[1], scale=SCALE, dr_postgres=second
        )
        back_up(installation, home)
        mailbox = stack.enter_context(Mailbox(home / "mails"))
        services = AirflowServices(
            home / "airflow",
            metadata=second.superuser.with_database("airflow_failback"),
            variables=installation.variables(),
            triggerer=True,
        )
        stack.enter_context(services)
        on = Sites(installation, stores[2], services, services.client(), mailbox, home)
        on.connect("home", {**installation.connections(), "synapse_notifications": mailbox.connection()})
        yield on


def at_dr(on: Sites) -> Installation:
    """The installation as it is when the second site is active, with its replica in a third place: step 1's changes."""
    home = on.home
    server = home.dr_postgres
    synapse = Synapse(server.superuser, home.replica.client(), home.dr_files, home.dr_configuration)
    barrier, dump, replication, scratch = grant(synapse.database)
    return replace(
        home,
        postgres=server,
        primary=home.replica,
        replica=on.third,
        synapse=synapse,
        login=replace(home.login, port=server.port),
        barrier=barrier,
        dump=dump,
        replication=replication,
        scratch=scratch,
        backups=home.replica_backups,
        replica_backups=on.third.create_bucket(REPLICA_OF_DR),
        recovered=home.replica.create_bucket(DR_RECOVERED),
    )


def _astro(name: str, connection: Mapping[str, object]) -> dict[str, object]:
    """A connection in the words of airflow_settings.yaml."""
    said = {astro: connection[ours] for astro, ours in CONNECTION_FIELDS.items() if ours in connection}
    return {"conn_id": name, **said}


def psql(server: PostgresServer, database: str, statement: str) -> str:
    """What psql says of a statement that somebody types."""
    done = subprocess.run(
        [str(server.binaries / "psql"), "-X", "-At", "-d", database, "-c", statement],
        env={"PATH": os.environ["PATH"], **server.superuser.environment(), "PGDATABASE": database},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


def stop_writes(dr: Installation) -> None:
    """Step 3: nobody writes any more, and nothing of that is backed up."""
    rules = dr.postgres.data / "pg_hba.conf"
    rules.write_text(REJECTED + rules.read_text())
    for statement in (
        "SELECT pg_reload_conf()",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'synapse_app'",
    ):
        psql(dr.postgres, "postgres", statement)
    assert psql(dr.postgres, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE usename = 'synapse_app'") == "0"
    with pytest.raises(DatabaseUnreachable, match="reject"):
        dr.login.with_database("synapse").connect(application_name="test")


def kept_aside(server: PostgresServer) -> list[str]:
    """The databases that something else has taken the place of."""
    return psql(server, "postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'synapse_replaced_%'").split()


def messages(login: DatabaseLogin) -> dict[int, str]:
    """Every message by its number, as a digest."""
    with login.connect(application_name="test") as session:
        return dict(session.execute("SELECT id, md5(body) FROM public.messages").fetchall())


@pytest.mark.soak
@pytest.mark.requirement("R5.3", "R5.5")
def test_what_was_written_at_the_second_site_comes_home(on: Sites) -> None:
    home = on.home
    stale = messages(home.synapse.database)
    home.postgres.crash()
    home.primary.crash()
    on.fail_over(scenario="region_lost", site="dr")
    assert active(home) == "dr.synapse.example"

    # Step 1: backups where the data is.
    dr = at_dr(on)
    leads = dr.connections()
    settings = on.connect("dr", {name: leads[name] for name in MOVED})
    on.cli("doctor", "--settings", str(settings))
    there = on.running(dr)
    there.triggered(SNAPSHOT)
    there.triggered(FULL)
    with Life(dr.login.with_database("synapse"), dr.synapse.objects, dr.synapse.bucket, seed=2) as life:
        life.wait_for(WRITES)
    during = datetime.now(UTC)
    there.triggered(INCREMENTAL)

    # Step 2: the first site is there again, as it was when it was lost.
    home.postgres.start()
    home.primary.start()

    stop_writes(dr)

    # Step 4: the last backup there.
    psql(dr.postgres, "synapse", "REFRESH MATERIALIZED VIEW monthly_usage")  # as a dump brings it back
    dr.settle()
    written, all_messages = dr.synapse.fingerprint(), messages(dr.synapse.database)
    assert len(all_messages) > len(stale)
    last = there.manifest(there.triggered(FULL))

    # Step 5: home.
    on.fail_over(scenario="database_lost", copy="primary", target=last.id, site="home")

    # Step 6: it is all there.
    assert active(home) == "home.synapse.example"
    assert "SYNAPSE_SITE=home" in (home.synapse.configuration / "environment" / "production.env").read_text()
    come = home.synapse.fingerprint()
    assert [line for line in written.difference(come) if not line.startswith(PROBED)] == []
    assert all_messages.items() <= messages(home.synapse.database).items()
    assert [key for key in written.objects if come.objects.get(key) != written.objects[key]] == []
    [aside] = kept_aside(home.postgres)
    assert messages(home.synapse.database.with_database(aside)) == stale

    # Step 7: backups at home again. The store has what was made meanwhile, and is the primary again.
    back = ("--bucket", home.replica_backups, "--replica-bucket", home.backups)
    reach = in_hand(replace(home, primary=home.replica, replica=home.primary), on.directory / "terminal")
    assert "0 backups brought" not in on.cli(*back, "replicate", **reach)
    assert "0 backups brought" in on.cli(*back, "replicate", **reach)
    grants = grant(home.synapse.database)
    home = replace(home, **dict(zip(("barrier", "dump", "replication", "scratch"), grants, strict=True)))
    leads = home.connections()
    settings = on.connect("home-again", {name: leads[name] for name in MOVED})
    on.cli("doctor", "--settings", str(settings))
    here = on.running(home)
    here.triggered(SNAPSHOT)
    here.triggered(INCREMENTAL)

    # What users saw while the second site was active is found there, though the first one's log has that time, too.
    with tempfile.TemporaryDirectory() as scratch:
        plan = plan_recovery(
            home.catalog(), Target.parse(during.isoformat()), load_policy(), scratch=Path(scratch), what=["database"]
        )
    assert plan.system_identifier == last.database.system_identifier

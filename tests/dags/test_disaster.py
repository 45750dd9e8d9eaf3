"""The recovery runbook as real DAG runs: primary store and database killed, the service back from the replica."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from psycopg import sql

from include.disaster import isolation
from include.disaster.history import read_drills
from include.disaster.isolation import stamp
from include.sandbox.airflow import AirflowClient, AirflowServices
from include.sandbox.installation import RECOVERED, Installation
from include.sandbox.mailbox import Mailbox
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from tests.backed_up import back_up

DAG = "disaster_recovery"
ACCESS = Path(isolation.__file__).with_name("drill_access.json")
SCALE = 0.1
RUN_WITHIN = 240.0


@dataclass
class Disaster:
    """What is left when the first region is gone: the replica, a server to restore to, and an Airflow beside them."""

    installation: Installation
    services: AirflowServices
    client: AirflowClient
    mailbox: Mailbox
    target: PostgresServer
    recovered: str

    def run(self, **conf: object) -> tuple[str, str]:
        """A run of the runbook, and how it ended."""
        self.client.unpause(DAG)
        run = self.client.trigger(DAG, conf=conf)
        return run, self.client.wait(DAG, run, within=RUN_WITHIN)

    def explain(self, run: str) -> str:
        """The errors in the log of each failed task."""
        return "\n".join(
            f"{name} {line}"
            for name, task in self.client.tasks(DAG, run).items()
            if task["state"] == "failed" and name != "watcher"
            for line in self.client.log(DAG, run, name, try_number=task["try_number"]).splitlines()
            if '"level": "error"' in line
        )


@pytest.fixture(scope="module")
def on(sandbox_directory: Path, postgres18: PostgresServer, s3_replica: S3Server) -> Iterator[Disaster]:
    """A Synapse backed up to two regions, whose first region and database are killed."""
    home = sandbox_directory / "disaster"
    home.mkdir(mode=0o711)
    with ExitStack() as stack:
        lost = PostgresServer(home / "postgres", major=18, durable=False)
        primary = S3Server(home / "s3-primary", region="eu-west-1")
        stack.enter_context(lost)
        stack.enter_context(primary)
        installation = Installation.make(
            home, postgres=lost, primary=primary, replica=s3_replica, suffix="-disaster", scale=SCALE
        )
        back_up(installation, home)
        recovered = s3_replica.create_bucket(f"{RECOVERED}-disaster")
        drill = drill_login(postgres18)
        lost.crash()
        primary.crash()
        mailbox = stack.enter_context(Mailbox(home / "mails"))
        user = drill_user(s3_replica, installation.replica_backups, recovered)
        services = AirflowServices(
            home / "airflow",
            metadata=postgres18.superuser.with_database("airflow_disaster"),
            connections={
                # All that the run is given: nothing of the region that is lost.
                "synapse_backups_replica": user(installation.replica_backups),
                "synapse_database_scratch": drill,
                "synapse_recovery_objects": user(recovered),
                "synapse_notifications": mailbox.connection(),
            },
            variables=installation.variables(),
            triggerer=True,
        )
        stack.enter_context(services)
        yield Disaster(installation, services, services.client(), mailbox, postgres18, recovered)


def drill_user(store: S3Server, backups: str, recovered: str) -> Callable[[str], dict[str, object]]:
    """A user that may do what a drill has to, and no more; its connection to a bucket."""
    iam = store.session().client("iam", endpoint_url=store.endpoint_url)
    access = ACCESS.read_text().replace("synapse-backups-dr", backups).replace("synapse-recovered-dr", recovered)
    iam.create_user(UserName="drill")
    iam.put_user_policy(UserName="drill", PolicyName="drill", PolicyDocument=access)
    key = iam.create_access_key(UserName="drill")["AccessKey"]

    def connection(bucket: str) -> dict[str, object]:
        return {
            "conn_type": "aws",
            "login": key["AccessKeyId"],
            "password": key["SecretAccessKey"],
            "extra": {
                "region_name": store.region,
                "endpoint_url": store.endpoint_url,
                "service_config": {"s3": {"bucket_name": bucket}},
            },
        }

    return connection


def drill_login(server: PostgresServer) -> dict[str, object]:
    """A connection that may create databases, and nothing else."""
    password = secrets.token_urlsafe(16)
    with server.superuser.connect(application_name="test", autocommit=True) as session:
        session.execute(sql.SQL("CREATE ROLE synapse_drill LOGIN CREATEDB PASSWORD {}").format(sql.Literal(password)))
    login = server.login("synapse_drill", password)
    return {
        "conn_type": "postgres",
        "host": login.host,
        "port": login.port,
        "login": login.user,
        "password": password,
        "schema": "postgres",
    }


@pytest.mark.requirement("R5.3", "R5.4", "R5.5")
def test_the_service_answers_from_the_replica_alone(on: Disaster) -> None:
    run, state = on.run(scenario="region_lost")
    assert state == "success", on.explain(run)
    [drill] = [each for each in read_drills([on.installation.replica_catalog()]) if each.run == stamp_of(run)]
    states = {step.task: step.state for step in drill.steps}
    assert states["restore_from_backup"] == "success"
    assert states["approve"] == "skipped"


def stamp_of(run: str) -> str:
    """The name of a run of the runbook, as its id tells the moment."""
    return stamp(datetime.fromisoformat(run.removeprefix("manual__")))

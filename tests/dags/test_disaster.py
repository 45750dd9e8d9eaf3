"""The recovery runbook as real DAG runs: primary store and database killed, the service back from the replica."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlsplit

import boto3
import psutil
import psycopg
import pytest
from psycopg import sql
from selenium.webdriver.common.keys import Keys

from include.backup.scratch import SCRATCH_VARIABLE
from include.disaster import isolation
from include.disaster.history import Drill, read_drills
from include.disaster.isolation import stamp
from include.disaster.plan import MODES, load_plan
from include.pipeline.store import Bucket, NotAllowed
from include.policy.loader import DEFAULT as POLICY
from include.sandbox.airflow import ADMIN, APPROVER, AirflowClient, AirflowServices, polls
from include.sandbox.installation import RECOVERED, Installation
from include.sandbox.mailbox import Mailbox
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from tests.backed_up import INCREMENT, back_up
from tests.browser import Browser
from tests.dags.running import DISASTER, active

DAG = DISASTER
UNDO = "undo_failover"
SWITCHES = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:PutObject", "s3:GetObject"],
    "Resource": ["arn:aws:s3:::BUCKET/state/site/*"]}]}"""
ACCESS = Path(isolation.__file__).with_name("drill_access.json")
SCALE = 0.1
DATA = "check_data_consistency"
RUN_WITHIN, SOON = 240.0, 60.0


@dataclass
class Disaster:
    """What is left when the first region is gone: the replica, a server to restore to, and an Airflow beside them."""

    installation: Installation
    services: AirflowServices
    client: AirflowClient
    mailbox: Mailbox
    target: PostgresServer
    recovered: str
    connections: dict[str, dict[str, object]]
    drill: str = ""

    def drilled(self) -> str:
        """The run of a drill that ended well; it is made once."""
        if not self.drill:
            self.drill = self.declare(scenario="region_lost")
            self.must_end_well(self.drill)
        return self.drill

    def declare(self, **conf: object) -> str:
        """Begin a run of the runbook."""
        self.client.unpause(DAG)
        return self.client.trigger(DAG, conf=conf)

    def must_end_well(self, run: str, dag: str = DAG) -> None:
        """Wait for a run to be green."""
        assert self.client.wait(dag, run, within=RUN_WITHIN) == "success", (
            f"{self.client.task_states(dag, run)}\n{self.explain(run, dag)}"
        )

    def explain(self, run: str, dag: str = DAG) -> str:
        """The errors in the log of each failed task."""
        return "\n".join(
            f"{name} {line}"
            for name, task in self.client.tasks(dag, run).items()
            if task["state"] == "failed" and name != "watcher"
            for line in self.client.log(dag, run, name, try_number=task["try_number"]).splitlines()
            if '"level": "error"' in line
        )

    def record(self, run: str) -> Drill:
        """What the bucket tells of a run."""
        [drill] = [each for each in read_drills([self.installation.replica_catalog()]) if each.run == stamp_of(run)]
        return drill

    def left_of_drills(self) -> list[str]:
        """Whatever is left of any drill: databases, versions of objects, directories."""
        with self.target.superuser.connect(application_name="test", autocommit=True) as session:
            named = session.execute("SELECT datname FROM pg_database WHERE datname LIKE 'drill%'").fetchall()
        versions = self.installation.replica.client().list_object_versions(Bucket=self.recovered)
        scratch = Path(self.installation.variables()[SCRATCH_VARIABLE])
        return [
            *(name for (name,) in named),
            *(version["Key"] for version in (*versions.get("Versions", []), *versions.get("DeleteMarkers", []))),
            *(path.name for path in scratch.iterdir()),
        ]


@pytest.fixture(scope="module")
def on(sandbox_directory: Path, s3_replica: S3Server) -> Iterator[Disaster]:
    """A Synapse backed up to two regions, whose first region and database are killed."""
    home = sandbox_directory / "disaster"
    home.mkdir(mode=0o711)
    with ExitStack() as stack:
        lost = PostgresServer(home / "postgres", major=18, durable=False)
        primary = S3Server(home / "s3-primary", region="eu-west-1")
        stack.enter_context(lost)
        stack.enter_context(primary)
        second = stack.enter_context(PostgresServer(home / "postgres-dr", major=18, durable=False))
        installation = Installation.make(
            home,
            postgres=lost,
            primary=primary,
            replica=s3_replica,
            suffix="-disaster",
            scale=SCALE,
            dr_postgres=second,
        )
        back_up(installation, home)
        recovered = s3_replica.create_bucket(f"{RECOVERED}-disaster")
        drill = drill_login(second)
        lost.crash()
        primary.crash()
        mailbox = stack.enter_context(Mailbox(home / "mails"))
        known, user = installation.connections(), drill_user(s3_replica, installation.replica_backups, recovered)
        connections = {
            # All that a run is given: nothing of the region that is lost.
            "synapse_backups_replica": user(installation.replica_backups),
            "synapse_database_scratch": drill,
            "synapse_recovery_objects": user(recovered),
            "synapse_notifications": mailbox.connection(),
            **{name: known[name] for name in known if name.startswith("synapse_dr_") or name == "synapse_dns"},
        }
        services = AirflowServices(
            home / "airflow",
            metadata=second.superuser.with_database("airflow_disaster"),
            connections=connections,
            variables=installation.variables(),
            triggerer=True,
        )
        stack.enter_context(services)
        yield Disaster(installation, services, services.client(), mailbox, second, recovered, connections)


def drill_user(store: S3Server, backups: str, recovered: str) -> Callable[[str], dict[str, object]]:
    """A user that may do what a drill has to, and no more; its connection to a bucket."""
    iam = store.session().client("iam", endpoint_url=store.endpoint_url)
    iam.create_user(UserName="drill")
    allow(store, ACCESS.read_text().replace("synapse-backups-dr", backups).replace("synapse-recovered-dr", recovered))
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


def allow(store: S3Server, access: str, name: str = "drill") -> None:
    """Give the user of drills a policy, beside those that it has."""
    iam = store.session().client("iam", endpoint_url=store.endpoint_url)
    iam.put_user_policy(UserName="drill", PolicyName=name, PolicyDocument=access)


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


def stamp_of(run: str) -> str:
    """The name of a run of the runbook, as its id tells the moment."""
    return stamp(datetime.fromisoformat(run.removeprefix("manual__")), run)


@pytest.mark.requirement("R5.2", "R5.3", "R7.3")
def test_a_person_declares_it_by_the_form_and_is_a_click_away_from_the_checks_and_from_what_helps(on: Disaster) -> None:
    plan, url = load_plan(), on.services.url
    on.client.unpause(DAG)
    with Browser() as browser:
        log_in(browser, on)
        # A form that opens as one that cannot be sent helps nobody on their worst day; the others': test_graphs.py.
        browser.open(f"{url}/dags/{DAG}")
        browser.sees("[data-testid=trigger-dag-button]").click()
        browser.sees("[id^=element_]")
        browser.sees("[data-testid=trigger-dag-submit]:enabled")
        form = browser.words("[role=dialog]")
        assert "To which site" in form
        assert not {"*", "`"} & set(form)  # nothing is a must, and Markdown is rendered
        browser.sees("#element_site").click()
        assert [browser.sees("[role=option]", site).text for site in plan.sites] == [*plan.sites]
        for param, said, chosen in (("mode", MODES, "drill"), ("scenario", plan.scenarios, "region_lost")):
            browser.sees(f"#element_{param}").click()
            assert [browser.sees("[role=option]", choice).text for choice in said] == [*said]
            browser.sees("[role=option]", chosen).click()
        browser.sees("[data-testid=trigger-dag-submit]").click()
        on.drill = on.client.wait_for_run(DAG, "manual", within=SOON)
        on.must_end_well(on.drill)

        browser.open(f"{url}/dags/{DAG}/runs/{quote(on.drill)}/tasks/{DATA}")
        browser.sees("a", "Details").click()
        browser.sees("a", "Runbook")
        browser.forget()
        browser.sees("a", "Validation").click()
        browser.sees("h1", f"Data consistency of drill {stamp_of(on.drill)}: region_lost from the replica: all ")
        rows = {look.subject for look in on.record(on.drill).checks if look.name == "rows"}
        assert "public.users" in rows
        assert rows <= set(browser.words("td").splitlines())
        assert browser.hosts() == {urlsplit(url).netloc}
        assert browser.complaints() == []

        browser.driver.back()
        browser.sees("a", "Validation")
        browser.forget()
        browser.sees("a", "Runbook").click()
        browser.sees("h1", f"When {DAG} is red")
        assert browser.driver.current_url == f"{url}/runbooks/{DAG}#{DATA}"
        assert browser.sees(":target").text == DATA
        assert browser.hosts() == {urlsplit(url).netloc}
        assert browser.complaints() == []

        browser.driver.delete_all_cookies()  # who is not logged in any more sees nothing of what was just seen
        browser.open(str(on.client.links(DAG, on.drill, DATA)["Validation"]))
        browser.sees("input[name=username]")
        assert "public." not in browser.driver.page_source


def log_in(browser: Browser, on: Disaster) -> None:
    """As somebody who follows a link and is not logged in: nothing but the login is seen, and it leads on."""
    link = f"{on.services.url}/validations/{DAG}/{quote('manual__of+nobody')}/{DATA}"
    browser.open(link)
    browser.sees("input[name=username]").send_keys(ADMIN)
    assert "synapse_" not in browser.driver.page_source
    browser.sees("input[name=password]").send_keys(on.services.password + Keys.ENTER)
    browser.sees("p", "There is no Airflow connection synapse_backups_primary.")  # of what is lost: in words
    assert browser.driver.current_url == link


@pytest.mark.requirement("R5.2", "R5.3", "R5.4", "R5.5")
def test_the_service_answers_from_the_replica_alone_and_the_report_has_everything(on: Disaster) -> None:
    run = on.drilled()
    drill = on.record(run)
    assert drill.passed
    states = {step.task: step.state for step in drill.steps}
    assert {task for task, state in states.items() if state != "success"} == {"approve", "switch_site"}
    assert all(step.began and step.ended for step in drill.steps if step.state == "success")
    assert drill.rto is not None
    assert drill.rpo is not None
    assert timedelta() < drill.rto < timedelta(seconds=RUN_WITHIN)
    assert timedelta() <= drill.rpo < timedelta(minutes=10)
    looked = {(look.kind, look.name) for look in drill.checks}
    for check in (
        ("data_consistency", "rows"),
        ("data_consistency", "orphans of a foreign key"),
        ("service_health", "login"),
        ("service_health", "upload"),
        ("service_health", "new message"),
    ):
        assert check in looked
    [mail] = [mail for mail in on.mailbox.mails if "Drill region_lost from the replica" in mail.subject]
    for words in ("RTO", "RPO", "step restore_from_backup", "step check_service_health", "checks"):
        assert words in mail.text()
    log = on.client.log(DAG, run, "report")
    assert all(look.name in log for look in drill.checks)
    page = on.client.page(str(on.client.links(DAG, run, "check_service_health")["Validation"]))
    assert "New message" in page
    measured = {phase.name for phase in drill.phases}
    assert {"unpack", "replay", "copy", "objects", "configuration", "steps", "service_health"} <= measured
    assert on.left_of_drills() == []


@pytest.mark.requirement("R5.3")
def test_several_drills_at_once_do_not_meet_and_the_script_is_one_of_them(on: Disaster) -> None:
    runs = {name: on.declare(scenario=name, copy="replica") for name in ("airflow_lost", "ransomware", "table_dropped")}
    for run in runs.values():
        on.must_end_well(run)
    assert on.left_of_drills() == []
    drills = {name: on.record(run) for name, run in runs.items()}
    assert all(drill.passed for drill in drills.values())
    assert on.client.xcom(DAG, runs["airflow_lost"], "restore_from_backup")["script"][-1] == "restore_from_backup"
    assert {look.kind for look in drills["airflow_lost"].checks} == {
        "data_consistency",
        "application_state",
        "service_health",
    }
    subjects = {look.subject for look in drills["table_dropped"].checks if look.name == "rows"}
    assert subjects == {"public.attachments"}
    assert on.client.xcom(DAG, runs["ransomware"], "switch_to_replica")["target"] == INCREMENT


@pytest.mark.requirement("R5.3")
def test_a_drill_that_is_killed_half_way_leaves_nothing(on: Disaster) -> None:
    run = on.declare(scenario="region_lost")
    task = on.client.wait_for_task(DAG, run, "restore_from_backup", {"running"}, within=RUN_WITHIN)
    for _ in polls(RUN_WITHIN, "the drill's places"):
        if any(name.startswith("drill") for name in on.left_of_drills()):
            break
    psutil.Process(task["pid"]).kill()
    # Nobody tries it again: the run is over, and what it made goes all the same.
    on.client.wait_for_task(DAG, run, "restore_from_backup", {"up_for_retry", "failed"}, within=RUN_WITHIN)
    on.client.set_task(DAG, run, "restore_from_backup", "failed")
    assert on.client.wait(DAG, run, within=RUN_WITHIN) == "failed"
    assert on.client.task_states(DAG, run)["clean_up"] == "success"
    assert on.left_of_drills() == []
    drill = on.record(run)
    assert "restore_from_backup failed" in drill.missed
    assert "nothing came back" in drill.missed


@pytest.mark.requirement("R5.3")
def test_what_a_drill_is_given_could_not_write_to_anything_live(on: Disaster, s3_replica: S3Server) -> None:
    given = on.connections["synapse_backups_replica"]
    session = boto3.Session(str(given["login"]), str(given["password"]), region_name=s3_replica.region)
    dr_files, backups = on.installation.dr_files, on.installation.replica_backups
    for name, key in ((backups, "manifests/full/x.json"), (backups, "packs/x"), (dr_files, "uploads/x")):
        bucket = Bucket(session, name, region=s3_replica.region, endpoint_url=s3_replica.endpoint_url)
        with pytest.raises(NotAllowed):
            bucket.create(key, b"x")
        with pytest.raises(NotAllowed):
            bucket.delete(key)
    login = on.connections["synapse_database_scratch"]
    user = on.target.login(str(login["login"]), str(login["password"]))
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege),
        user.with_database("airflow_disaster").connect(application_name="test", autocommit=True) as connection,
    ):
        connection.execute("DELETE FROM dag_run")


@pytest.mark.requirement("R5.3", "R7.3")
def test_a_failover_waits_for_somebody_else_is_resumed_where_it_failed_and_undone(
    on: Disaster, s3_replica: S3Server
) -> None:
    approver = on.services.client(APPROVER)
    asked = {"mode": "failover", "scenario": "region_lost", "site": "dr"}
    run = on.declare(**asked)
    on.services.wait_until_asked(DAG, run, within=RUN_WITHIN)
    on.client.answer(DAG, run, "approve", "Approve")
    assert on.client.wait(DAG, run, within=RUN_WITHIN) == "failed"
    assert "somebody else has to" in on.explain(run)
    assert on.record(run).reaches is None

    run = on.declare(**asked)
    on.services.wait_until_asked(DAG, run, within=RUN_WITHIN)
    approver.answer(DAG, run, "approve", "Approve")
    assert on.client.wait(DAG, run, within=RUN_WITHIN) == "failed"
    states = on.client.task_states(DAG, run)
    looked = (states["check_service_health"], states["switch_site"])
    assert looked == ("success", "failed"), f"{states}\n{on.explain(run)}"  # drills may not switch
    assert active(on.installation) == "home.synapse.example"

    allow(s3_replica, SWITCHES.replace("BUCKET", on.installation.replica_backups), name="switches")
    on.client.clear(DAG, run, only_failed=True)
    on.must_end_well(run)
    assert active(on.installation) == "dr.synapse.example"
    assert "SYNAPSE_SITE=dr" in (on.installation.dr_configuration / "environment" / "production.env").read_text()
    with on.target.superuser.with_database("synapse").connect(application_name="test") as session:
        (messages,) = session.execute("SELECT count(*) FROM messages").fetchone() or (0,)
    assert messages > 0

    on.client.unpause(UNDO)
    undone = on.client.trigger(UNDO, conf={"because": "the first region is back"})
    on.services.wait_until_asked(UNDO, undone, within=RUN_WITHIN)
    approver.answer(UNDO, undone, "approve", "Approve")
    on.must_end_well(undone, UNDO)
    assert active(on.installation) == "home.synapse.example"
    assert "SYNAPSE_SITE=dr" not in (on.installation.dr_configuration / "environment" / "production.env").read_text()


@pytest.mark.soak
@pytest.mark.requirement("R5.4")
def test_when_the_rto_is_over_people_are_told_while_it_still_runs(on: Disaster, tmp_path: Path) -> None:
    """Another Airflow beside the first one, whose policy promises three seconds."""
    policy = tmp_path / "impatient.yaml"
    policy.write_text(POLICY.read_text().replace("rto: 4 hours", "rto: 3 s"))
    variables = {**on.installation.variables(), "BACKUP_POLICY": str(policy)}
    with AirflowServices(
        tmp_path / "airflow",
        metadata=on.target.superuser.with_database("airflow_impatient"),
        connections=on.connections,
        variables=variables,
        triggerer=True,
    ) as services:
        client = services.client()
        client.unpause(DAG)
        run = client.trigger(DAG, conf={"scenario": "region_lost"})
        for _ in polls(RUN_WITHIN, "the mail that the RTO is over"):
            if any("the RTO is over" in mail.subject and run in mail.text() for mail in on.mailbox.mails):
                break
        client.wait(DAG, run, within=RUN_WITHIN)
        report = client.xcom(DAG, run, "report")
    assert any("RTO of" in words for words in report["missed"])

"""The full backup as real DAG runs: everything lost and back again, a killed task, a cleared run, a manual one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
import pytest

from include.backup.sample import turn_of
from include.backup.verify import check_integrity
from include.pipeline.progress import Progress
from include.policy import load_policy
from include.recovery.configuration import restore_configuration
from include.recovery.database import restore_database
from include.recovery.objects import restore_objects
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.manifest import Manifest
from include.sandbox.airflow import AirflowClient, AirflowServices, polls
from include.sandbox.installation import Installation
from include.sandbox.mailbox import Mail, Mailbox
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.synapse import Synapse

DAG, LIFECYCLE = "full_backup", "storage_lifecycle"
SCALE = 0.2
RUN_WITHIN = 240.0
SOON = 60.0
CREATE = "execute.create_backup"

SOON_MISSED = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
}
"""A task that is not heard of for half a minute is taken for dead: five minutes, the default, is a long test."""

only_on_18 = pytest.mark.parametrize("on", [18], indirect=True)


@dataclass
class Running:
    """An installation, and the Airflow that backs it up."""

    installation: Installation
    services: AirflowServices
    client: AirflowClient
    catalog: Catalog
    mails: list[Mail]
    ran: dict[str, str] = field(default_factory=dict)

    @property
    def synapse(self) -> Synapse:
        """The application."""
        return self.installation.synapse

    def scheduled(self) -> str:
        """The run of the latest slot, ended well; it is made once."""
        if "scheduled" not in self.ran:
            self.client.unpause(DAG)
            run = self.client.wait_for_run(DAG, "scheduled", within=SOON)
            assert self.client.wait(DAG, run, within=RUN_WITHIN) == "success", self.explain(run)
            self.ran["scheduled"] = run
        return self.ran["scheduled"]

    def manifest(self, run: str) -> Manifest:
        """The backup that a run says it made."""
        identity = self.client.xcom(DAG, run, CREATE)["id"]
        [found] = [each for each in self.manifests() if each.id == identity]
        return found

    def manifests(self) -> list[Manifest]:
        """Every committed full backup; none of them refused."""
        entries = self.catalog.entries("full")
        assert all(entry.manifest for entry in entries)
        return [entry.manifest for entry in entries if entry.manifest]

    def restore(self, manifest: Manifest, scratch: Path) -> None:
        """Bring the whole application back."""
        with Progress("restore", scratch=scratch) as progress:
            opened = OpenedBackup(self.catalog, manifest, policy=load_policy().pipeline, progress=progress)
            name = self.synapse.database.dbname
            restore_database(opened, server=self.synapse.server, name=name, scratch=scratch)
            restore_objects(opened, self.installation.application().objects)
            restore_configuration(opened, self.synapse.configuration)

    def explain(self, run: str) -> str:
        """The errors in the log of each failed task."""
        return "\n".join(
            f"{name} {line}"
            for name, task in self.client.tasks(DAG, run).items()
            if task["state"] == "failed" and name != "watcher"
            for line in self.client.log(DAG, run, name, try_number=task["try_number"]).splitlines()
            if '"level": "error"' in line
        )


@pytest.fixture(scope="module", params=[18, pytest.param(15, marks=pytest.mark.soak)])
def on(
    request: pytest.FixtureRequest, sandbox_directory: Path, s3_primary: S3Server, s3_replica: S3Server
) -> Iterator[Running]:
    """An installation on PostgreSQL of each major version, one after the other."""
    home = sandbox_directory / f"runs-on-{request.param}"
    home.mkdir()
    suffix = secrets.token_hex(4)
    postgres: PostgresServer = request.getfixturevalue(f"postgres{request.param}")
    installation = Installation.make(
        home, postgres=postgres, primary=s3_primary, replica=s3_replica, suffix=suffix, scale=SCALE
    )
    with ExitStack() as stack:
        stack.callback(installation.synapse.destroy)
        mailbox = stack.enter_context(Mailbox(home / "mails"))
        services = AirflowServices(
            home / "airflow",
            metadata=postgres.superuser.with_database(f"airflow{suffix}"),
            connections={
                **installation.connections(),
                "synapse_notifications": mailbox.connection(),
            },
            variables=installation.variables() | SOON_MISSED,
        )
        stack.enter_context(services)
        yield Running(installation, services, services.client(), installation.catalog(), mailbox.mails)


@pytest.mark.requirement("R1.1", "R2.1", "R2.2", "R2.3", "R4.1", "R4.2", "R4.3", "R4.4", "R4.5", "R4.6")
def test_everything_lost_comes_back_from_a_scheduled_run(on: Running, tmp_path: Path) -> None:
    before = on.synapse.fingerprint()
    run = on.scheduled()
    manifest = on.manifest(run)
    assert manifest.slot is not None
    assert manifest.backup.moment == manifest.slot.end
    on.synapse.destroy()
    on.restore(manifest, tmp_path)
    assert before.difference(on.synapse.fingerprint()) == []


@only_on_18
@pytest.mark.requirement("R4.1", "R4.2", "R4.3", "R4.4", "R4.5", "R4.6")
def test_a_run_tells_what_it_did(on: Running) -> None:
    run = on.scheduled()
    states = on.client.task_states(DAG, run)
    assert {name for name, state in states.items() if state == "skipped"} == {"watcher", "report.error_alert"}
    assert {state for name, state in states.items() if name not in ("watcher", "report.error_alert")} == {"success"}
    made = on.client.xcom(DAG, run, CREATE)
    assert made["write_stop_ms"] == on.client.xcom(DAG, run, "execute.resume_writes")["write_stop_ms"] > 0
    log = on.client.log(DAG, run, CREATE)
    for word in ("MB/s", "cpu", "memory", "disk free", "network"):  # R4.4
        assert word in log
    report = on.client.log(DAG, run, "report.success_report")
    for word in (made["id"], "write stop", "integrity", "sample_restore"):
        assert word in report
    proofs = {name: on.client.xcom(DAG, run, f"verify.{name}") for name in ("integrity", "sizes", "sample_restore")}
    verification = on.catalog.verification(on.manifest(run))
    assert verification.state == "verified"
    assert {record.home for record in verification.newest} == {facts["record"] for facts in proofs.values()}
    assert proofs["sample_restore"]["component"] == turn_of(on.manifest(run), load_policy()).component.name
    assert all(facts["record"] in report for facts in proofs.values())
    kinds = {str(mail.message["X-Synapse-Backups"]): mail for mail in on.mails if made["id"] in mail.subject}
    assert set(kinds) == {"success_report", "status_update"}
    mailed = kinds["success_report"].text()
    for fact in (f"{made['stored_bytes'] / 1e6:,.1f} MB", f"{made['seconds']} s", run, "next run", "integrity"):
        assert fact in mailed
    [page] = [line.split(": ")[1] for line in mailed.splitlines() if line.startswith("The run: ")]
    assert page.startswith(f"{on.services.url}/dags/{DAG}/runs/")
    scratch = on.client.xcom(DAG, run, "prepare.create_temporary_directory")["scratch"]
    assert not Path(scratch).exists()


@only_on_18
def test_no_secret_is_in_a_log(on: Running) -> None:
    run = on.scheduled()
    variables = on.services.environment
    secret = {name: value for name, value in variables.items() if name.startswith("AIRFLOW_CONN_")}
    passwords = [value.split('"password": "')[1].split('"')[0] for value in secret.values() if '"password"' in value]
    assert len(passwords) == 6
    logs = "".join(path.read_text(errors="replace") for path in on.services.home.rglob("*.log"))
    assert made_log_is_there(logs, run)
    assert [password for password in passwords if password in logs] == []


def made_log_is_there(logs: str, run: str) -> bool:
    return "Consistency point" in logs and run in logs


@only_on_18
@pytest.mark.requirement("R4.3")
def test_a_cleared_run_keeps_the_backup_that_was_committed(on: Running) -> None:
    run = on.scheduled()
    committed = on.manifest(run)
    on.client.clear(DAG, run)
    assert on.client.wait(DAG, run, within=RUN_WITHIN) == "success", on.explain(run)
    assert on.client.tasks(DAG, run)[CREATE]["try_number"] == 2
    assert on.manifest(run) == committed


@only_on_18
@pytest.mark.requirement("R1.1")
def test_a_manual_run_in_the_same_interval_is_a_backup_of_its_own(on: Running) -> None:
    scheduled = on.manifest(on.scheduled())
    run = on.client.trigger(DAG)
    assert on.client.wait(DAG, run, within=RUN_WITHIN) == "success", on.explain(run)
    manual = on.manifest(run)
    assert manual.id.startswith("full-manual-")
    assert manual.slot is None
    assert manual.id != scheduled.id
    assert scheduled in on.manifests()


@only_on_18
@pytest.mark.requirement("R4.3", "R4.4")
def test_a_task_killed_in_mid_upload_is_tried_again_and_one_backup_is_committed(on: Running) -> None:
    on.scheduled()
    before = {each.id for each in on.manifests()}
    with in_mid_upload(on) as (run, killed, task):
        task.kill()
        on.client.wait_for_task(DAG, run, CREATE, {"up_for_retry"}, within=SOON)
    assert {each.id for each in on.manifests()} == before
    assert on.client.wait(DAG, run, within=RUN_WITHIN) == "success", on.explain(run)
    assert on.client.tasks(DAG, run)[CREATE]["try_number"] == 2
    [made] = [each for each in on.manifests() if each.id not in before]
    assert made.attempt != killed
    assert killed in attempts_of(on)  # unreferenced, and reaped later


@only_on_18
def test_the_storage_lifecycle_removes_what_a_dead_run_left(on: Running) -> None:
    committed = on.manifest(on.scheduled())
    on.client.unpause(LIFECYCLE)
    with closing(on.installation.dump.connect(application_name=f"{committed.id}.{'f' * 16}.S")) as left:
        left.execute("SELECT 1")
        run = on.client.trigger(LIFECYCLE)
        assert on.client.wait(LIFECYCLE, run, within=RUN_WITHIN) == "success"
        with pytest.raises(psycopg.OperationalError):
            left.execute("SELECT 1")
    assert committed in on.manifests()


@pytest.mark.soak
@only_on_18
@pytest.mark.requirement("R4.3", "R4.4")
@pytest.mark.parametrize("killed", ["supervisor", "both"])
def test_a_supervisor_killed_in_mid_upload_costs_one_try(on: Running, tmp_path: Path, killed: str) -> None:
    on.scheduled()
    before = {each.id for each in on.manifests()}
    with in_mid_upload(on) as (run, _, task):
        victims = [task.parent(), *([task] if killed == "both" else [])]
        for process in victims:
            assert process is not None
            process.kill()
    assert on.client.wait(DAG, run, within=RUN_WITHIN) == "success", on.explain(run)
    psutil.wait_procs([task], timeout=SOON)  # a task without its supervisor may be at it still
    [made] = [each for each in on.manifests() if each.id not in before]
    assert len(list(on.catalog.bucket.versions(made.backup.manifest_key))) == 1
    assert check_integrity(on.catalog, made.backup, load_policy(), scratch=tmp_path)["objects"] == made.objects.objects


@only_on_18
@pytest.mark.requirement("R4.2", "R4.6")
def test_a_run_that_fails_alerts_with_the_mend_and_leaves_nothing(on: Running) -> None:
    on.scheduled()
    before = on.manifests()
    on.installation.keyring.chmod(0o644)
    try:
        run = on.client.trigger(DAG)
        assert on.client.wait(DAG, run, within=RUN_WITHIN) == "failed"
    finally:
        on.installation.keyring.chmod(0o600)
    tasks = on.client.tasks(DAG, run)
    assert (tasks["prepare.verify_permissions"]["state"], tasks["prepare.verify_permissions"]["try_number"]) == (
        "failed",
        1,  # no other try could mend it
    )
    assert {tasks[name]["state"] for name in ("execute.stop_writes", CREATE, "execute.resume_writes")} == {
        "upstream_failed"
    }
    assert tasks["watcher"]["state"] == "failed"
    assert tasks["remove_temporary_directory"]["state"] == "success"
    assert on.manifests() == before
    [alert] = [mail for mail in on.mails if "FAILED at prepare." in mail.subject]
    assert alert.recipients == load_policy().notifications.error_alert
    for words in ("prepare.verify_permissions", "can be reached by others", "chmod 600", f"{on.services.url}/runbooks"):
        assert words in alert.text()
        assert words in alert.text("html")
    assert tasks["report.delivered"]["state"] == "success"


@pytest.mark.soak
@only_on_18
@pytest.mark.requirement("R4.3")
def test_a_zombie_let_loose_after_the_retry_changes_nothing(on: Running, tmp_path: Path) -> None:
    on.scheduled()
    before = {each.id for each in on.manifests()}
    with in_mid_upload(on) as (run, first, task):
        zombie = [task.parent(), task, *task.children(recursive=True)]  # with whoever sends its heartbeats
        for process in zombie:
            process.suspend()
    assert on.client.wait(DAG, run, within=RUN_WITHIN) == "success", on.explain(run)
    [made] = [each for each in on.manifests() if each.id not in before]
    assert made.attempt != first
    for process in reversed(zombie):
        with suppress(psutil.NoSuchProcess):
            process.resume()
    _, alive = psutil.wait_procs([task], timeout=SOON)
    assert alive == []
    assert [each for each in on.manifests() if each.id not in before] == [made]
    assert len(list(on.catalog.bucket.versions(made.backup.manifest_key))) == 1
    assert check_integrity(on.catalog, made.backup, load_policy(), scratch=tmp_path)["objects"] == made.objects.objects


@contextmanager
def in_mid_upload(on: Running) -> Iterator[tuple[str, str, psutil.Process]]:
    """A manual run whose creation has stored its first segment: its id, the attempt, the task's process.

    Inside the block the store answers nobody, so whatever the task does, it is in mid-upload.
    """
    attempts = attempts_of(on)
    run = on.client.trigger(DAG)
    on.client.wait_for_task(DAG, run, CREATE, {"running"}, within=RUN_WITHIN)
    [attempt] = wait_until(lambda: attempts_of(on) - attempts, "the first segment of the new attempt")
    with stopped(on.installation.primary):
        task = on.client.wait_for_task(DAG, run, CREATE, {"running"}, within=SOON)
        yield run, attempt, psutil.Process(task["pid"])


def attempts_of(on: Running) -> set[str]:
    """Every attempt that has stored something."""
    return {key.split("/")[5] for key in on.catalog.bucket.keys("full/")}


def wait_until(look: Callable[[], set[str]], what: str) -> set[str]:
    for _ in polls(SOON, what):
        if found := look():
            return found
    raise AssertionError


@contextmanager
def stopped(s3: S3Server) -> Iterator[None]:
    """Inside the block the store answers nobody."""
    server = psutil.Process(s3.pid)
    server.suspend()
    try:
        yield
    finally:
        server.resume()

"""Backups as real DAG runs: everything lost and back again, a killed task, a cleared run, missed hours."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from include.backup.sample import turn_of
from include.backup.verify import check_integrity
from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.policy import load_policy
from include.repository.envelopes import create_data_key, open_data_key
from include.repository.layout import new_attempt
from include.sandbox.airflow import ADMIN, APPROVER, ENDED, AirflowClient, AirflowServices, polls
from include.sandbox.installation import Installation
from include.sandbox.mailbox import Mailbox
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from tests.dags.running import (
    CREATE,
    FULL,
    INCREMENTAL,
    LIFECYCLE,
    RECOVERY,
    ROTATION,
    RUN_WITHIN,
    SNAPSHOT,
    SOON,
    STREAM,
    Running,
    base_of_then,
    ledger,
    seconds_of,
)

DAG = FULL
SCALE = 0.2

SOON_MISSED = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
}
"""A task that is not heard of for half a minute is taken for dead: five minutes, the default, is a long test."""

only_on_15 = pytest.mark.parametrize("on", [pytest.param(15, marks=pytest.mark.soak)], indirect=True)
only_on_18 = pytest.mark.parametrize("on", [18], indirect=True)


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
    assert len(passwords) == 15
    logs = "".join(path.read_text(errors="replace") for path in on.services.home.rglob("*.log"))
    assert made_log_is_there(logs, run)
    assert [password for password in passwords if password in logs] == []


def made_log_is_there(logs: str, run: str) -> bool:
    return "Consistency point" in logs and run in logs


@only_on_18
@pytest.mark.requirement("R0", "R9")
def test_only_who_is_logged_in_gets_in_and_a_task_leads_to_its_runbook(on: Running) -> None:
    with pytest.raises(BackupError, match="401"):
        AirflowClient(on.services.url, ADMIN, "wrong")
    for path in ("/api/v2/dags", f"/runbooks/{DAG}", f"/validations/{DAG}/run/task"):
        assert httpx.get(f"{on.services.url}{path}", trust_env=False).status_code == httpx.codes.UNAUTHORIZED
    link = on.client.links(DAG, on.scheduled(), CREATE)["Runbook"]
    assert link is not None
    assert link.endswith(f"/runbooks/{DAG}#{CREATE}")
    assert f'<h3 id="{CREATE}">' in on.client.page(link)


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
@pytest.mark.requirement("R7.1")
def test_a_rotation_reaches_both_regions_and_a_key_that_is_needed_is_not_retired(on: Running) -> None:
    old, attempt = on.catalog.keyring, new_attempt()
    dek = create_data_key(on.catalog.bucket, old, owner="wal-1", attempt=attempt)
    on.client.unpause(ROTATION)
    run = on.client.trigger(ROTATION, conf={"kinds": "both", "retire": old.current_kek})
    assert on.client.wait(ROTATION, run, within=RUN_WITHIN) == "failed"

    tasks = on.client.tasks(ROTATION, run)
    assert {name for name, task in tasks.items() if task["state"] == "failed"} == {"retire", "watcher"}
    assert "wraps until" in on.explain(run, ROTATION)
    assert any("Key rotation FAILED at retire" in mail.subject for mail in on.mails)
    made = on.client.xcom(ROTATION, run, "new_keys")["made"]
    new = Keyring.load(on.installation.keyring)
    assert (new.ids - old.ids, new.lasting_keks) == ({*made}, (made[0],))
    alone = replace(new, keks={made[0]: new.keks[made[0]]})
    assert open_data_key(on.catalog.bucket, alone, owner="wal-1", attempt=attempt) == dek
    assert old.current_kek in new.keks


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


HOUR = timedelta(hours=1)
NOT_DONE = {CREATE, "verify.integrity", "replicate", "report.success_report", "report.error_alert", "watcher"}
"""What is skipped of a run whose hour is adopted."""
IDLE_SECONDS = 20.0
DAY_WITHIN = 1200.0


@dataclass(frozen=True)
class Hours:
    """Hours that were missed, `[first, last)`, and the ledger of them before and after."""

    first: datetime
    last: datetime
    before: dict[datetime, tuple[str, str | None]]
    after: dict[datetime, tuple[str, str | None]]
    runs: dict[str, str]
    """The state of each run, by its id."""

    @property
    def made(self) -> list[str]:
        return [backup for state, backup in self.after.values() if state == "complete" and backup]


Backfill = Callable[[Running, datetime, datetime], None]


def by_rest(on: Running, begin: datetime, end: datetime) -> None:
    on.client.wait_for_backfill(on.client.backfill(INCREMENTAL, begin, end), within=DAY_WITHIN)


def by_cli(on: Running, begin: datetime, end: datetime) -> None:
    dates = ["--from-date", begin.isoformat(), "--to-date", end.isoformat()]
    on.services.airflow("backfill", "create", "--dag-id", INCREMENTAL, *dates, "--max-active-runs", "4")
    expected = round((end - begin) / HOUR) + 1
    for _ in polls(DAY_WITHIN, "the runs of the backfill"):
        runs = [run for run in on.client.runs(INCREMENTAL) if run["run_type"] == "backfill"]
        if len(runs) == expected and all(run["state"] in ENDED for run in runs):
            return


def missed(on: Running, scratch: Path, *, hours: int, backfill: Backfill) -> Hours:
    """A base of so many hours ago, then a backfill of them, and at the same time the schedule and a manual run."""
    last = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    first = last - hours * HOUR
    base_of_then(on, first - HOUR / 2, scratch)
    before = ledger(on, first, last)
    on.client.unpause(INCREMENTAL)
    manual = on.client.trigger(INCREMENTAL)
    backfill(on, first, last - 2 * HOUR)  # the dates are of beginnings; the last hour is the schedule's
    scheduled = on.client.wait_for_run(INCREMENTAL, "scheduled", within=SOON)
    for run in (manual, scheduled):
        on.client.wait(INCREMENTAL, run, within=RUN_WITHIN)
    runs = {each["dag_run_id"]: each["state"] for each in on.client.runs(INCREMENTAL)}
    return Hours(first, last, before, ledger(on, first, last), runs)


@pytest.fixture(scope="module")
def hours(on: Running, sandbox_directory: Path) -> Hours:
    return missed(on, sandbox_directory, hours=3, backfill=by_rest)


@only_on_18
@pytest.mark.requirement("R1.2", "R5.5", "R9")
def test_each_hour_that_was_missed_is_complete_or_adopted_once(on: Running, hours: Hours) -> None:
    assert {state for state, _ in hours.before.values()} == {"missing"}
    assert {state for state, _ in hours.after.values()} <= {"complete", "adopted"}
    assert len(hours.after) == 3
    assert set(hours.runs.values()) == {"success"}
    windows = [each.wal for each in on.manifests("incremental")]
    for one, other in itertools.pairwise(sorted(windows, key=lambda window: window.start_lsn)):
        assert one.end_lsn == other.start_lsn


@only_on_18
@pytest.mark.requirement("R1.2", "R9")
def test_a_run_whose_hour_is_adopted_is_green_and_says_by_whom(on: Running, hours: Hours) -> None:
    adopted = {end: by for end, (state, by) in hours.after.items() if state == "adopted"}
    assert adopted
    skipped = 0
    for run in on.client.runs(INCREMENTAL):
        states = on.client.task_states(INCREMENTAL, run["dag_run_id"])
        if states[CREATE] != "skipped" or datetime.fromisoformat(run["data_interval_end"]) > hours.last:
            continue  # or of an hour that has ended since
        skipped += 1
        assert {name for name, state in states.items() if state == "skipped"} == NOT_DONE
        assert {state for name, state in states.items() if name not in NOT_DONE} == {"success"}
        by = adopted[datetime.fromisoformat(run["data_interval_end"])]
        assert f"is adopted by {by}" in on.client.log(INCREMENTAL, run["dag_run_id"], CREATE)
    assert skipped == len(adopted)
    assert [mail for mail in on.mails if "incremental" in mail.subject and "FAILED" in mail.subject] == []


@only_on_18
@pytest.mark.requirement("R1.2", "R4.3", "R4.5", "R4.6")
def test_an_idle_hours_run_is_light(on: Running, hours: Hours) -> None:
    run = on.triggered(INCREMENTAL)
    [ran] = [each for each in on.client.runs(INCREMENTAL) if each["dag_run_id"] == run]
    print(f"idle run {seconds_of(ran):.1f} s", {k: v["duration"] for k, v in on.client.tasks(INCREMENTAL, run).items()})
    states = on.client.task_states(INCREMENTAL, run)
    assert {name for name, state in states.items() if state != "success"} == {"watcher", "report.error_alert"}
    assert seconds_of(ran) < 2 * IDLE_SECONDS  # others use these processors, too; the goal itself is the long run's


@only_on_18
@pytest.mark.requirement("R1.2", "R9")
def test_nothing_that_is_done_to_runs_makes_the_catalog_lie(on: Running, hours: Hours) -> None:
    committed = {each.id: each for each in on.manifests("incremental")}
    run = next(each for each in on.client.runs(INCREMENTAL) if each["run_type"] == "backfill")
    identity = run["dag_run_id"]
    on.client.set_task(INCREMENTAL, identity, CREATE, "failed")
    on.client.clear(INCREMENTAL, identity)
    assert on.client.wait(INCREMENTAL, identity, within=RUN_WITHIN) == "success"
    for state in ("failed", "success"):  # by hand, after the run
        on.client.set_task(INCREMENTAL, identity, CREATE, state)
    on.client.delete(INCREMENTAL, identity)
    assert {each.id: each for each in on.manifests("incremental")} == committed
    assert ledger(on, hours.first, hours.last) == hours.after


@only_on_18
@pytest.mark.requirement("R1.3", "R4.3", "R4.5", "R4.6")
def test_a_snapshot_is_made_started_and_told(on: Running) -> None:
    run = on.snapshot()
    states = on.client.task_states(SNAPSHOT, run)
    assert {name for name, state in states.items() if state != "success"} == {"watcher", "report.error_alert"}
    made = on.manifest(run, SNAPSHOT)
    assert made.base is not None
    assert any(made.id in mail.subject and "succeeded" in mail.subject for mail in on.mails)


@pytest.mark.soak
@only_on_15
@pytest.mark.requirement("R1.2", "R5.5", "R9")
def test_a_day_that_was_missed_is_made_good_by_the_command_line_and_again(on: Running, sandbox_directory: Path) -> None:
    day = missed(on, sandbox_directory, hours=24, backfill=by_cli)
    assert {state for state, _ in day.before.values()} == {"missing"}
    assert len(day.after) == 24
    assert {state for state, _ in day.after.values()} == {"complete", "adopted"}
    assert set(day.runs.values()) == {"success"}
    committed = on.manifests("incremental")
    again = backfill_again(on, day)
    on.client.wait_for_backfill(again, within=DAY_WITHIN)
    assert on.manifests("incremental") == committed
    assert ledger(on, day.first, day.last) == day.after
    assert {each["state"] for each in on.client.runs(INCREMENTAL)} == {"success"}
    backfill_again(on, day)
    with pytest.raises(BackupError, match="already a running backfill"):  # two at once: Airflow refuses the second
        on.client.backfill(INCREMENTAL, day.first, day.last - 2 * HOUR, reprocess="completed")


def backfill_again(on: Running, day: Hours) -> int:
    """As soon as the one before is over: its runs end before it does."""
    for _ in polls(RUN_WITHIN, "the backfill before to be over"):
        try:
            return on.client.backfill(INCREMENTAL, day.first, day.last - 2 * HOUR, reprocess="completed")
        except BackupError as refused:
            assert "already a running backfill" in refused.what
    raise AssertionError


@pytest.mark.soak
@only_on_18
@pytest.mark.requirement("R5.5")
def test_the_stream_ships_what_is_written_and_ends_green_on_sigterm(on: Running) -> None:
    on.snapshot()
    on.client.unpause(STREAM)
    run = on.client.wait_for_run(STREAM, "scheduled", within=SOON)
    task = on.client.wait_for_task(STREAM, run, "ship", {"running"}, within=SOON)
    before = on.shipped()
    with on.installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
        session.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000))")
        session.execute("SELECT pg_switch_wal()")
    wait_until(lambda: on.shipped() - before, "a segment in the bucket")
    on.client.pause(STREAM)
    psutil.Process(task["pid"]).terminate()
    on.must_end_well(STREAM, run)
    assert on.client.xcom(STREAM, run, "ship")["shipped"] > 0


@only_on_18
@pytest.mark.requirement("R5.1", "R5.2", "R4.6")
def test_the_latest_moment_comes_back_into_scratch_places(on: Running) -> None:
    on.snapshot()
    on.scheduled(INCREMENTAL)
    before = on.synapse.fingerprint()
    run = on.triggered(RECOVERY)
    states = on.client.task_states(RECOVERY, run)
    assert {name for name, state in states.items() if state != "success"} == {"watcher", "approve"}
    plan = on.client.xcom(RECOVERY, run, "locate_backup")
    log = on.client.log(RECOVERY, run, "locate_backup")
    for words in (plan["base"], plan["reaches"], "MB to download", "expected", "skew"):
        assert words in log
    found = on.client.xcom(RECOVERY, run, "restore_data")
    assert found["restored_tables"] >= len(before.tables) - 1  # a materialized view is none
    assert found["objects"] == len(before.objects)
    assert found["commit"] == before.configuration["HEAD"]
    for task in ("check_data_consistency", "check_application_state", "check_service_health"):
        validated = on.client.xcom(RECOVERY, run, task)
        assert validated["failed"] == 0
        assert validated["checks"] > 1
        page = on.client.page(str(on.client.links(RECOVERY, run, task)["Validation"]))
        assert f"all {validated['checks']} checks passed" in page
    database = found["database"]
    [mail] = [mail for mail in on.mails if "Recovery to latest is done" in mail.subject]
    for words in (database, "DROP DATABASE", "aws s3 rm", plan["reaches"]):
        assert words in mail.text()
    assert before.difference(on.synapse.fingerprint()) == []


@pytest.mark.soak
@only_on_18
@pytest.mark.requirement("R5.1")
def test_what_a_recovery_left_itself_is_in_the_way_of_no_second_try(on: Running) -> None:
    on.snapshot()
    run = on.triggered(RECOVERY)
    plan = on.client.xcom(RECOVERY, run, "locate_backup")
    on.client.clear(RECOVERY, run)
    on.must_end_well(RECOVERY, run)
    assert on.client.tasks(RECOVERY, run)["restore_data"]["try_number"] == 2
    assert on.client.xcom(RECOVERY, run, "locate_backup")["base"] == plan["base"]


@pytest.mark.soak
@only_on_18
@pytest.mark.requirement("R5.1")
def test_what_cannot_be_reached_is_refused_before_anything_is_written(on: Running) -> None:
    on.snapshot()
    on.client.unpause(RECOVERY)
    future = f"{datetime.now(UTC) + HOUR:%Y-%m-%dT%H:%M:%S}+00:00"
    run = on.client.trigger(RECOVERY, conf={"target": future})
    assert on.client.wait(RECOVERY, run, within=RUN_WITHIN) == "failed"
    states = on.client.task_states(RECOVERY, run)
    assert (states["locate_backup"], states["restore_data"]) == ("failed", "upstream_failed")
    assert "The nearest that can be" in on.explain(run, RECOVERY)
    with pytest.raises(BackupError, match="400"):
        on.client.trigger(RECOVERY, conf={"where": "the moon"})


@pytest.mark.soak
@only_on_18
@pytest.mark.requirement("R5.1", "R7.3")
def test_what_is_live_is_replaced_only_when_somebody_else_approves(on: Running) -> None:
    on.snapshot()
    on.client.unpause(RECOVERY)
    refused = on.client.trigger(RECOVERY, conf={"where": "live"})
    assert on.client.wait(RECOVERY, refused, within=RUN_WITHIN) == "failed"
    assert on.client.task_states(RECOVERY, refused)["select_timestamp"] == "failed"

    live = {"where": "live", "replace_live": True, "what": "configuration"}
    run = on.client.trigger(RECOVERY, conf=live)
    on.services.wait_until_asked(RECOVERY, run, within=RUN_WITHIN)
    on.client.answer(RECOVERY, run, "approve", "Approve")
    assert on.client.wait(RECOVERY, run, within=RUN_WITHIN) == "failed"
    assert "somebody else has to" in on.explain(run, RECOVERY)
    assert on.client.tasks(RECOVERY, run)["restore_data"]["try_number"] == 1

    run = on.client.trigger(RECOVERY, conf=live)
    on.services.wait_until_asked(RECOVERY, run, within=RUN_WITHIN)
    on.services.client(APPROVER).answer(RECOVERY, run, "approve", "Approve")
    on.must_end_well(RECOVERY, run)
    checkout = on.synapse.configuration
    assert list(checkout.parent.glob(f"{checkout.name}_replaced_*"))

    run = on.client.trigger(RECOVERY, conf=live)
    on.services.wait_until_asked(RECOVERY, run, within=RUN_WITHIN)
    on.services.client(APPROVER).answer(RECOVERY, run, "approve", "Reject")
    assert on.client.wait(RECOVERY, run, within=RUN_WITHIN) == "failed"
    states = on.client.task_states(RECOVERY, run)
    assert (states["approve"], states["restore_data"]) == ("failed", "upstream_failed")
    assert "Reject" in on.client.log(RECOVERY, run, "approve")
    assert states["report"] == "success"


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

"""The break-glass script, executed: an installation back from its replica alone, without Airflow's environment."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from include.backup.full import make_full_backup
from include.backup.increment import make_increment
from include.backup.replicate import replicate
from include.backup.snapshot import make_snapshot
from include.disaster.break_glass import BreakGlassFailed, break_glass_script, run_break_glass
from include.disaster.plan import DisasterPlan, load_plan
from include.policy import Policy, load_policy
from include.recovery.validation.recovered import Expected
from include.repository.layout import BackupId
from include.sandbox.installation import Installation
from include.sandbox.life import Life
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server

POLICY = load_policy()
SCALE = 0.02
ODD = 'it\'s a "drill" $(touch pwned); é'


@pytest.fixture(scope="module")
def installation(
    sandbox_directory: Path, postgres18: PostgresServer, s3_primary: S3Server, s3_replica: S3Server
) -> Iterator[Installation]:
    """A snapshot and an increment, durable in the replica."""
    directory = sandbox_directory / "break-glass-script"
    directory.mkdir()
    directory.chmod(0o711)
    made = Installation.make(
        directory,
        postgres=postgres18,
        primary=s3_primary,
        replica=s3_replica,
        suffix="-break-glass-script",
        scale=SCALE,
    )
    scratch = directory / "scratch"
    scratch.mkdir(mode=0o711)
    application, files = made.application(), made.application().objects
    for type_, make in (("full", make_full_backup), ("snapshot", make_snapshot), ("incremental", make_increment)):
        with Life(made.synapse.database, files.client, files.name, pause=0.0) as life:
            life.wait_for(30)
        backup = BackupId(type_, datetime.now(UTC), manual=True)  # type: ignore[arg-type]
        arguments = {"slot": None, "application": application, "catalog": made.catalog(), "policy": POLICY}
        last = make(backup, scratch=scratch, **arguments)  # type: ignore[operator]
    replicate(
        last.backup, application=application, primary=made.catalog(), replica=made.replica_catalog(), policy=POLICY
    )
    yield made
    made.synapse.destroy()


@pytest.fixture
def policy(installation: Installation) -> Policy:
    """The policy with this installation's bucket."""
    replica = POLICY.storage.replica.model_copy(update={"bucket": installation.replica_backups})
    return POLICY.model_copy(update={"storage": POLICY.storage.model_copy(update={"replica": replica})})


def without_validations(plan: DisasterPlan) -> DisasterPlan:
    """The plan, less what takes the service's and the suites' time."""
    quiet = {
        task: step.model_copy(update={"command": ""}) if task.startswith("check_") else step
        for task, step in plan.steps.items()
    }
    changed: DisasterPlan = plan.model_copy(update={"steps": quiet})
    return changed


def environment(installation: Installation, bucket: str, **changes: str) -> dict[str, str]:
    """The replica's endpoint and credentials, the keys, and a login that may create databases and no more."""
    credentials = installation.replica.session().get_credentials()
    assert credentials is not None
    return {
        "PATH": os.environ["PATH"],
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        "AWS_ENDPOINT_URL": installation.replica.endpoint_url,
        "BACKUP_KEYRING": str(installation.keyring),
        **installation.scratch.environment(),
        "PYTHON": sys.executable,
        "OBJECTS": bucket,
        **changes,
    }


@contextmanager
def dropped(installation: Installation, name: str) -> Iterator[None]:
    """The database of that name is gone afterwards."""
    try:
        yield
    finally:
        with installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
            quoted = '"' + name.replace('"', '""') + '"'
            session.execute(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)".encode())


@pytest.mark.requirement("R5.3", "R5.1")
@pytest.mark.parametrize("plan", [without_validations(load_plan()), pytest.param(load_plan(), marks=pytest.mark.soak)])
def test_it_brings_everything_back_from_the_replica_alone(
    installation: Installation, policy: Policy, sandbox_directory: Path, s3_replica: S3Server, plan: DisasterPlan
) -> None:
    places = sandbox_directory / f"places of {secrets.token_hex(4)}"
    places.mkdir(mode=0o711)
    bucket = s3_replica.create_bucket(f"recovered-{secrets.token_hex(4)}")
    before = installation.synapse.fingerprint()
    script = break_glass_script(plan, policy, "airflow_lost", "replica")
    told = environment(
        installation,
        bucket,
        DATABASE=ODD,
        UNDER="drills/a b/",
        CONFIGURATION=str(places / ODD / "configuration"),
        EXPECTED=str(places / "expected.json"),
        TO_LOOK_AT="yes",
    )
    (places / ODD).mkdir()

    with dropped(installation, ODD):
        steps = run_break_glass(script, told, scratch=places, limit=timedelta(minutes=5))
        with installation.scratch.with_database(ODD).connect(application_name="test", autocommit=True) as session:
            tables = {
                name: session.execute(f"SELECT count(*) FROM {name}".encode()).fetchone()
                for name in ("messages", "users", "chats")
            }
        with installation.synapse.database.connect(application_name="test", autocommit=True) as session:
            live = {name: session.execute(f"SELECT count(*) FROM {name}".encode()).fetchone() for name in tables}

    commands = {task for task, step in plan.steps.items() if step.command} | {"approve"}
    assert [step.name for step in steps] == [task for task in plan.steps if task in commands]
    assert all(step.began <= step.ended for step in steps)
    probed = "check_service_health" in commands  # which writes one
    assert tables == live | {"messages": (live["messages"][0] + probed,)}
    keys = {each["Key"] for each in s3_replica.client().list_objects_v2(Bucket=bucket)["Contents"]}
    assert {f"drills/a b/{key}" for key in before.objects} <= keys
    expected = Expected.read(places / "expected.json")
    assert expected.inventory is not None
    assert (places / "expected.json").stat().st_mode & 0o777 == 0o600
    commit = subprocess.run(
        ["git", "-C", str(places / ODD / "configuration"), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert commit.stdout.strip() == before.configuration["HEAD"] == expected.commit
    assert not list(places.rglob("pwned"))


def test_a_step_that_fails_ends_it_and_is_named(
    installation: Installation, policy: Policy, sandbox_directory: Path, s3_replica: S3Server
) -> None:
    script = break_glass_script(without_validations(load_plan()), policy, "region_lost", "replica")
    told = environment(
        installation,
        s3_replica.create_bucket(f"recovered-{secrets.token_hex(4)}"),
        DATABASE="nothing_comes",
        CONFIGURATION=str(sandbox_directory / "nothing-comes"),
        EXPECTED=str(sandbox_directory / "nothing.json"),
        TARGET="2020-01-01T00:00:00+00:00",
        TO_LOOK_AT="yes",
    )

    with pytest.raises(BreakGlassFailed, match="plan_recovery failed") as failed:
        run_break_glass(script, told, scratch=sandbox_directory, limit=timedelta(minutes=2))

    assert "before the first base" in " ".join(failed.value.what.split())
    assert not (sandbox_directory / "nothing-comes").exists()


def test_where_the_chain_is_broken_the_full_backup_comes(installation: Installation, sandbox_directory: Path) -> None:
    catalog = installation.catalog()
    full = catalog.latest("full")
    [snapshot] = [entry.key for entry in catalog.entries("snapshot")]
    body = catalog.bucket.read(snapshot)
    for version in list(catalog.bucket.versions(snapshot)):
        catalog.bucket.delete_version(snapshot, version.version_id)
    name, path = "full_instead", sandbox_directory / "full-instead.json"
    argv = [sys.executable, "-m", "include.cli", "--bucket", installation.backups, "restore", "--to", "latest"]
    told = {
        "PATH": os.environ["PATH"],
        **installation.break_glass(),
        **installation.scratch.environment(),
    }
    with dropped(installation, name):
        planned = subprocess.run([*argv, "--or-full", "--plan"], env=told, capture_output=True, text=True, check=True)
        more = ["--or-full", "--to-look-at", "--database", name, "--expected", str(path)]
        subprocess.run([*argv, *more], env=told, capture_output=True, text=True, check=True)
        refused = subprocess.run([*argv, "--plan"], env=told, capture_output=True, text=True, check=False)
        with installation.scratch.with_database(name).connect(application_name="test", autocommit=True) as session:
            (messages,) = session.execute("SELECT count(*) FROM messages").fetchone() or (0,)
    catalog.bucket.put(snapshot, body)

    assert full.id in planned.stderr
    assert refused.returncode == 1
    expected = Expected.read(path)
    assert expected.reaches == full.consistency_point.time
    assert expected.inventory is not None
    assert messages == sum(
        content.rows for table, content in expected.inventory.tables.items() if table.startswith("public.messages")
    )


def test_the_last_good_backup_is_told_to_programs_and_people(installation: Installation) -> None:
    argv = [sys.executable, "-m", "include.cli", "--bucket", installation.backups, "last-good"]
    surroundings = {"PATH": os.environ["PATH"], **installation.break_glass()}

    said = subprocess.run(argv, env=surroundings, capture_output=True, text=True, check=True)
    told = subprocess.run([*argv, "--json"], env=surroundings, capture_output=True, text=True, check=True)

    assert said.stdout.strip() == json.loads(told.stdout)["id"]
    assert said.stdout.startswith("incremental-")
    assert "last good" in said.stderr

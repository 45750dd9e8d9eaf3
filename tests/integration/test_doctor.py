"""`doctor` on real servers: nothing to complain of on a sound installation, each fault by name on another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from include.backup.checks import database, store
from include.backup.checks.check import NotReady, Remark
from include.cli.__main__ import app
from include.cli.connections import Connections
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.sandbox.airflow import polls
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.settings import CONNECTION_FIELDS
from include.sources.postgres.login import DatabaseLogin, DatabaseUnreachable

ROOT = Path(__file__).parents[2]
POLICY = load_policy()
SOON = 10.0
OURS = {"s3cmd", "object lock"}
"""What the sandbox lacks: a remark each."""


def doctor(environment: dict[str, str], *arguments: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Run it; its exit code and its findings."""
    done = CliRunner().invoke(app, [*arguments, "--json"], env=environment)
    assert done.stdout, done.output
    return done.exit_code, {(each["subject"], each["check"]): each for each in json.loads(done.stdout)}


def worker(installation: Installation, **changes: dict[str, object] | None) -> dict[str, str]:
    """The variables of a worker, some connections otherwise."""
    connections = {**installation.connections(), **changes}
    return installation.variables() | {
        f"AIRFLOW_CONN_{name.upper()}": json.dumps(each) for name, each in connections.items() if each
    }


def bad(findings: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], str]:
    return {place: each["verdict"] for place, each in findings.items() if each["verdict"] != "ok"}


def everything_in(bucket: Bucket) -> list[str]:
    uploads = bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
    return [version.key for version in bucket.versions("")] + [upload["Key"] for upload in uploads]


@contextmanager
def changed(server: PostgresServer, statement: str, back: str, database: str | None = None) -> Iterator[None]:
    login = server.superuser.with_database(database) if database else server.superuser
    with login.connect(application_name="test", autocommit=True) as session:
        session.execute(statement.encode())
        try:
            yield
        finally:
            session.execute(back.encode())


@pytest.mark.requirement("R4.1", "R4.2")
def test_a_sound_installation_is_told_so_and_nothing_is_left_behind(installation: Installation) -> None:
    bucket = installation.catalog().bucket
    before = everything_in(bucket)

    code, findings = doctor(worker(installation), "doctor")

    assert code == 0
    assert {check for _, check in bad(findings)} <= OURS
    assert {subject for subject, _ in findings} == {
        *("policy", "tools", "disk", "keyring", "barrier login", "dump login"),
        *("replication login", "scratch login"),
        *("objects", "configuration", "primary", "replica"),
    }
    assert findings["primary", "conditional writes"]["facts"] == {"conditional_writes": True}
    assert everything_in(bucket) == before


def test_a_person_gets_a_table_and_the_mends(installation: Installation, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "include.cli", "doctor"],
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **worker(installation), "BACKUP_SCRATCH": "/dev/null/no"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1, done.stderr
    for words in ("dump login", "rotation_due", "failed  disk", "next: Let this user write there", "1 failed"):
        assert words in " ".join(done.stdout.split()).replace("failed disk", "failed  disk"), words


def test_a_settings_file_is_as_good_as_variables_and_must_be_whole(installation: Installation, tmp_path: Path) -> None:
    connections = installation.connections()
    del connections["synapse_configuration"], connections["synapse_backups_replica"]
    astro = {ours: theirs for theirs, ours in CONNECTION_FIELDS.items()}
    settings = tmp_path / "settings.yaml"
    entries = [
        {"conn_id": name, **{astro[key]: value for key, value in each.items()}} for name, each in connections.items()
    ]
    settings.write_text(json.dumps({"airflow": {"connections": entries}}))

    code, findings = doctor(installation.variables(), "doctor", "--settings", str(settings))

    assert code == 1
    assert "synapse_configuration" in findings["configuration", "checkout"]["what"]
    assert findings["replica", "connection"]["verdict"] == "warning"  # optional
    assert {check for _, check in bad(findings)} <= OURS | {"checkout", "connection"}


def test_break_glass_says_what_it_could_not_look_at(installation: Installation) -> None:
    code, findings = doctor(installation.break_glass(), "--bucket", installation.backups, "doctor")

    assert code == 0
    unseen = {subject for (subject, _), each in findings.items() if each["what"].startswith("Not looked at")}
    assert unseen == {
        *("barrier login", "dump login", "replication login", "scratch login"),
        *("objects", "configuration", "replica"),
    }
    assert findings["restore server", "rights"]["verdict"] == findings["primary", "versions"]["verdict"] == "ok"


@pytest.mark.requirement("R4.1", "R4.2")
def test_every_fault_is_told_at_once_and_no_secret_with_it(installation: Installation, tmp_path: Path) -> None:
    connections = installation.connections()
    keyring = tmp_path / "keyring.json"
    keyring.write_bytes(installation.keyring.read_bytes())
    keyring.chmod(0o644)
    s3 = connections["synapse_backups_primary"]
    nowhere = {**s3, "extra": {**s3["extra"], "service_config": {"s3": {"bucket_name": "nobody-made-this"}}}}  # type: ignore[dict-item]
    environment = worker(
        installation,
        synapse_database_barrier={**connections["synapse_database_barrier"], "password": "not-this-secret"},
        synapse_backups_primary=nowhere,
        synapse_configuration={"conn_type": "git", "host": str(tmp_path)},
    )

    code, findings = doctor(environment | {"BACKUP_KEYRING": str(keyring)}, "doctor")

    assert code == 1
    failed = {place for place, verdict in bad(findings).items() if verdict == "failed"}
    assert failed >= {
        *(("barrier login", "connection"), ("keyring", "keys"), ("primary", "connection")),
        ("configuration", "checkout"),
    }
    assert findings["barrier login", "rights"]["what"] == "Not looked at: its connection failed."
    assert all(each["mend"] for place, each in findings.items() if each["verdict"] != "ok")
    secrets = ["not-this-secret", installation.dump.password, s3["password"]]
    assert not [secret for secret in secrets if str(secret) in json.dumps(list(findings.values()))]


def test_a_policy_that_contradicts_itself_is_the_first_thing_told(installation: Installation, tmp_path: Path) -> None:
    broken = tmp_path / "policy.yaml"
    broken.write_text(
        (ROOT / "include/policy/backup.yaml").read_text().replace("rpo_alert: 45 min", "rpo_alert: 2 hours")
    )

    code, findings = doctor({**worker(installation), "BACKUP_POLICY": str(broken)}, "doctor")

    assert code == 1
    assert "rpo_alert" in findings["policy", "contents"]["mend"]
    assert {subject for subject, _ in findings} == {"policy", "tools"}


@pytest.mark.requirement("R4.1", "R7.3")
def test_a_superuser_is_a_remark_and_stops_nothing(installation: Installation) -> None:
    superuser = installation.postgres.superuser.with_database(installation.dump.dbname)

    for needed in (database.BARRIER, database.DUMP, database.REPLICATION, database.SCRATCH):
        assert database.privileges(superuser, needed)
    with pytest.raises(Remark, match="superuser"):
        database.no_more(superuser, database.AT_MOST["dump"])


@pytest.mark.requirement("R7.3")
@pytest.mark.parametrize(
    ("kind", "too_much", "back", "word"),
    [
        ("barrier", "GRANT pg_read_all_data TO {}", "REVOKE pg_read_all_data FROM {}", "pg_read_all_data"),
        ("barrier", "ALTER ROLE {} CREATEROLE", "ALTER ROLE {} NOCREATEROLE", "CREATEROLE"),
        ("dump", "GRANT INSERT ON public.users TO {}", "REVOKE INSERT ON public.users FROM {}", "users"),
        ("dump", "ALTER ROLE {} RESET default_transaction_read_only",
         "ALTER ROLE {} SET default_transaction_read_only = on", "ready to write"),
        ("replication", "ALTER ROLE {} CREATEDB", "ALTER ROLE {} NOCREATEDB", "CREATEDB"),
        ("scratch", "ALTER ROLE {} REPLICATION", "ALTER ROLE {} NOREPLICATION", "REPLICATION"),
    ],
)  # fmt: skip
def test_what_a_login_has_beyond_its_need_is_named(
    installation: Installation, kind: str, too_much: str, back: str, word: str
) -> None:
    login: DatabaseLogin = getattr(installation, kind)
    assert database.no_more(login, database.AT_MOST[kind]) == {}
    with (
        changed(installation.postgres, too_much.format(login.user), back.format(login.user), installation.dump.dbname),
        pytest.raises(Remark, match=word),
    ):
        database.no_more(login, database.AT_MOST[kind])


@pytest.mark.requirement("R4.2")
def test_settings_that_leave_no_room_are_named(sandbox_directory: Path) -> None:
    settings = {
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_connections": "9",
        "max_locks_per_transaction": "10",
    }
    with PostgresServer(sandbox_directory / "cramped", durable=False, settings=settings) as server:
        with pytest.raises(NotReady, match="wal_level"):
            database.settings(server.superuser, POLICY)
        with server.superuser.connect(application_name="test", autocommit=True) as session:
            session.execute("ALTER SYSTEM SET wal_level = replica")
        server.stop()
        server.start()
        with pytest.raises(Remark, match=r"\d sessions free"):
            database.settings(server.superuser, POLICY)
        with server.superuser.connect(application_name="test", autocommit=True) as session:
            for number in range(95):
                session.execute(f"CREATE TABLE t{number} ()".encode())
        with pytest.raises(NotReady, match="max_locks_per_transaction"):
            database.settings(server.superuser, POLICY)


def test_timeouts_of_the_scratch_login_and_a_wrong_query_of_the_policy_are_told(installation: Installation) -> None:
    user = installation.scratch.user
    with (
        changed(
            installation.postgres,
            f"ALTER ROLE {user} SET statement_timeout = '5s'",
            f"ALTER ROLE {user} RESET statement_timeout",
        ),
        pytest.raises(Remark, match="statement_timeout is 5000 ms"),
    ):
        database.timeouts(installation.scratch)
    objects = POLICY.sources.objects.model_copy(update={"references": ("SELECT nothing FROM nowhere",)})
    policy = POLICY.model_copy(update={"sources": POLICY.sources.model_copy(update={"objects": objects})})
    with pytest.raises(NotReady, match="nowhere"):
        database.references(installation.dump, policy)


@pytest.mark.requirement("R3.1")
def test_a_bucket_without_versions_or_in_another_region_is_told(s3_primary: S3Server) -> None:
    s3_primary.client().create_bucket(
        Bucket="doctor-plain", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    bucket = Bucket(s3_primary.session(), "doctor-plain", region="eu-west-1", endpoint_url=s3_primary.endpoint_url)

    with pytest.raises(NotReady, match="keeps no versions"):
        store.versioned(bucket)
    with pytest.raises(Remark, match=r"eu-west-1.*us-east-1"):
        store.region(bucket, "us-east-1")
    with pytest.raises(Remark, match="Object Lock"):
        store.locks(bucket)


@pytest.mark.requirement("R1.2", "R4.2")
def test_uploads_that_may_not_be_listed_are_told(s3_primary: S3Server) -> None:
    name = s3_primary.create_bucket("doctor-uploads")
    bucket = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    bucket.client.create_multipart_upload(Bucket=name, Key="half")
    assert store.uploads_told(bucket) == {"uploads_under_way": 1}

    iam = s3_primary.session().client("iam", endpoint_url=s3_primary.endpoint_url)
    iam.create_user(UserName="reader")
    allowed = {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetObject"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    reader = boto3.Session(key["AccessKeyId"], key["SecretAccessKey"], region_name=s3_primary.region)
    bucket = Bucket(reader, name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    with pytest.raises(Remark, match="only in the next snapshot"):
        store.uploads_told(bucket)


@pytest.mark.requirement("R4.2")
def test_what_ceph_ignores_is_a_remark_and_what_it_does_is_fine(ceph: CephGateway) -> None:
    name = ceph.create_bucket("doctor-ceph")
    bucket = Bucket(ceph.session(), name, region=ceph.region, endpoint_url=ceph.endpoint_url)

    assert store.reach(bucket)
    assert store.versioned(bucket)
    assert store.round_trip(bucket)
    assert store.multipart(bucket)
    with pytest.raises(Remark, match="If-None-Match"):
        store.conditional_writes(bucket)
    with pytest.raises(Remark, match="checksum"):
        store.checksums(bucket)
    assert everything_in(bucket) == []


def test_an_open_bucket_needs_no_key_of_its_own(installation: Installation) -> None:
    """A connection without login leaves credentials to the worker, as the hook does."""
    plain = Connections.read(None, {"AIRFLOW_CONN_X": '{"conn_type": "aws"}'})
    assert plain.bucket("x", called="some", region="eu-west-1").name == "some"


@contextmanager
def slots_of_others(installation: Installation, count: int) -> Iterator[None]:
    names = [f"somebody_elses_{number}" for number in range(count)]
    with installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
        try:
            for name in names:
                session.execute("SELECT pg_create_physical_replication_slot(%s)", [name])
            yield
        finally:
            session.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = ANY(%s)",
                [names],
            )


@pytest.mark.requirement("R4.1", "R1.2", "R1.3")
def test_a_server_without_room_for_our_slots_is_named(installation: Installation) -> None:
    login = installation.replication
    free = database.room_to_replicate(login)["slots_free"]
    with installation.postgres.superuser.connect(application_name="test") as session:
        row = session.execute(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'synapse_backup%'"
        ).fetchone()
    assert row is not None
    ours = row[0]  # which count as free: another module's anchor, on the same server
    with (
        slots_of_others(installation, free - ours),
        pytest.raises(NotReady, match=f"has {ours} replication slots free") as told,
    ):
        database.room_to_replicate(login)
    assert "max_replication_slots" in told.value.mend
    with slots_of_others(installation, free - 4):
        assert database.room_to_replicate(login)["slots_free"] == 4


@pytest.mark.requirement("R4.1", "R1.2", "R1.3")
def test_a_server_that_lets_nobody_replicate_is_named(installation: Installation) -> None:
    login, rules = installation.replication, installation.postgres.data / "pg_hba.conf"
    before = rules.read_text()
    others = "\n".join(line for line in before.splitlines() if "replication" not in line)
    assert database.lets_replicate(login)["system"].isdigit()
    try:
        rules.write_text(f"{others}\n")
        reload(installation)
        for _ in polls(SOON, "the server to read its rules"):
            try:
                database.lets_replicate(login)
            except DatabaseUnreachable as told:
                assert "pg_hba.conf" in told.mend
                break
        assert database.reach(login)  # the database itself lets it in
    finally:
        rules.write_text(before)
        reload(installation)


def reload(installation: Installation) -> None:
    with installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
        session.execute("SELECT pg_reload_conf()")

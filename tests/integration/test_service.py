"""Service health: the application is started on what came back, and each thing that is wrong is named (R5.2)."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from include.pipeline.store import Bucket
from include.policy import Policy, load_policy
from include.policy.model import Service
from include.recovery.validation.recovered import Expected, Recovered
from include.recovery.validation.service import check_service_health
from include.recovery.validation.validation import Check, NotValid, Validation
from include.sandbox.application import SynapseService
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.standby import Standby
from include.sandbox.synapse import Synapse
from include.sources.postgres.login import DatabaseLogin

ROOT = Path(__file__).parents[2]
SMALL = 0.02
LONG = 30.0
STARTED = timedelta(seconds=4)
"""Within that the service is up on a busy machine; waited for in full by whoever is never healthy."""
EVERYTHING = ["write", "health endpoint", "login", "list of chats", "chat", "upload", "new message", "new upload"]


@dataclass(frozen=True)
class Place:
    """A seeded Synapse, as a restore would leave it."""

    synapse: Synapse
    recovered: Recovered
    scratch: Path

    @property
    def login(self) -> DatabaseLogin:
        assert self.recovered.database is not None
        return self.recovered.database

    @property
    def bucket(self) -> Bucket:
        assert self.recovered.bucket is not None
        return self.recovered.bucket

    @property
    def configuration(self) -> Path:
        return self.synapse.configuration

    @property
    def secrets(self) -> list[str]:
        """Whatever must be told nowhere."""
        files = [path for name in ("environment", "secrets") for path in (self.configuration / name).iterdir()]
        words = [word for path in files for word in path.read_text().replace("=", " ").split()]
        credentials = self.bucket.environment()["AWS_SECRET_ACCESS_KEY"]
        return [self.login.password, credentials, *(word for word in words if len(word) > 40)]

    def ask(self, statement: str) -> list[tuple[object, ...]]:
        with self.synapse.database.connect(application_name="test", autocommit=True) as session:
            done = session.execute(statement.encode())
            return done.fetchall() if done.description else []

    def first_key(self) -> str:
        """The key of the probe's attachment."""
        return str(self.ask("SELECT storage_key FROM attachments WHERE id = 1")[0][0])

    def check(self, service: Service | None = None, **changes: object) -> Validation:
        made = check_service_health(
            replace(self.recovered, **changes),  # type: ignore[arg-type]
            with_service(service) if service else load_policy(),
            scratch=self.scratch,
        )
        assert made.kind == "service_health"
        assert list(self.scratch.iterdir()) == [], "the application's directory stayed"
        told = json.dumps(made.to_json()) + "\n".join(made.lines())
        assert not [secret for secret in self.secrets if secret in told]
        return made


def with_service(service: Service) -> Policy:
    policy = load_policy()
    return policy.model_copy(update={"recovery": policy.recovery.model_copy(update={"service": service})})


def shipped(**changes: object) -> Service:
    return load_policy().recovery.service.model_copy(update=changes)


def quick(command: tuple[str, ...], *, started: float) -> Service:
    """Another command, whose answers are not waited for long."""
    return shipped(command=command, started_within=timedelta(seconds=started), answered_within=timedelta(seconds=0.5))


def only_failed(made: Validation) -> Check:
    assert len(made.failed) == 1, "\n".join(made.lines())
    with pytest.raises(NotValid, match="of service health failed"):
        made.require()
    return made.failed[0]


@pytest.fixture(scope="module", params=[18])
def place(request: pytest.FixtureRequest, sandbox_directory: Path, s3_primary: S3Server) -> Iterator[Place]:
    server: PostgresServer = request.getfixturevalue(f"postgres{request.param}")
    directory = sandbox_directory / f"service{request.param}"
    scratch = directory / "scratch"
    scratch.mkdir(parents=True)
    name = f"service-{request.param}"
    synapse = Synapse(
        server.superuser, s3_primary.client(), s3_primary.create_bucket(name), directory / "configuration", name=name
    )
    login = synapse.seed(scale=SMALL)
    bucket = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    expected = Expected(reaches=datetime.now(UTC))
    yield Place(
        synapse, Recovered(expected, database=login, bucket=bucket, configuration=synapse.configuration), scratch
    )
    synapse.destroy()


# It works


RECORDER = """
import json, os, sys
from pathlib import Path
facts = {"pid": os.getpid(), "argv": sys.orig_argv, "cwd": os.getcwd(), "names": sorted(os.environ)}
Path(sys.argv[1]).write_text(json.dumps(facts))
print("starting with", os.environ["PGPASSWORD"], flush=True)
os.execv(sys.executable, [sys.executable, "-m", "include.sandbox.service"])
"""


@pytest.mark.requirement("R5.2")
@pytest.mark.parametrize("place", [15, 18], indirect=True)
def test_the_application_starts_on_what_came_back_and_answers_everything(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Below a prefix; what it writes says so; it sees nothing of ours, no secret is told, and it is gone afterwards."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "a worker's own")
    key, facts = place.first_key(), tmp_path / "facts.json"
    place.bucket.put(f"back/{key}", place.bucket.read(key))
    made = place.check(shipped(command=("python", "-c", RECORDER, str(facts))), prefix="back/")
    made.require()
    assert [check.name for check in made.checks] == EVERYTHING
    assert "201 in " in made.checks[-1].found
    assert made.checks[-1].subject == "PUT /messages/${message}/uploads/probe.json"

    assert place.ask("SELECT body FROM messages ORDER BY id DESC LIMIT 1") == [("A probe of the backups wrote this.",)]
    assert place.ask("SELECT user_agent FROM sessions ORDER BY id DESC LIMIT 1") == [("synapse-backups probe",)]
    written, size = place.ask("SELECT storage_key, bytes FROM attachments ORDER BY id DESC LIMIT 1")[0]
    content = place.bucket.read(f"back/{written}")
    assert (len(content), json.loads(content)) == (size, {"note": "A probe of the backups wrote this."})

    told = json.loads(facts.read_text())
    assert not psutil.pid_exists(told["pid"])
    assert Path(told["cwd"]).parent == place.scratch
    assert not [secret for secret in place.secrets for word in told["argv"] if secret in word]
    assert {"PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "SYNAPSE_CONFIGURATION"} <= set(told["names"])
    assert not [name for name in told["names"] if name.startswith("AIRFLOW")]
    assert not [secret for secret in place.secrets[1:] if secret in caplog.text]


def test_of_a_part_nothing_is_started_and_its_database_takes_a_write(place: Place) -> None:
    for lacking in ({"whole": False}, {"bucket": None}, {"configuration": None}):
        assert [check.name for check in place.check(**lacking).checks] == ["write"]
    assert place.check(database=None).checks == ()


# It does not


@contextmanager
def statement(place: Place, harm: str, undo: str) -> Iterator[None]:
    place.ask(harm)
    try:
        yield
    finally:
        place.ask(undo)


@contextmanager
def renamed(place: Place, name: str) -> Iterator[None]:
    path = place.configuration / name
    path.rename(path.with_suffix(".gone"))
    try:
        yield
    finally:
        path.with_suffix(".gone").rename(path)


@contextmanager
def edited(place: Place, name: str, old: str, new: str) -> Iterator[None]:
    path = place.configuration / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    try:
        yield
    finally:
        path.write_text(text)


@contextmanager
def stored(place: Place, content: bytes | None) -> Iterator[None]:
    """The object of the probe's attachment, gone or with other content."""
    key = place.first_key()
    before = place.bucket.read(key)
    if content is None:
        place.bucket.client.delete_object(Bucket=place.bucket.name, Key=key)
    else:
        place.bucket.put(key, content)
    try:
        yield
    finally:
        place.bucket.put(key, before)


Harm = Callable[[Place], AbstractContextManager[None]]
SECRET = "SYNAPSE_SESSION_SECRET="
HARMS: dict[str, tuple[Harm, str, str]] = {
    # The first check that fails, and what it found.
    "no chats": (
        lambda place: statement(place, "ALTER TABLE chats RENAME TO c", "ALTER TABLE c RENAME TO chats"),
        "list of chats",
        '500 in .* ms; its log ends in: GET /chats: 500 The database: relation "chats" does not exist',
    ),
    "old schema": (
        lambda place: statement(
            place, "ALTER TABLE users RENAME COLUMN password TO p", "ALTER TABLE users RENAME COLUMN p TO password"
        ),
        "login",
        '500 in .* column "password" does not exist',
    ),
    "nobody to log in": (
        lambda place: statement(
            place,
            "UPDATE users SET email = 'x@y' WHERE id = 1",
            "UPDATE users SET email = 'probe@synapse.example' WHERE id = 1",
        ),
        "login",
        "401 in .* ms; its log ends in: POST /login: 401 The e-mail address or the password is wrong",
    ),
    "no messages": (
        lambda place: statement(
            place, "UPDATE messages SET chat_id = 2 WHERE chat_id = 1", "UPDATE messages SET chat_id = 1 WHERE id = 1"
        ),
        "chat",
        "200 in .* ms without messages.0.body, attachments.0.id",
    ),
    "missing object": (lambda place: stored(place, None), "upload", r"502 in .* The bucket: .*\(NoSuchKey\)"),
    "other object": (lambda place: stored(place, b"cut"), "upload", "502 in .* attachment 1 has 3 bytes, not [0-9]+"),
    "no password": (
        lambda place: renamed(place, "secrets/probe.key"),
        "login",
        "not asked: the configuration's secrets/probe.key cannot be read: No such file or directory$",
    ),
    "no secret file": (
        lambda place: renamed(place, "secrets/models.key"),
        "health endpoint",
        "503 in .* The configuration's secrets/models.key cannot be read: No such file or directory",
    ),
    "other secret": (
        lambda place: edited(place, "environment/production.env", SECRET, f"{SECRET}0"),
        "login",
        "401 in .* the password is wrong",
    ),
}


@pytest.mark.requirement("R5.2")
@pytest.mark.parametrize("name", HARMS)
def test_what_is_wrong_is_found_and_named(name: str, place: Place) -> None:
    harm, first, found = HARMS[name]
    with harm(place):
        made = place.check(shipped(started_within=STARTED) if first == "health endpoint" else None)
    failed = made.failed[0]
    assert failed.name == first, "\n".join(made.lines())
    assert re_found(found, failed)
    with pytest.raises(NotValid, match=f"{first} of (GET|POST) /"):
        made.require()
    assert all(check.passed for check in made.checks[: made.checks.index(failed)])
    if first == "login":  # nobody has a token, so that nothing else can be asked
        assert {check.found for check in made.failed[1:]} >= {"not asked: login gave no token"}
    if first == "health endpoint":
        assert failed is made.checks[-1]


def re_found(pattern: str, check: Check) -> bool:
    assert re.match(pattern, check.found), str(check)
    return True


@pytest.mark.requirement("R5.2")
def test_a_database_that_only_reads_is_found(place: Place) -> None:
    name = place.login.dbname
    setting = f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'
    with statement(place, setting, f'SET transaction_read_only = off; ALTER DATABASE "{name}" RESET ALL'):
        made = place.check()
    first, *others = made.failed
    assert (first.name, first.subject) == ("write", f"the database {name}")
    assert first.found == (
        "The recovered server takes no writes: cannot execute CREATE SCHEMA in a read-only transaction"
    )
    assert re_found("500 in .* cannot execute INSERT in a read-only transaction", others[0])
    assert others[0].name == "login"


@pytest.mark.requirement("R5.2")
def test_a_standby_is_found(place: Place, postgres18: PostgresServer, sandbox_directory: Path) -> None:
    with Standby(sandbox_directory / "service-standby", postgres18) as standby:
        made = place.check(database=standby.superuser.with_database(place.login.dbname))
    assert made.failed[0].found == "The recovered server is still in recovery"
    assert made.failed[1].name == "login"


def test_a_database_and_a_bucket_that_are_not_there_are_found(place: Place, s3_primary: S3Server) -> None:
    service = shipped(started_within=STARTED)
    made = place.check(service, database=place.login.with_database("nowhere"))
    assert [check.name for check in made.failed] == ["write", "health endpoint"]
    assert 'database "nowhere" does not exist' in made.failed[0].found
    assert 'database "nowhere" does not exist' in made.failed[1].found
    away = Bucket(s3_primary.session(), "nowhere", region="eu-west-1", endpoint_url=s3_primary.endpoint_url)
    failed = only_failed(place.check(service, bucket=away))
    assert re_found(r"503 in .* The bucket: .*\(NoSuchBucket\)", failed)


SERVER = """
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words): pass
    def do_GET(self):
        {health}
    def do_POST(self):
        {login}
    def answer(self, body, status=200, length=None):
        self.send_response(status)
        self.send_header("Content-Length", length or len(body))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(os.environ["SYNAPSE_PORT"])), Handler).serve_forever()
"""
OK = "self.answer(b'{}')"
TRICKLE = (
    "self.send_response(200)\n        self.end_headers()\n        while True: self.wfile.write(b' '); time.sleep(0.05)"
)
STRANGERS = {
    # What answers the health endpoint, what answers the login; the check that fails, and what it found.
    "hangs": ("time.sleep(60)", OK, "health endpoint", "no answer within [0-9.]+ s; its log is empty"),
    "hangs later": (OK, "time.sleep(60)", "login", "no answer within 0.5 s; its log is empty"),
    "trickles": (OK, TRICKLE, "login", "no answer within 0.5 s, but its beginning; its log "),
    "cuts": (OK, "self.answer(b'{\"token\": 1', length=99)", "login", "200, cut after 11 bytes, 88 before its end"),
    "is no HTTP": (OK, "self.wfile.write(b'hello')", "login", "no answer: BadStatusLine"),
    "has no token": (OK, 'self.answer(b\'{"token": ""}\')', "login", "200 in [0-9]+ ms without token; its log"),
    "is no JSON": (OK, "self.answer(b'<html>')", "login", "200 in [0-9]+ ms without token; its log is empty"),
    "redirects": (OK, "self.answer(b'', status=302)", "login", "302 in [0-9]+ ms; its log is empty"),
    "dies": (
        OK,
        "print('out of luck', file=sys.stderr, flush=True); os._exit(7)",
        "login",
        "no answer: .*; it ended with exit code 7; its log ends in: out of luck",
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_an_application_that_answers_wrongly_is_found_and_named(name: str, place: Place) -> None:
    health, login, first, found = STRANGERS[name]
    began = time.monotonic()
    command = ("python", "-c", SERVER.replace("{health}", health).replace("{login}", login))
    made = place.check(quick(command, started=4 if name == "hangs" else LONG))
    assert time.monotonic() - began < LONG
    assert made.failed[0].name == first, "\n".join(made.lines())
    assert re_found(found, made.failed[0])


TELL = "import os, pathlib; files = pathlib.Path(os.environ['SYNAPSE_CONFIGURATION']).glob('secrets/*'); "
ENDS = "no answer: nobody listens; it ended with exit code"
UNSTARTED = {
    # A command, and what is found of it.
    "exits": (("python", "-c", "raise SystemExit('no luck today.')"), f"{ENDS} 1; its log ends in: no luck today$"),
    "no module": (("python", "-m", "nowhere"), f"{ENDS} 1; its log ends in: .*No module named nowhere$"),
    "never answers": (("python", "-c", "import time; time.sleep(60)"), "no answer: nobody listens; its log is empty$"),
    "no program": (("no-such-program", "--start"), "not started: this machine has no program no-such-program$"),
    "leaves": (  # what a service manager wants, and nobody could end
        ("python", "-c", "import os, time; os._exit(0) if os.fork() else (os.setsid(), time.sleep(5))"),
        f"{ENDS} 0; its log is empty$",
    ),
    "tells credentials": (
        ("python", "-c", f"{TELL} print('a', os.environ['PGPASSWORD'], os.environ['AWS_SECRET_ACCESS_KEY'])"),
        f"{ENDS} 0; its log ends in: a … …$",
    ),
    "tells files": (
        ("python", "-c", f"{TELL} print(*(path.read_text().strip() for path in files))"),
        f"{ENDS} 0; its log ends in: … … … …$",
    ),
    "tells a row": (
        ("python", "-c", "print('duplicate key'); print('DETAIL:  Key (email)=(somebody@example.org) exists.')"),
        f"{ENDS} 0; its log ends in: duplicate key$",
    ),
}


@pytest.mark.requirement("R5.2")
@pytest.mark.parametrize("name", UNSTARTED)
def test_an_application_that_does_not_start_is_found_and_named(name: str, place: Place) -> None:
    command, found = UNSTARTED[name]
    failed = only_failed(place.check(quick(command, started=1 if name == "never answers" else LONG)))
    assert (failed.name, failed.subject) == ("health endpoint", "GET /health")
    assert failed.expected.startswith("200")
    assert re_found(found, failed)


# It never outlives us


CALLER = """
import json, os, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
import boto3
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.recovery.validation.recovered import Expected, Recovered
from include.recovery.validation.service import check_service_health
from include.sources.postgres.login import DatabaseLogin

given = json.loads(os.environ["GIVEN"])
policy = load_policy()
command = ("/bin/sh", "-c", "echo $$ > $HOME/pid; exec sleep 600")
service = policy.recovery.service.model_copy(update={"command": command})
policy = policy.model_copy(update={"recovery": policy.recovery.model_copy(update={"service": service})})
recovered = Recovered(
    Expected(datetime.now(UTC)),
    database=DatabaseLogin(**given["login"]),
    bucket=Bucket(boto3.Session(), given["bucket"], region="eu-west-1", endpoint_url=given["endpoint"]),
    configuration=Path(given["configuration"]),
)
check_service_health(recovered, policy, scratch=Path(given["scratch"]))
"""


def test_it_ends_with_a_caller_that_is_killed(place: Place, tmp_path: Path) -> None:
    given = {
        "login": asdict(place.login),
        "bucket": place.bucket.name,
        "endpoint": place.bucket.endpoint_url,
        "configuration": str(place.configuration),
        "scratch": str(tmp_path),
    }
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIVEN": json.dumps(given)}
    with subprocess.Popen(
        [sys.executable, "-c", CALLER], cwd=ROOT, env={**environment, **place.bucket.environment()}
    ) as caller:
        pid, deadline = tmp_path / "pid", time.monotonic() + LONG
        while not (pid.exists() and pid.read_text().endswith("\n")):
            assert time.monotonic() < deadline
            assert caller.poll() is None
        child = psutil.Process(int(pid.read_text()))
        caller.send_signal(signal.SIGKILL)
    child.wait(timeout=LONG)


# The sandbox's live application


def test_synapse_lives_and_says_what_it_lacks(place: Place, sandbox_directory: Path) -> None:
    lost = statement(place, "ALTER TABLE users RENAME TO u", "ALTER TABLE u RENAME TO users")
    with SynapseService(
        sandbox_directory / "service-live",
        database=place.login,
        bucket=place.bucket,
        configuration=place.configuration,
    ) as live:
        status, said = answer(f"{live.url}/health")
        assert (status, said["status"], said["environment"]) == (200, "ok", "production")
        assert said["limits"]["upload_megabytes"] == 24
        with lost:
            assert answer(f"{live.url}/health") == (503, {"error": 'The database: relation "users" does not exist'})
        with renamed(place, "environment/production.env"):
            assert answer(f"{live.url}/health") == (
                503,
                {"error": "The configuration's environment/production.env cannot be read: No such file or directory."},
            )
        assert answer(f"{live.url}/chats", token="of my own making")[0] == 401
        assert answer(f"{live.url}/chats")[0] == 401
        place.check().require()  # beside it
    assert not live.running


def answer(url: str, *, token: str = "") -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request) as answered:
            return answered.status, json.load(answered)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)

"""Service health (R5.2): the application, started on what came back, answers as it answered before.

It runs as a child of ours on a free port of this machine, with the restored database, bucket and configuration and
nothing else of ours, is asked what the policy lists, and is gone afterwards, however we end.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg

from include.errors import BackupError
from include.pipeline.leash import LeashedProcess, leashed
from include.pipeline.store import Bucket
from include.policy import Policy
from include.policy.model import Service, ServiceRequest
from include.recovery.validation.recovered import Recovered
from include.recovery.validation.validation import Check, Validation
from include.sources.postgres.login import DatabaseLogin

if TYPE_CHECKING:
    from include.recovery.selection import Session

PYTHON = "python"
"""In a policy's command: the interpreter that this runs in, which finds the project's own modules."""
AGENT = "synapse-backups probe"
HOST = "127.0.0.1"
PROJECT = Path(__file__).parents[3]
_APPLICATION = "synapse_backups"
_LOOK_SECONDS = 0.1
_HEARD_WITHIN = 0.5
"""Seconds that a line of its log may take to us."""
_LARGEST_JSON = 8 << 20
_CHUNK_BYTES = 1 << 20
_TOLD_CHARACTERS = 300
_SHORTEST_SECRET = 8
"""Shorter words of the configuration's files are left in a log: `debug`, `true`."""
_NOT_ASKED, _NO_ANSWER = "not asked", "no answer"
_APPENDIX = re.compile(r"\s*(DETAIL|CONTEXT|STATEMENT|LINE \d+|HINT|QUERY)\b")
"""Lines in which PostgreSQL's errors repeat rows and statements."""


def check_service_health(recovered: Recovered, policy: Policy, *, scratch: Path) -> Validation:
    """Start the application on what came back, and ask it what `recovery.service` of the policy lists (R5.2).

    The database takes a write; then each request is a check, until nothing more can be asked. What fails is named with
    the last line of the application's log, without secrets. The application works in a directory below `scratch`.

    What it writes stays, and says that a probe wrote it. Of a part nothing can be started: its database takes a write,
    and that is all.
    """
    began = datetime.now(UTC)
    database, bucket, configuration = recovered.database, recovered.bucket, recovered.configuration
    if not recovered.whole or database is None or bucket is None or configuration is None:
        part = (_takes_writes(database),) if database else ()
        return Validation("service_health", began, datetime.now(UTC), part)
    service = policy.recovery.service
    secrets = _Secrets(policy, database, bucket, configuration)
    checks = [_takes_writes(database)]
    port = _free_port()
    environment = service_environment(
        database=database, bucket=bucket, prefix=recovered.prefix, configuration=configuration, port=port
    )
    if service.command[0] == PYTHON:
        environment["PYTHONPATH"] = str(PROJECT)
    first, *_ = service.requests.items()
    argv = _argv(service)
    if argv is None:
        found = f"not started: this machine has no program {service.command[0]}"
        checks.append(Check(first[0], first[1].ask, _expected(first[1]), found, passed=False))
    else:
        with (
            tempfile.TemporaryDirectory(prefix="service-", dir=scratch) as directory,
            leashed(argv, environment=environment, directory=Path(directory)) as child,
        ):
            checks += _Probe(service, child, port, configuration, secrets).checks()
    return Validation("service_health", began, datetime.now(UTC), tuple(checks))


def service_environment(
    *, database: DatabaseLogin, bucket: Bucket, prefix: str, configuration: Path, port: int
) -> dict[str, str]:
    """How an application is told where everything is: the contract in `include/sandbox/service.py`."""
    return {
        **database.environment("synapse"),
        **bucket.environment(),
        "SYNAPSE_BUCKET": bucket.name,
        "SYNAPSE_PREFIX": prefix,
        "SYNAPSE_CONFIGURATION": str(configuration.absolute()),
        "SYNAPSE_HOST": HOST,
        "SYNAPSE_PORT": str(port),
    }


def require_service(session: Session) -> None:
    """The recovered server is no standby, and takes a write, of which nothing stays; raises `BackupError`."""
    try:
        (in_recovery,) = session.execute("SELECT pg_is_in_recovery()").fetchone() or (True,)
        if in_recovery:
            raise BackupError("The recovered server is still in recovery.", mend="Do not use it; recover again.")
        with session.transaction(force_rollback=True):
            session.execute("CREATE SCHEMA synapse_backups_probe")
            session.execute("CREATE TABLE synapse_backups_probe.probe AS SELECT 1 AS n")
    except psycopg.Error as error:
        raise BackupError(
            f"The recovered server takes no writes: {error.diag.message_primary or type(error).__name__}.",
            mend="Do not use it; recover again.",
        ) from None


def _takes_writes(database: DatabaseLogin) -> Check:
    found = "takes a write"
    try:
        with database.connect(application_name=_APPLICATION, autocommit=True) as session:
            require_service(session)
    except BackupError as error:
        found = error.what.rstrip(".")
    return Check("write", f"the database {database.dbname}", "takes a write", found, passed=found == "takes a write")


class _Secrets:
    """What no log line may tell: credentials, and everything in the secret files of the configuration."""

    def __init__(self, policy: Policy, database: DatabaseLogin, bucket: Bucket, configuration: Path) -> None:
        store = bucket.environment()
        self._words = {
            database.password,
            *(store.get(f"AWS_{name}", "") for name in ("SECRET_ACCESS_KEY", "SESSION_TOKEN")),
        }
        for component in policy.components_of("configuration"):
            for path in (path for pattern in component.files for path in configuration.glob(pattern)):
                with contextlib.suppress(OSError):  # what we cannot read, the application can not either
                    self.add(*re.split(r"[\s=]+", path.read_text(encoding="utf-8", errors="replace")))

    def add(self, *words: str, shortest: int = _SHORTEST_SECRET) -> None:
        """Hide these as well, unless they are shorter than that."""
        self._words.update(word for word in words if len(word) >= shortest)

    def hidden(self, text: str) -> str:
        """The text without them."""
        for word in sorted(filter(None, self._words), key=len, reverse=True):
            text = text.replace(word, "…")
        return text


@dataclass(frozen=True)
class _Answer:
    status: int
    milliseconds: int
    body: bytes
    """Its beginning."""


class _NoAnswer(Exception):
    """Why there is none."""


class _Probe:
    """Asks a started application, and looks at its answers."""

    def __init__(
        self, service: Service, child: LeashedProcess, port: int, configuration: Path, secrets: _Secrets
    ) -> None:
        self._service, self._child, self._port, self._secrets = service, child, port, secrets
        self._values: dict[str, str] = {}
        self._lacking: dict[str, str] = {}
        for name, path in service.files.items():
            try:
                self._values[name] = (configuration / path).read_text(encoding="utf-8").strip()
                secrets.add(self._values[name], shortest=1)
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is no text"
                self._lacking[name] = f"the configuration's {path} cannot be read: {why}"

    def checks(self) -> Iterator[Check]:
        """One after the other; when it does not start, nothing more is asked."""
        (first, request), *others = self._service.requests.items()
        started = self._started(first, request)
        yield started
        if started.passed:
            for name, each in others:
                yield self._check(name, each)

    def _started(self, name: str, request: ServiceRequest) -> Check:
        deadline = time.monotonic() + self._service.started_within.total_seconds()
        while True:
            # The application is waited for, and so is no single answer of it.
            left = timedelta(seconds=max(_LOOK_SECONDS, deadline - time.monotonic()))
            passed, found = self._asked(name, request, within=min(left, self._service.answered_within))
            if passed or self._child.exit_code is not None or time.monotonic() > deadline:
                break
            self._child.wait_for_word(_LOOK_SECONDS)
        if self._child.exit_code is not None:
            self._hear("", answered=False)
        within = f" within {self._service.started_within.total_seconds():g} s of its start"
        found += "" if passed else self._last_words()
        return Check(name, request.ask, _expected(request) + within, found, passed=passed)

    def _check(self, name: str, request: ServiceRequest) -> Check:
        before = self._child.said
        passed, found = self._asked(name, request, within=self._service.answered_within)
        if not passed and not found.startswith(_NOT_ASKED):
            self._hear(before, answered=not found.startswith(_NO_ANSWER))
            found += self._last_words()
        return Check(name, request.ask, _expected(request), found, passed=passed)

    def _asked(self, name: str, request: ServiceRequest, *, within: timedelta) -> tuple[bool, str]:
        """Whether the answer is as it should be, and what it was; what is to be kept of it is."""
        try:
            self._require_values(request)
            answer = self._answer(request, within.total_seconds())
        except _NoAnswer as none:
            passed, found = False, str(none)
        else:
            lacks, kept = _places(request, answer) if answer.status == request.status else ([], {})
            passed = answer.status == request.status and not lacks
            found = f"{answer.status} in {answer.milliseconds} ms" + (f" without {', '.join(lacks)}" if lacks else "")
            if self._child.exit_code is not None:  # its port was taken before it came to it
                passed, found = False, f"{found}, by somebody else"
        if passed:
            self._values |= kept
            self._secrets.add(*kept.values())
        else:
            self._lacking |= {key: f"{name} gave no {key}" for key in request.keep}
        return passed, found

    def _require_values(self, request: ServiceRequest) -> None:
        for _, name in request.names():
            if name is not None and name not in self._values:
                raise _NoAnswer(f"{_NOT_ASKED}: {self._lacking[name]}")

    def _answer(self, request: ServiceRequest, seconds: float) -> _Answer:
        """Ask, and read all of the answer, which takes `seconds` at most, however it trickles; raises `_NoAnswer`."""
        path = Template(request.path).substitute({name: quote(value, safe="") for name, value in self._values.items()})
        headers = {"User-Agent": AGENT, "Connection": "close", "Accept": "*/*"}
        body = None
        if request.bearer is not None:
            headers["Authorization"] = f"Bearer {Template(request.bearer).substitute(self._values)}"
        if request.body is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(self._filled(request.body))
        began = time.monotonic()
        connection = http.client.HTTPConnection(HOST, self._port, timeout=seconds)
        over = threading.Event()
        watch = None
        try:
            connection.connect()
            watch = threading.Timer(seconds, _cut, (connection.sock, over))
            watch.start()
            connection.request(request.method, path, body=body, headers=headers)
            answer = connection.getresponse()
            start = b""
            length = 0
            while chunk := answer.read(_CHUNK_BYTES):
                start += chunk[: _LARGEST_JSON - len(start)]
                length += len(chunk)
            if answer.length:
                raise _NoAnswer(f"{answer.status}, cut after {length} bytes, {answer.length} before its end")
        except (OSError, http.client.HTTPException) as error:
            if over.is_set() or isinstance(error, TimeoutError):
                raise _NoAnswer(f"{_NO_ANSWER} within {seconds:g} s") from None
            raise _NoAnswer(f"{_NO_ANSWER}: {_words(error)}") from None
        finally:
            if watch is not None:
                watch.cancel()
            connection.close()
        if over.is_set():
            raise _NoAnswer(f"{_NO_ANSWER} within {seconds:g} s, but its beginning")
        return _Answer(answer.status, round((time.monotonic() - began) * 1000), start)

    def _filled(self, value: Any) -> Any:
        """A JSON value with the names in its texts filled in."""
        if isinstance(value, str):
            return Template(value).substitute(self._values)
        if isinstance(value, dict):
            return {key: self._filled(each) for key, each in value.items()}
        return [self._filled(each) for each in value] if isinstance(value, list) else value

    def _hear(self, before: str, *, answered: bool) -> None:
        """Wait a moment for what the application says of its answer; without one, for its end."""
        deadline = time.monotonic() + _HEARD_WITHIN
        while not self._child.ended and not (answered and self._child.said != before):
            if (left := deadline - time.monotonic()) <= 0:
                return
            self._child.wait_for_word(left)

    def _last_words(self) -> str:
        """What the application says about it, as the end of a sentence: that it ended, its last line."""
        said = (line for line in self._child.said.splitlines() if not _APPENDIX.match(line))
        lines = [line for line in said if any(map(str.isalnum, line))]  # no rulers
        ended = f"; it ended with exit code {code}" if (code := self._child.exit_code) is not None else ""
        last = self._secrets.hidden(lines[-1].strip())[:_TOLD_CHARACTERS].rstrip(".") if lines else ""
        return ended + (f"; its log ends in: {last}" if last else "; its log is empty")


def _cut(open_socket: socket.socket, over: threading.Event) -> None:
    over.set()
    with contextlib.suppress(OSError):  # it was closed meanwhile
        open_socket.shutdown(socket.SHUT_RDWR)


def _argv(service: Service) -> list[str] | None:
    """The command with its program's path; None when there is no such program."""
    name, *arguments = service.command
    program = sys.executable if name == PYTHON else shutil.which(name)
    return [str(Path(program).absolute()), *arguments] if program else None


def _expected(request: ServiceRequest) -> str:
    wanted = [*request.holds, *request.keep.values()]
    return f"{request.status} with {', '.join(wanted)}" if wanted else str(request.status)


def _places(request: ServiceRequest, answer: _Answer) -> tuple[list[str], dict[str, str]]:
    """Which places the answer lacks, and the values that are kept of it."""
    if not (request.holds or request.keep):
        return [], {}
    try:
        document = json.loads(answer.body)
    except ValueError:
        document = None
    there = {place: _at(document, place) for place in (*request.holds, *request.keep.values())}
    return [place for place, value in there.items() if value in (None, "", [], {})], {
        name: str(there[place]) for name, place in request.keep.items()
    }


def _at(document: Any, place: str) -> Any:
    """What is at a place, as `messages.0.id`; None when there is no such place."""
    for step in place.split("."):
        if isinstance(document, dict):
            document = document.get(step)
        elif isinstance(document, list) and step.isdecimal() and int(step) < len(document):
            document = document[int(step)]
        else:
            return None
    return document


def _words(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port

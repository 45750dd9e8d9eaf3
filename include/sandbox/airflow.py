"""A real Airflow on 127.0.0.1: the project's DAGs under the scheduler, the DAG processor and the API server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

import httpx
import psutil
import psycopg
from psycopg import sql

from include.errors import BackupError
from include.sandbox.server import KILLED_WITHIN, LocalServer
from include.sources.postgres.login import DatabaseLogin

PROJECT = Path(__file__).parents[2]
POLL_SECONDS = 0.2
MIGRATED_WITHIN = 120.0
HEALTHY_WITHIN = 120.0
REQUEST_SECONDS = 30.0
ADMIN, APPROVER = "operator", "approver"
ENDED = frozenset({"success", "failed"})
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")
"""What a service takes from our environment: tools are found by PATH, the rest is set here."""


class AirflowPart(LocalServer):
    """One of Airflow's processes. Whether it is ready, the API server's health report tells for all of them."""

    arguments: ClassVar[tuple[str, ...]]
    stop_signal = signal.SIGTERM
    orphan_signal = signal.SIGTERM
    stopped_within = 15.0

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        super().__init__(directory)
        self._variables = environment

    def stop(self) -> None:
        """Ask it to stop, wait, and kill what is left: a task outlives the scheduler that started it."""
        session = self.pid if self.running else None
        try:
            super().stop()
        finally:
            left = [process for process in psutil.process_iter() if session and _session(process) == session]
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=KILLED_WITHIN)

    def _prepare(self) -> None:
        pass

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "airflow", *self.arguments]

    def _environment(self) -> dict[str, str]:
        return dict(self._variables)

    def _answers(self) -> bool:
        return True


class ApiServer(AirflowPart):
    """The user interface, the REST API, and the API that tasks report to."""

    name = "Airflow's API server"
    stopped_within = 3.0  # it keeps nothing, and waits for connections that nobody uses any more
    arguments = ("api-server",)

    def _command(self) -> list[str]:
        return [*super()._command(), "--host", "127.0.0.1", "--port", str(self.port)]


class Scheduler(AirflowPart):
    """The scheduler, whose LocalExecutor runs the tasks."""

    name = "Airflow's scheduler"
    arguments = ("scheduler", "--skip-serve-logs")


class DagProcessor(AirflowPart):
    """Reads the DAG files."""

    name = "Airflow's DAG processor"
    arguments = ("dag-processor",)


class Triggerer(AirflowPart):
    """Runs what deferred tasks and deadlines wait for."""

    name = "Airflow's triggerer"
    arguments = ("triggerer", "--skip-serve-logs")


class AirflowServices:
    """Airflow's services over the project's `dags/` and `plugins/`, as processes of their own, with two admins.

    `connections` are by id, as the JSON that `AIRFLOW_CONN_*` takes; `variables` are further environment variables, as
    `BACKUP_KEYRING`. Metadata lie in the PostgreSQL database that `metadata` names, made when it is missing: over
    SQLite everything takes a third longer. Entering returns when all parts are healthy; leaving stops each by its pid.
    Raises `BackupError` naming the part that ended or is late, and its log.
    """

    def __init__(
        self,
        home: Path,
        *,
        metadata: DatabaseLogin,
        connections: Mapping[str, Mapping[str, object]] | None = None,
        variables: Mapping[str, str] | None = None,
        dags: Path = PROJECT / "dags",
        triggerer: bool = False,
    ) -> None:
        self.home = home.absolute()
        self.passwords = {user: secrets.token_urlsafe(12) for user in (ADMIN, APPROVER)}
        """Made anew for every Airflow."""
        self._metadata = metadata
        kinds = (Scheduler, DagProcessor, Triggerer) if triggerer else (Scheduler, DagProcessor)
        self._variables = {
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
            **_settings(self.home, dags, metadata),
            **{f"AIRFLOW_CONN_{name.upper()}": json.dumps(value) for name, value in (connections or {}).items()},
            **(variables or {}),
        }
        self._api = ApiServer(self.home / "api-server", self._variables)
        self._others = [kind(self.home / kind.arguments[0], self._variables) for kind in kinds]
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _passwords(self.home).write_text(json.dumps(self.passwords))
        with contextlib.ExitStack() as running:
            self._make_database()
            running.enter_context(self._api)  # first: the others are told its port
            self._variables["AIRFLOW__API__BASE_URL"] = self.url
            self._variables["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = f"{self.url}/execution/"
            for part in self._others:
                running.enter_context(part)
            self._wait_until_healthy()
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def url(self) -> str:
        """Where the user interface is."""
        return f"http://127.0.0.1:{self._api.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to be part of this Airflow, as the `airflow` command line."""
        return dict(self._variables)

    @property
    def password(self) -> str:
        """`ADMIN`'s."""
        return self.passwords[ADMIN]

    def client(self, user: str = ADMIN) -> AirflowClient:
        """A client of the REST API, logged in."""
        return AirflowClient(self.url, user, self.passwords[user])

    def airflow(self, *arguments: str) -> str:
        """Run the `airflow` command line; returns what it says, or raises `BackupError` with it."""
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            cwd=self.home,
            env=self._variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=MIGRATED_WITHIN,
            check=False,
        )
        if done.returncode:
            raise BackupError(f"airflow {' '.join(arguments)}: {done.stdout}", mend="Mend what it says.")
        return done.stdout

    def wait_until_asked(self, dag_id: str, run_id: str, task_id: str = "approve", *, within: float) -> None:
        """Wait until a task asks a person, and the scheduler has noted that its process is over.

        Whoever answers within that second is quicker than any person: the scheduler then takes the answered task for
        one that died.
        """
        self.client().wait_for_task(dag_id, run_id, task_id, {"awaiting_input"}, within=within)
        noted = re.compile(rf"Received executor event with state success.*{task_id}.*{re.escape(run_id)}")
        [scheduler] = [part for part in self._others if isinstance(part, Scheduler)]
        for _ in polls(within, f"the scheduler to note that {task_id} of {run_id} waits"):
            if noted.search(scheduler.log.read_text(errors="replace")):
                return

    def pids(self) -> dict[str, int]:
        """The process id of each part, by its command's name. Raises `BackupError` when one does not run."""
        return {part.arguments[0]: part.pid for part in (self._api, *self._others)}

    def _make_database(self) -> None:
        name = sql.Identifier(self._metadata.dbname)
        server = self._metadata.with_database("postgres")
        with (
            contextlib.suppress(psycopg.errors.DuplicateDatabase),
            server.connect(application_name="sandbox", autocommit=True) as connection,
        ):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        with (self.home / "migrate.log").open("wb") as log:
            done = subprocess.run(
                [sys.executable, "-m", "airflow", "db", "migrate"],
                cwd=self.home,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=MIGRATED_WITHIN,
                check=False,
            )
        if done.returncode:
            raise BackupError("Airflow's database could not be made.", mend=f"See {log.name}.")

    def _wait_until_healthy(self) -> None:
        expected = {"metadatabase", *(part.arguments[0].replace("-", "_") for part in self._others)}
        for _ in polls(HEALTHY_WITHIN, f"Airflow's health, logs in {self.home}"):
            for part in (self._api, *self._others):
                if not part.running:
                    raise BackupError(f"{part.name} ended while it started.", mend=f"See {part.log}.")
            if expected <= self._healthy():
                return

    def _healthy(self) -> set[str]:
        try:
            answer = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=REQUEST_SECONDS, trust_env=False)
            health = answer.json()
        except (httpx.TransportError, ValueError):
            return set()
        return {name for name, report in health.items() if report and report.get("status") == "healthy"}


class AirflowClient:
    """The few requests of Airflow's REST API (v2) that driving a run needs.

    Whatever waits, waits at most `within` seconds and raises `TimeoutError`; what the API refuses is a `BackupError`.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=REQUEST_SECONDS, trust_env=False)
        login = _accepted(self._http.post("/auth/token", json={"username": user, "password": password}))
        self._http.headers["Authorization"] = f"Bearer {login['access_token']}"

    def unpause(self, dag_id: str, *, within: float = 60.0) -> None:
        """Let a DAG run, once its file has been read. Its latest slot is then scheduled at once.

        Raises `BackupError` when Airflow cannot read a file.
        """
        for _ in polls(within, f"the DAG {dag_id}"):
            answer = self._http.patch(_path("dags", dag_id), json={"is_paused": False})
            if answer.status_code != httpx.codes.NOT_FOUND:
                _accepted(answer)
                return
            if errors := self.import_errors():
                raise BackupError(f"DAG files cannot be read: {errors}", mend="Mend them.")

    def pause(self, dag_id: str) -> None:
        """Begin no more runs of a DAG; those that run go on."""
        _accepted(self._http.patch(_path("dags", dag_id), json={"is_paused": True}))

    def trigger(
        self,
        dag_id: str,
        *,
        conf: Mapping[str, object] | None = None,
        logical_date: datetime | None = None,
        run_id: str | None = None,
    ) -> str:
        """Start a manual run; returns its id."""
        body = {
            "conf": dict(conf or {}),
            "logical_date": logical_date and logical_date.isoformat(),
            "dag_run_id": run_id,
        }
        answer = self._http.post(_path("dags", dag_id, "dagRuns"), json=body)
        return str(_accepted(answer)["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """The runs of a DAG, oldest first."""
        answer = self._http.get(_path("dags", dag_id, "dagRuns"), params={"order_by": "run_after", "limit": 100})
        return list(_accepted(answer)["dag_runs"])

    def wait_for_run(self, dag_id: str, run_type: str, *, within: float) -> str:
        """The id of the first run of a type (`scheduled`, `backfill`, `manual`), as soon as there is one."""
        for _ in polls(within, f"a {run_type} run of {dag_id}"):
            for run in self.runs(dag_id):
                if run["run_type"] == run_type:
                    return str(run["dag_run_id"])
        raise AssertionError  # `polls` raises before it ends

    def wait(self, dag_id: str, run_id: str, *, within: float) -> str:
        """The state in which a run ended: `success` or `failed`."""
        for _ in polls(within, f"the end of {dag_id}'s run {run_id}"):
            state = str(_accepted(self._http.get(_path("dags", dag_id, "dagRuns", run_id)))["state"])
            if state in ENDED:
                return state
        raise AssertionError

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """The task instances of a run, by task id: `state`, `try_number`, `pid`, `duration` …"""
        answer = self._http.get(_path("dags", dag_id, "dagRuns", run_id, "taskInstances"), params={"limit": 100})
        return {str(each["task_id"]): each for each in _accepted(answer)["task_instances"]}

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """The state of each task of a run."""
        return {name: task["state"] for name, task in self.tasks(dag_id, run_id).items()}

    def wait_for_task(
        self, dag_id: str, run_id: str, task_id: str, states: Iterable[str], *, within: float
    ) -> dict[str, Any]:
        """The task instance, as soon as it is in one of the states."""
        wanted = set(states)
        for _ in polls(within, f"{task_id} of {run_id} to be {' or '.join(sorted(wanted))}"):
            task = self.tasks(dag_id, run_id).get(task_id)
            if task and task["state"] in wanted:
                return task
        raise AssertionError

    def clear(self, dag_id: str, run_id: str, *, only_failed: bool = False) -> None:
        """Run the tasks of an ended run again, all of them or those that failed."""
        body = {"dry_run": False, "only_failed": only_failed}
        _accepted(self._http.post(_path("dags", dag_id, "dagRuns", run_id, "clear"), json=body))

    def set_task(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task of a run as `success`, `failed` or `skipped` by hand."""
        path = _path("dags", dag_id, "dagRuns", run_id, "taskInstances", task_id)
        _accepted(self._http.patch(path, json={"new_state": state}))

    def delete(self, dag_id: str, run_id: str) -> None:
        """Delete a run."""
        answer = self._http.delete(_path("dags", dag_id, "dagRuns", run_id))
        if answer.is_error:
            _accepted(answer)

    def backfill(
        self, dag_id: str, begin: datetime, end: datetime, *, reprocess: str = "none", at_once: int = 4
    ) -> int:
        """Make the runs whose intervals begin within `[begin, end]`; returns the backfill's id."""
        body = {
            "dag_id": dag_id,
            "from_date": begin.isoformat(),
            "to_date": end.isoformat(),
            "reprocess_behavior": reprocess,
            "max_active_runs": at_once,
            "run_backwards": False,
            "dag_run_conf": {},
        }
        return int(_accepted(self._http.post("/api/v2/backfills", json=body))["id"])

    def wait_for_backfill(self, backfill: int, *, within: float) -> None:
        """Wait until all of its runs have ended."""
        for _ in polls(within, f"backfill {backfill}"):
            if _accepted(self._http.get(f"/api/v2/backfills/{backfill}"))["completed_at"]:
                return

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str) -> None:
        """Answer what a task asks a person."""
        path = _path("dags", dag_id, "dagRuns", run_id, "taskInstances", task_id, "-1", "hitlDetails")
        _accepted(self._http.patch(path, json={"chosen_options": [option], "params_input": {}}))

    def log(self, dag_id: str, run_id: str, task_id: str, *, try_number: int = 1) -> str:
        """What a task logged in one try, a line an event, with its fields."""
        path = _path("dags", dag_id, "dagRuns", run_id, "taskInstances", task_id, "logs", str(try_number))
        answer = self._http.get(path, params={"full_content": True}, headers={"Accept": "application/json"})
        content = _accepted(answer)["content"]
        return "\n".join(json.dumps(each) if isinstance(each, dict) else str(each) for each in content)

    def xcom(self, dag_id: str, run_id: str, task_id: str, *, key: str = "return_value") -> Any:
        """What a task left for the others."""
        path = _path("dags", dag_id, "dagRuns", run_id, "taskInstances", task_id, "xcomEntries", key)
        return _accepted(self._http.get(path, params={"deserialize": True}))["value"]

    def links(self, dag_id: str, run_id: str, task_id: str) -> dict[str, str | None]:
        """The extra links of a task, by what their buttons say."""
        path = _path("dags", dag_id, "dagRuns", run_id, "taskInstances", task_id, "links")
        return dict(_accepted(self._http.get(path))["extra_links"])

    def page(self, url: str) -> str:
        """The text of one of Airflow's pages, as a logged-in browser gets it."""
        return self._http.get(url).raise_for_status().text

    def import_errors(self) -> dict[str, str]:
        """The DAG files that Airflow could not read, and why."""
        answer = self._http.get("/api/v2/importErrors")
        return {str(each["filename"]): str(each["stack_trace"]) for each in _accepted(answer)["import_errors"]}


def polls(within: float, what: str) -> Iterator[float]:
    """Yield the seconds waited, again and again, a moment apart; raises `TimeoutError` when `within` is over."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < within:
        yield waited
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"Waited {within:.0f} s for {what}.")


def _settings(home: Path, dags: Path, metadata: DatabaseLogin) -> dict[str, str]:
    """Airflow's settings, each named for its section (https://airflow.apache.org/docs, *Configuration Reference*)."""
    user, password = quote(metadata.user, safe=""), quote(metadata.password, safe="")
    database = f"postgresql+psycopg2://{user}:{password}@{metadata.host}:{metadata.port}/{metadata.dbname}"
    manager = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
    return {
        "AIRFLOW_HOME": str(home),
        "PYTHONPATH": str(PROJECT),
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": "127.0.0.1",  # tasks report to the API server over HTTP
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__AUTH_MANAGER": manager,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:admin,{APPROVER}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(_passwords(home)),
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(32),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
        "AIRFLOW__API__EXPOSE_CONFIG": "False",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",  # a task starts 0.7 s sooner
        "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "2",  # orphans wait for an API server that is gone
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",  # the files do not change here
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
    }


def _passwords(home: Path) -> Path:
    """The file in which Airflow's simple auth manager keeps passwords."""
    return home / "passwords.json"


def _session(process: psutil.Process) -> int | None:
    """The session that a process is in: each part leads one of its own, which whatever it starts stays in."""
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _path(*parts: str) -> str:
    return "/api/v2/" + "/".join(quote(part, safe="~") for part in parts)


def _accepted(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        request = answer.request
        raise BackupError(
            f"Airflow answers {answer.status_code} to {request.method} {request.url.path}: {answer.text}",
            mend="See the API server's log.",
        )
    content: dict[str, Any] = answer.json()
    return content

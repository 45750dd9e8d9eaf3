"""A run fails when work or teardown fails, and only then: the pattern that every backup DAG relies on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.sandbox.mailbox import Mailbox

ROOT = Path(__file__).parents[2]
# One process for all cases: Airflow's first `dag.test` in a process takes ten seconds, the next ones little.
CASES = """
from datetime import datetime, UTC
from airflow.sdk import DAG
from include.errors import BackupError
from include.operators.connections import ConnectionUnusable
from include.monitoring.messages import Notification
from include.operators.report import Delivered, Report, Watcher
from include.operators.step import BackupStep

class Step(BackupStep):
    def __init__(self, *, error=None, **kwargs):
        super().__init__(backup_type="full", **{"retries": 0, **kwargs})
        self.error = error
    def step(self, run):
        if self.error:
            raise self.error
        return {"backup": str(run.backup)}

def case(name, setup=None, work=None, teardown=None, **more):
    with DAG(name, schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
        first = Step(task_id="setup", error=setup)
        middle = Step(task_id="work", error=work, **more)
        last = Step(task_id="teardown", error=teardown).as_teardown(setups=first, on_failure_fail_dagrun=False)
        first >> middle >> last
        [middle, last] >> Watcher(task_id="watcher")
    return dag

class Tell(Report):
    def __init__(self, *, error=None, **kwargs):
        super().__init__(backup_type="full", **kwargs)
        self.error = error
    def notification(self, run, context):
        if self.error:
            raise self.error
        return Notification("status_update", str(run.backup), self._about_the_run(run, context))

def telling(name, **more):
    with DAG(name, schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
        work, tell = Step(task_id="work"), Tell(task_id="tell", **more)
        work >> tell >> Delivered(task_id="delivered", reports=["tell"]).as_teardown(on_failure_fail_dagrun=False)
        work >> Watcher(task_id="watcher")
    return dag

failure = BackupError("It broke.", mend="Mend it.")
told = telling("told", connection="mailbox")
unreachable = telling("unreachable")
unforeseen = telling("unforeseen", error=KeyError("size"))
well = case("well")
setup = case("setup", setup=failure)
work = case("work", work=failure)
teardown = case("teardown", teardown=failure)
hopeless = case("hopeless", work=ConnectionUnusable("No connection.", mend="Add it."), retries=2)
"""
RUN = """
import json, cases
def run(dag):
    ended = dag.test()
    tasks = ended.get_task_instances()
    return {
        "run": str(ended.state),
        "tasks": {each.task_id: str(each.state) for each in tasks},
        "tries": {each.task_id: each.try_number for each in tasks},
    }
names = ("told", "unreachable", "unforeseen", "well", "setup", "work", "teardown", "hopeless")
every = [getattr(cases, name) for name in names]
print("TOLD " + json.dumps({dag.dag_id: run(dag) for dag in every}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, dict[str, object]]]]:
    home = tmp_path_factory.mktemp("airflow")
    (home / "dags").mkdir()
    (home / "dags" / "cases.py").write_text(CASES)
    with Mailbox(home / "mails") as mailbox:
        yield run_cases(home, mailbox)
        assert ["is made" in mail.subject for mail in mailbox.mails] == [True]


def run_cases(home: Path, mailbox: Mailbox) -> dict[str, dict[str, dict[str, object]]]:
    environment = {
        **os.environ,
        "AIRFLOW_CONN_MAILBOX": json.dumps(mailbox.connection()),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{home / 'dags'}",
    }
    for command in (["-m", "airflow", "db", "migrate"], ["-c", RUN]):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
    [line] = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    return dict(json.loads(line.removeprefix("TOLD ")))


def test_a_run_that_went_well_is_green(told: dict[str, dict[str, dict[str, object]]]) -> None:
    assert told["well"]["run"] == "success"
    assert told["well"]["tasks"] == {"setup": "success", "work": "success", "teardown": "success", "watcher": "skipped"}


@pytest.mark.parametrize("failed", ["work", "teardown", "setup"])
def test_a_run_in_which_anything_failed_is_red(failed: str, told: dict[str, dict[str, dict[str, object]]]) -> None:
    assert told[failed]["run"] == "failed"
    assert told[failed]["tasks"][failed] == "failed"
    assert told[failed]["tasks"]["watcher"] == "failed"


@pytest.mark.requirement("R4.3")
def test_the_teardown_runs_after_failed_work(told: dict[str, dict[str, dict[str, object]]]) -> None:
    assert told["work"]["tasks"]["teardown"] == "success"


def test_what_no_other_try_can_mend_fails_at_once(told: dict[str, dict[str, dict[str, object]]]) -> None:
    assert told["hopeless"]["tasks"]["work"] == "failed"
    assert told["hopeless"]["tries"]["work"] == 1


@pytest.mark.requirement("R4.6")
@pytest.mark.parametrize("broken", ["unreachable", "unforeseen"])
def test_a_broken_notifier_is_red_in_a_green_run(broken: str, told: dict[str, dict[str, dict[str, object]]]) -> None:
    assert told[broken]["run"] == "success"
    assert told[broken]["tasks"] == {"work": "success", "tell": "success", "delivered": "failed", "watcher": "skipped"}


@pytest.mark.requirement("R4.6")
def test_a_notifier_that_works_is_green(told: dict[str, dict[str, dict[str, object]]]) -> None:
    assert told["told"]["tasks"]["delivered"] == "success"

"""The full backup's DAG file: it is read fast, and its graph is the runbook's (R1.1, R4)."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DAGS = ROOT / "dags"
IMPORT_LIMIT = 0.5
# Run in a process of its own: Airflow configures itself, and the logging of whoever imports it, when it is imported.
DESCRIBE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
def told(task):
    return {
        "up": sorted(task.upstream_task_ids), "down": sorted(task.downstream_task_ids),
        "rule": str(task.trigger_rule.value), "setup": task.is_setup,
        "teardown": task.is_teardown, "fails_run": task.on_failure_fail_dagrun,
        "doc": task.doc_md, "retries": task.retries, "owner": task.owner, "type": type(task).__name__,
        "seconds": task.execution_timeout and task.execution_timeout.total_seconds(),
    }
print(json.dumps({
    "errors": bag.import_errors,
    "dags": {name: {
        "schedule": type(dag.timetable).__name__, "cron": dag.timetable.expression, "catchup": dag.catchup,
        "active": dag.max_active_runs, "timeout": dag.dagrun_timeout and str(dag.dagrun_timeout),
        "tags": sorted(dag.tags), "doc": dag.doc_md, "tasks": {task.task_id: told(task) for task in dag.tasks},
    } for name, dag in bag.dags.items()},
}))
"""
# What Airflow's own modules cost is not the DAG file's fault; everything else that it needs is.
MEASURE = """
import importlib.util, sys, time
import airflow.sdk
from airflow.sdk import DAG, BaseOperator, CronDataIntervalTimetable, TaskGroup, TriggerRule
from airflow.sdk.exceptions import AirflowFailException
import airflow.sdk.definitions.taskgroup, pydantic
before, heavy = time.process_time(), set(sys.modules)
spec = importlib.util.spec_from_file_location("measured", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(time.process_time() - before)
print(" ".join(sorted({name.partition(".")[0] for name in set(sys.modules) - heavy})))
"""


def run_python(program: str, *arguments: str, home: Path) -> str:
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "BACKUP_POLICY": "",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every DAG, as Airflow's own DagBag reads the folder."""
    told = run_python(DESCRIBE, str(DAGS), home=tmp_path_factory.mktemp("airflow"))
    return dict(json.loads(told.splitlines()[-1]))


@pytest.fixture(scope="module")
def dag(bag: dict[str, Any]) -> dict[str, Any]:
    return dict(bag["dags"]["full_backup"])


@pytest.fixture(scope="module")
def tasks(dag: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(dag["tasks"])


def test_airflow_reads_every_file(bag: dict[str, Any]) -> None:
    assert bag["errors"] == {}
    assert {path.stem for path in DAGS.glob("*.py")} == set(bag["dags"])


@pytest.mark.requirement("R1.1")
def test_it_runs_daily_at_midnight_in_windows(dag: dict[str, Any]) -> None:
    assert (dag["schedule"], dag["cron"]) == ("CronDataIntervalTimetable", "0 0 * * *")


def test_nothing_can_skip_its_teardowns_or_pile_up(dag: dict[str, Any]) -> None:
    assert dag["timeout"] is None  # it would skip teardowns
    assert dag["catchup"] is False
    assert dag["active"] == 1


def test_every_task_is_documented_bounded_and_owned(dag: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> None:
    assert dag["doc"]
    assert "backup" in dag["tags"]
    for name, task in tasks.items():
        assert task["doc"], name
        assert task["seconds"], name
        assert task["owner"] == "backup", name


def test_what_another_try_can_mend_is_tried_again(tasks: dict[str, dict[str, Any]]) -> None:
    assert {name: task["retries"] for name, task in tasks.items() if task["retries"] != 2} == {
        "watcher": 0,
        "report.delivered": 0,
    }


@pytest.mark.requirement("R4.1", "R4.2")
def test_nothing_is_stopped_before_everything_is_prepared(tasks: dict[str, dict[str, Any]]) -> None:
    prepared = {"prepare.check_disk_space", "prepare.verify_permissions", "prepare.create_temporary_directory"}
    validated = {f"prepare.validate.{what}" for what in ("database_connection", "s3_access", "encryption_keys")}
    for name in validated:
        assert set(tasks[name]["up"]) == prepared
    assert set(tasks["execute.stop_writes"]["up"]) == validated


@pytest.mark.requirement("R4.3")
def test_writes_are_resumed_whatever_happens(tasks: dict[str, dict[str, Any]]) -> None:
    stop, resume = tasks["execute.stop_writes"], tasks["execute.resume_writes"]
    assert stop["setup"]
    assert resume["teardown"]
    assert resume["fails_run"] is False
    assert set(resume["up"]) == {"execute.stop_writes", "execute.create_backup"}
    assert resume["rule"] == "all_done_setup_success"


@pytest.mark.requirement("R4.1")
def test_the_temporary_directory_is_removed_after_its_last_use(tasks: dict[str, dict[str, Any]]) -> None:
    remove = tasks["remove_temporary_directory"]
    assert remove["teardown"]
    assert remove["fails_run"] is False
    verified = {"verify.integrity", "verify.sizes", "verify.sample_restore"}
    assert set(remove["up"]) == {"prepare.create_temporary_directory", *verified}


@pytest.mark.requirement("R4.5")
def test_what_is_made_is_verified(tasks: dict[str, dict[str, Any]]) -> None:
    for name in ("verify.integrity", "verify.sizes", "verify.sample_restore"):
        assert tasks[name]["up"] == ["execute.create_backup"]


@pytest.mark.requirement("R4.6")
def test_success_is_reported_only_when_all_of_it_succeeded(tasks: dict[str, dict[str, Any]]) -> None:
    report = tasks["report.success_report"]
    assert report["rule"] == "all_success"
    verified = {"verify.integrity", "verify.sizes", "verify.sample_restore"}
    assert set(report["up"]) == {*verified, "execute.resume_writes", "remove_temporary_directory"}
    assert tasks["report.status_update"]["up"] == ["execute.create_backup"]


@pytest.mark.requirement("R4.6")
def test_a_dead_channel_shows_without_failing_the_run(tasks: dict[str, dict[str, Any]]) -> None:
    delivered = tasks["report.delivered"]
    assert set(delivered["up"]) == {f"report.{each}" for each in ("status_update", "success_report", "error_alert")}
    assert (delivered["teardown"], delivered["fails_run"], delivered["down"]) == (True, False, [])


@pytest.mark.parametrize("name", ["watcher", "report.error_alert"])
def test_the_watcher_and_the_alert_see_work_and_teardowns(name: str, tasks: dict[str, dict[str, Any]]) -> None:
    # A set-up must be followed by ALL_SUCCESS; its failure shows in the task after it.
    work = {task for task in tasks if task != "watcher" and not task.startswith("report.") and not tasks[task]["setup"]}
    assert tasks[name]["rule"] == "one_failed"
    assert set(tasks[name]["up"]) == work
    assert {"execute.resume_writes", "remove_temporary_directory"} <= work
    assert set(tasks[name]["down"]) <= {"report.delivered"}


@pytest.mark.parametrize("path", sorted(DAGS.glob("*.py")), ids=lambda path: path.stem)
def test_a_file_is_read_fast_and_without_the_engine(path: Path, tmp_path: Path) -> None:
    measured = [run_python(MEASURE, str(path), home=tmp_path).splitlines()[-2:] for _ in range(3)]
    assert min(float(seconds) for seconds, _ in measured) < IMPORT_LIMIT
    assert not {"boto3", "botocore", "psycopg", "psycopg2", "cryptography", "pandas"} & set(measured[0][1].split())


@pytest.mark.parametrize("path", sorted(DAGS.glob("*.py")), ids=lambda path: path.stem)
def test_a_file_starts_with_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))

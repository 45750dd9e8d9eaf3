"""The storage lifecycle's DAG file: daily, documented, bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Run in a process of its own: Airflow configures itself, and the logging of whoever imports it, when it is imported.
DESCRIBE = """
import json
from airflow.dag_processing.dagbag import DagBag
dag = DagBag("dags").dags["storage_lifecycle"]
print(json.dumps({
    "schedule": type(dag.timetable).__name__, "cron": dag.timetable.expression, "catchup": dag.catchup,
    "active": dag.max_active_runs, "timeout": dag.dagrun_timeout and str(dag.dagrun_timeout), "doc": dag.doc_md,
    "tasks": {task.task_id: {
        "type": type(task).__name__, "doc": task.doc_md, "retries": task.retries, "owner": task.owner,
        "seconds": task.execution_timeout and task.execution_timeout.total_seconds(),
    } for task in dag.tasks},
}))
"""


@pytest.fixture(scope="module")
def dag(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("airflow")
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE],
        env={
            **os.environ,
            "AIRFLOW_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "BACKUP_POLICY": "",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_it_runs_daily_behind_the_full_backup(dag: dict[str, Any]) -> None:
    assert (dag["schedule"], dag["cron"]) == ("CronDataIntervalTimetable", "0 4 * * *")
    assert (dag["catchup"], dag["active"], dag["timeout"]) == (False, 1, None)


def test_it_says_what_it_removes_and_how_to_see_it_first(dag: dict[str, Any]) -> None:
    assert "48 hours" in dag["doc"]
    assert "python -m include.cli reap" in dag["doc"]


def test_its_steps_are_documented_bounded_owned_and_tried_again(dag: dict[str, Any]) -> None:
    assert {name: task["type"] for name, task in dag["tasks"].items()} == {"reap": "Reap"}
    [reap] = dag["tasks"].values()
    assert reap["doc"]
    assert reap["seconds"]
    assert (reap["owner"], reap["retries"]) == ("backup", 2)

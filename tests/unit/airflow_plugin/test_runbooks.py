"""Runbooks: every task of a DAG that has one finds its section, and only who may see the DAG reads it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Run in a process of its own: Airflow configures itself, and the logging of whoever imports it, when it is imported.
TELL = """
import json
from types import SimpleNamespace
from airflow.dag_processing.dagbag import DagBag
from include.airflow_plugin import runbooks
link = runbooks.RunbookLink()
def linked(dag, task):
    return link.get_link(None, ti_key=SimpleNamespace(dag_id=dag, task_id=task))
bag = DagBag("dags")
print("TOLD " + json.dumps({
    "links": {name: {task: linked(name, task) for task in dag.task_ids} for name, dag in bag.dags.items()},
    "absent": linked("../../README", "x"),
    "pages": {file.stem: runbooks.render(file.stem, file.read_text()) for file in runbooks.DIRECTORY.glob("*.md")},
    "hostile": runbooks.render("<script>", "# x"),
}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, str]]]:
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow")),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API__BASE_URL": "https://airflow.example/backups",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", TELL], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    return dict(json.loads(line.removeprefix("TOLD ")))


@pytest.mark.requirement("R9")
@pytest.mark.parametrize("dag", sorted(path.stem for path in (ROOT / "dags").glob("*.py")))
def test_every_task_has_its_section(told: dict[str, dict[str, dict[str, str]]], dag: str) -> None:
    links = told["links"][dag]
    assert links
    sections = re.findall(r'<h3 id="([^"]+)">', str(told["pages"][dag]))
    assert sorted(links) == sorted(sections)
    for task, link in links.items():
        assert link == f"https://airflow.example/backups/runbooks/{dag}#{task}"


@pytest.mark.requirement("R9")
def test_a_runbook_that_another_one_names_is_there(told: dict[str, dict[str, dict[str, str]]]) -> None:
    named = {name for page in told["pages"].values() for name in re.findall(r'href="([a-z_]+)["#]', str(page))}
    assert {"incremental_backup", "region_loss", "key_loss"} <= named <= told["pages"].keys()
    for file in [*(ROOT / "docs" / "runbooks").glob("*.md"), ROOT / "docs" / "training.md"]:
        for link in re.findall(r"\]\(([\w./]+\.md)", file.read_text()):
            assert (file.parent / link).exists(), f"{file.name} names {link}"


def test_what_is_asked_for_becomes_no_path(told: dict[str, dict[str, dict[str, str]]]) -> None:
    assert told["absent"] == ""
    assert "<title>&lt;script&gt;: runbook</title>" in str(told["hostile"])

"""The DAG files: they are read fast, and their graphs are the runbooks' (R1, R4, R5)."""

from __future__ import annotations

import ast
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from include.disaster.plan import load_plan
from include.policy import load_policy

BACKUPS = ["full_backup", "incremental_backup", "snapshot_backup"]
ROOT = Path(__file__).parents[2]
DAGS = ROOT / "dags"
IMPORT_LIMIT = 0.5
IMPORT_SHARE = 0.4
"""Seconds of the processor; or, where others are at work on it, so much of what Airflow's own modules took before."""
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
def told_deadline(deadline):
    alert = deadline[0] if isinstance(deadline, list) and deadline else deadline
    return alert and {"seconds": alert.interval.total_seconds(), "callback": alert.callback.path}
print(json.dumps({
    "errors": bag.import_errors,
    "dags": {name: {
        "params": dag.params.dump() if dag.params else {},
        "forms": {name: param.schema | {"description": param.description} for name, param in dag.params.items()},
        "schedule": type(dag.timetable).__name__, "cron": getattr(dag.timetable, "expression", None),
        "catchup": dag.catchup, "active": dag.max_active_runs,
        "deadline": told_deadline(dag.deadline), "timeout": dag.dagrun_timeout and str(dag.dagrun_timeout),
        "tags": sorted(dag.tags), "doc": dag.doc_md, "tasks": {task.task_id: told(task) for task in dag.tasks},
    } for name, dag in bag.dags.items()},
}))
"""
# What Airflow's own modules cost is not the DAG file's fault; everything else that it needs is. Each file is read in a
# child of its own, which has no module but Airflow's.
MEASURE = """
import importlib.util, json, os, sys, time
began = time.process_time()
import airflow.sdk
from airflow.sdk import DAG, BaseOperator, CronDataIntervalTimetable, Param, TaskGroup, TriggerRule
from airflow.sdk.exceptions import AirflowFailException
import airflow.sdk.definitions.taskgroup, pydantic
import airflow.providers.standard.operators.hitl
airflows = time.process_time() - began
for path in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    before, known = time.process_time(), set(sys.modules)
    spec = importlib.util.spec_from_file_location("measured", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    seconds = time.process_time() - before
    modules = sorted({name.partition(".")[0] for name in set(sys.modules) - known})
    print("MEASURED", json.dumps([path, seconds / airflows, seconds, modules]), flush=True)
    os._exit(0)
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


@pytest.fixture(scope="module", params=BACKUPS)
def dag(request: pytest.FixtureRequest, bag: dict[str, Any]) -> dict[str, Any]:
    """Each DAG that makes backups."""
    return dict(bag["dags"][request.param])


@pytest.fixture
def tasks(dag: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(dag["tasks"])


def test_airflow_reads_every_file(bag: dict[str, Any]) -> None:
    assert bag["errors"] == {}
    assert {path.stem for path in DAGS.glob("*.py")} == set(bag["dags"])


@pytest.mark.requirement("R1.1", "R1.2", "R1.3")
@pytest.mark.parametrize(
    ("name", "cron"),
    [
        ("full_backup", "0 0 * * *"),
        ("incremental_backup", "0 * * * *"),
        ("snapshot_backup", "0 0 * * 0"),
        ("storage_lifecycle", "0 4 * * *"),
        ("key_rotation", "0 5 * * *"),
        ("monthly_archive", "0 2 1 * *"),
    ],
)
def test_it_runs_when_the_policy_says_in_windows(bag: dict[str, Any], name: str, cron: str) -> None:
    dag = bag["dags"][name]
    assert (dag["schedule"], dag["cron"]) == ("CronDataIntervalTimetable", cron)


@pytest.mark.requirement("R5.5")
def test_the_stream_follows_upon_itself_and_a_recovery_is_only_asked_for(bag: dict[str, Any]) -> None:
    stream, recovery = bag["dags"]["wal_stream"], bag["dags"]["point_in_time_recovery"]
    assert (stream["schedule"], stream["active"]) == ("ContinuousTimetable", 1)
    assert stream["tasks"]["ship"]["seconds"] > 3600
    assert recovery["schedule"] == "NullTimetable"


def test_nothing_can_skip_its_teardowns_or_pile_up(bag: dict[str, Any]) -> None:
    for dag in bag["dags"].values():
        assert dag["timeout"] is None  # it would skip teardowns
        assert dag["catchup"] is False
    assert {name for name, dag in bag["dags"].items() if dag["active"] != 1} == {
        "point_in_time_recovery",
        "archive_restore",
        "disaster_recovery",
    }


def test_every_task_is_documented_bounded_and_owned(bag: dict[str, Any]) -> None:
    plan = {str(task): step.owner for task, step in load_plan().steps.items()}
    for dag_id, dag in bag["dags"].items():
        owners = plan if dag_id == "disaster_recovery" else {}
        assert dag["doc"]
        assert dag["tags"]
        for name, task in dag["tasks"].items():
            assert task["doc"], name
            assert task["seconds"] or name == "approve"  # it waits without a worker, and has a bound
            assert task["owner"] == owners.get(name, "backup"), name


def test_what_another_try_can_mend_is_tried_again(bag: dict[str, Any]) -> None:
    once = {name for dag in bag["dags"].values() for name, task in dag["tasks"].items() if not task["retries"]}
    assert once == {"watcher", "report.delivered", "delivered", "approve"}


@pytest.mark.requirement("R4.1", "R4.2")
def test_nothing_is_stopped_before_everything_is_prepared(tasks: dict[str, dict[str, Any]]) -> None:
    prepared = {name for name in tasks if name.startswith("prepare.") and not name.startswith("prepare.validate.")}
    validated = {name for name in tasks if name.startswith("prepare.validate.")}
    for name in validated:
        assert set(tasks[name]["up"]) == prepared
    assert set(tasks["execute.stop_writes"]["up"]) == (validated or prepared)
    assert len(prepared | validated) in (6, 1)


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
    made = {name for name in tasks if name.startswith("prepare.") and tasks[name]["setup"]}
    assert len(made) == 1
    assert set(remove["up"]) == made | proofs_of(tasks)


@pytest.mark.requirement("R4.5")
def test_what_is_made_is_verified(tasks: dict[str, dict[str, Any]]) -> None:
    for name in proofs_of(tasks):
        assert tasks[name]["up"] == ["execute.create_backup"]


@pytest.mark.requirement("R3.2")
def test_what_is_made_is_replicated_beside_its_verification(tasks: dict[str, dict[str, Any]]) -> None:
    assert tasks["replicate"]["up"] == ["execute.create_backup"]
    assert tasks["replicate"]["rule"] == "all_success"  # skipped with a creation that was adopted
    assert {"report.success_report", "report.error_alert", "watcher"} <= set(tasks["replicate"]["down"])


@pytest.mark.requirement("R4.6")
def test_success_is_reported_only_when_all_of_it_succeeded(tasks: dict[str, dict[str, Any]]) -> None:
    report = tasks["report.success_report"]
    assert report["rule"] == "all_success"
    assert set(report["up"]) == {
        *(*proofs_of(tasks), "replicate", "execute.resume_writes", "remove_temporary_directory")
    }
    if "report.status_update" in tasks:
        assert tasks["report.status_update"]["up"] == ["execute.create_backup"]


@pytest.mark.requirement("R4.6")
def test_a_dead_channel_shows_without_failing_the_run(tasks: dict[str, dict[str, Any]]) -> None:
    delivered = tasks["report.delivered"]
    assert set(delivered["up"]) == {name for name in tasks if name.startswith("report.")} - {"report.delivered"}
    assert (delivered["teardown"], delivered["fails_run"], delivered["down"]) == (True, False, [])


@pytest.mark.parametrize("name", ["watcher", "report.error_alert"])
def test_the_watcher_and_the_alert_see_work_and_teardowns(name: str, tasks: dict[str, dict[str, Any]]) -> None:
    # A set-up must be followed by ALL_SUCCESS; its failure shows in the task after it.
    work = {task for task in tasks if task != "watcher" and not task.startswith("report.") and not tasks[task]["setup"]}
    assert tasks[name]["rule"] == "one_failed"
    assert set(tasks[name]["up"]) == work
    assert {"execute.resume_writes", "remove_temporary_directory"} <= work
    assert set(tasks[name]["down"]) <= {"report.delivered"}


def test_a_file_is_read_fast_and_without_the_engine(tmp_path: Path) -> None:
    """The best of five, on a machine that does other things, too."""
    slow: list[Any] = [[str(path)] for path in sorted(DAGS.glob("*.py"))]
    loaded: set[str] = set()
    for _ in range(5):
        said = run_python(MEASURE, *(path for path, *_ in slow), home=tmp_path).splitlines()
        measured = [json.loads(line.removeprefix("MEASURED ")) for line in said if line.startswith("MEASURED ")]
        assert len(measured) == len(slow)
        loaded |= {module for *_, modules in measured for module in modules}
        slow = [each for each in measured if each[1] >= IMPORT_SHARE and each[2] >= IMPORT_LIMIT]
        if not slow:
            break
    assert slow == []
    assert not {"boto3", "botocore", "psycopg", "psycopg2", "cryptography", "pandas"} & loaded


@pytest.mark.parametrize("path", sorted(DAGS.glob("*.py")), ids=lambda path: path.stem)
def test_a_file_starts_with_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def proofs_of(tasks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name in tasks if name.startswith("verify.")}


@pytest.mark.requirement("R4.5")
@pytest.mark.parametrize(
    ("name", "proofs"),
    [
        ("full_backup", {"integrity", "sizes", "sample_restore"}),
        ("snapshot_backup", {"integrity", "sizes", "start"}),
        ("incremental_backup", {"integrity"}),
    ],
)
def test_each_type_has_its_proofs(bag: dict[str, Any], name: str, proofs: set[str]) -> None:
    assert proofs_of(bag["dags"][name]["tasks"]) == {f"verify.{proof}" for proof in proofs}


def test_an_hours_run_has_few_tasks(bag: dict[str, Any]) -> None:
    assert len(bag["dags"]["incremental_backup"]["tasks"]) <= 11  # each costs a second of a worker


def test_the_lifecycle_says_what_it_removes_and_how_to_see_it_first(bag: dict[str, Any]) -> None:
    doc = bag["dags"]["storage_lifecycle"]["doc"]
    assert "48 hours" in doc
    assert "python -m include.cli reap" in doc


@pytest.mark.requirement("R1.1", "R3.2", "R3.3", "R4.6", "R8.1")
def test_the_lifecycle_repairs_deletes_and_tidies_and_is_told_when_it_is_red(bag: dict[str, Any]) -> None:
    tasks = bag["dags"]["storage_lifecycle"]["tasks"]
    work = set(tasks) - {"error_alert", "delivered", "watcher"}
    assert work == {
        "repair_replica",
        "retain_primary",
        "retain_replica",
        "apply_lifecycle",
        "report_cold",
        "reap",
        "reap_drills",
    }
    # Nothing goes while the replica is not whole; and the primary's first, or it would be brought back.
    assert (tasks["retain_primary"]["up"], tasks["retain_primary"]["rule"]) == (["repair_replica"], "all_success")
    assert (tasks["retain_replica"]["up"], tasks["retain_replica"]["rule"]) == (["retain_primary"], "all_success")
    assert (
        tasks["reap"]["rule"] == tasks["reap_drills"]["rule"] == "all_done"
    )  # what dead runs left goes, whatever became of the rest
    for last in ("error_alert", "watcher"):
        assert tasks[last]["rule"] == "one_failed"
        assert set(tasks[last]["up"]) == work
    assert (tasks["delivered"]["up"], tasks["delivered"]["teardown"]) == (["error_alert"], True)


@pytest.mark.requirement("R5.1")
def test_a_recovery_is_selected_located_proved_approved_restored_validated_and_told(bag: dict[str, Any]) -> None:
    tasks = bag["dags"]["point_in_time_recovery"]["tasks"]
    row = ["select_timestamp", "locate_backup", "verify_integrity", "approve", "restore_data"]
    for before, after in itertools.pairwise(row):
        assert tasks[after]["up"] == [before]
    assert tasks["restore_data"]["rule"] == "none_failed"
    looks = ["check_application_state", "check_data_consistency"]
    for name in looks:  # side by side, and before the application is started: it writes
        assert (tasks[name]["up"], tasks[name]["rule"]) == (["restore_data"], "all_success")
    validations = {*looks, "check_service_health"}
    assert (tasks["check_service_health"]["up"], tasks["check_service_health"]["rule"]) == (looks, "all_success")
    assert tasks["remove_temporary_directory"]["up"] == ["check_service_health"]
    assert (tasks["report"]["rule"], tasks["watcher"]["rule"]) == ("all_done", "one_failed")
    work = {*row, *validations, "remove_temporary_directory"}
    assert work == set(tasks["report"]["up"]) == set(tasks["watcher"]["up"])


@pytest.mark.requirement("R5.1")
def test_a_recovery_touches_nothing_that_is_live_unless_it_is_told_to(bag: dict[str, Any]) -> None:
    params = bag["dags"]["point_in_time_recovery"]["params"]
    assert (params["target"], params["what"], params["where"]) == ("latest", "everything", "scratch")
    assert params["replace_live"] is False


@pytest.mark.requirement("R7.1")
def test_a_rotation_makes_wraps_and_proves_and_retires_only_what_the_form_names(bag: dict[str, Any]) -> None:
    dag = bag["dags"]["key_rotation"]
    tasks = dag["tasks"]
    ups = {
        "check": [],
        "new_keys": ["check"],
        "wrap_primary": ["new_keys"],
        "prove_primary": ["wrap_primary"],
        "wrap_replica": ["new_keys", "wrap_primary"],
        "prove_replica": ["wrap_replica"],
        "retire": ["prove_primary", "prove_replica"],
    }
    assert {name: tasks[name]["up"] for name in ups} == ups
    # A data key that cannot be wrapped in one region keeps nobody from wrapping in the other.
    assert tasks["wrap_replica"]["rule"] == "all_done_min_one_success"
    assert all(tasks[name]["rule"] == "all_success" for name in ups if name != "wrap_replica")
    assert (set(tasks["report"]["up"]), tasks["report"]["rule"]) == (set(ups), "all_done")
    assert (set(tasks["watcher"]["up"]), tasks["watcher"]["rule"]) == (set(ups), "one_failed")
    assert (tasks["delivered"]["up"], tasks["delivered"]["teardown"]) == (["report"], True)
    assert dag["params"] == {"kinds": "due", "kms": [], "retire": ""}


@pytest.mark.requirement("R8.1")
def test_a_months_archives_are_chosen_once_and_made_and_verified_a_class_at_a_time(bag: dict[str, Any]) -> None:
    tasks = bag["dags"]["monthly_archive"]["tasks"]
    classes = ["financial", "personal", "operational"]
    for name in classes:
        assert tasks[f"{name}.make"]["up"] == ["choose_full"]
        assert tasks[f"{name}.verify"]["up"] == [f"{name}.make"]
    assert set(tasks["replicate"]["up"]) == {f"{name}.verify" for name in classes}
    assert tasks["replicate"]["rule"] == "all_done_min_one_success"  # one class keeps no other from being brought
    work = {"choose_full", "replicate", *(f"{name}.{step}" for name in classes for step in ("make", "verify"))}
    assert set(tasks["success_report"]["up"]) == set(tasks["error_alert"]["up"]) == set(tasks["watcher"]["up"]) == work
    rules = {name: tasks[name]["rule"] for name in ("success_report", "error_alert", "watcher")}
    assert rules == {"success_report": "all_success", "error_alert": "one_failed", "watcher": "one_failed"}
    assert tasks["choose_full"]["retries"] == 6  # the night's verification may still be on its way


@pytest.mark.requirement("R3.3", "R8.1")
def test_an_archive_is_retrieved_before_it_is_restored_and_only_into_places_of_its_own(bag: dict[str, Any]) -> None:
    dag = bag["dags"]["archive_restore"]
    tasks = dag["tasks"]
    row = ["select_archive", "retrieve", "restore_data", "validate"]
    for before, after in itertools.pairwise(row):
        assert tasks[after]["up"] == [before]
    assert {*row, "remove_temporary_directory"} == set(tasks["report"]["up"]) == set(tasks["watcher"]["up"])
    assert (tasks["report"]["rule"], tasks["watcher"]["rule"]) == ("all_done", "one_failed")
    assert dag["params"]["tier"] == "Standard"
    assert not {"where", "replace_live"} & set(dag["params"])


@pytest.mark.requirement("R5.3", "R7.3")
def test_a_failover_is_found_approved_undone_and_told(bag: dict[str, Any]) -> None:
    dag = bag["dags"]["undo_failover"]
    tasks = dag["tasks"]
    row = ["find_failover", "approve", "switch_back"]
    for before, after in itertools.pairwise(row):
        assert tasks[after]["up"] == [before]
        assert tasks[after]["rule"] == "all_success"
    assert set(row) == set(tasks["report"]["up"]) == set(tasks["watcher"]["up"])
    assert (tasks["report"]["rule"], tasks["watcher"]["rule"]) == ("all_done", "one_failed")
    assert (tasks["delivered"]["up"], tasks["delivered"]["teardown"]) == (["report"], True)
    assert dag["schedule"] == "NullTimetable"
    assert (dag["params"]["run"], dag["params"]["because"]) == ("", None)  # a reason has to be given


@pytest.mark.requirement("R5.3", "R5.4")
def test_the_recovery_runbook_is_the_plans_and_tells_when_its_time_is_over(bag: dict[str, Any]) -> None:
    dag, plan = bag["dags"]["disaster_recovery"], load_plan()
    tasks = dag["tasks"]
    assert dag["cron"] == plan.drills.schedule
    assert (dag["deadline"]["seconds"], dag["deadline"]["callback"]) == (
        load_policy().recovery.rto.total_seconds(),
        "include.operators.deadline.tell_rto_missed",
    )
    assert set(plan.steps) | {"report", "delivered", "watcher"} == set(tasks)
    for name, step in plan.steps.items():
        assert tasks[name]["seconds"] == step.limit.total_seconds(), name
        assert step.undo in tasks[name]["doc"], name
    way = ["activate_plan", "switch_to_replica", "plan_recovery", "approve", "restore_from_backup"]
    for earlier, later in itertools.pairwise(way):
        assert tasks[later]["up"] == [earlier]
    looks = ["check_application_state", "check_data_consistency"]
    for check in looks:
        assert tasks[check]["up"] == ["restore_from_backup"]
    assert tasks["check_service_health"]["up"] == looks  # the application writes: what it wrote would be compared
    assert tasks["switch_site"]["up"] == ["check_service_health"]
    assert tasks["clean_up"]["up"] == ["switch_site"]
    assert tasks["clean_up"]["teardown"]
    assert set(tasks["report"]["up"]) == set(plan.steps)
    assert dag["params"]["mode"] == "drill"


@pytest.mark.requirement("R5.3")
def test_what_may_stay_empty_in_a_form_is_no_must(bag: dict[str, Any]) -> None:
    """Airflow's form is not sent while a field is empty whose type is a string's alone."""
    forms = {name: dag["forms"] for name, dag in bag["dags"].items() if dag["forms"]}
    assert {"disaster_recovery", "point_in_time_recovery", "undo_failover"} <= forms.keys()
    for name, form in forms.items():
        for param, schema in form.items():
            if bag["dags"][name]["params"][param] == "" and "enum" not in schema:
                assert schema["type"] == ["null", "string"], f"{name}: {param}"
            assert schema["description"] is None, f"{name}: {param} is described in Markdown"
            assert schema["description_md"]

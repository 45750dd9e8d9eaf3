"""The validations as tasks, and their pages: what a failed one leaves, and who may see it (R5.2)."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk.exceptions import AirflowFailException
from fastapi.testclient import TestClient

from include.airflow_plugin import validations
from include.operators.run import Surroundings
from include.operators.validation import CheckServiceHealth, Restored, ValidationLink, in_words
from include.pipeline.store import StoreError
from include.recovery.validation.recovered import EXPECTED, Expected, Recovered
from include.recovery.validation.validation import Check, Validation
from tests.memory import MemoryBucket

NOW = datetime(2026, 11, 29, tzinfo=UTC)


class TaskInstance:
    """What a task leaves for the others."""

    dag_id, run_id, task_id = "a_dag", "manual__2026-11-29T00:00:00+00:00", "check_service_health"

    def __init__(self) -> None:
        self.left: dict[tuple[str, str], Any] = {}

    def xcom_push(self, *, key: str, value: object, task: str = "check_service_health") -> None:
        self.left[task, key] = value

    def xcom_pull(self, *, task_ids: str, key: str = "return_value") -> Any:
        return self.left.get((task_ids, key))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryBucket:
    bucket = MemoryBucket()
    monkeypatch.setattr("include.operators.run.Surroundings.backups_in", lambda *_: bucket)
    return bucket


def execute(tmp_path: Path, checks: tuple[Check, ...]) -> tuple[TaskInstance, Any]:
    """The task, in a run that restored nothing but says so."""

    class Looked(CheckServiceHealth):
        def look(self, *_: object, **__: object) -> Validation:
            return Validation("service_health", NOW, NOW, checks)

    ti = TaskInstance()
    context: Any = {"ti": ti}
    restorer: Any = {"ti": SimpleNamespace(xcom_push=lambda **what: ti.xcom_push(task="restore_data", **what))}
    Restored(about="a test", directory="recovery-x").leave(restorer)
    (tmp_path / "recovery-x").mkdir()
    Expected(NOW).write(tmp_path / "recovery-x" / EXPECTED)
    task = Looked(task_id="check_service_health", restored_by="restore_data", scratch_root=str(tmp_path))
    try:
        return ti, task.execute(context)
    except AirflowFailException as failed:
        return ti, failed


@pytest.mark.requirement("R5.2")
def test_what_is_looked_at_is_what_was_restored_and_a_part_that_did_not_come_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = {"conn_type": "postgres", "host": "h", "login": "l", "password": "p", "schema": "postgres"}
    monkeypatch.setenv("AIRFLOW_CONN_A_SERVER", json.dumps(postgres))
    extra = {"region_name": "us-east-1", "service_config": {"s3": {"bucket_name": "looked-at"}}}
    aws = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_A_STORE", json.dumps(aws))
    Expected(NOW).write(tmp_path / EXPECTED)
    here = Surroundings(scratch_root=str(tmp_path))
    restored = Restored(
        about="a test",
        directory=".",
        database_connection="a_server",
        database="recovered",
        objects_connection="a_store",
        objects_prefix="drills/x/",
        configuration=str(tmp_path),
    )
    all_of_it = restored.opened(here)
    assert all_of_it.database
    assert all_of_it.bucket
    assert (all_of_it.database.dbname, all_of_it.bucket.name, all_of_it.prefix) == (
        "recovered",
        "looked-at",
        "drills/x/",
    )
    assert (all_of_it.configuration, all_of_it.whole, all_of_it.expected) == (tmp_path, True, Expected(NOW))
    nothing = replace(
        restored, database=None, objects_connection=None, objects_prefix="", configuration=None, whole=False
    ).opened(here)
    assert nothing == Recovered(Expected(NOW), whole=False)


def test_a_page_is_kept_in_the_primary_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.operators.run.Surroundings.backups_in", lambda _, copy: copy)
    check, context = CheckServiceHealth(task_id="check_service_health", restored_by="x"), cast("Any", {})
    assert check.kept_in(Surroundings(scratch_root=""), context) == "primary"


@pytest.mark.requirement("R5.2")
def test_what_failed_is_kept_told_and_not_tried_again(tmp_path: Path, bucket: MemoryBucket) -> None:
    ti, failed = execute(tmp_path, (Check("a write", "db", "taken", "refused", passed=False),))
    assert isinstance(failed, AirflowFailException)
    assert "a write of db: refused, not taken" in str(failed)
    told = ti.xcom_pull(task_ids="check_service_health")
    assert (told["kind"], told["checks"], told["failed"]) == ("service_health", 1, 1)
    assert b"1 of 1 checks failed" in bucket.held[told["page"]]
    context: Any = {"ti": ti}
    assert dict(in_words(context)) == {"service health": "1 of 1 checks failed"}


def test_where_nothing_came_back_there_is_nothing_to_look_at(tmp_path: Path, bucket: MemoryBucket) -> None:
    ti, told = execute(tmp_path, ())
    assert (told["checks"], told["failed"]) == (0, 0)
    assert sorted(key.rpartition(".")[2] for key in bucket.held) == ["html", "json"]
    context: Any = {"ti": ti}
    assert dict(in_words(context)) == {"service health": "nothing to look at"}


@pytest.mark.requirement("R5.2", "R7.3")
def test_the_button_leads_to_the_page_and_to_nothing_else_of_the_bucket(
    tmp_path: Path, bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(tmp_path, ())
    bucket.held["reports/validations/secret.html"] = bucket.held["manifests/x.html"] = b"secret"
    task: Any = TaskInstance
    path = ValidationLink().get_link(task, ti_key=task)
    assert path.endswith("/validations/a_dag/manual__2026-11-29T00%3A00%3A00%2B00%3A00/check_service_health")
    path = path[path.index("/validations/") + len("/validations") :]
    client = TestClient(validations.app)
    assert client.get(path).status_code in (401, 403)
    [route] = [route for route in validations.app.routes if getattr(route, "dependencies", None)]
    monkeypatch.setitem(validations.app.dependency_overrides, route.dependencies[0].dependency, lambda: None)  # type: ignore[attr-defined]
    page = client.get(path)
    assert page.status_code == 200
    assert "there was nothing to look at" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    for other in ("/a_dag/run/other", "/..%2F..%2Fmanifests/x/y", "/../../manifests", "/a_dag/../check_service_health"):
        answer = client.get(other)
        assert answer.status_code == 404
        assert "secret" not in answer.text

    # A region that is lost says nothing for minutes; whoever looks for the page of the other one does not wait for it.
    here, never = bucket, Event()
    lost: Any = SimpleNamespace(keys=lambda _: never.wait(60) and [])
    copies = {"primary": lost, "replica": here}
    monkeypatch.setattr("include.operators.run.Surroundings.backups_in", lambda _, copy: copies[copy])
    assert client.get(path).status_code == 200
    assert not never.is_set()
    never.set()
    monkeypatch.setattr("include.operators.run.Surroundings.backups_in", lambda *_: bucket)

    def away(*_: object) -> None:
        raise StoreError("The store is away.", mend="Wait.")

    monkeypatch.setattr(bucket, "keys", away)
    assert client.get(path).status_code == 503

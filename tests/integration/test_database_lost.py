"""The database of the active site is lost, and nothing else: it comes back alone (R5.3)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from include.disaster.plan import DEFAULT, ENVIRONMENT
from include.operators.disaster import (
    ActivatePlan,
    CheckApplicationState,
    CheckDataConsistency,
    CheckServiceHealth,
    PlanRecovery,
    RestoreFromBackup,
    SwitchToReplica,
)
from include.operators.failover import ApproveFailover
from include.operators.site import SwitchSite
from include.operators.validation import VALIDATIONS
from include.repository.manifest import Manifest
from include.sandbox.installation import Installation
from tests.runbook import YES, Run


@pytest.fixture
def home(installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections of the active site, whose plan names the installation's database."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(DEFAULT.read_text().replace("database: synapse\n", f"database: {installation.login.dbname}\n"))
    monkeypatch.setenv(ENVIRONMENT, str(plan))
    for name, connection in installation.connections().items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))
    for name, value in installation.variables().items():
        monkeypatch.setenv(name, value)


@pytest.mark.requirement("R5.2", "R5.3")
def test_it_comes_back_alone_and_the_files_that_users_have_written_since_stay(
    home: None, installation: Installation, manifest: Manifest, tmp_path: Path
) -> None:
    synapse, client = installation.synapse, installation.primary.client()
    before = synapse.fingerprint()
    key = min(before.objects)
    old = client.get_object(Bucket=synapse.bucket, Key=key)["Body"].read()
    client.put_object(Bucket=synapse.bucket, Key="uploads/since.txt", Body=b"written since")
    client.put_object(Bucket=synapse.bucket, Key=key, Body=old[::-1])
    (synapse.configuration / "README.md").write_text("edited since\n")
    since = synapse.fingerprint()
    with installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
        session.execute(f'DROP DATABASE "{installation.login.dbname}" WITH (FORCE)'.encode())

    run = Run("failover", "database_lost", site="home", copy="primary")
    run.when = datetime.now(UTC)
    here: dict[str, Any] = {"scratch_root": str(tmp_path)}
    run.take(ActivatePlan(task_id="activate_plan", **here))
    run.take(SwitchToReplica(task_id="switch_to_replica", **here))
    planned = run.take(PlanRecovery(task_id="plan_recovery", **here))
    assert "THE ACTIVE SITE" in planned["words"]
    assert "stays          objects and configuration" in planned["words"]
    with pytest.raises(Exception):  # noqa: B017 - it asks a person, of whom there is none
        run.take(ApproveFailover(task_id="approve", shows="plan_recovery", subject="?"))
    run.left["approve", "return_value"] = YES
    restored = run.take(RestoreFromBackup(task_id="restore_from_backup", **here))
    assert restored["database"] == installation.login.dbname
    assert not {"objects", "commit"} & restored.keys()
    back = synapse.fingerprint()
    assert back == since
    for task, check in zip(VALIDATIONS, (CheckDataConsistency, CheckApplicationState, CheckServiceHealth), strict=True):
        found = run.take(check(task_id=task, restored_by="restore_from_backup", **here))
        assert (found["failed"], found["checks"] > 0) == (0, True)
    with pytest.raises(AirflowSkipException, match="home is the active site"):
        run.take(SwitchSite(task_id="switch_site", **here))

"""Archives as real DAG runs: a month made, gone cold, and back from Glacier in one run, the triggerer waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from include.policy.loader import DEFAULT
from include.repository.references import references
from include.sandbox.airflow import AirflowServices
from include.sandbox.installation import Installation
from include.sandbox.mailbox import Mailbox
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from tests.dags.running import Running

ARCHIVE, BACK = "monthly_archive", "archive_restore"
CLASSES = ("financial", "personal", "operational")


@pytest.fixture(scope="module")
def on(
    sandbox_directory: Path, postgres18: PostgresServer, s3_primary: S3Server, s3_replica: S3Server
) -> Iterator[Running]:
    home = sandbox_directory / "archive-runs"
    home.mkdir()
    policy = home / "policy.yaml"
    policy.write_text(DEFAULT.read_text().replace("looked_at_every: 5 min", "looked_at_every: 1 s"))
    installation = Installation.make(
        home, postgres=postgres18, primary=s3_primary, replica=s3_replica, suffix="-archive-runs", scale=0.05
    )
    with ExitStack() as stack:
        stack.callback(installation.synapse.destroy)
        mailbox = stack.enter_context(Mailbox(home / "mails"))
        services = AirflowServices(
            home / "airflow",
            metadata=postgres18.superuser.with_database("airflow-archive-runs"),
            connections={**installation.connections(), "synapse_notifications": mailbox.connection()},
            variables={**installation.variables(), "BACKUP_POLICY": str(policy)},
            triggerer=True,
        )
        stack.enter_context(services)
        yield Running(installation, services, services.client(), installation.catalog(), mailbox.mails)


@pytest.mark.soak
@pytest.mark.requirement("R3.3", "R8.1")
def test_a_month_is_archived_and_comes_back_from_glacier_in_one_run(on: Running) -> None:
    on.triggered()
    made = on.triggered(ARCHIVE)
    archives = on.manifests("archive")
    bucket = on.catalog.bucket
    assert {archive.backup.retention_class for archive in archives} == set(CLASSES)
    assert all(on.catalog.verification(archive).state == "verified" for archive in archives)
    assert any(f"Archives of {datetime.now(UTC):%Y-%m}" in mail.subject for mail in on.mails), made
    for archive in archives:
        for each in references(archive):
            bucket.client.copy_object(
                Bucket=bucket.name,
                Key=each.key,
                CopySource={"Bucket": bucket.name, "Key": each.key},
                StorageClass="GLACIER",
            )
    for archive in archives:
        run = on.triggered(BACK, archive=archive.id, tier="Expedited")
        told = {task: on.client.xcom(BACK, run, task) for task in ("retrieve", "restore_data", "validate")}
        assert told["retrieve"] == {"retrieved": len(list(references(archive))), "warm": 0}
        assert told["restore_data"]["restored_rows"] == archive.database.rows
        assert told["validate"]["tables"] == archive.database.tables
        assert told["restore_data"].get("objects", 0) == archive.objects.objects
        assert any(archive.id in mail.subject for mail in on.mails)

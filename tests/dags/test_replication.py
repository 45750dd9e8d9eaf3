"""A run that waits for its bucket's own replication holds no worker, and copies what that fails at (R3.2)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from include.repository.catalog import Catalog
from include.repository.references import references
from include.repository.replica import BUCKET_REPLICATES
from include.sandbox.airflow import AirflowClient, AirflowServices
from include.sandbox.installation import Installation
from include.sandbox.mailbox import Mailbox
from include.sandbox.postgres import PostgresServer
from include.sandbox.proxy import Call, Fault, FaultyProxy
from include.sandbox.s3 import S3Server
from tests.dags.running import CREATE, FULL, RUN_WITHIN, SOON
from tests.integration.test_replica import replicating

PRIMARY = "synapse_backups_primary"


@dataclass
class Waiting:
    """An Airflow whose primary bucket replicates, as far as the proxy before it says so."""

    installation: Installation
    client: AirflowClient
    proxy: FaultyProxy


@pytest.fixture
def on(sandbox_directory: Path, postgres18: PostgresServer, s3_primary: S3Server) -> Iterator[Waiting]:
    """ministack replicates within one server, so both buckets are on one."""
    home = sandbox_directory / "replication"
    home.mkdir(mode=0o711)
    installation = Installation.make(
        home, postgres=postgres18, primary=s3_primary, replica=s3_primary, suffix="-replication", scale=0.05
    )
    replicating(installation.catalog().bucket, installation.replica_catalog().bucket, *BUCKET_REPLICATES)
    with FaultyProxy(s3_primary.endpoint_url) as proxy, Mailbox(home / "mails") as mailbox:
        connections = {**installation.connections(), "synapse_notifications": mailbox.connection()}
        primary = connections.pop(PRIMARY)
        primary["extra"]["endpoint_url"] = proxy.endpoint_url  # type: ignore[index]
        services = AirflowServices(
            home / "airflow",
            metadata=postgres18.superuser.with_database("airflow_replication"),
            connections=connections,
            variables=installation.variables(),
            triggerer=True,
        )
        with services:
            # In Airflow's own database, where the triggerer has to ask for it.
            file = home / "connections.json"
            file.write_text(json.dumps({PRIMARY: primary}))
            services.airflow("connections", "import", str(file))
            yield Waiting(installation, services.client(), proxy)
    installation.synapse.destroy()


def versioning(catalog: Catalog, status: str) -> None:
    bucket = catalog.bucket
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": status})  # type: ignore[typeddict-item]


def is_pending(call: Call) -> Fault | None:
    return Fault.PENDING if call.method == "HEAD" else None


@pytest.mark.soak
@pytest.mark.requirement("R3.2")
def test_the_wait_is_the_triggerers_and_what_failed_is_copied(on: Waiting) -> None:
    replica = on.installation.replica_catalog()
    versioning(replica, "Suspended")  # it takes no replicas, so that none is there
    on.proxy.fault = is_pending
    on.client.unpause(FULL)
    run = on.client.wait_for_run(FULL, "scheduled", within=SOON)
    on.client.wait_for_task(FULL, run, "replicate", {"deferred"}, within=RUN_WITHIN)
    made = on.client.xcom(FULL, run, CREATE)["id"]
    asked = [call for call in on.proxy.calls if call.method == "HEAD" and call.path.count("/") > 1]
    assert 1 <= len(asked) <= 2  # by the task and the triggerer, and not object by object
    assert [entry.manifest for entry in replica.entries()] == []
    versioning(replica, "Enabled")
    on.proxy.fault = lambda _: None  # FAILED, as it truly is
    ended = on.client.wait(FULL, run, within=RUN_WITHIN)
    assert ended == "success", on.client.task_states(FULL, run)
    [there] = [entry.manifest for entry in replica.entries()]
    assert there is not None
    assert there.id == made
    facts = on.client.xcom(FULL, run, "replicate")
    assert facts["objects"] >= len(list(references(there)))

"""What Airflow itself adds to a backup: a whole run of the DAG, without the engine's own seconds."""

from __future__ import annotations

import secrets
import statistics
from datetime import datetime
from pathlib import Path

from include.sandbox.airflow import AirflowServices
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import Installation
from include.sandbox.mailbox import Mailbox
from include.sandbox.postgres import PostgresServer

DAG, CREATE, INTEGRITY = "full_backup", "execute.create_backup", "verify.integrity"
RUNS = 3
SCALE = 0.01
WITHIN = 300.0


def airflow_overhead(directory: Path, postgres: PostgresServer, store: CephGateway) -> float:
    """Seconds, the median of some manual runs: from a run's beginning to its end, less copying and reading back.

    An upper bound: what the other tasks do themselves (the checks, the sample, the mails) counts as Airflow's.
    """
    suffix = f"-overhead-{secrets.token_hex(4)}"
    directory.mkdir()
    installation = Installation.make(
        directory, postgres=postgres, primary=store, replica=store, suffix=suffix, scale=SCALE
    )
    with (
        Mailbox(directory / "mails") as mailbox,
        AirflowServices(
            directory / "airflow",
            metadata=postgres.superuser.with_database(f"airflow{suffix}"),
            connections={**installation.connections(), "synapse_notifications": mailbox.connection()},
            variables=installation.variables(),
            triggerer=True,
        ) as services,
    ):
        client = services.client()
        client.unpause(DAG)
        client.wait(DAG, client.wait_for_run(DAG, "scheduled", within=WITHIN), within=WITHIN)
        spent = []
        for _ in range(RUNS):
            run = client.trigger(DAG)
            if client.wait(DAG, run, within=WITHIN) != "success":
                raise RuntimeError(f"{run} failed: its time would be a lie")
            engine = sum(float(client.xcom(DAG, run, task)["seconds"]) for task in (CREATE, INTEGRITY))
            spent.append(_seconds(next(each for each in client.runs(DAG) if each["dag_run_id"] == run)) - engine)
    installation.synapse.destroy()
    return statistics.median(spent)


def _seconds(run: dict[str, str]) -> float:
    began, ended = (datetime.fromisoformat(run[name]) for name in ("start_date", "end_date"))
    return (ended - began).total_seconds()

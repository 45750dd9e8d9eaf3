"""WAL between the hours, as a service beside Airflow."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer

from include.backup.scratch import SCRATCH_VARIABLE
from include.backup.stream import ship_continuously
from include.cli.connections import Connections
from include.cli.place import Place
from include.cli.printing import OUT
from include.policy import model as policy_model
from include.repository.catalog import Catalog


def stream(
    context: typer.Context,
    *,
    settings: Annotated[
        Path | None,
        typer.Option(help="A filled-in airflow_settings.yaml; else connections come from AIRFLOW_CONN_… variables."),
    ] = None,
    spool: Annotated[
        Path | None,
        typer.Option(help="Where segments wait, a directory of the stream's own; below BACKUP_SCRATCH unless given."),
    ] = None,
) -> None:
    """Ship each finished WAL segment to the backups' bucket, until SIGTERM or Ctrl-C.

    Run it as a supervised service, or unpause the DAG wal_stream: a second one waits until the first has ended.
    Stopping it loses nothing: the next hourly run receives what is not in the bucket.
    """
    logging.getLogger("include").setLevel(logging.INFO)
    place: Place = context.obj
    policy = place.policy()
    connections = Connections.read(settings, os.environ)
    over, keyring = threading.Event(), place.read_keyring()

    def named(bucket: policy_model.Bucket) -> Catalog | None:
        if not (connections.file or connections.has(bucket.connection)):
            return None
        return Catalog(
            connections.bucket(bucket.connection, called=bucket.bucket, region=bucket.region),
            keyring,
        )

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    done = ship_continuously(
        connections.application(policy),
        named(policy.storage.primary) or place.catalog(),
        policy,
        replica=named(policy.storage.replica) or place.replica(),
        spool=spool or _spool(),
        until=over,
    )
    OUT.print(
        f"{done.shipped} segments and histories shipped, {done.raw_bytes / 1e6:,.1f} MB of log, "
        f"{done.stored_bytes / 1e6:,.1f} MB stored, {done.replicated} of them in the replica; interrupted "
        f"{done.interruptions} times."
    )
    if done.failure is not None:
        raise done.failure


def _spool() -> Path:
    return Path(os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir()) / f"wal-stream-{os.getuid()}"

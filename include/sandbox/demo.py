"""`make demo`: back up a small Synapse that lives on, lose all of it, and bring back a moment between two writes.

Then the whole region is lost, and a drill brings everything back in the second one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from include.backup.summary import summary
from include.errors import BackupError
from include.repository.layout import BackupType
from include.repository.manifest import Manifest
from include.sandbox.airflow import AirflowClient, AirflowServices
from include.sandbox.drill import DISASTER_RECOVERY, RUN_WITHIN, drill_region_lost, lose_region, run_failed, told
from include.sandbox.fingerprint import Fingerprint
from include.sandbox.installation import Installation
from include.sandbox.life import Life
from include.sandbox.mailbox import Mailbox
from include.sandbox.stage import installed, out, stage, step

TRANSACTIONS = 200
"""What the application does between two backups."""


def main() -> int:
    """Run the demo; 0 when all came back equal and the drill passed, 1 when not, 130 when interrupted.

    Nothing of it stays behind.
    """
    began = time.monotonic()
    try:
        with stage("demo") as directory, installed(directory) as installation:
            good = _run(directory, installation)
    except KeyboardInterrupt:
        out.print("\nInterrupted: the servers are stopped.")
        return 130
    except (BackupError, TimeoutError) as failure:
        out.print(f"\n[bold red]The demo failed.[/] {failure}")
        return 1
    out.print(f"\nThe demo took {time.monotonic() - began:.0f} s, and removed everything it made.")
    return 0 if good else 1


def _run(directory: Path, installation: Installation) -> bool:
    with _airflow(directory, installation) as client:
        _back_up(client, "full_backup", "snapshot_backup")
        _live(installation)
        _back_up(client, "incremental_backup")
        moment, before = _live_until_noon(installation)
        with step("An accident: messages deleted, files overwritten"):
            _spoil(installation)
        _back_up(client, "incremental_backup", by_hand=True)
        equal = _lose_and_restore(installation, moment, before)
        _live(installation)
        _back_up(client, "incremental_backup", by_hand=True)
        with step("Losing the region: its store and its database are killed"):
            lose_region(installation)
        with step(f"Running the DAG {DISASTER_RECOVERY}, from the second region alone"):
            drill = drill_region_lost(client, installation)
    out.print()
    for part in told(installation, drill):
        out.print(part)
    return equal and drill.passed


def _lose_and_restore(installation: Installation, moment: datetime, before: Fingerprint) -> bool:
    with step("Losing everything: the database, every object, the configuration"):
        installation.synapse.destroy()
    with step(f"Bringing back {moment.isoformat()}, before the accident, with the break-glass command line"):
        restored = _restore(installation, moment)
    with step("Comparing every table, object and file with what there was at that moment"):
        after = installation.synapse.fingerprint()
    out.print()
    for type_ in ("full", "snapshot"):
        out.print(_backup_table(_newest(installation, type_)))
    out.print(_windows_table(installation))
    after = _with_sequences_of(before, after)
    out.print(_proof_table(before, after, restored))
    for difference in before.difference(after):
        out.print(f"[red]not equal[/]: {difference}")
    out.print()
    return before == after


def _with_sequences_of(before: Fingerprint, after: Fingerprint) -> Fingerprint:
    """A sequence may be ahead, and is as good: the log notes 32 numbers at a time, and none may be given out twice."""
    ahead = {name: last for name, last in before.sequences.items() if (after.sequences.get(name) or 0) >= (last or 0)}
    return replace(after, sequences={**after.sequences, **ahead})


@contextmanager
def _airflow(directory: Path, installation: Installation) -> Iterator[AirflowClient]:
    with ExitStack() as running:
        mailbox = running.enter_context(Mailbox(directory / "mails"))
        services = AirflowServices(
            directory / "airflow",
            metadata=installation.dr_postgres.superuser.with_database("airflow"),  # it outlives the first region
            connections={
                **installation.connections(),
                **installation.drill_connections(),
                "synapse_notifications": mailbox.connection(),
            },
            variables=installation.variables(),
        )
        with step("Starting Airflow"):
            running.enter_context(services)
        yield services.client()


def _back_up(client: AirflowClient, *dags: str, by_hand: bool = False) -> None:
    """Run the DAGs, side by side, and wait for their ends: the latest slot of each, or a run by hand."""
    with step(f"Running the DAG {' and the DAG '.join(dags)}"):
        runs = {}
        for dag in dags:
            client.unpause(dag)
            runs[dag] = client.trigger(dag) if by_hand else client.wait_for_run(dag, "scheduled", within=60.0)
        for dag, run in runs.items():
            if client.wait(dag, run, within=RUN_WITHIN) != "success":
                raise run_failed(client, dag, run)
            client.pause(dag)  # an hour that begins while there is nothing to back up begins no run


def _live(installation: Installation) -> None:
    synapse = installation.synapse
    with (
        step(f"Synapse lives on: {TRANSACTIONS} transactions, some with files"),
        Life(synapse.database, synapse.objects, synapse.bucket) as life,
    ):
        life.wait_for(TRANSACTIONS)


def _live_until_noon(installation: Installation) -> tuple[datetime, Fingerprint]:
    """A moment in the midst of a window, and what everything was then."""
    _live(installation)
    with step("Noting the moment, and what everything is"):
        installation.settle()
        with installation.synapse.database.connect(application_name="demo", autocommit=True) as session:
            session.execute("REFRESH MATERIALIZED VIEW monthly_usage")  # a restore computes it anew
            row = session.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None  # noqa: S101 - a SELECT without FROM has one row
        before = installation.synapse.fingerprint()
        installation.settle()
    return row[0], before


def _spoil(installation: Installation) -> None:
    synapse = installation.synapse
    with synapse.database.connect(application_name="demo") as session:
        session.execute("DELETE FROM attachments")
        session.execute("DELETE FROM messages WHERE id % 2 = 0")
    for key in sorted(before["Key"] for before in synapse.objects.list_objects_v2(Bucket=synapse.bucket)["Contents"])[
        :5
    ]:
        synapse.objects.put_object(Bucket=synapse.bucket, Key=key, Body=b"spoilt")


def _newest(installation: Installation, type_: BackupType) -> Manifest:
    return installation.catalog().latest(type_)


def _restore(installation: Installation, moment: datetime) -> dict[str, Any]:
    """As on the worst day: no Airflow, only the bucket, the keyring, and somewhere to restore to."""
    synapse = installation.synapse
    done = subprocess.run(
        [
            *(sys.executable, "-m", "include.cli", "--bucket", installation.backups),
            *("restore", "--to", moment.isoformat(), "--json"),
            *("--database", synapse.database.dbname),
            *("--objects", synapse.bucket),
            *("--configuration", str(synapse.configuration)),
        ],
        env={
            **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
            **installation.break_glass(),
        },
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BackupError("The restore failed.", mend="What it said stands above.")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _windows_table(installation: Installation) -> Table:
    """The increments, each contiguous with the one before."""
    table = Table("as of", "log", "objects", "stored MB", title="The increments", title_justify="left")
    for entry in installation.catalog().entries("incremental"):
        if entry.manifest is not None and (log := entry.manifest.wal) is not None:
            manifest = entry.manifest
            table.add_row(
                *(f"{manifest.consistency_point.time:%H:%M:%S}", f"{log.start_lsn} to {log.end_lsn}"),
                *(f"{manifest.objects.objects:,}", f"{manifest.stored_bytes / 1e6:,.1f}"),
            )
    return table


def _backup_table(manifest: Manifest) -> Table:
    """What was backed up, and what it took."""
    table = Table("what", "how many", "raw MB", "stored MB", "ratio", title=f"{manifest.id}", title_justify="left")
    commit = manifest.consistency_point.configuration_commit
    groups = {
        "database": f"{manifest.database.tables} tables, {manifest.database.rows or 0:,} rows",
        "objects": f"{manifest.objects.objects:,} objects",
        "config": f"commit {commit[:12]}, {manifest.configuration.files} files",
    }
    for group, count in groups.items():
        artifacts = [artifact for artifact in manifest.artifacts if artifact.name.startswith(f"{group}/")]
        packs = manifest.packs if group == "objects" else ()
        raw = sum(artifact.raw_bytes for artifact in artifacts) + sum(pack.raw_bytes for pack in packs)
        stored = sum(artifact.stored_bytes for artifact in artifacts) + sum(pack.stored_bytes for pack in packs)
        table.add_row(group.replace("config", "configuration"), count, *_sizes(raw, stored))
    facts = summary(manifest)
    table.add_section()
    table.add_row("all", f"in {facts['seconds']} s", *_sizes(manifest.raw_bytes, manifest.stored_bytes))
    table.add_row("speed", f"{facts['bytes_per_second'] / 1e6:.1f} MB/s")
    table.add_row("writes stopped", f"{facts['write_stop_ms']} ms (locks held {facts['locks_held_ms']} ms)")
    return table


def _proof_table(before: Fingerprint, after: Fingerprint, restored: dict[str, Any]) -> Table:
    """What was compared, and whether it is equal."""
    rows = sum(table.rows for table in before.tables.values())
    table = Table(
        *("restored", "compared by", "equal"), title=f"Restored in {restored['seconds']} s", title_justify="left"
    )
    proofs = {
        f"{len(before.tables)} tables and materialized views, {rows:,} rows": (
            "row count and content digest",
            "tables",
        ),
        f"{len(before.sequences)} sequences": ("last value, or one ahead", "sequences"),
        "schema, roles, settings": ("PostgreSQL's own description", "definitions"),
        f"{len(before.large_objects)} large objects": ("SHA-256", "large_objects"),
        f"{len(before.objects):,} objects": ("SHA-256, content type, metadata", "objects"),
        "configuration": ("git commit", "configuration"),
        f"{len(before.files)} environment files and secrets": ("SHA-256, mode", "files"),
    }
    for what, (how, attribute) in proofs.items():
        same = getattr(before, attribute) == getattr(after, attribute)
        table.add_row(what, how, "[green]yes[/]" if same else "[bold red]NO[/]")
    return table


def _sizes(raw: int, stored: int) -> tuple[str, str, str]:
    return f"{raw / 1e6:,.1f}", f"{stored / 1e6:,.1f}", f"{raw / stored:.2f}" if stored else "-"


if __name__ == "__main__":
    sys.exit(main())

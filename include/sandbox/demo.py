"""`make demo`: back up a small Synapse through Airflow, lose all of it, bring it back, and prove it equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.table import Table

from include.backup.summary import summary
from include.errors import BackupError
from include.repository.manifest import Manifest
from include.sandbox.airflow import AirflowServices
from include.sandbox.fingerprint import Fingerprint
from include.sandbox.installation import Installation
from include.sandbox.mailbox import Mailbox
from include.sandbox.stage import installed, out, stage, step

DAG = "full_backup"
RUN_WITHIN = 240.0


def main() -> int:
    """Run the demo; 0 when everything came back equal, 1 when not, 130 when interrupted. Nothing of it stays behind."""
    began = time.monotonic()
    try:
        with stage("demo") as directory, installed(directory) as installation:
            equal = _run(directory, installation)
    except KeyboardInterrupt:
        out.print("\nInterrupted: the servers are stopped.")
        return 130
    except (BackupError, TimeoutError) as failure:
        out.print(f"\n[bold red]The demo failed.[/] {failure}")
        return 1
    out.print(f"\nThe demo took {time.monotonic() - began:.0f} s, and removed everything it made.")
    return 0 if equal else 1


def _run(directory: Path, installation: Installation) -> bool:
    before = installation.synapse.fingerprint()
    manifest = _back_up(directory, installation)
    with step("Losing everything: the database, every object, the configuration"):
        installation.synapse.destroy()
    with step("Bringing it back with the break-glass command line"):
        restored = _restore(installation, manifest)
    with step("Comparing every table, object and file with what was lost"):
        after = installation.synapse.fingerprint()
    out.print()
    out.print(_backup_table(manifest))
    out.print(_proof_table(before, after, restored))
    for difference in before.difference(after):
        out.print(f"[red]not equal[/]: {difference}")
    return before == after


def _back_up(directory: Path, installation: Installation) -> Manifest:
    """Let Airflow's scheduler run the DAG's latest slot, and wait for its end."""
    with ExitStack() as running:
        mailbox = running.enter_context(Mailbox(directory / "mails"))
        services = AirflowServices(
            directory / "airflow",
            metadata=installation.postgres.superuser.with_database("airflow"),
            connections={**installation.connections(), "synapse_notifications": mailbox.connection()},
            variables=installation.variables(),
        )
        with step("Starting Airflow"):
            running.enter_context(services)
        with step(f"Running the DAG {DAG}"):
            client = services.client()
            client.unpause(DAG)
            run = client.wait_for_run(DAG, "scheduled", within=60.0)
            state = client.wait(DAG, run, within=RUN_WITHIN)
        if state != "success":
            failed = [name for name, task in client.task_states(DAG, run).items() if task == "failed"]
            raise BackupError(
                f"The run {run} ended as {state}; failed: {', '.join(failed)}.\n"
                + "\n".join(client.log(DAG, run, name)[-3000:] for name in failed[:1]),
                mend="The demo's servers are stopped; run it again.",
            )
    return installation.catalog().latest("full")


def _restore(installation: Installation, manifest: Manifest) -> dict[str, Any]:
    """As on the worst day: no Airflow, only the bucket, the keyring, and somewhere to restore to."""
    synapse = installation.synapse
    done = subprocess.run(
        [
            *(sys.executable, "-m", "include.cli", "--bucket", installation.backups),
            *("restore", manifest.id, "--json"),
            *("--database", synapse.database.dbname),
            *("--objects", synapse.bucket),
            *("--configuration", str(synapse.configuration)),
        ],
        env={
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
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
        f"{len(before.sequences)} sequences": ("last value", "sequences"),
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

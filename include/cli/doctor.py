"""Whether everything that a backup needs is there."""

from __future__ import annotations

import os
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from include.backup.checks.check import Finding, Unseen
from include.backup.doctor import Surroundings, diagnose
from include.cli.connections import Connections
from include.cli.place import JsonOption, Place, server
from include.cli.printing import OUT, print_json
from include.pipeline.store import Bucket
from include.policy import load_policy

FAILED = 1
_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}
_SHOWN_FACTS = 4


def doctor(
    context: typer.Context,
    *,
    settings: Annotated[
        Path | None,
        typer.Option(help="A filled-in airflow_settings.yaml: its connections are looked at, through them the rest."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at everything that a backup needs, and say how to mend what is wrong; ends with 1 when anything failed.

    Connections come from --settings, else from AIRFLOW_CONN_… variables. Without either, the options of this command
    line name the bucket, PGHOST and its like the server that a restore would go to, and the rest is not looked at.
    """
    findings = diagnose(_surroundings(context.obj, Connections.read(settings, os.environ)))
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        _print(findings)
    if any(finding.verdict == "failed" for finding in findings):
        raise typer.Exit(FAILED)


def _surroundings(place: Place, connections: Connections) -> Surroundings:
    return Surroundings(
        temporary=_temporary(),
        keyring_file=place.keyring,
        keyring=cache(place.read_keyring),
        primary=cache(partial(_primary, place, connections)),
        replica=cache(partial(_replica, connections)),
        objects=cache(lambda: connections.bucket(load_policy().sources.objects.connection)),
        configuration=lambda: connections.configuration(load_policy().sources.configuration.connection),
        barrier=lambda: connections.login(load_policy().sources.database.barrier_connection),
        dump=lambda: connections.login(load_policy().sources.database.dump_connection),
        replication=lambda: connections.login(load_policy().sources.database.replication_connection),
        scratch=lambda: connections.login(load_policy().sources.database.scratch_connection),
        restore_server=server if os.environ.get("PGHOST") else None,
    )


def _primary(place: Place, connections: Connections) -> Bucket:
    """Through its connection; where there is none, through the options of the command line."""
    primary = place.policy().storage.primary
    if not connections.file and not connections.has(primary.connection):
        return place.backups()
    return connections.bucket(primary.connection, called=primary.bucket, region=primary.region)


def _replica(connections: Connections) -> Bucket:
    replica = load_policy().storage.replica
    if connections.file and not connections.has(replica.connection):
        raise Unseen(
            f"There is no connection {replica.connection}: no backup is copied to a second region (R3.2).",
            mend="Add it: a backup that lies in one region is lost with it.",
        )
    return connections.bucket(replica.connection, called=replica.bucket, region=replica.region)


def _temporary() -> Path:
    """Where a run on this worker would put temporary files."""
    if scratch := os.environ.get("BACKUP_SCRATCH"):
        return Path(scratch)
    home = os.environ.get("AIRFLOW_HOME")
    return Path(home) / "scratch" if home else Path(tempfile.gettempdir())


def _print(findings: list[Finding]) -> None:
    table = Table("", "what", "check", "found", box=None, pad_edge=False)
    for finding in findings:
        colour = _COLOURS[finding.verdict]
        told = finding.what or ", ".join(
            f"{name} {value}" for name, value in list(finding.facts.items())[:_SHOWN_FACTS]
        )
        table.add_row(f"[{colour}]{finding.verdict}[/]", finding.subject, finding.check, escape(told))
        if finding.mend:
            table.add_row("", "", "", f"[bold]next[/]: {escape(finding.mend)}")
    OUT.print(table)
    counted = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in _COLOURS}
    OUT.print(", ".join(f"{count} {verdict}" for verdict, count in counted.items()))

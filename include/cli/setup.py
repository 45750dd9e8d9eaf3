"""Both buckets, made or checked."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from include.cli.place import JsonOption
from include.cli.printing import OUT, print_json
from include.repository.setup import set_up

_COLOURS = {"changed": "green", "to be changed": "yellow", "left to a person": "red"}


def setup(
    context: typer.Context,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be changed; change nothing.")] = False,
    replication_role: Annotated[
        str, typer.Option(metavar="ARN", help="The IAM role with which AWS replicates the primary bucket.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Make both buckets, or check that they are what the policy says, and set what is not.

    Versions, encryption, public access, lifecycle, replication, and Object Lock when the policy has it. A second set-up
    changes nothing. What a store does not know is told, with what stands in for it.
    """
    place = context.obj
    found = set_up(
        place.backups(), place.replica_backups(), place.policy(), replication_role=replication_role, dry_run=dry_run
    )
    if as_json:
        print_json([asdict(finding) for finding in found])
        return
    table = Table("bucket", "what", "is", "in detail", box=None, pad_edge=False)
    for finding in found:
        colour = _COLOURS.get(finding.state)
        state = f"[{colour}]{finding.state}[/]" if colour else finding.state
        table.add_row(finding.bucket, finding.aspect, state, escape(finding.detail))
    OUT.print(table)
    if dry_run:
        OUT.print("Nothing was changed: this was a dry run.")

"""The second region: what is not there yet is brought, and with `--repair` all of it is looked at."""

from __future__ import annotations

from typing import Annotated

import typer

from include.backup.replicate import catch_up
from include.cli.place import JsonOption, Place
from include.cli.printing import OUT, megabytes, print_json


def replicate(
    context: typer.Context,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Look at every object of every backup there, and copy what is missing or wrong."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring every backup that the replica does not have yet, its manifest last; what is on its way is copied, too.

    The server's replication slot stays where it is: the next run of a backup's DAG moves it.
    """
    place: Place = context.obj
    primary, replica = place.catalog(), place.replica()
    facts = catch_up(application=None, primary=primary, replica=replica, policy=place.policy(), everything=repair)
    if as_json:
        print_json(facts)
        return
    OUT.print(
        f"{facts['backups']} backups brought to {replica.bucket}: {facts['objects']} objects, "
        f"{megabytes(facts['bytes'])}, {facts['mended']} of them there and wrong; {facts['compared']} compared, "
        f"{facts['sampled']} opened there."
    )

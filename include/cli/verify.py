"""Whether a backup is whole, and whether its size is right after all."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from include.backup.sample import named
from include.backup.verify import STARTED, accept_sizes, prove_integrity, prove_sample, prove_sizes, prove_start
from include.cli.place import BackupArgument, JsonOption, find_backup, scratch_directory, server
from include.cli.printing import OUT, megabytes, print_json
from include.repository.leases import reading


def verify(
    context: typer.Context,
    backup: BackupArgument,
    *,
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="COMPONENT",
            help="Restore this component too, and compare it; one of the database on the server of PGHOST, PGPORT, "
            "PGUSER and PGPASSWORD, in a database that is dropped again. `cluster`, of a snapshot: start all of it "
            "on a private server, and compare every table.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of a backup back and compare it with the signed manifest; weigh it; restore a sample of it.

    Each result is written beside the backup as a signed record. One that failed takes the backup out of every plan, and
    a later one that passed puts it back.
    """
    catalog, policy = context.obj.catalog(), context.obj.policy()
    manifest = find_backup(catalog, backup)
    if sample and manifest.type == "archive":
        raise typer.BadParameter("Of an archive no sample is restored: restore it, into a database to look at.")
    facts: dict[str, Any] = {"id": manifest.id}
    with scratch_directory() as scratch, reading(catalog, [manifest.id], policy, what="verify"):
        started = manifest.base is not None and sample == STARTED
        turn = named(manifest, policy, sample) if sample and not started else None
        facts["integrity"] = prove_integrity(catalog, manifest.backup, policy, scratch=scratch)
        facts["sizes"] = prove_sizes(catalog, manifest.backup, policy, scratch=scratch)
        if started:
            facts["sample"] = prove_start(catalog, manifest, policy, scratch=scratch)
        if turn:
            facts["sample"] = prove_sample(
                catalog, manifest, policy, turn, server=server(), source=None, scratch=scratch
            )
    if as_json:
        print_json(facts)
        return
    whole, sizes = facts["integrity"], facts["sizes"]
    OUT.print(
        f"{manifest.id} is whole: {whole['artifacts']} artifacts and {whole['objects']:,} objects, "
        f"{megabytes(whole['raw_bytes'])} from {megabytes(whole['stored_bytes'])} stored, in {whole['seconds']} s."
    )
    if "shrunk" in sizes:
        OUT.print(f"Its sizes fit its source; that it shrank was accepted: {escape(sizes['shrunk'])}.", soft_wrap=True)
    elif "compared_with" not in sizes:
        OUT.print("It has all that it counts; an increment is compared with none before it: an hour may be idle.")
    elif sizes["compared_with"]:
        OUT.print(f"Its sizes fit its source, and nothing shrank: compared with {sizes['compared_with']} before it.")
    else:
        OUT.print("Its sizes fit its source; there is no backup before it to compare it with.")
    if started:
        OUT.print(f"It was started, and its {facts['sample']['tables']} tables are equal.")
    if turn:
        OUT.print(f"Its {escape(turn.component.name)} was restored, and is equal.")


def accept(
    context: typer.Context,
    backup: BackupArgument,
    because: Annotated[str, typer.Option(help="Why it is right; kept with your name, for whoever audits it.")],
    as_json: JsonOption = False,
) -> None:
    """Say that a backup is rightly so much smaller than those before it, and put it back into the plans.

    Once is enough: the next backups are compared with this one. It must still fit its source.
    """
    if not because.strip():
        raise typer.BadParameter("Say why.", param_hint="--because")
    catalog, policy = context.obj.catalog(), context.obj.policy()
    manifest = find_backup(catalog, backup)
    with scratch_directory() as scratch:
        facts = accept_sizes(catalog, manifest.backup, policy, because=because.strip(), scratch=scratch)
    if as_json:
        print_json({"id": manifest.id, **facts})
        return
    OUT.print(f"{manifest.id} is accepted as it is: {escape(facts['shrunk'])}.", soft_wrap=True)
    OUT.print(f"The record is {facts['record']}.", soft_wrap=True)
    OUT.print("One made since, and refused for the same, passes when it is verified again.")

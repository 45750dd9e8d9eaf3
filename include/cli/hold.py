"""Legal holds: a backup that nobody may delete until it is released."""

from __future__ import annotations

from typing import Annotated

import typer

from include.cli.place import BackupArgument, JsonOption, find_backup
from include.cli.printing import OUT, print_json
from include.repository import holds
from include.repository.layout import BackupId
from include.repository.signed import writer

BecauseOption = Annotated[str, typer.Option(help="Why; kept with your name, for whoever audits it.")]


def hold(context: typer.Context, backup: BackupArgument, because: BecauseOption, as_json: JsonOption = False) -> None:
    """Hold a backup, whatever its age, and all that restoring it takes; in the one bucket that the options name."""
    catalog = context.obj.catalog()
    held = find_backup(catalog, backup).backup
    _tell(holds.hold(catalog, held, by=writer(), because=_said(because)), as_json=as_json)


def release(
    context: typer.Context, backup: BackupArgument, because: BecauseOption, as_json: JsonOption = False
) -> None:
    """End the hold of a backup: its retention decides again."""
    catalog = context.obj.catalog()
    _tell(holds.release(catalog, BackupId.parse(backup), by=writer(), because=_said(because)), as_json=as_json)


def _said(because: str) -> str:
    if not because.strip():
        raise typer.BadParameter("Say why.", param_hint="--because")
    return because.strip()


def _tell(record: holds.Hold, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": record.backup, "held": record.held, "record": record.home})
        return
    OUT.print(f"{record.backup} is {'held' if record.held else 'released'}.")
    OUT.print(f"The record is {record.home}.", soft_wrap=True)

"""What dead runs left behind: shown, and with `--remove` removed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from include.backup.reaper import NotRemoved, Reaper, remove
from include.backup.scratch import SCRATCH_VARIABLE
from include.cli.place import JsonOption, server
from include.cli.printing import ERR, OUT, megabytes, print_json
from include.repository.manifest import moment_text


def reap(
    context: typer.Context,
    really: Annotated[bool, typer.Option("--remove", help="Remove what is found; otherwise it is only shown.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what dead runs left behind, and remove it when told to.

    The server that PGHOST, PGPORT, PGUSER and PGPASSWORD name is asked which tries live: it must be the one that is
    backed up. Temporary directories are those below BACKUP_SCRATCH, and of recoveries those below TMPDIR.
    """
    root = os.environ.get(SCRATCH_VARIABLE)
    login = server()
    reaper = Reaper(
        context.obj.catalog(),
        context.obj.policy(),
        source=[login],
        restores=login,
        root=Path(root) if root else None,
        temporary=Path(tempfile.gettempdir()),
    )
    leftovers = reaper.find()
    stays = remove(leftovers.findings) if really else []
    if as_json:
        print_json({**leftovers.to_json(), "removed": really, "stays": stays})
    else:
        table = Table("what", "which", "where", "since", "size", "why", box=None, pad_edge=False)
        for each in leftovers.findings:
            table.add_row(
                *(each.kind, escape(each.name), escape(each.where), moment_text(each.since)),
                *(megabytes(each.bytes), escape(each.why)),
            )
        OUT.print(table if table.rows else "Dead runs left nothing behind.")
        for words in leftovers.left_alone:
            ERR.print(f"[yellow]left alone[/]: {escape(words)}", soft_wrap=True)
        if table.rows and not really:
            OUT.print("Nothing was removed: add --remove.")
    if stays:
        raise NotRemoved(
            f"{len(stays)} of {len(leftovers.findings)} stay. " + " ".join(stays),
            mend="Mend what they name; reap again.",
        )

"""What the commands print: facts on standard output, the rest on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from include.errors import BackupError
from include.pipeline.progress import Progress, Snapshot

OUT, ERR = Console(), Console(stderr=True)


@contextmanager
def progress_bar(label: str, total: int, quiet: bool) -> Iterator[Progress]:
    """A bar of so many bytes on standard error where a person looks at it, nothing otherwise."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=ERR, disable=quiet or not ERR.is_terminal, transient=True) as bars:
        bar = bars.add_task(label, total=total)

        def report(snapshot: Snapshot) -> None:
            bars.update(bar, completed=snapshot.raw_bytes)

        with Progress(label, every=timedelta(seconds=0.2), report=report) as progress:
            yield progress


def print_json(value: Any) -> None:
    """Facts for a program."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def megabytes(size: int) -> str:
    """A size in bytes, as people read it."""
    return f"{size / 1e6:,.2f} MB"


def tell(error: BackupError) -> None:
    """What happened, and what to do next."""
    # Names are told as they are: nothing in them is markup, and no line end is put into them.
    ERR.print(f"[bold red]error[/]: {escape(error.what)}", highlight=False, soft_wrap=True)
    ERR.print(f"  [bold]next[/]: {escape(error.mend)}", highlight=False, soft_wrap=True)

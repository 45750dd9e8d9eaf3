"""After ransomware: the newest backup from before anything looks wrong."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from include.cli.place import JsonOption
from include.cli.printing import ERR, print_json
from include.disaster.last_good import find_last_good


def last_good(context: typer.Context, *, as_json: JsonOption = False) -> None:
    """The newest backup of the bucket that nothing speaks against, alone on standard output, as --to takes it.

    What speaks against newer ones is told on standard error: verifications that failed, content that stopped
    compressing or shrank, many objects changed at once, pieces or manifests that were hidden, deleted or forged; and
    whatever was made after that.
    """
    found = find_last_good(context.obj.catalog(), context.obj.policy())
    if as_json:
        print_json(
            {
                "id": found.backup.id,
                "time": found.backup.consistency_point.time.isoformat(),
                "doubted": [
                    {"id": one.id, "time": one.time.isoformat(), "reasons": list(one.reasons)} for one in found.doubted
                ],
            }
        )
        return
    for line in found.lines():
        ERR.print(escape(line), soft_wrap=True, highlight=False)
    sys.stdout.write(f"{found.backup.id}\n")

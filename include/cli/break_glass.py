"""The recovery as a script, for the day when Airflow is lost: write it down before, and keep it beside the keys."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from include.cli.printing import OUT
from include.disaster.break_glass import break_glass_script
from include.disaster.plan import Copy, load_plan
from include.errors import BackupError


def break_glass(
    context: typer.Context,
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="Of the disaster-recovery plan.")],
    *,
    copy: Annotated[
        str | None,
        typer.Option(metavar="primary|replica", help="Which copy of the backups; the scenario's first unless given."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there, executable, in place of printing it.")
    ] = None,
) -> None:
    """Write the plan's steps as a bash script that recovers without Airflow. It holds no secret."""
    plan = load_plan()
    chosen = plan.scenarios.get(scenario)
    taken: Copy = chosen.copies[0] if chosen else "replica"
    if copy is not None:
        if copy not in ("primary", "replica"):
            raise typer.BadParameter("It is primary or replica.", param_hint="--copy")
        taken = "primary" if copy == "primary" else "replica"
    script = break_glass_script(plan, context.obj.policy(), scenario, taken)
    if output is None:
        sys.stdout.write(script)
        return
    try:
        with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755), "w", encoding="utf-8") as file:
            file.write(script)
    except FileExistsError:
        raise BackupError(f"{output} is there already.", mend="Name another file.") from None
    OUT.print(f"{output} recovers {scenario} from the {taken}.", soft_wrap=True)

"""What the recovery runbook has proved: the newest drill of every scenario and copy, and whose turn it is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from include.cli.place import JsonOption
from include.cli.printing import OUT, print_json
from include.disaster.history import Drill, newest_drills, next_drill, overdue, read_drills, told
from include.disaster.plan import load_plan
from include.repository.manifest import moment_text


def drills(context: typer.Context, *, as_json: JsonOption = False) -> None:
    """The newest drill of every scenario from every copy: RTO and RPO, and what it did not keep.

    Read from one bucket: a drill is written down in the copy that it restored from, so look at the replica's, too
    (--bucket, --region). What is overdue by the plan is red.
    """
    plan, now = load_plan(), datetime.now(UTC)
    known = read_drills([context.obj.catalog()])
    newest, late, turn = newest_drills(plan, known), overdue(plan, known, now), next_drill(plan, known)
    if as_json:
        print_json(
            {
                "drills": [
                    {"scenario": scenario, "copy": copy, "overdue": (scenario, copy) in late, **_facts(drill)}
                    for (scenario, copy), drill in newest.items()
                ],
                "next": {"scenario": turn[0], "copy": turn[1]},
            }
        )
        return
    table = Table("scenario", "copy", "when", "RTO", "RPO", "", box=None, pad_edge=False)
    for (scenario, copy), drill in newest.items():
        colour = "red" if (scenario, copy) in late else "green"
        if drill is None:
            table.add_row(scenario, copy, f"[{colour}]never[/]", "", "", "")
            continue
        table.add_row(
            *(scenario, copy, f"[{colour}]{moment_text(drill.declared)}[/]"),
            *("" if period is None else told(period) for period in (drill.rto, drill.rpo)),
            "" if drill.passed else f"[red]{escape('; '.join(drill.missed))}[/]",
        )
    OUT.print(table)
    OUT.print(f"Next: {turn[0]} from the {turn[1]}; {len(late)} of {len(newest)} are overdue.", soft_wrap=True)


def _facts(drill: Drill | None) -> dict[str, Any]:
    if drill is None:
        return {"when": None}
    return {
        "when": drill.declared.isoformat(),
        "rto_seconds": drill.rto and drill.rto.total_seconds(),
        "rpo_seconds": drill.rpo and drill.rpo.total_seconds(),
        "missed": drill.missed,
        "record": drill.home,
    }

"""What of the hourly schedule can be restored: the ledger, computed from the bucket."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from include.cli.place import JsonOption
from include.cli.printing import OUT, print_json
from include.policy import Policy
from include.repository.catalog import Catalog
from include.repository.ledger import Ledger
from include.repository.manifest import moment_text

_COLOURS = {"complete": "green", "adopted": "green", "gap": "red", "missing": "red"}


def windows(
    context: typer.Context,
    *,
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M%z", "%Y-%m-%d"],
            help="From when on, with its UTC offset as in 2026-11-22T00:00+00:00; a date is in UTC. The policy's "
            "retention unless given.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Each hour of the incremental schedule: complete, adopted, gap or missing; and the newest recoverable moment."""
    policy: Policy = context.obj.policy()
    catalog: Catalog = context.obj.catalog()
    now = datetime.now(UTC)
    told = Ledger.read(catalog, policy, since=_begin(policy, since, now), until=now)
    if as_json:
        print_json(told.to_json())
        return
    table = Table("from", "to", "state", "by", box=None, pad_edge=False)
    for each in told.slots:
        by = each.backup or (each.gap and f"{each.gap.start_lsn} to {each.gap.end_lsn}") or ""
        table.add_row(
            moment_text(each.start), moment_text(each.end), f"[{_COLOURS[each.state]}]{each.state}[/]", escape(by)
        )
    OUT.print(table if table.rows else "No hour of the schedule has ended since then.")
    for gap in told.gaps:
        OUT.print(
            f"[red]gap[/]: no moment from {moment_text(gap.after)} to {moment_text(gap.before)}, and none after it "
            f"before the next base, can be restored: {escape(gap.because)} ({gap.home})",
            soft_wrap=True,
        )
    if told.newest is None:
        OUT.print("There is no base and no window: nothing can be restored to a moment between backups.")
    else:
        newest = told.newest
        beyond = f", and log shipped since then to {newest.reaches}" if newest.shipped else ""
        OUT.print(f"newest recoverable moment: {moment_text(newest.time)} ({newest.backup}){beyond}", soft_wrap=True)


def _begin(policy: Policy, since: datetime | None, now: datetime) -> datetime:
    if since is None:
        return policy.backups.incremental.retention.before(now)
    return since if since.tzinfo else since.replace(tzinfo=UTC)

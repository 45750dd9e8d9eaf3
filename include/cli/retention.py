"""What retention would delete, and why everything else stays; with `--apply`, deleted."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from include.cli.place import JsonOption
from include.cli.printing import ERR, OUT, megabytes, print_json
from include.errors import BackupError
from include.repository.expiry import Outcome, Plan, Retention
from include.repository.layout import named_by
from include.repository.manifest import moment_text
from include.repository.needs import words_of
from include.repository.retention import Verdict


def retention(
    context: typer.Context,
    *,
    plan: Annotated[bool, typer.Option("--plan", help="Only show it; so it is without --apply, too.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Delete what is shown, for good.")] = False,
    why: Annotated[
        str | None, typer.Option(metavar="KEY_OR_ID", help="Why one backup or object stays, or that it goes.")
    ] = None,
    accept_missing: Annotated[
        bool,
        typer.Option(
            "--accept-missing",
            help="Also when backups are missing that the last run saw: somebody deleted them on purpose.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what goes, what stays and why, and which moments could not be restored any more; delete it with --apply.

    It is about the one bucket that the options name, by its own catalog: run it for each.
    """
    if apply and (plan or why):
        raise typer.BadParameter("--apply goes with neither --plan nor --why.")
    catalog, policy = context.obj.catalog(), context.obj.policy()
    keeper = Retention(catalog, policy)
    found = keeper.plan()
    if why:
        _tell_why(found, why, as_json=as_json)
        return
    outcome = keeper.apply(found, accept_missing=accept_missing) if apply else None
    if as_json:
        print_json({**found.to_json(), "applied": outcome.facts() if outcome else None})
    else:
        _tell(found, outcome)
    if outcome:
        outcome.require(policy, catalog.bucket.clock())


def _tell(plan: Plan, outcome: Outcome | None) -> None:
    table = Table("goes", "as of", "stored", box=None, pad_edge=False)
    for backup in plan.going:
        table.add_row(backup.id, moment_text(backup.time), megabytes(backup.stored_bytes))
    OUT.print(table if table.rows else "No backup goes.")
    for tombstone in plan.unfinished:
        OUT.print(f"the rest of {tombstone.backup}, whose deletion was cut short, goes")
    OUT.print(f"{plan.objects:,} versions, {megabytes(plan.bytes)}, go in all")
    kinds = plan.decisions.reasons_by_kind()
    told = ", ".join(f"{count} ({kind})" for kind, count in sorted(kinds.items())) or "none"
    OUT.print(f"{len(plan.decisions.staying)} backups stay: {told}", soft_wrap=True)
    for interval in plan.decisions.restorable_after:
        OUT.print(f"restorable behind it: {words_of(interval)}")
    for interval in plan.moments_lost:
        OUT.print(f"[yellow]not restorable any more[/]: {words_of(interval)}")
    for key in plan.missing:
        ERR.print(f"[red]missing[/]: the last run saw {escape(key)}", soft_wrap=True)
    if outcome is None:
        OUT.print("Nothing was deleted: add --apply.")
        return
    OUT.print(f"{len(outcome.deleted)} backups were deleted, {outcome.objects:,} versions; {outcome.record} says so.")
    for what, words in outcome.put_off.items():
        OUT.print(f"put off: {what}: {escape(words)}", soft_wrap=True)
    for what, since in outcome.locked.items():
        OUT.print(f"locked: {escape(what)}, which was to go since {moment_text(since)}", soft_wrap=True)
    if not outcome.all_done:
        OUT.print("The policy's bound for one run is reached: run it again for the rest.")


def _tell_why(plan: Plan, name: str, *, as_json: bool) -> None:
    verdict = _verdict(plan, name)
    if as_json:
        print_json({"name": name, "stays": verdict.stays, "reasons": [each._asdict() for each in verdict.reasons]})
        return
    if not verdict.stays:
        OUT.print(f"{escape(name)} goes: nothing keeps it.")
    for reason in verdict.reasons:
        until = f", until {moment_text(reason.until)}" if reason.until else ""
        OUT.print(f"{escape(name)} stays: {escape(reason.words)}{until} ({reason.kind})", soft_wrap=True)


def _verdict(plan: Plan, name: str) -> Verdict:
    if named_by(name) is None:
        return plan.decisions.of(name, plan.decisions.now)
    if name not in plan.decisions.backups:
        raise BackupError(f"{name} is not in {plan.bucket}.", mend="`python -m include.cli list` shows what is.")
    return plan.decisions.backups[name]

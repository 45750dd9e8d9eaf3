"""Bringing a moment back: `restore --to`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from include.cli.place import Place, scratch_directory
from include.cli.printing import ERR, OUT, print_json, progress_bar
from include.disaster.route import plan_route
from include.recovery.moments.plan import EVERYTHING, What, iso
from include.recovery.moments.planning import Target, plan_recovery
from include.recovery.moments.restore import Chosen, Destinations, RestoredMoment, restore_to
from include.recovery.selection import some_of


def restore_moment(
    place: Place,
    target: str,
    into: Destinations,
    chosen: Chosen,
    *,
    only_plan: bool,
    as_json: bool,
    expected: Path | None = None,
) -> None:
    """Plan, tell the plan, and bring the moment back unless only the plan is asked for; write down what it must be."""
    what = _what(into, only_plan=only_plan)
    aim = Target.parse(target)
    catalog, policy = place.catalog(), place.policy()
    with scratch_directory() as scratch:
        scratch.chmod(0o711)  # PostgreSQL does not run as root
        plan = plan_recovery(catalog, aim, policy, what=what, scratch=scratch)
        if only_plan:
            if as_json:
                print_json(plan.to_json())
            else:
                OUT.print(escape(str(plan)), soft_wrap=True, highlight=False)
            return
        ERR.print(escape(str(plan)), soft_wrap=True, highlight=False)
        with progress_bar(f"recovering to {iso(plan.reaches)}", plan.raw_bytes, as_json) as progress:
            restored = restore_to(plan, catalog, policy, into, scratch=scratch, progress=progress, chosen=chosen)
            seconds = round(progress.usage().seconds, 1)
    if expected is not None:
        restored.expected.write(expected)
    facts = restored_facts(restored)
    if as_json:
        print_json({**facts, "seconds": seconds})
        return
    OUT.print(f"Recovered to {iso(plan.reaches)}, in {seconds} s:")
    for line in _told(into, restored):
        OUT.print(f"  {escape(line)}", soft_wrap=True, highlight=False)


def _what(into: Destinations, *, only_plan: bool) -> tuple[What, ...]:
    """The parts that have a place; a plan without any is of everything."""
    wanted: dict[What, bool] = {
        "database": into.needs_cluster,
        "objects": into.objects is not None,
        "configuration": into.configuration is not None,
    }
    what = tuple(part for part in EVERYTHING if wanted[part])
    if not what and not only_plan:
        raise typer.BadParameter(
            "Name at least one of --database, --data-directory, --objects and --configuration; or --plan."
        )
    return what or EVERYTHING


def full_instead(place: Place, target: str) -> str | None:
    """The full backup where base and log do not lead to a target, which is told; None where they do."""
    with scratch_directory() as scratch:
        route = plan_route(place.catalog(), Target.parse(target), place.policy(), scratch=scratch)
    if route.full is None:
        return None
    for line in route.lines():
        ERR.print(escape(line), soft_wrap=True, highlight=False)
    return route.full.id


def restored_facts(restored: RestoredMoment) -> dict[str, Any]:
    """What was brought back, for programs."""
    facts: dict[str, Any] = {"plan": restored.plan.to_json(), "facts": restored.facts, "warnings": restored.warnings}
    if database := restored.database:
        facts["database"] = {
            "name": database.name,
            "tables": database.tables,
            "rows": database.rows,
            "left_out": list(database.left_out),
            "replaced": database.replaced,
        }
    if restored.data_directory:
        facts["data_directory"] = str(restored.data_directory)
    if objects := restored.objects:
        facts["objects"] = {
            "objects": objects.written,
            "unchanged": objects.unchanged,
            "replaced": objects.replaced,
        }
    if configuration := restored.configuration:
        facts["configuration"] = {
            "commit": configuration.commit,
            "files": list(configuration.written),
            "unchanged": list(configuration.unchanged),
            "replaced": str(configuration.kept_in) if configuration.kept_in else None,
        }
    return facts


def _told(into: Destinations, restored: RestoredMoment) -> Iterator[str]:
    facts = restored.facts
    if database := restored.database:
        yield f"database {database.name}: {database.tables} tables, {database.rows:,} rows, equal to the recovered ones"
        if database.replaced:
            yield f"  the database that was there is kept as {database.replaced}"
        for name in database.left_out:
            yield f"  left out: {name}"
    if restored.data_directory:
        yield f"data directory {restored.data_directory}: a whole cluster, stopped, on timeline {facts['timeline']}"
    if "compared_with" in facts:
        if facts["compared_with"]:
            yield f"every table is what {facts['compared_with']} recorded of that moment"
        yield "the recovered server was started, and took a write"
    if (objects := restored.objects) and into.objects is not None:
        yield f"objects in {into.objects.name}: {objects.written:,}, each equal to the source's"
        if objects.unchanged:
            yield f"  {objects.unchanged:,} were there already, and the same"
        if objects.replaced:
            yield f"  {len(objects.replaced)} were overwritten, and the bucket keeps what they were"
    if configuration := restored.configuration:
        what = f"files {some_of(configuration.written)} as of " if configuration.written else ""
        yield f"configuration in {into.configuration}: {what}commit {configuration.commit}"
        if configuration.kept_in:
            yield f"  what was there is kept in {configuration.kept_in}"
    yield f"skew between the three: {facts['skew']}"
    for warning in restored.warnings:
        yield f"warning: {warning}"


def absolute(path: Path | None) -> Path | None:
    """A path that does not depend on where the command was run."""
    return path.absolute() if path else None

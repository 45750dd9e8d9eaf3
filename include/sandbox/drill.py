"""The end of `make demo`: the primary region is killed, a drill brings everything back, and a table tells all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from rich.markup import escape
from rich.table import Column, Table

from include.disaster.history import Drill, Looked, read_drills
from include.disaster.history import told as told_period
from include.disaster.plan import DisasterPlan, load_plan
from include.errors import BackupError
from include.repository.layout import VALIDATIONS
from include.sandbox.airflow import AirflowClient
from include.sandbox.installation import Installation

DISASTER_RECOVERY = "disaster_recovery"
SCENARIO = "region_lost"
RUN_WITHIN = 240.0


def lose_region(installation: Installation) -> None:
    """Kill the first region's store and database, as a power cut would.

    Raises `BackupError` when the second region has not the newest backup: then there would be nothing to show.
    """
    newest, there = installation.catalog().latest("incremental"), installation.replica_catalog().latest("incremental")
    if there.id != newest.id:
        raise BackupError(f"{newest.id} is not in the second region: {there.id} is.", mend="See the task `replicate`.")
    installation.primary.crash()
    installation.postgres.crash()


def drill_region_lost(client: AirflowClient, installation: Installation) -> Drill:
    """Run the recovery runbook as an operator does, and read what became of it from the second region's bucket.

    A drill that did not pass is returned too; raises `BackupError` when the run ended without a record of it.
    """
    client.unpause(DISASTER_RECOVERY)
    run = client.trigger(DISASTER_RECOVERY, conf={"scenario": SCENARIO})
    state = client.wait(DISASTER_RECOVERY, run, within=RUN_WITHIN)
    drills = read_drills([installation.replica_catalog()])
    if not drills or (state != "success" and drills[-1].passed):
        raise run_failed(client, DISASTER_RECOVERY, run)
    return drills[-1]


def run_failed(client: AirflowClient, dag: str, run: str) -> BackupError:
    """What a run that is not green says of itself."""
    failed = [name for name, task in client.task_states(dag, run).items() if task == "failed"]
    return BackupError(
        f"The run {run} of {dag} is not green; failed: {', '.join(failed)}.\n"
        + "\n".join(client.log(dag, run, name)[-3000:] for name in failed[:1]),
        mend="The demo's servers are stopped; run it again.",
    )


def told(installation: Installation, drill: Drill) -> Iterator[Table | str]:
    """The drill for people: the table, whatever was missed, and where each check stands with its values."""
    yield drill_table(drill, load_plan())
    for missed in drill.missed:
        yield f"[red]missed[/]: {escape(missed)}"
    yield (
        f"Each check with what it expected and found: the button [bold]Validation[/] of the three tasks that check; "
        f"their pages are kept in {installation.replica_backups}/{VALIDATIONS}."
    )


def drill_table(drill: Drill, plan: DisasterPlan) -> Table:
    """Each step and its time, RTO and RPO beside what was promised, and every check: those that failed in full."""
    title = f"The drill {'passed' if drill.passed else 'did NOT pass'}: {drill.scenario} from the {drill.from_copy}"
    table = Table(
        *(Column("the drill", min_width=39, max_width=60), "measured", "promised", "kept"),
        title=title,
        title_justify="left",
    )
    limits: dict[str, timedelta] = {task: step.limit for task, step in plan.steps.items()}
    for step in drill.steps:
        kept = "" if step.state == "skipped" else _kept(step.state == "success")
        table.add_row(step.task, step.told, told_period(limits[step.task]), kept)
    table.add_section()
    for name, took, promised in (
        ("RTO", drill.rto, drill.promised_rto),
        ("RPO", drill.rpo, drill.promised_rpo),
        ("RPO of files", drill.rpo_files, drill.promised_rpo_files),
    ):
        within = timedelta(seconds=promised)
        measured = "not reached" if took is None else told_period(took)
        table.add_row(f"[bold]{name}[/]", measured, told_period(within), _kept(took is not None and took <= within))
    if drill.forecast_seconds is not None:
        table.add_row("forecast", told_period(timedelta(seconds=drill.forecast_seconds)))
    for kind, names in _grouped(drill.checks).items():
        table.add_section()
        table.add_row(f"[bold]{kind.replace('_', ' ')}[/]")
        for name, looks in names.items():
            alone = f": [dim]{escape(looks[0].subject)}[/]" if len(looks) == 1 and looks[0].passed else ""
            _add_checks(table, f"{escape(name)}{alone}", looks)
            for look in (look for look in looks if not look.passed):
                table.add_row(
                    *(f"[red]{escape(words)}[/]" for words in (f"  {look.subject}", look.found, look.expected))
                )
    table.add_section()
    _add_checks(table, "[bold]every check[/]", drill.checks)
    return table


def _add_checks(table: Table, name: str, looks: Sequence[Looked]) -> None:
    held = sum(look.passed for look in looks)
    table.add_row(name, f"{held} of {len(looks)}", "", _kept(held == len(looks)))


def _grouped(looks: Sequence[Looked]) -> dict[str, dict[str, list[Looked]]]:
    """The checks by the validation that made them and by what they look at."""
    groups: dict[str, dict[str, list[Looked]]] = {}
    for look in looks:
        groups.setdefault(look.kind, {}).setdefault(look.name, []).append(look)
    return groups


def _kept(yes: bool) -> str:
    return "[green]yes[/]" if yes else "[bold red]NO[/]"

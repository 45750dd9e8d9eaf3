"""Which site is active; making another one active, and taking that back, without Airflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import boto3
import typer
from rich.markup import escape

from include.cli.connections import Connections
from include.cli.place import JsonOption, Place
from include.cli.printing import OUT, print_json
from include.disaster.plan import DisasterPlan, load_plan
from include.disaster.site import (
    SiteLog,
    SwitchRefused,
    find_run,
    foresee_switch,
    foresee_undo,
    require_site,
    switch_site,
    undo_switches,
)
from include.disaster.switches import dns_client
from include.pipeline.store import Bucket
from include.repository.catalog import Catalog
from include.repository.signed import writer

WITHIN = timedelta(minutes=1)
"""How long a bucket that does not answer keeps anybody waiting."""
REACH = "How the switches are reached; from --settings or AIRFLOW_CONN_… variables unless given"

ByOption = Annotated[str, typer.Option("--by", help="Who asks; you, on this machine, unless given.")]
ApprovedByOption = Annotated[str, typer.Option("--approved-by", help="Who else has said yes; kept in the log.")]
BecauseOption = Annotated[str, typer.Option(help="Why; kept in the log, for an audit. Asked for unless given.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Say what it would do, and change nothing.")]
SettingsOption = Annotated[Path | None, typer.Option(help="A filled-in airflow_settings.yaml.", rich_help_panel=REACH)]
ConfigurationOption = Annotated[
    Path | None, typer.Option(metavar="PATH", help="The checkout of the site.", rich_help_panel=REACH)
]
DnsEndpointOption = Annotated[
    str | None, typer.Option(help="Of Route 53, when it is not AWS's own.", rich_help_panel=REACH)
]
DnsProfileOption = Annotated[
    str | None, typer.Option(help="An AWS profile for Route 53, when its credentials differ.", rich_help_panel=REACH)
]


def show(context: typer.Context, as_json: JsonOption = False) -> None:
    """Which site is active, since when, and every run that switched sites, as the buckets that answer tell."""
    record = SiteLog(load_plan(), _catalogs(context.obj))
    active, runs = record.active, record.runs.values()
    if as_json:
        told = [{"run": run.run, "site": run.site, "before": run.left, "stands": run.stands()} for run in runs]
        facts = {"runs": told, "refused": record.refused, "untold": record.untold}
        print_json({**active.facts(), **facts})
        return
    since = f", since {active.since:%Y-%m-%d %H:%M:%S} UTC, by {active.run}" if active.since else ""
    OUT.print(f"{escape(active.site)} is the active site{escape(since)}.", soft_wrap=True, highlight=False)
    for run in runs:
        asked = run.opened
        who = f"{asked.by}, approved by {asked.approved_by or 'nobody'}, because: {asked.because}"
        _print(f"  {asked.when:%Y-%m-%d %H:%M:%S} {run.run}: {run.left} to {run.site}, {run.stands()}. {who}")
    for words in record.refused:
        _print(f"  not believed: {words}")
    _print_untold(record.untold)


def switch(
    context: typer.Context,
    site: Annotated[str, typer.Argument(metavar="SITE", help="A site of the plan.")],
    *,
    because: BecauseOption = "",
    by: ByOption = "",
    approved_by: ApprovedByOption = "",
    run: Annotated[str, typer.Option(help="Go on with this run, which stopped half-way.")] = "",
    dry_run: DryOption = False,
    settings: SettingsOption = None,
    configuration: ConfigurationOption = None,
    dns_endpoint_url: DnsEndpointOption = None,
    dns_profile: DnsProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a site the active one: the pointer in the buckets, the settings in its checkout, the name in Route 53.

    It moves no data: restore and check first. The bucket that the options name is written first, and has to answer.
    """
    plan = load_plan()
    require_site(plan, site)
    reach: dict[str, Any] = {
        "run": run or _by_hand(),
        "catalogs": _catalogs(context.obj),
        "checkout": _checkout(plan, site, configuration, settings),
        "dns": _dns(plan, settings, dns_endpoint_url, dns_profile),
    }
    _foretell(foresee_switch(plan, site, **reach), run=reach["run"], quiet=as_json)
    if not dry_run:
        reach |= {"by": by or writer(), "approved_by": approved_by, "because": _said(because)}
        _tell(switch_site(plan, site, **reach), as_json=as_json)


def undo(
    context: typer.Context,
    *,
    because: BecauseOption = "",
    by: ByOption = "",
    approved_by: ApprovedByOption = "",
    run: Annotated[str, typer.Option(help="Which run; the newest, and no other can be undone.")] = "",
    dry_run: DryOption = False,
    settings: SettingsOption = None,
    configuration: ConfigurationOption = None,
    dns_endpoint_url: DnsEndpointOption = None,
    dns_profile: DnsProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back what the newest run switched, whole or half-way, the last switch first. It moves no data."""
    plan, catalogs = load_plan(), _catalogs(context.obj)
    found = find_run(SiteLog(plan, catalogs), run)
    reach: dict[str, Any] = {
        "checkout": _checkout(plan, found.site, configuration, settings),
        "dns": _dns(plan, settings, dns_endpoint_url, dns_profile),
    }
    _foretell(foresee_undo(plan, run=found.run, catalogs=catalogs), run=found.run, quiet=as_json)
    if not dry_run:
        reach |= {"by": by or writer(), "approved_by": approved_by, "because": _said(because)}
        _tell(undo_switches(plan, run=found.run, undo=_by_hand(), catalogs=catalogs, **reach), as_json=as_json)


def _catalogs(place: Place) -> list[Catalog]:
    """The bucket that the options name, then the policy's other one, from which nobody waits long for an answer."""
    mine, storage = place.catalog(), place.policy().storage
    if mine.bucket.name == (place.replica_bucket or storage.replica.bucket):
        session, name, region, endpoint = boto3.Session(), storage.primary.bucket, storage.primary.region, None
    else:
        session, region = boto3.Session(profile_name=place.replica_profile), storage.replica.region
        name, endpoint = place.replica_bucket or storage.replica.bucket, place.replica_endpoint_url
    other = Bucket(session, name, region=region, endpoint_url=endpoint or place.endpoint_url, stall_limit=WITHIN)
    return [mine, Catalog(other, mine.keyring)]


def _checkout(plan: DisasterPlan, site: str, configuration: Path | None, settings: Path | None) -> Path:
    if configuration is not None:
        return configuration.absolute()
    name, connections = plan.sites[site].configuration_connection, Connections.read(settings, os.environ)
    if not connections.has(name):
        raise SwitchRefused(
            f"Where the checkout of {site} is, is not known: there is no connection {name} here.",
            mend="Name its path with --configuration, or a settings file that has the connection with --settings.",
        )
    return connections.configuration(name).checkout


def _dns(plan: DisasterPlan, settings: Path | None, endpoint_url: str | None, profile: str | None) -> Any:
    """Route 53 through the connection of the plan; without one, or where an option says so, as AWS's tools reach it."""
    name, connections = plan.switches.service.connection, Connections.read(settings, os.environ)
    if connections.has(name) and not (endpoint_url or profile):
        return connections.dns(name)
    return dns_client(boto3.Session(profile_name=profile), endpoint_url=endpoint_url)


def _by_hand() -> str:
    return f"by-hand-{datetime.now(UTC):%Y%m%dt%H%M%S}"


def _said(because: str) -> str:
    """The reason; whoever gave none is asked for it."""
    said = because.strip() or str(typer.prompt("Because")).strip()
    if not said:
        raise typer.BadParameter("Say why.", param_hint="--because")
    return said


def _foretell(lines: Sequence[str], *, run: str, quiet: bool) -> None:
    if not quiet:
        _print(f"The run {run}:")
        for line in lines or ["nothing is left to do"]:
            _print(f"  {line}")


def _tell(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    OUT.print(f"{escape(facts['active'])} is the active site; {facts['before']} was before.", highlight=False)
    _print_untold(facts["untold"])


def _print_untold(untold: dict[str, str]) -> None:
    for bucket, why in untold.items():
        _print(f"  {bucket} does not tell of it: {why}")


def _print(line: str) -> None:
    OUT.print(escape(line), soft_wrap=True, highlight=False)

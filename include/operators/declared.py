"""What a run of the recovery runbook declared and planned, as its later steps read it (R5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.sdk import Context

    from include.disaster.declaration import Declaration
    from include.disaster.plan import DisasterPlan
    from include.operators.run import Surroundings
    from include.policy import SourceKind
    from include.recovery.moments.places import Places
    from include.repository.catalog import Catalog

ACTIVATE, SWITCH, PLAN, RESTORE = "activate_plan", "switch_to_replica", "plan_recovery", "restore_from_backup"


def told_declaration(context: Context) -> Declaration:
    """What the first step declared."""
    from include.disaster.declaration import Declaration  # noqa: PLC0415

    return Declaration.from_json(told_by(context, ACTIVATE))


def run_directory(here: Surroundings, declared: Declaration) -> Path:
    """The run's own directory on the worker."""
    from include.disaster.isolation import directory  # noqa: PLC0415

    return here.root / directory(declared.run)


def places_of(here: Surroundings, plan: DisasterPlan, context: Context) -> Places:
    """Where each part goes: the drill's own places, or the site's. Only the connections of these are asked for."""
    from include.disaster.isolation import drill_places  # noqa: PLC0415
    from include.operators import connections  # noqa: PLC0415
    from include.recovery.moments.places import Places  # noqa: PLC0415

    declared, parts = told_declaration(context), parts_of(plan, context)
    stall_limit = here.policy.pipeline.stall_limit
    site = plan.sites[declared.site] if declared.site else None
    to = site or plan.drills
    server = connections.database_login(to.database_connection) if "database" in parts else None
    bucket = connections.bucket(to.objects_connection, stall_limit=stall_limit) if "objects" in parts else None
    if site is None:
        root = here.root if "configuration" in parts else None
        tables = (declared.table,) if declared.table else ()
        return drill_places(declared.run, server=server, bucket=bucket, root=root, tables=tables)
    checkout = connections.configuration(site.configuration_connection).checkout
    return Places(
        server=server,
        database=site.database if server else None,
        bucket=bucket,
        prefix="",
        configuration=checkout if "configuration" in parts else None,
        components=(),
        live=True,
        run=declared.run,
    )


def parts_of(plan: DisasterPlan, context: Context) -> tuple[SourceKind, ...]:
    """What comes back: all that the scenario has, without what stays, once it is planned."""
    stays = (told_by(context, PLAN) or {}).get("stays", [])
    return tuple(part for part in plan.scenarios[told_declaration(context).scenario].restores if part not in stays)


def copy_of(here: Surroundings, copy: str) -> Catalog:
    """The catalog of one copy of the backups."""
    return here.replica if copy == "replica" else here.catalog


def trusted(here: Surroundings, context: Context) -> Catalog:
    """The copy, without what is in doubt: nothing is planned from that, whatever else it could vouch for."""
    from include.disaster.last_good import Trusted  # noqa: PLC0415

    catalog, doubted = copy_of(here, told_declaration(context).copy), told_by(context, SWITCH).get("doubted")
    return Trusted(catalog, without=doubted) if doubted else catalog


def told_by(context: Context, task: str) -> Any:
    """What another task of the run returned; None when it has not."""
    return context["ti"].xcom_pull(task_ids=task)

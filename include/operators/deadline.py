"""What is told when a recovery still runs and its RTO is over (R5.4): called by the triggerer, not by a task."""

from __future__ import annotations

from typing import Any


async def tell_rto_missed(context: dict[str, Any] | None = None) -> dict[str, Any]:
    """Tell everybody whom the policy names for errors; returns who was told, and why the others were not."""
    from asgiref.sync import sync_to_async  # noqa: PLC0415 - in whose threads connections can be asked for

    return await sync_to_async(_tell)(context or {})


def _tell(context: dict[str, Any]) -> dict[str, Any]:
    from include.monitoring.messages import Notification  # noqa: PLC0415 - the engine: over a second
    from include.operators.places import run_url, runbook_url  # noqa: PLC0415
    from include.operators.report import NOTIFICATIONS, deliver  # noqa: PLC0415
    from include.policy import load_policy  # noqa: PLC0415

    policy, run = load_policy(), context.get("dag_run") or {}
    dag_id, run_id = str(run.get("dag_id", "disaster_recovery")), str(run.get("dag_run_id", ""))
    links = {"The run": run_url(dag_id, run_id), "The runbook": runbook_url(dag_id)}
    notification = Notification(
        "rto_missed",
        "Disaster recovery",
        {"RTO": str(policy.recovery.rto), "dag run": run_id},
        links={name: url for name, url in links.items() if url},
    )
    return deliver(notification, policy, connection=NOTIFICATIONS)

"""Making a site the active one, and undoing that (R5.3): the end of a failover, and the DAG `undo_failover`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import AirflowSkipException

from include.operators.approval import NotAllowedOver, require_approval
from include.operators.copies import catalogs, reachable
from include.operators.declared import ACTIVATE, PLAN, RESTORE
from include.operators.report import Teller, failures_of, links_of
from include.operators.step import Facts, Step
from include.operators.timed import TIMES, Timed
from include.operators.validation import VALIDATIONS

if TYPE_CHECKING:
    from airflow.sdk import Context

    from include.monitoring.messages import Notification

FIND, SWITCH_BACK = "find_failover", "switch_back"
DRILL = "drill"


class SwitchSite(Timed, Step):
    """Make the site of a failover the active one, with the approval of somebody else than who declared it (R5.3).

    A drill switches nothing: the task is skipped. Cleared, it goes on behind what is done.
    """

    ui_color = "#f2d5d5"

    def _take(self, context: Context) -> Facts:
        asked = context["ti"].xcom_pull(task_ids=ACTIVATE)
        if asked["mode"] == DRILL:
            raise AirflowSkipException("A drill: no site is switched.")
        approved_by = require_approval(context, shown=PLAN, what="failover")
        _require_validated(context)

        from include.disaster.plan import load_plan  # noqa: PLC0415 - the engine
        from include.disaster.site import is_active, require_site, switch_site  # noqa: PLC0415
        from include.operators import connections  # noqa: PLC0415
        from include.operators.run import Surroundings  # noqa: PLC0415

        plan, here = load_plan(), Surroundings(scratch_root=self.scratch_root)
        require_site(plan, asked["site"])
        known = catalogs(here, asked["copy"])
        if is_active(plan, asked["site"], run=asked["run"], catalogs=known):
            raise AirflowSkipException(f"{asked['site']} is the active site: it was recovered where it is.")
        return switch_site(
            plan,
            asked["site"],
            run=asked["run"],
            by=asked["by"],
            approved_by=approved_by,
            because=asked["scenario"],
            catalogs=known,
            checkout=connections.configuration(plan.sites[asked["site"]].configuration_connection).checkout,
            dns=connections.route53(plan.switches.service.connection),
        )


class FindFailover(Step):
    """Find the failover that the form names, or the newest; refuse one that cannot be undone (R5.3)."""

    def _take(self, context: Context) -> Facts:
        from include.disaster.isolation import stamp  # noqa: PLC0415
        from include.disaster.plan import load_plan  # noqa: PLC0415
        from include.disaster.site import SiteLog, SwitchRefused, find_run  # noqa: PLC0415
        from include.operators.run import Surroundings  # noqa: PLC0415

        form, here = context["params"], Surroundings(scratch_root=self.scratch_root)
        copies = reachable(here)
        record = SiteLog(load_plan(), list(copies.values()))
        found = find_run(record, form["run"] or "")
        if found.is_undone:
            raise SwitchRefused(
                f"{found.run} was undone already.", mend="To go to another site, trigger disaster_recovery."
            )
        facts = {
            "run": found.run,
            "site": found.site,
            "back_to": found.left,
            "stands": found.stands(),
            "touched": list(found.touched),
            "asked": found.opened.when.isoformat(),
            "by": found.opened.by,
            "copy": next(copy for copy, catalog in copies.items() if catalog is record.told_by),
            "undo": f"undo-{stamp(context['dag_run'].run_after, context['dag_run'].run_id)}",
            "because": form["because"],
        }
        self.log.info("%s to %s, asked for by %s: %s.", found.run, found.site, found.opened.by, found.stands())
        return facts


class SwitchBack(Step):
    """Take back what the failover switched, the last first, with somebody else's approval (R5.3)."""

    ui_color = "#f2d5d5"

    def _take(self, context: Context) -> Facts:
        from include.disaster.plan import load_plan  # noqa: PLC0415
        from include.disaster.site import undo_switches  # noqa: PLC0415
        from include.operators import connections  # noqa: PLC0415
        from include.operators.run import Surroundings  # noqa: PLC0415

        approved_by = require_approval(context, shown=FIND, what="undoing")
        found = context["ti"].xcom_pull(task_ids=FIND)
        plan, here = load_plan(), Surroundings(scratch_root=self.scratch_root)
        return undo_switches(
            plan,
            run=found["run"],
            undo=found["undo"],
            by=str(context["dag_run"].triggering_user_name),
            approved_by=approved_by,
            because=found["because"],
            catalogs=catalogs(here, found["copy"]),
            checkout=connections.configuration(plan.sites[found["site"]].configuration_connection).checkout,
            dns=connections.route53(plan.switches.service.connection),
        )


class ReportUndone(Teller):
    """Tell which site is active now, or what failed and what stands half-way (R4.6)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.ALL_DONE, **kwargs})

    def _take(self, context: Context) -> Facts:
        from include.operators.run import Surroundings  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        return self.tell(here.policy, partial(self._words, context))

    def _words(self, context: Context) -> Notification:
        from include.monitoring.messages import Notification  # noqa: PLC0415

        failures = failures_of(context)
        found = context["ti"].xcom_pull(task_ids=FIND) or {}
        done = context["ti"].xcom_pull(task_ids=SWITCH_BACK) or {}
        facts: dict[str, object] = {"asked for by": context["dag_run"].triggering_user_name or "nobody by name"}
        facts |= {name: found[name] for name in ("because", "run", "site", "back_to") if name in found}
        if done:
            facts |= {"active": done["active"], "switched back": ", ".join(done["switched_back"])}
            facts |= {f"{bucket} does not tell of it": why for bucket, why in done["untold"].items()}
        links = links_of(context, failures[0].task if failures else "")
        if failures:
            return Notification("run_failed", "Undoing the failover", facts, failures, links)
        return Notification("switched_back" if done else "recovery_refused", "Undoing the failover", facts, links=links)


def _require_validated(context: Context) -> None:
    """Raise `NotAllowedOver` unless each validation itself found everything well, in what was restored last."""
    ti = context["ti"]
    back = (ti.xcom_pull(task_ids=RESTORE, key=TIMES) or {}).get("ended", "")
    for task in VALIDATIONS:
        facts = ti.xcom_pull(task_ids=task)
        if facts and facts["checks"] and not facts["failed"] and facts["began"] >= back:
            continue
        found = f"{facts['failed']} of {facts['checks']} checks failed" if facts else "it has looked at nothing"
        if facts and facts["began"] < back:
            found = "it looked before what is there now was restored"
        raise NotAllowedOver(
            f"`{task}` has not found what came back well: {found}. Marking it as success is no answer.",
            mend=f"Clear `{task}`. To go to what is there all the same, two people by name: "
            "`python -m include.cli site switch`.",
        )

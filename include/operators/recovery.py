"""The steps of a recovery to a moment (R5.1, R5.2): planned, proved, approved, and only then written."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import TriggerRule

from include.operators.approval import APPROVE, Approve, NotAllowedOver, require_approval, who_answered
from include.operators.report import Teller, failures_of, links_of
from include.operators.step import Facts, Step
from include.operators.validation import VALIDATIONS, Restored, in_words

if TYPE_CHECKING:
    from airflow.sdk import Context

    from include.monitoring.messages import Notification
    from include.operators.run import Surroundings
    from include.recovery.moments.places import Places
    from include.recovery.moments.planning import RecoveryPlan

EVERYTHING, LIVE, SCRATCH = "everything", "live", "scratch"
SELECT, LOCATE, RESTORE = "select_timestamp", "locate_backup", "restore_data"


class RecoveryStep(Step):
    """One step of a recovery. What the form says is in `params`; what it means, in the XCom of the first step."""

    def _take(self, context: Context) -> Facts:
        from include.operators.run import Surroundings  # noqa: PLC0415 - the engine: over a second

        return self.step(Surroundings(scratch_root=self.scratch_root), context)

    @abstractmethod
    def step(self, here: Surroundings, context: Context) -> Facts:
        """Call the engine; returns the facts for the XCom."""


class SelectTimestamp(RecoveryStep):
    """Read the form: to when, what, and where to; refuse what nobody may mean (R5.1)."""

    def step(self, here: Surroundings, context: Context) -> Facts:
        """The target, the parts, and every place that is written to."""
        from include.disaster.isolation import stamp  # noqa: PLC0415
        from include.recovery.moments.planning import EVERYTHING as ALL  # noqa: PLC0415
        from include.recovery.moments.planning import Target  # noqa: PLC0415

        form = context["params"]
        target, what, where = Target.parse(form["target"]), form["what"], form["where"]
        live = where == LIVE
        names = {name: form[name] for name in ("database", "objects", "configuration")}
        if live and not form["replace_live"]:
            raise NotAllowedOver(
                "This would replace what is live, and `replace_live` does not say so.",
                mend="Recover to a scratch place first and look at it; then trigger again with replace_live.",
            )
        if live and any(names.values()):
            raise NotAllowedOver(
                "What is live has its places: none can be named.", mend="Leave the names empty, or recover to scratch."
            )
        component = here.policy.components.get(what)
        if live and component and component.source == "database":
            raise NotAllowedOver(
                f"{component.name} alone cannot take its place in the live database: what refers to it stays.",
                mend="Recover it to scratch, and copy what is needed from there; or recover the database, whole.",
            )
        parts = [component.source] if component else list(ALL) if what == EVERYTHING else [what]
        run = stamp(context["dag_run"].run_after, context["dag_run"].run_id)
        facts = {
            "target": str(target),
            "parts": parts,
            "components": [component.name] if component else [],
            "where": where,
            "run": run,
            "database": names["database"] or f"synapse_recovered_{run}",
            "objects": names["objects"] or f"recovered/{run}/",
            "configuration": f"recovered/{names['configuration'] or run}/configuration",
        }
        self.log.info("To %s: %s (%s), into %s places.", target, what, ", ".join(parts), where)
        return facts


class LocateBackup(RecoveryStep):
    """Plan the recovery before anything is written: base, log, bytes, minutes, the moment it really reaches (R5.1)."""

    def step(self, here: Surroundings, context: Context) -> Facts:
        """The plan, which the later steps carry out as it is; and the same in words."""
        from include.backup.prepare import make_scratch, remove_scratch  # noqa: PLC0415
        from include.recovery.moments.planning import Target, plan_recovery  # noqa: PLC0415

        asked = _told_by(context, SELECT)
        name = _directory(asked)
        scratch = make_scratch(here.root, name)
        try:
            plan = plan_recovery(
                here.catalog, Target.parse(asked["target"]), here.policy, what=asked["parts"], scratch=scratch
            )
        finally:
            remove_scratch(here.root, name)
        for line in plan.lines():
            self.log.info("PLAN: %s", line)
        return {**plan.to_json(), "words": str(plan)}


class VerifyPlan(RecoveryStep):
    """Prove that what the plan names is there and genuine, before anything is written (R5.1).

    What was read back and proved since it was made is not read once more: the restore proves every byte as it comes.
    """

    def step(self, here: Surroundings, context: Context) -> Facts:
        """What was looked at, and how much of it was read back now."""
        from include.recovery.moments.proof import prove_plan  # noqa: PLC0415

        return prove_plan(_plan(here, context), here.catalog, here.policy, scratch=here.root)


class ApproveRecovery(Approve):
    """Ask a person, the plan before them, whether what is live may be replaced; for scratch places nobody (R5.1)."""

    def needless(self, context: Context) -> str:
        """Of scratch places."""
        return "" if _told_by(context, SELECT)["where"] == LIVE else "Nothing that is live is touched: nobody is asked."


class RestoreData(RecoveryStep):
    """Carry the plan out (R5.1). Over what is live only with the approval of somebody else than who asked.

    A try that follows another one removes first what that one left in the scratch places that are named for this run.
    """

    ui_color = "#cfe3d4"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.NONE_FAILED, **kwargs})

    def step(self, here: Surroundings, context: Context) -> Facts:
        """What was brought back, and where to."""
        from include.recovery.moments.steps import restore_to  # noqa: PLC0415

        asked = _told_by(context, SELECT)
        if asked["where"] == LIVE:
            require_approval(context, shown=LOCATE, what="recovery")
        plan, places = _plan(here, context), _places(here, asked)
        places.clear()
        scratch = here.root / _directory(asked)
        facts = restore_to(plan, here.catalog, here.policy, places=places, scratch=scratch)
        _restored(here, asked, places, facts).leave(context)
        return facts


class RemoveRecoveryDirectory(RecoveryStep):
    """Remove the run's temporary directory, on the worker that this task lands on.

    :param selected_by: the task whose XCom names the run.
    """

    def __init__(self, *, selected_by: str = SELECT, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.selected_by = selected_by

    def step(self, here: Surroundings, context: Context) -> Facts:
        """Its name."""
        from include.backup.prepare import remove_scratch  # noqa: PLC0415

        asked = _told_by(context, self.selected_by)
        if asked is None:  # the form was refused: nothing was made
            return {}
        remove_scratch(here.root, _directory(asked))
        return {"removed": _directory(asked)}


class ReportRecovery(Teller):
    """Tell what came of it, whatever did: what is where, and how to remove it; or what failed (R4.6, R5.2)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.ALL_DONE, **kwargs})

    def _take(self, context: Context) -> Facts:
        from include.operators.run import Surroundings  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        return self.tell(here.policy, partial(self._words, here, context))

    def _words(self, here: Surroundings, context: Context) -> Notification:
        from include.monitoring.messages import Notification  # noqa: PLC0415

        failures = failures_of(context)
        asked, plan = _told_by(context, SELECT), _told_by(context, LOCATE)
        run = context["dag_run"]
        facts: dict[str, object] = {"asked for by": run.triggering_user_name or "nobody by name"}
        if plan:
            facts |= {"reaches": plan["reaches"], "base": plan["base"], "skew": plan["skew"]}
        approval = _told_by(context, APPROVE)
        if approval:
            facts["answered by"] = f"{who_answered(approval)}: {', '.join(approval['chosen_options'])}"
        facts |= _told_by(context, RESTORE) or {}
        validated = dict(in_words(context))
        facts |= validated
        if asked and asked["where"] == SCRATCH:
            facts |= {f"remove {what}": how for what, how in _places(here, asked).removal().items()}
        about = f"Recovery to {asked['target']}" if asked else "Recovery"
        links = links_of(context, failures[0].task if failures else "")
        if failures:
            return Notification("recovery_failed", about, facts, failures, links)
        done = len(validated) == len(VALIDATIONS)
        return Notification("recovered" if done else "recovery_refused", about, facts, links=links)


def _told_by(context: Context, task: str) -> Any:
    return context["ti"].xcom_pull(task_ids=task)


def _directory(asked: Facts) -> str:
    return f"recovery-{asked['run']}"


def _plan(here: Surroundings, context: Context) -> RecoveryPlan:
    """The very plan that was made, shown and approved; `latest` does not move on."""
    from include.recovery.moments.planning import reopen  # noqa: PLC0415

    return reopen(cast("dict[str, Any]", _told_by(context, LOCATE)), here.catalog, here.policy)


def _places(here: Surroundings, asked: Facts) -> Places:
    """Where each part goes."""
    from include.operators import connections  # noqa: PLC0415
    from include.recovery.moments.places import Places  # noqa: PLC0415

    policy, parts, components = here.policy, asked["parts"], tuple(asked["components"])
    recovery, sources = policy.recovery, policy.sources
    live = asked["where"] == LIVE
    server = name = bucket = checkout = None
    if "database" in parts:
        dump = connections.database_login(sources.database.dump_connection) if live else None
        conn_id = recovery.live_database_connection if live else sources.database.scratch_connection
        server = connections.database_login(conn_id)
        name = dump.dbname if dump else asked["database"]
    if "objects" in parts:
        conn_id = recovery.live_objects_connection if live else recovery.objects_connection
        bucket = connections.bucket(conn_id, stall_limit=policy.pipeline.stall_limit)
    if "configuration" in parts:
        live_one = connections.configuration(sources.configuration.connection).checkout
        checkout = live_one if live else here.root / asked["configuration"]
    return Places(
        server=server,
        database=name,
        bucket=bucket,
        prefix="" if live else asked["objects"],
        configuration=checkout,
        components=components,
        live=live,
        run=asked["run"],
    )


def _restored(here: Surroundings, asked: Facts, places: Places, facts: Facts) -> Restored:
    """What came back of it, in words that the validations find it by."""
    recovery, sources = here.policy.recovery, here.policy.sources
    database = recovery.live_database_connection if places.live else sources.database.scratch_connection
    objects = recovery.live_objects_connection if places.live else recovery.objects_connection
    return Restored(
        about=f"the recovery to {facts['reached']}",
        directory=_directory(asked),
        database_connection=database if "database" in facts else None,
        database=facts.get("database"),
        objects_connection=objects if "objects" in facts else None,
        objects_prefix=places.prefix,
        configuration=str(places.configuration) if "commit" in facts else None,
        whole={"database", "objects", "commit"} <= facts.keys() and not asked["components"],
    )

"""The steps of the recovery runbook (R5.3): the same code for a drill and in earnest, each step timed (R5.4, R5.5)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from airflow.sdk import TriggerRule

from include.errors import BackupError
from include.operators import validation
from include.operators.approval import NotAllowedOver, require_approval
from include.operators.declared import (
    ACTIVATE,
    PLAN,
    SWITCH,
    copy_of,
    parts_of,
    places_of,
    run_directory,
    told_by,
    told_declaration,
    trusted,
)
from include.operators.failover import require_not_become_active, told_active, told_of_site
from include.operators.step import Facts, Step
from include.operators.timed import Timed
from include.operators.validation import Restored

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from airflow.sdk import Context

    from include.disaster.forecast import Speeds
    from include.disaster.history import Drill
    from include.disaster.plan import DisasterPlan
    from include.operators.run import Surroundings
    from include.pipeline.store import Bucket
    from include.recovery.moments.places import Places
    from include.repository.catalog import Catalog

IN_TURN = "in_turn"
"""The scenario and copy that were drilled longest ago."""
_DRILLS_MEASURED = 3


class DisasterStep(Timed, Step):
    """One step of the runbook. What was declared is in the XCom of the first one."""

    def _take(self, context: Context) -> Facts:
        from include.disaster.plan import load_plan  # noqa: PLC0415
        from include.operators.run import Surroundings  # noqa: PLC0415 - the engine: over a second

        here = Surroundings(scratch_root=self.scratch_root)
        here.root.mkdir(parents=True, exist_ok=True)
        return self.step(here, load_plan(), context)

    @abstractmethod
    def step(self, here: Surroundings, plan: DisasterPlan, context: Context) -> Facts:
        """Call the engine; returns the facts for the XCom."""


class ActivatePlan(DisasterStep):
    """Declare the disaster: which scenario, in earnest or not, from which copy, to when and where (R5.3).

    A drill by schedule takes the scenario and the copy that were drilled longest ago.
    """

    def step(self, here: Surroundings, plan: DisasterPlan, context: Context) -> Facts:
        """What was declared."""
        from include.disaster.declaration import declare  # noqa: PLC0415
        from include.disaster.isolation import stamp  # noqa: PLC0415

        form, run = context["params"], context["dag_run"]
        scenario, copy = form["scenario"], form["copy"]
        if scenario == IN_TURN and form["mode"] == "drill":  # in earnest nobody may mean whatever comes next
            scenario, copy = self._turn(here, plan, copy)
        declared = declare(
            plan,
            mode=form["mode"],
            scenario=scenario,
            copy=copy,
            site=form["site"],
            target=form["target"] or "",  # a field that was emptied is None
            table=form["table"] or "",
            failed=form["failed_at"] or "",
            run=stamp(run.run_after, run.run_id),
            declared=run.run_after if run.triggering_user_name else (run.start_date or run.run_after),
            by=run.triggering_user_name,
        )
        chosen = plan.scenarios[declared.scenario]
        self.log.info("%s: %s.", "DRILL" if declared.drill else "FAILOVER", chosen.title)
        self.log.info("Runbook for people: docs/runbooks/%s.md", chosen.runbook)
        for name, step in plan.steps.items():
            self.log.info("PLAN: %s (%s, within %s): %s", name, step.owner, step.limit, step.does)
        return declared.to_json()

    def _turn(self, here: Surroundings, plan: DisasterPlan, wanted: str) -> tuple[str, str]:
        """Whose turn it is, as far as the buckets that answer tell; of one copy, where the form names it."""
        from include.disaster.history import next_drill, read_drills  # noqa: PLC0415

        drills: dict[str, Drill] = {}
        for copy in ("replica", "primary"):
            try:
                drills |= {drill.run: drill for drill in read_drills([copy_of(here, copy)])}
            except BackupError as failure:
                self.log.warning("The %s does not tell its drills: %s", copy, failure.what)
        return next_drill(plan, sorted(drills.values(), key=lambda drill: drill.declared), wanted)


class SwitchToReplica(DisasterStep):
    """Take the copy that survives: prove that it answers and that its keys are here; find the point to go to (R5.3).

    Nothing of the other copy is asked: in a lost region there is no other.
    """

    def step(self, here: Surroundings, plan: DisasterPlan, context: Context) -> Facts:
        """What the copy holds, and the target; of ransomware the last good point, and what is doubted since then."""
        from include.disaster.declaration import LAST_GOOD  # noqa: PLC0415
        from include.disaster.last_good import find_last_good  # noqa: PLC0415

        declared = told_declaration(context)
        catalog = copy_of(here, declared.copy)
        entries = catalog.entries()
        genuine = [entry.manifest for entry in entries if entry.manifest]
        facts: Facts = {
            "bucket": catalog.bucket.name,
            "backups": len(genuine),
            "refused": len(entries) - len(genuine),
            "target": declared.target,
        }
        if genuine:
            newest = max(genuine, key=lambda manifest: manifest.consistency_point.time)
            facts |= {"newest": newest.id, "newest_moment": newest.consistency_point.time.isoformat()}
        if declared.target == LAST_GOOD:
            found = find_last_good(catalog, here.policy)
            for doubted in found.doubted:
                self.log.warning("DOUBTED: %s", doubted)
            facts |= {"target": found.backup.id, "doubted": [doubted.id for doubted in found.doubted]}
        self.log.info("From %s: %s backups, to %s.", catalog.bucket, len(genuine), facts["target"])
        return facts


class PlanRecovery(DisasterStep):
    """Base, log and bytes; a full backup where the chain is broken; the forecast for today's real size (R5.3, R5.4)."""

    def step(self, here: Surroundings, plan: DisasterPlan, context: Context) -> Facts:
        """The route, which the restore takes as it is, and the same in words; the forecast."""
        from include.backup.prepare import make_scratch, remove_scratch  # noqa: PLC0415
        from include.disaster.forecast import forecast  # noqa: PLC0415
        from include.disaster.isolation import plan_directory  # noqa: PLC0415
        from include.disaster.route import plan_route  # noqa: PLC0415
        from include.recovery.moments.plan import Target  # noqa: PLC0415

        declared = told_declaration(context)
        catalog = trusted(here, context)
        target = Target.parse(told_by(context, SWITCH)["target"])
        chosen = plan.scenarios[declared.scenario]
        active = "" if declared.drill else told_active(here, plan, declared)
        stays = chosen.stays if active and active == declared.site else ()
        what = [part for part in chosen.restores if part not in stays]
        name = plan_directory(declared.run)
        scratch = make_scratch(here.root, name)
        try:
            route = plan_route(catalog, target, here.policy, what=what, scratch=scratch)
        finally:
            remove_scratch(here.root, name)
        expected = forecast(route.way, self._speeds(catalog))
        for line in (*route.lines(), *expected.lines()):
            self.log.info("PLAN: %s", line)
        if warning := expected.above(here.policy.recovery.rto / 2):
            self.log.warning("FORECAST: %s", warning)
        goes_to = [] if declared.drill else list(told_of_site(plan, declared, active, stays))
        for line in goes_to:
            self.log.warning("SITE: %s", line)
        words = "\n".join([*goes_to, *route.lines(), *expected.lines(), *([warning] if warning else [])])
        facts = {"words": words, "forecast": expected.to_json(), "warning": warning}
        return route.to_json() | facts | {"active": active, "stays": list(stays)}

    def _speeds(self, catalog: Catalog) -> Speeds:
        """As fast as the newest drills from this copy were."""
        from include.disaster.forecast import Measured, Speeds  # noqa: PLC0415
        from include.disaster.history import read_drills  # noqa: PLC0415

        newest = [drill for drill in read_drills([catalog]) if drill.phases][-_DRILLS_MEASURED:]
        phases = [phase for drill in newest for phase in drill.phases]
        return Speeds.measured(Measured(each.name, each.amount, each.milliseconds / 1000) for each in phases)


class RestoreFromBackup(DisasterStep):
    """Bring everything back along the route; in a failover only with the approval of somebody else (R5.3).

    A second try removes first what the first one left in the places of a drill. Where Airflow itself is lost, the
    break-glass script does it, as a process that knows nothing of Airflow.
    """

    ui_color = "#cfe3d4"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.NONE_FAILED, **kwargs})

    def step(self, here: Surroundings, plan: DisasterPlan, context: Context) -> Facts:
        """What was brought back, and where to."""
        declared = told_declaration(context)
        if not declared.drill:
            require_approval(context, shown=PLAN, what="failover")
            require_not_become_active(here, plan, context)
        places = places_of(here, plan, context)
        if places.bucket and declared.drill:
            _require_apart(here, plan)
        places.clear()
        scratch = run_directory(here, declared)
        scratch.mkdir(mode=0o711, exist_ok=True)
        by_script = declared.drill and plan.scenarios[declared.scenario].break_glass
        bring = self._by_script if by_script else self._by_route
        facts = bring(here, plan, context, places, scratch)
        _require_parts(facts, parts_of(plan, context))
        self._tell_where(plan, context, places, facts)
        return facts

    def _tell_where(self, plan: DisasterPlan, context: Context, places: Places, facts: Facts) -> None:
        """To the validations: where everything of the scenario is, also what was not lost and stayed."""
        from include.disaster.isolation import directory  # noqa: PLC0415
        from include.operators import connections  # noqa: PLC0415

        declared = told_declaration(context)
        there, site = plan.scenarios[declared.scenario].restores, plan.sites[declared.site] if declared.site else None
        checkout = places.configuration
        if site and "configuration" in there:
            checkout = connections.configuration(site.configuration_connection).checkout
        to = site or plan.drills
        Restored(
            about=f"{declared.mode} {declared.run}: {declared.scenario} from the {declared.copy}",
            directory=directory(declared.run),
            database_connection=to.database_connection if "database" in there else None,
            database=facts.get("database"),
            objects_connection=to.objects_connection if "objects" in there else None,
            objects_prefix=places.prefix,
            configuration=str(checkout) if checkout else None,
            whole=len(there) == len(_PARTS) and not places.tables,
        ).leave(context)

    def _by_route(
        self, here: Surroundings, plan: DisasterPlan, context: Context, places: Places, scratch: Path
    ) -> Facts:
        """The route that was planned, shown and approved."""
        from include.disaster.route import go, reopen_route  # noqa: PLC0415

        catalog = trusted(here, context)
        route = reopen_route(told_by(context, PLAN), catalog, here.policy)
        return go(route, catalog, here.policy, places=places, scratch=scratch)

    def _by_script(
        self, here: Surroundings, plan: DisasterPlan, context: Context, places: Places, scratch: Path
    ) -> Facts:
        """The script that a person would run, in an environment that knows nothing of Airflow."""
        from include.disaster.break_glass import (  # noqa: PLC0415
            break_glass_script,
            drill_environment,
            run_break_glass,
        )
        from include.recovery.validation.recovered import EXPECTED, Expected  # noqa: PLC0415

        declared, expected = told_declaration(context), scratch / EXPECTED
        script = break_glass_script(plan, here.policy, declared.scenario, declared.copy)
        if places.configuration:
            places.configuration.parent.mkdir(parents=True, exist_ok=True)
        bucket = here.backups_in(declared.copy)
        expected.unlink(missing_ok=True)  # of an earlier try
        target = told_by(context, SWITCH)["target"]
        with drill_environment(bucket, places, target=target, expected=expected, scratch=scratch) as environment:
            limit = plan.steps["restore_from_backup"].limit
            steps = run_break_glass(script, environment, scratch=scratch, limit=limit)
        for step in steps:
            self.log.info("SCRIPT: %s took %s", step.name, step.ended - step.began)
        told = Expected.read(expected)
        return {
            "reached": told.reaches.isoformat(),
            "database": places.database,
            "objects": told.objects,
            "commit": told.commit,
            "script": [step.name for step in steps],
        }


class OfTheCopy(Timed):
    """A validation whose page is kept in the copy that the run reads from: the other one may be lost."""

    def kept_in(self, here: Surroundings, context: Context) -> Bucket:
        """The bucket of that copy."""
        return here.backups_in(told_declaration(context).copy)


class CheckDataConsistency(OfTheCopy, validation.CheckDataConsistency):
    """Rows and digests, keys, foreign keys, sequences and indexes (R5.2)."""


class CheckApplicationState(OfTheCopy, validation.CheckApplicationState):
    """Every object that the database names, the commit, the schema version, the invariants (R5.2)."""


class CheckServiceHealth(OfTheCopy, validation.CheckServiceHealth):
    """The application is started on what came back, and used (R5.2)."""


class CleanUp(DisasterStep):
    """Remove everything that a drill made; of a failover its temporary directory alone. Runs whatever happened."""

    def step(self, here: Surroundings, plan: DisasterPlan, context: Context) -> Facts:
        """What was removed; raises `NotErased` when anything stays."""
        import shutil  # noqa: PLC0415

        from include.disaster.isolation import erase  # noqa: PLC0415

        if told_by(context, ACTIVATE) is None:  # what was declared was refused: nothing was made
            return {}
        declared = told_declaration(context)
        if declared.drill:
            return {"removed": erase(places_of(here, plan, context), here.root)}
        shutil.rmtree(run_directory(here, declared), ignore_errors=True)
        return {"removed": [run_directory(here, declared).name]}


_PARTS = {"database": "database", "objects": "objects", "configuration": "commit"}
"""Of each part the fact that tells that it came back."""


def _require_parts(facts: Facts, parts: Sequence[str]) -> None:
    """Raise `BackupError` naming what was to come back and did not: nothing would look at what is not there."""
    if lacking := [part for part in parts if facts.get(_PARTS[part]) is None]:
        raise BackupError(
            f"It was restored, and without {' and '.join(lacking)}, which the scenario brings back.",
            mend="Look in the log of this task which backup it came from, and recover from another.",
        )


def _require_apart(here: Surroundings, plan: DisasterPlan) -> None:
    """Raise `NotAllowedOver` where a drill's objects would go into a bucket of the application, or of backups.

    What has no connection here cannot be written to from here either.
    """
    from include.operators import connections  # noqa: PLC0415

    policy, storage, drills = here.policy, here.policy.storage, plan.drills.objects_connection
    known: dict[str, str | None] = dict.fromkeys(site.objects_connection for site in plan.sites.values())
    known |= {policy.sources.objects.connection: None, policy.recovery.live_objects_connection: None}
    known |= {place.connection: place.bucket for place in (storage.primary, storage.replica)}
    into = connections.bucket_place(drills)
    for conn_id, name in known.items():
        try:
            live = connections.bucket_place(conn_id, name=name)
        except connections.ConnectionUnusable:
            continue
        if live == into:
            raise NotAllowedOver(
                f"A drill would bring its objects to the bucket {into[0]}, which {conn_id} uses in earnest.",
                mend=f"Give {drills} a bucket of its own.",
            )

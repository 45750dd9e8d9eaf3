"""The steps of the recovery runbook (R5.3): the same code for a drill and in earnest, each step timed (R5.4, R5.5)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import AirflowSkipException

from include.errors import BackupError, Hopeless
from include.operators import validation
from include.operators.copies import catalogs
from include.operators.recovery import NotAllowedOver, require_approval
from include.operators.report import Teller, failures_of, links_of
from include.operators.step import ERROR, Facts, Step
from include.operators.timed import TIMES, Timed
from include.operators.validation import VALIDATIONS, Restored

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from airflow.sdk import Context

    from include.disaster.declaration import Declaration
    from include.disaster.forecast import Speeds
    from include.disaster.history import Drill, Looked, Phase, StepTime
    from include.disaster.plan import DisasterPlan
    from include.monitoring.messages import Notification
    from include.operators.run import Surroundings
    from include.pipeline.store import Bucket
    from include.recovery.moments.places import Places
    from include.repository.catalog import Catalog

ACTIVATE, SWITCH, PLAN, APPROVE, RESTORE, CLEAN_UP = (
    "activate_plan",
    "switch_to_replica",
    "plan_recovery",
    "approve",
    "restore_from_backup",
    "clean_up",
)
RUNBOOK = "disaster_recovery"
"""The DAG whose runs have the places of drills."""
IN_TURN = "in_turn"
"""The scenario and copy that were drilled longest ago."""
_DRILLS_MEASURED = 3
_DECLARED_WITHIN = timedelta(days=1)
"""How long a failover that failed can be cleared, and go on."""
ASKED = "asked"
"""The XCom in which `approve` says which plan it shows."""


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
        """What was declared, and which parts come back."""
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
            target=form["target"],
            table=form["table"],
            failed=form["failed_at"],
            run=stamp(run.run_after, run.run_id),
            declared=run.run_after if run.triggering_user_name else (run.start_date or run.run_after),
            by=run.triggering_user_name,
        )
        chosen = plan.scenarios[declared.scenario]
        self.log.info("%s: %s.", "DRILL" if declared.drill else "FAILOVER", chosen.title)
        self.log.info("Runbook for people: docs/runbooks/%s.md", chosen.runbook)
        for name, step in plan.steps.items():
            self.log.info("PLAN: %s (%s, within %s): %s", name, step.owner, step.limit, step.does)
        return {**declared.to_json(), "parts": list(chosen.restores), "break_glass": chosen.break_glass}

    def _turn(self, here: Surroundings, plan: DisasterPlan, wanted: str) -> tuple[str, str]:
        """Whose turn it is, as far as the buckets that answer tell; of one copy, where the form names it."""
        from include.disaster.history import next_drill, read_drills  # noqa: PLC0415

        drills: dict[str, Drill] = {}
        for copy in ("replica", "primary"):
            try:
                drills |= {drill.run: drill for drill in read_drills([_copy(here, copy)])}
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
        catalog = _copy(here, declared.copy)
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
        catalog = _trusted(here, context)
        target = Target.parse(_told_by(context, SWITCH)["target"])
        name = plan_directory(declared.run)
        scratch = make_scratch(here.root, name)
        try:
            route = plan_route(catalog, target, here.policy, what=_told_by(context, ACTIVATE)["parts"], scratch=scratch)
        finally:
            remove_scratch(here.root, name)
        expected = forecast(route.way, self._speeds(catalog))
        for line in (*route.lines(), *expected.lines()):
            self.log.info("PLAN: %s", line)
        if warning := expected.above(here.policy.recovery.rto / 2):
            self.log.warning("FORECAST: %s", warning)
        active = "" if declared.drill else _active(here, plan, declared)
        goes_to = [] if declared.drill else list(_told_of_site(plan, declared, active))
        for line in goes_to:
            self.log.warning("SITE: %s", line)
        words = "\n".join([*goes_to, *route.lines(), *expected.lines(), *([warning] if warning else [])])
        facts = {"words": words, "forecast": expected.to_json(), "warning": warning, "active": active}
        return route.to_json() | facts

    def _speeds(self, catalog: Catalog) -> Speeds:
        """As fast as the newest drills from this copy were."""
        from include.disaster.forecast import Measured, Speeds  # noqa: PLC0415
        from include.disaster.history import read_drills  # noqa: PLC0415

        newest = [drill for drill in read_drills([catalog]) if drill.phases][-_DRILLS_MEASURED:]
        phases = [phase for drill in newest for phase in drill.phases]
        return Speeds.measured(Measured(each.name, each.amount, each.milliseconds / 1000) for each in phases)


class ApproveFailover(ApprovalOperator):
    """Ask a person, plan and forecast before them, whether to fail over. In a drill nobody is asked (R5.3)."""

    ui_color = "#f2d5d5"

    def execute(self, context: Context) -> Any:
        """Wait for the answer, without a worker; raises `AirflowSkipException` in a drill."""
        if told_declaration(context).drill:
            raise AirflowSkipException("A drill touches nothing that is live: nobody has to approve.")
        try:
            _require_recent(context)
        except NotAllowedOver as refused:
            context["ti"].xcom_push(key=ERROR, value={"what": refused.what, "mend": refused.mend})
            raise
        context["ti"].xcom_push(key=ASKED, value=_planned(context))
        return super().execute(context)


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
        from include.disaster.isolation import directory  # noqa: PLC0415

        declared = told_declaration(context)
        if not declared.drill:
            _require_approved_plan(context)
            _require_not_become_active(here, plan, context)
        places = places_of(here, plan, context)
        if places.bucket and declared.drill:
            _require_apart(here, plan)
        places.clear()
        scratch = run_directory(here, declared)
        scratch.mkdir(mode=0o711, exist_ok=True)
        by_script = declared.drill and plan.scenarios[declared.scenario].break_glass
        bring = self._by_script if by_script else self._by_route
        facts = bring(here, plan, context, places, scratch)
        _require_parts(facts, _told_by(context, ACTIVATE)["parts"])
        to = plan.sites[declared.site] if declared.site else plan.drills
        Restored(
            about=f"{declared.mode} {declared.run}: {declared.scenario} from the {declared.copy}",
            directory=directory(declared.run),
            database_connection=to.database_connection if "database" in facts else None,
            database=facts.get("database"),
            objects_connection=to.objects_connection if "objects" in facts else None,
            objects_prefix=places.prefix,
            configuration=str(places.configuration) if "commit" in facts else None,
            whole={"database", "objects", "commit"} <= facts.keys() and not places.tables,
        ).leave(context)
        return facts

    def _by_route(
        self, here: Surroundings, plan: DisasterPlan, context: Context, places: Places, scratch: Path
    ) -> Facts:
        """The route that was planned, shown and approved."""
        from include.disaster.route import go, reopen_route  # noqa: PLC0415

        catalog = _trusted(here, context)
        route = reopen_route(_told_by(context, PLAN), catalog, here.policy)
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
        target = _told_by(context, SWITCH)["target"]
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

        if _told_by(context, ACTIVATE) is None:  # what was declared was refused: nothing was made
            return {}
        declared = told_declaration(context)
        if declared.drill:
            return {"removed": erase(places_of(here, plan, context), here.root)}
        shutil.rmtree(run_directory(here, declared), ignore_errors=True)
        return {"removed": [run_directory(here, declared).name]}


class ReapDrills(Step):
    """Remove what drills left that were killed with everything around them, after the policy's time (law 5).

    Nothing while a run of the runbook is under way: a run that was cleared, or triggered for a moment of long ago, has
    places with an old name.
    """

    def _take(self, context: Context) -> Facts:
        if under_way := context["ti"].get_dr_count(dag_id=RUNBOOK, states=["queued", "running"]):
            self.log.warning("%s runs of %s are under way: what drills left stays until then.", under_way, RUNBOOK)
            return {"removed": 0, "under_way": under_way}

        from include.disaster.isolation import leftovers, remove  # noqa: PLC0415
        from include.disaster.plan import load_plan  # noqa: PLC0415
        from include.operators import connections  # noqa: PLC0415
        from include.operators.run import Surroundings  # noqa: PLC0415

        here, drills = Surroundings(scratch_root=self.scratch_root), load_plan().drills
        found = leftovers(
            server=connections.database_login(drills.database_connection),
            bucket=connections.bucket(drills.objects_connection),
            root=here.root,
            before=here.policy.storage.attempts_reaped_after.before(datetime.now(UTC)),
        )
        for each in found:
            self.log.info("LEFT: %s, by the drill of %s", each.what, each.made)
        return {"removed": len(remove(found))}


class ReportDrill(Teller):
    """Write down what became of it: every step's time, RTO, RPO and each check; and tell people (R4.6, R5.4, R5.5).

    :param steps: the tasks whose times are told, in their order.
    """

    def __init__(self, *, steps: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.ALL_DONE, **kwargs})
        self.steps = tuple(steps)

    def _take(self, context: Context) -> Facts:
        from include.disaster.history import store_drill  # noqa: PLC0415
        from include.operators.run import Surroundings  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        drill: Drill | None = None
        kept: Facts = {}
        unkept: BackupError | None = None
        try:
            drill = self._record(here, context)
            if drill is not None:
                catalog = _copy(here, drill.from_copy)
                kept = {"record": store_drill(catalog.bucket, catalog.keyring, drill), "missed": drill.missed}
                for line in drill.lines():
                    self.log.info("%s", line)
        except BackupError as error:
            if context["ti"].try_number <= context["ti"].max_tries and not isinstance(error, Hopeless):
                raise  # it is tried again, and told then
            unkept = error  # the copy that it came from may be what is lost: that is told all the same
        told = self.tell(here.policy, partial(self._words, context, drill, unkept))
        if unkept is not None:
            raise unkept
        return kept | told

    def _record(self, here: Surroundings, context: Context) -> Drill | None:
        """The run, as it is written down; None where nothing was declared."""
        from include.disaster.history import Drill  # noqa: PLC0415

        if _told_by(context, ACTIVATE) is None:
            return None
        declared, recovery = told_declaration(context), here.policy.recovery
        times = [self._time(context, task) for task in self.steps]
        restored = _told_by(context, RESTORE)
        route = _told_by(context, PLAN) or {}
        return Drill(
            run=declared.run,
            mode=declared.mode,
            scenario=declared.scenario,
            from_copy=declared.copy,
            site=declared.site,
            by=declared.by,
            target=declared.target,
            failed=declared.failed,
            declared=declared.declared,
            reaches=(restored.get("reached") or route.get("reaches")) if restored else None,
            files_as_of=route.get("files_as_of") if restored else None,
            healthy=_healthy(times),
            promised_rto=round(recovery.rto.total_seconds()),
            promised_rpo=round(recovery.rpo.total_seconds()),
            promised_rpo_files=round(recovery.rpo_files.total_seconds()),
            forecast_seconds=route["forecast"]["total"] if route else None,
            steps=tuple(times),
            checks=tuple(self._looked(here, context)),
            phases=tuple(_phases(declared, route, restored, times)),
            due=_due(_told_by(context, ACTIVATE)["parts"]),
        )

    def _looked(self, here: Surroundings, context: Context) -> Iterator[Looked]:
        """Every check of the run; of a task that was cleared those of its last try."""
        from include.disaster.history import Looked  # noqa: PLC0415
        from include.recovery.validation.kept import validations  # noqa: PLC0415

        ti, bucket = context["ti"], _copy(here, told_declaration(context).copy).bucket
        newest = {each.kind: each for each in validations(bucket, dag=ti.dag_id, run=ti.run_id)}
        for each in newest.values():
            for check in each.checks:
                yield Looked(kind=each.kind, **asdict(check))

    def _time(self, context: Context, task: str) -> StepTime:
        from include.disaster.history import BY_HAND, StepTime  # noqa: PLC0415

        ti = context["ti"]
        states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
        state = str(states.get(task))
        times = ti.xcom_pull(task_ids=task, key=TIMES) or {}
        known = state if state in ("success", "failed", "skipped") else "not reached"
        if known == "success" and not (_told_by(context, APPROVE) if task == APPROVE else times.get("well")):
            known = BY_HAND
        return StepTime(task=task, state=cast("Any", known), began=times.get("began"), ended=times.get("ended"))

    def _words(self, context: Context, drill: Drill | None, unkept: BackupError | None) -> Notification:
        from include.monitoring.messages import Notification  # noqa: PLC0415

        failures = failures_of(context)
        links = links_of(context, failures[0].task if failures else "")
        asked = {"asked for by": context["dag_run"].triggering_user_name or "the schedule"}
        if unkept is not None:
            asked["no record of it"] = unkept.what
        if drill is None:
            return Notification("recovery_failed", "Disaster recovery", asked, failures, links)
        about = f"{'Drill' if drill.mode == 'drill' else 'Failover'} {drill.scenario} from the {drill.from_copy}"
        facts = asked | drill.facts()
        passed = drill.passed and unkept is None and not failures
        return Notification("drill_passed" if passed else "drill_failed", about, facts, failures, links)


def _healthy(times: Sequence[StepTime]) -> datetime | None:
    """When the last validation found everything well; None unless each of them has said so itself."""
    ended = {time.task: time.ended for time in times if time.task in VALIDATIONS and time.state == "success"}
    moments = [moment for moment in ended.values() if moment]
    return max(moments) if len(moments) == len(VALIDATIONS) else None


def _due(parts: Sequence[str]) -> tuple[str, ...]:
    """The kinds of validation that have to find something, where these parts come back."""
    return (
        *(["data_consistency", "service_health"] if "database" in parts else []),
        *(["application_state"] if {"objects", "configuration"} & set(parts) else []),
    )


def _planned(context: Context) -> Any:
    """What tells one plan of a run from another: when it was made."""
    return context["ti"].xcom_pull(task_ids=PLAN, key=TIMES)


def _require_recent(context: Context) -> None:
    """Raise `NotAllowedOver` for a failover that was declared long ago: who clears it is not who asked for it then.

    Airflow tells a task who triggered its run, and not who cleared it; an old run, or an old answer, would let one
    person fail over alone.
    """
    declared = told_declaration(context)
    if datetime.now(UTC) - declared.declared > _DECLARED_WITHIN:
        raise NotAllowedOver(
            f"{declared.by} declared this failover on {declared.declared:%Y-%m-%d %H:%M} UTC, more than "
            f"{_DECLARED_WITHIN.days} day ago.",
            mend="Trigger a run of its own, as yourself; somebody else approves it.",
        )


def _require_approved_plan(context: Context) -> None:
    """Raise `NotAllowedOver` unless somebody else approved the very plan that is carried out."""
    _require_recent(context)
    approved_by = require_approval(context, what="failover")
    if context["ti"].xcom_pull(task_ids=APPROVE, key=ASKED) != _planned(context):
        raise NotAllowedOver(
            f"The plan was made again after {approved_by} had approved it.",
            mend=f"Clear `{APPROVE}`, and have somebody else answer it: the plan as it is now is before them.",
        )


_PARTS = {"database": "database", "objects": "objects", "configuration": "commit"}
"""Of each part the fact that tells that it came back."""


def _require_parts(facts: Facts, parts: Sequence[str]) -> None:
    """Raise `BackupError` naming what was to come back and did not: nothing would look at what is not there."""
    if lacking := [part for part in parts if facts.get(_PARTS[part]) is None]:
        raise BackupError(
            f"It was restored, and without {' and '.join(lacking)}, which the scenario brings back.",
            mend="Look in the log of this task which backup it came from, and recover from another.",
        )


def _active(here: Surroundings, plan: DisasterPlan, declared: Declaration) -> str:
    """The site that is active; empty where no bucket that answers tells."""
    from include.disaster.site import active_site  # noqa: PLC0415

    try:
        return active_site(plan, catalogs(here, declared.copy)).site
    except BackupError:
        return ""


def _require_not_become_active(here: Surroundings, plan: DisasterPlan, context: Context) -> None:
    """Raise `NotAllowedOver` where users were led to the site after somebody approved that it is replaced."""
    declared, told = told_declaration(context), _told_by(context, PLAN)["active"]
    if told != declared.site and _active(here, plan, declared) == declared.site:
        raise NotAllowedOver(
            f"{declared.site} has become the active site since the plan was made: what users write there would go.",
            mend=f"`python -m include.cli site show` tells how that came to be. Is it to be replaced? Clear `{PLAN}` "
            f"with all that comes after it.",
        )


def _told_of_site(plan: DisasterPlan, declared: Declaration, active: str) -> Iterator[str]:
    """What whoever approves has to know of the site: whether it is the active one, and whether a database is there."""
    import psycopg  # noqa: PLC0415

    from include.operators import connections  # noqa: PLC0415
    from include.recovery.scratch import APPLICATION  # noqa: PLC0415

    assert declared.site is not None  # noqa: S101 - a failover goes to one
    site = plan.sites[declared.site]
    if active == declared.site:
        yield f"site           {declared.site}; THE ACTIVE SITE: users may be writing there"
    else:
        yield f"site           {declared.site}; {f'{active} is active' if active else 'which is active is not known'}"
    try:
        login = connections.database_login(site.database_connection)
        with login.connect(application_name=APPLICATION, autocommit=True) as session:
            query = "SELECT count(*) FROM pg_database WHERE datname = %s"
            (there,) = session.execute(query, [site.database]).fetchone() or (0,)
    except (BackupError, psycopg.Error) as error:
        said = error.what if isinstance(error, BackupError) else type(error).__name__
        yield f"there now      its server does not answer: {said}"
    else:
        live = f"a database {site.database} LIVES there: what is newer in it than `reaches` goes aside with it"
        yield f"there now      {live if there else f'its server answers, and has no database {site.database}'}"


def told_declaration(context: Context) -> Declaration:
    """What the first step declared."""
    from include.disaster.declaration import Declaration  # noqa: PLC0415

    return Declaration.from_json(_told_by(context, ACTIVATE))


def run_directory(here: Surroundings, declared: Declaration) -> Path:
    """The run's own directory on the worker."""
    from include.disaster.isolation import directory  # noqa: PLC0415

    return here.root / directory(declared.run)


def places_of(here: Surroundings, plan: DisasterPlan, context: Context) -> Places:
    """Where each part goes: the drill's own places, or the site's. Only the connections of these are asked for."""
    from include.disaster.isolation import drill_places  # noqa: PLC0415
    from include.operators import connections  # noqa: PLC0415
    from include.recovery.moments.places import Places  # noqa: PLC0415

    declared, parts = told_declaration(context), _told_by(context, ACTIVATE)["parts"]
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


def _trusted(here: Surroundings, context: Context) -> Catalog:
    """The copy, without what is in doubt: nothing is planned from that, whatever else it could vouch for."""
    from include.disaster.last_good import Trusted  # noqa: PLC0415

    catalog, doubted = _copy(here, told_declaration(context).copy), _told_by(context, SWITCH).get("doubted")
    return Trusted(catalog, without=doubted) if doubted else catalog


def _phases(declared: Declaration, route: Facts, restored: Facts | None, times: Sequence[StepTime]) -> Iterator[Phase]:
    """How much of what took how long, for the next forecast; of what was not measured, nothing.

    What is left of the time from the declaration to health is what Airflow adds, but in a failover, which waits for a
    person.
    """
    from include.disaster.forecast import SIDE_BY_SIDE  # noqa: PLC0415
    from include.disaster.history import Phase  # noqa: PLC0415

    amounts = route["forecast"]["amounts"] if route else {}
    seconds = dict((restored or {}).get("phases", {}))
    for time in times:
        if time.task in VALIDATIONS and time.state == "success" and time.began and time.ended:
            seconds[time.task.removeprefix("check_")] = (time.ended - time.began).total_seconds()
    healthy = _healthy(times)
    if declared.drill and healthy and restored and "phases" in restored:
        beside = max(seconds.get(phase, 0.0) for phase in SIDE_BY_SIDE)
        alone = sum(took for phase, took in seconds.items() if phase not in SIDE_BY_SIDE)
        seconds["steps"] = max((healthy - declared.declared).total_seconds() - beside - alone, 0.0)
    for name, took in seconds.items():
        if name in amounts:
            yield Phase(name=name, amount=amounts[name], milliseconds=round(took * 1000))


def _copy(here: Surroundings, copy: str) -> Catalog:
    return here.replica if copy == "replica" else here.catalog


def _told_by(context: Context, task: str) -> Any:
    return context["ti"].xcom_pull(task_ids=task)

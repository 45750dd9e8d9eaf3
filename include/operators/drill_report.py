"""What became of a drill or a failover: each step's time, RTO, RPO, every check; written down and told (R5.3-R5.5)."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import TriggerRule

from include.errors import BackupError, Hopeless
from include.operators.approval import APPROVE
from include.operators.declared import ACTIVATE, PLAN, RESTORE, copy_of, told_by, told_declaration
from include.operators.report import Teller, failures_of, links_of
from include.operators.step import Facts
from include.operators.timed import TIMES
from include.operators.validation import VALIDATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from airflow.sdk import Context

    from include.disaster.declaration import Declaration
    from include.disaster.history import Drill, Looked, Phase, StepTime
    from include.monitoring.messages import Notification
    from include.operators.run import Surroundings


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
                catalog = copy_of(here, drill.from_copy)
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
        from include.disaster.plan import load_plan  # noqa: PLC0415

        if told_by(context, ACTIVATE) is None:
            return None
        declared, recovery = told_declaration(context), here.policy.recovery
        times = [self._time(context, task) for task in self.steps]
        restored = told_by(context, RESTORE)
        route = told_by(context, PLAN) or {}
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
            due=_due(load_plan().scenarios[declared.scenario].restores),
        )

    def _looked(self, here: Surroundings, context: Context) -> Iterator[Looked]:
        """Every check of the run; of a task that was cleared those of its last try."""
        from include.disaster.history import Looked  # noqa: PLC0415
        from include.recovery.validation.kept import validations  # noqa: PLC0415

        ti, bucket = context["ti"], copy_of(here, told_declaration(context).copy).bucket
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
        if known == "success" and not (told_by(context, APPROVE) if task == APPROVE else times.get("well")):
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
    """The kinds of validation that have to find something, where these parts are to be there."""
    return (
        *(["data_consistency", "service_health"] if "database" in parts else []),
        *(["application_state"] if {"objects", "configuration"} & set(parts) else []),
    )


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

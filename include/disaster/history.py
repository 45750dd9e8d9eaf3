"""What became of each drill and each failover, written down once and signed (`docs/format.md`, *Drills*): R5.4, R5.5.

The newest drill of every scenario and copy is known from the bucket alone, from either.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Literal

from pydantic import AwareDatetime

from include.disaster.plan import Copy, DisasterPlan, Mode, Task
from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, ObjectExists
from include.repository.catalog import Catalog, oldest
from include.repository.layout import DRILLS
from include.repository.signed import Frozen, SignedDocument

log = logging.getLogger(__name__)

_STAMP = "%Y%m%dT%H%M%SZ"
_MOST_REPORTS = 1000
RESTORE: Task = "restore_from_backup"
VALIDATIONS: tuple[Task, ...] = ("check_data_consistency", "check_application_state", "check_service_health")
BY_HAND = "by hand"
"""The state of a step that somebody marked as success: nothing says that it did its work."""


class DrillRefused(BackupError):
    """The record of a drill that is not genuine."""


class StepTime(Frozen):
    """One step of a run: how it ended, and when; a step that never began has no times."""

    task: str
    state: Literal["success", "failed", "skipped", "not reached", "by hand"]
    began: AwareDatetime | None = None
    ended: AwareDatetime | None = None

    @property
    def told(self) -> str:
        """How long it took, and how it ended where that is not well."""
        took = told(self.ended - self.began) if self.began and self.ended else ""
        return " ".join(filter(None, (took, "" if self.state == "success" else self.state)))


class Looked(Frozen):
    """One check of a validation, as `Check` has it."""

    kind: str
    name: str
    subject: str
    expected: str
    found: str
    passed: bool


class Phase(Frozen):
    """How much of what took how long: what the next forecast is made of. `amount` is bytes, objects or tables."""

    name: str
    amount: int
    milliseconds: int


class Drill(SignedDocument):
    """One run of the recovery runbook, a drill or a failover.

    `failed` is the declared moment of failure, `declared` when the run was asked for, `healthy` when the application
    was found in health on what came back, `reaches` the last commit that came back, `files_as_of` the same of the
    objects. `promised_rto`, `promised_rpo` and `promised_rpo_files` are the policy's seconds on that day. `due` are the
    kinds of validation that the scenario has to have. A run that was cleared is reported again: `report` counts.
    """

    kind: ClassVar[str] = "drill"
    refusal: ClassVar[type[BackupError]] = DrillRefused

    run: str
    mode: Mode
    scenario: str
    from_copy: Copy
    site: str | None
    by: str | None
    target: str
    failed: AwareDatetime
    declared: AwareDatetime
    reaches: AwareDatetime | None
    files_as_of: AwareDatetime | None
    healthy: AwareDatetime | None
    promised_rto: int
    promised_rpo: int
    promised_rpo_files: int
    forecast_seconds: int | None
    steps: tuple[StepTime, ...]
    checks: tuple[Looked, ...]
    phases: tuple[Phase, ...] = ()
    due: tuple[str, ...] = ()
    report: int = 1

    @property
    def home(self) -> str:
        """Where it lies: of one scenario and copy, names sort by time."""
        stamp, again = self.declared.astimezone(UTC).strftime(_STAMP), f".{self.report}" if self.report > 1 else ""
        return f"{DRILLS}{self.scenario}/{self.from_copy}/{stamp}-{self.run}{again}.json"

    @property
    def rto(self) -> timedelta | None:
        """From the declaration to the application in health; None when it never was (R5.4)."""
        return None if self.healthy is None else self.healthy - self.declared

    @property
    def rpo(self) -> timedelta | None:
        """From the moment of failure back to the last commit that came back; None when nothing did (R5.5)."""
        return None if self.reaches is None else max(self.failed - self.reaches, timedelta())

    @property
    def rpo_files(self) -> timedelta | None:
        """The same of the objects, where they were restored."""
        return None if self.files_as_of is None else max(self.failed - self.files_as_of, timedelta())

    @property
    def missed(self) -> list[str]:
        """What was promised and not kept, in words; empty when the run proved everything."""
        missed = [f"{step.task} failed" for step in self.steps if step.state == "failed"]
        missed += [f"{step.task} was marked as success by hand" for step in self.steps if step.state == BY_HAND]
        if not missed:  # else these come of it
            missed += [f"{step.task} was not reached" for step in self.steps if step.state == "not reached"]
        missed += [f"{look.name} of {look.subject}" for look in self.checks if not look.passed]
        missed += self._unproved() if self.reaches is not None else []
        for name, took, promised in (
            ("RTO", self.rto, self.promised_rto),
            ("RPO", self.rpo, self.promised_rpo),
            ("RPO of files", self.rpo_files, self.promised_rpo_files),
        ):
            if took is not None and took > timedelta(seconds=promised):
                missed.append(f"{name} of {timedelta(seconds=promised)} missed: {told(took)}")
        if self.rpo is None:
            missed.append("nothing came back")
        elif self.healthy is None:
            missed.append("nobody found it in health")
        return missed

    def _unproved(self) -> Iterator[str]:
        """What nobody has looked at: a kind without a check, and a validation from before what came back last."""
        looked = {look.kind for look in self.checks}
        yield from (f"no check of {kind.replace('_', ' ')}" for kind in self.due if kind not in looked)
        if not looked:
            yield "nothing was looked at"
        back = max((step.ended for step in self.steps if step.task == RESTORE and step.ended), default=None)
        for step in self.steps:
            if step.task in VALIDATIONS and step.state == "success" and back and step.began and step.began < back:
                yield f"{step.task} looked before {RESTORE} had ended"

    @property
    def passed(self) -> bool:
        """Whether everything that was promised was kept."""
        return not self.missed

    def facts(self) -> dict[str, object]:
        """What people are told: RTO and RPO beside what was promised, each step's time, and how many checks held."""
        facts: dict[str, object] = {
            "RTO": _beside(self.rto, self.promised_rto),
            "RPO": _beside(self.rpo, self.promised_rpo),
            "RPO of files": _beside(self.rpo_files, self.promised_rpo_files),
        }
        if self.forecast_seconds is not None:
            facts["forecast"] = told(timedelta(seconds=self.forecast_seconds))
        facts |= {f"step {step.task}": step.told for step in self.steps}
        good = sum(1 for look in self.checks if look.passed)
        facts["checks"] = f"{good} of {len(self.checks)} held"
        if self.missed:
            facts["missed"] = "; ".join(self.missed)
        return facts

    def lines(self) -> Iterator[str]:
        """All of it, a line each: what `facts` says, and every check, those that failed first."""
        for name, value in self.facts().items():
            yield f"{name}: {value}"
        for look in sorted(self.checks, key=lambda look: look.passed):
            outcome = "ok" if look.passed else f"FAILED, expected {look.expected}"
            yield f"{look.kind}: {look.name} of {look.subject}: {look.found} ({outcome})"


def store_drill(bucket: Bucket, keyring: Keyring, drill: Drill) -> str:
    """Write a record down, once; returns its key. What was reported of the run before stays. Raises `StoreError`."""
    while True:
        sealed = drill.sealed(keyring)
        try:
            bucket.create(drill.home, sealed)
            if bucket.read_oldest(drill.home) == sealed:  # a store may ignore the condition
                return drill.home
        except ObjectExists:
            if drill.report >= _MOST_REPORTS:
                raise
        drill = drill.model_copy(update={"report": drill.report + 1})


def read_drills(catalogs: Iterable[Catalog]) -> list[Drill]:
    """The last genuine record of each run in some buckets, oldest first; what is refused is logged and passed over."""
    found: dict[str, Drill] = {}
    for catalog in catalogs:
        for version in oldest(catalog.bucket.versions(DRILLS)):
            if version.key in found:
                continue
            try:
                stored = catalog.bucket.read(version.key, version_id=version.version_id)
                found[version.key] = Drill.open(stored, catalog.keyring, key=version.key)
            except DrillRefused as refused:
                log.warning("The record of a drill is passed over: %s", refused)
    last: dict[str, Drill] = {}
    for drill in sorted(found.values(), key=lambda drill: drill.report):
        last[drill.model_copy(update={"report": 1}).home] = drill
    return sorted(last.values(), key=lambda drill: drill.declared)


def newest_drills(plan: DisasterPlan, drills: Sequence[Drill]) -> dict[tuple[str, Copy], Drill | None]:
    """The newest drill of every scenario and copy of the plan; None where there was never one."""
    newest: dict[tuple[str, Copy], Drill | None] = dict.fromkeys(plan.subjects())
    for drill in drills:
        if drill.mode == "drill" and (drill.scenario, drill.from_copy) in newest:
            newest[drill.scenario, drill.from_copy] = drill
    return newest


def next_drill(plan: DisasterPlan, drills: Sequence[Drill], copy: str = "") -> tuple[str, Copy]:
    """Whose turn it is: what was never drilled, in the plan's order, then what was drilled longest ago.

    From one `copy` alone, where it is named.
    """
    newest = newest_drills(plan, drills)

    def age(subject: tuple[str, Copy]) -> float:
        drill = newest[subject]
        return drill.declared.timestamp() if drill else 0.0

    return min((subject for subject in newest if copy in ("", subject[1])), key=age)


def overdue(plan: DisasterPlan, drills: Sequence[Drill], now: datetime) -> list[tuple[str, Copy]]:
    """What was not drilled, and passed, for as long as the plan allows."""
    since = plan.drills.every.before(now)
    good = newest_drills(plan, [drill for drill in drills if drill.passed])
    return [subject for subject, drill in good.items() if drill is None or drill.declared < since]


def _beside(took: timedelta | None, promised: int) -> str:
    return f"{told(took) if took is not None else 'not reached'} of {told(timedelta(seconds=promised))}"


def told(period: timedelta) -> str:
    """A period as people read it: 1:02:03, or 12.3 s below a minute."""
    seconds = period.total_seconds()
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))  # noqa: PLR2004 - a minute

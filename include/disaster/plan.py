"""The disaster-recovery plan as typed data (R5.3): sites, switches, drills, scenarios, and the steps in their order.

A file is refused with the line of whatever is wrong, as the policy is. https://csrc.nist.gov/pubs/sp/800/34/r1/upd1/final
names what such a plan has to say: roles, procedures, the order, and how often it is tested.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

from include.policy.document import DocumentError, load_document
from include.policy.model import SourceKind
from include.policy.quantities import (
    CalendarPeriod,
    Cron,
    Duration,
    Name,
    Prefix,
    Some,
    Table,
    Text,
    not_empty,
    refusal,
)

Copy = Literal["primary", "replica"]
COPIES: tuple[Copy, ...] = get_args(Copy)
Mode = Literal["drill", "failover"]
MODES: tuple[Mode, ...] = get_args(Mode)
Task = Literal[
    "activate_plan",
    "switch_to_replica",
    "plan_recovery",
    "approve",
    "restore_from_backup",
    "check_data_consistency",
    "check_application_state",
    "check_service_health",
    "switch_site",
    "clean_up",
]
TASKS: tuple[Task, ...] = get_args(Task)
SIDE_BY_SIDE: tuple[Task, ...] = ("check_data_consistency", "check_application_state")
DEFAULT = Path(__file__).with_name("plan.yaml")
ENVIRONMENT = "DISASTER_PLAN"
PLACEHOLDERS = frozenset(
    {"copy", "target", "database", "objects", "configuration", "expected", "how", "places", "site"}
)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class PlanError(DocumentError):
    """The plan is refused; `problems` holds every reason, `file` the file that has them."""

    called: ClassVar[str] = "disaster-recovery plan"
    environment: ClassVar[str] = ENVIRONMENT
    default: ClassVar[Path] = DEFAULT


class Part(BaseModel):
    """One part of the plan: it says everything that it must, nothing that it need not, and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Site(Part):
    """A place where Synapse can run, by the connections that reach it; `backups` is the copy of them that is near.

    `environment` are the settings that the application needs there; `service_record` is what users are led to.
    """

    region: Text
    backups: Copy
    database_connection: Text
    database: Text
    objects_connection: Text
    configuration_connection: Text
    service_record: Text
    environment: Annotated[dict[str, str], AfterValidator(not_empty)]


class ServiceRecord(Part):
    """The name that users know, in a zone of Route 53 that the connection may change."""

    connection: Text
    zone: Text
    name: Text
    ttl: Duration


class Switches(Part):
    """What a failover switches, in this order: where each of them is."""

    pointer: Prefix
    configuration: Text
    service: ServiceRecord


class Drills(Part):
    """When drills run by themselves, how long ago one may be, and the connections of the places that they make."""

    schedule: Cron
    every: CalendarPeriod
    database_connection: Text
    objects_connection: Text


class Scenario(Part):
    """A disaster: from which copies it is recovered, what comes back, to when, and the runbook for people.

    `copies` begins with the one that is taken when nobody names one. `table` is set where it is one table alone. What
    `stays` is not lost: a failover to the very site where it happened leaves it as it is.
    """

    title: Text
    copies: Some[Copy]
    restores: Some[SourceKind]
    stays: tuple[SourceKind, ...] = ()
    runbook: Text
    target: Literal["latest", "last_good"] = "latest"
    table: Table | None = None
    fails_over: bool = True
    break_glass: bool = False

    @field_validator("stays")
    @classmethod
    def _something_is_lost(cls, stays: tuple[SourceKind, ...], info: ValidationInfo) -> tuple[SourceKind, ...]:
        if not set(stays) < set(info.data.get("restores", stays)) and stays:
            raise refusal("is not less than what comes back.", "Name what is not lost, of `restores`, or nothing.")
        return stays


class Step(Part):
    """One step: what it does, who answers for it, how long it may take, what it insists on, and how it is undone.

    `command` is how a person does the same without Airflow.
    """

    does: Text
    owner: Text
    limit: Duration
    checks: Text
    undo: Text
    command: str = ""

    @field_validator("command")
    @classmethod
    def _placeholders(cls, command: str) -> str:
        if unknown := sorted(set(_PLACEHOLDER.findall(command)) - PLACEHOLDERS):
            raise refusal(f"has the unknown {{{unknown[0]}}}.", f"There are {', '.join(sorted(PLACEHOLDERS))}.")
        return command


class DisasterPlan(Part):
    """The whole plan. `load_plan` makes one from the file."""

    sites: Annotated[dict[Name, Site], AfterValidator(not_empty)]
    switches: Switches
    drills: Drills
    scenarios: Annotated[dict[Name, Scenario], AfterValidator(not_empty)]
    steps: dict[Task, Step]

    @field_validator("steps")
    @classmethod
    def _every_step(cls, steps: dict[Task, Step], info: ValidationInfo) -> dict[Task, Step]:
        if missing := [task for task in TASKS if task not in steps]:
            raise refusal(f"lack {', '.join(missing)}.", "Say of each step who answers for it, and its limit.")
        return {task: steps[task] for task in TASKS}

    @property
    def longest(self) -> timedelta:
        """How long a failover takes at most: every step's limit; of those that run side by side the longest."""
        alone = sum(
            (step.limit for task, step in self.steps.items() if task not in (*SIDE_BY_SIDE, "clean_up")), timedelta()
        )
        return alone + max(self.steps[task].limit for task in SIDE_BY_SIDE)

    def subjects(self) -> list[tuple[str, Copy]]:
        """Every scenario with every copy that it is recovered from: what has to be drilled."""
        return [(name, copy) for name, scenario in self.scenarios.items() for copy in scenario.copies]


def load_plan(path: Path | None = None) -> DisasterPlan:
    """Load the plan from `path`, else from the file that `DISASTER_PLAN` names, else the project's own.

    Raises `PlanError` with everything that is wrong with it.
    """
    return load_document(DisasterPlan, path or Path(os.environ.get(ENVIRONMENT) or DEFAULT), PlanError)

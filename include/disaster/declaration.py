"""What was declared: which disaster, in earnest or as a drill, from which copy, to when and to which site (R5.3)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self

from include.disaster.plan import COPIES, MODES, Copy, DisasterPlan, Mode, Scenario
from include.errors import Hopeless
from include.recovery.moments.plan import NoTarget, Target

LAST_GOOD = "last_good"
"""A target that has to be looked for: the newest point before anything looks wrong."""


class NotDeclared(Hopeless):
    """A disaster that nobody may mean: an unknown scenario, a copy that it is not recovered from, a moment to come."""


@dataclass(frozen=True)
class Declaration:
    """One disaster, or drill, as it was declared. `run` is in the names of everything that it makes.

    `failed` is since when nothing is to be had any more, and `declared` when that was said: the RPO counts to the one,
    the RTO from the other. `site` is where a failover goes, and None in a drill; `by` is who declared it, where known.
    """

    run: str
    mode: Mode
    scenario: str
    copy: Copy
    site: str | None
    target: str
    table: str | None
    failed: datetime
    declared: datetime
    by: str | None

    @property
    def drill(self) -> bool:
        """Whether nothing that is live may be touched."""
        return self.mode == "drill"

    def to_json(self) -> dict[str, Any]:
        """All of it, for an XCom."""
        return {**asdict(self), "failed": self.failed.isoformat(), "declared": self.declared.isoformat()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The inverse of `to_json`; what else is there is passed over."""
        told = {name: document[name] for name in cls.__dataclass_fields__}
        moments = {name: datetime.fromisoformat(told[name]) for name in ("failed", "declared")}
        return cls(**{**told, **moments})


def declare(
    plan: DisasterPlan,
    *,
    mode: str,
    scenario: str,
    copy: str = "",
    site: str = "",
    target: str = "",
    table: str = "",
    failed: str = "",
    run: str,
    declared: datetime,
    by: str | None,
) -> Declaration:
    """Read what the form says; what is left empty is the scenario's own. Raises `NotDeclared` or `NoTarget`."""
    chosen = plan.scenarios.get(scenario)
    if chosen is None:
        raise NotDeclared(
            f"The plan has no scenario {scenario!r}.", mend=f"It has {', '.join(plan.scenarios)}: name one of them."
        )
    if mode not in MODES:
        raise NotDeclared(f"{mode!r} is neither a drill nor a failover.", mend="Say `drill` or `failover`.")
    taken = _copy(chosen, scenario, copy)
    if table and chosen.table is None:
        raise NotDeclared(
            f"{scenario} brings everything back, not {table} alone.",
            mend="Leave the table out, or drill table_dropped.",
        )
    to = target or chosen.target
    if to != LAST_GOOD:
        Target.parse(to)
    return Declaration(
        run=run,
        mode="drill" if mode == "drill" else "failover",
        scenario=scenario,
        copy=taken,
        site=_site(plan, chosen, scenario, mode, site),
        target=to,
        table=table or chosen.table,
        failed=_failed(failed, declared),
        declared=declared,
        by=by,
    )


def _copy(scenario: Scenario, name: str, copy: str) -> Copy:
    if not copy:
        return scenario.copies[0]
    for known in COPIES:
        if copy == known and known in scenario.copies:
            return known
    raise NotDeclared(
        f"{name} is not recovered from the {copy}.", mend=f"From {' or '.join(scenario.copies)}, says the plan."
    )


def _site(plan: DisasterPlan, scenario: Scenario, name: str, mode: str, site: str) -> str | None:
    if mode == "drill":
        if site:
            raise NotDeclared(
                f"A drill goes to no site, and {site} is named.", mend="Leave the site out, or declare a failover."
            )
        return None
    if not scenario.fails_over:
        raise NotDeclared(
            f"{name} is nothing to fail over for.",
            mend=f"Drill it, and copy back what is needed: docs/runbooks/{scenario.runbook}.md.",
        )
    if site not in plan.sites:
        raise NotDeclared(
            f"A failover goes to a site, and {site or 'none'} is named.", mend=f"Name {' or '.join(plan.sites)}."
        )
    return site


def _failed(text: str, declared: datetime) -> datetime:
    """Since when nothing is to be had; when nobody says, since it was declared."""
    if not text:
        return declared
    try:
        failed = datetime.fromisoformat(text)
    except ValueError:
        failed = None
    if failed is None or failed.tzinfo is None:
        raise NoTarget(
            f"{text!r} is no moment of failure.", mend="Write it with its offset, as in 2026-11-22T10:37:12+00:00."
        )
    if failed > declared:
        raise NotDeclared(
            f"{text} is yet to come: nothing has failed then.", mend="Say since when it is lost, or nothing for now."
        )
    return failed.astimezone(UTC)

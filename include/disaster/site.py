"""Making a site the active one, and taking that back: three switches, each written down before and after (R5.3).

Whatever dies whenever: the same run goes on behind what is done, and undoing begins with what was switched last.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from include.disaster.plan import DisasterPlan
from include.disaster.site_log import SWITCHES, ActiveSite, SiteBusy, SiteLog, SiteRun, active_site
from include.disaster.switches import ChangedMeanwhile, EnvironmentFile, NotSwitched, ServiceName, Switch
from include.errors import BackupError, Hopeless
from include.repository.catalog import Catalog

__all__ = [
    "ActiveSite",
    "ChangedMeanwhile",
    "HalfSwitched",
    "NotSwitched",
    "SiteBusy",
    "SiteLog",
    "SwitchRefused",
    "active_site",
    "find_run",
    "foresee_switch",
    "foresee_undo",
    "is_active",
    "switch_site",
    "undo_switches",
]

log = logging.getLogger(__name__)

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,99}", re.ASCII)  # it is in the name of a file


class SwitchRefused(Hopeless):
    """A switch, or its undoing, that nobody can mean as things stand."""


class HalfSwitched(BackupError):
    """A failover, or its undoing, that stopped between its switches; what is done and what is not is named."""


def switch_site(
    plan: DisasterPlan,
    site: str,
    *,
    run: str,
    by: str,
    approved_by: str,
    because: str,
    catalogs: Sequence[Catalog],
    checkout: Path,
    dns: Any,
) -> dict[str, Any]:
    """Make a site the active one: the pointer, the configuration in its `checkout`, the service record; returns facts.

    The same `run` again goes on behind what is done. The first of `catalogs` is the copy's, and has to answer; `dns` is
    a boto3 client of `route53`. Nothing is switched before each switch was looked at. Raises `SwitchRefused`,
    `SiteBusy`, `NotSwitched` when nothing is switched, and `HalfSwitched` when something is.
    """
    record, known, switches = _considered(plan, site, run, catalogs, checkout, dns)
    record.ready_to_write()
    if known is None:
        for switch in switches:
            switch.look()
    left = known.left if known else record.active.site
    said = {"run": run, "site": site, "left": left, "by": by, "approved_by": approved_by, "because": because}
    if known is None:
        record.append("asked", **said)
    standing = record.runs[run]
    try:
        if "pointer" not in standing.made:
            record.append("made", "pointer", **said)
        for switch in switches:
            if switch.name in standing.made:
                continue
            if switch.name not in record.runs[run].before:
                record.append("begun", switch.name, switch.look(), **said)
            switch.make(record.runs[run].before[switch.name])
            record.append("made", switch.name, **said)
    except BackupError as error:
        _half_way(record, run, error, undo="")
    return _facts(record, record.runs[run])


def foresee_switch(
    plan: DisasterPlan, site: str, *, run: str, catalogs: Sequence[Catalog], checkout: Path, dns: Any
) -> list[str]:
    """What `switch_site` would do, a line a switch; it only reads, and raises what that would before it writes."""
    record, known, switches = _considered(plan, site, run, catalogs, checkout, dns)
    for switch in switches:
        switch.look()
    active = record.active.site
    words = {"pointer": f"{record.told_by.bucket}/{plan.switches.pointer}: {site} (now {active})"}
    words |= {switch.name: switch.words() for switch in switches}
    return [f"{name}: {told}" for name, told in words.items() if known is None or name not in known.made]


def foresee_undo(plan: DisasterPlan, *, run: str, catalogs: Sequence[Catalog]) -> list[str]:
    """What `undo_switches` would do, a line a switch, in its order; it only reads."""
    standing = find_run(SiteLog(plan, catalogs), run)
    places = {
        "pointer": f"{standing.left} is the active site again",
        "configuration": f"{plan.switches.configuration} of {standing.site} is what it was before {run}",
        "service": f"{plan.switches.service.name} has the records that it had before {run}",
    }
    return [f"{name}: {places[name]}" for name in reversed(standing.touched) if name not in standing.undone]


def undo_switches(
    plan: DisasterPlan,
    *,
    run: str,
    undo: str,
    by: str,
    approved_by: str,
    because: str,
    catalogs: Sequence[Catalog],
    checkout: Path,
    dns: Any,
) -> dict[str, Any]:
    """Take back what the newest run switched, whole or half-way, the last first; returns facts.

    `undo` names who undoes: the same one again goes on, or says once more what it did. `checkout` is that of the site
    which the run had switched to. Raises `SwitchRefused`, `NotSwitched`, `HalfSwitched` and `SiteBusy`.
    """
    record = SiteLog(plan, catalogs)
    standing = _require_newest(record, run)
    record.ready_to_write()
    if standing.is_undone and undo not in standing.undoers:
        raise SwitchRefused(
            f"{run} was undone already, by {standing.undo.by if standing.undo else 'nobody'}: "
            f"{record.active.site} is active.",
            mend="To go to another site, fail over to it.",
        )
    switches = {switch.name: switch for switch in _switches(plan, standing.site, run, checkout, dns)}
    who = {"by": by, "approved_by": approved_by, "because": because}
    said = {"run": run, "site": standing.site, "left": standing.left, "undo": undo, **who}
    if undo not in standing.undoers:
        record.append("undo_asked", **said)
    try:
        for name in reversed(standing.touched):
            if name in standing.undone:
                continue
            if name in switches:
                switches[name].restore(standing.before[name])
            record.append("undone", name, **said)
    except BackupError as error:
        _half_way(record, run, error, undo=undo)
    return _facts(record, record.runs[run])


def is_active(plan: DisasterPlan, site: str, *, run: str, catalogs: Sequence[Catalog]) -> bool:
    """Whether a site is the active one without this run, and nothing stands half-way: there is nothing to switch."""
    record = SiteLog(plan, catalogs)
    over = record.newest is None or record.newest.is_over
    return over and run not in record.runs and record.active.site == site


def find_run(record: SiteLog, run: str = "") -> SiteRun:
    """The run that can be undone: the newest, which `run` may name; raises `SwitchRefused` when there is none."""
    newest = record.newest
    if newest is None:
        raise SwitchRefused(
            f"Nobody ever switched sites: {record.active.site} is active.", mend="There is nothing to undo."
        )
    return _require_newest(record, run or newest.run)


def require_site(plan: DisasterPlan, site: str) -> None:
    """Raise `SwitchRefused` for a site that the plan does not have."""
    if site not in plan.sites:
        raise SwitchRefused(
            f"There is no site {site!r} in the plan.", mend=f"There are {', '.join(sorted(plan.sites))}."
        )


def _considered(  # noqa: PLR0917 - private, and named at both calls
    plan: DisasterPlan, site: str, run: str, catalogs: Sequence[Catalog], checkout: Path, dns: Any
) -> tuple[SiteLog, SiteRun | None, list[Switch]]:
    """The log, what it says of the run, the switches outside the log; raises what refuses the run as things stand."""
    require_site(plan, site)
    if not _RUN.fullmatch(run):
        raise SwitchRefused(f"{run!r} is no name of a run.", mend="Letters, digits and _.:+- make one, 100 at most.")
    record = SiteLog(plan, catalogs)
    known = record.runs.get(run)
    if known is None:
        _require_new(record, site)
    else:
        _require_resumable(record, known, site)
    return record, known, _switches(plan, site, run, checkout, dns)


def _require_new(record: SiteLog, site: str) -> None:
    newest, active = record.newest, record.active
    if newest and not newest.is_over:
        raise SiteBusy(
            f"The run {newest.run} to {newest.site} stands half-way ({newest.stands()}).",
            mend="Clear its task, and it goes on, or `python -m include.cli site switch` with that site and --run; or "
            "undo it: the DAG undo_failover, or `python -m include.cli site undo`. Then start again.",
        )
    if active.site == site:
        raise SwitchRefused(
            f"{site} is the active site already{f', since {active.since:%Y-%m-%d %H:%M} UTC' if active.since else ''}.",
            mend="`python -m include.cli site show` tells how that came to be.",
        )


def _require_resumable(record: SiteLog, known: SiteRun, site: str) -> None:
    if known.site != site:
        raise SwitchRefused(f"The run {known.run} is to {known.site}, not to {site}.", mend="Start another run.")
    if known.undo:
        raise SwitchRefused(
            f"The run {known.run} was undone, or is being: it goes on no more.",
            mend="Start another one when the undoing has ended.",
        )
    _require_newest(record, known.run)


def _require_newest(record: SiteLog, run: str) -> SiteRun:
    standing, newest = record.runs.get(run), record.newest
    if standing is None:
        raise SwitchRefused(
            f"There is no run {run!r} that switched sites.", mend="`python -m include.cli site show` lists them."
        )
    if newest and newest.run != run:
        raise SwitchRefused(
            f"{run} is not the newest run: {newest.run} came after it, and what was before each is no longer there.",
            mend=f"Undo {newest.run}, or fail over to the site that should be active.",
        )
    return standing


def _switches(plan: DisasterPlan, site: str, run: str, checkout: Path, dns: Any) -> list[Switch]:
    """The switches outside the log, in their order."""
    target = plan.sites[site]
    return [
        EnvironmentFile(checkout / plan.switches.configuration, target.environment, run=run),
        ServiceName(dns, plan.switches.service, target.service_record),
    ]


def _half_way(record: SiteLog, run: str, error: BackupError, *, undo: str) -> NoReturn:
    """Say what is switched and what is not; what was not touched at all is told as it is."""
    standing = record.runs[run]
    if undo:
        raise HalfSwitched(
            f"{run} is undone half-way ({standing.stands()}). {error.what}",
            mend=f"{error.mend} Then undo again: it goes on with what is left.",
        ) from error
    missing = [name for name in SWITCHES if name not in standing.made]
    raise HalfSwitched(
        f"{run} to {standing.site} stands half-way ({standing.stands()}; not: {', '.join(missing)}). {error.what}",
        mend=f"{error.mend} Then clear the task, and it goes on behind what is done; or undo it: the DAG "
        "undo_failover, or `python -m include.cli site undo`.",
    ) from error


def _facts(record: SiteLog, standing: SiteRun) -> dict[str, Any]:
    """What came of it, for a report; buckets that do not tell of it yet are named."""
    for bucket, why in record.untold.items():
        log.warning("%s does not tell of it yet: %s", bucket, why)
    return {
        "run": standing.run,
        "active": record.active.site,
        "before": record.active.before,
        "since": record.active.since.isoformat() if record.active.since else None,
        "switched": [name for name in standing.made if name not in standing.undone],
        "switched_back": list(standing.undone),
        "untold": dict(record.untold),
    }

"""How long a recovery will take today, by today's bytes and by how fast the last drills were (R5.4).

Each phase has a cost of its own and a cost for how much there is. Both were measured on one machine; what the drills of
an installation took says what they are there, phase by phase. So the first drill makes the forecast true, and a week
that grew shows in it before it shows on the worst day.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, Self, get_args

from include.recovery.moments.plan import RecoveryPlan
from include.repository.contents import BASE
from include.repository.manifest import Manifest

Phase = Literal[
    "steps",
    "unpack",
    "replay",
    "copy",
    "restore",
    "objects",
    "configuration",
    "data_consistency",
    "application_state",
    "service_health",
]
"""`steps` is what Airflow adds: starting tasks. A recovery unpacks, replays and copies; a full backup is restored."""
PHASES: tuple[Phase, ...] = get_args(Phase)
SIDE_BY_SIDE: tuple[Phase, ...] = ("data_consistency", "application_state")

OBJECT_WEIGHT = 100_000
"""An object costs as much as so many bytes more of it."""
_EMPTY_CLUSTER = 23_000_000
"""Bytes of a cluster in which nothing is."""
_ROWS_IN_CLUSTER = 3
"""A cluster is so many times as large as the dumps of its rows: pages, indexes."""
_PER_CENT = 100
_DOUBT = 0.01
"""A drill is a tenth off by chance, and a place e times as fast as another: the square of the one over the other."""


@dataclass(frozen=True)
class Cost:
    """What a phase costs: seconds, and seconds a unit of its amount."""

    fixed: float
    unit: float

    def of(self, amount: int) -> float:
        """Seconds for so much."""
        return self.fixed + self.unit * amount


# Measured by `benchmarks.drill` on two cores with PostgreSQL 18 and a store on the same machine; `steps` in Airflow.
# Amounts are bytes, but for those of `steps` and `service_health`, of which there is one, and of `application_state`,
# which are objects. Both validations import Great Expectations, side by side: that is most of their own seconds.
COSTS: Mapping[Phase, Cost] = {
    "steps": Cost(30.0, 0.0),
    "unpack": Cost(0.3, 1 / 240e6),
    "replay": Cost(0.1, 1 / 115e6),
    "copy": Cost(0.6, 1 / 35e6),
    "restore": Cost(0.4, 1 / 45e6),
    "objects": Cost(0.3, 1 / 17e6),
    "configuration": Cost(0.35, 1 / 50e6),
    "data_consistency": Cost(6.0, 1 / 28e6),
    "application_state": Cost(5.5, 0.001),
    "service_health": Cost(2.0, 0.0),
}


@dataclass(frozen=True)
class Measured:
    """One phase of one drill: how much it was, as `amounts` counts it, and the seconds that it took."""

    phase: str
    amount: int
    seconds: float


@dataclass(frozen=True)
class Speeds:
    """What each phase costs here; what no drill has measured is not among them, and costs what `COSTS` say."""

    costs: Mapping[str, Cost] = field(default_factory=dict)

    @classmethod
    def measured(cls, records: Iterable[Measured]) -> Self:
        """By what drills took, all of them together; a phase that is none of `PHASES` is passed over."""
        found: dict[str, list[Measured]] = defaultdict(list)
        for record in records:
            if record.seconds > 0:
                found[record.phase].append(record)
        return cls({phase: _fitted(COSTS[phase], found[phase]) for phase in PHASES if phase in found})

    def seconds(self, phase: Phase, amount: int) -> float:
        """What a phase will take."""
        return self.costs.get(phase, COSTS[phase]).of(amount)


def _fitted(usual: Cost, records: Sequence[Measured]) -> Cost:
    """Of the costs that explain what was measured, those that are the fewest times the usual ones, or a share of them.

    A single drill cannot tell the two costs apart: the one that was more of its time takes more of the difference. So a
    small drill, which is mostly what a phase costs by itself, does not say that a large one is as many times slower;
    from drills of two sizes on both costs are measured.
    """
    return min((_scaled(usual, skew / 50, records) for skew in range(-200, 201)), key=lambda found: found[0])[1]


def _scaled(usual: Cost, skew: float, records: Sequence[Measured]) -> tuple[float, Cost]:
    """The best costs where that of a unit grew by exp(skew) more than the fixed one, and how far off they are.

    Least squares of logarithms: of what the drills took over what the costs say, and of the costs over the usual ones.
    """
    skewed = Cost(usual.fixed, usual.unit * math.exp(skew))
    off = [math.log(record.seconds / skewed.of(record.amount)) for record in records]
    by = (sum(off) - _DOUBT * skew) / (len(off) + 2 * _DOUBT)
    error = sum((each - by) ** 2 for each in off) + _DOUBT * (by**2 + (by + skew) ** 2)
    return error, Cost(skewed.fixed * math.exp(by), skewed.unit * math.exp(by))


@dataclass(frozen=True)
class Forecast:
    """The seconds of each phase, and the bytes or objects that they are of; what nobody has drilled yet is `guessed`.

    From the declaration to the application in health; nobody's deliberation is in it.
    """

    seconds: Mapping[Phase, float]
    amounts: Mapping[Phase, int]
    guessed: tuple[Phase, ...]

    @property
    def total(self) -> float:
        """Seconds in all. Data and state are looked at side by side, and the service after them."""
        beside = max(self.seconds.get(phase, 0.0) for phase in SIDE_BY_SIDE)
        return beside + sum(seconds for phase, seconds in self.seconds.items() if phase not in SIDE_BY_SIDE)

    def above(self, limit: timedelta) -> str | None:
        """What to do when it is above a limit, such as half of the RTO; None when it is not."""
        if self.total <= limit.total_seconds():
            return None
        replay = self.seconds.get("replay", 0.0)
        return (
            f"A recovery would take {_minutes(self.total)} today, above {_minutes(limit.total_seconds())}; replaying "
            f"the log is {replay * _PER_CENT / self.total:.0f} % of it. Make a base in midweek: run the DAG "
            "snapshot_backup now, and give backups.snapshot.schedule a second day."
        )

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"forecast       {_minutes(self.total)}" + (
            f", of which nobody has measured here: {', '.join(self.guessed)}" if self.guessed else ""
        )
        for phase, seconds in self.seconds.items():
            yield f"  {phase:18} {seconds:8.1f} s"

    def to_json(self) -> dict[str, Any]:
        """Small enough for an XCom: the seconds, and the amounts that a drill's record keeps beside what it took."""
        return {
            "total": round(self.total),
            "seconds": {phase: round(seconds, 1) for phase, seconds in self.seconds.items()},
            "amounts": dict(self.amounts),
            "guessed": list(self.guessed),
        }


def forecast(way: RecoveryPlan | Manifest, speeds: Speeds) -> Forecast:
    """What a recovery along a plan, or from a full backup, will take with today's bytes."""
    how_much = amounts(way)
    seconds = {phase: speeds.seconds(phase, amount) for phase, amount in how_much.items()}
    if isinstance(way, RecoveryPlan) and "unpack" in seconds and "unpack" not in speeds.costs:
        # Nobody has measured the way from the store yet: it is no faster than the base was stored.
        stored = sum(one.stored_bytes for one in way.base.artifacts if _is_base(one.name))
        fetched = way.download_seconds * stored / max(way.download_bytes, 1)
        seconds["unpack"] = max(seconds["unpack"], fetched)
    return Forecast(seconds, how_much, tuple(phase for phase in how_much if phase not in speeds.costs))


def amounts(way: RecoveryPlan | Manifest) -> dict[Phase, int]:
    """How much each phase of a recovery has to do; a phase that it has not is not among them."""
    found = _of_full(way) if isinstance(way, Manifest) else _of_plan(way)
    return {phase: found[phase] for phase in PHASES if phase in found}


def _of_plan(plan: RecoveryPlan) -> dict[Phase, int]:
    found: dict[Phase, int] = {"steps": 1, "service_health": 1}
    if "database" in plan.what:
        base = sum(one.raw_bytes for one in plan.base.artifacts if _is_base(one.name))
        rows = max(base - _EMPTY_CLUSTER, 0)
        found |= {"unpack": base, "replay": plan.end_lsn - plan.start_lsn, "copy": rows, "data_consistency": rows}
    if plan.objects:
        whole = (plan.objects.base, *plan.objects.increments)
        count = sum(manifest.objects.objects for manifest in whole)
        weight = sum(manifest.objects.raw_bytes for manifest in whole)
        found |= {"objects": weight + OBJECT_WEIGHT * count, "application_state": count}
    if plan.configuration:
        found["configuration"] = _configuration(plan.configuration.repository)
    return found


def _of_full(full: Manifest) -> dict[Phase, int]:
    rows = sum(artifact.raw_bytes for artifact in full.artifacts if artifact.name.startswith("database/"))
    return {
        "steps": 1,
        "restore": rows,
        "objects": full.objects.raw_bytes + OBJECT_WEIGHT * full.objects.objects,
        "configuration": _configuration(full),
        "data_consistency": _ROWS_IN_CLUSTER * rows,
        "application_state": full.objects.objects,
        "service_health": 1,
    }


def _configuration(manifest: Manifest) -> int:
    return sum(artifact.raw_bytes for artifact in manifest.artifacts if artifact.name.startswith("config/"))


def _is_base(name: str) -> bool:
    return name == BASE or name.startswith("database/tablespace-")


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:,.1f} min" if minutes < 60 else f"{minutes / 60:,.1f} h"  # noqa: PLR2004 - an hour

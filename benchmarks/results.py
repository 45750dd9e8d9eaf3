"""What was measured: kept in `benchmarks/results.json`, shown as a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.measured import Cost
from benchmarks.place import PROJECT

RESULTS = PROJECT / "benchmarks" / "results.json"

out = Console(highlight=False)


@dataclass(frozen=True)
class Result:
    """One number: ours, and the same of a peer; `ratio` is our cost over the peer's, below 1 is better."""

    name: str
    value: float
    unit: str
    peer: str | None
    ratio: float | None
    conditions: str

    @property
    def family(self) -> str:
        """The first word of its name: one benchmark measures all of a family."""
        return self.name.partition(".")[0]


def beside(name: str, unit: str, values: Mapping[str, Sequence[float]], conditions: str) -> list[Result]:
    """The median of ours, which is the first of `values`, beside that of each peer."""
    (_, ours), *peers = ((side, statistics.median(each)) for side, each in values.items())
    return [Result(name, round(ours, 2), unit, peer, round(ours / theirs, 3), conditions) for peer, theirs in peers]


def costs(phase: str, data_set: str, runs: Mapping[str, Sequence[Cost]], conditions: str) -> list[Result]:
    """Wall, CPU and memory of a phase."""
    return [
        result
        for what, unit, take in (
            ("wall", "s", lambda cost: cost.wall),
            ("cpu", "s", lambda cost: cost.cpu),
            ("memory", "MB", lambda cost: cost.memory / 1e6),
        )
        for result in beside(
            f"{phase}.{what}.{data_set}",
            unit,
            {side: [take(cost) for cost in each] for side, each in runs.items()},
            conditions,
        )
    ]


def record(results: Sequence[Result]) -> None:
    """Put them in the place of what was measured of the same families before."""
    measured = {result.family for result in results}
    before = [Result(**each) for each in json.loads(RESULTS.read_text())] if RESULTS.exists() else []
    kept = [result for result in before if result.family not in measured]
    RESULTS.write_text(json.dumps([asdict(result) for result in [*kept, *results]], indent=1) + "\n")


def show(results: Sequence[Result]) -> None:
    """Print them, one a row."""
    made = Table(title="Ours beside its peers; a ratio below 1 is better")
    for name in ("what", "value", "unit", "peer", "ratio"):
        made.add_column(name, no_wrap=name != "peer", justify="right" if name in ("value", "ratio") else "left")
    for each in results:
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        made.add_row(each.name, f"{each.value:,.1f}", each.unit, each.peer or "", ratio)
    out.print(made)

"""The result of looking: each thing that was looked at, what it was, and what it should have been."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, Self, get_args

from include.errors import Hopeless

Kind = Literal["data_consistency", "application_state", "service_health"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TOLD = 5


class NotValid(Hopeless):
    """Something that came back is not what it should be."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: `name` says what for (`rows`, `foreign key`, `health endpoint`), `subject` of what.

    `expected` and `found` are in words, and hold no row of anybody's data: they are kept, shown, and mailed.
    """

    name: str
    subject: str
    expected: str
    found: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.name} of {self.subject}: {self.found}, not {self.expected}"


@dataclass(frozen=True)
class Validation:
    """One kind of validation, carried out: what was looked at, and when."""

    kind: Kind
    began: datetime
    ended: datetime
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """What is not as it should be."""
        return tuple(check for check in self.checks if not check.passed)

    def require(self) -> None:
        """Raise `NotValid`, naming what is not as it should be."""
        if not (failed := self.failed):
            return
        more = f"; and {len(failed) - _TOLD} more" if len(failed) > _TOLD else ""
        raise NotValid(
            f"{len(failed)} of {len(self.checks)} checks of {self.kind.replace('_', ' ')} failed: "
            f"{'; '.join(map(str, failed[:_TOLD]))}{more}.",
            mend="Do not use what came back. Its page lists every check; recover again, to a moment before or from the "
            "other copy, and keep this one for whoever looks into it.",
        )

    def lines(self) -> Iterator[str]:
        """Every check, a line each, those that failed first."""
        for check in sorted(self.checks, key=lambda check: check.passed):
            yield f"{'ok    ' if check.passed else 'FAILED'} {check.name} of {check.subject}: {check.found}" + (
                "" if check.passed else f", not {check.expected}"
            )

    def to_json(self) -> dict[str, Any]:
        """All of it, for a record."""
        return {
            "kind": self.kind,
            "began": self.began.isoformat(),
            "ended": self.ended.isoformat(),
            "checks": [asdict(check) for check in self.checks],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            kind=document["kind"],
            began=datetime.fromisoformat(document["began"]),
            ended=datetime.fromisoformat(document["ended"]),
            checks=tuple(Check(**check) for check in document["checks"]),
        )

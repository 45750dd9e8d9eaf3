"""One check, and the two ways to run many: *prepare* stops at the first that fails, `doctor` tells them all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import psycopg
from botocore.exceptions import BotoCoreError, ClientError

from include.errors import BackupError, Hopeless

log = logging.getLogger(__name__)

Facts = dict[str, Any]
Verdict = Literal["ok", "warning", "failed"]

SUBJECTS_AT_ONCE = 8


class NotReady(Hopeless):
    """Something that a backup needs is not as it must be."""


class Remark(BackupError):
    """Something that ought to be mended, and stops no backup."""


class Unseen(Remark):
    """Something that nobody said how to reach from here, so that nothing of it can be looked at."""


@dataclass(frozen=True)
class Check:
    """One thing to look at: `look` returns what it found, or raises: a `Remark` is a warning, the rest a failure."""

    name: str
    look: Callable[[], Facts]


@dataclass(frozen=True)
class Subject:
    """What the checks are about. Where the `door` does not open, there is nothing to see behind it."""

    name: str
    checks: Sequence[Check]
    door: Check | None = None


@dataclass(frozen=True)
class Finding:
    """What one check came to; `what` and `mend` are empty when all is well."""

    subject: str
    check: str
    verdict: Verdict
    what: str = ""
    mend: str = ""
    facts: Facts = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The finding as plain data."""
        return asdict(self)


def insist(*looks: Callable[[], Facts]) -> Facts:
    """Run checks in turn and return all their facts; the first that fails is raised, a remark is logged."""
    facts: Facts = {}
    for look in looks:
        try:
            facts |= look()
        except Remark as remark:
            log.warning("%s", remark)
    return facts


def merely(look: Callable[[], Facts]) -> Facts:
    """A check of something that this backup does without: whatever it finds wrong is a remark."""
    try:
        return look()
    except BackupError as trouble:
        raise Remark(trouble.what, mend=trouble.mend) from None


def examine(subjects: Iterable[Subject]) -> list[Finding]:
    """Run every check of every subject, subjects side by side, and tell each; nothing that a check meets is raised."""
    with ThreadPoolExecutor(SUBJECTS_AT_ONCE, thread_name_prefix="doctor") as pool:
        return [finding for findings in pool.map(_examined, subjects) for finding in findings]


def demand(
    holds: bool, what: str, *, mend: str = "Look at the store itself: a backup there could not be trusted."
) -> None:
    """Raise `NotReady` unless it holds."""
    if not holds:
        raise NotReady(what, mend=mend)


def remark(wanting: bool, what: str, *, mend: str) -> None:
    """Raise a `Remark` when something is wanting."""
    if wanting:
        raise Remark(what, mend=mend)


def _examined(subject: Subject) -> list[Finding]:
    return list(_findings(subject))


def _findings(subject: Subject) -> Iterator[Finding]:
    if (door := subject.door) is not None:
        facts, trouble = _look(door)
        yield _finding(subject, door, facts, trouble)
        if isinstance(trouble, Unseen):
            return
        if trouble is not None and not isinstance(trouble, Remark):
            shut = Remark(f"Not looked at: its {door.name} failed.", mend="Mend that, and look again.")
            yield from (_finding(subject, check, {}, shut) for check in subject.checks)
            return
    for check in subject.checks:
        yield _finding(subject, check, *_look(check))


def _look(check: Check) -> tuple[Facts, BackupError | None]:
    """What the check found, or what it raised; what is not ours gets our form."""
    try:
        return check.look(), None
    except BackupError as trouble:
        return {}, trouble
    except (OSError, psycopg.Error, BotoCoreError, ClientError) as failure:
        said = " ".join(str(failure).split()).rstrip(".")
        return {}, NotReady(f"It could not be looked at: {said}.", mend="Mend what it names, and look again.")


def _finding(subject: Subject, check: Check, facts: Facts, trouble: BackupError | None) -> Finding:
    if trouble is None:
        return Finding(subject.name, check.name, "ok", facts=facts)
    verdict: Verdict = "warning" if isinstance(trouble, Remark) else "failed"
    return Finding(subject.name, check.name, verdict, trouble.what, trouble.mend)

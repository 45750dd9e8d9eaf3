"""Which site is active, and how it came to be: one log of signed entries in the buckets (`docs/format.md`, *Sites*).

Each step of each switch is one more entry, numbered and created with `If-None-Match: *`: of two runs that want the same
number one loses, and ends. The copy's bucket is written first and has to take it; every other bucket that answers is
brought up to it, so that either tells after the other is lost.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AwareDatetime, Field, JsonValue

from include.disaster.plan import DisasterPlan
from include.errors import BackupError
from include.pipeline.store import ObjectExists, StoreError
from include.repository.catalog import Catalog, oldest
from include.repository.signed import SignedDocument

log = logging.getLogger(__name__)

SwitchName = Literal["pointer", "configuration", "service"]
SWITCHES: tuple[SwitchName, ...] = get_args(SwitchName)
StepName = Literal["asked", "begun", "made", "undo_asked", "undone"]
_NEVER = (datetime.min.replace(tzinfo=UTC), 0)
_NAME = re.compile(r"(?P<number>\d{6})\.json", re.ASCII)


class EntryRefused(BackupError):
    """An entry that is not genuine; it counts for nothing."""


class SiteBusy(BackupError):
    """Somebody else switches sites at this moment, or a switch is half done."""


class LogsDiffer(BackupError):
    """The two buckets tell different histories of the sites."""


class Entry(SignedDocument):
    """One step of one run that makes `site` the active one, or (`undo` names who) of taking that back.

    `asked` opens a run, `begun` says what a switch finds (`before`), `made` that it is switched and was read back;
    `undo_asked` and `undone` likewise. The pointer has no other place than this log: its `made` is the switch.
    """

    kind: ClassVar[str] = "site"
    refusal: ClassVar[type[BackupError]] = EntryRefused

    below: str
    number: Annotated[int, Field(ge=1, le=999_999)]
    when: AwareDatetime
    run: str
    step: StepName
    switch: SwitchName | None
    site: str
    left: str
    by: str
    approved_by: str
    because: str
    undo: str = ""
    before: JsonValue

    @property
    def home(self) -> str:
        """Where it lies: names sort as the log goes."""
        return f"{self.below}{self.number:06}.json"


@dataclass
class SiteRun:
    """What the log says of one run: which switches it began, made and took back, and what was there before each."""

    opened: Entry
    before: dict[SwitchName, JsonValue] = field(default_factory=dict)
    made: list[SwitchName] = field(default_factory=list)
    undone: list[SwitchName] = field(default_factory=list)
    undo: Entry | None = None
    undoers: set[str] = field(default_factory=set)

    @property
    def run(self) -> str:
        """Its name."""
        return self.opened.run

    @property
    def site(self) -> str:
        """The site that it makes the active one."""
        return self.opened.site

    @property
    def left(self) -> str:
        """The site that was active before it."""
        return self.opened.left

    @property
    def touched(self) -> list[SwitchName]:
        """Every switch that may no longer be as it was before, in their order."""
        return [switch for switch in SWITCHES if switch in self.before or switch in self.made]

    @property
    def is_undone(self) -> bool:
        """Whether all of it was taken back."""
        return self.undo is not None and set(self.touched) <= set(self.undone)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is half done."""
        return self.is_undone if self.undo else len(self.made) == len(SWITCHES)

    def stands(self) -> str:
        """How far it is, in words."""
        if self.is_undone:
            return "it was undone"
        done = self.undone if self.undo else self.made
        words = ", ".join(done) or "none"
        return f"switched back: {words} of {', '.join(self.touched)}" if self.undo else f"switched: {words}"


@dataclass(frozen=True)
class ActiveSite:
    """Which site is active, since when, by which run, who asked and who approved, and which was active before.

    `since` is None for the plan's first site, when nobody ever switched.
    """

    site: str
    since: datetime | None = None
    run: str = ""
    by: str = ""
    approved_by: str = ""
    before: str = ""

    def facts(self) -> dict[str, Any]:
        """The same as JSON."""
        since = self.since.isoformat() if self.since else None
        return {
            "site": self.site,
            "since": since,
            "run": self.run,
            "by": self.by,
            "approved_by": self.approved_by,
            "before": self.before,
        }


class SiteLog:
    """The log of the sites, read out of every bucket that answers; written to the first of them.

    Where they differ, the newer one counts (`told_by`). Raises `StoreError` when none answers. An entry that is refused
    counts for nothing, and is told in `refused`; a bucket that does not answer, in `untold`.
    """

    def __init__(self, plan: DisasterPlan, catalogs: Sequence[Catalog]) -> None:
        self._below = plan.switches.pointer
        self._home = next(iter(plan.sites))
        self.refused: list[str] = []
        self.untold: dict[str, str] = {}
        self._catalogs = list(catalogs)
        found, failure = [], None
        for catalog in catalogs:
            try:
                found.append((catalog, *self._read(catalog)))
            except StoreError as error:
                failure = error
                self.untold[catalog.bucket.name] = error.what
        if not found:
            raise failure or BackupError("No bucket is named that would tell which site is active.", mend="Name one.")
        self._found = found
        self.told_by, stored, self._numbers, self.entries = max(
            found, key=lambda each: (each[3][-1].when, each[3][-1].number) if each[3] else _NEVER
        )
        self._stored = dict(stored)

    @property
    def runs(self) -> dict[str, SiteRun]:
        """Every run that switched sites, the oldest first."""
        runs: dict[str, SiteRun] = {}
        for entry in self.entries:
            if entry.step == "asked":
                runs.setdefault(entry.run, SiteRun(entry))
                continue
            if (run := runs.get(entry.run)) is None:  # its opening was refused
                run = runs[entry.run] = SiteRun(entry)
            if entry.step == "undo_asked":
                run.undo = run.undo or entry
                run.undoers.add(entry.undo)
            elif entry.switch is None:
                continue
            elif entry.step == "begun":
                run.before.setdefault(entry.switch, entry.before)
            else:
                done = run.made if entry.step == "made" else run.undone
                if entry.switch not in done:
                    done.append(entry.switch)
        return runs

    @property
    def newest(self) -> SiteRun | None:
        """The newest run."""
        return next(reversed(self.runs.values()), None)

    @property
    def active(self) -> ActiveSite:
        """Which site is active: the newest entry that moved the pointer decides."""
        for entry in reversed(self.entries):
            if entry.switch == "pointer" and entry.step in ("made", "undone"):
                back = entry.step == "undone"
                return ActiveSite(
                    site=entry.left if back else entry.site,
                    since=entry.when,
                    run=entry.undo if back else entry.run,
                    by=entry.by,
                    approved_by=entry.approved_by,
                    before=entry.site if back else entry.left,
                )
        return ActiveSite(self._home)

    def ready_to_write(self) -> None:
        """Bring every bucket that answers up to the log; raises `LogsDiffer` when the first one tells another history.

        Raises `StoreError` when the first bucket does not answer.
        """
        first = self._catalogs[0]
        if first.bucket.name in self.untold:
            raise StoreError(
                f"{first.bucket} does not answer, and the switches are written down there first: "
                f"{self.untold[first.bucket.name]}",
                mend="Take the other copy, or mend that.",
            )
        for catalog, stored, numbers, _ in self._found:
            if any(self._stored.get(key) != body for key, body in stored.items()):
                if catalog is first:
                    raise LogsDiffer(
                        f"{first.bucket} tells another history of the sites than {self.told_by.bucket}, the newer one.",
                        mend="Take the other copy. `python -m include.cli site show` with each bucket tells its own.",
                    )
                self.untold[catalog.bucket.name] = "it tells another history of the sites, which is older"
            elif catalog is first:
                self._numbers |= numbers  # also what is there and refused
        self._bring()

    def append(
        self, step: StepName, switch: SwitchName | None = None, before: JsonValue = None, /, **said: str
    ) -> Entry:
        """Write the next entry; raises `SiteBusy` when somebody else wrote meanwhile, or `StoreError`."""
        first = self._catalogs[0]
        moment = first.bucket.clock()
        if self.entries:
            moment = max(moment, self.entries[-1].when)
        number = max(self._numbers, default=0) + 1
        entry = Entry(below=self._below, number=number, when=moment, step=step, switch=switch, before=before, **said)
        sealed = entry.sealed(first.keyring)
        try:
            first.bucket.create(entry.home, sealed)
            lost = first.bucket.read_oldest(entry.home) != sealed  # a store may ignore the condition
        except ObjectExists:
            lost = True
        if lost:
            raise SiteBusy(
                f"Somebody else wrote {first.bucket}/{entry.home} at this moment: sites are switched by them, too.",
                mend="`python -m include.cli site show` tells who; let them end, then start again.",
            )
        for catalog, stored, _, _ in self._found:
            if catalog is first:
                stored[entry.home] = sealed
        self._stored[entry.home] = sealed
        self._numbers.add(number)
        self.entries.append(entry)
        self._bring()
        return entry

    def _bring(self) -> None:
        """Bring every bucket that answered what it lacks; one that fails is told of, and not asked again."""
        for catalog, stored, _, _ in self._found:
            bucket = catalog.bucket
            if bucket.name in self.untold:
                continue
            for key in sorted(set(self._stored) - set(stored)):
                try:
                    bucket.create(key, self._stored[key])
                except StoreError as error:
                    self.untold[bucket.name] = error.what
                    log.warning("%s does not tell of the switch: %s", bucket, error.what)
                    break
                stored[key] = self._stored[key]

    def _read(self, catalog: Catalog) -> tuple[dict[str, bytes], set[int], list[Entry]]:
        """What is stored and genuine, by key; every number that is taken; the entries."""
        bucket, stored, numbers, entries = catalog.bucket, dict[str, bytes](), set[int](), list[Entry]()
        for version in oldest(bucket.versions(self._below)):
            if not (name := _NAME.fullmatch(version.key.removeprefix(self._below))):
                continue
            numbers.add(int(name["number"]))
            body = bucket.read(version.key, version_id=version.version_id)
            try:
                entries.append(Entry.open(body, catalog.keyring, key=version.key))
            except EntryRefused as refused:
                log.warning("%s", refused.what)
                self.refused.append(refused.what)
                continue
            stored[version.key] = body
        return stored, numbers, entries


def active_site(plan: DisasterPlan, catalogs: Sequence[Catalog]) -> ActiveSite:
    """Which site is active, as the buckets that answer tell; the plan's first when nobody ever switched.

    Raises `StoreError` when none answers.
    """
    record = SiteLog(plan, catalogs)
    for bucket, why in record.untold.items():
        log.warning("%s was not asked which site is active: %s", bucket, why)
    return record.active

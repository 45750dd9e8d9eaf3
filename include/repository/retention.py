"""Retention, as one pure function: what is there, the policy and a moment go in; what stays, and why, comes out.

Nothing here asks a bucket or a clock. Each object stays for *all* the reasons that there are, or goes because there is
none (R1, R8.1). Whatever cannot be judged stays: what a refused manifest may name, what belongs to a try that has not
ended (that is the reaper's), what no rule speaks of.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal, NamedTuple

from include.policy import Period, Policy
from include.repository.committed import Committed
from include.repository.layout import (
    DELETED,
    HOLDS,
    KEYS,
    LEDGER,
    MANIFESTS,
    READING,
    RETENTION_RUNS,
    ROLLING_TYPES,
    VERIFICATION,
    WAL,
    BackupId,
    WalPlace,
    named_by,
    place_of,
    wal_owner,
    wal_place,
)
from include.repository.leases import Readings
from include.repository.ledger import Gap
from include.repository.lsn import is_segment, segment_lsn, timeline_of
from include.repository.needs import Interval, Needs, without
from include.repository.timelines import TimelineHistory
from include.repository.tombstones import Tombstone

Kind = Literal[
    "period",
    "recovery",
    "chain",
    "last verified",
    "minimum",
    "hold",
    "reading",
    "refused",
    "named",
    "log",
    "elsewhere",
    "mirrored",
]
_ATTEMPTS = re.compile(rb"[0-9a-f]{16}")
_TOLD = 3


class Reason(NamedTuple):
    """One reason to stay: its kind, in words, and until when it holds where that is known."""

    kind: Kind
    words: str
    until: datetime | None = None


@dataclass(frozen=True)
class Verdict:
    """What becomes of an object: it stays for these reasons; without any it goes."""

    reasons: tuple[Reason, ...] = ()

    @property
    def stays(self) -> bool:
        """Whether there is a reason."""
        return bool(self.reasons)


GOES = Verdict()
_SEALED = Verdict((Reason("named", "what stays is sealed with it"),))


class WalCopy(NamedTuple):
    """One copy of a segment or of a history file, as a listing tells it; `modified` by the store's clock."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class View:
    """All that a bucket tells, as retention needs it.

    `refused` are the manifests that cannot be believed, by key, and what they say; `holds` why a backup is held, by id;
    `tombstones` those of backups whose manifest is gone; `histories` each cluster's timelines; `wal` every copy of log.
    `mirrored` are the ids that another bucket shows whose backups are brought here.
    """

    backups: Sequence[Committed]
    refused: Mapping[str, bytes] = field(default_factory=dict)
    gaps: Sequence[Gap] = ()
    holds: Mapping[str, str] = field(default_factory=dict)
    readings: Readings = field(default_factory=Readings)
    tombstones: Sequence[Tombstone] = ()
    histories: Mapping[str, Mapping[int, TimelineHistory]] = field(default_factory=dict)
    wal: Iterable[WalCopy] = ()
    mirrored: frozenset[str] = frozenset()


def decide(view: View, policy: Policy, now: datetime) -> Decisions:
    """What of a bucket stays, and for which reasons; everything else goes. `now` is the store's clock, aware UTC."""
    return Decisions(view, policy, now)


class Decisions:
    """The verdicts: `of` each object by its key, and `backups` by id.

    `going` are the backups that go, the newest first: whoever stops in the middle leaves whole chains.
    """

    def __init__(self, view: View, policy: Policy, now: datetime) -> None:
        self.now, self._view, self._policy = now, view, policy
        self._window = policy.backups.incremental.retention.before(now)
        self._needs = Needs(view.backups, view.gaps, view.histories)
        self._suspects = {one for content in view.refused.values() for one in _ATTEMPTS.findall(content)}
        strays = [key for key in view.refused if _id_of(key) is None]
        self._stray = Reason("refused", f"{strays[0]} is refused, and may name anything") if strays else None
        self._copies = _Copies(view.wal)
        self._reasons: dict[str, list[Reason]] = {each.id: [] for each in view.backups}
        self._by_age()
        self._by_number()
        self._by_moment()
        self._by_somebody()
        self.backups = {backup: Verdict(tuple(reasons)) for backup, reasons in self._reasons.items()}
        by_age = sorted(view.backups, key=lambda each: (each.time, each.id), reverse=True)
        self.staying = tuple(each for each in by_age if self.backups[each.id].stays)
        self.going = tuple(each for each in by_age if not self.backups[each.id].stays)
        self._tombs: dict[str, set[str]] = defaultdict(set)
        for tomb in view.tombstones:
            self._tombs[tomb.backup].update(tomb.attempts)
        self._own = {prefix: each.id for each in view.backups for prefix in _own_prefixes(each)}
        self._named = self._named_by_what_stays()
        self._given_up = {key for each in self.going for key in each.shared}
        self._given_up |= {key for tomb in view.tombstones for key in tomb.shared}
        self._envelopes = {prefix for each in self.staying for prefix in each.envelopes}
        self._given_up_envelopes = {prefix for each in self.going for prefix in each.envelopes}
        self._given_up_envelopes |= {prefix for tomb in view.tombstones for prefix in tomb.envelopes}
        self.log_going, self._log_sessions = self._judge_log()

    # --- backups -----------------------------------------------------------------------------------------------------

    def _by_age(self) -> None:
        """R1.1 to R1.3, R8.1: the consistency point's time decides, whatever the id says."""
        for each in self._view.backups:
            period = self._period(each)
            if period is None:
                what = f"the policy has no retention class {each.retention_class!r}"
                self._reasons[each.id].append(Reason("period", what))
            elif self.now < (until := period.after(each.time)) or each.time >= period.before(self.now):
                self._reasons[each.id].append(Reason("period", f"it is kept for {period}", until))

    def _by_number(self) -> None:
        minimum = self._policy.storage.retention.minimum_kept
        groups: dict[tuple[str, str], list[Committed]] = defaultdict(list)
        for each in self._view.backups:
            groups[each.type, each.retention_class].append(each)
        for (type_, retention_class), backups in groups.items():
            sound = sorted((each for each in backups if not each.failed), key=lambda each: each.time)
            verified = [each for each in sound if each.verified][-1:]
            what = f"{type_} of the class {retention_class}" if retention_class else type_
            self._keep(verified, Reason("last verified", f"it is the last verified {what}"))
            if type_ in ROLLING_TYPES:
                count = getattr(minimum, type_)
                self._keep(sound[-count:], Reason("minimum", f"it is one of the last {count} of its type"))
                if type_ == "incremental":
                    self._keep(self._needs.of(verified), Reason("chain", "the last verified incremental needs it"))
                    self._keep(self._needs.of(sound[-count:]), Reason("chain", f"the last {count} increments need it"))

    def _by_moment(self) -> None:
        """R1.2: any moment of the window can be restored."""
        period = self._policy.backups.incremental.retention
        because = Reason("recovery", f"any moment of the last {period} can be restored with it")
        self._keep(self._needs.since(self._window, self._living), because)

    def _by_somebody(self) -> None:
        """Holds, with what the held need; readers; the bucket that it mirrors; refused manifests, which may name it."""
        held = [each for each in self._view.backups if each.id in self._view.holds]
        for each in held:
            self._keep([each], Reason("hold", self._view.holds[each.id]))
        increments = [each for each in held if each.type == "incremental"]
        told = ", ".join(each.id for each in increments[:_TOLD]) + (", …" if len(increments) > _TOLD else "")
        self._keep(self._needs.of(increments), Reason("chain", f"what is held needs it: {told}"))
        for each in self._view.backups:
            if words := self._view.readings.of(each.id):
                self._keep([each], Reason("reading", words))
            if each.id in self._view.mirrored:
                self._keep([each], Reason("mirrored", "the primary has it, and would bring it again"))
            if self._is_suspect(each.attempts):
                self._keep([each], Reason("refused", "a manifest that is refused speaks of its attempt"))
            if self._stray:
                self._keep([each], self._stray)

    def _keep(self, backups: Iterable[Committed], reason: Reason) -> None:
        for each in {each.id: each for each in backups}.values():
            self._reasons[each.id].append(reason)

    def _period(self, backup: Committed) -> Period | None:
        if backup.type == "archive":
            return self._policy.compliance.retention.get(backup.retention_class)
        period: Period = getattr(self._policy.backups, backup.type).retention
        return period

    def _is_suspect(self, attempts: Iterable[str]) -> bool:
        return bool(self._suspects) and any(attempt.encode() in self._suspects for attempt in attempts)

    @cached_property
    def _living(self) -> set[tuple[str, int]]:
        """The timelines that have a moment of the window: of a backup, or of log that was shipped since."""
        told = {(each.system, each.timeline) for each in self._view.backups if each.log and each.time >= self._window}
        shipped = {line for line, newest in self._copies.newest.items() if newest >= self._window}
        return (
            told
            | (shipped & self._needs.timelines)
            | {(system, timeline) for system, timeline in shipped if timeline in self._view.histories.get(system, {})}
        )

    # --- what they share ---------------------------------------------------------------------------------------------

    def _named_by_what_stays(self) -> dict[str, int]:
        """Each shared key that a backup which stays names: which of them, and how many, in one number each."""
        named: dict[str, int] = {}
        for number, each in enumerate(self.staying):
            for key in each.shared:
                named[key] = (named[key] + (1 << 32)) if key in named else number
        return named

    def _judge_log(self) -> tuple[dict[str, WalCopy], set[tuple[str, str]]]:
        """The copies of log that go, and the sessions of which copies stay (cluster and attempt)."""
        going: dict[str, WalCopy] = {}
        sessions: set[tuple[str, str]] = set()
        young = self._policy.storage.attempts_reaped_after.before(self.now)
        for copy, place in self._copies:
            if copy.key in self._named or self._why_loose_log_stays(copy, place, young):
                sessions.add((place.system_identifier, place.attempt))
            else:
                going[copy.key] = copy
        return going, sessions

    def _why_loose_log_stays(self, copy: WalCopy, place: WalPlace, young: datetime) -> Reason | None:
        """Why a copy that no staying backup names stays."""
        if self._stray or place.attempt.encode() in self._suspects:
            return self._stray or Reason("refused", "a manifest that is refused speaks of its attempt")
        if copy.modified >= young:
            return Reason("elsewhere", "a run that has not ended may name it")
        system, timeline = place.system_identifier, timeline_of(place.name)
        if not is_segment(place.name):
            newest = max((number for cluster, number in self._lines_that_stay if cluster == system), default=0)
            if timeline > newest or any(self._leads_over(timeline, *line) for line in self._lines_that_stay):
                return Reason("log", "it tells how the log of backups that stay hangs together")
        elif (system, timeline) in self._living and copy.key not in self._given_up:
            size = self._segment_bytes.get(system)
            if size is None or segment_lsn(place.name, size) >= self._last_end(system, timeline):
                return Reason("log", "it is log beyond the last window")
        return None

    def _leads_over(self, timeline: int, system: str, end: int) -> bool:
        return self._needs.line(system, end).history.contains(timeline)

    @cached_property
    def _lines_that_stay(self) -> set[tuple[str, int]]:
        return self._living | {(each.system, each.timeline) for each in self.staying if each.log}

    @cached_property
    def _segment_bytes(self) -> dict[str, int]:
        return {each.system: each.log.segment_bytes for each in self._view.backups if each.log}

    def _last_end(self, system: str, timeline: int) -> int:
        if (system, timeline) not in self._ends:
            self._ends[system, timeline] = self._needs.line(system, timeline).last_end()
        return self._ends[system, timeline]

    @cached_property
    def _ends(self) -> dict[tuple[str, int], int]:
        return {}

    # --- one object --------------------------------------------------------------------------------------------------

    def of(self, key: str, modified: datetime) -> Verdict:
        """What becomes of every version of the object at `key`; `modified` is the store's clock."""
        if self._stray:
            return Verdict((self._stray,))
        judge = next((judge for prefix, judge in self._judges.items() if key.startswith(prefix)), self._of_content)
        return judge(key, modified)

    @cached_property
    def _judges(self) -> dict[str, Callable[[str, datetime], Verdict]]:
        return {
            WAL: self._of_log,
            MANIFESTS: self._of_manifest,
            VERIFICATION: self._of_record,
            HOLDS: self._of_record,
            DELETED: self._of_record,
            LEDGER: self._of_gap,
            READING: self._of_lease,
            RETENTION_RUNS: self._of_run,
            f"{KEYS}{wal_owner('')}": self._of_session_key,
        }

    def is_named(self, key: str) -> bool:
        """Whether a backup that stays names this pack or copy of log."""
        return key in self._named

    def is_envelope_needed(self, prefix: str) -> bool:
        """Whether a backup that stays has something that opens with the data key whose wraps lie there."""
        return prefix in self._envelopes

    def _of_manifest(self, key: str, _: datetime) -> Verdict:
        backup = _id_of(key)
        if key in self._view.refused:
            return Verdict((Reason("refused", "it cannot be believed: nobody knows what it is"),))
        return self.backups.get(str(backup), _elsewhere("it is no manifest that was read"))

    def _of_record(self, key: str, _: datetime) -> Verdict:
        """What speaks of a backup goes with it."""
        backup = key.split("/")[1]
        if backup in self.backups and not key.startswith(DELETED):
            return self.backups[backup]
        if backup in self.backups or backup in self._tombs:
            return GOES  # a tombstone of what stays after all says nothing any more
        return _elsewhere("it speaks of a backup whose manifest is gone, and nobody said that it was deleted")

    @cached_property
    def _gaps(self) -> dict[str, Gap]:
        return {gap.home: gap for gap in self._view.gaps}

    def _of_gap(self, key: str, _: datetime) -> Verdict:
        gap = self._gaps.get(key)
        if gap is None:
            return _elsewhere("it is no declared gap that was read")
        if gap.before >= self._window:
            return Verdict((Reason("log", "moments of the window lie in the gap, or before it"),))
        around = [each for each in self.staying if each.log and each.system == gap.system_identifier]
        if any(each.log and each.log.start < gap.end_lsn for each in around):
            return Verdict((Reason("log", "backups that stay lie before the gap"),))
        return GOES

    def _of_log(self, key: str, modified: datetime) -> Verdict:
        place = wal_place(key)
        if place is None:
            return _elsewhere("it is no log")
        if key in self._named:
            return self._named_verdict(key)
        if key in self.log_going:
            return GOES
        young = self._policy.storage.attempts_reaped_after.before(self.now)
        reason = self._why_loose_log_stays(WalCopy(key, 0, modified), place, young)
        return Verdict((reason or Reason("elsewhere", "it came while we looked"),))

    def _named_verdict(self, key: str) -> Verdict:
        number = self._named[key]
        first, more = self.staying[number & 0xFFFFFFFF].id, number >> 32
        words = f"{first} names it" if not more else f"{first} and {more} more name it"
        return Verdict((Reason("named", words),))

    def _of_session_key(self, key: str, modified: datetime) -> Verdict:
        """A wrap of the data key of log."""
        _, owner, attempt, _ = key.split("/", 3)
        if (owner.removeprefix(wal_owner("")), attempt) in self._log_sessions:
            return _SEALED
        return self._by_its_age(modified, self._window, "its session may go on")

    def _of_content(self, key: str, _: datetime) -> Verdict:
        """Artifacts, packs, envelopes: what stays is looked up, and only the rest is parsed."""
        if (backup := self._own.get(_attempt_prefix(key))) is not None:
            return self.backups[backup]
        if key in self._named:
            return self._named_verdict(key)
        prefix = key.rpartition("/")[0] + "/"
        if prefix in self._envelopes:
            return _SEALED
        return self._of_what_is_not_needed(key, prefix)

    def _of_what_is_not_needed(self, key: str, prefix: str) -> Verdict:
        place = place_of(key)
        if place is None:
            return _elsewhere("it is nothing that retention knows")
        if place.envelope:
            return self._of_envelope(prefix, place.pack is not None, place.attempt)
        if place.pack is not None:
            return self._of_pack(key)
        return self._of_attempt(str(place.backup), str(place.attempt))

    def _of_envelope(self, prefix: str, packed: bool, attempt: str | None) -> Verdict:
        if (packed and self._view.refused) or self._is_suspect([attempt or ""]):
            return Verdict((Reason("refused", "a manifest is refused, and may name it"),))
        return GOES if prefix in self._given_up_envelopes else _reapers()

    def _of_pack(self, key: str) -> Verdict:
        if self._view.refused:
            return Verdict((Reason("refused", "a manifest is refused, and may name any pack"),))
        return GOES if key in self._given_up else _reapers()

    def _of_attempt(self, backup: str, attempt: str) -> Verdict:
        if self._is_suspect([attempt]):
            return Verdict((Reason("refused", "a manifest that is refused speaks of its attempt"),))
        return GOES if attempt in self._tombs.get(backup, ()) else _reapers()

    def _of_lease(self, _: str, modified: datetime) -> Verdict:
        return self._by_its_age(modified, self.now - timedelta(days=1), "somebody may be reading")

    def _of_run(self, _: str, modified: datetime) -> Verdict:
        kept = self._policy.compliance.audit.kept.before(self.now)
        return self._by_its_age(modified, kept, "what retention did is kept as long as the audit log")

    @staticmethod
    def _by_its_age(modified: datetime, kept_since: datetime, words: str) -> Verdict:
        return Verdict((Reason("elsewhere", words),)) if modified >= kept_since else GOES

    # --- moments -----------------------------------------------------------------------------------------------------

    @cached_property
    def restorable(self) -> list[Interval]:
        """The moments that can be restored now."""
        return self._needs.intervals()

    @cached_property
    def restorable_after(self) -> list[Interval]:
        """The moments that can be restored when what goes is gone."""
        return Needs(self.staying, self._view.gaps, self._view.histories).intervals()

    @property
    def moments_lost(self) -> list[Interval]:
        """The moments that can be restored now, and cannot then."""
        return without(self.restorable, self.restorable_after)

    def reasons_by_kind(self) -> Counter[str]:
        """How many backups stay for each kind of reason; one may stay for several."""
        return Counter(kind for verdict in self.backups.values() for kind in {one.kind for one in verdict.reasons})


class _Copies:
    """The copies of log in a listing, and when the newest of each timeline's segments came."""

    def __init__(self, copies: Iterable[WalCopy]) -> None:
        self._copies = list(copies)
        self.newest: dict[tuple[str, int], datetime] = {}
        for copy, place in self:
            line = place.system_identifier, timeline_of(place.name)
            self.newest[line] = max(self.newest.get(line, copy.modified), copy.modified)

    def __iter__(self) -> Iterator[tuple[WalCopy, WalPlace]]:
        for copy in self._copies:
            if (place := wal_place(copy.key)) is not None:
                yield copy, place


def _own_prefixes(backup: Committed) -> Iterator[str]:
    named = BackupId.parse(backup.id)
    yield from (named.attempt_prefix(attempt) for attempt in backup.attempts)


def _attempt_prefix(key: str) -> str:
    """What a key begins with when it lies below an attempt; there may be a million, so it is cut, not parsed."""
    parts = key.split("/", 6)
    return "/".join(parts[: 5 if parts[0] == "archive" else 6]) + "/"


def _elsewhere(words: str) -> Verdict:
    return Verdict((Reason("elsewhere", words),))


def _reapers() -> Verdict:
    return _elsewhere("no manifest names it: it is the reaper's")


def _id_of(key: str) -> BackupId | None:
    """The backup whose manifest lies at that key; None for anything else."""
    backup = named_by(key.rpartition("/")[2].removesuffix(".json"))
    return backup if backup is not None and backup.manifest_key == key else None

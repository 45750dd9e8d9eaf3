"""What it takes to restore a moment: which base, which windows, which listing of objects, which configuration.

The planner (`include/recovery/moments/planning.py`) chooses among what is there; here is what must be there so that it
finds all that it could. Where it is not certain what the planner would take, more is named rather than less: a hole in
the log that nobody declared, a failed verification, an unreadable history may all be mended later.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TypeVar

from include.repository.committed import Base, Committed, Stretch
from include.repository.ledger import Gap
from include.repository.lsn import Lsn, segment_start
from include.repository.manifest import moment_text
from include.repository.timelines import TimelineHistory

Place = TypeVar("Place", Lsn, datetime)

END_OF_LOG = Lsn(1 << 64)
_SECONDS = timedelta(seconds=3)
"""A store's clock tells whole seconds, and the planner takes clocks that are 2 s apart for one."""


@dataclass(frozen=True, order=True)
class Interval:
    """Moments that can be restored, both ends included."""

    since: datetime
    until: datetime


def words_of(interval: Interval) -> str:
    """As people read it."""
    return f"{moment_text(interval.since)} to {moment_text(interval.until)}"


class Line:
    """The log of one cluster along one history: its bases and windows, each list in the log's order."""

    def __init__(self, history: TimelineHistory, backups: Iterable[Committed], gaps: Iterable[Gap]) -> None:
        self.history = history
        self._backups = [each for each in backups if each.log is not None]
        self._gaps = [gap for gap in gaps if history.contains(gap.timeline)]
        windows = []
        for each in self._backups:
            if each.type == "incremental" and (end := self.end_of(each)) is not None:
                windows.append((_log(each).start, end, each))
        self._windows = sorted(windows, key=lambda window: window[:2])

    def end_of(self, backup: Committed) -> Lsn | None:
        """Where a backup's log ends along this history; None when it is beside it."""
        log = _log(backup)
        return self.history.reached(log.timeline, log.start, log.end, log.segment_bytes)

    @cached_property
    def bases(self) -> list[Committed]:
        """The sound snapshots whose base is on this history, the earliest complete first."""
        found = []
        for each in self._backups:
            if each.base is None or each.failed or not self.history.contains(each.timeline):
                continue
            left = self.history.left_at(each.timeline)
            if left is None or each.base.stop <= left:
                found.append(each)
        return sorted(found, key=lambda each: _base(each).stopped)

    def bases_at(self, moment: datetime) -> list[Committed]:
        """What recovery to a moment may begin from: the newest base that had stopped by then, and the newest proved.

        Behind a declared gap only: nothing is recovered across one.
        """
        behind = max((gap.end_lsn for gap in self._gaps if gap.before <= moment), default=Lsn(0))
        there = self.bases[: bisect_right(self.bases, moment, key=lambda each: _base(each).stopped)]
        return _newest_of([each for each in there if _base(each).start >= behind])

    def bases_before(self, point: Lsn) -> list[Committed]:
        """The same for a place in the log."""
        behind = max((gap.end_lsn for gap in self._gaps if gap.end_lsn <= point), default=Lsn(0))
        return _newest_of([each for each in self.bases if behind <= _base(each).start and _base(each).stop < point])

    def bases_after(self, moment: datetime) -> list[Committed]:
        """Those that stopped later."""
        return self.bases[bisect_right(self.bases, moment, key=lambda each: _base(each).stopped) :]

    def begin(self, base: Committed) -> Lsn:
        """Where replay from a base begins."""
        return segment_start(_base(base).start, _log(base).segment_bytes)

    def within(self, stretches: Iterable[tuple[Lsn, Lsn]]) -> Iterator[Committed]:
        """The windows of some stretches of the log, and each snapshot that has log which no sound window has."""
        merged = merge(stretches)
        sound = merge((start, end) for start, end, each in self._windows if not each.failed)
        for start, end, each in self._windows:
            if _overlaps(merged, start, end):
                yield each
        holes = [hole for stretch in merged for hole in _holes(stretch, sound)]
        for each in self._backups:
            if (
                each.base
                and not each.failed
                and (end_ := self.end_of(each))
                and _overlaps(holes, _log(each).start, end_)
            ):
                yield each

    def last_end(self) -> Lsn:
        """Where the last sound window or snapshot ends."""
        ends = [end for each in self._backups if not each.failed and (end := self.end_of(each)) is not None]
        return max(ends, default=Lsn(0))

    def intervals(self) -> Iterator[Interval]:
        """The moments that sound bases and log without a hole reach, to the last point that a backup vouches for."""
        sound = [each for each in self._backups if not each.failed]
        runs = merge((_log(each).start, end) for each in sound if (end := self.end_of(each)) is not None)
        marks = sorted((each for each in sound if self._has_point(each)), key=lambda each: each.point)
        points = [each.point for each in marks]
        for start, end in runs:
            there = marks[bisect_right(points, start) : bisect_right(points, end)]
            bases = [each for each in there if each.base and start <= each.base.start]
            if not bases:
                continue
            first = min(bases, key=lambda each: _base(each).stopped)
            times = [each.time for each in there if each.point > _base(first).stop]
            if times and max(times) >= _base(first).stopped:
                yield Interval(_base(first).stopped, max(times))

    def _has_point(self, backup: Committed) -> bool:
        return self.history.timeline_at(Lsn(backup.point - 1)) == backup.timeline


class Needs:
    """What the backups of a bucket need of each other; `histories` are each cluster's, by timeline."""

    def __init__(
        self,
        backups: Sequence[Committed],
        gaps: Sequence[Gap],
        histories: Mapping[str, Mapping[int, TimelineHistory]],
    ) -> None:
        self._histories = histories
        self._of: dict[str, list[Committed]] = defaultdict(list)
        self._gaps: dict[str, list[Gap]] = defaultdict(list)
        for each in backups:
            if each.log is not None:
                self._of[each.system].append(each)
        for gap in gaps:
            self._gaps[gap.system_identifier].append(gap)
        self._lines: dict[tuple[str, int], Line] = {}
        # An archive holds one class's part of everything: no recovery takes it for a whole.
        sound = [each for each in backups if not each.failed and each.type != "archive"]
        self._by_time = sorted(sound, key=lambda each: each.time)
        self._bundles = [each for each in self._by_time if each.bundle]
        self._by_store = sorted(sound, key=lambda each: each.objects_as_of)
        self._listings = [each for each in self._by_store if each.objects_since is None]
        self._changes = [each for each in self._by_store if each.objects_since is not None]

    @property
    def timelines(self) -> set[tuple[str, int]]:
        """Each cluster and timeline that a backup with log ends on."""
        return {(system, each.timeline) for system, backups in self._of.items() for each in backups}

    def line(self, system: str, timeline: int) -> Line:
        """One cluster's log along the history of one of its timelines."""
        if (system, timeline) not in self._lines:
            backups, told = self._of[system], self._histories.get(system, {}).get(timeline)
            # A history that cannot be read may lead over every older timeline, to any place.
            older = sorted({each.timeline for each in backups if each.timeline < timeline})
            history = told or TimelineHistory(timeline, tuple((each, END_OF_LOG) for each in older))
            self._lines[system, timeline] = Line(history, backups, self._gaps[system])
        return self._lines[system, timeline]

    def since(self, moment: datetime, living: Iterable[tuple[str, int]]) -> Iterator[Committed]:
        """What it takes to restore every moment from this one on, along the timelines that have such moments."""
        begins: list[datetime] = []
        for system, timeline in living:
            line = self.line(system, timeline)
            bases = line.bases_at(moment)
            later = line.bases_after(moment)
            yield from bases
            yield from later
            if bases or later:
                yield from line.within([(min(map(line.begin, bases or later[:1])), END_OF_LOG)])
                begins.append(moment if bases else _base(later[0]).stopped)
        if begins:
            yield from self._objects_since(min(begins))
            yield from self._configuration_since(min(begins))

    def of(self, points: Iterable[Committed]) -> Iterator[Committed]:
        """What it takes to restore the consistency points of increments: bases, log, objects, configuration."""
        stretches: dict[tuple[str, int], list[tuple[Lsn, Lsn]]] = defaultdict(list)
        changes: list[tuple[datetime, datetime]] = []
        for point in points:
            line = self.line(point.system, point.timeline)
            bases = line.bases_before(point.point)
            yield from bases
            if bases:
                stretches[point.system, point.timeline].append((min(map(line.begin, bases)), _log(point).end))
            listing = _last(self._listings, point.objects_as_of, key=_as_of)
            if listing is not None:
                yield listing
                changes.append((listing.objects_as_of, point.objects_as_of))
            for known in (self._bundles, self._by_time):
                if (found := _last(known, point.time, key=_time)) is not None:
                    yield found
        for (system, timeline), each in stretches.items():
            yield from self.line(system, timeline).within(each)
        for after, until in merge(changes):
            first, last = (bisect_right(self._changes, moment, key=_as_of) for moment in (after, until))
            yield from self._changes[first:last]

    def intervals(self) -> list[Interval]:
        """Every moment that can be restored, on whichever history, oldest first."""
        found = [each for system, timeline in self.timelines for each in self.line(system, timeline).intervals()]
        return [Interval(since, until) for since, until in merge((each.since, each.until) for each in found)]

    def _objects_since(self, moment: datetime) -> Iterator[Committed]:
        """The newest whole listing before the moment and every change after it; where the changes break off, the
        listings that are nearer than they reach.
        """
        apart = min((each.objects_as_of - each.time for each in self._by_time if each.time >= moment), default=_SECONDS)
        listing = _last(self._listings, moment + min(apart, timedelta()) - _SECONDS, key=_as_of)
        if listing is None:
            yield from self._listings[:1]
            return
        yield listing
        reached, nearer = listing.objects_as_of, list[Committed]()
        for each in self._by_store[bisect_right(self._by_store, reached, key=_as_of) :]:
            if each.objects_since is None:
                nearer.append(each)
                continue
            if each.objects_since > reached and nearer:
                yield from nearer
                reached = max(reached, nearer[-1].objects_as_of)
            if each.objects_since <= reached < each.objects_as_of:
                yield each
                reached, nearer = each.objects_as_of, []
        yield from nearer

    def _configuration_since(self, moment: datetime) -> Iterator[Committed]:
        """The newest bundle and the newest files before the moment; then each bundle that no increment has, and that
        one after it goes by.
        """
        begin = bisect_right(self._by_time, moment, key=_time)
        bundle, files = _last(self._bundles, moment, key=_time), self._by_time[begin - 1] if begin else None
        yield from (each for each in (bundle, files) if each is not None)
        refs, other = bundle.refs if bundle else None, bundle
        for each in self._by_time[begin:]:
            if each.bundle:
                refs, other = (each.refs, None) if each.type == "incremental" else (refs, each)
            elif other is not None and each.refs != refs and each.refs == other.refs:
                yield other
                refs, other = other.refs, None


def merge(stretches: Iterable[tuple[Place, Place]]) -> list[tuple[Place, Place]]:
    """Stretches that touch or overlap made one, in order."""
    merged: list[tuple[Place, Place]] = []
    for start, end in sorted(stretches):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def without(intervals: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """What of some intervals is in none of the others."""
    left = list(intervals)
    for other in others:
        cut = []
        for each in left:
            if other.until < each.since or each.until < other.since:
                cut.append(each)
                continue
            if each.since < other.since:
                cut.append(Interval(each.since, other.since))
            if other.until < each.until:
                cut.append(Interval(other.until, each.until))
        left = cut
    return left


def _newest_of(bases: list[Committed]) -> list[Committed]:
    """The newest base, and the newest that was proved where that is another one."""
    proved = [each for each in bases if each.verified]
    return list({each.id: each for each in (*bases[-1:], *proved[-1:])}.values())


def _overlaps(merged: Sequence[tuple[Lsn, Lsn]], start: Lsn, end: Lsn) -> bool:
    """Whether `[start, end)` has anything of stretches that are in order and apart."""
    number = bisect_left(merged, end, key=lambda stretch: stretch[0]) - 1
    return number >= 0 and merged[number][1] > start


def _holes(stretch: tuple[Lsn, Lsn], covered: Sequence[tuple[Lsn, Lsn]]) -> Iterator[tuple[Lsn, Lsn]]:
    """What of a stretch is not covered."""
    position, end = stretch
    for start, until in covered[max(bisect_right(covered, position, key=lambda each: each[0]) - 1, 0) :]:
        if start >= end:
            break
        if position < start:
            yield position, start
        position = max(position, until)
    if position < end:
        yield position, end


def _last(backups: Sequence[Committed], moment: datetime, *, key: Callable[[Committed], datetime]) -> Committed | None:
    """The last of those in order that is not later."""
    number = bisect_right(backups, moment, key=key)
    return backups[number - 1] if number else None


def _time(backup: Committed) -> datetime:
    return backup.time


def _as_of(backup: Committed) -> datetime:
    return backup.objects_as_of


def _log(backup: Committed) -> Stretch:
    assert backup.log is not None  # noqa: S101 - only such come here
    return backup.log


def _base(backup: Committed) -> Base:
    assert backup.base is not None  # noqa: S101 - only such come here
    return backup.base

"""How far the log in a bucket reaches: which of it is there without a hole, along which history, and from which bases.

Manifests say which segments there are; beyond the last of them, what was shipped since. A segment that no manifest
names between two that one does is a hole, even where a copy of it lies in the bucket: nobody vouches for it any more,
and it may be going (`docs/format.md`, *Deleting*).
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import pairwise, starmap
from operator import itemgetter

from include.errors import BackupError
from include.policy import Pipeline
from include.repository.catalog import Catalog, Entry
from include.repository.layout import ARCHIVE_MANIFESTS, named_by
from include.repository.ledger import Gap, GapRefused, read_gaps
from include.repository.lsn import Lsn, is_history, is_segment, segment_lsn, segment_start, timeline_of
from include.repository.manifest import BaseBackup, Manifest, WalFile, moment_text
from include.repository.timelines import TimelineHistory
from include.repository.verification import told
from include.repository.wal import Shipped, WalArchive

log = logging.getLogger(__name__)

LogFile = WalFile | Shipped
"""A segment or a history file: as a manifest vouches for it, or as it was shipped since."""


@dataclass(frozen=True)
class Doubt:
    """A manifest that cannot be used: refused, or its verification failed. `moment` is the one that its id names."""

    name: str
    moment: datetime
    because: str
    refused: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.because})"


@dataclass(frozen=True)
class Run:
    """A row of segments of one history without a hole, `[start, end)`.

    `bases` are the snapshots that begin in it, the earliest stopped first, and `marks` the backups whose consistency
    points lie in it, in the log's order.
    """

    start: Lsn
    end: Lsn
    bases: tuple[Manifest, ...]
    marks: tuple[Manifest, ...]

    @property
    def since(self) -> datetime | None:
        """The earliest moment that can be reached from a base in it; None without one."""
        return base_of(self.bases[0]).stopped if self.bases else None

    @property
    def until(self) -> datetime | None:
        """The last moment that a backup vouches for; None where nothing can be recovered."""
        if not self.bases:
            return None
        times = [mark.consistency_point.time for mark in self.marks_after(self.bases[0])]
        return max(times) if times else None

    def vouched(self, base: Manifest, moment: datetime) -> datetime:
        """The last moment, not later than this one, that a backup vouches for from a base on."""
        times = [mark.consistency_point.time for mark in self.marks_after(base)]
        return max([base_of(base).stopped, *(time for time in times if time <= moment)])

    def marks_after(self, base: Manifest) -> list[Manifest]:
        """The consistency points that can be reached from a base, in the log's order."""
        return [mark for mark in self.marks if point_lsn(mark) > base_of(base).stop_lsn]


@dataclass(frozen=True)
class Branch:
    """The log along one history: each segment's newest timeline, and of several copies one that a manifest vouches for.

    `newest` orders the branches of a cluster: when the newest backup on its own timeline was made.
    """

    archive: WalArchive
    history: TimelineHistory
    histories: tuple[LogFile, ...]
    segment_bytes: int
    server_major: int
    files: Mapping[Lsn, LogFile]
    runs: tuple[Run, ...]
    gaps: tuple[Gap, ...]
    newest: datetime

    @property
    def system_identifier(self) -> str:
        """Whose log it is."""
        return self.archive.system_identifier

    def between(self, start: Lsn, end: Lsn) -> Iterator[LogFile]:
        """The segments of `[start, end)`, in order; all of them must be there."""
        position = segment_start(start, self.segment_bytes)
        while position < end:
            yield self.files[position]
            position = Lsn(position + self.segment_bytes)

    def __str__(self) -> str:
        return f"timeline {self.history.timeline} of cluster {self.system_identifier}"


@dataclass(frozen=True)
class Span:
    """Moments that can be recovered, both ends included, and why those between it and the next one cannot."""

    system_identifier: str
    timeline: int
    since: datetime
    until: datetime
    then: str = ""

    def __contains__(self, moment: datetime) -> bool:
        return self.since <= moment <= self.until


@dataclass(frozen=True)
class Reach:
    """Everything that is known of the log: the branches, the newest first, and what could not be used.

    `sound` is every backup whose verification did not fail, oldest first. A cluster that was failed over from and came
    back has log of the time between, and none of it is what users saw: while another cluster was backed up, a moment
    is that one's (`elsewhere`).
    """

    branches: tuple[Branch, ...]
    sound: tuple[Manifest, ...]
    doubts: tuple[Doubt, ...]

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """What can be recovered, oldest first. A moment that is on two histories is the newer one's."""
        spans: list[Span] = []
        for branch in self.branches:
            for number, run in enumerate(branch.runs):
                if run.since is None or run.until is None or run.until < run.since:
                    continue
                for since, until in self._lived(branch, run):
                    why = self._why_it_ends(branch, number)
                    span = Span(branch.system_identifier, branch.history.timeline, since, until, why)
                    spans += _outside(span, spans)
        spans.sort(key=lambda span: span.since)
        return (*starmap(_left_for, pairwise(spans)), *spans[-1:])

    def elsewhere(self, branch: Branch, since: datetime, until: datetime) -> Manifest | None:
        """The first backup of another cluster that was begun between two moments, the last one included."""
        first, last = (bisect_right(self._beginnings, moment, key=itemgetter(0)) for moment in (since, until))
        between = (manifest for _, manifest in self._beginnings[first:last])
        own = branch.system_identifier
        return next((each for each in between if each.database.system_identifier != own), None)

    @cached_property
    def _beginnings(self) -> list[tuple[datetime, Manifest]]:
        return sorted(((_begun(manifest), manifest) for manifest in self.sound), key=lambda each: (each[0], each[1].id))

    def _lived(self, branch: Branch, run: Run) -> Iterator[tuple[datetime, datetime]]:
        """The moments of a run, without those at which another cluster was backed up."""
        assert run.since is not None  # noqa: S101 - it has a base
        since = reached = run.since
        for mark in run.marks_after(run.bases[0]):
            moment = mark.consistency_point.time
            if moment <= reached:
                continue
            if other := self.elsewhere(branch, reached, moment):
                yield since, _begun(other)
                since = moment
            reached = moment
        yield since, reached

    def _why_it_ends(self, branch: Branch, number: int) -> str:
        run = branch.runs[number]
        if number + 1 == len(branch.runs):
            return ""
        return self.why_missing(branch, run, branch.runs[number + 1])

    def why_missing(self, branch: Branch, run: Run, after: Run) -> str:
        """What is between two runs of a branch, in words."""
        between = f"the log of {branch} from {run.end} to {after.start}"
        if gap := next((gap for gap in branch.gaps if gap.start_lsn < after.start and gap.end_lsn > run.end), None):
            return f"{between} is gone, which was declared on {moment_text(gap.declared)}: {gap.because.rstrip('.')}"
        if doubts := self.doubts_between(_last_time(run), _first_time(after)):
            return f"{between} needs {'; '.join(map(str, doubts))}"
        borders = f"behind {_last_name(run)} and before {_first_name(after)}"
        return f"{between} is missing, {borders}"

    def doubts_between(self, since: datetime | None, until: datetime | None) -> list[Doubt]:
        """What cannot be used, of the schedule slots between two moments."""
        return [
            doubt
            for doubt in self.doubts
            if (since is None or doubt.moment > since) and (until is None or doubt.moment <= until)
        ]


def read_reach(catalog: Catalog, policy: Pipeline) -> Reach:
    """Look at every manifest, and at every segment that was shipped.

    A manifest that is refused or whose verification failed is left out, and told of. Archives are copies, of one class
    each, of backups that are or were here: no recovery to a moment is made from them.
    """
    entries = [entry for entry in catalog.entries() if not entry.key.startswith(ARCHIVE_MANIFESTS)]
    sound = [entry.manifest for entry in entries if entry.manifest and not entry.verification.failed]
    doubts = [doubt for entry in entries if (doubt := _doubt(entry))]
    branches: list[Branch] = []
    systems = {manifest.database.system_identifier for manifest in sound if manifest.wal}
    for system in systems:
        of_it = [manifest for manifest in sound if manifest.database.system_identifier == system]
        archive = WalArchive(catalog.bucket, catalog.keyring, system, policy=policy)
        branches += _branches(archive, of_it)
    branches.sort(key=lambda branch: (branch.newest, branch.history.timeline), reverse=True)
    return Reach(tuple(branches), tuple(sound), tuple(doubts))


def base_of(manifest: Manifest) -> BaseBackup:
    """The base of a snapshot."""
    if manifest.base is None:
        raise ValueError(f"{manifest.id} is no snapshot")
    return manifest.base


def point_lsn(manifest: Manifest) -> Lsn:
    """Where the record of a backup's restore point ends."""
    return Lsn.parse(manifest.consistency_point.lsn)


def _begun(manifest: Manifest) -> datetime:
    return manifest.base.started if manifest.base else manifest.consistency_point.time


def _doubt(entry: Entry) -> Doubt | None:
    named = named_by(entry.key.rpartition("/")[2].removesuffix(".json"))
    if entry.manifest is None:
        if named is None or named.type == "full":
            return None  # it has no log: nothing needs it
        return Doubt(str(named), named.moment, f"refused: {entry.refused}", refused=True)
    if entry.verification.failed and entry.manifest.wal:
        failures = "; ".join(map(told, entry.verification.failed))
        moment = entry.manifest.consistency_point.time
        return Doubt(entry.manifest.id, moment, f"its verification failed: {failures}", refused=False)
    return None


def _branches(archive: WalArchive, manifests: list[Manifest]) -> list[Branch]:
    windows = [manifest.wal for manifest in manifests if manifest.wal]
    if not windows:
        return []
    shipped = archive.shipped()
    vouched = {file.name: file for window in windows for file in reversed(window.files)}
    histories = _histories(archive, vouched, shipped)
    timelines = {
        *histories,
        *(window.timeline for window in windows),
        *(timeline_of(name) for name in shipped if is_segment(name)),
    }
    told_by = tuple(vouched.get(name) or shipped[name][0] for name in sorted({*vouched, *shipped}) if is_history(name))
    gaps = _gaps(archive)
    branches = []
    for timeline in timelines:
        history = histories.get(timeline) or TimelineHistory(timeline)
        branch = _branch(archive, history, told_by, manifests=manifests, gaps=gaps, vouched=vouched, shipped=shipped)
        own = any(timeline_of(file.name) == timeline for file in branch.files.values())
        if own and any(run.marks for run in branch.runs):
            branches.append(branch)
    return branches


def _gaps(archive: WalArchive) -> tuple[Gap, ...]:
    """The declared gaps, which only explain a hole here: one that is not genuine must not stop a recovery."""
    try:
        return read_gaps(archive.bucket, archive.keyring, archive.system_identifier)
    except GapRefused as refused:
        log.warning("Declared gaps are passed over: %s", refused)
        return ()


def _histories(
    archive: WalArchive, vouched: Mapping[str, WalFile], shipped: Mapping[str, tuple[Shipped, ...]]
) -> dict[int, TimelineHistory]:
    """Every timeline's history that can be read. One that cannot is told; its timeline is then a stranger to others."""
    found: dict[int, TimelineHistory] = {}
    for name in {name for name in (*vouched, *shipped) if is_history(name)}:
        copies: Iterable[LogFile] = [*([vouched[name]] if name in vouched else []), *shipped.get(name, ())]
        for copy in copies:
            try:
                text = b"".join(archive.read(copy)).decode()
                found[timeline_of(name)] = TimelineHistory.parse(timeline_of(name), text)
            except (BackupError, ValueError) as refused:
                log.warning("%s of attempt %s is passed over: %s", name, copy.attempt, refused)
            else:
                break
    return found


def _branch(
    archive: WalArchive,
    history: TimelineHistory,
    histories: tuple[LogFile, ...],
    *,
    manifests: list[Manifest],
    gaps: tuple[Gap, ...],
    vouched: Mapping[str, WalFile],
    shipped: Mapping[str, tuple[Shipped, ...]],
) -> Branch:
    windows = [manifest.wal for manifest in manifests if manifest.wal]
    size = windows[0].segment_bytes
    files: dict[Lsn, LogFile] = {}
    for name, file in vouched.items():
        if is_segment(name) and _asked_for(history, name, size):
            files[segment_lsn(name, size)] = file
    beyond = Lsn(max(files, default=Lsn(-size)) + size)
    own = {
        segment_lsn(name, size): copies[0]
        for name, copies in shipped.items()
        if is_segment(name) and _asked_for(history, name, size)
    }
    while files and beyond in own:
        files[beyond] = own[beyond]
        beyond = Lsn(beyond + size)
    marks = sorted((manifest for manifest in manifests if _is_on(history, manifest)), key=point_lsn)
    runs = tuple(_run(start, end, marks, history, size) for start, end in _rows(files, size))
    times = [mark.consistency_point.time for mark in marks if mark.database.timeline == history.timeline]
    since = [
        copy.modified for name, copies in shipped.items() if timeline_of(name) == history.timeline for copy in copies
    ]
    major = max(manifest.database.server_version for manifest in manifests if manifest.wal) // 10_000
    newest = max(times or since or [window.since for window in windows])
    return Branch(archive, history, histories, size, major, files, runs, gaps, newest)


def _asked_for(history: TimelineHistory, name: str, size: int) -> bool:
    """Whether recovery along this history asks for the segment of that name."""
    start = segment_lsn(name, size)
    return next(history.segment_names(start, Lsn(start + 1), size)) == name


def _is_on(history: TimelineHistory, manifest: Manifest) -> bool:
    """Whether a backup's consistency point is on a history."""
    return history.timeline_at(Lsn(point_lsn(manifest) - 1)) == manifest.database.timeline


def _rows(files: Mapping[Lsn, LogFile], size: int) -> Iterator[tuple[Lsn, Lsn]]:
    start = end = None
    for position in sorted(files):
        if end != position:
            if start is not None and end is not None:
                yield start, end
            start = position
        end = Lsn(position + size)
    if start is not None and end is not None:
        yield start, end


def _run(start: Lsn, end: Lsn, marks: list[Manifest], history: TimelineHistory, size: int) -> Run:
    bases = [mark for mark in marks if mark.base and start <= mark.base.start_lsn and point_lsn(mark) <= end]
    return Run(
        start,
        end,
        bases=tuple(sorted(bases, key=lambda manifest: base_of(manifest).stopped)),
        marks=tuple(mark for mark in marks if start < point_lsn(mark) <= end),
    )


def _left_for(span: Span, following: Span) -> Span:
    """A span that ends where another cluster took over says so."""
    if span.system_identifier == following.system_identifier:
        return span
    left, taken = (f"cluster {each.system_identifier}" for each in (span, following))
    words = f"nothing of {left} counts after {moment_text(span.until)}, and {taken} can be recovered from "
    return replace(span, then=f"{words}{moment_text(following.since)} on")


def _outside(span: Span, taken: Iterable[Span]) -> list[Span]:
    """What of a span is on no newer history."""
    rest = [(span.since, span.until)]
    for other in taken:
        cut = []
        for since, until in rest:
            if until < other.since or since > other.until:
                cut.append((since, until))
                continue
            if since < other.since:
                cut.append((since, other.since))
            if until > other.until:
                cut.append((other.until, until))
        rest = cut
    return [Span(span.system_identifier, span.timeline, since, until, span.then) for since, until in rest]


def _last_time(run: Run) -> datetime | None:
    return run.marks[-1].consistency_point.time if run.marks else None


def _first_time(run: Run) -> datetime | None:
    return run.marks[0].consistency_point.time if run.marks else None


def _last_name(run: Run) -> str:
    return run.marks[-1].id if run.marks else f"what ends at {run.end}"


def _first_name(run: Run) -> str:
    return run.marks[0].id if run.marks else f"what begins at {run.start}"

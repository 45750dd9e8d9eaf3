"""What a recovery to a moment takes, before anything is written: base, log, where it stops, and what it will cost.

A moment is turned into a place in the log by reading the log, never by `recovery_target_time`, which is fatal on a
database that was idle since. Recovery stops before the first transaction that ended later than the moment; where none
did, at the restore point of the backup after it. Commit times are the database server's clock.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

from include.policy import Policy
from include.recovery.cluster.target import StopAt
from include.recovery.moments.plan import (
    EVERYTHING,
    ConfigurationSource,
    NoTarget,
    ObjectsSource,
    RecoveryPlan,
    Skew,
    Target,
    Unreachable,
    What,
    iso,
)
from include.recovery.moments.reach import Branch, LogFile, Reach, Run, Span, base_of, point_lsn, read_reach
from include.repository.catalog import Catalog
from include.repository.contents import BASE, REPOSITORY_BUNDLE
from include.repository.layout import BackupId
from include.repository.lsn import Lsn, segment_end, segment_start
from include.repository.manifest import Manifest, ManifestRefused
from include.repository.timelines import TimelineHistory
from include.sources.postgres.tools import tools_of
from include.sources.postgres.waldump import Commit, commits

__all__ = ["EVERYTHING", "RecoveryPlan", "Span", "Target", "Unreachable", "plan_recovery", "recoverable", "reopen"]

ReadCommits = Callable[[Branch, Lsn, Lsn], Generator[Commit]]
"""The transactions that ended in `[start, end)` of a branch's log, in the log's order."""

_FETCHES_AT_ONCE = 4
_SAME_CLOCK = timedelta(seconds=2)

# Bytes a second. Fetched: of a base whose manifest does not say how fast it was stored. Unpacked: raw, fetched from a
# store on the same machine. Replayed: of the log, while it is fetched. Measured on two busy cores with PostgreSQL 18: a
# base of 386 MB, stored as 54, was there in 2.9 to 3.4 s; 654 MB of log, stored as 85, were replayed in 8.3 to 9.4 s.
_FETCHED, _UNPACKED, _REPLAYED = 16_000_000, 113_000_000, 69_000_000


def plan_recovery(
    catalog: Catalog,
    target: Target,
    policy: Policy,
    *,
    what: Collection[What] = EVERYTHING,
    scratch: Path,
    read: ReadCommits | None = None,
) -> RecoveryPlan:
    """Plan to bring back `what` as of the target. Segments that are read for it lie in `scratch` meanwhile.

    `read` tells the transactions of the log; by default pg_waldump does, of the cluster's major version. Raises
    `Unreachable`, `NoSuchBackup`, `ManifestRefused`, or what `WalArchive.read` refuses.
    """
    planning = _Planning(catalog, policy, read_reach(catalog, policy.pipeline), scratch, read)
    return planning.plan(target, what)


def recoverable(catalog: Catalog, policy: Policy) -> tuple[Span, ...]:
    """Every moment that can be recovered, as spans, oldest first; each says why those after it cannot.

    The last one ends at the newest backup's point: what was shipped since is read only when it is asked for.
    """
    return read_reach(catalog, policy.pipeline).spans


def reopen(document: dict[str, Any], catalog: Catalog, policy: Policy) -> RecoveryPlan:
    """The plan that `to_json` told, without reading the log again; raises `Unreachable` when some of it is gone."""
    planning = _Planning(catalog, policy, read_reach(catalog, policy.pipeline), Path(), None)
    return planning.again(document)


@dataclass(frozen=True)
class _Found:
    """A place in the log: on a branch, from a base on."""

    branch: Branch
    run: Run
    base: Manifest
    stop: StopAt
    end: Lsn
    reaches: datetime
    at: Manifest | None = None


class _Planning:
    def __init__(self, catalog: Catalog, policy: Policy, reach: Reach, scratch: Path, read: ReadCommits | None) -> None:
        self._catalog, self._policy, self._reach, self._scratch = catalog, policy, reach, scratch
        self._read = read or self._read_commits

    def plan(self, target: Target, what: Collection[What]) -> RecoveryPlan:
        if not self._reach.branches or not any(run.bases for branch in self._reach.branches for run in branch.runs):
            doubts = "; ".join(map(str, self._reach.doubts))
            raise Unreachable(
                f"{self._catalog.bucket} holds no base to recover from" + (f": {doubts}." if doubts else "."),
                mend="Run the snapshot_backup DAG. Until then `restore` brings full backups back, as of their moments.",
            )
        if target.backup is not None:
            found = self._at_backup(target.backup, target.restore_point)
        elif target.moment is not None:
            found = self._at_moment(target.moment)
        else:
            found = self._latest()
        return self._planned(target, what, found)

    def again(self, document: dict[str, Any]) -> RecoveryPlan:
        for branch in self._reach.branches:
            if (branch.system_identifier, branch.history.timeline) != (
                document["system_identifier"],
                document["timeline"],
            ):
                continue
            for run in branch.runs:
                for base in run.bases:
                    stop = document["stop"]
                    end = Lsn.parse(document["end_lsn"])
                    if base.id == document["base"] and end <= run.end:
                        at = next((mark for mark in run.marks if mark.id == document["at"]), None)
                        lsn = Lsn.parse(stop["lsn"]) if stop["lsn"] else None
                        found = _Found(
                            branch,
                            run,
                            base,
                            StopAt(name=stop["name"], lsn=lsn, inclusive=stop["inclusive"]),
                            end,
                            datetime.fromisoformat(document["reaches"]),
                            at,
                        )
                        return self._planned(Target.parse(document["target"]), document["what"], found)
        raise Unreachable(
            f"What was planned from {document['base']} is not in {self._catalog.bucket} any more.",
            mend="Plan again: a backup of it was deleted or failed its verification meanwhile.",
        )

    # --- where ---------------------------------------------------------------------------------------------------

    def _at_backup(self, backup: BackupId, restore_point: str | None) -> _Found:
        manifest = self._catalog.get(backup)
        self._catalog.verification(manifest).require(manifest.id)
        point = manifest.consistency_point
        if restore_point is not None and restore_point != point.restore_point:
            raise NoTarget(
                f"{restore_point} is no restore point of {manifest.id}.",
                mend=f"Its restore point is {point.restore_point}; other tries' came to nothing.",
            )
        for branch in self._reach.branches:
            for run in branch.runs:
                if any(mark.id == manifest.id for mark in run.marks) and (
                    base := _base_before(run, point_lsn(manifest))
                ):
                    return self._at_point(branch, run, base, manifest)
        raise self._unreachable(
            point.time,
            f"The consistency point of {manifest.id} ({iso(point.time)}) cannot be recovered: "
            f"{self._why_not(point.time)}",
            also=f"`restore {manifest.id}` brings that backup itself back." if manifest.type != "incremental" else "",
        )

    def _at_point(self, branch: Branch, run: Run, base: Manifest, mark: Manifest) -> _Found:
        point = mark.consistency_point
        end = segment_end(point_lsn(mark), branch.segment_bytes)
        return _Found(branch, run, base, StopAt(name=point.restore_point, lsn=point_lsn(mark)), end, point.time, mark)

    def _latest(self) -> _Found:
        branch = self._reach.branches[0]
        run = branch.runs[-1]
        newer = [doubt for doubt in self._reach.doubts_between(_newest_point(branch), None) if doubt.refused]
        if newer:
            raise ManifestRefused(
                f"The latest moment cannot be told: {'; '.join(map(str, newer))}.",
                mend=f"{iso(_newest_point(branch))} is the newest that is genuine: name it, if that is what you want.",
            )
        if not run.bases:
            raise self._unreachable(
                None, f"The latest log ({run.start} to {run.end} of {branch}) has no base before it that is sound."
            )
        base = run.bases[-1]
        return self._at_the_end(branch, run, base)

    def _at_the_end(self, branch: Branch, run: Run, base: Manifest) -> _Found:
        """The last transaction of a run, or its last consistency point when none ended after that."""
        mark = run.marks_after(base)[-1]
        last, _ = self._around(branch, point_lsn(mark), run.end, None)
        if last is None or last.lsn < point_lsn(mark):
            return self._at_point(branch, run, base, mark)
        return self._behind(branch, run, base, last)

    def _behind(self, branch: Branch, run: Run, base: Manifest, last: Commit) -> _Found:
        return _Found(branch, run, base, StopAt(lsn=last.lsn, inclusive=True), _past(last.lsn, branch, run), last.time)

    def _at_moment(self, moment: datetime) -> _Found:
        newest: datetime | None = None
        for branch in self._reach.branches:
            for run in reversed(branch.runs):
                bases = [base for base in run.bases if base_of(base).stopped <= moment]
                for base in reversed(bases):
                    found, until = None, run.vouched(base, moment)
                    if self._reach.elsewhere(branch, until, moment) is None:
                        found, until = self._in_run(branch, run, base, moment)
                    if found is not None:
                        return found
                    newest = max(newest or until, until)
                if bases:
                    break
        what = f"{iso(moment)} cannot be recovered: {self._why_not(moment, newest)}"
        raise self._unreachable(moment, what, newest=newest)

    def _in_run(self, branch: Branch, run: Run, base: Manifest, moment: datetime) -> tuple[_Found | None, datetime]:
        """The place of a moment in a run; None with the last moment there is, when it ends before."""
        marks = run.marks_after(base)
        earlier = [mark for mark in marks if mark.consistency_point.time <= moment]
        later = next((mark for mark in marks if mark.consistency_point.time > moment), None)
        if earlier and earlier[-1].consistency_point.time == moment:
            return self._at_point(branch, run, base, earlier[-1]), moment
        begin = max(point_lsn(earlier[-1]), base_of(base).stop_lsn) if earlier else base_of(base).stop_lsn
        end = point_lsn(later) if later else run.end
        last, beyond = self._around(branch, begin, end, moment)
        if last is not None and last.lsn < base_of(base).stop_lsn:
            last = None
        reached = run.vouched(base, moment)
        if last is not None:
            reached = max(reached, last.time)
        if beyond is not None:
            if beyond.lsn <= base_of(base).stop_lsn:
                return None, reached  # before this base is consistent: an older one reaches it
            stop = StopAt(lsn=beyond.lsn, inclusive=False)
            return _Found(branch, run, base, stop, _past(beyond.lsn, branch, run), reached), reached
        if later is not None:
            stop = StopAt(name=later.consistency_point.restore_point, lsn=point_lsn(later))
            until = segment_end(point_lsn(later), branch.segment_bytes)
            return _Found(branch, run, base, stop, until, reached), reached
        if last is not None and reached == moment:
            return self._behind(branch, run, base, last), reached
        return None, reached

    def _around(
        self, branch: Branch, begin: Lsn, end: Lsn, moment: datetime | None
    ) -> tuple[Commit | None, Commit | None]:
        """The last transaction at or before a moment (None: the last of all), and the first one after it.

        It is read from the segment's beginning: while a consistency point is taken, transactions that touch none of
        the application's tables still end, and may be before it in the log and after it by the clock.
        """
        last = None
        with closing(self._read(branch, segment_start(begin, branch.segment_bytes), end)) as ended:
            for commit in ended:
                if moment is not None and commit.time > moment:
                    return last, commit
                last = commit
        return last, None

    def _read_commits(self, branch: Branch, start: Lsn, end: Lsn) -> Generator[Commit]:
        """Fetch that part of the log, and let pg_waldump tell it: that of the cluster's own major version."""
        size, timeline = branch.segment_bytes, branch.history.timeline
        with tempfile.TemporaryDirectory(prefix="log-", dir=self._scratch) as directory:

            def fetch(file: LogFile) -> None:
                branch.archive.fetch(file, Path(directory) / file.name)

            with ThreadPoolExecutor(_FETCHES_AT_ONCE, thread_name_prefix="log") as pool:
                for _ in pool.map(fetch, branch.between(start, end)):
                    pass
            tools = tools_of(branch.server_major)
            ended = commits(tools, Path(directory), start, segment_end(end, size), timeline)
            yield from takewhile(lambda commit: commit.lsn < end, ended)

    # --- what ----------------------------------------------------------------------------------------------------

    def _planned(self, target: Target, what: Collection[What], found: _Found) -> RecoveryPlan:
        branch, base = found.branch, found.base
        start = segment_start(base_of(base).start_lsn, branch.segment_bytes)
        wal = (*branch.histories, *branch.between(start, found.end))
        moment = target.moment or found.reaches
        wanted = found.at.consistency_point.objects_as_of if found.at else self._store_clock(found, moment)
        objects = self._objects(found.base, wanted) if "objects" in what else None
        configuration = self._configuration(found, moment) if "configuration" in what else None
        skew = Skew(
            objects.as_of - wanted if objects else None,
            configuration.as_of - moment if configuration else None,
        )
        tars = [artifact for artifact in base.artifacts if _is_base(artifact.name)]
        database = "database" in what
        stored = (sum(tar.stored_bytes for tar in tars) + sum(file.stored_bytes for file in wal)) if database else 0
        raw = (sum(tar.raw_bytes for tar in tars) + (found.end - start)) if database else 0
        replayed = (found.end - start) if database else 0
        if objects:
            packs = {pack.id: pack for manifest in (objects.base, *objects.increments) for pack in manifest.packs}
            stored += sum(pack.stored_bytes for pack in packs.values())
            raw += sum(pack.raw_bytes for pack in packs.values())
        if configuration:
            parts = [
                *(one for one in configuration.repository.artifacts if one.name == REPOSITORY_BUNDLE),
                *(
                    one
                    for one in configuration.files.artifacts
                    if one.name.startswith("config/") and ".tar" in one.name
                ),
            ]
            stored += sum(part.stored_bytes for part in parts)
            raw += sum(part.raw_bytes for part in parts)
        return RecoveryPlan(
            target=target,
            what=tuple(one for one in EVERYTHING if one in what),
            system_identifier=branch.system_identifier,
            base=base,
            history=branch.history,
            segment_bytes=branch.segment_bytes,
            wal=wal,
            end_lsn=found.end,
            stop=found.stop,
            at=found.at,
            reaches=found.reaches,
            objects=objects,
            configuration=configuration,
            skew=skew,
            download_bytes=stored,
            raw_bytes=raw,
            download_seconds=round(stored / _fetch_rate(base)),
            unpack_seconds=round((raw - replayed) / _UNPACKED),
            replay_seconds=round(replayed / _REPLAYED),
            notes=tuple(self._notes(found, objects, configuration, skew)),
            backups=tuple(sorted(self._read_from(found, start, objects, configuration))),
        )

    def _read_from(
        self, found: _Found, start: Lsn, objects: ObjectsSource | None, configuration: ConfigurationSource | None
    ) -> set[str]:
        """Every backup that is read for it, or that may name a segment of its log."""
        read = [found.base, *([found.at] if found.at else [])]
        if objects:
            read += [objects.base, *objects.increments, *objects.later]
        if configuration:
            read += [configuration.repository, configuration.files]
        windows = [
            one.id
            for one in self._reach.sound
            if one.wal
            and one.database.system_identifier == found.branch.system_identifier
            and one.wal.start_lsn < found.end
            and one.wal.end_lsn > start
        ]
        return {*(one.id for one in read), *windows}

    def _objects(self, otherwise: Manifest, wanted: datetime) -> ObjectsSource:
        """The newest whole listing from which the increments reach the moment; else the one that reaches furthest.

        Where none is as old, that of the base, which is younger.
        """
        changes = sorted(
            (manifest for manifest in self._reach.sound if manifest.objects.since is not None), key=_objects_as_of
        )
        listings = [manifest for manifest in self._reach.sound if manifest.objects.since is None]
        before = sorted((one for one in listings if _objects_as_of(one) <= wanted), key=_objects_as_of, reverse=True)
        best: ObjectsSource | None = None
        for base in before:
            reached = _objects_as_of(base)
            increments: list[Manifest] = []
            later: list[Manifest] = []
            for change in changes:
                since, as_of = change.objects.since, _objects_as_of(change)
                if since is not None and since <= reached < as_of:
                    (increments if reached < wanted else later).append(change)
                    reached = as_of
            source = ObjectsSource(base, tuple(increments), tuple(later), min(wanted, reached))
            if best is None or source.as_of > best.as_of:
                best = source
            if best.as_of == wanted:
                break
        return best or ObjectsSource(otherwise, (), (), _objects_as_of(otherwise))

    @staticmethod
    def _store_clock(found: _Found, moment: datetime) -> datetime:
        """The moment by the object store's clock, as the consistency point before it saw the two side by side."""
        marks = [mark.consistency_point for mark in found.run.marks if mark.consistency_point.time <= moment]
        point = marks[-1] if marks else found.base.consistency_point
        apart = point.objects_as_of - point.time  # a store tells whole seconds, so it is up to one behind
        return moment if abs(apart) <= _SAME_CLOCK else moment + timedelta(seconds=round(apart.total_seconds() + 0.5))

    def _configuration(self, found: _Found, moment: datetime) -> ConfigurationSource:
        if found.at is not None:
            moment = found.at.consistency_point.time
        known = [one for one in self._reach.sound if one.consistency_point.time <= moment]
        repository = next((one for one in reversed(known) if _has_bundle(one)), None)
        if repository is None:
            return ConfigurationSource(found.base, found.base, found.base.consistency_point.time)
        files = known[-1]
        told = (files.configuration.refs_sha256, repository.configuration.refs_sha256)
        whole = None in told or told[0] == told[1]
        return ConfigurationSource(repository, files, (files if whole else repository).consistency_point.time)

    def _notes(
        self,
        found: _Found,
        objects: ObjectsSource | None,
        configuration: ConfigurationSource | None,
        skew: Skew,
    ) -> Iterator[str]:
        stop = found.stop.lsn
        for other in self._reach.branches:
            if other is found.branch or stop is None or other.system_identifier != found.branch.system_identifier:
                continue
            left = _left(found.branch.history, other.history)
            later = [mark for run in other.runs for mark in run.marks if left is not None and point_lsn(mark) > left]
            if left is not None and stop > left and any(m.consistency_point.time >= found.reaches for m in later):
                yield (
                    f"This moment is also on {other}, which parted from this history at {left}. The newer history is "
                    f"taken; to recover the other one, name a backup of it: {', '.join(m.id for m in later[:3])}."
                )
        for doubt in self._reach.doubts_between(base_of(found.base).stopped, found.reaches):
            yield f"Passed over: {doubt}."
        if objects and skew.objects and skew.objects > timedelta(0):
            yield f"No listing of objects is as old as the moment: they come back as of {iso(objects.as_of)}."
        elif objects and skew.objects and skew.objects < -_SAME_CLOCK:
            yield f"No increment reaches the moment: objects come back as of {iso(objects.as_of)}."
        if configuration and configuration.as_of > found.reaches:
            yield f"No configuration is as old as the moment: it comes back as of {iso(configuration.as_of)}."

    # --- why not -------------------------------------------------------------------------------------------------

    def _why_not(self, moment: datetime, newest: datetime | None = None) -> str:
        spans = self._reach.spans
        if spans and moment < spans[0].since:
            return f"it is before the first base, which was complete at {iso(spans[0].since)}."
        last = max([span.until for span in spans] + ([newest] if newest else []), default=None)
        if last is None:
            return "no base has the log that it needs."
        before = max((span for span in spans if span.until < moment), key=lambda span: span.until, default=None)
        if before is not None and before.then:
            return f"{before.then}{'' if moment < last else ', and there is no base behind that'}."
        if moment > last:
            doubts = self._reach.doubts_between(last, None)
            needs = f" What is newer needs {'; '.join(map(str, doubts))}." if doubts else ""
            return f"nothing later than {iso(last)} is in {self._catalog.bucket} yet.{needs}"
        return "there is no base whose log reaches it."

    def _unreachable(
        self, moment: datetime | None, what: str, *, newest: datetime | None = None, also: str = ""
    ) -> Unreachable:
        spans = self._reach.spans
        known = [span.until for span in spans] + ([newest] if newest else [])
        before = max((one for one in known if moment is None or one < moment), default=None)
        after = min((span.since for span in spans if moment is not None and span.since > moment), default=None)
        if moment is not None and any(moment in span for span in spans):
            before = after = None
        told = " or ".join(iso(one) for one in (before, after) if one)
        mend = f"The nearest that can be: {told}." if told else "`python -m include.cli windows` shows what can be."
        if moment is not None and before and not after and not spans[-1].then:
            mend += " `latest` is the newest of all."
        return Unreachable(what, mend=f"{mend} {also}".strip(), before=before, after=after)


def _newest_point(branch: Branch) -> datetime:
    return max(mark.consistency_point.time for run in branch.runs for mark in run.marks)


def _base_before(run: Run, lsn: Lsn) -> Manifest | None:
    """The newest base that is consistent at a place."""
    there = [base for base in run.bases if base_of(base).stop_lsn < lsn]
    return max(there, key=lambda base: base_of(base).stop_lsn, default=None)


def _past(lsn: Lsn, branch: Branch, run: Run) -> Lsn:
    """The end of the log that holds the whole record at `lsn`: it may go on into the next segment."""
    return min(Lsn(segment_end(Lsn(lsn + 1), branch.segment_bytes) + branch.segment_bytes), run.end)


def _left(history: TimelineHistory, other: TimelineHistory) -> Lsn | None:
    """Where two histories of one cluster part; None where one is the other's beginning and goes on in it."""
    ours = [*history.switches, (history.timeline, None)]
    theirs = [*other.switches, (other.timeline, None)]
    for (mine, end), (yours, until) in zip(ours, theirs, strict=False):
        if mine != yours:
            return None
        if end != until:
            ends = [one for one in (end, until) if one is not None]
            return min(ends)
    return None


def _objects_as_of(manifest: Manifest) -> datetime:
    return manifest.consistency_point.objects_as_of


def _has_bundle(manifest: Manifest) -> bool:
    return any(artifact.name == REPOSITORY_BUNDLE for artifact in manifest.artifacts)


def _is_configuration_files(name: str) -> bool:
    return name.startswith("config/") and name.endswith(".tar")


def _is_base(name: str) -> bool:
    return name == BASE or name.startswith("database/tablespace-")


def _fetch_rate(base: Manifest) -> float:
    """Stored bytes a second: as fast as the base was stored, where that is known."""
    tars = [artifact for artifact in base.artifacts if _is_base(artifact.name)]
    milliseconds, stored = sum(tar.milliseconds for tar in tars), sum(tar.stored_bytes for tar in tars)
    return stored * 1000 / milliseconds if milliseconds and stored else _FETCHED

"""The increment: one window of the log, whole, and what changed beside the database meanwhile (R1.2).

Windows follow each other without a hole: each begins where the catalog says that the last one ended, never where a slot
happens to be. The anchor slot is not moved here: the window is not durable before it is in the replica, too
(`backup/replicate.py`). So a try that dies anywhere has only made copies that the next one finds and counts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from include.backup.adoption import Adopted, late_warning
from include.backup.application import Application
from include.backup.attempt import Attempt, commit, committed
from include.backup.changes import ObjectChanges
from include.backup.configuration import ConfigurationCopy
from include.backup.consistency import Point, consistency_point
from include.backup.wal_collection import (
    ServerLog,
    WalCollection,
    finish_segment,
    longest_wait,
    read_log,
    segments_on_server,
    wal_collection,
)
from include.errors import BackupError, Hopeless
from include.pipeline.artifacts import ArtifactRefused
from include.pipeline.progress import Progress
from include.pipeline.sealing import StreamRefused
from include.pipeline.store import ObjectMissing
from include.policy import Policy
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.chain import Chain, NoBase, ServerBehind, require_same_cluster
from include.repository.layout import BackupId, new_attempt
from include.repository.ledger import Gap, GapDeclared, declare, judge, read_gaps
from include.repository.lsn import Lsn, segment_lsn
from include.repository.manifest import DatabaseSummary, Manifest, Slot
from include.sources.postgres.receive import WalGone
from include.sources.postgres.slots import ChainLock, chain_lock, renew_anchor, secure_anchor
from include.sources.postgres.tools import find_tools

log = logging.getLogger(__name__)


class NeverKept(Hopeless):
    """A slot of which no window holds the log, though later ones are there: it was before the chain began."""


class TimelineMoved(BackupError):
    """The server changed its timeline while an increment was made."""


def make_increment(
    backup: BackupId, *, slot: Slot | None, application: Application, catalog: Catalog, policy: Policy, scratch: Path
) -> Manifest:
    """Make the increment, commit it, and return its manifest; when it is committed already, that one is returned.

    Without a base it raises `NoBase`, or makes a snapshot first when the policy says so (`starts_base`). Raises
    `Adopted` for a slot that another window covers, `GapDeclared` when log is gone for good (it is written down then,
    and the next increments go on behind it, once there is a new base), `ClusterChanged`, `OldPrimary`, `ServerBehind`,
    `NeverKept`, `ChainBusy`, and whatever the sources and the store raise. Nothing is committed then, the anchor slot
    has not moved, and the next run goes on where the last committed window ended.
    """
    make = partial(_make, backup, slot=slot, application=application, catalog=catalog, policy=policy, scratch=scratch)
    try:
        return make()
    except NoBase as missing:
        if not policy.backups.incremental.starts_base:
            raise
        log.warning("%s A snapshot is made first, as the policy says.", missing.what)
    from include.backup.snapshot import make_snapshot  # noqa: PLC0415 - which collects its WAL as an increment does

    make_snapshot(
        BackupId("snapshot", datetime.now(UTC), manual=True),
        slot=None,
        application=application,
        catalog=catalog,
        policy=policy,
        scratch=scratch,
    )
    return make()


def _make(
    backup: BackupId, *, slot: Slot | None, application: Application, catalog: Catalog, policy: Policy, scratch: Path
) -> Manifest:
    if (made := committed(catalog, backup)) is not None:
        return made
    name = new_attempt()
    with chain_lock(
        application.replication,
        "window",
        wait=longest_wait(policy),
        application_name=f"{backup}.{name}.D",  # by which the reaper sees that this try lives
    ) as lock:
        if (made := committed(catalog, backup)) is not None:
            return made
        started = datetime.now(UTC)
        state = read_log(application)
        chain = read_chain(catalog, state)
        late = _settle_slot(backup, slot, chain)
        beginning = _beginning(application, state, chain)
        lost = _secure_anchor(lock, beginning.start)
        log.info("Making %s, attempt %s, from %s on, into %s.", backup, name, beginning.start, catalog.bucket)
        with Progress(str(backup), every=policy.pipeline.progress_every, scratch=scratch) as progress:
            attempt = Attempt(backup, name, catalog=catalog, policy=policy, scratch=scratch, progress=progress)
            if late is not None:
                attempt.warn(late_warning(backup, late))
            window = _Window(attempt, application, lock, state, beginning, lost=lost)
            manifest = window.make(slot=slot, started=started)
        lock.require()
        return commit(catalog, manifest)


def read_chain(catalog: Catalog, state: ServerLog) -> Chain:
    """What the catalog holds of the server's cluster; raises `GapRefused`, and what the store raises."""
    entries = [*catalog.entries("snapshot"), *catalog.entries("incremental")]
    for entry in entries:
        if entry.refused:
            log.warning("The chain is followed without %s: %s", entry.key, entry.refused)
    system_identifier = state.server.system_identifier
    return Chain(
        system_identifier,
        state.history,
        state.segment_bytes,
        manifests=tuple(entry.manifest for entry in entries if entry.manifest and entry.manifest.wal),
        gaps=read_gaps(catalog.bucket, catalog.keyring, system_identifier),
        failed=frozenset(entry.manifest.id for entry in entries if entry.manifest and entry.verification.failed),
    )


def _settle_slot(backup: BackupId, slot: Slot | None, chain: Chain) -> timedelta | None:
    """How late the slot's increment is made, None before the next one is due; raises when it is not to be made."""
    if slot is None:
        return None
    windows = chain.windows
    if windows and slot.end <= windows[-1].consistency_point.time:
        verdict = judge(slot.start, slot.end, manifests=chain.manifests, windows=windows, gaps=chain.gaps)
        if verdict.gap is not None:
            raise GapDeclared(verdict.gap)
        if verdict.backup is not None:
            raise Adopted(backup, by=next(each for each in windows if each.id == verdict.backup))
        raise NeverKept(
            f"Nothing holds the log of {backup}, and it cannot be had any more: later increments are there.",
            mend="Nothing is to be done: that hour was before the chain's beginning, or its increments were deleted.",
        )
    late = datetime.now(UTC) - slot.end
    return late if late >= slot.end - slot.start else None


@dataclass(frozen=True)
class _Beginning:
    """Where a window begins, the backup that it continues, and the gap that it comes behind, if any."""

    start: Lsn
    predecessor: Manifest
    behind: Gap | None

    @property
    def since(self) -> datetime:
        """The moment at which the window begins."""
        moment = self.predecessor.consistency_point.time
        return max(moment, self.behind.before) if self.behind else moment


def _beginning(application: Application, state: ServerLog, chain: Chain) -> _Beginning:
    """Where the window begins, and what it continues; raises when this server's log does not continue the chain."""
    server = str(application.replication)
    require_same_cluster(chain.manifests, chain.system_identifier, connection=server)
    chain.require_same_branch(connection=server, histories=state.digests)
    chain.require_base()
    start, predecessor = chain.durable_end(), chain.predecessor()
    if start is None or predecessor is None:
        raise NoBase("The chain has a base and no log.", mend="Run the DAG snapshot_backup.")
    if state.flushed < start:
        raise ServerBehind(
            f"{server} has written its log up to {state.flushed}, and it is backed up to {start} ({predecessor.id}): "
            "the server was set back to an older state of itself.",
            mend="Nothing continues a log that was rewritten: run the DAG snapshot_backup, once the server is as it "
            "should be.",
        )
    return _Beginning(start, predecessor, chain.gap_at(start))


def _secure_anchor(lock: ChainLock, start: Lsn) -> str | None:
    """There is an anchor when this returns; why the one before kept nothing from `start` on, None when it did."""
    anchor = secure_anchor(lock.session)
    if anchor.made:
        lost = "the anchor slot was not there"
    elif anchor.restart_lsn is None or anchor.lost:
        # It keeps nothing any more, so nothing is lost with it. What is gone is found when it cannot be received.
        renew_anchor(lock.session)
        lost = f"the server had given up the anchor slot ({anchor.reason or anchor.wal_status})"
    elif anchor.restart_lsn > start:
        lost = f"the anchor slot kept the log from {anchor.restart_lsn} on only"
    else:
        return None
    log.warning("The log is to go on from %s, and %s. What is still there is taken.", start, lost)
    return lost


class _Window:
    """The work of one try, under the chain's lock; `lost` says why the anchor may not have kept all of it."""

    def __init__(
        self,
        attempt: Attempt,
        application: Application,
        lock: ChainLock,
        state: ServerLog,
        beginning: _Beginning,
        *,
        lost: str | None,
    ) -> None:
        self._attempt, self._application, self._lock, self._state = attempt, application, lock, state
        self._beginning, self._lost = beginning, lost

    def make(self, *, slot: Slot | None, started: datetime) -> Manifest:
        """Everything but the commit. Raises `GapDeclared` when a part of the log is gone."""
        attempt, state, beginning = self._attempt, self._state, self._beginning
        before = beginning.predecessor
        with wal_collection(
            self._application,
            attempt.catalog,
            state,
            self._lock,
            start=beginning.start,
            attempt=attempt.name,
            policy=attempt.policy,
            scratch=attempt.scratch,
            progress=attempt.progress,
        ) as wal:
            try:
                wal.collect(max(beginning.start, state.finished))
                point = self._point()
                end = finish_segment(self._application, state.segment_bytes)
                self._require_same_timeline()
                wal.collect(end)
            except WalGone as gone:
                raise GapDeclared(self._declare(wal, gone)) from gone
        objects = ObjectChanges(
            attempt,
            self._application,
            point,
            since=before.consistency_point.objects_as_of,
            uploading=self._uploading(before),
        )
        configuration = ConfigurationCopy(attempt, self._application, point)
        moved = point.observations.configuration.refs_sha256 != before.configuration.refs_sha256
        attempt.side_by_side([objects.write, configuration.write if moved else configuration.write_files])
        server = point.server
        return attempt.manifest(
            point,
            slot=slot,
            started=started,
            database=DatabaseSummary(
                name=server.database,
                server_version=server.server_version,
                system_identifier=server.system_identifier,
                timeline=server.timeline,
                tools=find_tools(server.major).major,
                tables=None,
                rows=None,
            ),
            objects=objects.summary(),
            configuration=configuration.summary(),
            wal=wal.window(since=beginning.since),
        )

    def _point(self) -> Point:
        """The moment. Nothing is read in its snapshot, so it is let go at once."""
        attempt = self._attempt
        with consistency_point(self._application, f"{attempt.backup}.{attempt.name}", attempt.policy.barrier) as point:
            return point

    def _uploading(self, before: Manifest) -> dict[str, datetime]:
        """The uploads that were under way at the backup before. One that is damaged must not stop all that follow."""
        attempt = self._attempt
        opened = OpenedBackup(attempt.catalog, before, policy=attempt.policy.pipeline, progress=attempt.progress)
        try:
            return opened.uploading()
        except (StreamRefused, ArtifactRefused, ObjectMissing) as damaged:
            attempt.warn(
                f"Which uploads were under way at {before.id} cannot be read: {damaged.what} Those that were completed "
                "since then may be in the next snapshot only."
            )
            return {}

    def _require_same_timeline(self) -> None:
        now = read_log(self._application).server
        before = self._state.server
        if (now.system_identifier, now.timeline) != (before.system_identifier, before.timeline):
            raise TimelineMoved(
                f"The server went from timeline {before.timeline} to {now.timeline} while the increment was made.",
                mend="Nothing is lost: the run is tried again, and follows it.",
            )

    def _declare(self, wal: WalCollection, gone: WalGone) -> Gap:
        """Write down what is nowhere any more; what is left on both sides of it is shipped."""
        state, attempt = read_log(self._application), self._attempt
        there = segments_on_server(self._application)
        missing = {gone.segment}
        while True:
            lacking = [name for name in wal.lacking(state.finished) if name in missing or name not in there]
            if not lacking:
                raise gone
            start = segment_lsn(lacking[0], state.segment_bytes)
            try:
                wal.collect(start)
                break
            except WalGone as more:  # removed since we looked
                missing.add(more.segment)
        gap = Gap(
            system_identifier=state.server.system_identifier,
            timeline=state.server.timeline,
            start_lsn=start,
            end_lsn=Lsn(segment_lsn(lacking[-1], state.segment_bytes) + state.segment_bytes),
            after=self._beginning.predecessor.consistency_point.time,
            before=state.time,
            because=f"{self._lost or 'the server had removed it'}, and {lacking[0]} was in no bucket.",
            declared=datetime.now(UTC),
        )
        declare(attempt.catalog.bucket, attempt.catalog.keyring, gap)
        log.error("A gap was declared: %s to %s (%s).", gap.start_lsn, gap.end_lsn, gap.home)
        try:
            wal.skip(gap.end_lsn)
            wal.collect(state.finished)
        except WalGone as more:
            log.warning("Behind the gap, %s is gone too: the next run declares it.", more.segment)
        return gap

"""The chain of one cluster, along its timelines: where the next window begins, and what it stands on.

Nothing here asks a server or a bucket: what the catalog holds and what the server says of itself come in, and where to
go on comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from include.errors import Hopeless
from include.repository.ledger import Gap
from include.repository.lsn import Lsn
from include.repository.manifest import Manifest, moment_text
from include.repository.timelines import TimelineHistory


class NoBase(Hopeless):
    """There is nothing that an increment could stand on."""


class ClusterChanged(Hopeless):
    """The server is another cluster than the one that was backed up: somebody re-initialised it, or the connection."""


class OldPrimary(Hopeless):
    """The server was left behind by a failover, or is a copy that went its own way: its log is not the chain's."""


class ServerBehind(Hopeless):
    """The server's log ends before what is already backed up of it."""


@dataclass(frozen=True)
class Chain:
    """What the catalog holds of one cluster, seen along the `history` of the server that is asked now.

    `manifests` are the genuine ones with WAL, of whatever cluster; `failed` the ids of those whose verification failed;
    `gaps` this cluster's.
    """

    system_identifier: str
    history: TimelineHistory
    segment_bytes: int
    manifests: tuple[Manifest, ...]
    gaps: tuple[Gap, ...] = ()
    failed: frozenset[str] = frozenset()

    def durable_end(self) -> Lsn | None:
        """Where the next window begins; None when there is neither a window nor a snapshot.

        That is the end of the newest window along this history, else of the newest snapshot's WAL, moved on to the end
        of a declared gap. An ancestor's window counts up to where the ancestor was left, from the beginning of that
        segment, because the newer timeline has the whole of it.
        """
        ends = [end for each in self.windows if (end := self._end_of(each))]
        if not ends:
            ends = [end for each in self._snapshots()[-1:] if (end := self._end_of(each))]
        if not ends:
            return None
        return max([*ends, *(end for gap in self.gaps if (end := self._gap_end(gap)))])

    def base(self) -> Manifest | None:
        """The newest sound snapshot whose base is on this history, behind the newest gap; None when there is none."""
        behind = max((end for gap in self.gaps if (end := self._gap_end(gap))), default=Lsn(0))
        sound = [
            each
            for each in self._snapshots()
            if each.id not in self.failed and each.base is not None and each.base.start_lsn >= behind
        ]
        return sound[-1] if sound else None

    def predecessor(self) -> Manifest | None:
        """What the next increment continues: the newest increment along this history, else the newest snapshot."""
        found = self.windows or self._snapshots()
        return found[-1] if found else None

    def gap_at(self, start: Lsn) -> Gap | None:
        """The declared gap that a window from `start` comes behind."""
        return next((gap for gap in self.gaps if self._gap_end(gap) == start), None)

    @property
    def windows(self) -> list[Manifest]:
        """The increments along this history, oldest consistency point first."""
        return _in_order(each for each in self._own if each.type == "incremental" and self._end_of(each))

    def require_same_branch(self, *, connection: str, histories: Mapping[str, str]) -> None:
        """Raise `OldPrimary` when the catalog has log that this server's history does not lead to.

        That is a newer timeline, or one of the same number that began elsewhere; `histories` are the SHA-256s of the
        server's own history files by name. A base that is newer than that log says that this server is meant.
        """
        base = self.base()
        for each in _in_order(self._own):
            assert each.wal is not None  # noqa: S101 - `_own` has only such
            if base and base.consistency_point.time >= each.consistency_point.time:
                continue
            told = {file.name: file.raw_sha256 for file in each.wal.files}
            forked = [name for name, digest in histories.items() if told.get(name, digest) != digest]
            newer = each.wal.timeline > self.history.timeline and not self.history.contains(each.wal.timeline)
            if newer or forked:
                what = f"timeline {each.wal.timeline}" if newer else f"another {forked[0]}"
                raise OldPrimary(
                    f"{connection} is on timeline {self.history.timeline} of the cluster {self.system_identifier}, "
                    f"and {each.id} ({moment_text(each.consistency_point.time)}) is of {what}, which this server's "
                    "history does not know: it was left behind by a failover.",
                    mend="Point the connections at the new primary. If this server is the one to go on with, run the "
                    "DAG snapshot_backup on it: a new base says so.",
                )

    def require_base(self) -> Manifest:
        """The base that increments stand on; raises `NoBase`."""
        if (base := self.base()) is not None:
            return base
        if self._snapshots():
            why = "every snapshot of it failed its verification, or lies before the last declared gap"
        else:
            why = "there is no snapshot of it"
        raise NoBase(
            f"An increment of the cluster {self.system_identifier} has no base to stand on: {why}.",
            mend="Run the DAG snapshot_backup; with backups.incremental.starts_base in the policy, the increment "
            "makes a snapshot first by itself.",
        )

    @property
    def _own(self) -> list[Manifest]:
        """This cluster's. One that was failed over from, and came back with a new base, begins again with that: the log
        between is of a time when users were elsewhere, and may be gone.
        """
        own = [
            each
            for each in self.manifests
            if each.wal is not None and each.database.system_identifier == self.system_identifier
        ]
        bases = [_moment(each) for each in own if each.base and each.id not in self.failed]
        others = [
            _moment(each)
            for each in self.manifests
            if each.base and each.database.system_identifier != self.system_identifier
        ]
        left = max((moment for moment in others if bases and moment < max(bases)), default=None)
        return [each for each in own if left is None or _moment(each) > left]

    def _snapshots(self) -> list[Manifest]:
        """Those whose base is on this history, oldest consistency point first."""
        return _in_order(
            each
            for each in self._own
            if each.base is not None
            and self.history.contains(each.database.timeline)
            and _before(each.base.stop_lsn, self.history.left_at(each.database.timeline))
        )

    def _end_of(self, manifest: Manifest) -> Lsn | None:
        """Where a backup's WAL ends along this history; None when it is beside it."""
        assert manifest.wal is not None  # noqa: S101 - `_own` has only such
        wal = manifest.wal
        return self._along(wal.timeline, wal.start_lsn, wal.end_lsn)

    def _gap_end(self, gap: Gap) -> Lsn | None:
        return self._along(gap.timeline, gap.start_lsn, gap.end_lsn)

    def _along(self, timeline: int, start: Lsn, end: Lsn) -> Lsn | None:
        return self.history.reached(timeline, start, end, self.segment_bytes)


def require_same_cluster(manifests: Iterable[Manifest], system_identifier: str, *, connection: str) -> None:
    """Raise `ClusterChanged` when the catalog has WAL of another cluster than this one, and no base of this one."""
    known = _in_order(each for each in manifests if each.wal)
    others = [each for each in known if each.database.system_identifier != system_identifier]
    if others and not any(each.base for each in known if each.database.system_identifier == system_identifier):
        newest = others[-1]
        raise ClusterChanged(
            f"{connection} is the cluster {system_identifier}, and {newest.id}, the newest of the chain, is of the "
            f"cluster {newest.database.system_identifier}: nothing continues another cluster's log.",
            mend="If it was re-initialised on purpose, run the DAG snapshot_backup: a new chain begins with it. "
            "If not, correct the connection.",
        )


def _moment(manifest: Manifest) -> datetime:
    return manifest.consistency_point.time


def _before(lsn: Lsn, left: Lsn | None) -> bool:
    return left is None or lsn <= left


def _in_order(manifests: Iterable[Manifest]) -> list[Manifest]:
    return sorted(manifests, key=lambda each: each.consistency_point.time)

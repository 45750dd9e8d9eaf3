"""A stretch of the log made whole in the bucket: what was shipped already is proved, what is missing is received.

Whoever was there first, the stream between the hours or a try that died, its copies count once they are read back. The
rest comes from the server through a copy of the anchor slot, and is deleted from the disk as soon as it is shipped.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from include.backup.application import Application
from include.pipeline.keys import UnknownKey, WrapRefused
from include.pipeline.progress import Progress
from include.pipeline.sealing import StreamRefused
from include.pipeline.store import ObjectMissing
from include.policy import Policy
from include.repository.catalog import Catalog
from include.repository.lsn import Lsn, history_name, is_segment, segment_end, segment_lsn, segment_start
from include.repository.manifest import WalFile, WalWindow
from include.repository.timelines import TimelineHistory
from include.repository.wal import Shipped, WalArchive, WalRefused, WalSession
from include.sources.postgres.receive import ReceiveFailed, WalGone, receive_until
from include.sources.postgres.replication import timeline_history
from include.sources.postgres.server import ServerIdentity, identify
from include.sources.postgres.sessions import APPLICATION
from include.sources.postgres.slots import ChainLock, chain_lock, copied_slot, drop_inactive_copies
from include.sources.postgres.tools import find_tools

if TYPE_CHECKING:
    from include.sources.postgres.login import DatabaseLogin
    from include.sources.postgres.tools import PostgresTools

log = logging.getLogger(__name__)

_DAMAGED = (StreamRefused, WalRefused, WrapRefused, ObjectMissing)
"""What says that this copy is none; anything else is about the circumstances, and no reason to give a copy up."""
_WAITING_SEGMENTS = 8


_STATE = """
    SELECT (SELECT setting::int FROM pg_settings WHERE name = 'wal_segment_size'),
        pg_current_wal_flush_lsn()::text, clock_timestamp()
"""


@dataclass(frozen=True)
class ServerLog:
    """The log of a server at one moment: whose it is, the way that it came, and what is `flushed` by `time`.

    `histories` are the contents of the history files, by name, of every timeline but the first.
    """

    server: ServerIdentity
    history: TimelineHistory
    histories: Mapping[str, bytes]
    segment_bytes: int
    flushed: Lsn
    time: datetime

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each history file."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.histories.items()}

    @property
    def finished(self) -> Lsn:
        """The end of the last segment that is whole."""
        return segment_start(self.flushed, self.segment_bytes)


def read_log(application: Application) -> ServerLog:
    """Ask the server; raises `BackupError` on a standby."""
    login = application.replication
    with login.connect(application_name=APPLICATION, autocommit=True) as session:
        server = identify(session)
        row = session.execute(_STATE).fetchone()
        assert row is not None  # noqa: S101 - a SELECT without FROM has one row
        segment_bytes, flushed, time = row
    history = TimelineHistory.parse(server.timeline, timeline_history(login, server.timeline) or "")
    histories = {
        history_name(timeline): text.encode()
        for timeline in (*(ancestor for ancestor, _ in history.switches), server.timeline)
        if (text := timeline_history(login, timeline)) is not None
    }
    return ServerLog(server, history, histories, segment_bytes, Lsn.parse(flushed), time.astimezone(UTC))


def finish_segment(application: Application, segment_bytes: int) -> Lsn:
    """Let the server begin a new segment; returns where it begins. What was written before is whole then."""
    with application.barrier.connect(application_name=APPLICATION, autocommit=True) as session:
        row = session.execute("SELECT pg_switch_wal()::text").fetchone()
    assert row is not None  # noqa: S101 - a function returns a row
    # The end of the record that switched; where nothing was written since the last switch, the boundary itself.
    return segment_end(Lsn.parse(row[0]), segment_bytes)


def segments_on_server(application: Application) -> frozenset[str]:
    """The segments that lie in the server's `pg_wal`; those that it made ready for later are among them."""
    with application.barrier.connect(application_name=APPLICATION, autocommit=True) as session:
        return frozenset(name for (name,) in session.execute("SELECT name FROM pg_ls_waldir()") if is_segment(name))


def longest_wait(policy: Policy) -> timedelta:
    """How long to wait for the chain's `window` lock: as long as an increment may take, which may hold it."""
    return policy.monitoring.warnings.slow_backup.longest.incremental


@contextmanager
def wal_collection(
    application: Application,
    catalog: Catalog,
    state: ServerLog,
    lock: ChainLock,
    *,
    start: Lsn,
    attempt: str,
    policy: Policy,
    scratch: Path,
    progress: Progress,
) -> Iterator[WalCollection]:
    """A collection from `start` on, through a copy of the anchor named after the attempt, dropped at the end.

    The chain's `window` lock is held; the anchor exists. Copies that dead tries left are dropped first.
    """
    archive = WalArchive(catalog.bucket, catalog.keyring, state.server.system_identifier, policy=policy.pipeline)
    for name in drop_inactive_copies(lock.session, lock.purpose):
        log.info("Dropped the slot %s, which a dead try left.", name)
    with copied_slot(lock.session, lock.purpose, attempt) as slot:
        source = WalSource(find_tools(state.server.major), application.replication, slot)
        yield WalCollection(archive, source, state, start=start, policy=policy, scratch=scratch, progress=progress)


def collect_wal(
    application: Application,
    catalog: Catalog,
    *,
    start: Lsn,
    since: datetime,
    attempt: str,
    policy: Policy,
    scratch: Path,
    progress: Progress,
) -> WalWindow:
    """Make the log from `start`, a boundary, to now whole in the bucket, and describe it (for a snapshot).

    The server is switched to its next segment, so that everything written before this call is in it. Takes the chain's
    `window` lock for as long as it takes; the anchor exists. Raises `WalGone`, `ChainBusy`.
    """
    with chain_lock(application.replication, "window", wait=longest_wait(policy)) as lock:
        state = read_log(application)
        with wal_collection(
            application,
            catalog,
            state,
            lock,
            start=start,
            attempt=attempt,
            policy=policy,
            scratch=scratch,
            progress=progress,
        ) as collection:
            collection.collect(max(start, state.finished))
            collection.collect(finish_segment(application, state.segment_bytes))
            return collection.window(since=since)


@dataclass(frozen=True)
class WalSource:
    """Where missing WAL comes from: a server, and the slot through which it is streamed."""

    tools: PostgresTools
    login: DatabaseLogin
    slot: str


class WalCollection:
    """Makes `[start, …)` whole in the bucket, step by step: `collect` up to one boundary, then up to the next.

    `start` is a boundary. What `collect` returned from is durable.
    """

    def __init__(
        self,
        archive: WalArchive,
        source: WalSource,
        state: ServerLog,
        *,
        start: Lsn,
        policy: Policy,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self._archive, self._source, self._policy, self._scratch = archive, source, policy, scratch
        self._history, self._histories, self._segment_bytes = state.history, state.histories, state.segment_bytes
        self._progress, self._start = progress, start
        self.reached = start
        self._files: dict[str, WalFile] = {}
        self._session: WalSession | None = None
        self._locked_away: UnknownKey | None = None

    def collect(self, end: Lsn) -> None:
        """Go on to `end`, a boundary that the server has written.

        Raises `WalGone` when a segment is nowhere any more, with everything that could be had shipped before it;
        `UnknownKey` when it is in the bucket and this keyring does not open it.
        """
        names = list(self._history.segment_names(self.reached, end, self._segment_bytes))
        self._take_shipped([*self._histories, *names])
        self._ship_histories()
        for run in self._missing(names):
            self._receive(run)
        self.reached = max(self.reached, end)

    def skip(self, to: Lsn) -> None:
        """Go on behind a gap: what is collected then describes no window."""
        self.reached = max(self.reached, to)

    def lacking(self, end: Lsn) -> list[str]:
        """The segments up to `end` that are not known to be in the bucket."""
        names = self._history.segment_names(self._start, end, self._segment_bytes)
        return [name for name in names if name not in self._files]

    def window(self, *, since: datetime) -> WalWindow:
        """What was collected, for a manifest."""
        names = [*self._histories, *self._history.segment_names(self._start, self.reached, self._segment_bytes)]
        return WalWindow(
            start_lsn=self._start,
            end_lsn=self.reached,
            segment_bytes=self._segment_bytes,
            timeline=self._history.timeline,
            since=since,
            files=tuple(self._files[name] for name in names),
        )

    def _take_shipped(self, names: Sequence[str]) -> None:
        """Prove the copies that lie there; of each name the oldest that is sound."""
        wanted = [name for name in names if name not in self._files]
        shipped = self._archive.shipped(wanted)
        with ThreadPoolExecutor(self._policy.pipeline.streams_at_once, thread_name_prefix="measure") as pool:
            for proved in pool.map(self._proved, [shipped[name] for name in wanted if name in shipped]):
                if proved is not None:
                    self._files[proved.name] = proved

    def _proved(self, copies: Sequence[Shipped]) -> WalFile | None:
        for copy in copies:
            try:
                file = self._archive.measure(copy)
            except UnknownKey as locked_away:
                log.warning("A copy of %s is passed over: %s", copy.name, locked_away)
                self._locked_away = locked_away
            except _DAMAGED as damaged:
                log.warning("A copy of %s is passed over, and another one is taken: %s", copy.name, damaged)
            else:
                told = self._histories.get(file.name)
                if told is not None and hashlib.sha256(told).hexdigest() != file.raw_sha256:
                    log.warning("A copy of %s (%s) is not the server's.", copy.name, copy.attempt)
                    continue
                self._progress.add(raw=file.raw_bytes)
                return file
        return None

    def _ship_histories(self) -> None:
        for name, content in self._histories.items():
            if name not in self._files:
                self._session = self._session or self._archive.session()
                with TemporaryDirectory(prefix="history-", dir=self._scratch) as directory:
                    file = Path(directory) / name
                    file.write_bytes(content)
                    self._ship(file)

    def _missing(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Rows of segments that follow each other and are not in the bucket."""
        run: list[str] = []
        for name in names:
            if name not in self._files:
                run.append(name)
            elif run:
                yield run
                run = []
        if run:
            yield run

    def _receive(self, run: Sequence[str]) -> None:
        """Receive a row of segments and ship each as it arrives, several side by side."""
        self._session = self._session or self._archive.session()
        end = segment_end(Lsn(segment_lsn(run[-1], self._segment_bytes) + 1), self._segment_bytes)
        with (
            TemporaryDirectory(prefix="wal-", dir=self._scratch) as directory,
            ThreadPoolExecutor(self._policy.pipeline.streams_at_once, thread_name_prefix="ship") as pool,
            closing(self._received(run[0], end, Path(directory))) as files,
        ):
            shipping: set[Future[None]] = set()
            try:
                for file in files:
                    if is_segment(file.name):
                        shipping.add(pool.submit(self._ship, file))
                    else:
                        file.unlink()  # the histories are shipped as the server told them
                    ended, shipping = (
                        wait(shipping, return_when=FIRST_COMPLETED)
                        if len(shipping) >= _WAITING_SEGMENTS
                        else (set(), shipping)
                    )
                    for job in ended:
                        job.result()
            finally:
                # What has arrived is shipped also when the rest is gone: less is lost.
                for job in shipping:
                    job.result()
        if lacking := [name for name in run if name not in self._files]:
            raise ReceiveFailed(
                f"The server sent other segments than {lacking[0]}.",
                mend="Its timeline changed meanwhile: the run is tried again.",
            )

    def _received(self, first: str, end: Lsn, directory: Path) -> Generator[Path]:
        source = self._source
        try:
            yield from receive_until(
                source.tools,
                source.login,
                slot=source.slot,
                start=first,
                end=end,
                segment_bytes=self._segment_bytes,
                directory=directory,
                stall_limit=self._policy.pipeline.stall_limit,
            )
        except WalGone:
            if self._locked_away is not None:  # it is in the bucket: no gap
                raise self._locked_away from None
            raise

    def _ship(self, file: Path) -> None:
        assert self._session is not None  # noqa: S101 - begun before the first file arrives
        shipped = self._session.ship(file, file.name)
        file.unlink()
        self._files[shipped.name] = shipped
        self._progress.add(raw=shipped.raw_bytes, stored=shipped.stored_bytes)

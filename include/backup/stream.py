"""WAL between the hours: each finished segment in the bucket within a minute of being written (R5.5).

It is a convenience to the RPO and to nothing else: the hourly run receives from the server what is not in the bucket,
so that stopping the stream, killing it or losing its disk costs no byte. It never moves the anchor. What is in the
bucket is brought to the second region behind it (R3.2), by a thread of its own: a replica that is away keeps nobody
from shipping.
"""

from __future__ import annotations

import logging
import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psycopg

from include.backup.application import Application
from include.errors import BackupError
from include.pipeline.disk import free_bytes
from include.pipeline.progress import Progress
from include.policy import Policy
from include.repository.catalog import Catalog
from include.repository.chain import require_same_cluster
from include.repository.lsn import Lsn, is_segment, segment_lsn, segment_name, segment_start
from include.repository.manifest import WalFile
from include.repository.replica import Replica
from include.repository.wal import PAGE_HEADER_BYTES, Shipped, WalArchive, WalSession
from include.sources.postgres.receive import Receiver, receive_continuously
from include.sources.postgres.server import identify
from include.sources.postgres.slots import (
    ANCHOR,
    ChainBusy,
    chain_lock,
    copied_slot,
    drop_inactive_copies,
    secure_anchor,
)
from include.sources.postgres.tools import find_tools

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from include.sources.postgres.slots import ChainLock

log = logging.getLogger(__name__)

_SHARE_OF_PROMISE = 2
"""A segment is ended when its oldest byte has waited for half of what the policy promises; the rest is for shipping."""
_LOOKS = 12
"""How often in the promised time the stream looks what there is to do."""
_LONGEST_PAUSE = 30.0
_AT_ONCE = 16
"""Segments that are brought to the replica by one look at it."""
_ENDS_WITHIN = 10.0
"""Seconds that a stream waits for its replica at its end: one that hangs must not keep it."""
_ANCHORED = """
    SELECT restart_lsn::text, (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size')
    FROM pg_replication_slots WHERE slot_name = %s AND restart_lsn IS NOT NULL
"""


class StreamStalled(BackupError):
    """The server ended a segment, and it does not come: the connection looks like that of a quiet server."""


class SpoolFull(BackupError):
    """The disk that segments wait on has no room: the bucket takes them slower than the server writes."""


@dataclass
class Shipments:
    """What a stream has done: segments and histories shipped, segments that it ended early, and times it began anew.

    `replicated` are those that it brought to the replica. `failure` is what kept it from shipping when it was asked to
    end; None when it shipped, or stood by for another one.
    """

    shipped: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    ended_early: int = 0
    interruptions: int = 0
    replicated: int = 0
    failure: Exception | None = None


def ship_continuously(
    application: Application,
    catalog: Catalog,
    policy: Policy,
    *,
    replica: Catalog,
    spool: Path,
    until: threading.Event,
) -> Shipments:
    """Ship every segment as it is finished, until `until` is set; returns what was done.

    Each goes to the `replica` after it is in the primary, unless that bucket replicates by itself.

    One stream at a time ships a chain: as long as somebody else holds the stream's lock, this one waits. When the
    server or the store fails it says so, and begins again where the bucket ends. `spool` is its own directory, and
    whatever an earlier stream left in it is removed.
    """
    done = Shipments()
    stream = _Stream(application, catalog, policy, replica, spool, until, done)
    failures = 0
    while not until.is_set():
        shipped = done.shipped
        try:
            stream.run()
        except ChainBusy as busy:  # it has waited for the lock already
            log.info("Standing by: %s", busy.what)
            done.failure = None
        except (BackupError, psycopg.Error, OSError) as failure:
            failures = 1 if done.shipped > shipped else failures + 1
            done.interruptions += 1
            done.failure = failure
            pause = min(2.0**failures, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            log.warning("The stream was interrupted, and begins again in %.0f s: %s", pause, _told(failure))
            until.wait(pause)
    return done


@dataclass
class _Stream:
    """One stream, which may begin several times."""

    application: Application
    catalog: Catalog
    policy: Policy
    replica: Catalog
    spool: Path
    until: threading.Event
    done: Shipments
    _chain_of: str | None = None
    """The cluster of which it is known that the chain is its own, or that there is none yet."""

    @property
    def _look_every(self) -> timedelta:
        return self.policy.backups.incremental.shipped_within / _LOOKS

    def run(self) -> None:
        """Take the lock and ship until the end is asked for; raises what interrupts it."""
        with chain_lock(self.application.replication, "stream", wait=self._look_every) as lock:
            self._ship(lock)

    def _ship(self, lock: ChainLock) -> None:
        session = lock.session
        server = identify(session)
        self._require_same_cluster(server.system_identifier)
        drop_inactive_copies(session, "stream")
        secure_anchor(session)
        archive = WalArchive(
            self.catalog.bucket, self.catalog.keyring, server.system_identifier, policy=self.policy.pipeline
        )
        shipping = archive.session()
        shutil.rmtree(self.spool, ignore_errors=True)
        self.spool.mkdir(mode=0o700, parents=True)
        with (
            _Onward(self, archive, lock) as onward,
            copied_slot(session, "stream", shipping.attempt) as slot,
            closing(self.application.barrier.connect(application_name="synapse-backups", autocommit=True)) as ender,
            ThreadPoolExecutor(self.policy.pipeline.streams_at_once, thread_name_prefix="ship") as pool,
            receive_continuously(
                find_tools(server.major),
                self.application.replication,
                slot=slot,
                start=_first_missing(session, slot, server.timeline, archive),
                directory=self.spool,
            ) as receiving,
        ):
            log.info("Shipping the log of %s as attempt %s.", server, shipping.attempt)
            self.done.failure = None
            self._ship_what_comes(
                lock,
                receiving,
                partial(self._ship_one, shipping, onward),
                pool,
                _Ender(ender, self._promise, self.policy.pipeline.stall_limit),
            )

    def _require_same_cluster(self, system_identifier: str) -> None:
        """Raise `ClusterChanged` for a server whose log nobody could use: nothing is made on it, or shipped."""
        if system_identifier == self._chain_of:
            return
        entries = [*self.catalog.entries("snapshot"), *self.catalog.entries("incremental")]
        manifests = [entry.manifest for entry in entries if entry.manifest]
        require_same_cluster(manifests, system_identifier, connection=str(self.application.replication))
        self._chain_of = system_identifier

    @property
    def _promise(self) -> timedelta:
        return self.policy.backups.incremental.shipped_within / _SHARE_OF_PROMISE

    def _ship_what_comes(
        self,
        lock: ChainLock,
        receiving: Receiver,
        ship: Callable[[Path], None],
        pool: ThreadPoolExecutor,
        ender: _Ender,
    ) -> None:
        on_their_way: dict[Path, Future[None]] = {}
        while not self.until.is_set():
            lock.require()
            self._must_have_room()
            for file in receiving.finished(self._look_every):
                ender.arrived()
                on_their_way[file] = pool.submit(ship, file)
            for file in [file for file, sending in on_their_way.items() if sending.done()]:
                on_their_way.pop(file).result()
            self.done.ended_early += ender.end_what_waited()

    def _ship_one(self, shipping: WalSession, onward: _Onward, file: Path) -> None:
        shipped = shipping.ship(file, file.name)
        file.unlink()
        onward.add(shipped)
        self.done.shipped += 1
        self.done.raw_bytes += shipped.raw_bytes
        self.done.stored_bytes += shipped.stored_bytes
        log.info("%s is in the bucket: %.1f MB.", shipped.name, shipped.stored_bytes / 1e6)

    def _must_have_room(self) -> None:
        free, needed = free_bytes(self.spool), int(self.policy.preparation.minimum_free_bytes)
        if free < needed:
            raise SpoolFull(
                f"{self.spool} has {free / 1e6:,.0f} MB free, and {needed / 1e6:,.0f} MB are kept free: the bucket "
                "takes WAL slower than the server writes it.",
                mend="Make room, or a faster way to the bucket; the server keeps what is not shipped.",
            )


class _Onward:
    """Brings what was shipped to the replica, behind the stream and never in its way (R3.2).

    It begins with what earlier streams could not bring, from the anchor on; a replica that is away is told of once, and
    everything that waits for it is brought when it answers. What waits at the end, the next stream or run brings.
    """

    def __init__(self, stream: _Stream, archive: WalArchive, lock: ChainLock) -> None:
        self._stream, self._archive = stream, archive
        row = lock.session.execute(_ANCHORED, [ANCHOR]).fetchone()
        self._from: Lsn = Lsn.parse(row[0]) if row else Lsn(0)
        self._segment_bytes: int = row[1] if row else 1
        self._waiting: dict[str, WalFile | Shipped] = {}
        self._lock, self._wake, self._over = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="onward", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._wake.set()
        self._thread.join(_ENDS_WITHIN)

    def add(self, shipped: WalFile) -> None:
        """One more that is in the primary; where that replicates by itself, nobody is left to hear it."""
        if self._thread.is_alive():
            with self._lock:
                self._waiting[self._archive.key_of(shipped)] = shipped
            self._wake.set()

    def _work(self) -> None:
        stream = self._stream
        replica = Replica(stream.catalog, stream.replica, stream.policy, progress=Progress("onward"))
        looked, away = False, False
        while not self._over.is_set():
            self._wake.clear()
            try:
                if replica.replicates:
                    return
                if not looked:
                    self._look_back()
                    looked = True
                self._bring(replica)
            except Exception as failure:  # whatever it is: it keeps no segment from the primary
                if not away:
                    log.warning("The replica does not take the log, which waits for it: %s", _told(failure))
                away = True
                self._over.wait(_LONGEST_PAUSE / 2 * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                continue
            if away:
                log.info("The replica takes the log again, and has what waited for it.")
            away = False
            self._wake.wait()

    def _look_back(self) -> None:
        """Find what is in the primary from the anchor on, and not in the replica."""
        archive = self._archive
        there = WalArchive(
            self._stream.replica.bucket, archive.keyring, archive.system_identifier, policy=self._stream.policy.pipeline
        ).shipped()
        for name, copies in archive.shipped().items():
            known = {each.attempt for each in there.get(name, ())}
            for copy in copies:
                if copy.attempt not in known and self._reaches(name):
                    with self._lock:
                        self._waiting.setdefault(archive.key_of(copy), copy)

    def _reaches(self, name: str) -> bool:
        """Whether it is no segment from before the anchor: what it keeps is not in both regions yet."""
        size = self._segment_bytes
        return not is_segment(name) or segment_lsn(name, size) + size > self._from

    def _bring(self, replica: Replica) -> None:
        while not self._over.is_set():
            with self._lock:
                some = dict(islice(self._waiting.items(), _AT_ONCE))
            if not some:
                return
            replica.bring_log(self._archive.system_identifier, some.values())
            with self._lock:
                for key in some:
                    del self._waiting[key]
            self._stream.done.replicated += len(some)


class _Ender:
    """Ends the server's segment when a commit in it has waited for too long: a quiet server takes hours to fill one.

    A server on which nobody writes has commits no more, and yet a log: its own notes of running transactions, of
    checkpoints, and of the segments that were ended here. That is not worth a segment a minute, so what counts is the
    snapshot of transactions, which every commit changes (https://www.postgresql.org/docs/current/functions-info.html).
    """

    def __init__(self, session: psycopg.Connection[TupleRow], longest: timedelta, stall_limit: timedelta) -> None:
        self._session, self._longest, self._stall_limit = session, longest.total_seconds(), stall_limit
        self._known: str | None = None
        self._segment: Lsn | None = None
        self._since = 0.0
        self._ended_at: float | None = None

    def arrived(self) -> None:
        """A finished segment came: the stream is alive."""
        self._ended_at = None

    def end_what_waited(self) -> int:
        """How many segments it ended: one or none. Raises `StreamStalled` when the one before never came."""
        if self._ended_at is not None and time.monotonic() - self._ended_at > self._stall_limit.total_seconds():
            raise StreamStalled(
                f"A segment was ended {self._stall_limit.total_seconds():g} s ago, and has not come.",
                mend="Look at the server's pg_stat_replication and at the network between; the stream begins again.",
            )
        row = self._session.execute(
            "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, setting::int8 FROM pg_settings"
            " WHERE name = 'wal_segment_size'"
        ).fetchone()
        assert row is not None  # noqa: S101 - the setting is there
        transactions, at, size = row[0], Lsn.parse(row[1]), row[2]
        segment = segment_start(at, size)
        if transactions == self._known or at - segment <= PAGE_HEADER_BYTES:
            self._segment = None
            return 0
        if segment != self._segment:
            self._segment, self._since = segment, time.monotonic()
        if time.monotonic() - self._since < self._longest:
            return 0
        self._session.execute("SELECT pg_switch_wal()")
        self._known, self._segment = transactions, None
        if self._ended_at is None:
            self._ended_at = time.monotonic()
        return 1


def _first_missing(session: psycopg.Connection[TupleRow], slot: str, timeline: int, archive: WalArchive) -> str:
    """The first segment from the slot's on that nobody has shipped."""
    row = session.execute(
        "SELECT restart_lsn::text, (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size')"
        " FROM pg_replication_slots WHERE slot_name = %s",
        [slot],
    ).fetchone()
    assert row is not None  # noqa: S101 - it was made a moment ago
    size, shipped = row[1], archive.shipped()
    name = segment_name(timeline, Lsn.parse(row[0]), size)
    while name in shipped:
        name = segment_name(timeline, Lsn(segment_lsn(name, size) + size), size)
    return name


def _told(failure: Exception) -> str:
    return " ".join(str(failure).split())

"""A whole cluster, back at one moment: its base unpacked, its log replayed to a named place, and not a record less.

Recovery without a target promotes at the first hole, and a flipped bit is a hole: so it always has one, a restore point
or a place, stops there, is looked at, and only then is a server that takes writes. Whatever ends it before is an error
that says where, and what it left is removed.
https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-PITR-RECOVERY
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from include.errors import BackupError
from include.pipeline.account import Account, server_account
from include.pipeline.progress import Progress
from include.policy import Pipeline
from include.recovery.cluster.base import unpack_base
from include.recovery.cluster.control import Control
from include.recovery.cluster.private_server import PrivateServer
from include.recovery.cluster.room import require_room
from include.recovery.cluster.target import StopAt
from include.recovery.cluster.wal_spool import WalSpool, prove_row
from include.recovery.opened import OpenedBackup
from include.repository.lsn import Lsn, history_name, is_history, segment_name
from include.repository.manifest import Manifest, WalFile
from include.repository.timelines import TimelineHistory
from include.repository.wal import Shipped, WalArchive
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.tools import PostgresTools, tools_of

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

log = logging.getLogger(__name__)

DATA = "data"
_POLL_SECONDS = 0.05
_PROMOTED_WITHIN = 300.0
_STATE = """
    SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text,
        CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END
"""
_LEFT_BECAUSE = re.compile(r"^\s*(\d+)\s+([0-9A-F]+/[0-9A-F]+)\s+(.*)$", re.MULTILINE)
_PLACE = re.compile(r"\b([0-9A-F]{1,8}/[0-9A-F]{1,8})\b")
_FATAL = re.compile(r"^(?:FATAL|PANIC):\s+(.*)$", re.MULTILINE)
_WHY_NO_FURTHER = re.compile(
    r"^LOG:\s+((?:invalid|incorrect|unexpected|out-of-sequence|record with|there is no|could not|WAL file|wal_).*)$",
    re.MULTILINE,
)
_DONE_AT = re.compile(r"^LOG:\s+redo done at ([0-9A-F]+/[0-9A-F]+)", re.MULTILINE)
_UNFINISHED = "recovery ended before configured recovery target was reached"
_COLLATIONS = """
    SELECT datname::text FROM pg_database
    WHERE datallowconn AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)
"""
_EXTENSIONS = """
    SELECT extname::text FROM pg_extension WHERE extname NOT IN (SELECT name FROM pg_available_extensions)
"""

# The server's words, and what a person does about them.
_MENDS = (
    ("No space left on device", "Make room there, or recover to another directory, and start again."),
    ("before consistent recovery point", "Recover from an older base: this one was not finished by then."),
    ("locale is incompatible", "Install the source's locale here (Debian: locales, locale-gen), or recover elsewhere."),
    ("incompatible with server", "Recover with the source's own build of PostgreSQL and on its kind of machine."),
    (
        "resource manager with ID",
        "The log has records that an extension writes itself: they cannot be replayed here.",
    ),
    ("for the tablespace before restarting", "A tablespace was made after the base: recover from a newer one."),
    ("could not create symbolic link", "A tablespace was made after the base: recover from a newer one."),
    ("could not access file", "Install the library that it names, of the source's version, and recover again."),
    ("cannot allocate memory", "Free memory here, or recover on a larger machine."),
)
_MEND = "Do not use what there is. Plan the recovery anew, from another base or with the replica's copy."


class RecoveryStopped(BackupError):
    """A recovery that ended before its target, or elsewhere; nothing was promoted in its place."""


class RecoveryHindered(RecoveryStopped):
    """What ended it is this machine's, and says nothing of the backup."""


@dataclass(frozen=True)
class RecoveredCluster:
    """A server that takes writes, recovered to its target, for as long as its `with` block lasts.

    `login` is a superuser's, in the application's database. `reached` is the end of the last record replayed,
    `timeline` the new one that begins there. `warnings` are what is not here as it was there.
    """

    login: DatabaseLogin
    tools: PostgresTools
    data: Path
    reached: Lsn
    timeline: int
    warnings: tuple[str, ...]
    unpacking_seconds: float
    replay_seconds: float


@contextmanager
def recover(
    base: OpenedBackup,
    archive: WalArchive,
    *,
    wal: Sequence[WalFile | Shipped],
    history: TimelineHistory,
    stop: StopAt,
    directory: Path,
    policy: Pipeline,
    progress: Progress,
    keep: bool = False,
) -> Iterator[RecoveredCluster]:
    """Unpack `base` into `directory/data`, replay `wal` along `history` up to `stop`, and run a server on it.

    `directory` is made if need be, and must hold neither data nor tablespaces. With `keep` the stopped, synced data
    directory (and `directory/tablespaces`) stays, with the configuration that the base had, for somebody to start;
    without it, and after any error, nothing does. Raises `NoRoom` before anything is fetched; `RecoveryStopped`, naming
    the place and the segment; `StreamRefused`, `WalRefused` or `BaseRefused` naming the object; `LogIncomplete`;
    `BackupError`.
    """
    manifest, account = base.manifest, server_account()
    tools = tools_of(manifest.database.server_version // 10_000)
    require_room(directory, manifest, _must_fit(manifest, archive, wal, history))
    began = time.monotonic()
    data = directory / DATA
    if not directory.exists():
        directory.mkdir(parents=True)
        directory.chmod(0o711 if account else 0o700)
    tablespaces = unpack_base(base, data, policy=policy, account=account)
    unpacked = time.monotonic() - began
    finished = False
    try:
        with replayed(
            data,
            archive,
            manifest=manifest,
            wal=wal,
            history=history,
            stop=stop,
            tools=tools,
            account=account,
            policy=policy,
            progress=progress,
            keep=keep,
            unpacking_seconds=unpacked,
        ) as cluster:
            yield cluster
        finished = True
    finally:
        if not (keep and finished):
            for place in (data, *{place.parent for place in tablespaces}):
                shutil.rmtree(place, ignore_errors=True)


@contextmanager
def replayed(
    data: Path,
    archive: WalArchive,
    *,
    manifest: Manifest,
    wal: Sequence[WalFile | Shipped],
    history: TimelineHistory,
    stop: StopAt,
    tools: PostgresTools,
    account: Account | None,
    policy: Pipeline,
    progress: Progress,
    keep: bool = False,
    unpacking_seconds: float = 0.0,
) -> Iterator[RecoveredCluster]:
    """The second half of `recover`, on a base that is unpacked already; it removes nothing of it."""
    control = Control.read(tools, data)
    if control.system_identifier != archive.system_identifier:
        raise RecoveryStopped(
            f"The base is of the cluster {control.system_identifier}, the log of {archive.system_identifier}.",
            mend=_MEND,
        )
    end = _must_fit(manifest, archive, wal, history)
    for signal_file in ("standby.signal", "recovery.signal"):
        (data / signal_file).unlink(missing_ok=True)
    (data / "recovery.signal").touch()
    # A tablespace that was made after the base would be replayed where it was, which may be a living server's: no new
    # link can be made until the end. Those of the base are there already, and PostgreSQL need not make them.
    (data / "tablespace_map").unlink(missing_ok=True)
    (data / "pg_tblspc").chmod(0o500)
    with (
        WalSpool(
            archive,
            [*wal, *(_other_histories(archive, wal) if keep else ())],
            data.with_name(f"{data.name}.wal"),
            segment_bytes=control.segment_bytes,
            policy=policy,
            progress=progress,
            account=account,
        ) as spool,
        PrivateServer(tools, data, data.with_name(f"{data.name}.server"), account=account) as server,
    ):
        recovery = _Recovery(
            server, spool, control=control, history=history, end=end, stop=stop, manifest=manifest, policy=policy
        )
        began = time.monotonic()
        reached, timeline = recovery.run()
        (data / "pg_tblspc").chmod(0o700)
        seconds = time.monotonic() - began
        log.info("Recovered %s to the %s: %s, in %.1f s.", manifest.id, stop, reached, seconds)
        yield RecoveredCluster(
            login=server.login(dbname=manifest.database.name),
            tools=tools,
            data=data,
            reached=reached,
            timeline=timeline,
            warnings=tuple(_what_differs(server)),
            unpacking_seconds=unpacking_seconds,
            replay_seconds=seconds,
        )
        if keep:
            server.stop()
            server.sync()


class _Recovery:
    """One replay, from the first start of the server to its promotion."""

    def __init__(
        self,
        server: PrivateServer,
        spool: WalSpool,
        *,
        control: Control,
        history: TimelineHistory,
        end: Lsn,
        stop: StopAt,
        manifest: Manifest,
        policy: Pipeline,
    ) -> None:
        self._end = end
        self._server, self._spool, self._control = server, spool, control
        self._history, self._stop, self._manifest, self._policy = history, stop, manifest, policy
        self._session: psycopg.Connection[TupleRow] | None = None
        self._replayed: Lsn | None = None
        self._moved = self._told = time.monotonic()
        self._seen: object = None

    def run(self) -> tuple[Lsn, int]:
        """Replay, look, promote, look again. Returns where the log was left, and the timeline that begins there."""
        try:
            self._start()
            while not self._has_stopped():
                time.sleep(_POLL_SECONDS)
            self._promote()
            return self._prove_end()
        finally:
            if self._session is not None:
                self._session.close()

    def _start(self) -> None:
        stop = self._stop
        target = (
            {"recovery_target_name": stop.name}
            if stop.name
            else {"recovery_target_lsn": str(stop.lsn), "recovery_target_inclusive": str(stop.inclusive).lower()}
        )
        self._given = {
            **self._control.settings,
            **target,
            "hot_standby": "on",
            "restore_command": self._spool.command(self._server.data),
            "recovery_target_timeline": str(self._history.timeline),
            "recovery_target_action": "pause",
        }
        self._server.start(self._given)

    def _has_stopped(self) -> bool:
        """Whether replay has come to its end: paused at the target, or promoted by it."""
        if self._server.ended:
            raise self._why_it_ended()
        state = self._state()
        self._watch()
        if state is None:
            return False
        in_recovery, paused = state
        if not in_recovery:  # nobody could have connected before: then PostgreSQL does not pause at its target
            return True
        if not paused:
            return False
        self._control = Control.read(self._server.tools, self._server.data)
        if self._control.outgrows(self._given):
            log.info("The source was given larger limits at %s: the server is started again with them.", self._replayed)
            self._start_again()
            return False
        return self._must_be_at_target()

    def _must_be_at_target(self) -> bool:
        stop, at = self._stop, self._replayed
        named = f'recovery stopping at restore point "{stop.name}"' in self._server.log
        placed = re.search(r"recovery stopping (?:before|after) WAL location", self._server.log) is not None
        elsewhere = (stop.name and stop.lsn is not None and at != stop.lsn) or (
            not stop.name and stop.inclusive and at is not None and stop.lsn is not None and at <= stop.lsn
        )
        if not (named if stop.name else placed) or elsewhere:
            raise self._stopped(f"paused at {at}, which is not its target")
        return True

    def _start_again(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
        self._server.kill()
        (self._server.data / "postmaster.pid").unlink(missing_ok=True)
        self._spool.begin_again()
        self._start()

    def _state(self) -> tuple[bool, bool] | None:
        """Whether it is in recovery, and whether that is paused; None while nobody may ask."""
        import psycopg  # noqa: PLC0415

        if self._session is None:
            self._session = self._server.connect()
            if self._session is None:
                return None
        try:
            row = self._session.execute(_STATE).fetchone()
        except psycopg.Error:
            self._session.close()
            self._session = None
            return None
        assert row is not None  # noqa: S101 - it has no FROM
        in_recovery, replayed, paused = row
        self._replayed = Lsn.parse(replayed) if replayed else self._replayed
        return in_recovery, paused == "paused"

    def _watch(self) -> None:
        """Tell how far it is, and give up when nothing moves any more."""
        now, seen = time.monotonic(), (self._replayed, self._spool.fetched, len(self._server.log))
        if seen != self._seen:
            self._seen, self._moved = seen, now
        if now - self._told >= self._policy.progress_every.total_seconds():
            self._told = now
            log.info("Replayed to %s; %d files of the log fetched.", self._replayed or "…", self._spool.fetched)
        if now - self._moved > self._policy.stall_limit.total_seconds():
            raise self._spool.failure or self._stopped(
                f"did not move for {self._policy.stall_limit.total_seconds():g} s"
            )

    def _promote(self) -> None:
        deadline = time.monotonic() + _PROMOTED_WITHIN
        state = self._state()
        if state is not None and state[0] and self._session is not None:
            # At its target this is what promotes; pg_promote would be noticed only within a second.
            self._session.execute("SELECT pg_wal_replay_resume()")
        while state is None or state[0]:
            if self._server.ended:
                raise self._why_it_ended()
            if time.monotonic() > deadline:
                raise self._stopped(f"reached its target and was not promoted within {_PROMOTED_WITHIN:.0f} s")
            time.sleep(_POLL_SECONDS)
            state = self._state()

    def _prove_end(self) -> tuple[Lsn, int]:
        """What the new timeline's own history says: where the old one was left, and why."""
        timelines = [int(path.stem, 16) for path in (self._server.data / "pg_wal").glob("*.history")]
        timeline = max(timelines, default=0)
        path = self._server.data / "pg_wal" / history_name(timeline)
        left = _LEFT_BECAUSE.findall(path.read_text()) if timeline > self._history.timeline else []
        wanted = f'at restore point "{self._stop.name}"' if self._stop.name else ("before LSN", "after LSN")
        if not left or not left[-1][2].startswith(wanted):
            raise self._stopped("was promoted at no target")
        reached = Lsn.parse(left[-1][1])
        if self._stop.name and self._stop.lsn is not None and reached != self._stop.lsn:
            raise self._stopped(f"ended at {reached}, which is not its target")
        return reached, timeline

    def _why_it_ended(self) -> BackupError:
        """The fetch's own error, if one is why; else what the server said last."""
        said = self._server.log
        fatal = _FATAL.findall(said)
        if self._spool.failure is not None and any("could not restore file" in line for line in fatal):
            return self._spool.failure
        if any(_UNFINISHED in line for line in fatal):
            after = segment_name(self._history.timeline_at(self._end), self._end, self._control.segment_bytes)
            why = _last(_WHY_NO_FURTHER, said) or [f"the plan ends before segment {after}"]
            return self._stopped("came to the end of its log before its target", *why)
        told = fatal[-1:] or [self._server.tail()]
        for words, mend in _MENDS:
            if words.lower() in said.lower():
                return RecoveryHindered(self._stopped("failed", *told).what, mend=mend)
        return self._stopped("failed", *told)

    def _stopped(self, how: str, *said: str) -> RecoveryStopped:
        places = [*_PLACE.findall(" ".join(said)), *_last(_DONE_AT, self._server.log)]
        at = Lsn.parse(places[0]) if places else self._replayed
        where = ""
        if at is not None:
            segment = segment_name(self._history.timeline_at(at), at, self._control.segment_bytes)
            where = f" at {at}, in segment {segment}"
        words = f": {'; '.join(said)}" if said else ""
        return RecoveryStopped(f"Recovery of {self._manifest.id} to the {self._stop} {how}{where}{words}.", mend=_MEND)


def _must_fit(
    manifest: Manifest, archive: WalArchive, wal: Sequence[WalFile | Shipped], history: TimelineHistory
) -> Lsn:
    """Refuse, before anything is fetched, what cannot come to a good end; returns where the log ends."""
    if manifest.base is None or manifest.wal is None:
        raise BackupError(f"{manifest.id} is no snapshot.", mend="Recover from a snapshot: it has the base.")
    if manifest.database.system_identifier != archive.system_identifier:
        raise RecoveryStopped(
            f"{manifest.id} is of the cluster {manifest.database.system_identifier}, "
            f"the log of {archive.system_identifier}.",
            mend=_MEND,
        )
    return prove_row(wal, history, start=manifest.base.start_lsn, segment_bytes=manifest.wal.segment_bytes)


def _other_histories(archive: WalArchive, wal: Sequence[WalFile | Shipped]) -> Iterator[Shipped]:
    """The histories that the plan does not follow: a cluster that goes on must take a timeline that none has had."""
    known = {file.name for file in wal}
    for name, copies in archive.shipped().items():
        if is_history(name) and name not in known:
            yield copies[0]


def _what_differs(server: PrivateServer) -> Iterator[str]:
    """What this machine has not as the source's had."""
    session = server.connect()
    if session is None:
        return
    with session:
        databases = [name for (name,) in session.execute("SELECT datname::text FROM pg_database WHERE datallowconn")]
        for (name,) in session.execute(_COLLATIONS):
            yield f"{name}: its texts were sorted by another version of the collation; REINDEX before relying on it."
    for name in databases:
        with suppress(BackupError), server.login(dbname=name).connect(application_name="synapse-backups") as session:
            for (extension,) in session.execute(_EXTENSIONS):
                yield f"{name}: the extension {extension} is not installed here; what it does fails."


def _last(pattern: re.Pattern[str], said: str) -> list[str]:
    return pattern.findall(said)[-1:]

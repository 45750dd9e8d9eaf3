"""Replication slots: what keeps WAL on the server until it is durable in the bucket; and who may move them.

The **anchor** is never streamed from: the slot that `pg_receivewal` streams through follows its local files, not the
bucket. It moves only when told to (`advance_anchor`). Each try streams through a permanent **copy** of it, named after
the try; a temporary copy would be active for the session that made it. Copies that a dead try left are dropped by the
next one. Whoever moves the anchor or drops copies holds the chain's lock for that purpose.

https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION,
https://www.postgresql.org/docs/current/view-pg-replication-slots.html
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import psycopg
from psycopg import errors

from include.errors import BackupError
from include.repository.lsn import Lsn
from include.sources.postgres.sessions import APPLICATION

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from include.sources.postgres.login import DatabaseLogin

log = logging.getLogger(__name__)

ANCHOR = "synapse_backup_anchor"
Purpose = Literal["window", "stream"]

_LOCKS: dict[Purpose, int] = {"window": 1, "stream": 2}
_LOCK_CLASS = 0x53594E42  # of the two numbers of an advisory lock the first, so that no application uses ours
_RELEASED_WITHIN = 10.0
_END_MS = 2_000

# `invalidation_reason` is there from PostgreSQL 17 on.
_STATE = """
    SELECT restart_lsn::text, wal_status, safe_wal_size, to_jsonb(s) ->> 'invalidation_reason'
    FROM pg_replication_slots AS s WHERE slot_name = %s AND slot_type = 'physical'
"""
_CREATE = "SELECT pg_create_physical_replication_slot(%s, true)"
_COPY = "SELECT pg_copy_physical_replication_slot(%s, %s, false)"
_ADVANCE = "SELECT end_lsn::text FROM pg_replication_slot_advance(%s, %s::pg_lsn)"
_DROP = "SELECT pg_drop_replication_slot(%s)"
_END = """
    SELECT pg_terminate_backend(active_pid, %s) FROM pg_replication_slots
    WHERE slot_name = %s AND active_pid IS NOT NULL
"""
_INACTIVE = """
    SELECT slot_name::text FROM pg_replication_slots WHERE starts_with(slot_name, %s) AND NOT active ORDER BY 1
"""
_HOLDERS = """
    SELECT a.pid, a.application_name FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.classid = %s AND l.objid = %s AND l.objsubid = 2
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class AnchorLost(BackupError):
    """The anchor slot holds no WAL any more, or is not there: what it was to keep may be gone."""


class NoSlotLeft(BackupError):
    """The server has no free replication slot."""


class ChainBusy(BackupError):
    """Somebody else is at work on this chain for the same purpose."""


class ChainLockLost(BackupError):
    """The session that held the chain's lock has ended: somebody else may hold it now."""


@dataclass(frozen=True)
class AnchorState:
    """The anchor as it is now.

    `restart_lsn` is where the WAL begins that it keeps, None when it keeps none. `wal_status` is the server's word:
    reserved, extended, unreserved (to be lost at the next checkpoint) or lost. `safe_wal_size` are the bytes that may
    still be written until it is in danger, None without a limit. `reason` says why it was lost, from PostgreSQL 17 on.
    `made` says that this very call made it.
    """

    restart_lsn: Lsn | None
    wal_status: str
    safe_wal_size: int | None
    reason: str | None = None
    made: bool = False

    @property
    def lost(self) -> bool:
        """Whether the WAL that it was to keep is given up."""
        return self.restart_lsn is None or self.wal_status == "lost"


def find_anchor(session: psycopg.Connection[TupleRow]) -> AnchorState | None:
    """The anchor as it is; None when there is none."""
    row = session.execute(_STATE, [ANCHOR]).fetchone()
    if row is None:
        return None
    restart, status, safe, reason = row
    return AnchorState(Lsn.parse(restart) if restart else None, status or "lost", safe, reason)


def secure_anchor(session: psycopg.Connection[TupleRow]) -> AnchorState:
    """The anchor, made if it is missing: it then keeps the WAL since the last checkpoint. A lost one stays as it is.

    `session` commits by itself (autocommit). Raises `NoSlotLeft`.
    """
    if found := find_anchor(session):
        return found
    made = True
    try:
        session.execute(_CREATE, [ANCHOR])
    except errors.DuplicateObject:
        made = False  # somebody else was faster
    except errors.ConfigurationLimitExceeded:
        raise _none_left(ANCHOR) from None
    state = find_anchor(session)
    if state is None:
        raise AnchorLost(
            f"The slot {ANCHOR} is not a physical one, or was dropped at once.",
            mend="Look at pg_replication_slots, drop what bears this name, and start again.",
        )
    return replace(state, made=made)


def renew_anchor(session: psycopg.Connection[TupleRow]) -> AnchorState:
    """Drop a *lost* anchor and make it again; one that still keeps its WAL is left alone.

    The caller has declared the gap first. Raises `NoSlotLeft`.
    """
    found = find_anchor(session)
    if found and found.lost:
        session.execute(_DROP, [ANCHOR])
    return secure_anchor(session)


def advance_anchor(session: psycopg.Connection[TupleRow], to: Lsn) -> Lsn:
    """Let the server remove the WAL before `to`, which is durable by now; returns where the anchor is then.

    It never moves backwards: that is logged, and nothing is done. Beyond what the server has flushed it does not move
    either. The server writes a move down at its next checkpoint: after a crash the anchor may be back where it was, and
    keeps more than it has to. Raises `AnchorLost`.
    """
    found = find_anchor(session)
    if found is None or found.restart_lsn is None or found.lost:
        raise _lost(found)
    if to <= found.restart_lsn:
        if to < found.restart_lsn:
            log.warning("The anchor stays at %s: %s is behind it.", found.restart_lsn, to)
        return found.restart_lsn
    row = session.execute(_ADVANCE, [ANCHOR, str(to)]).fetchone()
    assert row is not None  # noqa: S101 - a function returns a row
    return Lsn.parse(row[0])


def copy_name(purpose: Purpose, attempt: str) -> str:
    """What a try's copy of the anchor is called."""
    return f"synapse_backup_{purpose}_{attempt}"


@contextmanager
def copied_slot(session: psycopg.Connection[TupleRow], purpose: Purpose, attempt: str) -> Iterator[str]:
    """A permanent copy of the anchor for one try, dropped at the end; yields its name.

    Whatever still streams through it at the end is ended. A copy that cannot be dropped (the server is away) is logged
    and left to the next run's `drop_inactive_copies`. Raises `AnchorLost`, `NoSlotLeft`.
    """
    name = copy_name(purpose, attempt)
    try:
        session.execute(_COPY, [ANCHOR, name])
    except (errors.UndefinedObject, errors.ObjectNotInPrerequisiteState):
        raise _lost(find_anchor(session)) from None
    except errors.ConfigurationLimitExceeded:
        raise _none_left(name) from None
    try:
        yield name
    finally:
        try:
            _drop(session, name)
        except psycopg.Error as error:
            log.warning("The slot %s stays until the next run drops it: %s", name, str(error).strip())


def drop_inactive_copies(session: psycopg.Connection[TupleRow], purpose: Purpose) -> list[str]:
    """Drop the copies that dead tries of this purpose left, and return their names.

    Only under the chain's lock for `purpose`: another living try's copy is inactive until it begins to stream.
    """
    dropped = []
    for (name,) in session.execute(_INACTIVE, [copy_name(purpose, "")]).fetchall():
        try:
            session.execute(_DROP, [name])
        except (errors.UndefinedObject, errors.ObjectInUse) as error:
            log.info("The slot %s was not dropped: %s", name, str(error).strip())
        else:
            dropped.append(name)
    return dropped


@dataclass(frozen=True)
class ChainLock:
    """A lock that is held for as long as its session lives."""

    purpose: Purpose
    session: psycopg.Connection[TupleRow]

    def require(self) -> None:
        """Raise `ChainLockLost` unless it is still held. Call it before what only its holder may do."""
        try:
            self.session.execute("SELECT")
        except psycopg.Error:
            raise ChainLockLost(
                f"The session that held the chain's {self.purpose} lock has ended.",
                mend="Start the run again: what it made durable is found, and not made twice.",
            ) from None


@contextmanager
def chain_lock(
    login: DatabaseLogin, purpose: Purpose, *, wait: timedelta, application_name: str = APPLICATION
) -> Iterator[ChainLock]:
    """Be the only one at work on this cluster's chain for `purpose`, on a session of its own.

    Waits for at most `wait`, with zero not at all; then raises `ChainBusy`, which names the holder. Advisory locks are
    a database's: everybody who is to be kept out uses a login into the same one. The lock ends with its session, which
    both sides notice within a minute when the other vanishes; `ChainLock.require` tells, and so does whatever session
    of the block fails with the server: raises `ChainLockLost`.
    """
    # A server may end sessions that idle; this one's whole work is to idle.
    lasting = replace(
        login,
        options=f"{login.options} -c idle_session_timeout=0 -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10"
        " -c tcp_keepalives_count=3",
    )
    with closing(lasting.connect(application_name=application_name, autocommit=True)) as session:
        if not _locked(session, _LOCKS[purpose], wait):
            raise _busy(session, purpose)
        lock = ChainLock(purpose, session)
        try:
            yield lock
        except psycopg.OperationalError:
            lock.require()  # whichever session met it first: a server that went away is told as what it means
            raise


def _locked(session: psycopg.Connection[TupleRow], lock: int, wait: timedelta) -> bool:
    if not wait:
        row = session.execute("SELECT pg_try_advisory_lock(%s, %s)", [_LOCK_CLASS, lock]).fetchone()
        return bool(row and row[0])
    milliseconds = max(1, round(wait.total_seconds() * 1000))
    session.execute("SELECT set_config('lock_timeout', %s, false)", [str(milliseconds)])
    try:
        session.execute("SELECT pg_advisory_lock(%s, %s)", [_LOCK_CLASS, lock])
    except errors.LockNotAvailable:
        return False
    return True


def _busy(session: psycopg.Connection[TupleRow], purpose: Purpose) -> ChainBusy:
    holders = session.execute(_HOLDERS, [_LOCK_CLASS, _LOCKS[purpose]]).fetchall()
    names = ", ".join(f"{application or 'a session without a name'} (pid {pid})" for pid, application in holders)
    return ChainBusy(
        f"The chain's {purpose} lock is held by {names or 'somebody who has just let it go'}.",
        mend="Wait for it to end; if it hangs, end it on the server: SELECT pg_terminate_backend(pid).",
    )


def _drop(session: psycopg.Connection[TupleRow], name: str) -> None:
    """Drop a slot; a sender that has not noticed its receiver's end yet is ended first."""
    deadline = time.monotonic() + _RELEASED_WITHIN
    while True:
        try:
            session.execute(_DROP, [name])
        except errors.UndefinedObject:
            return
        except errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            session.execute(_END, [_END_MS, name])
        else:
            return


def _lost(found: AnchorState | None) -> AnchorLost:
    if found is None:
        what = f"The slot {ANCHOR} is not there."
    else:
        what = f"The server has given up the WAL of the slot {ANCHOR} ({found.reason or found.wal_status})."
    return AnchorLost(
        what,
        mend="Run a snapshot backup: it declares what is missing and begins again. Then raise max_slot_wal_keep_size "
        "(for idle_timeout: idle_replication_slot_timeout), or find out why no window was backed up for so long.",
    )


def _none_left(name: str) -> NoSlotLeft:
    return NoSlotLeft(
        f"The server has no replication slot left for {name}.",
        mend="Drop slots that nobody uses (pg_replication_slots), or raise max_replication_slots.",
    )

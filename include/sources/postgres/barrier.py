"""The consistency point: one moment across database, files and configuration (R4.3).

Two sessions make it. **S** (the dump login) holds the snapshot that every dump uses; **L** (the barrier login) stops
writes while the moment is noted. The order matters:

1. S lists the relations in a transaction of its own, then begins REPEATABLE READ READ ONLY and takes ACCESS SHARE on
   them: `LOCK TABLE` takes no snapshot, so S's is still to come, and nobody can alter or drop them any more.
2. L takes SHARE on them in one fixed order. Transactions that were writing have ended, no new one can begin to write.
3. L marks a restore point, S takes and exports its snapshot, the caller notes the object store's clock and the
   configuration's commit.
4. L commits: writes flow again. Only now is the point good.

Nothing of this outlives its session: a killed process frees writers as soon as the server sees its socket close, and a
hanging one when L's `idle_in_transaction_session_timeout` ends it.

Not held up, because PostgreSQL cannot lock them: sequences (which are not transactional; what is restored is at least
what was recorded) and large objects as such (the rows that refer to them are).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, LiteralString, TypeVar

import psycopg
from psycopg import errors, sql

from include.errors import BackupError
from include.sources.postgres.blockers import Blocker, LockMode, blockers_of
from include.sources.postgres.server import ServerIdentity, identify

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from include.policy import Barrier
    from include.sources.postgres.login import DatabaseLogin
    from include.sources.postgres.relations import Relation, Relations

    Session = psycopg.Connection[TupleRow]

Observed = TypeVar("Observed")

NAME_BYTES = 63  # of a restore point, and of an application_name (NAMEDATALEN - 1)
_TERMINATION = timedelta(seconds=10)

_BUSY = (errors.LockNotAvailable, errors.DeadlockDetected, errors.QueryCanceled)
_MOVED = (errors.UndefinedTable, errors.InvalidSchemaName, errors.WrongObjectType)


class WritersInTheWay(BackupError):
    """The barrier could not have its locks in any of its tries; `blockers` are those of the last one."""

    def __init__(self, what: str, *, mend: str, blockers: Sequence[Blocker] = ()) -> None:
        super().__init__(what, mend=mend)
        self.blockers = tuple(blockers)


class PointVoid(BackupError):
    """The moment was lost: writes may have passed before everything was noted. Nothing is locked any more."""


class WritesStillStopped(BackupError):
    """A session of the backup holds writers up and cannot be ended."""


@dataclass(frozen=True)
class ConsistencyPoint(Generic[Observed]):
    """One moment, and the session that still sees it.

    `snapshot` is for `pg_dump --snapshot`, valid while `session` (S) is open. `lsn` and `restore_point` name the moment
    in the WAL. `time` is the server's clock, aware, in UTC. `waited` and `held` are seconds: how long L queued for its
    locks (new writers queue behind it) and how long it had them; together they are the write stop. `observations` is
    what `while_stopped` returned, `relations` what was locked: plan the dumps from it. `tries` counts from 1.
    """

    snapshot: str
    lsn: str
    restore_point: str
    time: datetime
    waited: float
    held: float
    tries: int
    observations: Observed
    relations: Relations
    server: ServerIdentity
    session: Session

    @property
    def stopped(self) -> float:
        """The longest that a writer can have waited, in seconds."""
        return self.waited + self.held


@dataclass(frozen=True)
class Released:
    """A session that `release_writes` ended."""

    pid: int
    application: str
    tables: tuple[str, ...]


class _TryAgain(Exception):
    """This try came to nothing, another may not."""

    def __init__(self, reason: str, blockers: Sequence[Blocker] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.blockers = tuple(blockers)


@contextmanager
def hold_consistency_point(
    barrier_login: DatabaseLogin,
    dump_login: DatabaseLogin,
    *,
    name: str,
    relations: Callable[[Session], Relations],
    policy: Barrier,
    while_stopped: Callable[[], Observed],
) -> Iterator[ConsistencyPoint[Observed]]:
    """Stop writes, note the moment, let writes go, and keep the moment's snapshot open until the block ends.

    `name` is `<backup id>.<attempt>`; the restore point carries it, and on a later try `<name>.<try>`, because recovery
    stops at the first of two points of one name. `relations` lists what is to be locked on a session given to it
    (`list_relations`); it is asked twice, and a point between whose two lists something changed is void.
    `while_stopped` is called once in each try while writes are stopped and must be quick: the server ends the barrier
    after `policy.idle_timeout`. What it raises is raised, with nothing locked any more.

    Raises `WritersInTheWay` after `policy.tries` tries, `PointVoid` when the barrier was ended before its time,
    `DatabaseUnreachable` when a session cannot be had, and `BackupError` when the server refuses for another reason.
    """
    barrier = _Barrier(barrier_login, dump_login, name, relations, policy, while_stopped)
    with ExitStack() as sessions:
        yield barrier.reach(sessions)


@dataclass(frozen=True)
class _Barrier(Generic[Observed]):
    """What `hold_consistency_point` was asked for."""

    barrier_login: DatabaseLogin
    dump_login: DatabaseLogin
    name: str
    relations: Callable[[Session], Relations]
    policy: Barrier
    while_stopped: Callable[[], Observed]

    def __post_init__(self) -> None:
        longest = max(f"{self.name}.L", self._restore_point(self.policy.tries), key=len)
        if len(longest.encode()) > NAME_BYTES:
            raise BackupError(
                f"{longest} has {len(longest.encode())} bytes; a restore point's name has {NAME_BYTES} at most.",
                mend="Name the attempt with fewer characters.",
            )

    def reach(self, sessions: ExitStack) -> ConsistencyPoint[Observed]:
        """Try until there is a point; S then belongs to `sessions`."""
        for number in range(1, self.policy.tries + 1):
            try:
                with ExitStack() as of_this_try:
                    point = self._try(of_this_try, number)
                    sessions.push(of_this_try.pop_all())
                    return point
            except _TryAgain as failed:
                if number == self.policy.tries:
                    raise _given_up(failed, number) from None
            time.sleep(_pause(self.policy, number))
        raise AssertionError("a policy has one try at least")

    def _try(self, sessions: ExitStack, number: int) -> ConsistencyPoint[Observed]:
        """One try, on sessions of its own: L is closed when it returns, S is left to `sessions`."""
        s = sessions.enter_context(closing(_session(self.dump_login, f"{self.name}.S", _settings_of_s(self.policy))))
        with _refusals(), _session(self.barrier_login, f"{self.name}.L", _settings_of_l(self.policy, s)) as l_:
            server = _same_server(s, l_)
            listed = self.relations(s)
            _begin_and_lock(s, "ISOLATION LEVEL REPEATABLE READ READ ONLY", listed.lockable, "ACCESS SHARE", witness=l_)
            waited = _begin_and_lock(
                l_, "ISOLATION LEVEL READ COMMITTED READ ONLY", listed.lockable, "SHARE", witness=l_
            )
            locked_at = time.monotonic()
            restore_point = self._restore_point(number)
            lsn, moment = _row(l_, "SELECT pg_create_restore_point(%s)::text, clock_timestamp()", restore_point)
            (snapshot,) = _row(s, "SELECT pg_export_snapshot()")
            observations = self.while_stopped()
            _commit(l_)
            held = time.monotonic() - locked_at
            _assert_unchanged(listed, self.relations(s))
            _set_free(s)
        return ConsistencyPoint(
            snapshot=snapshot,
            lsn=lsn,
            restore_point=restore_point,
            time=moment.astimezone(UTC),
            waited=waited,
            held=held,
            tries=number,
            observations=observations,
            relations=listed,
            server=server,
            session=s,
        )

    def _restore_point(self, number: int) -> str:
        return self.name if number == 1 else f"{self.name}.{number}"


def _pause(policy: Barrier, number: int) -> float:
    """Seconds before the next try: exponential, and never in step with another backup's."""
    return policy.backoff.total_seconds() * 2.0 ** (number - 1) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret


def _given_up(failed: _TryAgain, tries: int) -> WritersInTheWay:
    named = "; ".join(map(str, failed.blockers[:3]))
    mend = failed.blockers[0].mend if failed.blockers else "Try again when the database is quieter."
    return WritersInTheWay(
        f"Writes could not be stopped in {tries} tries: {failed.reason}." + (f" {named}." if named else ""),
        mend=mend,
        blockers=failed.blockers,
    )


_CONFIGURE = """
    SELECT set_config(name, wanted.value, false)
    FROM pg_settings JOIN unnest(%s::text[], %s::text[]) AS wanted (name, value) USING (name)
"""


def _session(login: DatabaseLogin, application_name: str, settings: dict[str, str]) -> Session:
    """A session in autocommit: transactions are begun and ended by name, so that their order can be read.

    Settings that this server's version does not know are passed over.
    """
    session = login.connect(application_name=application_name, autocommit=True)
    try:
        session.execute(_CONFIGURE, (list(settings), list(settings.values())))
    except psycopg.Error as error:
        session.close()
        raise _refused(error) from error
    return session


_WATCHED = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "60s",
    "client_connection_check_interval": "5s",
}
"""A client that vanished is missed by the server itself, in a minute though it sent no FIN, and within a statement too:
otherwise its locks and its snapshot would stay (https://www.postgresql.org/docs/current/runtime-config-connection.html)."""


def _settings_of_s(policy: Barrier) -> dict[str, str]:
    """Bounded while writes are stopped."""
    return {
        **_WATCHED,
        "TimeZone": "UTC",
        "lock_timeout": _milliseconds(policy.lock_timeout),
        "statement_timeout": _milliseconds(policy.statement_timeout),
        "idle_in_transaction_session_timeout": "0",
        "transaction_timeout": "0",  # PostgreSQL 17 and later
    }


def _set_free(s: Session) -> None:
    """S stays open for hours, and a digest may take one; a lock that it lacks (a sequence's) may take a while."""
    s.execute("SET LOCAL statement_timeout = 0")
    s.execute("SET LOCAL lock_timeout = '1min'")


@contextmanager
def session_beside(point: ConsistencyPoint[Any], login: DatabaseLogin, *, application_name: str) -> Iterator[Session]:
    """Another session that sees what the point's own sees, and may take as long: a digest takes an hour at times."""
    unbounded = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
    settings = {**_WATCHED, "TimeZone": "UTC", "lock_timeout": "1min", **dict.fromkeys(unbounded, "0")}
    session = _session(login, application_name, settings)
    with closing(session):
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        session.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(point.snapshot)))
        yield session


def _settings_of_l(policy: Barrier, s: Session) -> dict[str, str]:
    """The deadlock check comes first, so that L and not the application is its victim, and autovacuum gives way.

    L checks once for each lock that it waits for. A deadlock that closes later is checked for by the application's
    session, after its `deadlock_timeout`: by then L, which has waited for longer, must have given up.
    """
    (milliseconds,) = _row(s, "SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout'")
    lock_timeout = min(policy.lock_timeout, timedelta(milliseconds=milliseconds))
    return {
        **_WATCHED,
        "TimeZone": "UTC",
        "deadlock_timeout": _milliseconds(policy.deadlock_timeout),
        "lock_timeout": _milliseconds(lock_timeout),  # of each table; statement_timeout bounds them all
        "statement_timeout": _milliseconds(policy.statement_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(policy.idle_timeout),
    }


def _milliseconds(duration: timedelta) -> str:
    return str(max(1, round(duration.total_seconds() * 1000)))


def _same_server(snapshotter: Session, locker: Session) -> ServerIdentity:
    """Two connections that were set up apart must mean one database, or the lock protects nothing."""
    server, other = identify(snapshotter), identify(locker)
    if server != other:
        raise BackupError(
            f"The dump connection reaches {server}, the barrier connection {other}.",
            mend="Point both connections at the same database of the same server.",
        )
    return server


def _begin_and_lock(
    session: Session, begin: LiteralString, tables: Sequence[Relation], mode: LockMode, *, witness: Session
) -> float:
    """Begin a transaction of that kind and lock; the seconds that the locks took.

    Raises `_TryAgain` with the blockers named, as `witness` sees them (only L's login sees strangers' queries).
    """
    session.execute(sql.SQL("BEGIN {}").format(sql.SQL(begin)))
    started = time.monotonic()
    try:
        if tables:
            session.execute(_lock_statement(tables, mode))
    except _BUSY as error:
        session.execute("ROLLBACK")
        reason = f"{mode} on {len(tables)} tables was not to be had ({_said(error)})"
        raise _TryAgain(reason, blockers_of(witness, tables, mode=mode)) from error
    except _MOVED as error:
        raise _TryAgain(f"the database changed while it was being locked ({_said(error)})") from error
    return time.monotonic() - started


def _lock_statement(tables: Sequence[Relation], mode: LockMode) -> sql.Composed:
    """One statement for all tables; ONLY, because children are in the list themselves."""
    names = sql.SQL(", ").join(sql.SQL("ONLY {}").format(sql.Identifier(table.schema, table.name)) for table in tables)
    return sql.SQL("LOCK TABLE {} IN {} MODE").format(names, sql.SQL(mode))


def _row(session: Session, query: str, *parameters: object) -> tuple[Any, ...]:
    row = session.execute(query, parameters).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    return row


def _commit(locker: Session) -> None:
    try:
        locker.execute("COMMIT")
    except psycopg.Error as error:
        raise PointVoid(
            f"The write barrier was ended before its time, so this consistency point is void: {_said(error)}.",
            mend="Nothing is locked. Look in the server's log for who ended it, and run the backup again.",
        ) from error


def _assert_unchanged(locked: Relations, seen: Relations) -> None:
    if locked != seen:
        changed = ", ".join(locked.difference(seen)[:3])
        raise _TryAgain(f"the list of tables changed while it was being locked ({changed})")


@contextmanager
def _refusals() -> Iterator[None]:
    """What the server refuses, as an error that a person can act on."""
    try:
        yield
    except psycopg.Error as error:
        raise _refused(error) from error


def _refused(error: psycopg.Error) -> BackupError:
    if isinstance(error, errors.InsufficientPrivilege):
        mend = "Run include/sources/postgres/grants.sql as a superuser in this database."
    elif isinstance(error, errors.OutOfMemory):
        mend = "Raise max_locks_per_transaction on the server and restart it."
    elif isinstance(error, errors.ObjectNotInPrerequisiteState):
        mend = "Connect to the primary, and set wal_level to replica or logical on it."
    else:
        mend = "Look into the server's log, and run the backup again."
    return BackupError(f"The consistency point could not be made: {_said(error)}.", mend=mend)


def _said(error: psycopg.Error) -> str:
    return (error.diag.message_primary or " ".join(str(error).split()) or type(error).__name__).rstrip(".")


_HOLDERS = """
    SELECT holder.pid, holder.application_name, holder.tables
        {terminate}
    FROM (
        SELECT activity.pid, activity.application_name,
            array_agg(DISTINCT held.relation::regclass::text) AS tables
        FROM pg_stat_activity AS activity JOIN pg_locks AS held ON held.pid = activity.pid
        WHERE starts_with(activity.application_name, %(prefix)s)
            AND held.locktype = 'relation'
            AND held.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
            AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND activity.pid <> pg_backend_pid()
        GROUP BY activity.pid, activity.application_name
    ) AS holder
    ORDER BY holder.pid
"""
_FIND_HOLDERS = _HOLDERS.format(terminate="")
_END_HOLDERS = _HOLDERS.format(terminate=", pg_terminate_backend(holder.pid, %(milliseconds)s)")


def release_writes(barrier_login: DatabaseLogin, backup_id: str) -> list[Released]:
    """Prove that no session of `backup_id` stops writes any more; end those that do, and return them (R4.3, teardown).

    A session is the backup's when its application_name begins with `<backup id>.`; one that only waits for such a lock
    counts, since writers queue behind it. Raises `WritesStillStopped` when one cannot be ended.
    """
    with barrier_login.connect(application_name="resume_writes", autocommit=True) as session:
        parameters = {"prefix": f"{backup_id}.", "milliseconds": int(_TERMINATION.total_seconds() * 1000)}
        try:
            rows = session.execute(_END_HOLDERS, parameters).fetchall()
        except errors.InsufficientPrivilege as error:
            raise _still_stopped(session, parameters, _said(error)) from error
        if session.execute(_FIND_HOLDERS, parameters).fetchone():
            raise _still_stopped(session, parameters, f"not ended in {_TERMINATION.total_seconds():.0f} s")
        return [Released(pid, application, tuple(tables)) for pid, application, tables, _ in rows]


def _still_stopped(session: Session, parameters: dict[str, object], reason: str) -> WritesStillStopped:
    holders = session.execute(_FIND_HOLDERS, parameters).fetchall()
    pids = ", ".join(f"{pid} ({application})" for pid, application, _ in holders)
    return WritesStillStopped(
        f"Writes are stopped by process {pids or 'unknown'}: {reason}.",
        mend="End it as a superuser: SELECT pg_terminate_backend(pid).",
    )

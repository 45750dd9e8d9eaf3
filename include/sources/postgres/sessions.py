"""The sessions of backup runs, as the server sees them: `<backup id>.<attempt>.` and S, L or D.

Any login sees their names; what they do, only a login of the same role, one with `pg_monitor`, or a superuser
(https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from psycopg import errors

from include.errors import BackupError

if TYPE_CHECKING:
    from include.sources.postgres.login import DatabaseLogin

APPLICATION = "synapse-backups"
_TERMINATION_MS = 10_000

_FIND = r"""
    SELECT pid, application_name, usename::text, state, backend_start, state_change
    FROM pg_stat_activity
    WHERE application_name ~ '^[a-z]+-(manual-)?[0-9]{8}T[0-9]{6}(\.[0-9]{6})?Z\.[0-9a-f]{16}\.[SLD]$'
        AND pid <> pg_backend_pid()
    ORDER BY pid
"""
_END = """
    SELECT pg_terminate_backend(pid, %(milliseconds)s) FROM pg_stat_activity
    WHERE pid = %(pid)s AND application_name = %(application)s
        AND backend_start IS NOT DISTINCT FROM %(started)s
        AND (%(idle_since)s::timestamptz IS NULL OR (state <> 'active' AND state_change = %(idle_since)s))
"""


class SessionNotEnded(BackupError):
    """A session that this login may not end, or that did not end."""


@dataclass(frozen=True)
class RunSession:
    """One session of one try. `state`, `started` and `since` (of the state) are None where this login may not see."""

    pid: int
    application: str
    role: str
    state: str | None
    started: datetime | None
    since: datetime | None

    @property
    def backup(self) -> str:
        """The backup's id."""
        return self.application[: -len(".0123456789abcdef.S")]

    @property
    def attempt(self) -> str:
        """The attempt."""
        return self.application.split(".")[-2]


def run_sessions(login: DatabaseLogin) -> list[RunSession]:
    """Every session of every try on that server, whichever database it is in; raises `DatabaseUnreachable`."""
    with login.connect(application_name=APPLICATION, autocommit=True) as session:
        return [
            RunSession(
                pid, application, role, state, started and started.astimezone(UTC), since and since.astimezone(UTC)
            )
            for pid, application, role, state, started, since in session.execute(_FIND)
        ]


def end_session(login: DatabaseLogin, ended: RunSession, *, idle_since: datetime | None = None) -> bool:
    """End it if it is still the one that was found, and with `idle_since` only if it has done nothing since then.

    Returns whether there was anything to end. Raises `SessionNotEnded`.
    """
    parameters = {
        "pid": ended.pid,
        "application": ended.application,
        "started": ended.started,
        "idle_since": idle_since,
        "milliseconds": _TERMINATION_MS,
    }
    with login.connect(application_name=APPLICATION, autocommit=True) as session:
        try:
            row = session.execute(_END, parameters).fetchone()
        except errors.InsufficientPrivilege:
            raise SessionNotEnded(
                f"{login.user} may not end {ended.application} (pid {ended.pid}) of {ended.role}.",
                mend=f"As a superuser: SELECT pg_terminate_backend({ended.pid}).",
            ) from None
    if row is not None and not row[0]:
        raise SessionNotEnded(
            f"{ended.application} (pid {ended.pid}) did not end in {_TERMINATION_MS // 1000} s.",
            mend="Look at what it waits for; the next run tries again.",
        )
    return row is not None

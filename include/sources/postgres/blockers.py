"""Who is in the way of the write barrier, by name.

From `pg_locks`, `pg_stat_activity` and `pg_prepared_xacts`
(https://www.postgresql.org/docs/current/view-pg-locks.html). A login without `pg_monitor` sees a stranger's pid and
application, "<insufficient privilege>" for the query, and no age: ask on the barrier's login, which has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    from include.sources.postgres.login import DatabaseLogin
    from include.sources.postgres.relations import Relation

LockMode = Literal["SHARE", "ACCESS SHARE"]

_QUERY_CHARACTERS = 120  # enough to recognise a statement, too little to carry its data into a log

# https://www.postgresql.org/docs/current/explicit-locking.html, table 13.2
_CONFLICTS: dict[LockMode, list[str]] = {
    "SHARE": [
        "RowExclusiveLock",
        "ShareUpdateExclusiveLock",
        "ShareRowExclusiveLock",
        "ExclusiveLock",
        "AccessExclusiveLock",
    ],
    "ACCESS SHARE": ["AccessExclusiveLock"],
}

# A transaction that only waits for such a lock is in the way too: later requests queue behind it. A prepared
# transaction has no process: its locks are told apart by their virtual transaction, which also locks its own id.
# Ordinary autovacuum gives way when it is waited for; one that prevents wraparound does not.
_FIND = """
    SELECT coalesce(held.pid, 0), prepared.gid,
        coalesce(activity.usename, prepared.owner, '')::text,
        coalesce(nullif(activity.application_name, ''), activity.backend_type, ''),
        coalesce(activity.state, ''),
        coalesce(statement_timestamp() - coalesce(activity.xact_start, prepared.prepared), '0'),
        coalesce(activity.query, ''),
        array_agg(DISTINCT held.relation::bigint),
        CASE WHEN bool_and(held.granted) OR held.pid IS NULL THEN '{}' ELSE pg_blocking_pids(held.pid) END
    FROM pg_locks AS held
    LEFT JOIN pg_stat_activity AS activity ON activity.pid = held.pid
    LEFT JOIN (
        SELECT own.virtualtransaction, xact.*
        FROM pg_prepared_xacts AS xact JOIN pg_locks AS own ON own.pid IS NULL
            AND own.locktype = 'transactionid' AND own.transactionid = xact.transaction
    ) AS prepared ON held.pid IS NULL AND held.virtualtransaction = prepared.virtualtransaction
    WHERE held.locktype = 'relation'
        AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND held.relation = ANY (%(relations)s::oid[])
        AND held.mode = ANY (%(modes)s::text[])
        AND held.pid IS DISTINCT FROM pg_backend_pid()
        AND NOT (
            coalesce(activity.backend_type = 'autovacuum worker', false)
            AND activity.query NOT LIKE '%%(to prevent wraparound)'
        )
    GROUP BY held.pid, prepared.gid, prepared.owner, prepared.prepared, activity.usename, activity.application_name,
        activity.backend_type, activity.state, activity.xact_start, activity.query
    HAVING %(longer_than)s = interval '0'
        OR statement_timestamp() - coalesce(activity.xact_start, prepared.prepared) >= %(longer_than)s
    ORDER BY 6 DESC
"""


@dataclass(frozen=True)
class Blocker:
    """One transaction that the barrier would have to wait for.

    `pid` is 0 for a prepared transaction, which `gid` then names. `age` is the transaction's, `query` its latest
    statement, cut short. `waits_for` are the pids that it waits for itself.
    """

    pid: int
    user: str
    application: str
    state: str
    age: timedelta
    query: str
    tables: tuple[str, ...]
    gid: str | None = None
    waits_for: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self._who()} has been in a transaction for {_seconds(self.age)} with {self._tables()}{self._does()}"

    @property
    def mend(self) -> str:
        """What a person does about this one."""
        if self.gid is not None:
            return f"Decide it: COMMIT PREPARED or ROLLBACK PREPARED '{self.gid}'."
        if "(to prevent wraparound)" in self.query:
            return "Let this vacuum finish: it does not give way, and the database needs it."
        return f"Wait for it, or end it: SELECT pg_terminate_backend({self.pid})."

    def _who(self) -> str:
        if self.gid is not None:
            return f"Prepared transaction '{self.gid}' of {self.user} (pid 0)"
        return f"Process {self.pid} ({', '.join(filter(None, (self.application, self.user)))})"

    def _tables(self) -> str:
        named = ", ".join(self.tables[:3])
        return named if len(self.tables) <= 3 else f"{named} and {len(self.tables) - 3} more"  # noqa: PLR2004

    def _does(self) -> str:
        state = f", {self.state}" if self.state else ""
        waits = f", waiting for {', '.join(map(str, self.waits_for))}" if self.waits_for else ""
        return f"{state}{waits}: {self.query}" if self.query else f"{state}{waits}"


def find_blockers(login: DatabaseLogin, relations: Iterable[Relation], longer_than: timedelta) -> list[Blocker]:
    """The transactions older than `longer_than` that the barrier would wait for, oldest first (R4.3, `stop_writes`).

    `relations` are those that the barrier locks (`Relations.lockable`).
    """
    with login.connect(application_name="stop_writes", autocommit=True) as session:
        return blockers_of(session, tuple(relations), longer_than=longer_than)


def blockers_of(
    session: psycopg.Connection[TupleRow],
    relations: Sequence[Relation],
    *,
    mode: LockMode = "SHARE",
    longer_than: timedelta = timedelta(0),
) -> list[Blocker]:
    """What stands in the way of locking `relations` in `mode`, oldest first; asked on `session`."""
    names = {relation.oid: str(relation) for relation in relations}
    parameters = {"relations": list(names), "modes": _CONFLICTS[mode], "longer_than": longer_than}
    rows = session.execute(_FIND, parameters).fetchall()
    return [
        Blocker(
            pid=pid,
            user=user,
            application=application,
            state=state,
            age=age,
            query=_shortened(query),
            tables=tuple(sorted(names[oid] for oid in oids)),
            gid=gid,
            waits_for=tuple(waits_for),
        )
        for pid, gid, user, application, state, age, query, oids, waits_for in rows
    ]


def _shortened(query: str) -> str:
    """The query on one line, its end cut off; the end of an autovacuum's says whether it gives way."""
    line = " ".join(query.split())
    if len(line) <= _QUERY_CHARACTERS or line.endswith("(to prevent wraparound)"):
        return line
    return line[: _QUERY_CHARACTERS - 1] + "…"


def _seconds(age: timedelta) -> str:
    return f"{age.total_seconds():.1f} s"

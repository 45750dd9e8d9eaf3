"""The database's logins: whether each reaches the server, may do what it must, and no more; and its settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import sql

from include.backup.checks.check import Facts, NotReady, Remark, demand, remark
from include.policy import Policy
from include.sources.postgres.relations import list_relations
from include.sources.postgres.server import identify
from include.sources.postgres.tools import find_tools

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    from include.sources.postgres.login import DatabaseLogin

GRANTS = "include/sources/postgres/grants.sql"
OLDEST, NEWEST = 15, 18
"""The versions of PostgreSQL that are supported."""
_SLOTS = 4  # the anchor; a copy each for a snapshot, an increment and the stream
_SENDERS = 4  # a base backup, and those three's pg_receivewal but the anchor's
_OTHER_SESSIONS = 4  # the barrier's, the snapshot's, the one that names blockers, pg_dumpall's

# Application relations, as `relations.py` lists them, that the session's user lacks a privilege on.
_LACKING = """
    (
        SELECT count(*)::int FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind IN ({kinds}) AND pg_catalog.left(n.nspname, 3) <> 'pg_' AND n.nspname <> 'information_schema'
            AND NOT (has_schema_privilege(n.oid, 'USAGE') AND {held})
    )
"""
_TABLES, _RELATIONS = "'r', 'p'", "'r', 'p', 'S', 'm', 'f'"
_LOCKS = "has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE')"
_READS = (
    "CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT') ELSE has_table_privilege(c.oid, 'SELECT') END"
)
_ATTRIBUTE = "(SELECT {} OR rolsuper FROM pg_roles WHERE rolname = current_user)"


@dataclass(frozen=True)
class Privilege:
    """What a login must be allowed: why, an SQL expression that says whether it is, and what grants it.

    Without an `essential` one no backup can be made; without another, something is missing beside it.
    """

    why: str
    held: LiteralString
    grant: LiteralString
    essential: bool = True


BARRIER = (
    Privilege(
        "stop writes on every table",
        f"{_LACKING.format(kinds=_TABLES, held=_LOCKS)} = 0",
        "GRANT pg_write_all_data TO {}",
    ),
    Privilege(
        "mark the moment in the WAL",
        "has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'EXECUTE')",
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO {}",
    ),
    Privilege(
        "give way in a deadlock before the application does",
        "has_parameter_privilege('deadlock_timeout', 'SET')",
        "GRANT SET ON PARAMETER deadlock_timeout TO {}",
    ),
    Privilege(
        "name who is in the way",
        "pg_has_role('pg_read_all_stats', 'USAGE')",
        "GRANT pg_monitor TO {}",
        essential=False,
    ),
    Privilege(
        "end a segment of the WAL",
        "has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE')",
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO {}",
        essential=False,
    ),
)
DUMP = (
    Privilege(
        "read every table and sequence",
        f"{_LACKING.format(kinds=_RELATIONS, held=_READS)} = 0",
        "GRANT pg_read_all_data TO {}",
    ),
    Privilege(
        "read the roles with their passwords",
        "has_table_privilege('pg_catalog.pg_authid', 'SELECT')",
        "GRANT pg_read_all_data TO {}",
    ),
    Privilege(
        "see the rows that row-level security hides", _ATTRIBUTE.format("rolbypassrls"), "ALTER ROLE {} BYPASSRLS"
    ),
    Privilege(
        "read every large object",
        "current_setting('lo_compat_privileges')::bool OR NOT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)"
        " OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)",
        "ALTER ROLE {} SET lo_compat_privileges = on",
    ),
    Privilege(
        "record every setting of the server",
        "pg_has_role('pg_read_all_settings', 'USAGE')",
        "GRANT pg_read_all_settings TO {}",
        essential=False,
    ),
    Privilege(
        "record who is let in (pg_hba.conf)",
        "has_function_privilege('pg_catalog.pg_hba_file_rules()', 'EXECUTE')",
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_hba_file_rules() TO {}",
        essential=False,
    ),
    Privilege(
        "record what postgresql.conf says",
        "has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')",
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_show_all_file_settings() TO {}",
        essential=False,
    ),
    Privilege(
        "record who may call himself what (pg_ident.conf)",
        "has_function_privilege('pg_catalog.pg_ident_file_mappings()', 'EXECUTE')",
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_ident_file_mappings() TO {}",
        essential=False,
    ),
)
REPLICATION = (
    Privilege("stream base backups and the log", _ATTRIBUTE.format("rolreplication"), "ALTER ROLE {} REPLICATION"),
)
SCRATCH = (
    Privilege("make databases to restore samples into", _ATTRIBUTE.format("rolcreatedb"), "ALTER ROLE {} CREATEDB"),
)
RESTORE = (
    Privilege(
        "bring roles, tablespaces and the database back",
        "(SELECT rolsuper FROM pg_roles WHERE rolname = current_user)",
        "ALTER ROLE {} SUPERUSER",
    ),
)

_MONITOR = frozenset({"pg_monitor", "pg_read_all_settings", "pg_read_all_stats", "pg_stat_scan_tables"})


@dataclass(frozen=True)
class Most:
    """The most that a login ought to have: attributes and memberships; and whether its sessions begin read-only."""

    attributes: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    read_only: bool = True


AT_MOST = {
    "barrier": Most(roles=_MONITOR | {"pg_write_all_data"}),
    "dump": Most(attributes=frozenset({"rolbypassrls"}), roles=frozenset({"pg_read_all_data", "pg_read_all_settings"})),
    "replication": Most(attributes=frozenset({"rolreplication"}), read_only=False),
    "scratch": Most(attributes=frozenset({"rolcreatedb"}), read_only=False),
}

_BEYOND = """
    SELECT rolsuper, ARRAY(
            SELECT attribute FROM (VALUES
                ('rolcreatedb', rolcreatedb), ('rolcreaterole', rolcreaterole),
                ('rolreplication', rolreplication), ('rolbypassrls', rolbypassrls)
            ) AS attributes (attribute, has) WHERE has
        ),
        ARRAY(SELECT rolname::text FROM pg_roles WHERE pg_has_role(me.oid, oid, 'MEMBER') AND oid <> me.oid),
        ARRAY(
            SELECT c.oid::regclass::text FROM pg_catalog.pg_class AS c
            WHERE c.relkind IN ('r', 'p', 'S', 'v', 'm', 'f') AND (c.relowner = me.oid OR EXISTS (
                SELECT FROM aclexplode(c.relacl) AS granted WHERE granted.grantee = me.oid
            )) ORDER BY 1
        ),
        current_setting('default_transaction_read_only')::bool
    FROM pg_roles AS me WHERE rolname = current_user
"""
_SETTINGS = """
    SELECT current_setting('wal_level'),
        current_setting('max_locks_per_transaction')::int
            * (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int),
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true)::int, 0)
            - (SELECT sum(numbackends)::int FROM pg_stat_database WHERE datid <> 0)
"""
# Ours count as free: they are what is asked for. Not everybody sees who is connected, and everybody sees how many.
_ROOM = """
    SELECT current_setting('wal_level'),
        current_setting('max_replication_slots')::int
            - (SELECT count(*)::int FROM pg_replication_slots WHERE NOT starts_with(slot_name, 'synapse_backup_')),
        current_setting('max_wal_senders')::int
            - (SELECT count(*)::int FROM pg_stat_replication WHERE usesysid <> current_user::regrole),
        (SELECT setting::int FROM pg_settings WHERE name = 'max_slot_wal_keep_size')
"""
_TIMEOUTS = """
    SELECT name, setting FROM pg_settings
    WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout') AND setting <> '0'
    ORDER BY name
"""


def reach(login: DatabaseLogin) -> Facts:
    """Whether the login reaches a primary of a version that is supported (R4.2)."""
    with _session(login) as session:
        server = identify(session)
    demand(
        server.major >= OLDEST,
        f"{login} is PostgreSQL {server.version_text}, and {OLDEST} is the oldest that is supported.",
        mend="Upgrade the server.",
    )
    remark(
        server.major > NEWEST,
        f"{login} is PostgreSQL {server.version_text}, and {NEWEST} is the newest that was tried.",
        mend="Restore a sample before you rely on it.",
    )
    return {"server": server.version_text, "system": server.system_identifier, "database": server.database}


def same_database(barrier: DatabaseLogin, dump: DatabaseLogin) -> Facts:
    """Whether both logins mean one database of one server: the lock would protect nothing otherwise (R4.2)."""
    with _session(barrier) as one, _session(dump) as other:
        demand(
            identify(one) == identify(other),
            f"The barrier login ({barrier}) and the dump login ({dump}) reach different databases.",
            mend="Point both connections at the same database of the same server.",
        )
    return {}


def tools(login: DatabaseLogin) -> Facts:
    """Whether PostgreSQL's tools are here, at the server's major version or newer (R4.2)."""
    with _session(login) as session:
        found = find_tools(identify(session).major)
    return {"tools": found.major, "directory": str(found.directory)}


def privileges(login: DatabaseLogin, needed: tuple[Privilege, ...]) -> Facts:
    """Whether the login may do all that it must (R4.1); what it lacks is told together, with what grants it."""
    with _session(login) as session:
        expressions = sql.SQL(", ").join(sql.SQL(each.held) for each in needed)
        held = _row(session, sql.SQL("SELECT {}").format(expressions))
        lacking = [each for each, has in zip(needed, held, strict=True) if not has]
        grants = dict.fromkeys(
            sql.SQL(each.grant).format(sql.Identifier(login.user)).as_string(session) for each in lacking
        )
    if lacking:
        kind = NotReady if any(each.essential for each in lacking) else Remark
        raise kind(
            f"{login} may not {'; nor '.join(each.why for each in lacking)}.",
            mend=f"As a superuser, in that database: {'; '.join(grants)}. {GRANTS} has it all.",
        )
    return {"privileges": len(needed)}


def no_more(login: DatabaseLogin, most: Most) -> Facts:
    """Whether the login has nothing beyond what it needs (R7.3); whatever is too much stops no backup."""
    with _session(login) as session:
        superuser, attributes, roles, relations, read_only = _row(session, _BEYOND)
    if superuser:
        raise Remark(
            f"{login} is a superuser: whoever has its password has everything.",
            mend=f"Use the login that {GRANTS} makes.",
        )
    beyond = [
        *(attribute.removeprefix("rol").upper() for attribute in sorted(set(attributes) - most.attributes)),
        *(f"membership in {role}" for role in sorted(set(roles) - most.roles)),
        *([f"rights on {', '.join(relations[:3])}" + (" and more" if relations[3:] else "")] if relations else []),
    ]
    remark(
        bool(beyond),
        f"{login} has more than it needs: {'; '.join(beyond)}.",
        mend=f"Revoke it: {GRANTS} says what is enough.",
    )
    remark(
        most.read_only and not read_only,
        f"{login} begins its transactions ready to write: nothing guards against a mistake.",
        mend="ALTER ROLE … SET default_transaction_read_only = on.",
    )
    return {}


def settings(login: DatabaseLogin, policy: Policy) -> Facts:
    """Whether the server can mark the moment and lock every table, with sessions to spare (R4.1)."""
    with _session(login) as session:
        wal_level, locks, free = _row(session, _SETTINGS)
        tables = [table.oid for table in list_relations(session).lockable]
        indexes = session.execute("SELECT FROM pg_index WHERE indrelid = ANY(%s::oid[])", [tables]).rowcount
    relations = len(tables) + indexes
    demand(
        wal_level in ("replica", "logical"),
        f"wal_level of {login} is {wal_level}: no restore point can be made, and nothing be recovered to one.",
        mend="Set wal_level to replica in postgresql.conf and restart the server.",
    )
    demand(
        relations < locks,
        f"The server of {login} has room for {locks} locks, and one backup takes {relations} (tables and indexes).",
        mend="Raise max_locks_per_transaction in postgresql.conf and restart the server.",
    )
    remark(
        2 * relations > locks,
        f"One backup takes {relations} of the {locks} locks that the server of {login} has room for.",
        mend="Raise max_locks_per_transaction before the application's own locks find no room.",
    )
    wanted = policy.pipeline.streams_at_once + _OTHER_SESSIONS
    remark(
        free < wanted,
        f"The server of {login} has {free} sessions free, and a backup opens up to {wanted}.",
        mend="Raise max_connections, or let the application hold fewer.",
    )
    return {"tables": len(tables), "locks": locks, "sessions_free": free}


def timeouts(login: DatabaseLogin) -> Facts:
    """Whether the login's long statements are let run: a restored sample is counted and hashed through it (R4.5)."""
    with _session(login) as session:
        found = session.execute(_TIMEOUTS).fetchall()
    remark(
        bool(found),
        f"Long statements of {login} may be cut: {', '.join(f'{name} is {value} ms' for name, value in found)}.",
        mend="ALTER ROLE … SET each of them to 0 for this login.",
    )
    return {}


def references(login: DatabaseLogin, policy: Policy) -> Facts:
    """Whether the policy's queries for object keys are ones that the server can plan (R2.2)."""
    import psycopg  # noqa: PLC0415 - a quarter of a second

    statements = policy.sources.objects.references
    with _session(login) as session:
        for statement in statements:
            try:
                session.execute(b"EXPLAIN " + statement.encode())
            except psycopg.Error as error:
                raise NotReady(
                    f"The policy's sources.objects.references cannot be asked ({statement}): "
                    f"{' '.join(str(error).split())}.",
                    mend="Each must be a query that the dump login may run: correct it in the policy.",
                ) from None
    return {"references": len(statements)}


def lets_replicate(login: DatabaseLogin) -> Facts:
    """Whether the server lets the login into the pseudo-database `replication`, too (R1.2, R1.3).

    pg_hba.conf's `all` does not mean it
    (https://www.postgresql.org/docs/current/auth-pg-hba-conf.html).
    """
    with login.connect(application_name="synapse-backups", autocommit=True, replication=True) as session:
        found = session.pgconn.exec_(b"IDENTIFY_SYSTEM")
        system = (found.get_value(0, 0) or b"").decode()
    demand(
        bool(system),
        f"The server does not speak the replication protocol with {login}.",
        mend="Connect to the server itself: a connection pooler between does not pass replication on.",
    )
    return {"system": system}


def room_to_replicate(login: DatabaseLogin) -> Facts:
    """Whether the log has all that recovery needs, and slots and senders are free for it (R1.2, R1.3)."""
    with _session(login) as session:
        wal_level, slots, senders, keeps = _row(session, _ROOM)
    demand(
        wal_level in ("replica", "logical"),
        f"wal_level of {login} is {wal_level}: its log is not enough to recover from.",
        mend="Set wal_level to replica in postgresql.conf and restart the server.",
    )
    for free, wanted, what, setting in (
        (slots, _SLOTS, "replication slots", "max_replication_slots"),
        (senders, _SENDERS, "WAL senders", "max_wal_senders"),
    ):
        demand(
            free >= wanted,
            f"The server of {login} has {free} {what} free for us, and a snapshot beside an increment and the stream "
            f"takes {wanted}.",
            mend=f"Raise {setting} in postgresql.conf and restart the server; or drop a slot that nobody uses "
            "(pg_replication_slots).",
        )
    remark(
        keeps < 0,
        f"max_slot_wal_keep_size of {login} has no limit: while backups stand still, the log fills the server's disk.",
        mend="Set max_slot_wal_keep_size to what the disk can spare, at least some hours of log, and reload.",
    )
    return {"slots_free": slots, "senders_free": senders, "keeps_mb": keeps}


@contextmanager
def _session(login: DatabaseLogin) -> Iterator[psycopg.Connection[TupleRow]]:
    with login.connect(application_name="synapse-backups", autocommit=True) as session:
        yield session


def _row(session: psycopg.Connection[TupleRow], query: LiteralString | sql.Composed) -> tuple[Any, ...]:
    row = session.execute(query).fetchone()
    assert row is not None  # noqa: S101 - a SELECT of a session's own role, or without FROM, has one row
    return row

"""The dumps of one database, as command lines for PostgreSQL's own tools; somebody else runs them.

One `pg_dump -Fc -Z0` a stream, to stdout, all in the snapshot of the consistency point:

- `pre-data`: the database with its settings and privileges (every archive has them; `pg_restore --create` uses them),
  schemas, types, tables, functions; never with `-t`, which would lose what is not a table.
- one stream a component: its leaf tables' rows and its sequences' values, each named by `-t`.
- the catch-all: the data of the *whole* database without that of every named relation. Asked for by `-t` it would lose
  large objects, and the configuration tables of extensions.
- `post-data`: indexes, constraints, triggers, and the refreshing of materialized views.
- `globals`: roles with their passwords, and tablespaces (`pg_dumpall`, plain SQL; it knows no snapshot).

So every row, sequence and large object is dumped exactly once. `pg_dump` cannot dump subscriptions for anybody but a
superuser; their definitions are not in a backup.

Sources: https://www.postgresql.org/docs/current/app-pgdump.html, app-pg-dumpall.html; patterns as in app-psql.html.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from include.sources.postgres.relations import quote

if TYPE_CHECKING:
    from include.sources.postgres.relations import ComponentRelations, DumpPlan, Relation
    from include.sources.postgres.tools import PostgresTools

PRE_DATA = "pre-data"
POST_DATA = "post-data"
GLOBALS = "globals"


@dataclass(frozen=True)
class DumpStream:
    """One stream to run: `argv` writes to stdout and takes its login from the environment.

    `component` is the policy's component that the stream holds, None for what belongs to the database as a whole.
    `archive` says that it is in pg_dump's custom format, for `pg_restore`; else it is SQL, for `psql`.
    """

    name: str
    component: str | None
    argv: tuple[str, ...]
    archive: bool = True


def dump_streams(
    tools: PostgresTools, plan: DumpPlan, *, snapshot: str, encoding: str, lock_wait: timedelta
) -> list[DumpStream]:
    """Every stream of one backup, in the order in which a restore takes them.

    A component that has no relation has no stream. `encoding` is the database's (`ServerIdentity.encoding`): a dump is
    in UTF-8, as the names on its command line are, but of a database without an encoding it has the bytes as they are;
    what the database sets for its clients counts for neither. `lock_wait` bounds how long a dump waits for its ACCESS
    SHARE locks: a waiting ALTER TABLE stands before it in the queue although the snapshot's own session has them
    already. Run them with `DatabaseLogin.environment()`.
    """
    dump = (
        *(tools.pg_dump, "--format=custom", "--compress=0", "--no-sync", "--no-password"),
        f"--encoding={encoding if encoding == 'SQL_ASCII' else 'UTF8'}",
        *(f"--snapshot={snapshot}", f"--lock-wait-timeout={round(lock_wait.total_seconds() * 1000)}"),
    )
    return [
        globals_stream(tools, lock_wait=lock_wait),
        DumpStream(PRE_DATA, None, (*dump, "--section=pre-data")),
        *(
            DumpStream(component.name, component.name, (*dump, "--section=data", *_named(component)))
            for component in plan.components
            if component.relations
        ),
        DumpStream(plan.catch_all.name, plan.catch_all.name, (*dump, "--section=data", *_without(plan.components))),
        DumpStream(POST_DATA, None, (*dump, "--section=post-data")),
    ]


def globals_stream(tools: PostgresTools, *, lock_wait: timedelta) -> DumpStream:
    """Roles with their passwords, and tablespaces; of the whole server, and of no snapshot."""
    wait = f"--lock-wait-timeout={round(lock_wait.total_seconds() * 1000)}"
    argv = (tools.pg_dumpall, "--globals-only", "--encoding=UTF8", "--no-sync", "--no-password", wait)
    return DumpStream(GLOBALS, None, argv, archive=False)


def pattern(relation: Relation) -> str:
    """A pattern that matches this relation and nothing else: within double quotes pg_dump takes every name as it is."""
    return f"{quote(relation.schema)}.{quote(relation.name)}"


def _named(component: ComponentRelations) -> list[str]:
    return [f"--table={pattern(relation)}" for relation in component.relations]


def _without(components: Iterable[ComponentRelations]) -> list[str]:
    return [f"--exclude-table-data={pattern(relation)}" for part in components for relation in part.relations]

"""What a backup writes of the database through SQL and `pg_dump`: tables of contents, settings, roles, dumps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from include.backup.application import Application
from include.backup.attempt import Attempt, json_document
from include.pipeline.process import run_source
from include.repository.contents import GLOBALS, INVENTORY, SERVER_FILES, SETTINGS, component_dump
from include.repository.manifest import DatabaseSummary
from include.sources.postgres.barrier import session_beside
from include.sources.postgres.dump import DumpStream, dump_streams, globals_stream
from include.sources.postgres.inventory import (
    Inventory,
    TableContent,
    large_objects,
    largest_first,
    sequence_states,
    shared_table_contents,
)
from include.sources.postgres.relations import plan_dump
from include.sources.postgres.server_files import read_server_files
from include.sources.postgres.settings import read_settings
from include.sources.postgres.tools import find_tools

if TYPE_CHECKING:
    from include.backup.consistency import Point
    from include.sources.postgres.barrier import Session


class DatabaseCopy:
    """The database as of one consistency point; make it at once behind the point, before any dump begins."""

    def __init__(self, attempt: Attempt, application: Application, point: Point) -> None:
        self._attempt, self._application, self._point = attempt, application, point
        self._policy = attempt.policy
        # Sequences know no snapshot: read before the dumps read them, so that what is restored is at least this.
        self._sequences = sequence_states(point.session, point.relations.sequences)
        self._plan = plan_dump(
            point.relations,
            {component.name: component.tables for component in self._policy.components_of("database")},
        )
        for warning in self._plan.warnings:
            attempt.warn(warning)
        self._tools = find_tools(point.server.major)
        self._inventory: Inventory | None = None

    def dumps(self) -> list[DumpStream]:
        """Every dump of the database, in the snapshot of the point: each one is for `write_dump`."""
        return dump_streams(
            self._tools,
            self._plan,
            snapshot=self._point.snapshot,
            encoding=self._point.server.encoding,
            lock_wait=self._policy.pipeline.stall_limit / 2,
        )

    def write_globals(self) -> None:
        """Roles with their passwords, and tablespaces."""
        self.write_dump(globals_stream(self._tools, lock_wait=self._policy.pipeline.stall_limit / 2))

    def write_dump(self, stream: DumpStream) -> None:
        """One dump as an artifact."""
        attempt = self._attempt
        environment = self._application.dump.environment(application_name=f"{attempt.backup}.{attempt.name}.D")
        with run_source(stream.argv, environment=environment, stall_limit=self._policy.pipeline.stall_limit) as chunks:
            if stream.component is None:
                attempt.write_structure(component_dump(stream.name) if stream.archive else GLOBALS, chunks)
                return
            component = self._policy.components.get(stream.component) or self._policy.unclassified("database")
            attempt.write(
                component_dump(component.name),
                chunks,
                component=component.name,
                retention_class=component.retention_class,
            )

    def write_contents(self) -> None:
        """Rows and digests of every table, and the server's settings: one job, because it has the session to itself."""
        session = self._point.session
        self._inventory = Inventory(self._table_contents(), self._sequences, large_objects(session))
        components = {component.name: [str(table) for table in component.tables] for component in self._plan}
        self._attempt.write_structure(INVENTORY, json_document({**self._inventory.to_json(), "components": components}))
        self._attempt.write_structure(SETTINGS, json_document(read_settings(session).to_json()))

    def _table_contents(self) -> dict[str, TableContent]:
        """In several sessions: behind a snapshot's base there is nothing else that would keep the processors busy."""
        point, session = self._point, self._point.session
        name = f"{self._attempt.backup}.{self._attempt.name}.D"
        another = partial(session_beside, point, self._application.dump, application_name=name)
        sessions: list[Callable[[], AbstractContextManager[Session]]] = [lambda: nullcontext(session)]
        sessions += [another] * (self._policy.pipeline.streams_at_once - 1)
        return shared_table_contents(sessions, largest_first(session, point.relations.tables))

    def write_server_files(self) -> None:
        """What the server tells of its own configuration files; on the session of the point, as `write_contents`."""
        files = read_server_files(self._point.session)
        if files.unread:
            self._attempt.warn(
                f"{' and '.join(files.unread)} of the server could not be read: the dump login lacks a grant of "
                "grants.sql. Keep copies of them elsewhere."
            )
        self._attempt.write_structure(SERVER_FILES, json_document(files.to_json()))

    def summary(self) -> DatabaseSummary:
        """What the manifest says of it, once `write_contents` has ended."""
        server = self._point.server
        assert self._inventory is not None  # noqa: S101 - write_contents() has written it
        return DatabaseSummary(
            name=server.database,
            server_version=server.server_version,
            system_identifier=server.system_identifier,
            timeline=server.timeline,
            tools=self._tools.major,
            tables=len(self._inventory.tables),
            rows=self._inventory.rows,
        )

"""A recovered cluster's database, as the artifacts of a full backup: what restores a backup restores it, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import psycopg

from include.errors import BackupError
from include.pipeline.process import run_source
from include.pipeline.progress import Progress
from include.policy import Pipeline, Policy
from include.recovery.cluster.recover import RecoveredCluster
from include.repository.contents import GLOBALS, INVENTORY, SETTINGS, component_dump
from include.repository.manifest import Manifest
from include.sources.postgres.constraints import list_constraints
from include.sources.postgres.dump import DumpStream, dump_streams
from include.sources.postgres.inventory import Inventory, take_inventory
from include.sources.postgres.relations import DumpPlan, list_relations, plan_dump
from include.sources.postgres.server import identify
from include.sources.postgres.settings import read_settings

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

APPLICATION = "synapse-backups"


class LiveDatabase:
    """The application's database in a recovered cluster, to which nobody else connects.

    Use as a context manager: dumps, settings and digests are all of one snapshot. `manifest` is the base's, with the
    versions of the cluster as it is now.
    """

    def __init__(self, cluster: RecoveredCluster, manifest: Manifest, *, policy: Policy, progress: Progress) -> None:
        database = manifest.database.model_copy(update={"tools": cluster.tools.major})
        self.manifest = manifest.model_copy(update={"database": database})
        self._cluster, self._policy, self._progress = cluster, policy, progress
        self._sessions = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as sessions:
            self._session: psycopg.Connection[TupleRow] = sessions.enter_context(
                self._cluster.login.connect(application_name=APPLICATION)
            )
            self._session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            self._session.read_only = True
            (snapshot,) = self._session.execute("SELECT pg_export_snapshot()").fetchone() or ("",)
            relations = list_relations(self._session)
            components = {one.name: one.tables for one in self._policy.components_of("database")}
            self._relations, self._plan = relations, plan_dump(relations, components)
            streams = dump_streams(
                self._cluster.tools,
                self._plan,
                snapshot=snapshot,
                encoding=identify(self._session).encoding,
                lock_wait=self.policy.stall_limit / 2,
            )
            self._streams = {component_dump(one.name) if one.archive else GLOBALS: one for one in streams}
            self._sessions = sessions.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._sessions.close()

    @property
    def policy(self) -> Pipeline:
        """How bytes move."""
        return self._policy.pipeline

    @property
    def plan(self) -> DumpPlan:
        """Which relation is of which component."""
        return self._plan

    @cached_property
    def inventory(self) -> Inventory:
        """Rows and digest of every table, sequences, large objects."""
        return take_inventory(self._session, self._relations)

    @cached_property
    def constraints(self) -> tuple[str, ...]:
        """What it promises of its rows."""
        return list_constraints(self._session, self._relations.all)

    @cached_property
    def named_objects(self) -> frozenset[str]:
        """The keys of objects that it names: the answers to the policy's references. Raises `BackupError`."""
        named: set[str] = set()
        for statement in self._policy.sources.objects.references:
            try:
                with self._session.transaction():
                    named |= {key for key, *_ in self._session.execute(statement.encode()) if key is not None}
            except (psycopg.Error, ValueError) as error:
                raise BackupError(
                    f"The recovered database does not answer {statement!r}: {' '.join(str(error).split())}.",
                    mend="Each of sources.objects.references must be a query of that time's tables, the key first.",
                ) from None
        return frozenset(named)

    def has(self, name: str) -> bool:
        """Whether there is an artifact of that name."""
        return name in self._streams or name in (INVENTORY, SETTINGS)

    def read(self, name: str) -> Iterator[bytes]:
        """The raw bytes of an artifact, made now."""
        if name == INVENTORY:
            components = {part.name: [str(table) for table in part.tables] for part in self._plan}
            return iter([_json({**self.inventory.to_json(), "components": components})])
        if name == SETTINGS:
            return iter([_json(read_settings(self._session).to_json())])
        return self._dumped(self._streams[name])

    def database_components(self) -> list[str]:
        """The components of which it has tables."""
        return [stream.component for stream in self._streams.values() if stream.component is not None]

    def _dumped(self, stream: DumpStream) -> Iterator[bytes]:
        environment = self._cluster.login.environment(APPLICATION)
        with run_source(stream.argv, environment=environment, stall_limit=self.policy.stall_limit) as chunks:
            for chunk in chunks:
                self._progress.add(raw=len(chunk))
                yield chunk


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, default=str).encode()

"""The full backup: database, objects and configuration as of one consistency point (R1.1, R4.3)."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from include.backup.application import Application
from include.errors import BackupError
from include.pipeline.artifacts import write_artifact
from include.pipeline.process import run_source
from include.pipeline.progress import Progress
from include.policy import Component, Policy
from include.repository.catalog import AlreadyCommitted, Catalog
from include.repository.contents import (
    GLOBALS,
    INVENTORY,
    REPOSITORY_BUNDLE,
    SETTINGS,
    STRUCTURE,
    component_dump,
    configuration_files,
    object_index,
)
from include.repository.envelopes import create_data_key
from include.repository.layout import BackupId, new_attempt
from include.repository.manifest import (
    Artifact,
    ConfigurationSummary,
    ConsistencyPoint,
    Cost,
    DatabaseSummary,
    Manifest,
    ObjectsSummary,
    Pack,
    Slot,
    WriteStop,
    artifact_place,
    describe,
)
from include.sources.configuration import ConfigurationPoint
from include.sources.objects import PackedComponent, index_lines, list_component
from include.sources.postgres.barrier import hold_consistency_point, release_writes
from include.sources.postgres.blockers import find_blockers
from include.sources.postgres.dump import DumpStream, dump_streams
from include.sources.postgres.inventory import Inventory, large_objects, sequence_states, table_contents
from include.sources.postgres.relations import list_relations, plan_dump
from include.sources.postgres.settings import read_settings
from include.sources.postgres.tools import find_tools

if TYPE_CHECKING:
    from include.policy import Barrier as BarrierPolicy
    from include.sources.postgres import barrier

log = logging.getLogger(__name__)

_STREAMS_AT_MOST = 12
"""`grants.sql` gives the dump login 32 sessions: enough for two tries at once, each with its snapshot's own."""
STRUCTURE_CLASS = "operational"
"""Schema, roles and settings are kept as long as the system's own configuration."""


class LongTransactions(BackupError):
    """Transactions that would make the write barrier, and every writer behind it, wait."""


class SurroundingsSilent(BackupError):
    """The object store or the configuration did not answer while writers waited."""


@dataclass(frozen=True)
class Surroundings:
    """What is noted while writes are stopped: the object store's clock, and the configuration's refs."""

    objects_as_of: datetime
    configuration: ConfigurationPoint


def stop_writes(application: Application, policy: Policy) -> dict[str, Any]:
    """Prove that nothing long-running would make the write barrier wait (R4.3, set-up).

    Writes themselves are stopped later, for milliseconds, inside `make_full_backup`. Raises `LongTransactions`.
    """
    with application.dump.connect(application_name="synapse-backups", autocommit=True) as session:
        relations = list_relations(session)
    blockers = find_blockers(application.barrier, relations.lockable, longer_than=policy.barrier.long_running)
    if blockers:
        raise LongTransactions(
            "The write barrier would have to wait: " + "; ".join(str(blocker) for blocker in blockers) + ".",
            mend=blockers[0].mend,
        )
    return {"tables": len(relations.lockable), "blockers": 0}


def resume_writes(application: Application, backup: BackupId) -> dict[str, Any]:
    """Prove that no session of this backup stops writes any more, and end one that does (R4.3, teardown)."""
    ended = release_writes(application.barrier, str(backup))
    for session in ended:
        log.warning("Ended %s (pid %s), which held %s.", session.application, session.pid, ", ".join(session.tables))
    return {"ended": [session.application for session in ended]}


def make_full_backup(
    backup: BackupId, *, slot: Slot | None, application: Application, catalog: Catalog, policy: Policy, scratch: Path
) -> Manifest:
    """Make the backup, commit it, and return its manifest; when it is committed already, that one is returned.

    Every try writes under an attempt of its own; whichever commits first is the backup. Raises `BackupError`; then
    nothing is committed, and what was written is unreferenced.
    """
    if (committed := catalog.find(backup)) is not None:
        log.info("%s was committed by attempt %s: nothing is to be done.", backup, committed.attempt)
        return committed
    started = datetime.now(UTC)
    attempt = new_attempt()
    log.info("Making %s, attempt %s, into %s.", backup, attempt, catalog.bucket)
    with (
        Progress(str(backup), every=policy.pipeline.progress_every, scratch=scratch) as progress,
        consistency_point(application, f"{backup}.{attempt}", policy.barrier) as point,
    ):
        log.info(
            "Consistency point %s at %s (LSN %s): writers waited %.0f ms, the locks were held %.0f ms.",
            *(point.restore_point, point.time.isoformat(), point.lsn, point.waited * 1000, point.held * 1000),
        )
        copy = _Copy(
            backup=backup,
            attempt=attempt,
            application=application,
            catalog=catalog,
            policy=policy,
            scratch=scratch,
            progress=progress,
            point=point,
        )
        copy.run()
        manifest = copy.manifest(slot=slot, started=started)
    for warning in manifest.warnings:
        log.warning("%s", warning)
    try:
        return catalog.commit(manifest)
    except AlreadyCommitted as late:
        log.warning("%s Attempt %s leaves it as it is.", late.what, attempt)
        return late.winner


@contextmanager
def consistency_point(
    application: Application, name: str, policy: BarrierPolicy
) -> Iterator[barrier.ConsistencyPoint[Surroundings]]:
    """Stop writes for the moment called `name`, and keep that moment's snapshot until the block ends."""
    with (
        ThreadPoolExecutor(2, thread_name_prefix="surroundings") as lookers,
        hold_consistency_point(
            application.barrier,
            application.dump,
            name=name,
            relations=list_relations,
            policy=policy,
            while_stopped=_looker(application, lookers, within=policy.lock_timeout),
        ) as point,
    ):
        yield point


def summary(manifest: Manifest) -> dict[str, Any]:
    """The facts of a backup that reports and people want, small enough for an XCom."""
    raw, stored = manifest.raw_bytes, manifest.stored_bytes
    seconds = manifest.cost.milliseconds / 1000
    return {
        "id": manifest.id,
        "attempt": manifest.attempt,
        "consistency_point": manifest.consistency_point.time.isoformat(),
        "raw_bytes": raw,
        "stored_bytes": stored,
        "ratio": round(raw / stored, 2) if stored else None,
        "seconds": round(seconds, 1),
        "bytes_per_second": round(raw / seconds) if seconds else None,
        "write_stop_ms": round(manifest.write_stop.requested_us / 1000, 1),
        "locks_held_ms": round(manifest.write_stop.held_us / 1000, 1),
        "tables": manifest.database.tables,
        "rows": manifest.database.rows,
        "objects": manifest.objects.objects,
        "commit": manifest.consistency_point.configuration_commit,
        "peak_memory_bytes": manifest.cost.peak_memory_bytes,
        "warnings": len(manifest.warnings),
    }


def _looker(application: Application, lookers: ThreadPoolExecutor, *, within: timedelta) -> Callable[[], Surroundings]:
    """What `while_stopped` calls: both looks at once, on connections and pages that were warmed before writes stop.

    Writers wait for no store that hangs: it raises `SurroundingsSilent` after `within`, and the barrier lets them go.
    """

    def look(longest: float | None = None) -> Surroundings:
        clock = lookers.submit(application.objects.clock)
        point = lookers.submit(application.configuration.point)
        looks: tuple[Future[Any], ...] = (clock, point)
        if wait(looks, timeout=longest).not_done:
            raise SurroundingsSilent(
                f"{application.objects} or the configuration did not answer within {longest:g} s while writes were "
                "stopped. They flow again.",
                mend="Look at the object store and at the repository's disk; the run is tried again.",
            )
        return Surroundings(clock.result(), point.result())

    look()
    return partial(look, within.total_seconds())


class _Copy:
    """The bulk work behind one consistency point: streams side by side, all of one attempt."""

    def __init__(
        self,
        *,
        backup: BackupId,
        attempt: str,
        application: Application,
        catalog: Catalog,
        policy: Policy,
        scratch: Path,
        progress: Progress,
        point: barrier.ConsistencyPoint[Surroundings],
    ) -> None:
        self._backup, self._attempt, self._application, self._catalog = backup, attempt, application, catalog
        self._policy, self._scratch, self._progress, self._point = policy, scratch, progress, point
        self._key = create_data_key(catalog.bucket, catalog.keyring, owner=str(backup), attempt=attempt)
        # Sequences know no snapshot: read before the dumps read them, so that what is restored is at least this.
        self._sequences = sequence_states(point.session, point.relations.sequences)
        self._plan = plan_dump(
            point.relations, {component.name: component.tables for component in policy.components_of("database")}
        )
        self._tools = find_tools(point.server.major)
        self._inventory: Inventory | None = None
        self._artifacts: list[Artifact] = []
        self._packs: list[Pack] = []
        self._warnings: list[str] = list(self._plan.warnings)
        self._objects = self._object_bytes = self._files = 0
        self._found: set[str] = set()
        self._room = threading.BoundedSemaphore(policy.pipeline.parts_in_flight)
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def run(self) -> None:
        """Write every artifact, all side by side; the first failure stops the others and is raised.

        Every dump begins at once, because one that attaches late may wait behind an ALTER TABLE that came meanwhile.
        They share one bound on the parts on their way, so that many take little more memory than one. Objects go one
        component after another: each has workers of its own.
        """
        named = self._named_objects()
        jobs: list[Callable[[], None]] = [
            *(partial(self._write_dump, stream) for stream in self._dumps()),
            self._write_tables_of_contents,
            partial(self._write_all_objects, named),
            self._write_configuration,
        ]
        with ThreadPoolExecutor(_STREAMS_AT_MOST, thread_name_prefix="stream") as pool:
            running = [pool.submit(job) for job in jobs]
            try:
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                # Whatever ends this wait, a failure or the task's own end: no stream goes on behind it.
                if not all(job.done() for job in running):
                    self._stopped.set()
                    pool.shutdown(wait=False, cancel_futures=True)
        for job in running:
            if not job.cancelled() and (failure := job.exception()) and not isinstance(failure, _StoppedError):
                raise failure
        if missing := sorted(named - self._found):
            self._warnings.append(
                f"The database names {len(missing)} objects that {self._application.objects} does not hold, "
                f"{missing[0]!r} for one."
            )

    def manifest(self, *, slot: Slot | None, started: datetime) -> Manifest:
        """What commits the backup, once `run` has ended."""
        point, usage = self._point, self._progress.usage()
        assert self._inventory is not None  # noqa: S101 - run() has written it
        return Manifest(
            id=str(self._backup),
            type=self._backup.type,
            attempt=self._attempt,
            slot=slot,
            started=started,
            finished=datetime.now(UTC),
            consistency_point=ConsistencyPoint(
                time=point.time,
                lsn=point.lsn,
                restore_point=point.restore_point,
                objects_as_of=point.observations.objects_as_of,
                configuration_commit=point.observations.configuration.commit,
            ),
            write_stop=WriteStop(requested_us=round(point.stopped * 1e6), held_us=round(point.held * 1e6)),
            database=DatabaseSummary(
                name=point.server.database,
                server_version=point.server.server_version,
                system_identifier=point.server.system_identifier,
                timeline=point.server.timeline,
                tools=self._tools.major,
                tables=len(self._inventory.tables),
                rows=self._inventory.rows,
            ),
            objects=ObjectsSummary(
                bucket=self._application.objects.name, objects=self._objects, raw_bytes=self._object_bytes
            ),
            configuration=ConfigurationSummary(branch=point.observations.configuration.branch, files=self._files),
            artifacts=tuple(sorted(self._artifacts, key=lambda artifact: artifact.name)),
            packs=tuple(self._packs),
            cost=Cost(
                milliseconds=round(usage.seconds * 1000),
                cpu_milliseconds=round(usage.cpu_seconds * 1000),
                peak_memory_bytes=usage.peak_memory_bytes,
            ),
            warnings=tuple(self._warnings),
        )

    def _dumps(self) -> list[DumpStream]:
        return dump_streams(
            self._tools,
            self._plan,
            snapshot=self._point.snapshot,
            encoding=self._point.server.encoding,
            lock_wait=self._policy.pipeline.stall_limit / 2,
        )

    def _write_dump(self, stream: DumpStream) -> None:
        login = self._application.dump
        environment = login.environment(application_name=f"{self._backup}.{self._attempt}.D")
        with run_source(stream.argv, environment=environment, stall_limit=self._policy.pipeline.stall_limit) as chunks:
            if stream.component is None:
                name = component_dump(stream.name) if stream.archive else GLOBALS
                self._write(name, chunks, component=STRUCTURE, retention_class=STRUCTURE_CLASS)
            else:
                component = self._component(stream.component)
                self._write(
                    component_dump(component.name),
                    chunks,
                    component=component.name,
                    retention_class=component.retention_class,
                )

    def _write_tables_of_contents(self) -> None:
        """Rows and digests of every table, and the server's settings: one job, because it has the session to itself."""
        session, relations = self._point.session, self._point.relations
        self._inventory = Inventory(table_contents(session, relations.tables), self._sequences, large_objects(session))
        components = {component.name: [str(table) for table in component.tables] for component in self._plan}
        self._write_structure(INVENTORY, _json({**self._inventory.to_json(), "components": components}))
        self._write_structure(SETTINGS, _json(read_settings(session).to_json()))

    def _named_objects(self) -> frozenset[str]:
        """The object keys that the database names, in the snapshot of the consistency point."""
        named: set[str] = set()
        for statement in self._policy.sources.objects.references:
            try:
                with self._point.session.transaction():
                    named |= {key for (key,) in self._point.session.execute(statement.encode()) if key is not None}
            except (psycopg.Error, ValueError) as error:
                said = " ".join(str(error).split())
                raise BackupError(
                    f"The policy's sources.objects.references could not be asked ({statement}): {said}.",
                    mend="Each must be a query of one column, which the dump login may run: correct it in the policy.",
                ) from error
        return frozenset(named)

    def _object_components(self) -> list[Component]:
        return [*self._policy.components_of("objects"), self._policy.unclassified("objects")]

    def _write_all_objects(self, named: frozenset[str]) -> None:
        for component in self._object_components():
            self._write_objects(component, named)

    def _write_objects(self, component: Component, named: frozenset[str]) -> None:
        source, bucket = self._application.objects, self._catalog.bucket
        versions = list_component(
            source,
            component,
            self._point.observations.objects_as_of,
            named=named,
            classified=self._policy.components_of("objects"),
        )
        with PackedComponent(
            versions,
            source=source,
            bucket=bucket,
            keyring=self._catalog.keyring,
            component=component,
            named=named,
            attempt=self._attempt,
            policy=self._policy.pipeline,
            progress=self._progress,
            room=self._room,
        ) as packed:
            self._write(
                object_index(component.name),
                index_lines(packed),
                component=component.name,
                retention_class=component.retention_class,
            )
        with self._lock:
            self._packs += packed.packs
            self._objects += packed.objects
            self._object_bytes += packed.raw_bytes
            self._found |= packed.found
        if not component.prefixes and packed.objects:
            self._warnings.append(
                f"{packed.objects} objects of {source} are in no component: "
                f"they are kept as {component.retention_class} data."
            )

    def _write_configuration(self) -> None:
        self._write_repository()
        for component in self._policy.components_of("configuration"):
            self._write_files(component)

    def _write_repository(self) -> None:
        point = self._point.observations.configuration
        with (
            self._application.configuration.bundle_command(point, self._scratch) as argv,
            run_source(argv, environment={}, stall_limit=self._policy.pipeline.stall_limit) as chunks,
        ):
            self._write_structure(REPOSITORY_BUNDLE, chunks)

    def _write_files(self, component: Component) -> None:
        if not component.files:
            return
        configuration = self._application.configuration
        files = configuration.files(component.files)
        if not files:
            self._warnings.append(f"Component {component.name}: no file matches {', '.join(component.files)}.")
        with self._lock:
            self._files += len(files)
        self._write(
            configuration_files(component.name),
            configuration.tar(files),
            component=component.name,
            retention_class=component.retention_class,
        )

    def _write_structure(self, name: str, source: Iterable[bytes]) -> None:
        self._write(name, source, component=STRUCTURE, retention_class=STRUCTURE_CLASS)

    def _write(self, name: str, source: Iterable[bytes], *, component: str, retention_class: str) -> None:
        written = write_artifact(
            self._until_stopped(source),
            bucket=self._catalog.bucket,
            place=artifact_place(
                self._backup, self._attempt, name, component=component, retention_class=retention_class
            ),
            key=self._key,
            policy=self._policy.pipeline,
            progress=self._progress,
            room=self._room,
        )
        artifact = describe(written, name, component=component, retention_class=retention_class, attempt=self._attempt)
        log.info(
            "%s: %s MB raw, %s MB stored, %s s.",
            *(
                name,
                round(artifact.raw_bytes / 1e6, 2),
                round(artifact.stored_bytes / 1e6, 2),
                round(written.seconds, 1),
            ),
        )
        with self._lock:
            self._artifacts.append(artifact)

    def _until_stopped(self, source: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in source:
            if self._stopped.is_set():
                raise _StoppedError
            yield chunk

    def _component(self, name: str) -> Component:
        return self._policy.components.get(name) or self._policy.unclassified("database")


class _StoppedError(Exception):
    """Another stream failed first; that one's error is the one to tell."""


def _json(document: Mapping[str, Any]) -> Iterator[bytes]:
    yield json.dumps(document, ensure_ascii=False, sort_keys=True, default=str).encode()

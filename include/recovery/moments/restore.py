"""Bringing a planned moment back: the database, the objects and the configuration, and what proves them (R5.1, R5.2).

The cluster is recovered into a scratch place, on a server of its own that nobody else can reach. Out of that the
database is copied into the server that was named, beside what is there; or its data directory is kept. The objects that
the recovered database names are then known, and the objects are brought back as of the same moment.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from include.errors import BackupError
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.policy import Policy, SourceKind
from include.recovery.cluster.recover import DATA, RecoveredCluster, recover
from include.recovery.configuration import ReturnedFiles, restore_configuration, return_files
from include.recovery.configuration import require_place as require_path
from include.recovery.database import (
    RestoredDatabase,
    RestoreDiffers,
    require_place,
    restore_database,
    restore_part,
    tables_in,
)
from include.recovery.moments.history import ObjectHistory
from include.recovery.moments.live import APPLICATION, LiveDatabase
from include.recovery.moments.plan import RecoveryPlan, iso
from include.recovery.objects import ReturnedObjects, require_empty, restore_objects, return_objects
from include.recovery.opened import OpenedBackup
from include.recovery.replacement import kept_database_name, kept_name
from include.recovery.selection import nothing_matches, some_of
from include.recovery.validation.recovered import Expected
from include.recovery.validation.service import require_service
from include.repository.catalog import Catalog
from include.repository.contents import INVENTORY
from include.repository.leases import reading
from include.repository.manifest import Manifest
from include.repository.wal import WalArchive
from include.sources.postgres.inventory import Inventory, compare
from include.sources.postgres.login import DatabaseLogin

log = logging.getLogger(__name__)

_TOLD = 5


@dataclass(frozen=True)
class Destinations:
    """Where a moment is brought back to; what has no place stays away.

    `database` becomes a database of that name on `server` (a superuser's login). Below `data_directory` the whole
    cluster is kept, stopped, as `data_directory/data`. `objects` is a bucket and `configuration` a path, both empty,
    unless `overwrite` says that what is there may be replaced, and kept beside. Without `owned` the database comes as
    parts of one do: it belongs to the login, which need not be a superuser's, and no role is touched.
    """

    server: DatabaseLogin | None = None
    database: str | None = None
    data_directory: Path | None = None
    objects: Bucket | None = None
    configuration: Path | None = None
    overwrite: bool = False
    owned: bool = True

    @property
    def needs_cluster(self) -> bool:
        """Whether the log has to be replayed for it."""
        return self.database is not None or self.data_directory is not None


@dataclass(frozen=True)
class Chosen:
    """What of a moment is asked for, where not all of it is; each as `restore_part`, `return_objects`, `return_files`
    take it. `under` is put before each object's key.
    """

    components: Sequence[str] = ()
    tables: Sequence[str] = ()
    keys: Sequence[str] = ()
    prefixes: Sequence[str] = ()
    files: Sequence[str] = ()
    under: str = ""

    def __bool__(self) -> bool:
        return bool(self.components or self.tables or self.keys or self.prefixes or self.files)

    def of(self, there: Sequence[str]) -> list[str]:
        """The components asked for that are among these."""
        return [name for name in self.components if name in there]


@dataclass
class RestoredMoment:
    """What was brought back, and what was proved about it; `facts` are for people and programs.

    `expected` is what the validations compare it with. It tells nothing of single tables, keys and files.
    """

    plan: RecoveryPlan
    database: RestoredDatabase | None = None
    data_directory: Path | None = None
    objects: ReturnedObjects | None = None
    configuration: ReturnedFiles | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    expected: Expected = field(init=False)

    def __post_init__(self) -> None:
        self.expected = Expected(self.plan.reaches)


def restore_to(
    plan: RecoveryPlan,
    catalog: Catalog,
    policy: Policy,
    places: Destinations,
    *,
    scratch: Path,
    progress: Progress,
    chosen: Chosen = Chosen(),  # noqa: B008 - it is frozen
) -> RestoredMoment:
    """Bring a plan to its places. `scratch` needs room for the cluster, unless `data_directory` is where it goes.

    Every place is looked at before anything is written. Raises `RestoreDiffers` when what was recovered is not what a
    backup of that very moment recorded, and whatever stopped it: then nothing new is at any place, but for those that
    were finished before.
    """
    with reading(catalog, plan.backups, policy, what=f"recovery to {iso(plan.reaches)}"):
        return _Restore(plan, catalog, policy, places, scratch=scratch, progress=progress, chosen=chosen).run()


def written_after(plan: RecoveryPlan, history: ObjectHistory, missing: Sequence[str]) -> tuple[str, ...]:
    """Those that the age of the objects explains: of before the moment, and no backup tells of the key."""
    older = plan.skew.objects is not None and plan.skew.objects < timedelta()
    return tuple(key for key in missing if key not in history.known) if older else ()


class _Restore:
    def __init__(
        self,
        plan: RecoveryPlan,
        catalog: Catalog,
        policy: Policy,
        places: Destinations,
        *,
        scratch: Path,
        progress: Progress,
        chosen: Chosen,
    ) -> None:
        self._plan, self._catalog, self._policy, self._places = plan, catalog, policy, places
        self._scratch, self._progress, self._chosen = scratch, progress, chosen
        self._restored = RestoredMoment(plan)
        self._phases: dict[str, float] = {}

    def run(self) -> RestoredMoment:
        """The database first: it names the objects."""
        places, plan, restored = self._places, self._plan, self._restored
        self._require_parts()
        self._require_places()
        named = self._restore_cluster() if places.needs_cluster else frozenset()
        began = time.monotonic()
        if places.objects is not None and plan.objects is not None:
            self._restore_objects(
                ObjectHistory(plan.objects, self._catalog, policy=self._policy, progress=self._progress, named=named),
                places.objects,
            )
            self._phases["objects"] = time.monotonic() - began
        began = time.monotonic()
        if places.configuration is not None and plan.configuration is not None:
            repository, files = map(self._opened, (plan.configuration.repository, plan.configuration.files))
            restored.configuration = self._restore_configuration(repository, files, places.configuration)
            if restored.configuration is not None and not self._chosen:
                restored.expected = replace(restored.expected, commit=restored.configuration.commit)
            self._phases["configuration"] = time.monotonic() - began
        restored.facts |= {
            "reached": iso(plan.reaches),
            "skew": str(plan.skew),
            "phases": {phase: round(seconds, 2) for phase, seconds in self._phases.items()},
        }
        return restored

    def _require_parts(self) -> None:
        """Every component that is asked for is one of a place that is named, and every place gets something."""
        places, chosen = self._places, self._chosen
        wanted: dict[SourceKind, tuple[bool, Sequence[str]]] = {
            "database": (places.database is not None, chosen.tables),
            "objects": (places.objects is not None, (*chosen.keys, *chosen.prefixes)),
            "configuration": (places.configuration is not None, chosen.files),
        }
        there = {
            source: [one.name for one in (*self._policy.components_of(source), self._policy.unclassified(source))]
            for source, (named, _) in wanted.items()
            if named
        }
        known = [name for names in there.values() for name in names]
        for name in chosen.components:
            if name not in known:
                raise nothing_matches(name, known, what="component for these places called")
        for source, names in there.items():
            if chosen and not (wanted[source][1] or chosen.of(names)):
                raise BackupError(
                    f"A part is asked for, and nothing of it is for the {source}.", mend="Name no place for that."
                )

    def _require_places(self) -> None:
        """Nobody waits for an hour to hear that the place was taken."""
        places, part = self._places, bool(self._chosen)
        if places.database is not None:
            if places.server is None:
                raise ValueError("a database needs a server")
            keep_as = kept_database_name(places.database) if places.overwrite and not part else None
            require_place(places.server, places.database, keep_as=keep_as)
        directory = places.data_directory
        if directory is not None and directory.exists() and any(directory.iterdir()):
            raise BackupError(
                f"{directory} is there already, and not empty.",
                mend="Name a new directory: a cluster is never recovered over another one.",
            )
        if places.objects is not None and not (places.overwrite or part or self._chosen.under):
            require_empty(places.objects)
        if places.configuration is not None and not part:
            require_path(places.configuration, keep_as=self._kept(places.configuration))

    def _kept(self, path: Path) -> Path | None:
        return path.with_name(kept_name(path.name)) if self._places.overwrite else None

    def _opened(self, manifest: Manifest) -> OpenedBackup:
        return OpenedBackup(self._catalog, manifest, policy=self._policy.pipeline, progress=self._progress)

    def _restore_cluster(self) -> frozenset[str]:
        """Recover the cluster, prove it, and copy out of it what is asked for; returns the objects that it names."""
        places, restored = self._places, self._restored
        with (
            self._recovered() as cluster,
            LiveDatabase(cluster, self._plan.base, policy=self._policy, progress=self._progress) as live,
        ):
            began = time.monotonic()
            self._phases |= {"unpack": cluster.unpacking_seconds, "replay": cluster.replay_seconds}
            restored.warnings += cluster.warnings
            restored.facts |= self._validated(live, cluster)
            if places.database is not None and places.server is not None:
                restored.database = self._copied(live, places.server, places.database)
                if restored.database is not None:
                    self._expect_database(live, restored.database)
            named = live.named_objects
        self._phases["copy"] = time.monotonic() - began  # with the end of the scratch cluster, which grows as it does
        if places.data_directory is not None:
            restored.data_directory = places.data_directory / DATA
        return named

    @contextmanager
    def _recovered(self) -> Iterator[RecoveredCluster]:
        """The cluster, recovered below the directory where it is kept, or below a scratch one that is removed."""
        plan, policy, kept = self._plan, self._policy.pipeline, self._places.data_directory
        archive = WalArchive(self._catalog.bucket, self._catalog.keyring, plan.system_identifier, policy=policy)
        with tempfile.TemporaryDirectory(prefix="cluster-", dir=self._scratch) as directory:
            Path(directory).chmod(0o711)  # PostgreSQL does not run as root
            with recover(
                self._opened(plan.base),
                archive,
                wal=plan.wal,
                history=plan.history,
                stop=plan.stop,
                directory=kept or Path(directory) / "recovered",
                policy=policy,
                progress=self._progress,
                keep=kept is not None,
            ) as cluster:
                log.info("Recovered to %s; timeline %s begins there.", cluster.reached, cluster.timeline)
                yield cluster

    def _copied(self, live: LiveDatabase, server: DatabaseLogin, name: str) -> RestoredDatabase | None:
        chosen = self._chosen
        if not chosen and self._places.owned:
            keep_as = kept_database_name(name) if self._places.overwrite else None
            return restore_database(live, server=server, name=name, scratch=self._scratch, keep_as=keep_as)
        components = chosen.of(live.database_components()) if chosen else live.database_components()
        if not components and not chosen.tables:
            return None
        return restore_part(
            live, server=server, name=name, scratch=self._scratch, components=components, tables=chosen.tables
        )

    def _expect_database(self, live: LiveDatabase, database: RestoredDatabase) -> None:
        """What the recovered cluster says of itself; a part of it is what came of it."""
        server, tables = self._places.server, tuple[str, ...]()
        if self._chosen and server is not None:
            tables = tables_in(server.with_database(database.name))
        self._restored.expected = replace(
            self._restored.expected,
            inventory=live.inventory,
            tables=tables,
            constraints=live.constraints,
            left_out=database.left_out,
        )

    def _validated(self, live: LiveDatabase, cluster: RecoveredCluster) -> dict[str, Any]:
        """Data, application and service (R5.2); raises `RestoreDiffers` or `BackupError`."""
        known = {one.name for one in self._policy.components_of("database")}
        facts: dict[str, Any] = {
            "tables": sum(len(part.tables) for part in live.plan),
            "objects_named": len(live.named_objects),
            "components_without_tables": [
                part.name for part in live.plan.components if part.name in known and not part.tables
            ],
            "compared_with": self._compared(live),
        }
        with cluster.login.connect(application_name=APPLICATION, autocommit=True) as session:
            require_service(session)
        return {**facts, "in_recovery": False, "accepts_writes": True, "timeline": cluster.timeline}

    def _compared(self, live: LiveDatabase) -> str | None:
        """The backup whose own inventory of that very moment it equals; None where no backup is of it."""
        if self._plan.at is None or not (opened := self._opened(self._plan.at)).has(INVENTORY):
            return None
        recorded = Inventory.from_json(json.loads(b"".join(opened.read(INVENTORY))))
        if differences := compare(recorded, live.inventory):
            raise RestoreDiffers(
                f"What was recovered of {self._plan.at.id} is not what it recorded: {'; '.join(differences[:_TOLD])}.",
                mend="Do not use it. Recover from another base, and keep this one for whoever looks into it.",
            )
        return self._plan.at.id

    def _restore_objects(self, history: ObjectHistory, target: Bucket) -> None:
        chosen, overwrite, restored = self._chosen, self._places.overwrite, self._restored
        components = chosen.of(history.object_components())
        if chosen and not (components or chosen.keys or chosen.prefixes):
            return
        if not (chosen or chosen.under or overwrite):
            restored.objects = ReturnedObjects(written=restore_objects(history, target))
        else:
            restored.objects = return_objects(
                history,
                target,
                components=components,
                keys=chosen.keys,
                prefixes=chosen.prefixes,
                under=chosen.under,
                overwrite=overwrite,
            )
        restored.expected = replace(restored.expected, objects=restored.objects.written + restored.objects.unchanged)
        if not chosen:
            missing = sorted(history.named - history.found)
            restored.expected = replace(restored.expected, unheld=written_after(self._plan, history, missing))
            restored.facts["objects_missing"] = len(missing)
            if missing:
                restored.warnings.append(
                    f"The database names {len(missing)} objects that no backup holds: {some_of(missing)}."
                )

    def _restore_configuration(
        self, repository: OpenedBackup, files: OpenedBackup, target: Path
    ) -> ReturnedFiles | None:
        keep, chosen = self._kept(target), self._chosen
        if not chosen:
            commit = restore_configuration(repository, target, keep_as=keep, files=files)
            return ReturnedFiles(commit, (), (), (), keep if keep and keep.exists() else None)
        components = chosen.of([*repository.configuration_components(), *files.configuration_components()])
        if not components and not chosen.files:
            return None
        return return_files(repository, target, patterns=chosen.files, components=components, keep_in=keep, files=files)

"""The archive tier: one class's share of a month, copied out of that month's first verified full (R3.3, R8.1).

An archive stands alone: its class's rows with the schema around them, its objects, its configuration, all sealed anew
under one data key of its own. It outlives the full backup by years, is restored without it, and is gone for good as
soon as that one key is. Secrets are in none: roles with their password hashes, the server's settings with the passwords
of its mappings, and every component that the policy does not archive.
"""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from include.backup.attempt import Attempt, commit, committed, json_document
from include.errors import BackupError
from include.pipeline.progress import Progress
from include.policy import Policy
from include.recovery.configuration import Readable
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.contents import INVENTORY, POST_DATA, PRE_DATA, REPOSITORY_BUNDLE, STRUCTURE, object_index
from include.repository.layout import BackupId, new_attempt
from include.repository.manifest import Artifact, CopiedFrom, Manifest, Slot
from include.repository.packs import PackWriter
from include.sources.objects import IndexEntry, Packing, index_lines
from include.sources.postgres.inventory import Inventory
from include.sources.postgres.relations import CATCH_ALL

log = logging.getLogger(__name__)


class NothingToArchive(BackupError):
    """A month without a verified full backup, or a class that the policy does not know."""


def make_archive(archive: BackupId, *, catalog: Catalog, policy: Policy, scratch: Path) -> Manifest:
    """Make the archive of one class and month, commit it, and return its manifest; one that is committed is returned.

    Raises `NothingToArchive` when no full backup of the month is verified; then nothing is written. A month whose first
    full is gone is made of the first one that is still there.
    """
    if archive.retention_class not in policy.compliance.retention:
        raise NothingToArchive(
            f"{archive.retention_class!r} is no retention class.",
            mend=f"Name one of {', '.join(policy.compliance.retention)} (R8.1).",
        )
    if (made := committed(catalog, archive)) is not None:
        return made
    source = choose_full(catalog, archive.moment)
    started, name = datetime.now(UTC), new_attempt()
    log.info("Making %s, attempt %s, of %s.", archive, name, source.id)
    with Progress(str(archive), every=policy.pipeline.progress_every, scratch=scratch) as progress:
        attempt = Attempt(archive, name, catalog=catalog, policy=policy, scratch=scratch, progress=progress)
        # What is read is counted as it is written, and not twice.
        opened = OpenedBackup(catalog, source, policy=policy.pipeline, progress=Progress(f"reading {source.id}"))
        share = _Share(attempt, opened)
        attempt.side_by_side([share.write_database, share.write_objects, share.write_configuration])
        manifest = attempt.manifest_of(
            source.consistency_point,
            source.write_stop,
            slot=Slot(start=archive.moment, end=_next_month(archive.moment)),
            started=started,
            database=source.database.model_copy(update={"tables": share.tables, "rows": share.rows}),
            objects=source.objects.model_copy(update={"objects": share.objects, "raw_bytes": share.object_bytes}),
            configuration=source.configuration.model_copy(update={"files": share.files}),
            copied_from=CopiedFrom(backup=source.id, attempt=source.attempt),
        )
    return commit(catalog, manifest)


def choose_full(catalog: Catalog, month: datetime) -> Manifest:
    """The first full backup of the month that a moment is in (UTC, by its consistency point) that is verified.

    Raises `NothingToArchive`, which names those that are not.
    """
    begin = BackupId.archive("any", month).moment
    end = _next_month(begin)
    entries = [
        entry
        for entry in catalog.entries("full")
        if entry.manifest and begin <= entry.manifest.consistency_point.time < end
    ]
    for entry in entries:
        if entry.manifest and entry.verification.verified:
            return entry.manifest
    unproved = [entry.manifest.id for entry in entries if entry.manifest]
    raise NothingToArchive(
        f"No full backup of {begin:%Y-%m} in {catalog.bucket} is verified"
        + (f": there are {', '.join(unproved)}, and none has passed." if unproved else ", and none is there."),
        mend=f"`python -m include.cli verify {unproved[0]}`, then make the archive again."
        if unproved
        else "Run the full_backup DAG within the month; of a month that is over, nothing can be archived any more.",
    )


class _Share:
    """One class's share of a full backup, as it is written; its numbers are complete when everything is."""

    def __init__(self, attempt: Attempt, source: OpenedBackup) -> None:
        self._attempt, self._source = attempt, source
        self._class = attempt.backup.retention_class
        self.tables = self.rows = self.objects = self.object_bytes = self.files = 0

    def write_database(self) -> None:
        """Each of its dumps, one after another, and what a part is restored with: schema, indexes, inventory."""
        dumps = [artifact for artifact in self._artifacts("database/") if artifact.name.endswith(".pgdump")]
        if not dumps:
            return
        for dump in dumps:
            self._copy(dump)
        for name in (PRE_DATA, POST_DATA):
            self._copy(self._source.manifest.artifact(name))
        components = [name for name in self._source.database_components() if f"database/{name}.pgdump" in _names(dumps)]
        cut = cut_down(json.loads(b"".join(self._source.read(INVENTORY))), components)
        held = Inventory.from_json(cut)
        self.tables, self.rows = len(held.tables), held.rows
        if unnamed := cut["components"].get(CATCH_ALL):
            self._attempt.warn(f"{len(unnamed)} tables are in no component: they are archived as {self._class} data.")
        self._write(INVENTORY, json_document(cut), component=STRUCTURE)

    def write_objects(self) -> None:
        """Each component's objects, in packs of the archive's own, one component after another."""
        names = _names(self._artifacts("objects/"))
        for component in self._source.object_components():
            if object_index(component) in names:
                self._repack(component)

    def write_configuration(self) -> None:
        """Its files; and the repository when it is of this class, or where files need it to be restored."""
        tars = [artifact for artifact in self._artifacts("config/") if artifact.name.endswith(".tar")]
        for tar in tars:
            self._copy(tar)
            with tarfile.open(fileobj=Readable(self._source.read(tar.name)), mode="r|") as content:
                self.files += sum(1 for _ in content)
        bundle = self._source.manifest.artifact(REPOSITORY_BUNDLE)
        if tars or bundle.retention_class == self._class:
            self._copy(bundle)

    def _artifacts(self, below: str) -> list[Artifact]:
        """The class's own artifacts of one source, but for what the policy does not archive."""
        return [
            artifact
            for artifact in self._source.manifest.artifacts
            if artifact.name.startswith(below)
            and artifact.component != STRUCTURE
            and artifact.retention_class == self._class
            and self._is_archived(artifact)
        ]

    def _is_archived(self, artifact: Artifact) -> bool:
        """Files of a component that the policy knows no more may be secrets, and stay out."""
        component = self._attempt.policy.components.get(artifact.component)
        if component is not None:
            return component.archived
        if artifact.name.startswith("config/"):
            self._attempt.warn(f"{artifact.name} is left out: the policy has no component {artifact.component}.")
            return False
        return True

    def _copy(self, artifact: Artifact) -> None:
        self._write(artifact.name, self._source.read(artifact.name), component=artifact.component)

    def _write(self, name: str, content: Iterator[bytes], *, component: str) -> None:
        self._attempt.write(name, content, component=component, retention_class=self._class)

    def _repack(self, component: str) -> None:
        attempt, policy = self._attempt, self._attempt.policy.pipeline
        writer = partial(
            PackWriter,
            attempt.catalog.bucket,
            attempt.catalog.keyring,
            component=component,
            retention_class=self._class,
            attempt=attempt.name,
            policy=policy,
            progress=attempt.progress,
            room=attempt.room,
            home=attempt.pack_home,
        )
        with _Repacked(self._source, component, writer, workers=policy.streams_at_once) as packed:
            self._write(object_index(component), index_lines(packed), component=component)
        attempt.add_packs(packed.packs)
        self.objects += packed.objects
        self.object_bytes += packed.raw_bytes


class _Repacked(Packing[IndexEntry]):
    """The objects of one component of a backup, in other packs; each is proved as it is read."""

    def __init__(self, source: OpenedBackup, component: str, writer: partial[PackWriter], *, workers: int) -> None:
        super().__init__(source.objects(component), writer, workers=workers)
        self._source = source

    def _pack(self, item: IndexEntry, writer: PackWriter) -> IndexEntry:
        members = writer.add(self._until_stopped(self._source.read_object(item)))
        return item.model_copy(update={"members": members})


def cut_down(inventory: dict[str, Any], components: list[str]) -> dict[str, Any]:
    """The inventory of some components: their tables, and the large objects where the rest of the database is one.

    Every sequence stays: which table one belongs to is not told, and it is a number and no row.
    """
    kept = {name: tables for name, tables in inventory["components"].items() if name in components}
    tables = {table for named in kept.values() for table in named}
    return {
        "tables": {name: content for name, content in inventory["tables"].items() if name in tables},
        "sequences": inventory["sequences"],
        "large_objects": inventory["large_objects"] if CATCH_ALL in components else None,
        "components": kept,
    }


def _names(artifacts: list[Artifact]) -> set[str]:
    return {artifact.name for artifact in artifacts}


def _next_month(moment: datetime) -> datetime:
    return (moment + timedelta(days=31)).replace(day=1)

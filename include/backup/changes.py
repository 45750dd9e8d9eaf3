"""The objects in an increment: every version and every deletion since the backup before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from include.backup.application import Application
from include.backup.attempt import Attempt
from include.backup.objects import object_components, write_uploads
from include.pipeline.store import ObjectVersion
from include.policy import Component
from include.repository.contents import object_changes
from include.repository.manifest import ObjectsSummary
from include.sources.objects import Deletion, PackedComponent, change_lines, list_changes

if TYPE_CHECKING:
    from include.backup.consistency import Point


class ObjectChanges:
    """What was created and deleted after `since`, up to the second of one consistency point, intermediate ones too.

    It does not ask the database which objects it names: one that is younger than the point is in the next increment.
    """

    def __init__(
        self,
        attempt: Attempt,
        application: Application,
        point: Point,
        *,
        since: datetime,
        uploading: Mapping[str, datetime],
    ) -> None:
        self._attempt, self._source, self._since, self._uploading = attempt, application.objects, since, uploading
        self._as_of = point.observations.objects_as_of
        self._objects = self._object_bytes = self._deleted = 0

    def write(self) -> None:
        """Packs and changes, one component after another: each has workers of its own."""
        write_uploads(self._attempt, self._source)
        for component in object_components(self._attempt.policy):
            self._write_component(component)

    def summary(self) -> ObjectsSummary:
        """What the manifest says of them, once `write` has ended."""
        return ObjectsSummary(
            bucket=self._source.name,
            objects=self._objects,
            raw_bytes=self._object_bytes,
            since=self._since,
            deleted=self._deleted,
        )

    def _write_component(self, component: Component) -> None:
        attempt, source = self._attempt, self._source
        deletions: list[Deletion] = []

        def versions() -> Iterator[ObjectVersion]:
            for version in list_changes(
                source,
                component,
                self._since,
                self._as_of,
                uploading=self._uploading,
                classified=attempt.policy.components_of("objects"),
            ):
                if version.deleted:
                    deletions.append(
                        Deletion(key=version.key, version_id=version.version_id, modified=version.modified)
                    )
                else:
                    yield version

        with PackedComponent(
            versions(),
            source=source,
            bucket=attempt.catalog.bucket,
            keyring=attempt.catalog.keyring,
            component=component,
            named=frozenset(),
            attempt=attempt.name,
            policy=attempt.policy.pipeline,
            progress=attempt.progress,
            room=attempt.room,
        ) as packed:

            def changes() -> Iterator[bytes]:
                yield from change_lines(packed)
                yield from change_lines(deletions)  # complete now: the listing has ended

            attempt.write(
                object_changes(component.name),
                changes(),
                component=component.name,
                retention_class=component.retention_class,
            )
        attempt.add_packs(packed.packs)
        self._objects += packed.objects
        self._object_bytes += packed.raw_bytes
        self._deleted += len(deletions)

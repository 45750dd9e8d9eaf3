"""The application's objects in a backup: each component's packs and index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from include.backup.application import Application
from include.backup.attempt import Attempt, json_document
from include.errors import BackupError
from include.pipeline.store import Bucket, NotAllowed
from include.policy import Component, Policy
from include.repository.contents import UPLOADS, object_index
from include.repository.manifest import ObjectsSummary
from include.sources.objects import PackedComponent, index_lines, list_component

if TYPE_CHECKING:
    from include.backup.consistency import Point
    from include.sources.postgres.barrier import Session


class ObjectsCopy:
    """Every object as of one consistency point, and those that the database names although they are younger.

    Make it at once behind the point: it asks the database, on the point's own session, which objects it names.
    """

    def __init__(self, attempt: Attempt, application: Application, point: Point) -> None:
        self._attempt, self._source, self._point = attempt, application.objects, point
        self._named = named_objects(point.session, attempt.policy)
        self._objects = self._object_bytes = 0
        self._found: set[str] = set()

    def write(self) -> None:
        """Packs and indexes, one component after another: each has workers of its own."""
        if self._attempt.backup.type == "snapshot":
            write_uploads(self._attempt, self._source)
        for component in object_components(self._attempt.policy):
            self._write_component(component)
        if missing := sorted(self._named - self._found):
            self._attempt.warn(
                f"The database names {len(missing)} objects that {self._source} does not hold, {missing[0]!r} for one."
            )

    def summary(self) -> ObjectsSummary:
        """What the manifest says of them, once `write` has ended."""
        return ObjectsSummary(bucket=self._source.name, objects=self._objects, raw_bytes=self._object_bytes)

    def _write_component(self, component: Component) -> None:
        attempt, source = self._attempt, self._source
        versions = list_component(
            source,
            component,
            self._point.observations.objects_as_of,
            named=self._named,
            classified=attempt.policy.components_of("objects"),
        )
        with PackedComponent(
            versions,
            source=source,
            bucket=attempt.catalog.bucket,
            keyring=attempt.catalog.keyring,
            component=component,
            named=self._named,
            attempt=attempt.name,
            policy=attempt.policy.pipeline,
            progress=attempt.progress,
            room=attempt.room,
        ) as packed:
            attempt.write(
                object_index(component.name),
                index_lines(packed),
                component=component.name,
                retention_class=component.retention_class,
            )
        attempt.add_packs(packed.packs)
        self._objects += packed.objects
        self._object_bytes += packed.raw_bytes
        self._found |= packed.found
        if not component.prefixes and packed.objects:
            attempt.warn(
                f"{packed.objects} objects of {source} are in no component: "
                f"they are kept as {component.retention_class} data."
            )


def object_components(policy: Policy) -> list[Component]:
    """The components that objects are in: the policy's, and the one of what none of them claims."""
    return [*policy.components_of("objects"), policy.unclassified("objects")]


def write_uploads(attempt: Attempt, source: Bucket) -> None:
    """Note which objects are being uploaded in parts, for the increment that comes next.

    Stores date such an object from its upload's beginning: when it is complete, it seems older than that increment.
    Noted behind the point and before the listing, so that an upload is either noted, or listed, or younger.
    """
    try:
        begun = source.uploads_under_way()
    except NotAllowed as refused:
        attempt.warn(
            f"Which uploads are under way in {source} may not be asked ({refused.what}) An object that was being "
            "uploaded in parts just now may be in no increment, and only in the next snapshot: allow "
            "s3:ListBucketMultipartUploads."
        )
        begun = {}
    attempt.write_structure(UPLOADS, json_document({key: moment.isoformat() for key, moment in begun.items()}))


def named_objects(session: Session, policy: Policy) -> frozenset[str]:
    """The object keys that the database names, as the session sees it; raises `BackupError` for a bad query."""
    named: set[str] = set()
    for statement in policy.sources.objects.references:
        try:
            with session.transaction():
                named |= {key for key, *_ in session.execute(statement.encode()) if key is not None}
        except (psycopg.Error, ValueError) as error:
            said = " ".join(str(error).split())
            raise BackupError(
                f"The policy's sources.objects.references could not be asked ({statement}): {said}.",
                mend="Each must be a query, its first column the key, that the dump login may run: correct it.",
            ) from error
    return frozenset(named)

"""Objects as of any moment: a whole listing, and over it what the increments since then say changed.

Both are of whole seconds (`include/sources/objects.py`): of a key and a second the last backup that speaks of them is
right, and where it tells of a version and a deletion in one second, the deletion came later (`docs/format.md`). What
changed is held in memory, one line a change; the whole listing is streamed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from include.pipeline.progress import Progress
from include.policy import Pipeline, Policy
from include.recovery.moments.plan import ObjectsSource
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.contents import object_changes
from include.repository.manifest import Manifest, ManifestRefused
from include.sources.objects import Deletion, IndexEntry, component_of, parse_changes


@dataclass
class _Second:
    """What the last backup that speaks of it says of one key and one second: a version, a deletion, or both."""

    told_by: int
    version: bytes | None = None
    deleted: bool = False


_Changes = dict[str, dict[datetime, _Second]]


class ObjectHistory:
    """The objects of a plan, as streams that prove themselves; what `restore_objects` and `return_objects` take.

    `named` are the keys that the recovered database names: one that did not exist at the moment is taken at its oldest
    version after it, if an increment has it.
    """

    def __init__(
        self,
        source: ObjectsSource,
        catalog: Catalog,
        *,
        policy: Policy,
        progress: Progress,
        named: frozenset[str] = frozenset(),
    ) -> None:
        self.named = named
        self.found: set[str] = set()
        """Those of `named` that `objects` has told so far."""
        self.known: set[str] = set()
        """Those of `named` that any of the backups tells of, were it a deletion: these were there before."""
        self._policy, self._second = policy, _second(source.as_of)

        def opened(manifest: Manifest) -> OpenedBackup:
            return OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)

        self._base = opened(source.base)
        self._increments, self._later = [*map(opened, source.increments)], [*map(opened, source.later)]

    @property
    def policy(self) -> Pipeline:
        """How bytes move."""
        return self._policy.pipeline

    def object_components(self) -> list[str]:
        """The components of which there are objects, or were, or will be."""
        changed = [
            artifact.component
            for backup in (*self._increments, *self._later)
            for artifact in backup.manifest.artifacts
            if artifact.name == object_changes(artifact.component)
        ]
        return list(dict.fromkeys([*self._base.object_components(), *changed]))

    def objects(self, component: str) -> Iterator[IndexEntry]:
        """The objects of a component as of the moment, in no particular order."""
        changes = self._changes(component)
        wanted = {key for key in self.named if self._component(key) == component}
        self.known |= wanted & changes.keys()
        for entry in self._listed(component):
            seconds = changes.pop(entry.key, None) or {}
            seconds.setdefault(_second(entry.modified), _Second(0, entry.model_dump_json().encode()))
            if found := self._decide(seconds, named=entry.key in wanted):
                wanted.discard(entry.key)
                yield self._tell(found)
        for key, seconds in changes.items():
            if found := self._decide(seconds, named=key in wanted):
                wanted.discard(key)
                yield self._tell(found)
        yield from map(self._tell, self._younger(component, wanted))

    def read_object(self, entry: IndexEntry) -> Iterator[bytes]:
        """The content of one object; raises as `OpenedBackup.read_object`."""
        for backup in (self._base, *self._increments, *self._later):
            if backup.holds(entry):
                return backup.read_object(entry)
        raise ManifestRefused(
            f"The object {entry.key} lies in packs that none of the backups around the moment names.",
            mend="The backups are inconsistent: plan the recovery to a moment before or after them.",
        )

    def _tell(self, entry: IndexEntry) -> IndexEntry:
        if entry.key in self.named:
            self.found.add(entry.key)
            self.known.add(entry.key)
        return entry

    def _listed(self, component: str) -> Iterator[IndexEntry]:
        return self._base.objects(component) if component in self._base.object_components() else iter(())

    def _changes(self, component: str) -> _Changes:
        """What the increments say, by key and second; of what came after the moment, only what is named."""
        found: _Changes = defaultdict(dict)
        for number, backup in enumerate(self._increments, start=1):
            for line in _told(backup, component):
                second = _second(line.modified)
                if second > self._second and line.key not in self.named:
                    continue
                told = found[line.key].get(second)
                if told is None or told.told_by != number:
                    told = found[line.key][second] = _Second(number)
                if isinstance(line, Deletion):
                    told.deleted = True
                else:
                    told.version = line.model_dump_json().encode()
        return found

    def _decide(self, seconds: dict[datetime, _Second], *, named: bool) -> IndexEntry | None:
        """The object as of the second: what was created in it is there, what was deleted in it still is."""
        for second in sorted((one for one in seconds if one <= self._second), reverse=True):
            told = seconds[second]
            if told.deleted and second < self._second:
                break
            if told.version is not None:
                return IndexEntry.model_validate_json(told.version)
        if named:
            for second in sorted(one for one in seconds if one > self._second):
                if (version := seconds[second].version) is not None:
                    return IndexEntry.model_validate_json(version)
        return None

    def _younger(self, component: str, wanted: set[str]) -> Iterator[IndexEntry]:
        """Of named objects that were in none of those: the oldest version in the first later backup that has one."""
        for backup in self._later:
            if not wanted:
                return
            oldest: dict[str, IndexEntry] = {}
            for line in _told(backup, component):
                if isinstance(line, IndexEntry) and line.key in wanted and _second(line.modified) > self._second:
                    known = oldest.get(line.key)
                    if known is None or line.modified < known.modified:
                        oldest[line.key] = line
            wanted -= oldest.keys()
            yield from oldest.values()

    def _component(self, key: str) -> str:
        classified = self._policy.components_of("objects")
        return component_of(key, classified, self._policy.unclassified("objects")).name


def _told(backup: OpenedBackup, component: str) -> Iterable[IndexEntry | Deletion]:
    name = object_changes(component)
    return parse_changes(backup.read(name)) if backup.has(name) else ()


def _second(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)

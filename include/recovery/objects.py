"""Objects, back from their packs into an empty bucket, or some of them into one that is in use (R5.1)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from include.errors import BackupError
from include.pipeline.store import Bucket, ObjectVersion
from include.pipeline.transfer import Upload
from include.policy import Pipeline
from include.recovery.selection import known_components, nothing_matches, some_of
from include.sources.objects import IndexEntry, NotVersioned, versioning_command

log = logging.getLogger(__name__)

_AT_ONCE = 8
_NEAR_KEYS = 1000


class TargetNotEmpty(BackupError):
    """A restore would have mixed with what is there."""


class WouldOverwrite(BackupError):
    """A restore would have overwritten what is there."""


class Objects(Protocol):
    """Objects to bring back: those of one backup, or those of a moment between two."""

    @property
    def policy(self) -> Pipeline:
        """How bytes move."""

    def object_components(self) -> list[str]:
        """The components of which there are objects."""

    def objects(self, component: str) -> Iterator[IndexEntry]:
        """The objects of a component, in no particular order; may be asked again."""

    def read_object(self, entry: IndexEntry) -> Iterator[bytes]:
        """The content of one of them, proved by the end of the iteration."""


@dataclass
class ReturnedObjects:
    """What was done with each object that was asked for.

    It was `written`, or `unchanged`: there already, and the same. Of a key that had something else, `replaced` has the
    version that the bucket keeps.
    """

    written: int = 0
    unchanged: int = 0
    replaced: dict[str, str] = field(default_factory=dict)


def restore_objects(backup: Objects, target: Bucket, *, components: Iterable[str] | None = None) -> int:
    """Write every object of the backup (or of some components) into `target`, which must be empty; returns how many.

    Each object appears whole or not at all: what is written is proved before the upload completes. Raises
    `TargetNotEmpty`.
    """
    require_empty(target)
    chosen = list(components) if components is not None else backup.object_components()
    return _write(backup, target, chain.from_iterable(backup.objects(component) for component in chosen))


def require_empty(target: Bucket) -> None:
    """Raise `TargetNotEmpty` for a bucket that has objects."""
    if (present := next(target.keys(""), None)) is not None:
        raise TargetNotEmpty(
            f"{target} is not empty: it holds {present!r}, for one.",
            mend="Restore into an empty bucket, and switch over to it; or say which objects, or --overwrite.",
        )


def return_objects(
    backup: Objects,
    target: Bucket,
    *,
    components: Sequence[str] = (),
    keys: Sequence[str] = (),
    prefixes: Sequence[str] = (),
    under: str = "",
    overwrite: bool = False,
) -> ReturnedObjects:
    """Write some objects into a bucket in use: whole components, single keys, all below a prefix; all, when none is
    named.

    `under` is put before each key. What is there already and the same (by size and ETag) is left. A key with other
    content is overwritten only if `overwrite` says so and the bucket keeps versions; nothing is written before that is
    known of every object. Raises `NothingMatches`, `WouldOverwrite`, or `NotVersioned`.
    """
    choice = _Choice(backup, components, keys, prefixes)
    there = _what_is_there(target, choice, under)
    done, others = ReturnedObjects(), {}
    for entry in choice.entries():
        present = there.get(under + entry.key)
        if present is not None and not _same(present, entry):
            others[under + entry.key] = present.version_id
    choice.check()
    if others:
        _may_be_overwritten(target, others, overwrite=overwrite)

    def wanted() -> Iterator[IndexEntry]:
        for entry in choice.entries():
            key = under + entry.key
            if key in there and key not in others:
                done.unchanged += 1
            else:
                yield entry

    done.written = _write(backup, target, wanted(), under=under)
    done.replaced = others
    return done


class _Choice:
    """Which objects of a backup are meant; each name must mean one."""

    def __init__(
        self, backup: Objects, components: Sequence[str], keys: Sequence[str], prefixes: Sequence[str]
    ) -> None:
        there = backup.object_components()
        self._backup, self.keys, self.prefixes = backup, frozenset(keys), tuple(prefixes)
        self.whole = known_components(components, there, what="objects")
        self.everything = not (components or keys or prefixes)
        self._indexes = there if keys or prefixes or self.everything else self.whole
        self._unmet_keys, self._unmet_prefixes = set(keys), set(prefixes)
        self._folders = {key.rpartition("/")[0] for key in keys}
        self._near: list[str] = []

    def entries(self) -> Iterator[IndexEntry]:
        """The entries that are meant, read from the backup's indexes each time."""
        for component in self._indexes:
            all_of_it = self.everything or component in self.whole
            for entry in self._backup.objects(component):
                if entry.key in self.keys:
                    self._unmet_keys.discard(entry.key)
                elif (
                    self._unmet_keys and len(self._near) < _NEAR_KEYS and entry.key.rpartition("/")[0] in self._folders
                ):
                    self._near.append(entry.key)
                below = entry.key.startswith(self.prefixes)
                if below and self._unmet_prefixes:
                    self._unmet_prefixes = {one for one in self._unmet_prefixes if not entry.key.startswith(one)}
                if all_of_it or below or entry.key in self.keys:
                    yield entry

    def check(self) -> None:
        """After all entries were read: raise `NothingMatches` for a name that none had."""
        for key in sorted(self._unmet_keys):
            raise nothing_matches(key, self._near, what="object")
        for prefix in sorted(self._unmet_prefixes):
            raise nothing_matches(prefix, (), what="object below")


def _what_is_there(target: Bucket, choice: _Choice, under: str) -> dict[str, ObjectVersion]:
    """The current versions of the keys that a restore may meet."""
    found: dict[str, ObjectVersion] = {}
    prefixes = [""] if choice.everything or choice.whole else choice.prefixes
    for prefix in prefixes:
        for version in target.versions(under + prefix):
            if version.latest and not version.deleted:
                found[version.key] = version
    if "" not in prefixes:
        for key in choice.keys:
            for version in target.versions(under + key):
                if version.key != under + key:
                    break
                if version.latest and not version.deleted:
                    found[version.key] = version
    return found


def _same(present: ObjectVersion, entry: IndexEntry) -> bool:
    return (present.size, present.etag) == (entry.size, entry.etag)


def _may_be_overwritten(target: Bucket, others: dict[str, str], *, overwrite: bool) -> None:
    told = f"{some_of(others)} in {target}"
    if not overwrite:
        raise WouldOverwrite(
            f"{len(others)} objects are there with other content, and would be overwritten: {told}.",
            mend="Restore them under another prefix (--under), or say --overwrite; nothing was written.",
        )
    if not target.is_versioned():
        raise NotVersioned(
            f"{target} keeps no versions: what is overwritten there would be gone ({told}).",
            mend=f"Restore under another prefix, or switch versioning on first: {versioning_command(target)}",
        )
    log.warning("%d objects are overwritten, and the bucket keeps what they were: %s.", len(others), told)


def _write(backup: Objects, target: Bucket, entries: Iterable[IndexEntry], *, under: str = "") -> int:
    written = 0
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="restore") as pool:
        try:
            for entry in entries:
                waiting.append(pool.submit(_restore, backup, entry, target, under))
                if len(waiting) > 2 * _AT_ONCE:
                    waiting.popleft().result()
                written += 1
            while waiting:
                waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    return written


def _restore(backup: Objects, entry: IndexEntry, target: Bucket, under: str) -> None:
    with Upload(
        target,
        under + entry.key,
        part_bytes=backup.policy.part_bytes,
        in_flight=2,
        headers=entry.headers,
        metadata=entry.metadata,
        tags=entry.tags,
    ) as upload:
        for raw in backup.read_object(entry):
            upload.write(raw)
        upload.complete()

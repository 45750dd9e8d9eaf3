"""Objects, back from their packs into a bucket (R5.1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from urllib.parse import quote, urlencode

from include.errors import BackupError
from include.pipeline.store import Bucket, Upload
from include.recovery.opened import OpenedBackup
from include.sources.objects import IndexEntry

_AT_ONCE = 8


class TargetNotEmpty(BackupError):
    """A restore would have mixed with what is there."""


def restore_objects(backup: OpenedBackup, target: Bucket, *, components: Iterable[str] | None = None) -> int:
    """Write every object of the backup (or of some components) into `target`, which must be empty; returns how many.

    Each object appears whole or not at all: what is written is proved before the upload completes. Raises
    `TargetNotEmpty`.
    """
    if (present := next(target.keys(""), None)) is not None:
        raise TargetNotEmpty(
            f"{target} is not empty: it holds {present!r}, for one.",
            mend="Restore into an empty bucket, and switch over to it; or empty this one.",
        )
    chosen = list(components) if components is not None else backup.object_components()
    restored = 0
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="restore") as pool:
        try:
            for entry in chain.from_iterable(backup.objects(component) for component in chosen):
                waiting.append(pool.submit(_restore, backup, entry, target))
                if len(waiting) > 2 * _AT_ONCE:
                    waiting.popleft().result()
                restored += 1
            while waiting:
                waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    return restored


def _restore(backup: OpenedBackup, entry: IndexEntry, target: Bucket) -> None:
    with Upload(
        target,
        entry.key,
        part_bytes=backup.policy.part_bytes,
        in_flight=2,
        headers=entry.headers,
        metadata=entry.metadata,
        tags=urlencode(entry.tags, quote_via=quote),  # some stores take a plus for a plus
    ) as upload:
        for raw in backup.read_object(entry):
            upload.write(raw)
        upload.complete()

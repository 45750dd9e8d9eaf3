"""The proof of an increment: its log chains from its first record to its last, and what it counts is what it has.

An increment restores nothing alone, so no sample of it is restored: what recovery asks of it is that every record
follows on the one before, also over the border to the window before, and `pg_waldump` says whether it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from include.pipeline.progress import Progress
from include.policy import Policy
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.lsn import Lsn, is_segment, segment_lsn
from include.repository.manifest import Manifest, WalFile, WalWindow
from include.repository.wal import WalArchive
from include.sources.objects import Deletion
from include.sources.postgres.tools import tools_of
from include.sources.postgres.waldump import check_window

_ROUND_SEGMENTS = 64
"""Segments that lie on the disk at once: of a window of any size no more."""


def check_log(catalog: Catalog, manifest: Manifest, policy: Policy, *, scratch: Path, progress: Progress) -> None:
    """Read an increment's log back and prove that its records follow on each other, and on the window's before it.

    Raises `WalBroken`, `StreamRefused` or `WalRefused`, naming the segment, and `ToolsMissing` without PostgreSQL's
    tools of the server's own version.
    """
    window = manifest.wal
    assert window is not None  # noqa: S101 - every increment has one
    tools = tools_of(manifest.database.server_version // 10_000)
    archive = WalArchive(catalog.bucket, catalog.keyring, manifest.database.system_identifier, policy=policy.pipeline)
    for files in _rounds([*_last_before(catalog, manifest), *_segments(window)]):
        with TemporaryDirectory(prefix="wal-", dir=scratch) as directory:
            place = Path(directory)

            def fetch(file: WalFile, place: Path = place) -> None:
                archive.fetch(file, place / file.name)
                progress.add(raw=file.raw_bytes, stored=file.stored_bytes)

            with ThreadPoolExecutor(policy.pipeline.streams_at_once, thread_name_prefix="fetch") as pool:
                list(pool.map(fetch, files))
            start = segment_lsn(files[0].name, window.segment_bytes)
            end = Lsn(segment_lsn(files[-1].name, window.segment_bytes) + window.segment_bytes)
            check_window(tools, place, start, end, window.timeline)


def check_changes(opened: OpenedBackup) -> tuple[int, int]:
    """Read every pack of an increment back and prove each object; returns how many versions and deletions there are."""
    components = opened.changed_components()
    objects = sum(opened.check_objects(component) for component in components)
    return objects, sum(isinstance(line, Deletion) for component in components for line in opened.changes(component))


def misfits(manifest: Manifest) -> Iterator[str]:
    """What cannot be true of an increment. How much there is says nothing: an hour may be idle."""
    window, point = manifest.wal, Lsn.parse(manifest.consistency_point.lsn)
    assert window is not None  # noqa: S101 - every increment has one
    if not window.start_lsn < point <= window.end_lsn:
        yield f"log: from {window.start_lsn} to {window.end_lsn}, without the consistency point at {point}"
    if (there := sum(file.raw_bytes for file in _segments(window))) != window.end_lsn - window.start_lsn:
        yield f"log: {there} bytes of segments from {window.start_lsn} to {window.end_lsn}"
    if (packed := sum(pack.raw_bytes for pack in manifest.packs)) != manifest.objects.raw_bytes:
        yield f"objects: {packed} bytes in packs, {manifest.objects.raw_bytes} in the source"


def _segments(window: WalWindow) -> list[WalFile]:
    return [file for file in window.files if is_segment(file.name)]


def _last_before(catalog: Catalog, manifest: Manifest) -> list[WalFile]:
    """The segment before the window, of the window that ends there; none behind a gap."""
    window = manifest.wal
    assert window is not None  # noqa: S101 - every increment has one
    for entry in (*catalog.entries("incremental"), *catalog.entries("snapshot")):
        before = entry.manifest
        if (
            before is not None
            and before.wal is not None
            and before.wal.end_lsn == window.start_lsn
            and before.database.system_identifier == manifest.database.system_identifier
            and before.wal.timeline <= window.timeline
        ):
            return _segments(before.wal)[-1:]
    return []


def _rounds(files: list[WalFile]) -> Iterator[list[WalFile]]:
    """Each begins with the segment that the one before ended with, so that no border is left out."""
    for first in range(0, max(len(files) - 1, 1), _ROUND_SEGMENTS - 1):
        yield files[first : first + _ROUND_SEGMENTS]

"""One component of a backup restored and compared, another each day (R4.5)."""

from __future__ import annotations

import hashlib
import logging
import random
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from include.errors import BackupError
from include.pipeline.disk import free_bytes
from include.pipeline.store import Bucket, ObjectMissing
from include.policy import Component, Policy
from include.recovery.configuration import ConfigurationRefused, restore_configuration
from include.recovery.database import RestoreDiffers
from include.recovery.database import restore_sample as restore_rows
from include.recovery.opened import OpenedBackup
from include.repository.contents import REPOSITORY_BUNDLE, component_dump, configuration_files
from include.repository.manifest import Manifest
from include.sources.configuration import ConfigurationError, unpack
from include.sources.objects import IndexEntry, kept_of
from include.sources.postgres.login import DatabaseLogin

log = logging.getLogger(__name__)

Facts = dict[str, Any]

_SPARE_BYTES = 64 << 20
"""What a clone needs beside the bundle's own size."""


@dataclass(frozen=True)
class Turn:
    """Whose turn it is: the component, and those before it whose turn it was and of which the backup has nothing."""

    component: Component
    absent: tuple[str, ...] = ()


def turn_of(manifest: Manifest, policy: Policy) -> Turn:
    """The component whose turn it is on the day of the backup's slot: another try, on whatever day, takes the same.

    Of one that the backup has nothing of, the turn goes to the next.
    """
    turns = policy.sample_turns
    first = manifest.backup.moment.date().toordinal() % len(turns)
    absent: list[str] = []
    for component in (*turns[first:], *turns[:first]):
        if _holds(manifest, component):
            return Turn(component, tuple(absent))
        absent.append(component.name)
    raise BackupError(
        f"{manifest.id} has nothing of any component of the policy.", mend="Look at the policy's components."
    )


def named(manifest: Manifest, policy: Policy, name: str) -> Turn:
    """The component of that name; raises `BackupError` when there is none, or nothing of it in the backup."""
    held = {each.name: each for each in policy.sample_turns if _holds(manifest, each)}
    if name not in held:
        raise BackupError(f"{manifest.id} has nothing of a component {name!r}.", mend=f"It has: {', '.join(held)}.")
    return Turn(held[name])


def restore_sample(
    backup: OpenedBackup,
    component: Component,
    policy: Policy,
    *,
    server: DatabaseLogin,
    source: Bucket | None,
    scratch: Path,
) -> Facts:
    """Restore one component into a scratch place and compare it with its source as it was.

    Rows and large objects go into a scratch database on `server`, whose login needs only CREATEDB; the configuration
    into a directory below `scratch`. Of objects, some are taken out of their packs as a restore would, and compared
    with the index and, where `source` still has that version, with it. Raises `RestoreDiffers`,
    `ConfigurationRefused`, or what `OpenedBackup` raises.
    """
    if component.source == "database":
        restored = restore_rows(backup, component.name, server=server, scratch=scratch)
        return {"tables": restored.tables, "rows": restored.rows}
    if component.source == "objects":
        return _restore_objects(backup, component.name, policy.verification.sample_objects, source)
    with tempfile.TemporaryDirectory(prefix="sample-", dir=scratch) as directory:
        if component.files:
            return _restore_files(backup, component.name, Path(directory))
        return _restore_repository(backup, Path(directory))


def _holds(manifest: Manifest, component: Component) -> bool:
    if component.source == "objects":
        return any(pack.component == component.name for pack in manifest.packs)
    artifacts = {artifact.name for artifact in manifest.artifacts}
    if component.source == "database":
        return component_dump(component.name) in artifacts
    return not component.files or configuration_files(component.name) in artifacts


def _restore_objects(backup: OpenedBackup, component: str, count: int, source: Bucket | None) -> Facts:
    compared = 0
    # The same objects whoever proves it again.
    chosen = _choose(backup.objects(component), count, seed=f"{backup.manifest.id} {component}")
    for entry in chosen:
        digest, size = hashlib.sha256(), 0
        for raw in backup.read_object(entry):
            digest.update(raw)
            size += len(raw)
        _must_equal(backup, entry, "the index", (entry.size, entry.sha256), (size, digest.hexdigest()))
        if source is not None:
            compared += _compare_with_source(backup, entry, source)
    return {"objects": len(chosen), "compared_with_source": compared}


def _choose(entries: Iterable[IndexEntry], count: int, *, seed: str) -> list[IndexEntry]:
    """So many of them, each as likely as any other, without holding the index in memory (Vitter's algorithm R)."""
    dice = random.Random(seed)  # noqa: S311 - a sample, not a secret
    chosen: list[IndexEntry] = []
    for number, entry in enumerate(entries):
        if number < count:
            chosen.append(entry)
        elif (place := dice.randrange(number + 1)) < count:
            chosen[place] = entry
    return chosen


def _compare_with_source(backup: OpenedBackup, entry: IndexEntry, source: Bucket) -> bool:
    """Whether the source still has the version; then it must be what was backed up, but for tags, which may change."""
    try:
        answer, content = source.open_version(entry.key, version_id=entry.version_id, etag=entry.etag)
    except ObjectMissing:
        return False
    digest, size = hashlib.sha256(), 0
    for chunk in content:
        digest.update(chunk)
        size += len(chunk)
    was = (entry.size, entry.sha256, {"headers": entry.headers, "metadata": entry.metadata})
    _must_equal(backup, entry, str(source), was, (size, digest.hexdigest(), kept_of(answer)))
    return True


def _must_equal(backup: OpenedBackup, entry: IndexEntry, other: str, was: object, found: object) -> None:
    if was != found:
        raise RestoreDiffers(
            f"Object {entry.key!r} of {backup.manifest.id} is not what {other} has.",
            mend="Do not use this backup. Restore from another, and keep this one for whoever looks into it.",
        )


def _restore_repository(backup: OpenedBackup, directory: Path) -> Facts:
    """The checkout as a restore makes it: cloned, checked by git, at the commit of the consistency point."""
    try:
        return {"commit": restore_configuration(backup, directory / "checkout")}
    except ConfigurationRefused as refused:
        # git says the same of a broken bundle and of a full disk, and only one of them is the backup's fault.
        if free_bytes(directory) < backup.manifest.artifact(REPOSITORY_BUNDLE).raw_bytes + _SPARE_BYTES:
            raise BackupError(refused.what, mend=f"Free some of the disk of {directory}, and try again.") from refused
        raise


def _restore_files(backup: OpenedBackup, component: str, directory: Path) -> Facts:
    """The files as a restore unpacks them, each compared with the archive that it came out of."""
    archive, target = directory / "files.tar", directory / "files"
    target.mkdir()
    with archive.open("wb") as file:
        file.writelines(backup.read(configuration_files(component)))
    try:
        with archive.open("rb") as file:
            names = unpack(file, target)
        different = sorted(set(_different(archive, target)))
    except (ConfigurationError, tarfile.TarError) as broken:
        raise ConfigurationRefused(
            f"The files of {component} in {backup.manifest.id} cannot be unpacked: {broken}.",
            mend="Use another backup, and keep this one for whoever looks into it.",
        ) from broken
    if different:
        raise RestoreDiffers(
            f"{len(different)} files of {component} in {backup.manifest.id} are not what was archived, "
            f"{different[0]!r} for one.",
            mend="Use another backup, and keep this one for whoever looks into it.",
        )
    return {"files": len(names)}


def _different(archive: Path, target: Path) -> Iterator[str]:
    with tarfile.open(archive) as members:
        for member in members:
            path = target / member.name
            if member.issym():
                if not path.is_symlink() or str(path.readlink()) != member.linkname:
                    yield member.name
                continue
            content = members.extractfile(member)
            expected = hashlib.file_digest(content, "sha256").digest() if content else b""  # type: ignore[arg-type]
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").digest() != expected:
                    yield member.name

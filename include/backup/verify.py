"""The proof that a backup can be restored (R4.5): read back, weighed against its source, and a part of it restored.

Each `prove_…` writes what it found as a verification record; a failed one takes the backup out of every plan.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from include.backup.sample import Turn, restore_sample
from include.backup.sizes import Sizes, shrunk
from include.backup.start import start_snapshot
from include.backup.window_proof import check_changes, check_log, misfits
from include.errors import BackupError, Hopeless
from include.pipeline.artifacts import ArtifactRefused
from include.pipeline.keys import KeyringError
from include.pipeline.progress import Progress
from include.pipeline.sealing import StreamRefused
from include.pipeline.store import Bucket, NotAllowed, ObjectCut, ObjectMissing
from include.policy import Policy
from include.recovery.cluster.base import BaseRefused
from include.recovery.cluster.recover import RecoveryStopped
from include.recovery.cluster.wal_spool import LogIncomplete
from include.recovery.configuration import ConfigurationRefused
from include.recovery.database import RestoreDiffers
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.lsn import Lsn, is_segment, segment_lsn
from include.repository.manifest import Manifest, ManifestRefused, WalFile
from include.repository.packs import PackRefused
from include.repository.shredding import require_key
from include.repository.signed import writer
from include.repository.verification import INTEGRITY, SAMPLE, SIZES, Record, store_record
from include.repository.wal import WalArchive, WalRefused
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.waldump import WalBroken

log = logging.getLogger(__name__)

Facts = dict[str, Any]


class SizeSuspect(Hopeless):
    """A backup whose sizes do not fit what it was made from, or which is suddenly smaller than those before it."""


class NothingToAccept(BackupError):
    """A backup that did not shrink."""


STARTED = "cluster"
"""The subject of the sample that is a whole cluster."""
VERDICTS = (
    StreamRefused,
    ArtifactRefused,
    PackRefused,
    WalRefused,
    WalBroken,
    ManifestRefused,
    ObjectMissing,
    ObjectCut,
    RestoreDiffers,
    ConfigurationRefused,
    BaseRefused,
    RecoveryStopped,
    LogIncomplete,
    SizeSuspect,
)
"""What is said about the data. Anything else is about the circumstances: the proof was not carried out."""


def prove_integrity(catalog: Catalog, backup: BackupId, policy: Policy, *, scratch: Path) -> Facts:
    """`check_integrity`, its result written as a record; raises the same."""
    manifest = catalog.get(backup)
    if backup.type == "archive":
        require_key(catalog, backup)  # one that was shredded is not damaged
    return _recorded(catalog, manifest, INTEGRITY, partial(check_integrity, catalog, backup, policy, scratch=scratch))


def prove_sizes(catalog: Catalog, backup: BackupId, policy: Policy, *, scratch: Path) -> Facts:
    """`check_sizes`, its result written as a record; raises the same. What was accepted once stays accepted."""
    manifest = catalog.get(backup)
    check = partial(check_sizes, catalog, backup, policy, scratch=scratch)
    accepted = next((record for record in catalog.history(manifest, SIZES) if record.because), None)
    if accepted is None:
        return _recorded(catalog, manifest, SIZES, check)
    log.info("That %s shrank was accepted by %s, because: %s", backup, accepted.by, accepted.because)
    return _recorded(catalog, manifest, SIZES, partial(check, accepted=True), by=accepted.by, because=accepted.because)


def accept_sizes(catalog: Catalog, backup: BackupId, policy: Policy, *, because: str, scratch: Path) -> Facts:
    """Accept that a backup is smaller than those before it, for a reason that the record tells with who gave it.

    It must fit its source all the same; those that follow are compared with it, and with none before it. Raises
    `NothingToAccept`, or `SizeSuspect`.
    """

    def check() -> Facts:
        facts = check_sizes(catalog, backup, policy, scratch=scratch, accepted=True)
        if "shrunk" not in facts:
            raise NothingToAccept(
                f"{backup} is not smaller than the backups before it.",
                mend=f"Nothing is to be accepted; `verify {backup}` says what else is wrong, if anything is.",
            )
        return facts

    facts = _recorded(catalog, catalog.get(backup), SIZES, check, because=because)
    if facts["record"] is None:
        raise BackupError(
            f"The acceptance of {backup} could not be written, and so is none.",
            mend="Use credentials that may write below verification/, and a keyring that can sign.",
        )
    return facts


def prove_sample(
    catalog: Catalog,
    manifest: Manifest,
    policy: Policy,
    turn: Turn,
    *,
    server: DatabaseLogin,
    source: Bucket | None,
    scratch: Path,
) -> Facts:
    """Restore one component and compare it, as `restore_sample` does; its result is written as a record."""
    component = turn.component
    if turn.absent:
        log.warning("%s has nothing of %s: the turn goes to %s.", manifest.id, ", ".join(turn.absent), component.name)

    def check() -> Facts:
        label = f"restoring {component.name} of {manifest.id}"
        with Progress(label, every=policy.pipeline.progress_every, scratch=scratch) as progress:
            opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
            return restore_sample(opened, component, policy, server=server, source=source, scratch=scratch)

    facts = _recorded(catalog, manifest, SAMPLE, check, subject=component.name)
    absent = {"absent": ", ".join(turn.absent)} if turn.absent else {}
    return {"component": component.name, **absent, **facts}


def prove_start(catalog: Catalog, manifest: Manifest, policy: Policy, *, scratch: Path) -> Facts:
    """Start a snapshot and compare it, as `start_snapshot` does; its result is written as a record."""
    if manifest.base is None:
        raise BackupError(f"{manifest.id} is no snapshot: it has no base.", mend="Prove it by restoring a sample.")

    def check() -> Facts:
        with Progress(f"starting {manifest.id}", every=policy.pipeline.progress_every, scratch=scratch) as progress:
            opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
            archive = _archive(catalog, manifest, policy)
            return start_snapshot(opened, archive, policy=policy.pipeline, progress=progress, scratch=scratch)

    return _recorded(catalog, manifest, SAMPLE, check, subject=STARTED)


def check_integrity(catalog: Catalog, backup: BackupId, policy: Policy, *, scratch: Path) -> Facts:
    """Read every artifact and every object back from the bucket, decrypt it and compare it with the manifest (R4.5).

    Raises `StreamRefused`, `ArtifactRefused`, `PackRefused` or `WalRefused`, naming the object.
    """
    manifest = catalog.get(backup)
    with Progress(f"verifying {backup}", every=policy.pipeline.progress_every, scratch=scratch) as progress:
        progress.expect(manifest.raw_bytes)
        opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
        for artifact in manifest.artifacts:
            opened.check(artifact)
        segments = _check_wal(catalog, manifest, policy, progress) if manifest.wal else 0
        objects = sum(opened.check_objects(component) for component in opened.object_components())
        deleted = 0
        if manifest.type == "incremental":
            check_log(catalog, manifest, policy, scratch=scratch, progress=progress)
            objects, deleted = check_changes(opened)
        usage = progress.usage()
    if (objects, deleted) != (manifest.objects.objects, manifest.objects.deleted):
        raise SizeSuspect(
            f"The indexes of {backup} list {objects} objects and {deleted} deletions, and its manifest counts "
            f"{manifest.objects.objects} and {manifest.objects.deleted}.",
            mend="Do not rely on this backup; run another one.",
        )
    return {
        "artifacts": len(manifest.artifacts),
        "objects": objects,
        **({"segments": segments} if manifest.wal else {}),
        "raw_bytes": usage.raw_bytes,
        "stored_bytes": usage.stored_bytes,
        "seconds": round(usage.seconds, 1),
    }


def _check_wal(catalog: Catalog, manifest: Manifest, policy: Policy, progress: Progress) -> int:
    """Read the window's log back, files side by side, and prove that no segment of it is missing."""
    window = manifest.wal
    assert window is not None  # noqa: S101 - the caller has looked
    there = {segment_lsn(file.name, window.segment_bytes) for file in window.files if is_segment(file.name)}
    for start in range(window.start_lsn, window.end_lsn, window.segment_bytes):
        if start not in there:
            raise ManifestRefused(
                f"The write-ahead log of {manifest.id} has no segment from {Lsn(start)} on.",
                mend="Do not rely on this backup; run another one.",
            )
    archive = _archive(catalog, manifest, policy)

    def check(file: WalFile) -> None:
        for chunk in archive.read(file):
            progress.add(raw=len(chunk))
        progress.add(stored=file.stored_bytes)

    with ThreadPoolExecutor(policy.pipeline.streams_at_once, thread_name_prefix="check") as pool:
        for result in [pool.submit(check, file) for file in window.files]:
            result.result()
    return len(window.files)


def _archive(catalog: Catalog, manifest: Manifest, policy: Policy) -> WalArchive:
    return WalArchive(catalog.bucket, catalog.keyring, manifest.database.system_identifier, policy=policy.pipeline)


def check_sizes(catalog: Catalog, backup: BackupId, policy: Policy, *, scratch: Path, accepted: bool = False) -> Facts:
    """Weigh the backup against its source and against the backups before it (R4.5).

    Every table, row and byte that the inventory names has its dump, and nothing is suddenly less than usual, unless
    that was `accepted`. Raises `SizeSuspect`.
    """
    manifest = catalog.get(backup)
    if manifest.type == "incremental":
        return _check_increment(manifest)
    if manifest.type == "archive":
        return _check_archive(manifest)
    with Progress(f"weighing {backup}", every=policy.pipeline.progress_every, scratch=scratch) as progress:
        sizes = Sizes.of(OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress))
        if misfits := list(sizes.misfits()):
            raise SizeSuspect(
                f"The sizes of {backup} do not fit: {'; '.join(misfits)}.",
                mend="Run another backup now, and look at this one.",
            )
        before = _before(catalog, manifest, policy, progress)
    shrinkage = shrunk(sizes, before, policy.verification, [component.name for component in policy.sample_turns])
    if shrinkage and not accepted:
        raise SizeSuspect(
            f"{backup} is suddenly smaller than the backups before it: {'; '.join(shrinkage)}.",
            mend="Look at what was deleted, and by whom. When it is right, say so: `python -m include.cli accept "
            f"{backup} --because '…'`. When it is not, keep the backups before it.",
        )
    return {
        "rows": sizes.inventory.rows,
        "tables": len(sizes.inventory.tables),
        "object_bytes": sizes.object_bytes,
        "compared_with": len(before),
        **({"shrunk": "; ".join(shrinkage)} if shrinkage else {}),
    }


def _check_increment(manifest: Manifest) -> Facts:
    """What an increment counts is what it has; it is compared with none before it, because an hour may be idle."""
    if found := list(misfits(manifest)):
        raise SizeSuspect(
            f"The sizes of {manifest.id} do not fit: {'; '.join(found)}.",
            mend="Run a snapshot backup now, and look at this increment.",
        )
    return {"object_bytes": manifest.objects.raw_bytes, "log_bytes": manifest.wal.raw_bytes if manifest.wal else 0}


def _check_archive(manifest: Manifest) -> Facts:
    """What it is a copy of was weighed; it is compared with no other month's, of which its class may have more."""
    packed = sum(pack.raw_bytes for pack in manifest.packs)
    if packed != manifest.objects.raw_bytes:
        raise SizeSuspect(
            f"The sizes of {manifest.id} do not fit: {packed} bytes in packs, {manifest.objects.raw_bytes} of objects.",
            mend="Do not rely on this archive; keep the full backup that it was copied from.",
        )
    return {"object_bytes": packed, "compared_with": 0}


def _before(catalog: Catalog, manifest: Manifest, policy: Policy, progress: Progress) -> list[Sizes]:
    """The last sound backups of the type before this one, newest first.

    Back to one whose shrinking was accepted: what was before that is usual no more. One that cannot be read says
    nothing of this one.
    """
    found: list[Sizes] = []
    for entry in reversed(catalog.entries(manifest.type)):
        if entry.manifest is None or entry.verification.failed:
            continue
        if entry.manifest.consistency_point.time >= manifest.consistency_point.time:
            continue
        try:
            found.append(Sizes.of(OpenedBackup(catalog, entry.manifest, policy=policy.pipeline, progress=progress)))
        except (*VERDICTS, KeyringError) as unreadable:
            log.warning("%s is not compared with %s: %s", manifest.id, entry.manifest.id, unreadable)
        accepted = any(record.proof == SIZES and record.because for record in entry.verification.newest)
        if accepted or len(found) == policy.verification.compared_with:
            break
    return found


def _recorded(
    catalog: Catalog,
    manifest: Manifest,
    proof: str,
    check: Callable[[], Facts],
    *,
    subject: str | None = None,
    by: str | None = None,
    because: str | None = None,
) -> Facts:
    """Carry a proof out and write its verdict, for or against, as a record; returns its facts and the record's key.

    A failure is raised as it was found, whether or not it could be written. That success may not be written is a
    warning, and the key None: who may only read can still prove.
    """
    began = time.monotonic()

    def record(facts: Facts, failure: BackupError | None = None) -> str:
        written = Record(
            backup=manifest.id,
            attempt=manifest.attempt,
            proof=proof,
            subject=subject,
            passed=failure is None,
            when=datetime.now(UTC),
            bucket=catalog.bucket.name,
            by=by or writer(),
            because=None if failure else because,
            milliseconds=round((time.monotonic() - began) * 1000),
            facts={name: value for name, value in facts.items() if isinstance(value, int | str)},
            what=failure and failure.what,
            mend=failure and failure.mend,
        )
        store_record(catalog.bucket, catalog.keyring, written)
        return written.home

    try:
        facts = check()
    except VERDICTS as failure:
        try:
            key = record({}, failure)
        except Exception as unwritten:  # whatever it is, what was found is worse
            log.error("That %s failed its verification could not be written down: %s", manifest.id, unwritten)
        else:
            failure.mend += f" {manifest.id} is in no plan until this proof passes ({key})."
        raise
    try:
        return {**facts, "record": record(facts)}
    except (NotAllowed, KeyringError) as refused:
        log.warning("That %s passed could not be written down: %s", manifest.id, refused)
        return {**facts, "record": None}

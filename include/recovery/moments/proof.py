"""Proving a plan before anything is written: what it names is there, and is what its manifests say (R5.1)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from include.pipeline.progress import Progress
from include.policy import Policy
from include.recovery.moments.plan import RecoveryPlan
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.leases import reading
from include.repository.manifest import Manifest
from include.repository.wal import WalArchive


def prove_plan(plan: RecoveryPlan, catalog: Catalog, policy: Policy, *, scratch: Path) -> dict[str, Any]:
    """Read back what was never proved since it was made, and say how much that was.

    Whatever a sound verification proved is not read once more: the restore proves every byte as it comes. Raises
    `VerificationFailed` for a backup that failed since it was planned, `StreamRefused` or `WalRefused` naming an object
    that is gone or changed.
    """
    with reading(catalog, plan.backups, policy, what=f"prove the plan to {plan.target}"):
        return _proved(plan, catalog, policy, scratch=scratch)


def _proved(plan: RecoveryPlan, catalog: Catalog, policy: Policy, *, scratch: Path) -> dict[str, Any]:
    read, proved, vouched = [], [], set()
    for manifest in _used(plan):
        verification = catalog.verification(manifest)
        verification.require(manifest.id)
        if verification.verified is None:
            read.append(manifest)
        else:
            proved.append(manifest)
            vouched |= {(file.name, file.attempt) for file in (manifest.wal.files if manifest.wal else ())}
    files = [file for file in plan.wal if (file.name, file.attempt) not in vouched] if "database" in plan.what else []
    archive = WalArchive(catalog.bucket, catalog.keyring, plan.system_identifier, policy=policy.pipeline)
    with Progress(f"proving {plan.target}", every=policy.pipeline.progress_every, scratch=scratch) as progress:
        for manifest in read:
            _read_back(OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress))

        def prove(number: int) -> None:
            for chunk in archive.read(files[number]):
                progress.add(raw=len(chunk))

        with ThreadPoolExecutor(policy.pipeline.streams_at_once, thread_name_prefix="proof") as pool:
            for _ in pool.map(prove, range(len(files))):
                pass
        usage = progress.usage()
    return {
        "proved_before": [manifest.id for manifest in proved][-10:],
        "read_back": [manifest.id for manifest in read][-10:],
        "wal_files_read_back": len(files),
        "raw_bytes": usage.raw_bytes,
        "seconds": round(usage.seconds, 1),
    }


def _used(plan: RecoveryPlan) -> list[Manifest]:
    """Every backup that the plan reads from, once; the base first."""
    used = [plan.base] if "database" in plan.what else []
    if plan.objects:
        used += [plan.objects.base, *plan.objects.increments]
    if plan.configuration:
        used += [plan.configuration.repository, plan.configuration.files]
    return list({manifest.id: manifest for manifest in used}.values())


def _read_back(opened: OpenedBackup) -> None:
    for artifact in opened.manifest.artifacts:
        opened.check(artifact)
    for component in opened.object_components():
        opened.check_objects(component)

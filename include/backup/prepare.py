"""The steps before a backup begins, each insisting on its checks (R4.1, R4.2), and the run's temporary directory."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from include.backup.application import Application
from include.backup.checks import clock, database, store, worker
from include.backup.checks.check import Facts, insist
from include.policy import Policy
from include.repository.catalog import Catalog


def check_disk(scratch: Path, policy: Policy) -> Facts:
    """Whether the disk that takes temporary files has the policy's room (R4.1)."""
    return insist(partial(worker.disk, scratch, policy))


def check_permissions(application: Application, catalog: Catalog, policy: Policy) -> Facts:
    """Whether each login may do what it must, the sources can be read, and the bucket written (R4.1)."""
    barrier, dump, bucket = application.barrier, application.dump, catalog.bucket
    return insist(
        partial(database.privileges, barrier, database.BARRIER),
        partial(database.no_more, barrier, database.AT_MOST["barrier"]),
        partial(database.privileges, dump, database.DUMP),
        partial(database.no_more, dump, database.AT_MOST["dump"]),
        partial(store.source, application.objects),
        partial(worker.configuration, application.configuration, policy),
        partial(store.round_trip, bucket),
        partial(store.multipart, bucket),
    )


def check_database(application: Application, policy: Policy) -> Facts:
    """Whether both logins reach the same primary, its tools are here and its settings fit (R4.2)."""
    return insist(
        partial(database.reach, application.dump),
        partial(database.same_database, application.barrier, application.dump),
        partial(database.tools, application.dump),
        partial(database.settings, application.dump, policy),
        partial(database.references, application.dump, policy),
        partial(clock.of_database, application.dump, policy),
    )


def check_stores(application: Application, catalog: Catalog, policy: Policy) -> Facts:
    """Whether both buckets answer and keep versions (R4.2, R3.1), and whether the backups' keeps time."""
    return insist(
        partial(store.reach, application.objects),
        partial(store.source, application.objects),
        partial(store.reach, catalog.bucket),
        partial(store.versioned, catalog.bucket),
        partial(store.conditional_writes, catalog.bucket),
        partial(clock.of_store, catalog.bucket, policy),
    )


def check_keys(catalog: Catalog, policy: Policy) -> Facts:
    """Whether the keyring opens what it wraps and proves what it signs, and is not due for rotation (R4.2, R7.1)."""
    return insist(
        partial(worker.keyring_opens, lambda: catalog.keyring),
        partial(worker.keyring_age, lambda: catalog.keyring, policy),
    )


def make_scratch(root: Path, name: str) -> Path:
    """The run's temporary directory, for its owner alone (R4.1); one that is there already is taken over."""
    scratch = root / name
    root.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(mode=0o700, exist_ok=True)
    scratch.chmod(0o700)
    return scratch


def remove_scratch(root: Path, name: str) -> None:
    """Remove the run's temporary directory; one that is gone already is fine."""
    scratch = root / name
    if scratch.exists():
        shutil.rmtree(scratch)

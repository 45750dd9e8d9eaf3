"""The steps before a backup begins, each insisting on its checks (R4.1, R4.2), and the run's temporary directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from include.backup.application import Application
from include.backup.checks import clock, database, store, worker
from include.backup.checks.check import Facts, insist, merely
from include.policy import Policy
from include.repository.catalog import Catalog
from include.repository.layout import BackupType

Look = Callable[[], Facts]


def check_disk(scratch: Path, policy: Policy) -> Facts:
    """Whether the disk that takes temporary files has the policy's room (R4.1)."""
    return insist(partial(worker.disk, scratch, policy))


def check_permissions(application: Application, catalog: Catalog, policy: Policy, *, backup_type: BackupType) -> Facts:
    """Whether each login may do what it must, the sources can be read, and the bucket written (R4.1)."""
    dump, bucket = application.dump, catalog.bucket
    return insist(
        *_barrier(application),
        partial(database.privileges, dump, database.DUMP),
        partial(database.no_more, dump, database.AT_MOST["dump"]),
        *_replication(application, backup_type),
        partial(store.source, application.objects),
        partial(worker.configuration, application.configuration, policy),
        partial(store.round_trip, bucket),
        partial(store.multipart, bucket),
    )


def check_database(application: Application, policy: Policy, *, backup_type: BackupType) -> Facts:
    """Whether the logins reach the same primary, its tools are here and its settings fit (R4.2)."""
    return insist(
        partial(database.reach, application.dump),
        partial(database.same_database, application.barrier, application.dump),
        partial(database.tools, application.dump),
        partial(database.settings, application.dump, policy),
        partial(database.references, application.dump, policy),
        *_log(application, backup_type),
        partial(clock.of_database, application.dump, policy),
    )


def check_increment(application: Application, catalog: Catalog, policy: Policy, *, temporary: Path) -> Facts:
    """What an hour's window needs, and no more: it comes 24 times as often as a full backup (R4.1, R4.2)."""
    bucket = catalog.bucket
    return insist(
        partial(worker.disk, temporary, policy),
        partial(database.reach, application.replication),
        *_barrier(application),
        *_replication(application, "incremental"),
        partial(database.tools, application.replication),
        *_log(application, "incremental"),
        partial(store.source, application.objects),
        partial(worker.configuration, application.configuration, policy),
        partial(store.versioned, bucket),
        partial(store.round_trip, bucket),
        partial(worker.keyring_opens, lambda: catalog.keyring),
    )


def _barrier(application: Application) -> Iterator[Look]:
    yield partial(database.privileges, application.barrier, database.BARRIER)
    yield partial(database.no_more, application.barrier, database.AT_MOST["barrier"])


def _replication(application: Application, backup_type: BackupType) -> Iterator[Look]:
    """Whether the login that reads the log may, and no more; a full backup does without it."""
    login = application.replication
    yield _for(backup_type, partial(database.privileges, login, database.REPLICATION))
    yield _for(backup_type, partial(database.no_more, login, database.AT_MOST["replication"]))


def _log(application: Application, backup_type: BackupType) -> Iterator[Look]:
    """Whether that login reaches the same database, and the log through it."""
    login = application.replication
    yield _for(backup_type, partial(database.same_database, application.barrier, login))
    yield _for(backup_type, partial(database.room_to_replicate, login))
    yield _for(backup_type, partial(database.lets_replicate, login))


def _for(backup_type: BackupType, look: Look) -> Look:
    return partial(merely, look) if backup_type == "full" else look


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
    """The run's temporary directory, for its owner alone (R4.1); one that is there already is taken over.

    Root lets others pass through it, and see nothing in it: PostgreSQL, which is started below it, never runs as root.
    """
    scratch = root / name
    root.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(mode=0o700, exist_ok=True)
    scratch.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return scratch


def remove_scratch(root: Path, name: str) -> None:
    """Remove the run's temporary directory; one that is gone already is fine."""
    scratch = root / name
    if scratch.exists():
        shutil.rmtree(scratch)

"""One DAG run as the engine sees it: which backup, of what, to where, by which policy. Made inside `execute` only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from include.backup.application import Application
from include.backup.prepare import make_scratch
from include.backup.scratch import SCRATCH_VARIABLE, hold
from include.operators import connections
from include.pipeline import store
from include.pipeline.keys import Keyring
from include.policy import Bucket, Policy, load_policy
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.locks import locked
from include.repository.manifest import Slot

if TYPE_CHECKING:
    import boto3


@dataclass(frozen=True)
class Surroundings:
    """What every step works on; each part is made when it is first asked for.

    `scratch_root` is where temporary directories go; empty means the one that `BACKUP_SCRATCH` names, else `scratch` in
    Airflow's home, which nobody else writes to.
    """

    scratch_root: str = field(default="", kw_only=True)

    @cached_property
    def policy(self) -> Policy:
        """The policy in force (`BACKUP_POLICY`)."""
        return load_policy()

    @cached_property
    def application(self) -> Application:
        """What is backed up, through the connections that the policy names."""
        sources = self.policy.sources
        return Application(
            barrier=connections.database_login(sources.database.barrier_connection),
            dump=connections.database_login(sources.database.dump_connection),
            replication=connections.database_login(sources.database.replication_connection),
            objects=connections.bucket(sources.objects.connection, stall_limit=self.policy.pipeline.stall_limit),
            configuration=connections.configuration(sources.configuration.connection),
        )

    @cached_property
    def catalog(self) -> Catalog:
        """The primary bucket, and the keyring."""
        return Catalog(self.backups_in("primary"), self.keyring)

    def backups_in(self, copy: Literal["primary", "replica"]) -> store.Bucket:
        """One of the two buckets, for who needs no key."""
        return self._bucket(getattr(self.policy.storage, copy))

    @cached_property
    def replica(self) -> Catalog:
        """The bucket of the second region, read with the same keyring (R3.2)."""
        return Catalog(self.backups_in("replica"), self.keyring)

    @cached_property
    def keyring(self) -> Keyring:
        """The keyring that `BACKUP_KEYRING` names; KMS is asked in each region with that of the bucket there."""
        return Keyring.from_environment(sessions=self.sessions)

    def sessions(self, region: str) -> boto3.Session:
        """The credentials of the bucket in that region; the worker's own in any other."""
        from include.pipeline.kms import session_of_environment  # noqa: PLC0415

        storage = self.policy.storage
        for bucket in (storage.primary, storage.replica):
            if bucket.region == region:
                return connections.session(bucket.connection, region=region)
        return session_of_environment(region)

    def _bucket(self, place: Bucket) -> store.Bucket:
        """A bucket of backups: what is written there is locked, if the policy says so."""
        bucket = connections.bucket(
            place.connection, name=place.bucket, region=place.region, stall_limit=self.policy.pipeline.stall_limit
        )
        return locked(bucket, self.policy)

    @property
    def root(self) -> Path:
        """The directory of all temporary directories on this worker."""
        home = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser()
        return Path(self.scratch_root or os.environ.get(SCRATCH_VARIABLE) or home / "scratch")


@dataclass(frozen=True)
class BackupRun(Surroundings):
    """What the steps of one backup's run work on."""

    backup: BackupId
    slot: Slot | None

    @property
    def scratch_name(self) -> str:
        """What this run's temporary directory is called, on every worker."""
        return str(self.backup)

    @cached_property
    def scratch(self) -> Path:
        """This run's temporary directory, made where it is missing: another worker may have prepared the run.

        It is held until this process ends, so that the reaper knows that somebody works in it.
        """
        scratch = make_scratch(self.root, self.scratch_name)
        hold(scratch)
        return scratch

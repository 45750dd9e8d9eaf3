"""What is backed up, as plain values: operators make it from Airflow's connections, tests from their own servers."""

from __future__ import annotations

from dataclasses import dataclass

from include.pipeline.store import Bucket
from include.sources.configuration import Configuration
from include.sources.postgres.login import DatabaseLogin


@dataclass(frozen=True)
class Application:
    """The three sources of Synapse (R2).

    `barrier` may lock and read nothing, `dump` may read everything and write nothing, `replication` may stream base
    backups and WAL (`grants.sql`); all three name the same database.
    """

    barrier: DatabaseLogin
    dump: DatabaseLogin
    replication: DatabaseLogin
    objects: Bucket
    configuration: Configuration

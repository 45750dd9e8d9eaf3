"""An installation that was backed up: a full backup, a snapshot, an hour of life behind it; in both regions."""

from __future__ import annotations

from pathlib import Path

from include.backup.full import make_full_backup
from include.backup.increment import make_increment
from include.backup.replicate import catch_up
from include.backup.snapshot import make_snapshot
from include.policy import load_policy
from include.repository.layout import BackupId
from include.sandbox.installation import Installation
from include.sandbox.life import Life

FULL, SNAPSHOT, INCREMENT = "full-20261122T000000Z", "snapshot-20261122T000000Z", "incremental-20261122T010000Z"


def back_up(installation: Installation, scratch: Path) -> None:
    """Make the backups of a night, and of the hour after it."""
    for make, backup in ((make_full_backup, FULL), (make_snapshot, SNAPSHOT)):
        make(
            BackupId.parse(backup),
            slot=None,
            application=installation.application(),
            catalog=installation.catalog(),
            policy=load_policy(),
            scratch=scratch,
        )
    with Life(installation.synapse.database, installation.synapse.objects, installation.synapse.bucket) as life:
        life.wait_for(50)
    with installation.synapse.database.connect(application_name="test", autocommit=True) as session:
        session.execute("REFRESH MATERIALIZED VIEW monthly_usage")  # as a dump brings it back
    back_up_hour(installation, scratch, INCREMENT)


def back_up_hour(installation: Installation, scratch: Path, backup: str) -> None:
    """Make one increment, and bring everything to the second region."""
    catalog = installation.catalog()
    installation.settle()
    make_increment(
        BackupId.parse(backup),
        slot=None,
        application=installation.application(),
        catalog=catalog,
        policy=load_policy(),
        scratch=scratch,
    )
    catch_up(
        application=None,
        primary=catalog,
        replica=installation.replica_catalog(),
        policy=load_policy(),
        everything=False,
    )

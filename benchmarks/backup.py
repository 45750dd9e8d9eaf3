"""One backup, as its operator makes it, in a process of its own that can be measured.

What is backed up comes as JSON in `BENCHMARK`, which `Place.made` writes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import boto3

from include.backup.application import Application
from include.backup.full import make_full_backup
from include.backup.increment import make_increment
from include.backup.snapshot import make_snapshot
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.sources.configuration import Configuration
from include.sources.postgres.login import DatabaseLogin

MAKE = {"full": make_full_backup, "snapshot": make_snapshot, "incremental": make_increment}


def main() -> None:
    """Make it; whatever goes wrong ends the process with its error."""
    wanted = json.loads(os.environ["BENCHMARK"])
    session, endpoint = boto3.Session(), os.environ["AWS_ENDPOINT_URL"]
    backup = BackupId.parse(wanted["backup"])
    manifest = MAKE[backup.type](
        backup,
        slot=None,
        application=Application(
            barrier=DatabaseLogin(**wanted["barrier"]),
            dump=DatabaseLogin(**wanted["dump"]),
            replication=DatabaseLogin(**wanted["replication"]),
            objects=Bucket(session, wanted["objects"], endpoint_url=endpoint),
            configuration=Configuration(Path(wanted["configuration"])),
        ),
        catalog=Catalog(
            Bucket(session, wanted["backups"], endpoint_url=endpoint), Keyring.load(Path(wanted["keyring"]))
        ),
        policy=load_policy(),
        scratch=Path(wanted["scratch"]),
    )
    for artifact in sorted(manifest.artifacts, key=lambda artifact: -artifact.milliseconds):
        print(f"{artifact.name:40} {artifact.milliseconds:7} ms {artifact.raw_bytes:12} {artifact.stored_bytes:12}")
    print(manifest.cost)


if __name__ == "__main__":
    main()

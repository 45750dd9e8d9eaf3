"""What a recovered cluster must show before it counts: its files, its relations, its rows (R4.5, R5.2)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from include.errors import BackupError
from include.pipeline.process import child_environment
from include.recovery.cluster.private_server import APPLICATION
from include.sources.postgres.inventory import Inventory, compare, take_inventory
from include.sources.postgres.relations import list_relations
from include.sources.postgres.tools import PostgresTools

if TYPE_CHECKING:
    from include.recovery.cluster.recover import RecoveredCluster

_TOLD = 5
_MEND = "Do not use it. Recover from another base, and keep this one for whoever looks into it."


class ClusterUnsound(BackupError):
    """A base or a recovered cluster that is not what the source was."""


def check_files(tools: PostgresTools, data: Path) -> None:
    """Compare every file of an unpacked base with the manifest that the server wrote of it (`pg_verifybackup`).

    Before anything has changed it. The log is not in it; the map of tablespaces was made to lead here. Raises
    `ClusterUnsound`.
    """
    _must_pass(
        [tools.pg_verifybackup, "--no-parse-wal", "--quiet", "--ignore=tablespace_map", str(data)],
        environment={},
        what=f"The base in {data} is not what the server sent",
    )


def check_relations(cluster: RecoveredCluster) -> None:
    """Have every table and B-tree of every database checked (`pg_amcheck`), side by side; raises `ClusterUnsound`.

    It makes the extension amcheck where it is missing: not for a cluster that is kept.
    """
    _must_pass(
        [cluster.tools.pg_amcheck, "--all", "--install-missing", "--jobs=2", "--no-password"],
        environment=cluster.login.environment(APPLICATION),
        what="The recovered cluster is damaged",
    )


def check_contents(cluster: RecoveredCluster, expected: Inventory) -> None:
    """Compare the digest of every table with what it was at the consistency point; raises `ClusterUnsound`.

    `expected` is of the point that the cluster was recovered to, in the database of its login.
    """
    with cluster.login.connect(application_name=APPLICATION) as session:
        differences = compare(expected, take_inventory(session, list_relations(session)))
    if differences:
        untold = len(differences) - _TOLD
        raise ClusterUnsound(
            f"What was recovered is not what was backed up: {'; '.join(differences[:_TOLD])}"
            + (f"; and {untold} more." if untold > 0 else "."),
            mend=_MEND,
        )


def _must_pass(argv: list[str], *, environment: dict[str, str], what: str) -> None:
    done = subprocess.run(argv, env={**child_environment(), **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split("\n")[:_TOLD])
        raise ClusterUnsound(f"{what}: {said.strip()}.", mend=_MEND)

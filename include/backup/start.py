"""A snapshot proved by a real start: its base and log become a server, looked through and compared (R4.5)."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from include.backup.scratch import hold
from include.errors import BackupError
from include.pipeline.account import closed_parent, server_account
from include.pipeline.disk import RECOVERY
from include.pipeline.process import child_environment
from include.pipeline.progress import Progress
from include.policy import Pipeline
from include.recovery.cluster.base import unpack_base
from include.recovery.cluster.recover import DATA, RecoveredCluster, RecoveryHindered, replayed
from include.recovery.cluster.room import require_room
from include.recovery.cluster.target import StopAt
from include.recovery.database import RestoreDiffers
from include.recovery.opened import OpenedBackup
from include.repository.contents import INVENTORY
from include.repository.lsn import Lsn, history_name
from include.repository.manifest import Manifest, WalFile, WalWindow
from include.repository.timelines import TimelineHistory
from include.repository.wal import WalArchive
from include.sources.postgres.inventory import Inventory, TableContent, compare, table_contents
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.relations import Relation, list_relations
from include.sources.postgres.tools import PostgresTools, tools_of

log = logging.getLogger(__name__)

Facts = dict[str, Any]

_DIFFERENCES_TOLD = 10
_MEND = "Do not rely on this snapshot: run another one, and keep this one for whoever looks into it."
_UNLOGGED = """
    SELECT format('%s.%s', nspname, relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE relpersistence = 'u'
"""
_AMCHECK_FOUND = 2
_AMCHECK = "SELECT FROM pg_available_extensions WHERE name = 'amcheck'"


def start_snapshot(
    opened: OpenedBackup, archive: WalArchive, *, policy: Pipeline, progress: Progress, scratch: Path
) -> Facts:
    """Unpack the base, let `pg_verifybackup` look at it, recover it to its own consistency point, and compare.

    `pg_amcheck` looks through every heap and every B-tree of the cluster; each table that the inventory names is
    counted and hashed. Nothing of it stays. Raises `RestoreDiffers`, what `recover` raises about the data, and a plain
    `BackupError` for what is wrong with this machine.
    """
    manifest, account = opened.manifest, server_account()
    assert manifest.base is not None and manifest.wal is not None  # noqa: S101 - a snapshot has both
    tools = tools_of(manifest.database.server_version // 10_000)
    point = manifest.consistency_point
    with _passable(scratch) as directory:
        data = directory / DATA
        require_room(directory, manifest, manifest.wal.end_lsn)
        unpack_base(opened, data, policy=policy, account=account)
        verify_base(tools, manifest, data)
        try:
            with replayed(
                data,
                archive,
                manifest=manifest,
                wal=manifest.wal.files,
                history=_history(archive, manifest.wal),
                stop=StopAt(name=point.restore_point, lsn=Lsn.parse(point.lsn)),
                tools=tools,
                account=account,
                policy=policy,
                progress=progress,
            ) as cluster:
                return _looked_through(opened, cluster, policy)
        except RecoveryHindered as hindered:  # it says nothing of the snapshot
            raise BackupError(hindered.what, mend=hindered.mend) from hindered


def _looked_through(opened: OpenedBackup, cluster: RecoveredCluster, policy: Pipeline) -> Facts:
    manifest = opened.manifest
    checked = _check_relations(cluster, manifest, jobs=policy.streams_at_once)
    expected = Inventory.from_json(json.loads(b"".join(opened.read(INVENTORY))))
    compared = _compare(cluster.login, manifest, expected, sessions=policy.streams_at_once)
    return {
        "tables": len(compared.tables),
        "rows": compared.rows,
        "reached": str(cluster.reached),
        "replay_seconds": round(cluster.replay_seconds),
        "amcheck": checked,
        **({"warnings": "; ".join(cluster.warnings)} if cluster.warnings else {}),
    }


@contextmanager
def _passable(scratch: Path) -> Iterator[Path]:
    """A directory of its own, in `scratch` unless root's server, which runs as somebody else, could not go there."""
    lend = server_account() is not None
    place = None if lend and closed_parent(scratch) else scratch
    prefix = "start-" if place else f"{RECOVERY}start-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place) as directory:
        held = hold(Path(directory))
        try:
            if lend:
                Path(directory).chmod(0o711)
            yield Path(directory)
        finally:
            os.close(held)


def _history(archive: WalArchive, window: WalWindow) -> TimelineHistory:
    """The way that the log takes, as its own history file tells it; the first timeline has none."""
    files: dict[str, WalFile] = {file.name: file for file in window.files}
    name = history_name(window.timeline)
    text = b"".join(archive.read(files[name])).decode() if name in files else ""
    return TimelineHistory.parse(window.timeline, text)


def verify_base(tools: PostgresTools, manifest: Manifest, data: Path) -> None:
    """Compare every file of an unpacked base with the server's own manifest; raises `RestoreDiffers`.

    Before anything has changed it. The log is not in it; where tablespaces are is the one thing that is ours.
    """
    argv = [tools.pg_verifybackup, "--no-parse-wal", "--quiet", "--ignore=tablespace_map", str(data)]
    done = subprocess.run(argv, capture_output=True, text=True, env=child_environment(), check=False)
    if done.returncode:
        said = "; ".join(done.stderr.strip().splitlines()[:_DIFFERENCES_TOLD])
        raise RestoreDiffers(f"pg_verifybackup says of the base of {manifest.id}: {said}.", mend=_MEND)


def _check_relations(cluster: RecoveredCluster, manifest: Manifest, *, jobs: int) -> str:
    """Look through every heap and every B-tree; returns what was done."""
    with cluster.login.connect(application_name="synapse-backups", autocommit=True) as session:
        if not session.execute(_AMCHECK).rowcount:
            log.warning("The extension amcheck is not installed here: heaps and indexes are not looked through.")
            return "not installed"
    argv = [cluster.tools.pg_amcheck, "--all", "--install-missing", f"--jobs={jobs}", "--no-password"]
    environment = child_environment() | cluster.login.environment(application_name="synapse-backups")
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == _AMCHECK_FOUND:
        lines = done.stdout.strip().splitlines()
        raise RestoreDiffers(
            f"pg_amcheck says of {manifest.id}: {'; '.join(lines[:_DIFFERENCES_TOLD])}.",
            mend="The source itself may be damaged: look at that relation there, with pg_amcheck. " + _MEND,
        )
    if done.returncode:
        raise BackupError(
            f"pg_amcheck failed on the recovered {manifest.id}: {done.stderr.strip()[-500:]}.",
            mend="Mend what it names, and verify the snapshot again.",
        )
    return "sound"


def _compare(login: DatabaseLogin, manifest: Manifest, expected: Inventory, *, sessions: int) -> Inventory:
    """Count and hash every table that was counted and hashed at the point, but the unlogged, which no log brings back.

    Sequences may have gone on when they were noted, and large objects are not held up at the point: neither is a proof.
    """
    with login.connect(application_name="synapse-backups", autocommit=False) as session:
        unlogged = {name for (name,) in session.execute(_UNLOGGED)}
        tables = [table for table in list_relations(session).tables if str(table) in expected.tables]

    def hashed(table: Relation) -> dict[str, TableContent]:
        with login.connect(application_name="synapse-backups", autocommit=False) as session:
            return table_contents(session, [table])

    found: dict[str, TableContent] = {}
    with ThreadPoolExecutor(sessions, thread_name_prefix="compare") as pool:
        for contents in pool.map(hashed, _largest_first(tables, expected)):
            found |= contents
    recovered = Inventory(found, {})
    differences = compare(expected, recovered, expected.tables.keys() - unlogged)
    if differences:
        told, untold = "; ".join(differences[:_DIFFERENCES_TOLD]), len(differences) - _DIFFERENCES_TOLD
        raise RestoreDiffers(
            f"What {manifest.id} became is not what was backed up: {told}"
            + (f"; and {untold} more." if untold > 0 else "."),
            mend=_MEND,
        )
    return recovered


def _largest_first(tables: Sequence[Relation], expected: Inventory) -> list[Relation]:
    return sorted(tables, key=lambda table: -expected.tables[str(table)].rows)

"""A recovery carried out and looked at, step by step, for whoever keeps only plain facts between the steps."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psycopg

from include.errors import BackupError
from include.pipeline.process import child_environment
from include.pipeline.progress import Progress
from include.policy import Policy
from include.recovery.moments.places import Places
from include.recovery.moments.plan import RecoveryPlan, iso
from include.recovery.moments.restore import Chosen, Destinations
from include.recovery.moments.restore import restore_to as restore_moment
from include.recovery.scratch import APPLICATION
from include.recovery.validation.recovered import EXPECTED
from include.recovery.validation.service import require_service
from include.repository.catalog import Catalog
from include.sources.postgres.relations import list_relations


class NotAsRestored(BackupError):
    """A place that does not hold what was brought back to it."""


def restore_to(
    plan: RecoveryPlan, catalog: Catalog, policy: Policy, *, places: Places, scratch: Path
) -> dict[str, Any]:
    """Carry a plan out; returns what was brought back, small enough for an XCom. Raises as `moment.restore_to`.

    What is not live comes as a copy to look at: the database belongs to the login that makes it. `scratch` is made, and
    left to who removes it; it needs room for the cluster, and keeps what the validations expect, `expected.json`.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    scratch.chmod(0o711)  # PostgreSQL does not run as root
    into = Destinations(
        server=places.server,
        database=places.database,
        objects=places.bucket,
        configuration=places.configuration,
        overwrite=places.live,
        owned=places.live,
    )
    chosen = Chosen(components=places.components, tables=places.tables, under=places.prefix)
    label = f"recovery to {iso(plan.reaches)}"
    with Progress(label, every=policy.pipeline.progress_every, scratch=scratch) as progress:
        restored = restore_moment(plan, catalog, policy, into, scratch=scratch, progress=progress, chosen=chosen)
        seconds = round(progress.usage().seconds, 1)
    restored.expected.write(scratch / EXPECTED)
    facts: dict[str, Any] = {**restored.facts, "seconds": seconds, "warnings": restored.warnings}
    if database := restored.database:
        facts |= {
            "database": database.name,
            "restored_tables": database.tables,
            "restored_rows": database.rows,
            "left_out": len(database.left_out),
            "database_replaced": database.replaced,
        }
    if restored.objects is not None:
        facts |= {"objects": restored.objects.written, "objects_unchanged": restored.objects.unchanged}
    if configuration := restored.configuration:
        kept = configuration.kept_in
        facts |= {"commit": configuration.commit, "configuration_replaced": str(kept) if kept else None}
    return facts


def look_at(places: Places, restored: dict[str, Any]) -> dict[str, Any]:
    """Look at each place once more, as who uses it will: `restored` is what was told when it came back (R5.2).

    Data: as many tables, objects, and the commit, as were brought back. Application: its tables answer. Service: the
    server is no standby, and takes a write, of which nothing stays. Raises `NotAsRestored`, or what stopped it.
    """
    facts: dict[str, Any] = {}
    if places.server and places.database and "database" in restored:
        facts |= _database(places, restored["restored_tables"])
    if places.bucket and "objects" in restored:
        there = sum(1 for _ in places.bucket.keys(places.prefix))
        _must(there >= restored["objects"], f"{places.bucket} has {there} objects, not {restored['objects']}")
        facts["objects"] = there
    if places.configuration and "commit" in restored and not places.components:
        commit = _commit(places.configuration)
        _must(commit == restored["commit"], f"{places.configuration} is at {commit}, not at {restored['commit']}")
        facts["commit"] = commit
    return facts


def _database(places: Places, tables: int) -> dict[str, Any]:
    assert places.server is not None  # noqa: S101 - validate has looked
    assert places.database is not None  # noqa: S101
    login = places.server.with_database(places.database)
    with login.connect(application_name=APPLICATION, autocommit=True) as session:
        try:
            found = list_relations(session).tables
        except psycopg.Error as error:
            raise NotAsRestored(
                f"{places.database} does not answer: {error.diag.message_primary or type(error).__name__}.",
                mend="Recover again, to another place.",
            ) from None
        _must(len(found) == tables, f"{places.database} has {len(found)} tables, not {tables}")
        require_service(session)
    return {"tables": len(found), "in_recovery": False, "accepts_writes": True}


def _commit(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    _must(done.returncode == 0, f"{checkout} is no checkout: {done.stderr.strip()}")
    return done.stdout.strip()


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise NotAsRestored(f"{otherwise}.", mend="Somebody changed it meanwhile, or it was lost: recover again.")

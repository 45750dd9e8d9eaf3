"""What is at risk while the primary region is away: what came after the newest moment that the replica has (R5.5)."""

from __future__ import annotations

from datetime import UTC, datetime

from include.errors import BackupError
from include.pipeline.store import StoreAway
from include.policy import Policy
from include.repository.catalog import Catalog
from include.repository.ledger import Ledger
from include.repository.manifest import moment_text


class PrimaryAway(BackupError):
    """The primary region does not answer: nothing is backed up, and the replica is all that there is."""


def told_at_risk(away: StoreAway, replica: Catalog, policy: Policy, *, now: datetime | None = None) -> PrimaryAway:
    """The same failure, with what would be lost if the primary were gone, as the replica itself tells it."""
    return PrimaryAway(
        f"{away.what.rstrip('.')}. {_at_risk(replica, policy, now or datetime.now(UTC))}",
        mend=f"{away.mend} Until it answers nothing is backed up. If that region is lost, restore from the replica: "
        f"docs/restore.md, with --bucket {replica.bucket.name}.",
    )


def _at_risk(replica: Catalog, policy: Policy, now: datetime) -> str:
    try:
        manifests = [entry.manifest for entry in replica.entries() if entry.manifest and not entry.verification.failed]
        newest = Ledger.read(replica, policy, since=now, until=now).newest
    except BackupError as failure:
        return f"What the replica has cannot be told either: {failure.what}"
    if not manifests:
        return f"{replica.bucket} holds no backup: all that was backed up is at risk."
    last = manifests[-1].consistency_point.time
    age = str(now - last).partition(".")[0]
    shipped = newest is not None and newest.shipped is not None and newest.backup == manifests[-1].id
    log = f", and after the log that was shipped since then, up to {newest.reaches}," if newest and shipped else ""
    return (
        f"The newest backup that is durable in {replica.bucket} is {manifests[-1].id}, of {moment_text(last)}, {age} "
        f"ago: what came after it{log} is lost if the primary is gone."
    )

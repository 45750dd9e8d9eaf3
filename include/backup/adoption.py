"""Slots whose time is past: a moment that was missed cannot be made afterwards (R5.5)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from include.errors import BackupError
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.manifest import Manifest, Slot, moment_text


class Adopted(BackupError):
    """A slot that needs no backup of its own: `by` is the one that covers it. Nothing was made, and nothing is lost."""

    def __init__(self, backup: BackupId, *, by: Manifest) -> None:
        super().__init__(
            f"{backup} is adopted by {by.id}, which is of {moment_text(by.consistency_point.time)}.",
            mend="Nothing is to be done: what a run made now would be of a later moment still.",
        )
        self.by = by


def late_by(backup: BackupId, slot: Slot | None, catalog: Catalog, *, now: datetime | None = None) -> timedelta | None:
    """How late a backup of the slot is taken: None before the next slot is due, and for a manual run.

    Raises `Adopted` for a late one when a later backup of its type exists already: the first one made after the slot
    ended, of those whose verification did not fail.
    """
    now = now or datetime.now(UTC)
    if slot is None or now < slot.end + (slot.end - slot.start):
        return None
    for entry in catalog.entries(backup.type):  # oldest first
        if entry.manifest is None or entry.verification.failed:
            continue
        if entry.manifest.consistency_point.time >= slot.end:
            raise Adopted(backup, by=entry.manifest)
    return now - slot.end


def late_warning(backup: BackupId, late: timedelta) -> str:
    """What the manifest says of a backup that was taken late."""
    return (
        f"{backup} was taken {timedelta(seconds=round(late.total_seconds()))} after its slot ended: "
        "it is of the moment of its consistency point, not of its slot."
    )

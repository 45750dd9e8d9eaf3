"""The way back: base and log to a moment, or a full backup where the chain is broken (R5.3); planned, then gone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from include.errors import BackupError
from include.policy import Policy
from include.recovery.moments.places import Places
from include.recovery.moments.plan import EVERYTHING, NoTarget, RecoveryPlan, Target, Unreachable, What, iso
from include.recovery.moments.planning import plan_recovery, reopen
from include.recovery.moments.steps import restore_to
from include.recovery.scratch import APPLICATION
from include.recovery.whole import restore_backup
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.leases import reading
from include.repository.manifest import Manifest, ManifestRefused


class SiteBusy(BackupError):
    """A site to which somebody else recovers at the same time."""


@dataclass(frozen=True)
class Route:
    """One of the two ways. Of the full backup, `because` says why it is not base and log, and what that loses."""

    recovery: RecoveryPlan | None = None
    full: Manifest | None = None
    because: str = ""

    @property
    def reaches(self) -> datetime:
        """The moment of the last commit that comes back."""
        if self.recovery is not None:
            return self.recovery.reaches
        assert self.full is not None  # noqa: S101 - it is one or the other
        return self.full.consistency_point.time

    @property
    def files_as_of(self) -> datetime | None:
        """As of when the objects come back, by their store's clock."""
        if self.recovery is not None:
            return self.recovery.objects.as_of if self.recovery.objects else None
        assert self.full is not None  # noqa: S101
        return self.full.consistency_point.objects_as_of

    @property
    def way(self) -> RecoveryPlan | Manifest:
        """Whichever it is."""
        way = self.recovery or self.full
        assert way is not None  # noqa: S101 - it is one or the other
        return way

    def lines(self) -> Iterator[str]:
        """The way, as people read it."""
        if self.recovery is not None:
            yield from self.recovery.lines()
        if self.full is not None:
            yield f"full backup    {self.full.id}, as of {iso(self.reaches)}"
            stored, raw = self.full.stored_bytes / 1e6, self.full.raw_bytes / 1e6
            yield f"bytes          {stored:,.1f} MB to download, {raw:,.1f} MB raw"
            yield f"because        {self.because}"

    def to_json(self) -> dict[str, Any]:
        """Small enough for an XCom; `reopen_route` makes the route of it again."""
        return {
            "recovery": self.recovery and self.recovery.to_json(),
            "full": self.full and self.full.id,
            "because": self.because,
            "reaches": iso(self.reaches),
            "files_as_of": self.files_as_of and iso(self.files_as_of),
        }


def plan_route(
    catalog: Catalog, target: Target, policy: Policy, *, what: Collection[What] = EVERYTHING, scratch: Path
) -> Route:
    """Plan the way to the target: base and log where they lead there, else the newest full backup before it.

    For the latest moment a full backup that is newer than all of the log goes before it. Raises what `plan_recovery`
    raised, where there is no full backup either.
    """
    try:
        recovery = plan_recovery(catalog, target, policy, what=what, scratch=scratch)
    except (Unreachable, ManifestRefused, NoTarget) as broken:
        full = None if isinstance(broken, NoTarget) else _newest_full(catalog, target)
        if full is None:
            raise
        return Route(full=full, because=broken.what)
    if target.text == "latest" and (full := _newest_full(catalog, target)) and _point(full) > recovery.reaches:
        return Route(full=full, because=f"Base and log lead to {iso(recovery.reaches)} only, which is earlier.")
    return Route(recovery)


def reopen_route(document: dict[str, Any], catalog: Catalog, policy: Policy) -> Route:
    """The route that `to_json` told; raises `Unreachable`, `NoSuchBackup` or `ManifestRefused` when it is no more."""
    if document["recovery"]:
        return Route(reopen(document["recovery"], catalog, policy))
    return Route(full=catalog.get(BackupId.parse(document["full"])), because=document["because"])


def go(route: Route, catalog: Catalog, policy: Policy, *, places: Places, scratch: Path) -> dict[str, Any]:
    """Bring everything back along the route; `scratch` keeps what must be there. Raises what stopped it.

    To the places of a site one at a time: raises `SiteBusy` while another recovery writes to them.
    """
    with _alone(places):
        if route.recovery is not None:
            return restore_to(route.recovery, catalog, policy, places=places, scratch=scratch)
        assert route.full is not None  # noqa: S101
        with reading(catalog, [route.full.id], policy, what="disaster recovery"):
            return restore_backup(route.full, catalog, policy, places=places, scratch=scratch)


@contextmanager
def _alone(places: Places) -> Iterator[None]:
    """Nobody else recovers to the same database of the same server: by a lock that dies with its session."""
    if not places.live or places.server is None:
        yield
        return
    with places.server.connect(application_name=APPLICATION, autocommit=True) as session:
        asked = [f"synapse-backups recovery to {places.database}"]
        (free,) = session.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", asked).fetchone() or (False,)
        if not free:
            raise SiteBusy(
                f"Another recovery writes to {places.database} on {places.server.host}:{places.server.port} now.",
                mend="Wait for it, or end it; then clear this task. Two at once would leave nobody knows whose data.",
            )
        yield


def _newest_full(catalog: Catalog, target: Target) -> Manifest | None:
    """The newest sound full backup that is not later than the target; the target itself where it is one."""
    sound = [entry.manifest for entry in catalog.entries("full") if entry.manifest and not entry.verification.failed]
    until = target.moment
    if target.backup is not None:
        named = [one for one in sound if one.backup == target.backup]
        if named or target.backup.type == "full":
            return named[0] if named else None
        until = _point(catalog.get(target.backup))
    fitting = [one for one in sound if until is None or _point(one) <= until]
    return max(fitting, key=_point, default=None)


def _point(manifest: Manifest) -> datetime:
    return manifest.consistency_point.time

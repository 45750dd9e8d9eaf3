"""The two copies of the backups, as one run reaches them: one has to answer, the other may (R3.2, R5.3)."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from include.disaster.plan import Copy
    from include.operators.run import Surroundings
    from include.repository.catalog import Catalog

log = logging.getLogger(__name__)

OTHER_ANSWERS_WITHIN = timedelta(minutes=1)
"""How long the copy that is not needed may keep a failover waiting."""


def catalogs(here: Surroundings, copy: Copy) -> list[Catalog]:
    """The copy's bucket first, which has to answer; then the other one, where there is a connection to it."""
    others = [catalog for other, catalog in reachable(here).items() if other != copy]
    return [here.catalog if copy == "primary" else here.replica, *others]


def reachable(here: Surroundings) -> dict[Copy, Catalog]:
    """Each copy that there is a connection to. With a region lost, that may be gone, too.

    Nobody waits long for a bucket that does not answer. Raises `ConnectionUnusable` when there is no connection at all.
    """
    from include.disaster.plan import COPIES  # noqa: PLC0415
    from include.operators import connections  # noqa: PLC0415
    from include.repository.catalog import Catalog  # noqa: PLC0415

    found: dict[Copy, Catalog] = {}
    missing: connections.ConnectionUnusable | None = None
    for copy in COPIES:
        place = getattr(here.policy.storage, copy)
        try:
            bucket = connections.bucket(
                place.connection, name=place.bucket, region=place.region, stall_limit=OTHER_ANSWERS_WITHIN
            )
        except connections.ConnectionUnusable as unusable:
            missing = unusable
            log.warning("The %s is not asked: %s", copy, unusable.what)
        else:
            found[copy] = Catalog(bucket, here.keyring)
    if not found and missing:
        raise missing
    return found

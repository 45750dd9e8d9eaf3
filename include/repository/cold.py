"""The cold tier: what of the archives is in Glacier, what it takes to read it again, and the retrieval (R3.3).

Nothing is remembered between two looks: how each object stands is asked of the store, so whoever waits may die and
another go on. A retrieval makes a copy that can be read beside the one in Glacier, for a time; nothing moves.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from include.errors import BackupError
from include.pipeline.store import Bucket
from include.policy import Policy
from include.policy.model import RETRIEVAL_TIERS, Prices, RetrievalTier
from include.repository.catalog import Catalog
from include.repository.manifest import Manifest
from include.repository.references import Reference, references

log = logging.getLogger(__name__)

ARCHIVES = "archive/"
Answer = TypeVar("Answer")
_AT_ONCE = 16
_GIB = 2**30
_DAYS_A_MONTH = 30


class StillCold(BackupError):
    """An archive that is not readable although it had the time."""


@dataclass(frozen=True)
class Retrieval:
    """How the objects of one archive stand to Glacier: numbers of objects; `waiting_bytes` cannot be read yet."""

    archive: str
    warm: int
    cold: int
    coming: int
    retrieved: int
    waiting_bytes: int

    @property
    def is_readable(self) -> bool:
        """Whether every object can be read now."""
        return not self.cold and not self.coming

    def __str__(self) -> str:
        total = self.warm + self.cold + self.coming + self.retrieved
        return (
            f"{self.archive}: {self.warm + self.retrieved} of {total} objects can be read; {self.coming} are on their "
            f"way, {self.cold} are cold ({self.waiting_bytes / 1e6:,.1f} MB)"
        )


def look(bucket: Bucket, manifest: Manifest) -> Retrieval:
    """Ask of every object that the manifest names how it stands; raises `ObjectMissing`."""
    named = list(references(manifest))
    states = _side_by_side(lambda each: bucket.retrieval(each.key), named)
    count = Counter(states)
    waiting = sum(each.stored_bytes for each, state in zip(named, states, strict=True) if state in ("cold", "coming"))
    return Retrieval(manifest.id, count["warm"], count["cold"], count["coming"], count["retrieved"], waiting)


def request(bucket: Bucket, manifest: Manifest, policy: Policy, tier: RetrievalTier | None = None) -> Retrieval:
    """Ask for every object that is not warm, by the policy's tier or another; returns how they stand then.

    What is on its way stays so, and what was retrieved before stays readable as long as what comes now.
    """
    tier, days = tier or policy.storage.cold.retrieval, policy.storage.cold.thawed_for.days
    named = list(references(manifest))
    states = _side_by_side(lambda each: bucket.retrieval(each.key), named)
    wanted = [each for each, state in zip(named, states, strict=True) if state in ("cold", "retrieved")]
    _side_by_side(lambda each: bucket.retrieve(each.key, tier=tier, days=days), wanted)
    stands = look(bucket, manifest)
    log.info("%s. Asked for %s objects (%s), readable for %s days.", stands, len(wanted), tier, days)
    return stands


def wait(
    bucket: Bucket,
    manifest: Manifest,
    policy: Policy,
    tier: RetrievalTier | None = None,
    *,
    report: Callable[[Retrieval], None],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until every object can be read, looking as often as the policy says; each look is told to `report`.

    Raises `StillCold` when twice the time is over that the tier promises.
    """
    every = policy.storage.cold.looked_at_every
    waited = timedelta()
    while not (stands := look(bucket, manifest)).is_readable:
        report(stands)
        if waited > (limit := patience(policy, tier)):
            raise still_cold(stands, limit)
        pause(every.total_seconds())
        waited += every
    report(stands)


def patience(policy: Policy, tier: RetrievalTier | None = None) -> timedelta:
    """How long a retrieval may take before somebody should look at it: twice what the tier promises, an hour at least.

    An hour, because lifecycle rules and clocks are not as exact as the fastest tier.
    """
    cold = policy.storage.cold
    return max(2 * cold.retrievals[tier or cold.retrieval].within, timedelta(hours=1))


def still_cold(stands: Retrieval, limit: timedelta) -> StillCold:
    """The error for a retrieval that takes too long."""
    return StillCold(
        f"{stands}, after {limit}.",
        mend="Ask again, or by a faster tier: `python -m include.cli thaw`. What is on its way is not asked for twice.",
    )


@dataclass(frozen=True)
class ColdArchive:
    """What of one archive is in Glacier, in objects and stored bytes, and what retrieving it costs in US dollars."""

    archive: str
    objects: int
    bytes: int
    cold_objects: int
    cold_bytes: int
    usd: dict[RetrievalTier, float]


def report(catalog: Catalog, policy: Policy) -> list[ColdArchive]:
    """Of every archive in the catalog, what is cold and what it takes to have it back: one listing, nothing is read."""
    stored = {each.key: each for each in catalog.bucket.objects(ARCHIVES)}
    found = []
    for entry in catalog.entries("archive"):
        if entry.manifest is None:
            continue
        objects = [stored[each.key] for each in references(entry.manifest) if each.key in stored]
        cold = [each for each in objects if each.is_cold]
        size = sum(each.size for each in cold)
        usd = {tier: cost(len(cold), size, tier, policy) for tier in RETRIEVAL_TIERS}
        found.append(
            ColdArchive(entry.manifest.id, len(objects), sum(each.size for each in objects), len(cold), size, usd)
        )
    return found


def cost(objects: int, size: int, tier: RetrievalTier, policy: Policy) -> float:
    """What retrieving so many objects of so many bytes costs in US dollars.

    The requests, the bytes, and the copies' place in the standard class for as long as they stay.
    """
    prices: Prices = policy.monitoring.metrics.usd_per_gib_month
    cold = policy.storage.cold
    retrieval, gib = cold.retrievals[tier], size / _GIB
    kept = gib * prices.standard * cold.thawed_for.days / _DAYS_A_MONTH
    return retrieval.usd_per_gib * gib + retrieval.usd_per_1000_objects * objects / 1000 + kept


def _side_by_side(ask: Callable[[Reference], Answer], named: Iterable[Reference]) -> list[Answer]:
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="cold") as pool:
        return list(pool.map(ask, named))

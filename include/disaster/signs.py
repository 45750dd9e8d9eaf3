"""What of a backup's content looks like the work of ransomware, told from its manifest and those before it alone.

Encrypted data does not compress. So a backup in which what compressed before does so no more, although hardly anything
was added, was made after somebody encrypted it. What never compressed (photographs, archives) tells nothing that way:
of objects it shows how many of those that were there were changed or deleted within one increment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from include.policy import Verification
from include.repository.contents import BASE, STRUCTURE
from include.repository.manifest import Manifest

_MOVED = 0.1
_STORED = 1.5
"""Content stopped compressing: its size compressed went a tenth of the way to its size, and is half as much again as it
would be if every byte that was added did not compress at all. A quarter of it encrypted is about as much; a day of
uploading photographs, or one of writing, is not."""
_LOG_SHARE, _LOG_MOVED = 0.25, 0.15
"""Of a window's log: as many bytes stored as a quarter of the cluster's, and a seventh of the way less compressed."""
_CHANGED, _CHANGED_USUALLY = 0.25, 3
"""Of an increment's objects: so large a share of all that there are, and so many times what is usual."""
CLUSTER = "the cluster"


@dataclass(frozen=True)
class Weight:
    """How much there is of one thing: bytes raw and stored, and in how many rows or objects."""

    raw: int = 0
    stored: int = 0
    items: int = 0

    @property
    def ratio(self) -> float:
        """What is left of it when it is compressed; a little above 1 where nothing is gained."""
        return self.stored / self.raw if self.raw else 0.0

    def __add__(self, other: Weight) -> Weight:
        return Weight(self.raw + other.raw, self.stored + other.stored, self.items + other.items)


def weights(manifest: Manifest) -> Mapping[str, Weight]:
    """A backup's dumps and packs by component, and its base; lists, logs and what belongs to none are left out."""
    found: dict[str, Weight] = defaultdict(Weight)
    for artifact in manifest.artifacts:
        weight = Weight(artifact.raw_bytes, artifact.stored_bytes)
        if artifact.name == BASE or artifact.name.startswith("database/tablespace-"):
            found[CLUSTER] += weight
        elif artifact.component != STRUCTURE and artifact.name.startswith("database/"):
            found[artifact.component] += weight
    rows = manifest.database.rows or 0
    found = defaultdict(Weight, {name: weight + Weight(items=rows) for name, weight in found.items()})
    for pack in manifest.packs:
        found[f"objects of {pack.component}"] += Weight(pack.raw_bytes, pack.stored_bytes, pack.members)
    return found


def stopped_compressing(now: Manifest, before: Sequence[Manifest], policy: Verification) -> Iterator[str]:
    """What of a full backup or a snapshot did compress in those `before` and does so no more, a phrase each."""
    usual: dict[str, list[Weight]] = defaultdict(list)
    for earlier in before:
        for name, weight in weights(earlier).items():
            usual[name].append(weight)
    for name, weight in weights(now).items():
        if not (known := usual.get(name)) or weight.raw < policy.shrunk_from_bytes:
            continue
        middle = Weight(*(round(median(values)) for values in zip(*map(_numbers, known), strict=True)))
        grown = max(weight.items / middle.items - 1, 0.0) if middle.items else 0.0
        expected = middle.stored + grown * middle.raw
        if _moved(weight.ratio, middle.ratio) >= _MOVED and weight.stored > _STORED * expected:
            yield (
                f"{name} compresses to {weight.ratio:.0%} where {middle.ratio:.0%} is usual, and takes "
                f"{weight.stored / 1e6:,.1f} MB where {expected / 1e6:,.1f} would hold all that was added"
            )


def rewritten_log(now: Manifest, base: Manifest | None, policy: Verification) -> Iterator[str]:
    """That a window's log is of a mass of incompressible rows, beside the last snapshot's `base`: both are pages."""
    pages = weights(base).get(CLUSTER) if base else None
    if now.wal is None or pages is None or now.wal.stored_bytes < policy.shrunk_from_bytes:
        return
    log = Weight(now.wal.raw_bytes, now.wal.stored_bytes)
    if log.stored >= _LOG_SHARE * pages.stored and _moved(log.ratio, pages.ratio) >= _LOG_MOVED:
        yield (
            f"its log takes {log.stored / 1e6:,.1f} MB, {log.stored / pages.stored:.0%} of what the whole cluster "
            f"does, and compresses to {log.ratio:.0%} where that does to {pages.ratio:.0%}"
        )


def may_have_changed_many(now: Manifest, listing: Manifest, between: Sequence[Manifest], policy: Verification) -> bool:
    """Whether an increment has so many versions and deletions of objects that it is worth to look of which.

    `listing` is the last that lists all objects, and `between` are the increments since.
    """
    there = listing.objects.objects
    at_most = there + sum(one.objects.objects for one in between)
    changed = now.objects.objects + now.objects.deleted
    return at_most >= policy.shrunk_from_items and changed >= _CHANGED * there


def changed_many(touched: int, there: int, usually: Sequence[int]) -> Iterator[str]:
    """That an increment changed or deleted suddenly many of the objects that were `there` before it."""
    usual = median(usually) if usually else 0
    if touched >= _CHANGED * there and touched >= _CHANGED_USUALLY * usual:
        yield (
            f"{touched:,} of the {there:,} objects that were there were changed or deleted in one increment, where "
            f"{round(usual):,} are usual"
        )


def _moved(now: float, usual: float) -> float:
    """How much of the way from what is usual to not compressing at all."""
    return (now - usual) / (1 - usual) if usual < 1 else 0.0


def _numbers(weight: Weight) -> tuple[int, int, int]:
    return weight.raw, weight.stored, weight.items

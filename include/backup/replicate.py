"""A backup, durable in the second region: brought there, a sample of it opened there, and only then the slot moves.

The anchor slot is what the server keeps its log for. It follows the *replica*: a window that is in one region only may
be gone with it, and its log would be nowhere (R3.2, R5.5).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import psycopg

from include.backup.application import Application
from include.backup.increment import read_chain
from include.backup.wal_collection import longest_wait, read_log
from include.pipeline.progress import Progress
from include.policy import Policy
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.chain import Chain
from include.repository.contents import object_index
from include.repository.layout import ROLLING_TYPES, BackupId
from include.repository.lsn import Lsn
from include.repository.manifest import Manifest
from include.repository.replica import Brought, Replica
from include.repository.wal import WalArchive
from include.sources.objects import Deletion, IndexEntry
from include.sources.postgres.login import DatabaseUnreachable
from include.sources.postgres.slots import AnchorLost, ChainBusy, advance_anchor, chain_lock

log = logging.getLogger(__name__)

Facts = dict[str, Any]
_ENTRIES_SEEN = 1000
"""Of how many lines of an index one object is drawn: enough to be another one each time, and few to read."""


def waiting(backup: BackupId, primary: Catalog, replica: Catalog, policy: Policy) -> int:
    """How many objects of a committed backup the bucket's own replication is still to bring; 0 where it has none."""
    looked = Replica(primary, replica, policy, progress=Progress("replica"))
    return looked.waiting(primary.get(backup)) if looked.replicates else 0


def replicate(
    backup: BackupId, *, application: Application, primary: Catalog, replica: Catalog, policy: Policy
) -> Facts:
    """Bring a backup, and everything older that is not there yet, to the replica; then the slot may move (R3.2).

    Returns what was brought, how long after its consistency point the backup was durable there, and where the slot is.
    Raises `NotReplicated` when anything is not, and what the stores raise; what was brought stays.
    """
    with Progress(f"replicating {backup}", every=policy.pipeline.progress_every) as progress:
        pair = Replica(primary, replica, policy, progress=progress)
        brought = pair.bring()
        facts = brought.facts() | {"sampled": _open_samples(pair, brought, policy)}
        if (made := primary.get(backup)).wal is not None:
            facts |= {"slot": _told(advance(application, primary, replica, policy))}
        brought.require()
        lag = pair.lag(made)
        seconds = progress.usage().seconds
    facts |= {"lag_seconds": round(lag.total_seconds(), 1) if lag else None, "seconds": round(seconds, 1)}
    log.info("%s is durable in %s, %s s after its moment.", backup, replica.bucket, facts["lag_seconds"])
    return facts


def catch_up(
    *, application: Application | None, primary: Catalog, replica: Catalog, policy: Policy, everything: bool
) -> Facts:
    """Bring every backup that is not there yet; with `everything`, look at every object of those that are, too (R3.2).

    Without an `application` no slot is moved. Raises as `replicate`.
    """
    with Progress("looking through the replica", every=policy.pipeline.progress_every) as progress:
        pair = Replica(primary, replica, policy, progress=progress)
        brought = pair.bring(everything=everything)
        facts = brought.facts() | {"sampled": _open_samples(pair, brought, policy)}
        if application is not None:
            facts |= {"slot": _told(advance(application, primary, replica, policy))}
        brought.require()
    return facts


def advance(application: Application, primary: Catalog, replica: Catalog, policy: Policy) -> Lsn | None:
    """Let the server remove the log that is durable in both regions; returns where the slot is, None when it stays.

    Under the chain's lock. The backups are made and brought: what fails here on the server, the next run mends.
    """
    try:
        with chain_lock(application.replication, "window", wait=longest_wait(policy)) as lock:
            state = read_log(application)
            end = durable_in_both(read_chain(primary, state), read_chain(replica, state))
            return advance_anchor(lock.session, end) if end is not None else None
    except (AnchorLost, ChainBusy, DatabaseUnreachable, psycopg.Error) as error:
        log.warning("The anchor slot was not moved: %s", error)
        return None


def durable_in_both(primary: Chain, replica: Chain) -> Lsn | None:
    """Up to where the log is in both regions without a hole, from the replica's newest base on; None when nowhere.

    The replica's own end counts, and no window of the primary before it may be missing there: one that could not be
    brought keeps the slot at its beginning, though later ones are there.
    """
    ends = [primary.durable_end(), replica.durable_end()]
    reached = min((end for end in ends if end is not None), default=None)
    base = replica.base()
    if reached is None or base is None or base.base is None or None in ends:
        return None
    begins = base.base.start_lsn
    there = {each.id for each in replica.windows}
    holes = [
        each.wal.start_lsn
        for each in primary.windows
        if each.wal is not None and each.id not in there and each.wal.end_lsn > begins
    ]
    return min([reached, *holes])


def _open_samples(pair: Replica, brought: Brought, policy: Policy) -> int:
    """Read some pieces back from the replica, and decrypt them with the envelopes that lie there; returns how many.

    Of each backup that was brought; where none was, of the newest of each type. Raises what reading them raises.
    """
    replica = pair.replica
    if brought.backups:
        chosen = [replica.get(BackupId.parse(backup)) for backup in brought.backups]
    else:
        newest = [[entry.manifest for entry in replica.entries(type_) if entry.manifest] for type_ in ROLLING_TYPES]
        chosen = [manifests[-1] for manifests in newest if manifests]
    looks = [
        look
        for manifest in chosen
        for look in _some_of(list(_pieces(replica, manifest, policy)), policy.storage.replica.verified_sample)
    ]
    for look in looks:
        for _ in look():
            pass
    return len(looks)


_Look = Callable[[], Iterator[bytes]]


def _some_of(looks: list[_Look], count: int) -> list[_Look]:
    return random.sample(looks, min(count, len(looks)))


def _pieces(catalog: Catalog, manifest: Manifest, policy: Policy) -> Iterator[_Look]:
    """Everything of a backup that can be opened alone: a segment, a file of the log, some object out of its pack."""
    opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=Progress(f"sampling {manifest.id}"))
    for artifact in manifest.artifacts:
        for number in range(len(artifact.segments)):
            yield partial(opened.read_segment, artifact.name, number)
    if manifest.wal is not None:
        system = manifest.database.system_identifier
        archive = WalArchive(catalog.bucket, catalog.keyring, system, policy=policy.pipeline)
        for file in manifest.wal.files:
            yield partial(archive.read, file)
    for component in sorted({pack.component for pack in manifest.packs}):
        yield partial(_some_object, opened, component)


def _some_object(opened: OpenedBackup, component: str) -> Iterator[bytes]:
    whole = opened.has(object_index(component))
    lines: Iterator[IndexEntry | Deletion] = opened.objects(component) if whole else opened.changes(component)
    held = [line for line in islice(lines, _ENTRIES_SEEN) if isinstance(line, IndexEntry) and opened.holds(line)]
    if held:
        yield from opened.read_object(random.choice(held))  # noqa: S311 - no secret


def _told(lsn: Lsn | None) -> str | None:
    return str(lsn) if lsn is not None else None

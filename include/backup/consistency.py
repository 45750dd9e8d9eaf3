"""One moment across database, objects and configuration (R4.3): writes stop for milliseconds while it is noted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from include.backup.application import Application
from include.errors import BackupError
from include.policy import Policy
from include.repository.layout import BackupId
from include.sources.configuration import ConfigurationPoint
from include.sources.postgres.barrier import ConsistencyPoint, hold_consistency_point, release_writes
from include.sources.postgres.blockers import find_blockers
from include.sources.postgres.relations import list_relations

if TYPE_CHECKING:
    from include.policy import Barrier as BarrierPolicy

log = logging.getLogger(__name__)


class LongTransactions(BackupError):
    """Transactions that would make the write barrier, and every writer behind it, wait."""


class SurroundingsSilent(BackupError):
    """The object store or the configuration did not answer while writers waited."""


@dataclass(frozen=True)
class Surroundings:
    """What is noted while writes are stopped: the object store's clock, and the configuration's refs."""

    objects_as_of: datetime
    configuration: ConfigurationPoint


Point = ConsistencyPoint[Surroundings]
"""The moment of a backup, and the session that still sees it."""


def stop_writes(application: Application, policy: Policy) -> dict[str, Any]:
    """Prove that nothing long-running would make the write barrier wait (R4.3, set-up).

    Writes themselves are stopped later, for milliseconds, inside `consistency_point`. Raises `LongTransactions`.
    """
    with application.dump.connect(application_name="synapse-backups", autocommit=True) as session:
        relations = list_relations(session)
    blockers = find_blockers(application.barrier, relations.lockable, longer_than=policy.barrier.long_running)
    if blockers:
        raise LongTransactions(
            "The write barrier would have to wait: " + "; ".join(str(blocker) for blocker in blockers) + ".",
            mend=blockers[0].mend,
        )
    return {"tables": len(relations.lockable), "blockers": 0}


def resume_writes(application: Application, backup: BackupId) -> dict[str, Any]:
    """Prove that no session of this backup stops writes any more, and end one that does (R4.3, teardown)."""
    ended = release_writes(application.barrier, str(backup))
    for session in ended:
        log.warning("Ended %s (pid %s), which held %s.", session.application, session.pid, ", ".join(session.tables))
    return {"ended": [session.application for session in ended]}


@contextmanager
def consistency_point(application: Application, name: str, policy: BarrierPolicy) -> Iterator[Point]:
    """Stop writes for the moment called `name`, and keep that moment's snapshot until the block ends."""
    with (
        ThreadPoolExecutor(2, thread_name_prefix="surroundings") as lookers,
        hold_consistency_point(
            application.barrier,
            application.dump,
            name=name,
            relations=list_relations,
            policy=policy,
            while_stopped=_looker(application, lookers, within=policy.lock_timeout),
        ) as point,
    ):
        log.info(
            "Consistency point %s at %s (LSN %s): writers waited %.0f ms, the locks were held %.0f ms.",
            *(point.restore_point, point.time.isoformat(), point.lsn, point.waited * 1000, point.held * 1000),
        )
        yield point


def _looker(application: Application, lookers: ThreadPoolExecutor, *, within: timedelta) -> Callable[[], Surroundings]:
    """What `while_stopped` calls: both looks at once, on connections and pages that were warmed before writes stop.

    Writers wait for no store that hangs: it raises `SurroundingsSilent` after `within`, and the barrier lets them go.
    """

    def look(longest: float | None = None) -> Surroundings:
        clock = lookers.submit(application.objects.clock)
        point = lookers.submit(application.configuration.point)
        looks: tuple[Future[Any], ...] = (clock, point)
        if wait(looks, timeout=longest).not_done:
            raise SurroundingsSilent(
                f"{application.objects} or the configuration did not answer within {longest:g} s while writes were "
                "stopped. They flow again.",
                mend="Look at the object store and at the repository's disk; the run is tried again.",
            )
        return Surroundings(clock.result(), point.result())

    look()
    return partial(look, within.total_seconds())

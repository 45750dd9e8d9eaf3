"""The step that ends what has had its time, in one of the two buckets (R1, R8.1)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from include.operators.step import Facts, Step

if TYPE_CHECKING:
    from airflow.sdk import Context


RUN_TIMEOUT = timedelta(hours=2)
"""What the policy bounds in a run takes minutes; a slow store may take an hour."""


class Retain(Step):
    """Delete what no rule keeps from one bucket, by that bucket's own catalog; what goes is shown in the log first.

    What somebody holds or reads is put off, what Object Lock keeps waits: neither fails the task before it is overdue.
    The policy's bound ends a run; tomorrow's goes on. A bucket that lacks backups which the last run saw fails it, with
    nothing gone.

    :param store: `primary` or `replica`
    """

    def __init__(self, *, store: Literal["primary", "replica"], **kwargs: Any) -> None:
        super().__init__(**{"execution_timeout": RUN_TIMEOUT, **kwargs})
        self.store = store

    def _take(self, context: Context) -> Facts:
        from include.operators.run import Surroundings  # noqa: PLC0415 - the engine: over a second
        from include.repository.expiry import Retention  # noqa: PLC0415
        from include.repository.needs import words_of  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        replica = self.store == "replica"
        catalog = here.replica if replica else here.catalog
        retention = Retention(catalog, here.policy, primary=here.catalog if replica else None)
        plan = retention.plan()
        for backup in plan.going:
            self.log.info("GOES: %s, of %s, %d bytes.", backup.id, backup.time.isoformat(), backup.stored_bytes)
        for interval in plan.moments_lost:
            self.log.info("NOT RESTORABLE ANY MORE: %s.", words_of(interval))
        outcome = retention.apply(plan)
        for what, words in outcome.put_off.items():
            self.log.info("PUT OFF: %s: %s.", what, words)
        for what, since in outcome.locked.items():
            self.log.info("LOCKED: %s, which was to go since %s.", what, since.isoformat())
        outcome.require(here.policy, catalog.bucket.clock())
        return {**plan.facts(), **outcome.facts()}

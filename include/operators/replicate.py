"""The steps that make backups durable in the second region (R3.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from include.operators.step import BackupStep, Facts, Step

if TYPE_CHECKING:
    from airflow.sdk import Context

    from include.operators.run import BackupRun

LOOK_EVERY = timedelta(seconds=20)
"""How often it is asked what the bucket's own replication has brought: AWS brings most of it within a minute."""
MARGIN = timedelta(minutes=5)
"""How much later than the trigger's own deadline Airflow gives the trigger up."""


class Replicate(BackupStep):
    """Bring the backup, and everything older that is not there yet, to the replica, and let the slot follow (R3.2).

    Where the primary bucket replicates by itself, that is waited for first, for as long as the policy's
    `storage.replica.within`, in the triggerer; what is missing then is copied.
    """

    _waited = False

    def step(self, run: BackupRun) -> Facts:
        """What was brought, and how long after its moment the backup was durable."""
        from include.backup import replicate  # noqa: PLC0415

        if not self._waited and replicate.waiting(run.backup, run.catalog, run.replica, run.policy):
            made = run.catalog.get(run.backup)
            deadline = made.finished + run.policy.storage.replica.within
            if deadline > datetime.now(UTC):
                self.log.info("The bucket's own replication is waited for, until %s.", deadline)
                self.defer(
                    trigger=ReplicationTrigger(backup=str(run.backup), deadline=deadline.isoformat()),
                    method_name=self.waited.__name__,
                    timeout=deadline - datetime.now(UTC) + MARGIN,
                )
        return replicate.replicate(
            run.backup, application=run.application, primary=run.catalog, replica=run.replica, policy=run.policy
        )

    def waited(self, context: Context, event: dict[str, Any]) -> Facts:
        """Go on behind the trigger: what is not there by now is copied."""
        self.log.info("The bucket's own replication has %s objects to bring.", event["waiting"])
        self._waited = True
        return self.execute(context)


class ReplicationTrigger(BaseTrigger):
    """Fires when the bucket's own replication has brought a backup, has failed at it, or is overdue.

    A look costs a listing of the replica and one call to the primary, whatever the number of objects.

    :param backup: the id.
    :param deadline: until when it is waited for (ISO 8601).
    :param every: seconds between two looks.
    """

    def __init__(self, *, backup: str, deadline: str, every: float = LOOK_EVERY.total_seconds()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.backup, self.deadline, self.every = backup, deadline, every

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Where this class is, and what makes it again."""
        arguments = {"backup": self.backup, "deadline": self.deadline, "every": self.every}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look, until there is nothing to wait for; the event says how many objects were still missing."""
        from asgiref.sync import sync_to_async  # noqa: PLC0415 - in whose threads connections can be asked for

        deadline = datetime.fromisoformat(self.deadline)
        missing: int | None = None
        while True:
            try:
                missing = await sync_to_async(self._missing)()
            except Exception as failure:  # whatever it is, the task meets it again, and tells it
                self.log.warning("What is still to come could not be looked at: %s", failure)
            if missing == 0 or datetime.now(UTC) >= deadline:
                yield TriggerEvent({"waiting": missing})  # type: ignore[no-untyped-call]
                return
            await asyncio.sleep(self.every)

    def _missing(self) -> int:
        from include.backup.replicate import waiting  # noqa: PLC0415
        from include.operators.run import Surroundings  # noqa: PLC0415
        from include.repository.layout import BackupId  # noqa: PLC0415

        here = Surroundings()
        return waiting(BackupId.parse(self.backup), here.catalog, here.replica, here.policy)


class RepairReplica(Step):
    """Look at every object of every backup on both sides, and copy what is missing or wrong in the replica (R3.2)."""

    def _take(self, context: Context) -> Facts:
        from include.backup.replicate import catch_up  # noqa: PLC0415 - the engine: over a second
        from include.operators.run import Surroundings  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        return catch_up(
            application=here.application,
            primary=here.catalog,
            replica=here.replica,
            policy=here.policy,
            everything=True,
        )

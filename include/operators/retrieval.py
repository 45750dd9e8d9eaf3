"""The wait for Glacier, in the triggerer: no worker is held for the hours that it takes (R3.3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

if TYPE_CHECKING:
    from include.repository.cold import Retrieval


class RetrievalTrigger(BaseTrigger):
    """Fires when every object of an archive can be read, or when that is overdue.

    :param archive: the id.
    :param deadline: until when it is waited for (ISO 8601).
    """

    def __init__(self, *, archive: str, deadline: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.archive, self.deadline = archive, deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Where this class is, and what makes it again."""
        arguments = {"archive": self.archive, "deadline": self.deadline}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look as often as the policy says; the event says how the objects stand."""
        from asgiref.sync import sync_to_async  # noqa: PLC0415 - in whose threads connections can be asked for

        deadline, stands, every = datetime.fromisoformat(self.deadline), "It could not be looked at.", 60.0
        while True:
            readable = False
            try:
                found, every = await sync_to_async(self._look)()
                stands, readable = str(found), found.is_readable
            except Exception as failure:  # whatever it is, the task meets it again, and tells it
                self.log.warning("How %s stands could not be looked at: %s", self.archive, failure)
            if readable or datetime.now(UTC) >= deadline:
                yield TriggerEvent({"stands": stands})  # type: ignore[no-untyped-call]
                return
            await asyncio.sleep(every)

    def _look(self) -> tuple[Retrieval, float]:
        from include.operators.run import Surroundings  # noqa: PLC0415
        from include.repository.cold import look  # noqa: PLC0415
        from include.repository.layout import BackupId  # noqa: PLC0415

        here = Surroundings()
        stands = look(here.catalog.bucket, here.catalog.get(BackupId.parse(self.archive)))
        return stands, here.policy.storage.cold.looked_at_every.total_seconds()

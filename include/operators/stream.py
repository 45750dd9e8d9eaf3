"""The step that ships the log between the hours (R5.5)."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from include.operators.step import Facts, Step

if TYPE_CHECKING:
    from airflow.sdk import Context

SPOOL = "wal-stream"
"""The directory of the stream below the temporary ones: what a killed try left there is taken over by the next."""
LONGER = timedelta(minutes=5)
"""How long ending a try may take."""
AGAIN: dict[str, Any] = {"retries": 12, "max_retry_delay": timedelta(minutes=5)}
"""A run follows a failed one at once: most of an hour is tried again before it fails, so that few are red."""


class ShipWal(Step):
    """Store each segment of the database's log as soon as it is finished, for `hour`, or until SIGTERM (R5.5).

    While somebody else ships for this chain it stands by.

    :param hour: how long a try lasts; the next run goes on without a hole.
    """

    def __init__(self, *, hour: timedelta, **kwargs: Any) -> None:
        super().__init__(**{"execution_timeout": hour + LONGER, **AGAIN, **kwargs})
        self.hour = hour
        self._until: threading.Event | None = None

    def _take(self, context: Context) -> Facts:
        from include.backup.stream import ship_continuously  # noqa: PLC0415 - the engine: over a second
        from include.operators.run import Surroundings  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        self._until = threading.Event()
        clock = threading.Timer(self.hour.total_seconds(), self._until.set)
        clock.daemon = True
        clock.start()
        try:
            done = ship_continuously(
                here.application,
                here.catalog,
                here.policy,
                replica=here.replica,
                spool=here.root / SPOOL,
                until=self._until,
            )
        finally:
            clock.cancel()
        if done.failure is not None:
            raise done.failure
        return {
            "shipped": done.shipped,
            "replicated": done.replicated,
            "raw_bytes": done.raw_bytes,
            "interruptions": done.interruptions,
        }

    def on_kill(self) -> None:
        """End what runs, green: what is shipped is shipped, and the next run goes on behind it.

        In a thread of its own: a signal may have come while the main one held the event's lock.
        """
        if self._until is not None:
            threading.Thread(target=self._until.set, daemon=True).start()

"""The steps that keep the stores tidy, once a day."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from include.operators.step import Facts, Step

if TYPE_CHECKING:
    from airflow.sdk import Context

RUNBOOK = "disaster_recovery"
"""The DAG whose runs have the places of drills."""


class Reap(Step):
    """Remove what dead runs left behind, after the policy's time (law 5).

    What it was refused (by Object Lock, by a missing permission) fails the task when everything else is gone. Temporary
    directories are those of the worker that it lands on.
    """

    def _take(self, context: Context) -> Facts:
        from include.backup import reaper  # noqa: PLC0415 - the engine: over a second
        from include.operators.connections import database_login  # noqa: PLC0415
        from include.operators.run import Surroundings  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        leftovers = reaper.Reaper(
            here.catalog,
            here.policy,
            source=[here.application.barrier, here.application.dump],
            restores=database_login(here.policy.sources.database.scratch_connection),
            root=here.root,
            temporary=Path(tempfile.gettempdir()),
            replica=here.replica,
        ).find()
        for words in leftovers.left_alone:
            self.log.warning("Left alone: %s", words)
        stays = reaper.remove(leftovers.findings)
        if stays:
            raise reaper.NotRemoved(
                f"{len(stays)} of {len(leftovers.findings)} leftovers stay. " + " ".join(stays),
                mend="Mend what they name; the next run tries again.",
            )
        return {
            "removed": len(leftovers.findings),
            "bytes": sum(each.bytes for each in leftovers.findings),
            "left_alone": len(leftovers.left_alone),
        }


class ReapDrills(Step):
    """Remove what drills left that were killed with everything around them, after the policy's time (law 5).

    Nothing while a run of the runbook is under way: a run that was cleared, or triggered for a moment of long ago, has
    places with an old name.
    """

    def _take(self, context: Context) -> Facts:
        if under_way := context["ti"].get_dr_count(dag_id=RUNBOOK, states=["queued", "running"]):
            self.log.warning("%s runs of %s are under way: what drills left stays until then.", under_way, RUNBOOK)
            return {"removed": 0, "under_way": under_way}

        from include.disaster.isolation import leftovers, remove  # noqa: PLC0415
        from include.disaster.plan import load_plan  # noqa: PLC0415
        from include.operators import connections  # noqa: PLC0415
        from include.operators.run import Surroundings  # noqa: PLC0415

        here, drills = Surroundings(scratch_root=self.scratch_root), load_plan().drills
        found = leftovers(
            server=connections.database_login(drills.database_connection),
            bucket=connections.bucket(drills.objects_connection),
            root=here.root,
            before=here.policy.storage.attempts_reaped_after.before(datetime.now(UTC)),
        )
        for each in found:
            self.log.info("LEFT: %s, by the drill of %s", each.what, each.made)
        return {"removed": len(remove(found))}

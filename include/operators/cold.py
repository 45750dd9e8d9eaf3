"""The steps of the cold tier (R3.3): the buckets' lifecycle, what is in Glacier, and having it back."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import TriggerRule

from include.operators.recovery import RecoveryStep
from include.operators.report import Teller, failures_of, links_of
from include.operators.step import Facts, Step

if TYPE_CHECKING:
    from airflow.sdk import Context

    from include.monitoring.messages import Notification
    from include.operators.run import Surroundings
    from include.recovery.moments.places import Places
    from include.repository.manifest import Manifest

SELECT, RETRIEVE, RESTORE, VALIDATE = "select_archive", "retrieve", "restore_data", "validate"


class ApplyLifecycle(Step):
    """Give both buckets the policy's lifecycle rules where they drifted, and read them back (R3.3).

    What drifted is shown as a diff in the log, and counted in the XCom.
    """

    def _take(self, context: Context) -> Facts:
        from include.operators.run import Surroundings  # noqa: PLC0415 - the engine: over a second
        from include.repository.lifecycle import apply  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        mended = {}
        for catalog in (here.catalog, here.replica):
            drift = apply(catalog.bucket, here.policy)
            self.log.info("Lifecycle of %s: %s", catalog.bucket, drift)
            mended[catalog.bucket.name] = list(drift.lines)
        return {"mended": mended}


class ReportCold(Step):
    """Tell what of the archives is in Glacier, what having it back would cost, and how long it would take (R3.3)."""

    def _take(self, context: Context) -> Facts:
        from include.operators.run import Surroundings  # noqa: PLC0415
        from include.repository.cold import report  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        found = report(here.catalog, here.policy)
        retrievals = here.policy.storage.cold.retrievals
        for each in found:
            prices = ", ".join(f"{tier} {each.usd[tier]:,.2f} USD" for tier in retrievals)
            self.log.info("%s: %s of %s objects are cold. %s", each.archive, each.cold_objects, each.objects, prices)
        return {
            "archives": len(found),
            "cold_objects": sum(each.cold_objects for each in found),
            "cold_bytes": sum(each.cold_bytes for each in found),
            "usd": {tier: round(sum(each.usd[tier] for each in found), 2) for tier in retrievals},
            "within_seconds": {tier: each.within.total_seconds() for tier, each in retrievals.items()},
        }


class SelectArchive(RecoveryStep):
    """Read the form: which archive, how fast, and where to; refuse what is none, or cannot be had any more."""

    def step(self, here: Surroundings, context: Context) -> Facts:
        """The archive, its parts, and every place that is written to."""
        from include.disaster.isolation import stamp  # noqa: PLC0415
        from include.recovery.archived import parts_of  # noqa: PLC0415
        from include.repository.layout import BackupId  # noqa: PLC0415
        from include.repository.shredding import require_key  # noqa: PLC0415

        form = context["params"]
        archive = BackupId.parse(form["archive"])
        manifest = here.catalog.get(archive)
        parts = parts_of(manifest)
        require_key(here.catalog, archive)
        here.catalog.verification(manifest).require(manifest.id)
        run = stamp(context["dag_run"].run_after, context["dag_run"].run_id)
        facts = {
            "archive": manifest.id,
            "parts": parts,
            "tier": form["tier"],
            "run": run,
            "database": form["database"] or f"synapse_archived_{run}",
            "objects": form["objects"] or f"archived/{run}/",
            "configuration": f"archived/{form['configuration'] or run}/configuration",
        }
        self.log.info("%s has %s.", manifest.id, ", ".join(parts) or "nothing")
        return facts


class RetrieveFromCold(RecoveryStep):
    """Have every object of an archive readable: ask for what is in Glacier, and wait for it in the triggerer (R3.3).

    A second try asks for nothing that is on its way. What is warm is readable at once.

    :param selected_by: the task whose XCom names the `archive` and the `tier`.
    """

    _waited = False

    def __init__(self, *, selected_by: str = SELECT, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.selected_by = selected_by

    def step(self, here: Surroundings, context: Context) -> Facts:
        """How the objects stand when all can be read; until then the task is deferred.

        Raises `StillCold` when they had the time, and cannot be.
        """
        from include.operators.retrieval import RetrievalTrigger  # noqa: PLC0415 - airflow.triggers: half a second
        from include.repository import cold  # noqa: PLC0415

        asked = context["ti"].xcom_pull(task_ids=self.selected_by)
        bucket, manifest, tier = here.catalog.bucket, _manifest(here, asked), asked["tier"]
        stands = cold.look(bucket, manifest) if self._waited else cold.request(bucket, manifest, here.policy, tier)
        self.log.info("%s", stands)
        if not stands.is_readable:
            limit = cold.patience(here.policy, tier)
            if self._waited:
                raise cold.still_cold(stands, limit)
            self.defer(
                trigger=RetrievalTrigger(archive=manifest.id, deadline=(datetime.now(UTC) + limit).isoformat()),
                method_name=self.waited.__name__,
                timeout=2 * limit,
            )
        return {"retrieved": stands.retrieved, "warm": stands.warm}

    def waited(self, context: Context, event: dict[str, Any]) -> Facts:
        """Go on behind the trigger."""
        self.log.info("%s", event["stands"])
        self._waited = True
        return self.execute(context)


class RestoreArchive(RecoveryStep):
    """Bring the archive back into places of its own; a second try removes first what the first one left there."""

    ui_color = "#cfe3d4"

    def step(self, here: Surroundings, context: Context) -> Facts:
        """What was brought back, and where to."""
        from include.recovery.whole import restore_backup  # noqa: PLC0415

        asked = context["ti"].xcom_pull(task_ids=SELECT)
        places = _places(here, asked)
        places.clear()
        scratch = here.root / f"recovery-{asked['run']}"
        return restore_backup(_manifest(here, asked), here.catalog, here.policy, places=places, scratch=scratch)


class ValidateArchived(RecoveryStep):
    """Look at what was brought back: all of it there, and answering (R5.2)."""

    def step(self, here: Surroundings, context: Context) -> Facts:
        """What was found in each place."""
        from include.recovery.moments.steps import look_at  # noqa: PLC0415

        told = context["ti"].xcom_pull
        return look_at(_places(here, told(task_ids=SELECT)), told(task_ids=RESTORE))


class ReportArchived(Teller):
    """Tell what came of it, whatever did: what is where, and how to remove it; or what failed (R4.6, R5.2)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.ALL_DONE, **kwargs})

    def _take(self, context: Context) -> Facts:
        from include.operators.run import Surroundings  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        return self.tell(here.policy, partial(self._words, here, context))

    def _words(self, here: Surroundings, context: Context) -> Notification:
        from include.monitoring.messages import Notification  # noqa: PLC0415

        told, failures = context["ti"].xcom_pull, failures_of(context)
        asked = told(task_ids=SELECT)
        about = f"Restore of {asked['archive']}" if asked else "Restore of an archive"
        facts: dict[str, object] = {"asked for by": context["dag_run"].triggering_user_name or "nobody by name"}
        for task in (RETRIEVE, RESTORE, VALIDATE):
            facts |= told(task_ids=task) or {}
        if asked:
            facts |= {f"remove {what}": how for what, how in _places(here, asked).removal().items()}
        links = links_of(context, failures[0].task if failures else "")
        kind: Any = "recovery_failed" if failures else "recovered"
        return Notification(kind, about, facts, failures, links)


def _manifest(here: Surroundings, asked: Facts) -> Manifest:
    from include.repository.layout import BackupId  # noqa: PLC0415

    return here.catalog.get(BackupId.parse(asked["archive"]))


def _places(here: Surroundings, asked: Facts) -> Places:
    """Scratch places: nothing that is live is ever touched by an archive."""
    from include.operators import connections  # noqa: PLC0415
    from include.recovery.moments.places import Places  # noqa: PLC0415

    policy, parts = here.policy, asked["parts"]
    return Places(
        server=connections.database_login(policy.sources.database.scratch_connection) if "database" in parts else None,
        database=asked["database"] if "database" in parts else None,
        bucket=connections.bucket(policy.recovery.objects_connection, stall_limit=policy.pipeline.stall_limit)
        if "objects" in parts
        else None,
        prefix=asked["objects"],
        configuration=here.root / asked["configuration"] if "configuration" in parts else None,
        components=(),
        live=False,
        run=asked["run"],
    )

"""What all steps have in common: naming the backup, and telling what went wrong."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from include.errors import BackupError, Hopeless

if TYPE_CHECKING:
    from airflow.sdk import Context

    from include.operators.run import BackupRun
    from include.repository.layout import BackupType

Facts = dict[str, Any]
ERROR = "error"
"""The XCom in which a failed step leaves `what` and `mend`, for the alert."""
RETRIES: dict[str, Any] = {
    "retries": 2,
    "retry_delay": timedelta(seconds=10),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=2),
}
"""A step that failed is tried again after 10 and 20 seconds: long enough for a failover, short beside the RPO."""
CHECK_TIMEOUT = timedelta(minutes=5)


class Step(BaseOperator):
    """One step of any DAG. Its XCom is a small dict of facts.

    A `BackupError` is logged as what happened and how to mend it. One that another try cannot mend (a missing
    connection, a keyring, the policy) fails the task at once; any other is tried again. A slot that another backup
    covers is *adopted*: there is nothing to do, so that the task is skipped, and the run green.

    :param scratch_root: where temporary directories go; empty for `BACKUP_SCRATCH` or Airflow's home. (templated)
    """

    template_fields: Sequence[str] = ("scratch_root",)
    ui_color = "#e8f0f7"

    def __init__(self, *, scratch_root: str = "", **kwargs: Any) -> None:
        super().__init__(**{"execution_timeout": CHECK_TIMEOUT, **RETRIES, **kwargs})
        self.scratch_root = scratch_root

    def execute(self, context: Context) -> Facts:
        """Take the step."""
        try:
            return self._take(context)
        except BackupError as error:
            if isinstance(error, _adopted()):
                self.log.info("ADOPTED: %s", error.what)
                raise AirflowSkipException(error.what) from error
            self.log.error("WHAT HAPPENED: %s", error.what)
            self.log.error("HOW TO MEND IT: %s", error.mend)
            context["ti"].xcom_push(key=ERROR, value={"what": error.what, "mend": error.mend})
            if isinstance(error, Hopeless):
                raise AirflowFailException(str(error)) from error
            raise

    @abstractmethod
    def _take(self, context: Context) -> Facts:
        """Call the engine; returns the facts for the XCom."""


class BackupStep(Step):
    """One step of a backup of `backup_type`.

    :param backup_type: `full`, `incremental` or `snapshot`: with the run, it names the backup.
    """

    def __init__(self, *, backup_type: BackupType, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.backup_type = backup_type

    @abstractmethod
    def step(self, run: BackupRun) -> Facts:
        """Call the engine; returns the facts for the XCom."""

    def _take(self, context: Context) -> Facts:
        from include.operators.run import BackupRun  # noqa: PLC0415 - the engine: over a second
        from include.operators.slots import name_backup  # noqa: PLC0415
        from include.pipeline.store import StoreAway  # noqa: PLC0415

        backup, slot = name_backup(self.backup_type, context["dag_run"])
        self.log.info("This run makes %s.", backup)
        run = BackupRun(backup, slot, scratch_root=self.scratch_root)
        try:
            return self.step(run)
        except StoreAway as away:
            if away.bucket != run.catalog.bucket.name:
                raise
            from include.backup.risk import told_at_risk  # noqa: PLC0415

            raise told_at_risk(away, run.replica, run.policy) from away


def _adopted() -> type[BackupError]:
    from include.backup.adoption import Adopted  # noqa: PLC0415

    return Adopted

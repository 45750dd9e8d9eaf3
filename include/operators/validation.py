"""The three validations of what came back, as tasks of their own (R5.2). Any DAG that restores something has them.

The task that restored leaves a second XCom, `RESTORED`: where everything is, in names of connections and places. It
wrote what must be there into the run's directory (`Expected.write`). So a validation knows nothing of how it came back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from airflow.sdk import BaseOperatorLink

from include.operators.places import validation_path, validation_url
from include.operators.step import Facts, Step

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

    from include.operators.run import Surroundings
    from include.pipeline.store import Bucket
    from include.policy import Policy
    from include.recovery.validation.recovered import Recovered
    from include.recovery.validation.validation import Validation

RESTORED = "restored"
"""The XCom in which a task that restored something says where it is."""
DATA, STATE, SERVICE = "check_data_consistency", "check_application_state", "check_service_health"
VALIDATIONS = (DATA, STATE, SERVICE)


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Where what came back is, in words that an XCom may hold; a part that did not come back has none.

    `directory` is the run's, below the worker's root, with `expected.json` in it. `database` is reached through
    `database_connection`, `objects_prefix` is in the bucket of `objects_connection`. `about` is what people read.
    """

    about: str
    directory: str
    database_connection: str | None = None
    database: str | None = None
    objects_connection: str | None = None
    objects_prefix: str = ""
    configuration: str | None = None
    whole: bool = True

    def leave(self, context: Context) -> None:
        """Say it to the tasks that come after this one."""
        context["ti"].xcom_push(key=RESTORED, value=asdict(self))

    @classmethod
    def left_by(cls, task: str, context: Context) -> Self:
        """What `leave` said; raises `NothingExpected` where it did not: it was marked as success by hand."""
        from include.recovery.validation.recovered import NothingExpected  # noqa: PLC0415

        said = context["ti"].xcom_pull(task_ids=task, key=RESTORED)
        if said is None:
            raise NothingExpected(
                f"`{task}` has not said where it restored to: there is nothing to look at.",
                mend=f"Clear `{task}`; marking it as success restores nothing.",
            )
        return cls(**said)

    def opened(self, here: Surroundings) -> Recovered:
        """The places themselves, and what must be there. Raises `NothingExpected`, `ConnectionUnusable`."""
        from include.operators import connections  # noqa: PLC0415
        from include.recovery.validation.recovered import EXPECTED, Expected, Recovered  # noqa: PLC0415

        database = bucket = None
        if self.database_connection and self.database:
            database = connections.database_login(self.database_connection).with_database(self.database)
        if self.objects_connection:
            bucket = connections.bucket(self.objects_connection, stall_limit=here.policy.pipeline.stall_limit)
        return Recovered(
            expected=Expected.read(here.root / self.directory / EXPECTED),
            database=database,
            bucket=bucket,
            prefix=self.objects_prefix,
            configuration=Path(self.configuration) if self.configuration else None,
            whole=self.whole,
        )


class ValidationLink(BaseOperatorLink):
    """The button *Validation* on a task: every check that it made, as a page."""

    @property
    def name(self) -> str:
        """What the button says."""
        return "Validation"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The page of the task's newest validation."""
        task = (ti_key.dag_id, ti_key.run_id, ti_key.task_id)
        return validation_url(*task) or validation_path(*task)


class ValidationStep(Step):
    """One kind of validation: green when all is as it should be, also where nothing of its kind came back.

    Every check is in the log, in the page and in the record that are kept in the bucket. What is not as it should be
    fails the task at once: another try would find the same.

    :param restored_by: the task that restored, which left `RESTORED`. A DAG whose places are not those of a connection
        overrides `recovered`.
    """

    ui_color = "#dbe9f4"
    operator_extra_links = (ValidationLink(),)

    def __init__(self, *, restored_by: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.restored_by = restored_by

    def recovered(self, here: Surroundings, context: Context) -> tuple[Recovered, str]:
        """What came back, and what it is called; raises what stopped it."""
        restored = Restored.left_by(self.restored_by, context)
        return restored.opened(here), restored.about

    def kept_in(self, here: Surroundings, context: Context) -> Bucket:
        """The bucket that keeps the page and the record: the primary one."""
        return here.backups_in("primary")

    @abstractmethod
    def look(self, recovered: Recovered, policy: Policy, *, scratch: Path) -> Validation:
        """Call the engine. `scratch` is the run's directory, for what is needed meanwhile."""

    def _take(self, context: Context) -> Facts:
        from include.operators.run import Surroundings  # noqa: PLC0415 - the engine: over a second
        from include.recovery.validation.kept import keep  # noqa: PLC0415

        here, ti = Surroundings(scratch_root=self.scratch_root), context["ti"]
        recovered, about = self.recovered(here, context)
        validation = self.look(recovered, here.policy, scratch=here.root / self._directory(context))
        for line in validation.lines():
            self.log.info(line)
        if not validation.checks:
            self.log.info("Nothing of this kind came back: there is nothing to look at.")
        bucket = self.kept_in(here, context)
        page = keep(bucket, validation, dag=ti.dag_id, run=ti.run_id, task=ti.task_id, about=about)
        facts = told(validation, page)
        ti.xcom_push(key="return_value", value=facts)  # a task that fails has one, too: the report tells of it
        validation.require()
        return facts

    def _directory(self, context: Context) -> str:
        return Restored.left_by(self.restored_by, context).directory


class CheckDataConsistency(ValidationStep):
    """Rows and digests, keys, foreign keys, sequences and indexes, by Great Expectations (R5.2)."""

    def look(self, recovered: Recovered, policy: Policy, *, scratch: Path) -> Validation:
        """What the source recorded of its data, against what is there."""
        from include.recovery.validation.consistency import check_data_consistency  # noqa: PLC0415 - nine seconds

        return check_data_consistency(recovered, policy)


class CheckApplicationState(ValidationStep):
    """Every object that the database names, the commit, the schema version and the policy's invariants (R5.2)."""

    def look(self, recovered: Recovered, policy: Policy, *, scratch: Path) -> Validation:
        """Whether the three stores are one application."""
        from include.recovery.validation.application import check_application_state  # noqa: PLC0415 - nine seconds

        return check_application_state(recovered, policy)


class CheckServiceHealth(ValidationStep):
    """The application is started on what came back, and used; of a part the database takes a write (R5.2)."""

    def look(self, recovered: Recovered, policy: Policy, *, scratch: Path) -> Validation:
        """As who depends on it will."""
        from include.recovery.validation.service import check_service_health  # noqa: PLC0415

        return check_service_health(recovered, policy, scratch=scratch)


def told(validation: Validation, page: str) -> Facts:
    """A validation in the few words that an XCom holds."""
    return {
        "kind": validation.kind,
        "checks": len(validation.checks),
        "failed": len(validation.failed),
        "page": page,
        "began": validation.began.isoformat(),
        "ended": validation.ended.isoformat(),
    }


def in_words(context: Context, tasks: tuple[str, ...] = VALIDATIONS) -> Iterator[tuple[str, str]]:
    """For a report: each kind of validation that was carried out, and how it went."""
    for task in tasks:
        facts = context["ti"].xcom_pull(task_ids=task)
        if facts:
            failed = f"{facts['failed']} of {facts['checks']} checks failed" if facts["failed"] else ""
            yield (
                facts["kind"].replace("_", " "),
                failed or (f"{facts['checks']} checks passed" if facts["checks"] else "nothing to look at"),
            )

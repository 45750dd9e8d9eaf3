"""A run of the recovery runbook without a scheduler: its form, what its tasks left, and one task at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from include.disaster.declaration import declare
from include.disaster.plan import load_plan

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
YES: dict[str, Any] = {"chosen_options": ["Approve"], "responded_by_user": {"id": "7", "name": "bob"}}


class Run:
    """What a task sees of Airflow: the form, the XComs of the others, their states; `when` it was asked for."""

    dag_id, run_id, try_number, max_tries, when = "disaster_recovery", "manual__1", 3, 2, NOW
    asked_by: str | None = "ada"
    began_after: timedelta | None = timedelta()
    """How long the scheduler took to begin it."""

    def __init__(self, mode: str = "drill", scenario: str = "region_lost", **form: str | None) -> None:
        empty = dict.fromkeys(("copy", "site", "target", "table", "failed_at"), "")
        self.params = {"mode": mode, "scenario": scenario, **empty, **form}
        self.left: dict[tuple[str, str], Any] = {}
        self.states: dict[str, str] = {}
        self.task_id = ""

    def declared(self) -> Run:
        """The first step is done."""
        form = {name: self.params[name] for name in ("mode", "scenario", "copy", "site", "target")}
        said = declare(load_plan(), **form, run="20261122t100000000000", declared=self.when, by="ada").to_json()
        self.left["activate_plan", "return_value"] = said
        return self

    def xcom_push(self, *, key: str, value: object) -> None:
        """As Airflow's own."""
        self.left[self.task_id, key] = value

    def xcom_pull(self, *, task_ids: str, key: str = "return_value") -> Any:
        """As Airflow's own."""
        return self.left.get((task_ids, key))

    def get_task_states(self, **_: object) -> dict[str, dict[str, str]]:
        """As Airflow's own."""
        return {self.run_id: self.states}

    def take(self, operator: Any) -> Any:
        """Carry out one of its tasks, and keep what it returns."""
        self.task_id = operator.task_id
        began = None if self.began_after is None else self.when + self.began_after
        run = SimpleNamespace(
            run_id=self.run_id, run_after=self.when, start_date=began, triggering_user_name=self.asked_by
        )
        told = operator.execute({"ti": self, "dag_run": run, "params": self.params})
        self.left[operator.task_id, "return_value"] = told
        return told

"""Somebody else's yes to what is live (R7.3): by an answer and nothing else, for what was shown, and not for ever."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.exceptions import AirflowSkipException

from include.errors import Hopeless
from include.operators.step import ERROR

if TYPE_CHECKING:
    from airflow.sdk import Context

APPROVE = "approve"
SHOWN = "shown"
"""The XCom in which the question says which state of a plan it shows."""
_ASKED_WITHIN = timedelta(days=1)
"""How long a run that changes what is live can be approved, be cleared, and go on."""


class NotAllowedOver(Hopeless):
    """A change of what is live that was not asked for, not approved, or approved by who asked."""


class Approve(ApprovalOperator):
    """Ask a person, with the plan before them, whether what is live may be changed (R5.1, R5.3).

    The answer holds for exactly that plan. A rejection ends the run there, red. A run that changes nothing that is live
    asks nobody: the task is skipped, and the next goes on.

    :param shows: the task whose XCom is the plan.
    """

    ui_color = "#f2d5d5"

    def __init__(self, *, shows: str, **kwargs: Any) -> None:
        # Not failed, a rejection would be skipped over: the report and the watcher, which come right behind it, too.
        super().__init__(**{"fail_on_reject": True, **kwargs})
        self.shows = shows

    def execute(self, context: Context) -> Any:
        """Wait for the answer, without a worker; raises `AirflowSkipException` when there is nothing to approve."""
        if needless := self.needless(context):
            raise AirflowSkipException(needless)
        try:
            _require_recent(context)
        except NotAllowedOver as refused:
            context["ti"].xcom_push(key=ERROR, value={"what": refused.what, "mend": refused.mend})
            raise
        context["ti"].xcom_push(key=SHOWN, value=plan_state(context, self.shows))
        return super().execute(context)

    def needless(self, context: Context) -> str:
        """Why nobody has to be asked; empty when somebody has to."""
        return ""


def require_approval(context: Context, *, shown: str, what: str) -> str:
    """Raise `NotAllowedOver` unless somebody else than who triggered the run approved it, lately; returns who did.

    What counts is the answer itself: a task that was marked as success by hand has none. Somebody whose name is not
    known cannot be told from who answered, and is refused. `shown` is the task whose plan was before them, and has to
    be as it was then; `what` says in the error what it is that was asked for.
    """
    _require_recent(context)
    approval, asker = context["ti"].xcom_pull(task_ids=APPROVE), context["dag_run"].triggering_user_name
    again = f"Clear `{APPROVE}`, and have somebody else answer it"
    if not approval or approval.get("chosen_options") != [ApprovalOperator.APPROVE]:
        raise NotAllowedOver(
            f"Nobody has approved this {what}, which changes what is live.",
            mend=f"{again}; marking it as success is no answer.",
        )
    answered = approval.get("responded_by_user") or {}
    known = {str(answered[key]) for key in ("id", "name") if answered.get(key)}
    if not asker or not known:
        raise NotAllowedOver(
            f"It is not known by name who asked for this {what}, or who approved it.",
            mend="Trigger it in Airflow's pages or its API, as a person who is logged in.",
        )
    if asker in known:
        raise NotAllowedOver(
            f"{asker} has asked for this {what} and approved it: somebody else has to.", mend=f"{again}."
        )
    if context["ti"].xcom_pull(task_ids=APPROVE, key=SHOWN) != plan_state(context, shown):
        raise NotAllowedOver(
            f"What `{shown}` tells is not what {who_answered(approval)} has approved: it was cleared since.",
            mend=f"{again}: the plan as it is now is before them.",
        )
    return who_answered(approval)


def who_answered(approval: dict[str, Any]) -> str:
    """The name of who answered a question, as far as it is known."""
    answered = approval.get("responded_by_user") or {}
    return str(answered.get("name") or answered.get("id") or "nobody by name")


def plan_state(context: Context, task: str) -> str:
    """What tells one plan of a task from another: a digest of its XCom."""
    told = context["ti"].xcom_pull(task_ids=task)
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _require_recent(context: Context) -> None:
    """Raise `NotAllowedOver` for a run that was asked for long ago: who clears it is not who asked for it then.

    Airflow tells a task who triggered its run, and not who cleared it; an old run, or an old answer, would let one
    person change what is live alone.
    """
    run = context["dag_run"]
    if datetime.now(UTC) - run.run_after > _ASKED_WITHIN:
        raise NotAllowedOver(
            f"{run.triggering_user_name or 'Somebody'} asked for this run on {run.run_after:%Y-%m-%d %H:%M} UTC, more "
            f"than {_ASKED_WITHIN.days} day ago.",
            mend="Trigger a run of its own, as yourself; somebody else approves it.",
        )

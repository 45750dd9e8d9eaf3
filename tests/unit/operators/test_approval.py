"""Who may let a run change what is live (R5.1, R7.3): somebody else than who asked, by an answer and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from include.operators.approval import SHOWN, Approve, NotAllowedOver, plan_state, require_approval

YES: dict[str, Any] = {"chosen_options": ["Approve"], "responded_by_user": {"id": "7", "name": "ada"}}


def context(answer: object, asker: str | None = "bob", *, shown: object = "the plan", hours: float = 23.9) -> Any:
    """A run that was asked for hours ago; the plan that is there now is `the plan`."""
    left = {("approve", "return_value"): answer, ("locate", "return_value"): shown}
    told = SimpleNamespace(xcom_pull=lambda task_ids, key="return_value": left.get((task_ids, key)))
    run = SimpleNamespace(triggering_user_name=asker, run_after=datetime.now(UTC) - timedelta(hours=hours))
    made: Any = {"ti": told, "dag_run": run}
    left["approve", SHOWN] = plan_state(made, "locate")
    left["locate", "return_value"] = "the plan"
    return made


@pytest.mark.requirement("R5.1", "R7.3")
def test_somebody_else_may_approve() -> None:
    assert require_approval(context(YES), shown="locate", what="recovery") == "ada"


@pytest.mark.requirement("R5.1", "R7.3")
@pytest.mark.parametrize(
    ("answer", "asker", "words"),
    [
        (YES, "ada", "ada has asked"),
        (YES, "7", "7 has asked"),
        (None, "bob", "Nobody has approved"),  # marked as success by hand
        ({**YES, "chosen_options": ["Reject"]}, "bob", "Nobody has approved"),
        ({**YES, "chosen_options": ["Approve", "Reject"]}, "bob", "Nobody has approved"),
        ({**YES, "responded_by_user": None}, "bob", "not known by name"),
        (YES, None, "not known by name"),
    ],
)
def test_everything_else_is_refused(answer: object, asker: str | None, words: str) -> None:
    with pytest.raises(NotAllowedOver, match=words):
        require_approval(context(answer, asker), shown="locate", what="recovery")


@pytest.mark.requirement("R5.1", "R7.3")
def test_a_no_is_red() -> None:
    assert Approve(task_id="approve", shows="locate", subject="?").fail_on_reject


@pytest.mark.requirement("R5.1", "R7.3")
def test_another_plan_and_an_old_run_are_not_approved() -> None:
    with pytest.raises(NotAllowedOver, match="`locate` tells is not what ada has approved"):
        require_approval(context(YES, shown="another plan"), shown="locate", what="recovery")
    with pytest.raises(NotAllowedOver, match=r"bob asked for this run on .* more than 1 day ago"):
        require_approval(context(YES, hours=24.1), shown="locate", what="recovery")

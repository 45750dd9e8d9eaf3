"""Who may let a recovery replace what is live (R5.1): somebody else than who asked, by an answer and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from include.operators.recovery import NotAllowedOver, require_approval

YES: dict[str, Any] = {"chosen_options": ["Approve"], "responded_by_user": {"id": "7", "name": "ada"}}


def context(answer: object, asker: str | None = "bob") -> Any:
    told = SimpleNamespace(xcom_pull=lambda task_ids: answer)
    return {"ti": told, "dag_run": SimpleNamespace(triggering_user_name=asker)}


@pytest.mark.requirement("R5.1", "R7.3")
def test_somebody_else_may_approve() -> None:
    require_approval(context(YES))


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
        require_approval(context(answer, asker))

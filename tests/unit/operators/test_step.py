"""A step whose store is away says what is at risk, when it is the backups' own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from include.backup import risk
from include.backup.risk import PrimaryAway
from include.errors import BackupError
from include.operators import run as runs
from include.operators import slots
from include.operators.step import BackupStep, Facts
from include.pipeline.store import StoreAway


class Failing(BackupStep):
    def __init__(self, *, error: BackupError, **kwargs: Any) -> None:
        super().__init__(backup_type="full", **kwargs)
        self.error = error

    def step(self, run: runs.BackupRun) -> Facts:
        raise self.error


@pytest.mark.requirement("R5.3", "R5.5")
@pytest.mark.parametrize(("bucket", "told"), [("synapse-backups", PrimaryAway), ("synapse-files", StoreAway)])
def test_a_primary_that_is_away_is_told_with_what_is_lost_without_it(
    monkeypatch: pytest.MonkeyPatch, bucket: str, told: type[BackupError]
) -> None:
    here = SimpleNamespace(catalog=SimpleNamespace(bucket=SimpleNamespace(name="synapse-backups")), replica=1, policy=2)
    monkeypatch.setattr(runs, "BackupRun", lambda *_, **__: here)
    monkeypatch.setattr(slots, "name_backup", lambda *_: ("full-20261122T000000Z", None))
    monkeypatch.setattr(risk, "told_at_risk", lambda away, *_: PrimaryAway(f"{away.what} All is lost.", mend="Look."))
    left: dict[str, Any] = {}
    context: Any = {
        "dag_run": None,
        "ti": SimpleNamespace(xcom_push=lambda key, value: left.update(value)),
    }
    with pytest.raises(told):
        Failing(task_id="failing", error=StoreAway("It is away.", mend="Wait.", bucket=bucket)).execute(context)
    assert left["what"] == ("It is away. All is lost." if told is PrimaryAway else "It is away.")

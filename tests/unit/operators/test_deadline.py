"""A recovery that still runs when its RTO is over is told about, by the triggerer and in its own words (R5.4)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from include.operators.deadline import tell_rto_missed
from include.policy import load_policy
from include.sandbox.mailbox import Mailbox

RUN = {"dag_run": {"dag_id": "disaster_recovery", "dag_run_id": "manual__2026-11-22"}}


@pytest.mark.requirement("R5.4")
@pytest.mark.parametrize("address", ["", "https://airflow.example"])
def test_everybody_who_hears_of_errors_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", address)
    with Mailbox(tmp_path / "mails") as mailbox:
        monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_NOTIFICATIONS", json.dumps(mailbox.connection()))
        told = asyncio.run(tell_rto_missed(RUN))
    assert told["untold"] == {}
    assert set(told["told"]) == set(load_policy().notifications.error_alert)
    [mail] = mailbox.mails
    assert "the RTO is over" in mail.subject
    for words in ("4:00:00", "manual__2026-11-22"):
        assert words in mail.text()
    assert ("/runbooks/disaster_recovery" in mail.text()) == ("The runbook" in mail.text()) == bool(address)


@pytest.mark.requirement("R5.4")
def test_a_dead_mail_server_is_told_of_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_SYNAPSE_NOTIFICATIONS", json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": 1})
    )
    assert set(asyncio.run(tell_rto_missed())["untold"]) == set(load_policy().notifications.error_alert)

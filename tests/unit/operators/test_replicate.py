"""The bucket's own replication is waited for without a worker, and never for longer than the policy says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from include.operators.replicate import ReplicationTrigger

BACKUP = "full-20261122T000000Z"


def fired(monkeypatch: pytest.MonkeyPatch, looks: Iterator[int | Exception], *, within: timedelta) -> dict[str, Any]:
    """The payload of the event, with which the task goes on."""

    def look(_: ReplicationTrigger) -> int:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(ReplicationTrigger, "_missing", look)
    trigger = ReplicationTrigger(backup=BACKUP, deadline=(datetime.now(UTC) + within).isoformat(), every=0)

    async def first() -> dict[str, Any]:
        async for event in trigger.run():
            return dict(event.payload)
        raise AssertionError("it ended without an event")

    return asyncio.run(asyncio.wait_for(first(), timeout=30))


@pytest.mark.requirement("R3.2")
def test_it_fires_when_everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: Iterator[int | Exception] = iter([5, OSError("away"), 2, 0, 7])
    assert fired(monkeypatch, looks, within=timedelta(minutes=1)) == {"waiting": 0}
    assert next(looks) == 7


@pytest.mark.requirement("R3.2")
def test_it_fires_when_it_is_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fired(monkeypatch, iter([5]), within=timedelta(0)) == {"waiting": 5}
    assert fired(monkeypatch, iter([OSError("away")]), within=timedelta(0)) == {"waiting": None}


def test_it_is_made_again_from_what_airflow_keeps() -> None:
    path, arguments = ReplicationTrigger(backup=BACKUP, deadline="2026-11-22T00:15:00+00:00").serialize()
    assert path == "include.operators.replicate.ReplicationTrigger"
    again = ReplicationTrigger(**arguments)
    assert again.serialize() == (path, arguments)

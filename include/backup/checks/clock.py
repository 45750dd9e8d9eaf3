"""Clocks: a consistency point notes the database's and the store's, and a person reads both beside the worker's."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from include.backup.checks.check import Facts, remark
from include.pipeline.store import Bucket
from include.policy import Policy

if TYPE_CHECKING:
    from include.sources.postgres.login import DatabaseLogin

WHOLE_SECONDS = timedelta(seconds=1)


def of_database(login: DatabaseLogin, policy: Policy) -> Facts:
    """How far the database's clock is from the worker's: no further than the policy's `clock_skew`."""
    with login.connect(application_name="synapse-backups", autocommit=True) as session:
        began, before = time.monotonic(), datetime.now(UTC)
        row = session.execute("SELECT clock_timestamp()").fetchone()
        asked = timedelta(seconds=time.monotonic() - began)
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    return _compare("The clock of the database", row[0] - before, asked, policy)


def of_store(bucket: Bucket, policy: Policy) -> Facts:
    """How far the store's clock is from the worker's; it tells whole seconds, so one more is allowed."""
    began, before = time.monotonic(), datetime.now(UTC)
    told = bucket.clock()
    asked = timedelta(seconds=time.monotonic() - began)
    return _compare(f"The clock of {bucket}", told - before, asked + WHOLE_SECONDS, policy)


def _compare(whose: str, ahead: timedelta, uncertain: timedelta, policy: Policy) -> Facts:
    """`ahead` of the worker's clock when it was asked; the answer is as old as `uncertain`, or younger."""
    allowed = policy.preparation.clock_skew
    remark(
        not -allowed - uncertain <= ahead <= allowed + uncertain,
        f"{whose} is {abs(ahead.total_seconds()):.1f} s {'ahead of' if ahead > timedelta() else 'behind'} "
        f"this machine's, and the policy allows {allowed.total_seconds():g} s.",
        mend="Have every machine keep time with NTP; else a backup is filed under a moment that it is not of.",
    )
    return {"skew_ms": round(ahead.total_seconds() * 1000)}

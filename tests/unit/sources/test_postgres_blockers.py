"""How somebody in the barrier's way is named."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from include.sources.postgres.blockers import Blocker

WRITER = Blocker(
    pid=42,
    user="app",
    application="import",
    state="active",
    age=timedelta(seconds=90),
    query="UPDATE a",
    tables=("public.a", "public.b", "public.c", "public.d"),
)


def test_a_writer() -> None:
    assert str(WRITER) == (
        "Process 42 (import, app) has been in a transaction for 90.0 s"
        " with public.a, public.b, public.c and 1 more, active: UPDATE a"
    )
    assert "pg_terminate_backend(42)" in WRITER.mend


def test_a_vacuum_that_does_not_give_way_is_left_to_finish() -> None:
    vacuum = replace(
        WRITER,
        user="",
        application="autovacuum worker",
        query="autovacuum: VACUUM public.a (to prevent wraparound)",
    )
    assert "(autovacuum worker)" in str(vacuum)
    assert "Let this vacuum finish" in vacuum.mend


def test_a_prepared_transaction() -> None:
    prepared = replace(WRITER, pid=0, gid="g", state="", query="", tables=("public.a",))
    assert str(prepared) == "Prepared transaction 'g' of app (pid 0) has been in a transaction for 90.0 s with public.a"
    assert "ROLLBACK PREPARED 'g'" in prepared.mend

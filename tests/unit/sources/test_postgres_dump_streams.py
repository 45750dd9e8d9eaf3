"""Command lines of the dumps."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from include.sources.postgres.dump import dump_streams, pattern
from include.sources.postgres.relations import Relation, Relations, plan_dump
from include.sources.postgres.tools import PostgresTools

ODD = Relation(1, "S.x", 'weird Table""name', "table")
ODD_ID = Relation(2, "S.x", "id", "sequence", owner=1)
REST = Relation(3, "public", "rest", "table")


@pytest.fixture
def tools(tmp_path: Path) -> PostgresTools:
    for program in ("pg_dump", "pg_dumpall"):
        (tmp_path / program).touch(mode=0o755)
    return PostgresTools(tmp_path, 18)


def test_names_are_quoted_so_that_nothing_in_them_is_special() -> None:
    assert pattern(ODD) == '"S.x"."weird Table""""name"'


@pytest.mark.requirement("R2.1")
def test_streams_in_the_order_of_a_restore(tools: PostgresTools) -> None:
    plan = plan_dump(Relations((ODD, ODD_ID, REST)), {"odd": ["S.x.weird*"], "absent": []})
    streams = dump_streams(tools, plan, snapshot="0003-1", encoding="UTF8", lock_wait=timedelta(seconds=30))
    assert [(stream.name, stream.component, stream.archive) for stream in streams] == [
        ("globals", None, False),
        ("pre-data", None, True),
        ("odd", "odd", True),
        ("unclassified_database", "unclassified_database", True),
        ("post-data", None, True),
    ]
    dump = (
        *(tools.pg_dump, "--format=custom", "--compress=0", "--no-sync", "--no-password"),
        *("--encoding=UTF8", "--snapshot=0003-1", "--lock-wait-timeout=30000"),
    )
    assert [stream.argv for stream in streams] == [
        (
            tools.pg_dumpall,
            "--globals-only",
            "--encoding=UTF8",
            "--no-sync",
            "--no-password",
            "--lock-wait-timeout=30000",
        ),
        (*dump, "--section=pre-data"),
        (*dump, "--section=data", '--table="S.x"."weird Table""""name"', '--table="S.x"."id"'),
        (
            *(*dump, "--section=data", '--exclude-table-data="S.x"."weird Table""""name"'),
            '--exclude-table-data="S.x"."id"',
        ),
        (*dump, "--section=post-data"),
    ]


def test_a_database_without_an_encoding_is_dumped_byte_by_byte(tools: PostgresTools) -> None:
    plan = plan_dump(Relations((REST,)), {})
    streams = dump_streams(tools, plan, snapshot="0003-1", encoding="SQL_ASCII", lock_wait=timedelta(seconds=30))
    assert all("--encoding=SQL_ASCII" in stream.argv for stream in streams if stream.archive)
    streams = dump_streams(tools, plan, snapshot="0003-1", encoding="LATIN1", lock_wait=timedelta(seconds=30))
    assert all("--encoding=UTF8" in stream.argv for stream in streams)

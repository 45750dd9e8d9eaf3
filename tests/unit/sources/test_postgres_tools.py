"""The right tools for a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.sources.postgres.tools import (
    PostgresTools,
    ToolsMissing,
    choose,
    choose_exactly,
    find_tools,
    installed,
    tools_of,
)

OLD, SYSTEM, WHEEL, NEWEST = (
    PostgresTools(Path(directory), major)
    for directory, major in (("/old", 14), ("/system", 18), ("/wheel", 18), ("/newest", 19))
)


def test_the_exact_major_is_preferred_and_of_two_the_first() -> None:
    assert choose(18, [NEWEST, OLD, SYSTEM, WHEEL]) is SYSTEM


def test_else_the_next_newer() -> None:
    assert choose(16, [NEWEST, OLD, WHEEL]) is WHEEL


def test_older_tools_are_refused_and_named() -> None:
    with pytest.raises(ToolsMissing, match=r"version 16\. Found: 14 in /old"):
        choose(16, [OLD])


def test_what_reads_a_clusters_files_is_of_its_own_major() -> None:
    assert choose_exactly(18, [NEWEST, OLD, SYSTEM, WHEEL]) is SYSTEM
    with pytest.raises(ToolsMissing, match=r"version 16 itself.*Found: 19 in /newest"):
        choose_exactly(16, [NEWEST])
    assert tools_of(15).major == 15


def test_this_machine_has_tools_for_18() -> None:
    tools = find_tools(18)
    assert tools.major >= 18
    assert Path(tools.pg_dump) == tools.directory / "pg_dump"


def _tools(directory: Path, version: str) -> Path:
    directory.mkdir()
    for program in ("pg_dump", "pg_dumpall", "pg_restore", "psql"):
        script = directory / program
        script.write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")
        script.chmod(0o755)
    return directory


def test_tools_on_the_path_are_found_and_debians_wrapper_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, wrapped = _tools(tmp_path / "found", "21.3 (Some Distribution)"), _tools(tmp_path / "wrapped", "22.0")
    (wrapped / "pg_dump").rename(wrapped / "pg_wrapper")
    (wrapped / "pg_dump").symlink_to("pg_wrapper")
    monkeypatch.setenv("PATH", f"{wrapped}:{found}")
    majors = {tools.directory: tools.major for tools in installed()}
    assert majors[found] == 21
    assert wrapped not in majors


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolsMissing, match="lack pgbench"):
        _ = PostgresTools(_tools(tmp_path / "client", "18.1"), 18).pgbench

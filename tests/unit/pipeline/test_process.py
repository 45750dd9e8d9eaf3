"""A child's failure is never taken for its end, and none of our secrets reach it (R4.4)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

import psutil
import pytest

from include.pipeline.process import SinkFailed, SourceFailed, SourceStalled, run_sink, run_source, without_data

PATIENT, IMPATIENT = timedelta(seconds=30), timedelta(seconds=0.3)


def source(script: str, *, environment: dict[str, str] | None = None, stall_limit: timedelta = PATIENT) -> bytes:
    with run_source(["sh", "-c", script], environment=environment or {}, stall_limit=stall_limit) as chunks:
        return b"".join(chunks)


def sink(script: str, chunks: Iterator[bytes] | tuple[bytes, ...], *, environment: dict[str, str] | None = None) -> str:
    return run_sink(["sh", "-c", script], chunks, environment=environment or {})


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name() in {"sh", "sleep", "cat"}]


def test_a_source_is_read_to_its_end() -> None:
    assert len(source("head -c 3000000 /dev/zero")) == 3_000_000
    assert source("true") == b""


def test_chunks_are_bounded() -> None:
    script = ["sh", "-c", "head -c 5000000 /dev/zero"]
    with run_source(script, environment={}, stall_limit=PATIENT) as chunks:
        assert max(len(chunk) for chunk in chunks) <= 1 << 20


@pytest.mark.requirement("R4.4")
def test_a_source_that_fails_half_way_is_an_error_with_its_own_words() -> None:
    with pytest.raises(SourceFailed, match=r"sh failed with exit code 3: no space left"):
        source("echo half; echo no space left >&2; exit 3")


def test_a_source_that_is_killed_is_an_error() -> None:
    with pytest.raises(SourceFailed, match="exit code -9: it said nothing"):
        source("echo half; kill -9 $$")


@pytest.mark.requirement("R4.4")
@pytest.mark.parametrize(
    ("script", "why"),
    [("echo half; exec sleep 60", "wrote nothing for 0.3 s"), ("exec >&-; exec sleep 60", "does not end")],
)
def test_a_source_that_stalls_is_ended(script: str, why: str) -> None:
    with pytest.raises(SourceStalled, match=why):
        source(script, stall_limit=IMPATIENT)
    assert children() == []


def test_a_source_that_ignores_its_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.pipeline.process._SECONDS_TO_END", 0.2)
    with pytest.raises(SourceStalled):
        source("trap '' TERM; while :; do sleep 0.05; done", stall_limit=IMPATIENT)
    assert not [child for child in children() if child.name() == "sh"]


def test_a_source_that_nobody_reads_on_is_ended() -> None:
    with run_source(["cat", "/dev/zero"], environment={}, stall_limit=PATIENT) as chunks:
        assert next(chunks)
    assert children() == []


def test_the_words_of_a_talkative_source_do_not_block_it() -> None:
    with pytest.raises(SourceFailed, match="line 9999") as failed:
        source("i=0; while [ $i -lt 10000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1")
    assert "line 1\n" not in failed.value.what


def test_a_child_sees_nothing_of_our_environment_but_where_programs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("BACKUP_KEYRING", "/keyring.json")
    seen = dict(line.split("=", 1) for line in source("env", environment={"PGUSER": "dump"}).decode().splitlines())
    fed = sink('[ -z "$AWS_SECRET_ACCESS_KEY" ] && [ "$PGUSER" = dump ] || exit 4', (), environment={"PGUSER": "dump"})

    assert seen.keys() - {"PWD", "SHLVL", "_", "OLDPWD"} <= {"PATH", "HOME", "TMPDIR", "PGPASSFILE", "LC_ALL", "PGUSER"}
    assert (seen["PGUSER"], seen["PATH"]) == ("dump", os.environ["PATH"])
    assert fed == ""


def test_a_sink_takes_everything_and_its_words_are_kept() -> None:
    assert sink("wc -c >&2", (b"x" * 2_000_000, b"y")).strip() == "2000001"


def test_a_sink_that_fails_says_why() -> None:
    with pytest.raises(SinkFailed, match="exit code 5: it is full"):
        sink("cat >/dev/null; echo it is full >&2; exit 5", (b"x",))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('pg_restore: error: COPY failed for table "users": ERROR:  duplicate key value violates "users_pkey"', None),
        ("DETAIL:  Key (email)=(somebody@example.com) already exists.", ""),
        ('CONTEXT:  COPY users, line 1, column born: "1970-01-02"', ""),
        ("Command was: CREATE USER MAPPING FOR x SERVER y OPTIONS (password 'hidden');", ""),
        ("the next line of a key", ""),
        (
            'pg_restore: error: COPY failed for table "users": ERROR:  invalid input syntax for type date: "a secret"',
            'pg_restore: error: COPY failed for table "users": ERROR:  invalid input syntax for type date: "…"',
        ),
        (
            'pg_restore: error: x: ERROR:  malformed array literal: "{a, "b": "c',
            'pg_restore: error: x: ERROR:  malformed array literal: "…"',
        ),
        ("pg_restore: from TOC entry 3401; 2606 16402 CONSTRAINT public users users_pkey owner", None),
    ],
)
def test_of_what_postgresql_says_no_row_is_told(line: str, told: str | None) -> None:
    assert without_data("pg_restore", line) == (line if told is None else told or None)
    assert without_data("git", line) == line


def test_a_sink_that_ends_early_says_why_too() -> None:
    with pytest.raises(SinkFailed, match="exit code 6: enough"):
        sink("echo enough >&2; exit 6", (b"x" * (1 << 20) for _ in range(16)))


def test_a_sink_never_sees_the_end_of_a_stream_that_was_refused(tmp_path) -> None:
    """Closing its input would look like the end: it is terminated instead."""

    def refused() -> Iterator[bytes]:
        yield b"half"
        raise ZeroDivisionError

    whole = tmp_path / "whole"
    with pytest.raises(ZeroDivisionError):
        sink(f"cat >/dev/null; touch {whole}", refused())
    assert not whole.exists()
    assert children() == []

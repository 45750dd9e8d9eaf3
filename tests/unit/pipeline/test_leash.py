"""A leashed child is heard, and never outlives whoever started it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from include.pipeline.leash import LeashedProcess, leashed

SH = "/bin/sh"
LONG = 30.0


def started(script: str, **environment: str) -> LeashedProcess:
    return LeashedProcess([SH, "-c", script], environment)


def until_ended(child: LeashedProcess) -> LeashedProcess:
    while not child.ended:
        child.wait_for_word(LONG)
    return child


def test_its_words_wake_who_waits_and_its_end_does() -> None:
    before = time.monotonic()
    with leashed([SH, "-c", "echo one >&2; read line; echo two >&2; exit 3"], environment={}) as child:
        while "one" not in child.said:
            child.wait_for_word(LONG)
        until_ended(child)
        assert (child.said, child.exit_code) == ("one\ntwo", 3)
        child.wait_for_word(LONG)  # does not wait for the dead
    assert time.monotonic() - before < LONG


def test_who_waits_for_a_silent_one_waits_no_longer_than_asked() -> None:
    with leashed([SH, "-c", "exec sleep 60"], environment={}) as child:
        child.wait_for_word(0.05)
        assert (child.ended, child.exit_code, child.said) == (False, None, "")
        pid = child.pid
    assert not psutil.pid_exists(pid)
    assert child.exit_code == -15


def test_one_that_ignores_its_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.pipeline.leash._SECONDS_TO_END", 0.2)
    with leashed(
        [SH, "-c", "trap '' TERM; echo deaf >&2; while :; do read line; sleep 0.05; done"], environment={}
    ) as child:
        while child.said != "deaf":
            child.wait_for_word(LONG)
    assert child.exit_code == -9


def test_it_sees_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    child = until_ended(started("env >&2", PGUSER="replication"))
    assert "PGUSER=replication" in child.said
    assert "a-secret" not in child.said


def test_a_program_that_is_not_there_is_told() -> None:
    child = until_ended(LeashedProcess(["/nowhere/pg_receivewal"], {}))
    assert child.exit_code


def test_an_application_is_heard_whole_works_in_its_directory_and_takes_its_family_along(tmp_path: Path) -> None:
    script = "sleep 600 & echo $!; pwd; echo ready >&2; wait"
    with leashed([SH, "-c", script], environment={}, directory=tmp_path) as child:
        while "ready" not in child.said:
            child.wait_for_word(LONG)
        number, place, _ = child.said.splitlines()
        assert place == str(tmp_path)
        other = psutil.Process(int(number))
        assert os.getpgid(other.pid) == child.pid != os.getpgid(0)
    other.wait(timeout=LONG)
    assert not psutil.pid_exists(child.pid)


def test_it_ends_with_a_process_that_is_killed_whichever_thread_started_it() -> None:
    script = """
import sys, threading
from include.pipeline.leash import LeashedProcess
children = []
thread = threading.Thread(target=lambda: children.append(LeashedProcess(["/bin/sleep", "600"], {})))
thread.start()
thread.join()
print(children[0].pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        while child.name() != "sleep":  # it is still being launched
            pass
        process.kill()
    child.wait(timeout=LONG)

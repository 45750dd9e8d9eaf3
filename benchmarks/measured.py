"""What a command costs: its own processes, and not the servers that it talks to."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02
_PAGE_BYTES = resource.getpagesize()


class CommandFailedError(Exception):
    """A command that was to be measured failed: a number of it would be a lie."""


@dataclass(frozen=True)
class Cost:
    """One run: seconds of wall and of CPU (user and system, children included), and the highest resident memory.

    Memory is the sum over the command's whole process tree, sampled. What processes share (libraries, PostgreSQL's
    buffers) counts once: as much as the one of them has that has most.
    """

    wall: float
    cpu: float
    memory: int


def run(argv: Sequence[str], *, environment: Mapping[str, str], directory: Path, log: Path) -> Cost:
    """Run `argv` to its end in an environment of its own. Raises `CommandFailedError` with the tail of what it said."""
    with log.open("wb") as said:
        began = time.monotonic()
        process = subprocess.Popen(
            argv, env=dict(environment), cwd=directory, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        memory = 0
        while True:
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            memory = max(memory, _resident(process.pid))
            time.sleep(SAMPLE_SECONDS)
        wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CommandFailedError(
            f"{argv[0]} exited with {process.returncode}: {log.read_text(errors='replace')[-2000:]}"
        )
    return Cost(wall, used.ru_utime + used.ru_stime, memory)


def _resident(root: int) -> int:
    """The resident bytes of a process and all below it."""
    own, shared, waiting = 0, 0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            resident, common = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
            own += resident - common
            shared = max(shared, common)
            for thread in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return (own + shared) * _PAGE_BYTES

"""A child process as a source of bytes, or as the place where bytes go; its failure is never taken for an end."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import selectors
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO

from include.errors import BackupError

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
_STDERR_LINES = 40
_SECONDS_TO_END = 10
_SECONDS_TO_SAY = 1
_VALUE = re.compile(r': ".*')
_INHERITED = ("PATH", "HOME", "TMPDIR", "PGPASSFILE")


class SourceFailed(BackupError):
    """The process that produced the bytes failed: what it wrote is not a backup."""


class SourceStalled(SourceFailed):
    """The process produced nothing for longer than the policy allows."""


class SinkFailed(BackupError):
    """The process that was to take the bytes in failed; `said` is the end of what it wrote to standard error."""

    def __init__(self, what: str, *, mend: str, said: str = "") -> None:
        super().__init__(what, mend=mend)
        self.said = said


def child_environment() -> dict[str, str]:
    """What any program needs, and none of the worker's secrets; messages in English, so that they can be looked up."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ} | {"LC_ALL": "C"}


@contextlib.contextmanager
def run_source(
    argv: Sequence[str], *, environment: Mapping[str, str], stall_limit: timedelta
) -> Iterator[Iterator[bytes]]:
    """Start `argv` and yield an iterator over its standard output, in chunks of at most 1 MiB.

    The iterator raises `SourceFailed` when the process exits non-zero, and `SourceStalled` when it neither writes nor
    ends for `stall_limit`; only an iterator that *ends* delivered everything. The process is gone when the context is
    left. Its environment is `environment` and what `child_environment` adds, nothing else of ours.
    """
    with _running(argv, environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as (process, complaints):
        assert process.stdout is not None  # noqa: S101 - asked for above
        _widen(process.stdout)
        yield _chunks(process, process.stdout, complaints, stall_limit)


def run_sink(argv: Sequence[str], chunks: Iterable[bytes], *, environment: Mapping[str, str]) -> str:
    """Start `argv`, feed it `chunks`, and return what it wrote to standard error.

    Raises `SinkFailed` when it exits non-zero; an error in `chunks` ends the process and is raised as it is.
    """
    with _running(argv, environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as (process, complaints):
        assert process.stdin is not None  # noqa: S101 - asked for above
        _widen(process.stdin)
        try:
            for chunk in chunks:
                process.stdin.write(chunk)
            process.stdin.close()
        except BrokenPipeError:
            # It ended early; its exit code and its own words say why.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if process.wait() != 0:
            raise SinkFailed(
                f"{_name(argv)} failed with exit code {process.returncode}: {complaints.tail()}",
                mend="Mend what it names, then start the restore again: it writes to a fresh place.",
                said=complaints.text(),
            )
        return complaints.text()


def without_data(program: str, line: str) -> str | None:
    """What may be told of one line of a program's standard error; None for nothing.

    PostgreSQL's tools pass on the server's DETAIL and CONTEXT, which repeat keys and rows, and the statement that
    failed. Their own lines begin with their name; everything else of theirs is such an appendix, or the next line of
    one. A value that the server's message itself ends with ('invalid input syntax for type date: "…"') is blotted out.
    """
    if not program.startswith("pg_"):
        return line
    return _VALUE.sub(': "…"', line) if line.startswith(f"{program}: ") else None


class _Complaints:
    """The tail of a process's standard error, read on a thread so that a talkative process never blocks."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=_STDERR_LINES)
        self._thread = threading.Thread(target=self._read, args=(stream, name), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes], name: str) -> None:
        for raw in stream:
            line = without_data(name, raw.decode(errors="replace").rstrip())
            if line is not None:
                self._lines.append(line)
                log.debug("%s: %s", name, line)

    def text(self) -> str:
        self._thread.join(timeout=_SECONDS_TO_END)
        return "\n".join(self._lines)

    def close(self) -> None:
        """Close the pipe once it has ended; one that an orphan of the process still holds is left to the thread."""
        self._thread.join(timeout=_SECONDS_TO_SAY)
        if not self._thread.is_alive():
            self._stream.close()

    def tail(self) -> str:
        return self.text() or "it said nothing"


@contextlib.contextmanager
def _running(
    argv: Sequence[str], environment: Mapping[str, str], *, stdin: int, stdout: int
) -> Iterator[tuple[subprocess.Popen[bytes], _Complaints]]:
    process = subprocess.Popen(
        argv,
        env={**child_environment(), **environment},
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stderr is not None  # noqa: S101 - asked for above
    complaints = _Complaints(process.stderr, _name(argv))
    try:
        yield process, complaints
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        complaints.close()


def _chunks(
    process: subprocess.Popen[bytes], stdout: IO[bytes], complaints: _Complaints, stall_limit: timedelta
) -> Iterator[bytes]:
    name = _name(process.args if isinstance(process.args, list) else [str(process.args)])
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout=stall_limit.total_seconds()):
                raise SourceStalled(
                    f"{name} wrote nothing for {stall_limit.total_seconds():g} s.",
                    mend="Look for what it waits for (a lock, a slow disk, a lost connection), "
                    "or raise pipeline.stall_limit in the policy.",
                )
            if not (chunk := stdout.read(CHUNK_BYTES)):
                break
            yield chunk
    try:
        process.wait(timeout=stall_limit.total_seconds())
    except subprocess.TimeoutExpired:
        raise SourceStalled(
            f"{name} closed its output and does not end.", mend="Look at the process; the artifact was discarded."
        ) from None
    if process.returncode != 0:
        raise SourceFailed(
            f"{name} failed with exit code {process.returncode}: {complaints.tail()}",
            mend="Mend what it names; the run is retried from a new consistency point.",
        )


def _widen(pipe: IO[bytes]) -> None:
    """Ask for a 1 MiB pipe (64 KiB by default), for fewer switches between the process and us; Linux only."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, CHUNK_BYTES)


def _name(argv: Sequence[str]) -> str:
    return Path(argv[0]).name

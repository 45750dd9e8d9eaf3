"""A child process that ends when we do, however we end, and whose words can be waited for."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from include.pipeline import launch
from include.pipeline.process import child_environment, without_data

log = logging.getLogger(__name__)

_LINES = 40
_SECONDS_TO_END = 10
_SECONDS_TO_SAY = 1


class LeashedProcess:
    """A running child; it reads nothing, its output is discarded, its standard error is kept and waited for.

    The kernel kills it when the thread that started it ends (Linux), so that thread does nothing but listen to it, and
    lives as long as it does: a SIGKILL of this process ends both.

    With a `directory` the child is somebody's application, which works there: its output is kept as well, and `end`
    ends whomever it started, too, unless they left its session. Who of those outlives a SIGKILL of this process is the
    application's own affair.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], *, directory: Path | None = None) -> None:
        self.name = Path(argv[0]).name
        self._leash = [
            sys.executable,
            "-I",
            "-S",
            launch.__file__,
            str(os.getpid()),
            str(int(signal.SIGKILL)),
            "-1",
            "-1",
        ]
        self._argv = list(argv)
        self._directory = directory
        self._environment = {**child_environment(), **environment}
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._words: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._started: queue.SimpleQueue[subprocess.Popen[bytes] | Exception] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name=self.name, daemon=True)
        self._thread.start()
        started = self._started.get()
        if isinstance(started, Exception):
            raise started
        self._process = started

    def wait_for_word(self, seconds: float) -> None:
        """Return when it has said something that was not waited for yet, when it has ended, or after `seconds`."""
        if not self._ended.is_set():
            with contextlib.suppress(queue.Empty):
                self._words.get(timeout=max(0.0, seconds))

    @property
    def ended(self) -> bool:
        """Whether it has ended; then all of its words have been heard."""
        return self._ended.is_set()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def said(self) -> str:
        """The last lines of its standard error (of an application: of its output, too), without rows and statements."""
        return "\n".join(self._lines)

    def end(self) -> None:
        """Ask it to end; kill it if it does not."""
        if not self.ended:
            self._process.terminate()
            try:
                self._process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self._process.kill()
        if self._directory is not None:
            with contextlib.suppress(ProcessLookupError):  # nobody of its session is left
                os.killpg(self._process.pid, signal.SIGKILL)
        # Whoever left an application's session may hold its output for ever.
        self._thread.join(None if self._directory is None else _SECONDS_TO_SAY)

    def _listen(self) -> None:
        try:
            process = subprocess.Popen(
                [*self._leash, *self._argv],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if self._directory is None else subprocess.PIPE,
                stderr=subprocess.PIPE if self._directory is None else subprocess.STDOUT,
                cwd=self._directory,
                start_new_session=self._directory is not None,
            )
        except Exception as error:  # raised where it was started
            self._started.put(error)
            return
        self._started.put(process)
        said = process.stderr or process.stdout
        assert said is not None  # noqa: S101 - asked for above
        with said as words:
            for raw in words:
                line = without_data(self.name, raw.decode(errors="replace").rstrip())
                if line is not None:
                    self._lines.append(line)
                    log.debug("%s: %s", self.name, line)
                    self._words.put(None)
        process.wait()
        self._ended.set()
        self._words.put(None)


@contextlib.contextmanager
def leashed(
    argv: Sequence[str], *, environment: Mapping[str, str], directory: Path | None = None
) -> Iterator[LeashedProcess]:
    """Start `argv`, whose program is an absolute path; it is gone when the context is left.

    Its environment is `environment` and what `child_environment` adds, nothing else of ours. An application works in
    `directory`, as `LeashedProcess` says.
    """
    child = LeashedProcess(argv, environment, directory=directory)
    try:
        yield child
    finally:
        child.end()

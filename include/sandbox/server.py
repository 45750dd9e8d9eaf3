"""A local server's life: started on a free port of 127.0.0.1, ready when it answers, ended with its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import psutil

from include.errors import BackupError
from include.pipeline import launch

LAUNCHER = Path(launch.__file__)
POLL_SECONDS = 0.02
PORT_TRIES = 3
LOG_TAIL_LINES = 15
KILLED_WITHIN = 5.0


class ServerEndedError(BackupError):
    """A server ended by itself while it started."""


class Account(NamedTuple):
    """The user and group a server runs as, when it may not run as root."""

    uid: int
    gid: int


class LocalServer(ABC):
    """A server that lives in `directory` and no longer than the process that started it.

    Leaving the `with` block stops it. On Linux the kernel ends it too when its parent is SIGKILLed; that signal is tied
    to the *thread* that started the server, so it is only asked for by a main thread.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    orphan_signal: ClassVar[signal.Signals]
    ready_within: float = 60.0
    """Seconds a start may take."""
    stopped_within: float = 30.0
    """Seconds a stop may take before the server is killed."""

    def __init__(self, directory: Path, *, port: int | None = None) -> None:
        self.directory = directory.absolute()
        self.log = self.directory / "server.log"
        self._port = port
        self._account: Account | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._prepare()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; it stays the same over a restart."""
        if self._port is None:
            raise BackupError(f"{self.name} was never started.", mend="Enter it with `with` first.")
        return self._port

    @property
    def pid(self) -> int:
        """The server's process id. Raises `BackupError` while it does not run."""
        if self._process is None or self._process.poll() is not None:
            raise BackupError(f"{self.name} is not running.", mend="Start it, or read its log: " + str(self.log))
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and return when it answers. Raises `BackupError` with the log's tail when it does not."""
        tries = PORT_TRIES if self._port is None else 1
        while True:
            tries -= 1
            # A port that was free when chosen may be taken when bound: where the choice was ours, choose again.
            self._port = self._port or free_port()
            try:
                return self._start_once()
            except ServerEndedError:
                if not tries:
                    raise
                self._port = None

    def stop(self) -> None:
        """Ask it to stop, wait, and kill what is left. Does nothing when it does not run."""
        if self._process is None:
            return
        try:
            if self._process.poll() is None:
                self._process.send_signal(self.stop_signal)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(self.stopped_within)
        finally:  # also when a second Ctrl-C cuts the wait short
            self.crash()

    def crash(self) -> None:
        """SIGKILL it and everything it started, as a power cut would, and wait until all of it is gone."""
        if self._process is None:
            return
        if self._process.poll() is None:  # unreaped, so the pid is still its own
            server = psutil.Process(self._process.pid)
            server.suspend()  # it starts nothing new while its children are counted
            family = [server, *server.children(recursive=True)]
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family, timeout=KILLED_WITHIN)  # no longer: where nobody reaps orphans, zombies stay
        self._process = None

    def restart(self) -> None:
        """Stop it if it runs, and start it again on the same port and the same data."""
        self.stop()
        self.start()

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the first start needs, inside the directory."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The program, as an absolute path, and its arguments; no secrets in it."""

    @abstractmethod
    def _environment(self) -> dict[str, str]:
        """The whole environment: nothing is inherited, so that no variable of the machine changes a server."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server serves requests."""

    def _start_once(self) -> None:
        try:
            self._process = self._launch(self._command())
            deadline = time.monotonic() + self.ready_within
            while not self._answers():
                if self._process.poll() is not None:
                    raise ServerEndedError(
                        f"{self.name} ended while it started: {self._log_tail()}", mend=f"See {self.log}."
                    )
                if time.monotonic() > deadline:
                    raise BackupError(
                        f"{self.name} is not ready after {self.ready_within:.0f} s.", mend=f"See {self.log}."
                    )
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.crash()
            raise

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own: a terminal's Ctrl-C reaches only us, and we stop it in order."""
        orphan_signal = self.orphan_signal if threading.current_thread() is threading.main_thread() else 0
        account = self._account or Account(-1, -1)
        identity = [str(int(value)) for value in (os.getpid(), orphan_signal, *account)]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCHER), *identity, *command],
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP raise `KeyboardInterrupt`, so that `with` blocks stop their servers.

    So does SIGINT again: a shell that starts a program in the background has it ignored.
    """
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

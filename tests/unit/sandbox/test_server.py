from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from include.errors import BackupError
from include.sandbox import server as server_module
from include.sandbox.postgres import find_binaries
from include.sandbox.s3 import S3Server
from include.sandbox.server import LocalServer, ServerEndedError, terminated_like_interrupted

PYTHON = "/usr/bin/env"
SERVE = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    listener.accept()[0].close()
"""


class Echo(LocalServer):
    """The smallest server: it accepts connections."""

    name = "Echo"
    stop_signal = signal.SIGTERM
    orphan_signal = signal.SIGKILL
    ready_within = 20.0

    def _prepare(self) -> None:
        (self.directory / "serve.py").write_text(SERVE)

    def _command(self) -> list[str]:
        return [PYTHON, "python3", "-S", str(self.directory / "serve.py"), str(self.port)]

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"]}

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return self.running


class Deaf(Echo):
    """A server that starts and never answers."""

    name = "Deaf"
    ready_within = 0.2
    stopped_within = 0.2

    def _answers(self) -> bool:
        return False


def test_it_runs_inside_the_block_only(tmp_path: Path) -> None:
    with Echo(tmp_path) as server:
        pid = server.pid
        assert server.running
    assert not server.running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(BackupError, match="not running"):
        _ = server.pid


def test_a_restart_keeps_the_port(tmp_path: Path) -> None:
    with Echo(tmp_path) as server:
        before = server.port, server.pid
        server.crash()
        assert not server.running
        server.restart()
        assert server.port == before[0]
        assert server.pid != before[1]


def test_a_port_taken_meanwhile_is_chosen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_port = server_module.free_port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        choices = iter([number, free_port()])
        monkeypatch.setattr(server_module, "free_port", lambda: next(choices))

        class Exclusive(Echo):
            def _answers(self) -> bool:
                assert self._process is not None
                if self.port == number:  # whoever answers there, it is not this server
                    self._process.wait()
                    return False
                return super()._answers()

        with Exclusive(tmp_path) as server:
            assert server.port != number


def test_a_port_that_was_asked_for_is_never_exchanged(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Deaf(tmp_path, port=taken.getsockname()[1])
        server.ready_within = 20.0
        with pytest.raises(ServerEndedError, match="Address already in use"), server:
            pass


def test_a_server_that_never_answers_is_ended(tmp_path: Path) -> None:
    server = Deaf(tmp_path)
    with pytest.raises(BackupError, match="not ready after"), server:
        pass
    assert not server.running


def test_a_server_of_another_thread_lives_on_when_the_thread_ends(tmp_path: Path) -> None:
    server = Echo(tmp_path)
    thread = threading.Thread(target=server.__enter__)
    thread.start()
    thread.join()
    try:
        assert server._answers()
    finally:
        server.stop()


def test_a_port_is_unknown_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="never started"):
        _ = Echo(tmp_path).port


def test_sigterm_is_an_interruption_inside_the_block_only() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminated_like_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_postgres_that_is_not_installed_is_refused_with_the_mend() -> None:
    with pytest.raises(BackupError, match="PostgreSQL 9 is not installed") as refused:
        find_binaries(9)
    assert "make env" in refused.value.mend


def test_a_missing_s3_server_is_refused_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(BackupError) as refused:
        S3Server(tmp_path / "s3", region="eu-west-1")
    assert "make env" in refused.value.mend

"""A proxy between a client and an S3 server: at the calls it is told, it does what networks and stores do wrong."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

PIECE_BYTES = 1 << 16
_HOPS = {"connection", "expect", "keep-alive", "transfer-encoding"}


class Fault(Enum):
    """What happens to one call."""

    FAILS = auto()
    """500 InternalError; the store never hears of it."""
    SLOW_DOWN = auto()
    """503 SlowDown; the store never hears of it."""
    CUT = auto()
    """The connection ends when half of the request's body has come."""
    SILENCE = auto()
    """No answer ever comes, until the client hangs up; the store never hears of it."""
    DENIED_AFTERWARDS = auto()
    """The store does as it was asked, and the client hears 500 InternalError."""
    LOST = auto()
    """The store does as it was asked, and the connection ends before its answer."""
    HALF = auto()
    """The connection ends in the middle of the store's answer."""
    SHORT = auto()
    """Half of the store's answer arrives, and says that it is all."""
    GARBLED = auto()
    """One bit of the answer's body is another."""
    PENDING = auto()
    """The answer says that the object's own replication is still to come, whatever came of it."""


@dataclass(frozen=True)
class Call:
    """One request, as it came; `number` counts from 1."""

    number: int
    method: str
    path: str
    """The path with its query, as it was sent."""

    def __str__(self) -> str:
        return f"{self.number}: {self.method} {self.path}"


class FaultyProxy:
    """Passes requests on to an S3 server, unchanged and in full, except for those that `fault` gives a fault.

    Signatures stay good: the `Host` that was signed is passed on too. Listens on 127.0.0.1 for as long as the `with`
    block.
    """

    def __init__(self, endpoint_url: str, fault: Callable[[Call], Fault | None] = lambda _: None) -> None:
        place = urlsplit(endpoint_url)
        assert place.hostname is not None and place.port is not None  # noqa: S101 - the sandbox's own servers
        self._store = (place.hostname, place.port)
        self.fault = fault
        self.calls: list[Call] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        self._server = _Server(self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None  # noqa: S101 - it was entered
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint_url(self) -> str:
        """What to give a client instead of the server's own."""
        assert self._server is not None  # noqa: S101 - it was entered
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, method: str, path: str) -> Fault | None:
        """Note a call, and say what happens to it."""
        with self._lock:
            call = Call(len(self.calls) + 1, method, path)
            self.calls.append(call)
        return self.fault(call)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        return type("_BoundHandler", (_Handler,), {"proxy": self, "store": self._store, "closing": self._closing})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is what half of the faults are for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultyProxy
    store: tuple[str, int]
    closing: threading.Event

    def setup(self) -> None:
        super().setup()
        self._onward: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        if self._onward is not None:
            self._onward.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Say nothing: the proxy keeps its calls itself."""

    def handle_one_request(self) -> None:
        """Read one request and do to it what is planned; every verb is treated alike."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self._serve()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        match self.proxy.take(self.command, self.path):
            case Fault.CUT:
                self.rfile.read(length // 2)
                self._hang_up()
            case Fault.SILENCE:
                self._drain(length)
                self._wait_for_the_client()
            case Fault.FAILS:
                self._drain(length)
                self._refuse(500, "InternalError")
            case Fault.SLOW_DOWN:
                self._drain(length)
                self._refuse(503, "SlowDown")
            case fault:
                self._answer(self._pass_on(length), fault)

    def _pass_on(self, length: int) -> http.client.HTTPResponse:
        if self._onward is None:
            self._onward = http.client.HTTPConnection(*self.store, timeout=120)
        onward = self._onward
        onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOPS:
                onward.putheader(name, value)
        onward.endheaders()
        while length:
            piece = self.rfile.read(min(length, PIECE_BYTES))
            if not piece:
                raise ConnectionError("the client hung up")
            onward.send(piece)
            length -= len(piece)
        return onward.getresponse()

    def _answer(self, answer: http.client.HTTPResponse, fault: Fault | None) -> None:
        body = answer.read()
        if answer.will_close and self._onward is not None:
            self._onward.close()
        if fault is Fault.LOST:
            self._hang_up()
        elif fault is Fault.DENIED_AFTERWARDS:
            self._refuse(500, "InternalError")
        else:
            told = len(body)
            if fault is Fault.SHORT:
                body = body[: told // 2]
                told = len(body)
            elif fault is Fault.GARBLED and body:
                body = bytes([*body[: told // 2], body[told // 2] ^ 1, *body[told // 2 + 1 :]])
            elif fault is Fault.HALF:
                body = body[: told // 2]
            self._begin(answer, told, fault)
            self.wfile.write(body)
            if fault is Fault.HALF:
                self._hang_up()

    def _begin(self, answer: http.client.HTTPResponse, length: int, fault: Fault | None) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOPS | {"content-length"}:
                pending = fault is Fault.PENDING and name.lower() == "x-amz-replication-status"
                self.send_header(name, "PENDING" if pending else value)
        # The length of what a HEAD tells of is not that of its own, empty, body.
        told = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", told or str(length))
        self.end_headers()

    def _refuse(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>As the test wants it.</Message></Error>"
        self.send_response_only(status, code)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def _drain(self, length: int) -> None:
        while length and (piece := self.rfile.read(min(length, PIECE_BYTES))):
            length -= len(piece)

    def _wait_for_the_client(self) -> None:
        self.connection.settimeout(0.1)
        while not self.closing.is_set():
            with contextlib.suppress(TimeoutError):
                if not self.connection.recv(1):
                    break
        self.close_connection = True

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

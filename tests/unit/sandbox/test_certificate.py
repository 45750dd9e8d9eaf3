"""The certificate of local servers: believed by who was given it, for this machine, and by nobody else."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from include.sandbox.certificate import make_certificate


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    """A new certificate."""
    return make_certificate(tmp_path)[0]


@pytest.fixture
def port(trusted: Path) -> Iterator[int]:
    """Where a server shakes hands with that certificate, and hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, trusted.with_suffix(".key"))

    def serve() -> None:
        while True:
            with suppress(ssl.SSLError, ConnectionError):
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return  # shut down
                with closing(connection), closing(context.wrap_socket(connection, server_side=True)) as greeted:
                    greeted.unwrap()

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        server = threading.Thread(target=serve)
        server.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        server.join()


def greet(port: int, name: str, *, trusted: Path | None) -> None:
    """Shake hands as a client that verifies."""
    context = ssl.create_default_context(cafile=trusted)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does
    with closing(socket.create_connection(("127.0.0.1", port))) as plain:
        context.wrap_socket(plain, server_hostname=name).close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_who_has_the_certificate_believes_it(port: int, trusted: Path, name: str) -> None:
    greet(port, name, trusted=trusted)


def test_it_is_nobody_elses(port: int, trusted: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="match"):
        greet(port, "synapse.example", trusted=trusted)


def test_who_was_not_given_it_does_not_believe_it(port: int) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self.signed"):
        greet(port, "localhost", trusted=None)


def test_its_key_is_its_owners(trusted: Path) -> None:
    assert trusted.with_suffix(".key").stat().st_mode & 0o777 == 0o600

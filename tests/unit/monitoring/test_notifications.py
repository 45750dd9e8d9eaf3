"""Who is told what (R4.6), and that telling never fails what is told about."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from include.errors import BackupError
from include.monitoring.messages import Failure, Kind, Notification
from include.monitoring.notifications import MAIL, Channel, Delivery, MailServer, Notifier
from include.sandbox.server import free_port

RECIPIENTS = {
    "success_report": ["operations@synapse.example"],
    "error_alert": ["operations@synapse.example", "on-call@synapse.example", "pager"],
    "status_update": [],
}
ADDRESSES = RECIPIENTS["error_alert"][:2]
ALERT = Notification(
    "error_alert", "full-20261122T000000Z", {"run": "Ä"}, (Failure("s3_access", "Zugriff verweigert: Ä", "Add it."),)
)
SENDER = "backups@synapse.example"
SECRET = "hunter22secret"
SOON = 5.0


class Mailbox:
    """Keeps what a server accepted; refuses the addresses in `refused`."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], EmailMessage]] = []
        self.refused: set[str] = set()

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if address in self.refused:
            return "550 no such user here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append((envelope.rcpt_tos, mail))
        return "250 OK"

    @property
    def kinds(self) -> list[str]:
        return [mail["X-Synapse-Backups"] for _, mail in self.mails]


def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    assert isinstance(data, LoginPassword)
    return AuthResult(success=(data.login, data.password) == (b"backups", b"correct horse"), handled=False)


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def server(mailbox: Mailbox) -> Iterator[MailServer]:
    controller = Controller(
        mailbox,
        hostname="127.0.0.1",
        port=free_port(),
        authenticator=authenticate,
        auth_required=True,
        auth_require_tls=False,
    )
    controller.start()
    yield MailServer("127.0.0.1", controller.port, SENDER, "backups", "correct horse", "none", timeout=SOON)
    controller.stop()


class Chat(ThreadingHTTPServer):
    """A real HTTP server: answers each path as its name says, and keeps what was posted."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.posted: list[dict[str, Any]] = []
        self.over = threading.Event()

    def channel(self, path: str) -> Channel:
        return Channel(f"json://token:{SECRET}@127.0.0.1:{self.server_port}/{path}")


class ChatHandler(BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.path.split("/")[1]
        if answer == "hangs":
            self.server.over.wait()
        if answer == "trickles":  # a byte in time, again and again: no timeout of the client's ever ends it
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.server.over.wait(0.05):
                self.wfile.write(b"X-Later: 1\r\n")
            return
        self.send_response(500 if answer == "breaks" else 200)
        self.end_headers()
        self.server.posted.append(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def chat() -> Iterator[Chat]:
    with Chat() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()


@pytest.mark.requirement("R4.6")
def test_an_alert_reaches_mailboxes_and_the_pager(mailbox: Mailbox, server: MailServer, chat: Chat) -> None:
    ways = {MAIL: server, "pager": chat.channel("pages")}
    assert Notifier(RECIPIENTS, ways).send(ALERT) == Delivery(tuple(RECIPIENTS["error_alert"]))
    [(recipients, mail)] = mailbox.mails
    assert recipients == ADDRESSES
    assert mail["Subject"] == "[Synapse backups] full-20261122T000000Z FAILED at s3_access: Zugriff verweigert: Ä"
    assert mail["From"] == SENDER
    for kind in ("plain", "html"):
        body = mail.get_body((kind,))
        assert body is not None
        assert "Zugriff verweigert: Ä" in body.get_content()
    [post] = chat.posted
    assert (post["type"], post["title"].endswith("Zugriff verweigert: Ä")) == ("failure", True)
    assert "Add it." in post["message"]


@pytest.mark.requirement("R4.6")
def test_each_kind_has_its_recipients(mailbox: Mailbox, server: MailServer, chat: Chat) -> None:
    kinds: list[Kind] = ["success_report", "error_alert", "status_update"]
    notifier = Notifier(RECIPIENTS, {MAIL: server, "pager": chat.channel("pages")})
    facts = {"size": "1 MB", "duration": "1 s"}
    assert [notifier.send(Notification(kind, "b", facts)).told for kind in kinds] == [
        tuple(RECIPIENTS[kind]) for kind in kinds
    ]
    assert (mailbox.kinds, len(chat.posted)) == (["success_report", "error_alert"], 1)


@pytest.mark.requirement("R4.6")
def test_it_is_in_the_log_whatever_the_ways_do(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert Notifier({}, {}).send(ALERT) == Delivery(())
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "s3_access" in caplog.text


@pytest.mark.requirement("R4.6")
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("breaks/", "error=500"),
        ("hangs/?rto=0.2", "onnection error"),
        ("trickles/", "No answer within 1 s"),
        ("hangs/?rto=60", "No answer within 1 s"),
    ],
)
def test_a_broken_channel_is_told_to_the_others_and_holds_nobody_up(
    path: str, why: str, mailbox: Mailbox, server: MailServer, chat: Chat
) -> None:
    ways = {MAIL: server, "pager": chat.channel(path)}
    with everything_logged() as logged:
        delivery = Notifier(RECIPIENTS, ways, deadline=1).send(ALERT)
    assert delivery.told == tuple(ADDRESSES)
    assert why in delivery.untold["pager"]
    assert mailbox.kinds == ["error_alert", "channel_broken"]
    recipients, mail = mailbox.mails[1]
    assert recipients == ADDRESSES
    told = mail.get_body(("plain",))
    assert told is not None
    assert why in told.get_content()
    assert "pager was NOT told" in logged.getvalue()
    assert SECRET not in logged.getvalue() + told.get_content() + repr(ways) + repr(delivery)


@pytest.mark.requirement("R4.6")
def test_a_dead_mail_server_is_told_to_the_pager(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    away = MailServer("127.0.0.1", free_port(), SENDER, security="none", timeout=SOON)
    delivery = Notifier(RECIPIENTS, {MAIL: away, "pager": chat.channel("pages")}).send(ALERT)
    assert delivery.told == ("pager",)
    assert set(delivery.untold) == set(ADDRESSES)
    assert [post["type"] for post in chat.posted] == ["failure", "warning"]
    assert "on-call@\N{ZERO WIDTH SPACE}synapse.example" in chat.posted[1]["message"]
    assert [record.levelname for record in caplog.records][-1] == "WARNING"


def test_when_every_way_is_broken_nothing_is_raised_and_everybody_is_named() -> None:
    refusing = Channel(f"json://token:{SECRET}@127.0.0.1:{free_port()}/")
    delivery = Notifier(RECIPIENTS, {MAIL: BackupError("No connection.", mend="Add it."), "pager": refusing}).send(
        ALERT
    )
    assert delivery.told == ()
    assert delivery.untold["on-call@synapse.example"] == "No connection. Add it."
    assert "onnection error" in delivery.untold["pager"]
    assert Notifier(RECIPIENTS, {}).send(ALERT).told == ()


@contextmanager
def everything_logged() -> Iterator[StringIO]:
    """What a program's own handler is given; `caplog` would listen to loggers that tell nobody."""
    root, handler = logging.getLogger(), logging.StreamHandler(StringIO())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler.stream
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@pytest.mark.parametrize(
    "url", [f"nonsense {SECRET}", f"nope://u:{SECRET}@h/x", f"slack://{SECRET}", f"json://:{SECRET}"]
)
def test_an_url_that_is_none_is_said_and_not_told(url: str) -> None:
    with everything_logged() as logged:
        delivery = Notifier({"error_alert": ["pager"]}, {"pager": Channel(url)}).send(ALERT)
    assert "pager" in delivery.untold
    assert SECRET not in logged.getvalue() + repr(delivery)
    assert "pager was NOT told" in logged.getvalue()


def test_a_channel_that_verifies_no_certificate_is_refused(chat: Chat) -> None:
    delivery = Notifier({"error_alert": ["pager"]}, {"pager": chat.channel("pages/?verify=no")}).send(ALERT)
    assert "R7.2" in delivery.untold["pager"]
    assert chat.posted == []


def test_a_way_that_raises_what_nobody_foresaw_is_a_warning() -> None:
    class Odd:
        def deliver(self, message: object, recipients: object) -> dict[str, str]:
            raise RuntimeError(SECRET)

    delivery = Notifier({"error_alert": ["pager"]}, {"pager": Odd()}).send(ALERT)
    assert delivery.untold == {"pager": "It failed with RuntimeError."}


def test_a_wrong_password_is_a_warning_that_does_not_tell_it(
    server: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = MailServer("127.0.0.1", server.port, SENDER, "backups", "battery staple", "none", timeout=SOON)
    delivery = Notifier({"error_alert": ADDRESSES}, {MAIL: wrong}).send(ALERT)
    assert "535" in delivery.untold[ADDRESSES[0]]
    assert "battery" not in caplog.text + repr(wrong)


def test_a_server_without_tls_is_not_trusted_with_the_password(server: MailServer, mailbox: Mailbox) -> None:
    for security in ("starttls", "tls"):
        strict = MailServer("127.0.0.1", server.port, SENDER, "backups", "correct horse", security, timeout=SOON)
        assert Notifier({"error_alert": ADDRESSES}, {MAIL: strict}).send(ALERT).told == ()
    assert mailbox.mails == []


def test_a_refused_recipient_does_not_keep_the_others_from_hearing(server: MailServer, mailbox: Mailbox) -> None:
    notifier = Notifier({"error_alert": ADDRESSES}, {MAIL: server})
    mailbox.refused = {"on-call@synapse.example"}
    delivery = notifier.send(ALERT)
    assert delivery.told == ("operations@synapse.example",)
    assert delivery.untold == {"on-call@synapse.example": "550 no such user here"}
    assert mailbox.kinds == ["error_alert", "channel_broken"]
    mailbox.refused = set(ADDRESSES)
    assert notifier.send(ALERT).told == ()


def test_sockets_are_closed_when_nobody_listens() -> None:
    with socket.socket() as deaf:  # bound, and accepts nobody: the handshake hangs in its queue
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        server = MailServer("127.0.0.1", deaf.getsockname()[1], SENDER, security="none", timeout=0.3)
        delivery = Notifier({"error_alert": ADDRESSES}, {MAIL: server}).send(ALERT)
    assert "timed out" in delivery.untold[ADDRESSES[0]]

"""Who is told what (R4.6), and that telling never fails what is told about."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from include.monitoring.notifications import Delivery, Kind, MailServer, Notification, Notifier

RECIPIENTS = {
    "success_report": ["operations@synapse.example"],
    "error_alert": ["operations@synapse.example", "on-call@synapse.example"],
    "status_update": [],
}
ALERT = Notification(
    "error_alert", "full-20261122T000000Z\nFAILED", {"task": "s3_access", "what": "Zugriff verweigert: Ä"}
)
SENDER = "backups@synapse.example"


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
    yield MailServer("127.0.0.1", controller.port, SENDER, "backups", "correct horse", "none", timeout=5)
    controller.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.requirement("R4.6")
def test_an_alert_is_mailed_to_its_recipients(mailbox: Mailbox, server: MailServer) -> None:
    assert Notifier(RECIPIENTS, server).send(ALERT) == Delivery(tuple(RECIPIENTS["error_alert"]))
    [(recipients, mail)] = mailbox.mails
    assert recipients == RECIPIENTS["error_alert"]
    assert mail["Subject"] == "full-20261122T000000Z FAILED"
    assert mail["From"] == SENDER
    assert mail.get_content().replace("\r", "") == "task: s3_access\nwhat: Zugriff verweigert: Ä\n"


@pytest.mark.requirement("R4.6")
def test_each_kind_has_its_recipients(mailbox: Mailbox, server: MailServer) -> None:
    kinds: list[Kind] = ["success_report", "error_alert", "status_update"]
    delivered = [Notifier(RECIPIENTS, server).send(Notification(kind, "subject", {})).recipients for kind in kinds]
    assert delivered == [tuple(RECIPIENTS[kind]) for kind in kinds]
    assert len(mailbox.mails) == 2


@pytest.mark.requirement("R4.6")
def test_it_is_in_the_log_whatever_the_mail_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert Notifier(RECIPIENTS).send(ALERT) == Delivery(())
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "s3_access" in caplog.text


def test_a_server_that_is_away_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    away = MailServer("127.0.0.1", free_port(), SENDER, security="none", timeout=2)
    delivery = Notifier(RECIPIENTS, away).send(ALERT)
    assert delivery.recipients == ()
    assert delivery.warning is not None
    assert "Nobody was mailed" in delivery.warning
    assert [record.levelname for record in caplog.records][-1] == "WARNING"


def test_a_wrong_password_is_a_warning_that_does_not_tell_it(
    server: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = MailServer("127.0.0.1", server.port, SENDER, "backups", "battery staple", "none", timeout=5)
    delivery = Notifier(RECIPIENTS, wrong).send(ALERT)
    assert delivery.warning is not None
    assert "535" in delivery.warning
    assert "battery" not in caplog.text + repr(wrong)


def test_a_server_without_tls_is_not_trusted_with_the_password(server: MailServer, mailbox: Mailbox) -> None:
    strict = MailServer("127.0.0.1", server.port, SENDER, "backups", "correct horse", "starttls", timeout=5)
    assert Notifier(RECIPIENTS, strict).send(ALERT).warning
    wrapped = MailServer("127.0.0.1", server.port, SENDER, "backups", "correct horse", "tls", timeout=5)
    assert Notifier(RECIPIENTS, wrapped).send(ALERT).warning
    assert mailbox.mails == []


def test_a_refused_recipient_does_not_keep_the_others_from_hearing(server: MailServer, mailbox: Mailbox) -> None:
    mailbox.refused = {"on-call@synapse.example"}
    delivery = Notifier(RECIPIENTS, server).send(ALERT)
    assert delivery.recipients == ("operations@synapse.example",)
    assert delivery.warning == "The mail server refused on-call@synapse.example."
    mailbox.refused = set(RECIPIENTS["error_alert"])
    assert Notifier(RECIPIENTS, server).send(ALERT).recipients == ()

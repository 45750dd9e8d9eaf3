"""Success reports, error alerts and status updates (R4.6): always in the log, and by mail where a server is named.

No failure to tell may fail what is told about: `Notifier.send` raises nothing, and returns why a mail was not sent.
"""

from __future__ import annotations

import logging
import smtplib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Literal

log = logging.getLogger(__name__)

Kind = Literal["success_report", "error_alert", "status_update"]
Security = Literal["tls", "starttls", "none"]
_LEVELS: dict[Kind, int] = {
    "success_report": logging.INFO,
    "error_alert": logging.ERROR,
    "status_update": logging.INFO,
}


@dataclass(frozen=True)
class Notification:
    """One thing to tell: its kind chooses the recipients, `facts` are its lines, in this order."""

    kind: Kind
    subject: str
    facts: Mapping[str, object]

    def text(self) -> str:
        """The facts, a line each, aligned."""
        width = max(map(len, self.facts), default=0) + 1
        return "".join(f"{name + ':':<{width}} {value}\n" for name, value in self.facts.items())


@dataclass(frozen=True)
class MailServer:
    """An SMTP server to hand mails to: `tls` from the first byte, `starttls`, or `none` on a trusted network only."""

    host: str
    port: int
    sender: str
    login: str | None = None
    password: str = field(default="", repr=False)
    security: Security = "tls"
    timeout: float = 20.0

    def deliver(self, message: EmailMessage) -> list[str]:
        """Hand over one mail; returns the addresses that the server refused. Raises `OSError`, as smtplib does."""
        with self._session() as session:
            if self.security == "starttls":
                session.starttls(context=_trusting_the_system())
            if self.login:
                session.login(self.login, self.password)
            return sorted(session.send_message(message))

    def _session(self) -> smtplib.SMTP:
        if self.security == "tls":
            return smtplib.SMTP_SSL(self.host, self.port, timeout=self.timeout, context=_trusting_the_system())
        return smtplib.SMTP(self.host, self.port, timeout=self.timeout)


@dataclass(frozen=True)
class Delivery:
    """What became of a notification: whom it was mailed to, and what went wrong, if anything did."""

    recipients: tuple[str, ...]
    warning: str | None = None


@dataclass(frozen=True)
class Notifier:
    """Tells people: `recipients` by kind, mails through `server`; without one, the log is all."""

    recipients: Mapping[str, Sequence[str]]
    server: MailServer | None = None

    def send(self, notification: Notification) -> Delivery:
        """Write it to the log and mail it. Raises nothing: what went wrong is logged as a warning and returned."""
        log.log(_LEVELS[notification.kind], "%s\n%s", notification.subject, notification.text())
        recipients = tuple(self.recipients.get(notification.kind, ()))
        if self.server is None or not recipients:
            return Delivery(())
        try:
            refused = self.server.deliver(_mail(notification, self.server.sender, recipients))
        except (OSError, ValueError) as error:
            return self._troubled((), f"Nobody was mailed, {self.server.host}:{self.server.port}: {_said(error)}")
        accepted = tuple(address for address in recipients if address not in refused)
        if refused:
            return self._troubled(accepted, f"The mail server refused {', '.join(refused)}.")
        return Delivery(accepted)

    @staticmethod
    def _troubled(recipients: tuple[str, ...], warning: str) -> Delivery:
        log.warning("%s Correct the connection synapse_notifications or the policy's notifications.", warning)
        return Delivery(recipients, warning)


def _mail(notification: Notification, sender: str, recipients: Sequence[str]) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = " ".join(notification.subject.split())
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Date"] = formatdate(usegmt=True)
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2] or "localhost")
    message["X-Synapse-Backups"] = notification.kind
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation notices back
    message.set_content(notification.text())
    return message


def _said(error: Exception) -> str:
    """The server's words, without the addresses and bytes around them."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return f"every recipient was refused: {', '.join(sorted(error.recipients))}"
    if isinstance(error, smtplib.SMTPResponseException):
        words = error.smtp_error
        return f"{error.smtp_code} {words.decode(errors='replace') if isinstance(words, bytes) else words}"
    return str(error) or type(error).__name__


def _trusting_the_system() -> ssl.SSLContext:
    return ssl.create_default_context()

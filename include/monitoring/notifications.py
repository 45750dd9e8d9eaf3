"""Success reports, error alerts and status updates (R4.6): always in the log, by mail, and over chats and pagers.

No failure to tell may fail what is told about: `Notifier.send` raises nothing. It returns whom it could not tell, after
it has told the others so. Mail is SMTP; chats and pagers are whatever Apprise speaks (https://appriseit.com/services/).
"""

from __future__ import annotations

import logging
import re
import smtplib
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Literal, Protocol
from urllib.parse import unquote

from include.errors import BackupError
from include.monitoring.messages import Failure, Kind, Message, Notification, heard_by

log = logging.getLogger(__name__)

Security = Literal["tls", "starttls", "none"]
MAIL = "mail"
"""The name of the way that every address is reached by; every other way has the name of its channel."""
DEADLINE = 30.0
"""Seconds in which everybody is told or is taken to be out of reach."""
SECRET_LENGTH = 4
_LEVELS: dict[Kind, int] = {
    "success_report": logging.INFO,
    "error_alert": logging.ERROR,
    "status_update": logging.INFO,
    "channel_broken": logging.WARNING,
}


class NotTold(BackupError):
    """Somebody could not be told."""


class Way(Protocol):
    """A way to reach recipients: raises `BackupError` or `OSError`, or returns who was refused, and why."""

    def deliver(self, message: Message, recipients: Sequence[str]) -> Mapping[str, str]:
        """Hand over one message."""


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

    def deliver(self, message: Message, recipients: Sequence[str]) -> Mapping[str, str]:
        """Hand over one mail to all. Raises `NotTold` with the server's own words."""
        try:
            with self._session() as session:
                if self.security == "starttls":
                    session.starttls(context=_trusting_the_system())
                if self.login:
                    session.login(self.login, self.password)
                refused = session.send_message(_mail(message, self.sender, recipients))
        except (OSError, ValueError) as error:
            raise NotTold(
                f"The mail server {self.host}:{self.port} did not take the mail: {_said(error)}",
                mend="Correct the connection of the mail server, or the policy's notifications.",
            ) from None
        return {address: _words(*answer) for address, answer in refused.items()}

    def _session(self) -> smtplib.SMTP:
        if self.security == "tls":
            return smtplib.SMTP_SSL(self.host, self.port, timeout=self.timeout, context=_trusting_the_system())
        return smtplib.SMTP(self.host, self.port, timeout=self.timeout)


@dataclass(frozen=True)
class Channel:
    """A chat or a pager: an Apprise URL, which holds its secret."""

    url: str = field(repr=False)

    def deliver(self, message: Message, recipients: Sequence[str]) -> Mapping[str, str]:
        """Post it. Raises `NotTold` with what Apprise says, less whatever is in the URL."""
        import apprise  # noqa: PLC0415 - half a second, and only who has a chat needs it

        # It logs URLs that it cannot read, whole: what there is to know is in what we raise.
        logging.getLogger("apprise").propagate = False
        service = apprise.Apprise.instantiate(self.url)
        if service is None:
            raise NotTold(
                "Its URL is none that Apprise knows.", mend="Compare it with https://appriseit.com/services/."
            )
        if not service.verify_certificate:
            raise NotTold("Its URL says that no certificate is verified (R7.2).", mend="Remove verify=no from the URL.")
        sender = apprise.Apprise()
        sender.add(service)
        subject, text = message.for_chat()
        kinds = {"error_alert": "failure", "channel_broken": "warning", "success_report": "success"}
        result = sender.notify(
            title=subject,
            body=text,
            notify_type=kinds.get(heard_by(message.kind), "info"),
            body_format=apprise.NotifyFormat.TEXT,
            timeout=DEADLINE,
        )
        if not result:
            said = " ".join(entry.message for entry in result.logs()) or "It did not answer in time."
            raise NotTold(self._without_secrets(said), mend="Correct its URL, or the service that it names.")
        return {}

    def _without_secrets(self, words: str) -> str:
        """Any part of a URL may be a token: in Slack's even what looks like the host is."""
        secret = self.url.partition("://")[2]
        parts = {each for text in (secret, unquote(secret)) for each in re.split(r"[/:@?&=#,]+", text)}
        for part in sorted(parts, key=len, reverse=True):
            if len(part) >= SECRET_LENGTH:
                words = words.replace(part, "***")
        return words


@dataclass(frozen=True)
class Delivery:
    """What became of a notification: who was told, and why the others were not."""

    told: tuple[str, ...]
    untold: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Notifier:
    """Tells the `recipients` of each kind: addresses by `mail`, everybody else over the channel of that name.

    What stands where a way should be may also be the error that says why there is none.
    """

    recipients: Mapping[str, Sequence[str]]
    ways: Mapping[str, Way | BackupError]
    deadline: float = DEADLINE

    def send(self, notification: Notification) -> Delivery:
        """Write it to the log and tell everybody at once; who could not be told is told about to those who could.

        Raises nothing.
        """
        recipients = tuple(self.recipients.get(heard_by(notification.kind), ()))
        delivery = self._tell(notification, recipients)
        if delivery.untold and delivery.told:
            troubles = tuple(
                Failure(whom, why, "Mend the connection or the recipient; the runbook says how.")
                for whom, why in delivery.untold.items()
            )
            about = {"told of this": ", ".join(delivery.told), "not delivered": notification.kind.replace("_", " ")}
            self._tell(
                replace(notification, kind="channel_broken", facts=about, failures=troubles),
                delivery.told,
            )
        for whom, why in delivery.untold.items():
            log.warning("%s was NOT told: %s", whom, why)
        return delivery

    def _tell(self, notification: Notification, recipients: Sequence[str]) -> Delivery:
        message = notification.message()
        log.log(_LEVELS[heard_by(notification.kind)], "%s\n%s", message.subject, message.text)
        by_way: dict[str, list[str]] = {}
        for recipient in recipients:
            by_way.setdefault(MAIL if "@" in recipient else recipient, []).append(recipient)
        untold: dict[str, str] = dict.fromkeys(recipients, f"No answer within {self.deadline:.0f} s.")

        def tell(way: str, whom: Sequence[str]) -> Callable[[], None]:
            def deliver() -> None:
                refused = self._deliver(way, message, whom)
                for each in whom:
                    untold.pop(each)
                untold.update(refused)

            return deliver

        # Side by side, and waited for by the clock: a server that trickles would outlive every timeout of its own.
        threads = [
            threading.Thread(target=tell(way, whom), name=f"tell {way}", daemon=True) for way, whom in by_way.items()
        ]
        for thread in threads:
            thread.start()
        late = time.monotonic() + self.deadline
        for thread in threads:
            thread.join(max(0.0, late - time.monotonic()))
        why = dict(untold)
        return Delivery(tuple(each for each in recipients if each not in why), why)

    def _deliver(self, name: str, message: Message, recipients: Sequence[str]) -> Mapping[str, str]:
        """Who was not told, and why."""
        way = self.ways.get(name) or NotTold("There is no such channel.", mend="Correct the policy's notifications.")
        try:
            if isinstance(way, BackupError):
                raise way
            return way.deliver(message, recipients)
        except BackupError as error:
            return dict.fromkeys(recipients, str(error))
        except Exception as error:  # Apprise's plugins may raise anything, and its words may hold the URL
            return dict.fromkeys(recipients, f"It failed with {type(error).__name__}.")


def _mail(message: Message, sender: str, recipients: Sequence[str]) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"] = message.subject
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Date"] = formatdate(usegmt=True)
    mail["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2] or "localhost")
    mail["X-Synapse-Backups"] = message.kind
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation notices back
    mail.set_content(message.text)
    mail.add_alternative(message.html, subtype="html")
    return mail


def _said(error: Exception) -> str:
    """The server's words, without the addresses and bytes around them."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return f"every recipient was refused: {', '.join(sorted(error.recipients))}"
    if isinstance(error, smtplib.SMTPResponseException):
        return _words(error.smtp_code, error.smtp_error)
    return str(error) or type(error).__name__


def _words(code: int, words: bytes | str) -> str:
    return f"{code} {words.decode(errors='replace') if isinstance(words, bytes) else words}"


def _trusting_the_system() -> ssl.SSLContext:
    return ssl.create_default_context()

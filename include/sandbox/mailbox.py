"""Everybody's mailbox: an SMTP server on 127.0.0.1 that keeps each mail as a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from include.sandbox.server import free_port

SENDER = "backups@synapse.example"


@dataclass(frozen=True)
class Mail:
    """One mail: whom it was for, what it says, and the file that it is kept in."""

    recipients: tuple[str, ...]
    message: EmailMessage
    file: Path

    @property
    def subject(self) -> str:
        """Its subject."""
        return str(self.message["Subject"])

    def text(self, kind: str = "plain") -> str:
        """Its body, as `plain` text or as `html`; empty when it has none of the kind."""
        body = self.message.get_body((kind,))
        return str(body.get_content()).replace("\r\n", "\n") if body else ""


class Mailbox:
    """Takes mails while the `with` block runs, in a thread of its own, and tells each to `arrived`."""

    def __init__(self, directory: Path, *, arrived: Callable[[Mail], None] = lambda mail: None) -> None:
        self.directory = directory
        self.mails: list[Mail] = []
        self._arrived = arrived
        self._controller = Controller(self, hostname="127.0.0.1", port=free_port())

    def __enter__(self) -> Self:
        self.directory.mkdir(mode=0o700)
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()

    def connection(self) -> dict[str, object]:
        """Airflow's connection to it, as `AIRFLOW_CONN_*` takes it."""
        extra = {"from_email": SENDER, "disable_ssl": True, "disable_tls": True}
        return {"conn_type": "smtp", "host": "127.0.0.1", "port": self._controller.port, "extra": extra}

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Keep one mail (the name is aiosmtpd's)."""
        content = envelope.content if isinstance(envelope.content, bytes) else (envelope.content or "").encode()
        message = message_from_bytes(content, policy=default)
        assert isinstance(message, EmailMessage)  # noqa: S101 - the policy makes it one
        file = self.directory / f"{len(self.mails) + 1:03}-{message['X-Synapse-Backups']}.eml"
        file.write_bytes(content)
        mail = Mail(tuple(envelope.rcpt_tos), message, file)
        self.mails.append(mail)
        self._arrived(mail)
        return "250 OK"

"""What notifications say (R4.6): one template a kind, laid out as text for chats and logs and as HTML for mails.

Names come from anywhere (an object, a role, a branch): whatever is put into a template becomes one line without control
characters, is escaped in HTML, and in a chat neither mentions people nor hides a link.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

Kind = Literal[
    "success_report",
    "error_alert",
    "status_update",
    "channel_broken",
    "recovered",
    "recovery_failed",
    "recovery_refused",
    "run_failed",
    "rotated",
    "switched_back",
    "drill_passed",
    "drill_failed",
    "rto_missed",
]
_HEARD_BY: dict[Kind, Kind] = {
    "recovered": "success_report",
    "recovery_failed": "error_alert",
    "recovery_refused": "status_update",
    "run_failed": "error_alert",
    "rotated": "success_report",
    "switched_back": "success_report",
    "drill_passed": "success_report",
    "drill_failed": "error_alert",
    "rto_missed": "error_alert",
}
SYSTEM = "[Synapse backups]"
LONGEST_WHAT = 600
_TEMPLATES = Path(__file__).with_name("templates")
_COLOURS: dict[Kind, str] = {
    "success_report": "#1a7f37",
    "error_alert": "#b3261e",
    "status_update": "#33608c",
    "channel_broken": "#9a5b00",
    "recovered": "#1a7f37",
    "recovery_failed": "#b3261e",
    "recovery_refused": "#33608c",
    "run_failed": "#b3261e",
    "rotated": "#1a7f37",
    "switched_back": "#1a7f37",
    "drill_passed": "#1a7f37",
    "drill_failed": "#b3261e",
    "rto_missed": "#b3261e",
}
# PostgreSQL quotes rows, statements and keys in these: data of the database does not leave the house.
_QUOTING = re.compile(r"\b(?:DETAIL|CONTEXT|QUERY|STATEMENT):.*")
# How mentions and links begin in chats. Nothing more is touched: a command must survive being copied.
_MARKUP = re.compile(r"(?<=[@<])|(?<=\])(?=\()")


@dataclass(frozen=True)
class Failure:
    """Something that went wrong: where, what happened, what to do next."""

    task: str
    what: str
    mend: str

    def presentable(self) -> Failure:
        """The same, without what PostgreSQL quotes of its data, and short enough for a phone."""
        what = _QUOTING.sub("(the rest is in the task's log)", self.what)
        return Failure(self.task, what if len(what) <= LONGEST_WHAT else f"{what[:LONGEST_WHAT]} …", self.mend)


@dataclass(frozen=True)
class Notification:
    """One thing to tell about a backup: its kind chooses recipients and words, `facts` stay in their order."""

    kind: Kind
    about: str
    facts: Mapping[str, object]
    failures: tuple[Failure, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    def message(self) -> Message:
        """The notification in words."""
        values = {
            "about": self.about,
            "facts": self.facts,
            "failures": [failure.presentable() for failure in self.failures],
            "links": self.links,
            "colour": _COLOURS[self.kind],
        }
        words = _ENVIRONMENT.get_template(f"{self.kind}.j2")
        subject, lead = ("".join(words.blocks[name](words.new_context(values))) for name in ("subject", "lead"))
        subject = f"{SYSTEM} {subject}"
        text, html = (
            _ENVIRONMENT.get_template(f"layout.{form}.j2").render(values, subject=subject, lead=lead)
            for form in ("txt", "html")
        )
        return Message(self.kind, subject, text, html)


@dataclass(frozen=True)
class Message:
    """A notification in words: a subject of one line, and the same body twice."""

    kind: Kind
    subject: str
    text: str
    html: str

    def for_chat(self) -> tuple[str, str]:
        """Subject and text in which nobody is mentioned, and no link hides behind other words."""
        return _disarmed(self.subject), _disarmed(self.text)


def heard_by(kind: Kind) -> Kind:
    """The kind of the policy whose recipients hear of this one: who hears of backups hears of recoveries and keys."""
    return _HEARD_BY.get(kind, kind)


def one_line(value: object) -> object:
    """A value as one line of visible characters; numbers and what is markup already stay as they are."""
    if isinstance(value, Markup | int | float):
        return value
    return "".join(map(_visible, str(value)))


def _visible(character: str) -> str:
    if character.isspace():
        return " "
    return "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character).startswith("C") else character


def _disarmed(text: str) -> str:
    return _MARKUP.sub("\N{ZERO WIDTH SPACE}", text)


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
    undefined=StrictUndefined,
    finalize=one_line,
    trim_blocks=True,
    lstrip_blocks=True,
)

"""What notifications say (R4.6): readable on a phone, and harmless whatever a name holds."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import get_args

import pytest

from include.monitoring.messages import Failure, Kind, Notification, heard_by

BACKUP = "full-20261122T000000Z"
FACTS = {"size": "126.9 MB, stored 86.1 MB", "duration": "11.6 s", "rows": 210_006}
RUN = "http://127.0.0.1:8080/dags/full_backup/runs/manual__2026-11-22T10%3A37"
EVIL = (
    'x\r\nBcc: all@example.org\n<script>alert(1)</script> & "q"'
    " <!channel> @everyone [here](http://evil) \x1b[2J\u202etxt"
)


def made(kind: Kind, **more: str) -> Notification:
    failure = Failure("execute.create_backup", more.get("what", "pg_dump ended with 1."), more.get("mend", "Look."))
    facts = FACTS | {name: value for name, value in more.items() if name not in ("what", "mend", "about")}
    return Notification(kind, more.get("about", BACKUP), facts, (failure,), {"The run": RUN})


class Tags(HTMLParser):
    """What a mail program would make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str | None] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.requirement("R4.6")
@pytest.mark.parametrize(
    ("kind", "subject"),
    [
        ("success_report", f"[Synapse backups] {BACKUP} succeeded: 126.9 MB, stored 86.1 MB, 11.6 s"),
        ("status_update", f"[Synapse backups] {BACKUP} is made and is being verified"),
        ("error_alert", f"[Synapse backups] {BACKUP} FAILED at execute.create_backup: pg_dump ended with 1."),
        ("channel_broken", f"[Synapse backups] {BACKUP}: NOT everybody could be told"),
        ("recovered", f"[Synapse backups] {BACKUP} is done"),
        ("rotated", f"[Synapse backups] {BACKUP}: data keys were wrapped"),
        ("recovery_failed", f"[Synapse backups] {BACKUP} FAILED at execute.create_backup: pg_dump ended with 1."),
        ("recovery_refused", f"[Synapse backups] {BACKUP} was not carried out"),
        ("run_failed", f"[Synapse backups] {BACKUP} FAILED at execute.create_backup: pg_dump ended with 1."),
    ],
)
def test_the_subject_says_it_on_a_phone(kind: Kind, subject: str) -> None:
    assert made(kind).message().subject == subject


def test_every_kind_has_its_words() -> None:
    leads = {made(kind).message().text.splitlines()[0] for kind in get_args(Kind)}
    assert len(leads) == len(get_args(Kind))


@pytest.mark.requirement("R4.6")
def test_who_hears_of_backups_hears_of_recoveries_and_of_other_runs() -> None:
    assert {kind: heard_by(kind) for kind in get_args(Kind) if heard_by(kind) != kind} == {
        "recovered": "success_report",
        "recovery_failed": "error_alert",
        "rotated": "success_report",
        "switched_back": "success_report",
        "recovery_refused": "status_update",
        "run_failed": "error_alert",
    }


@pytest.mark.requirement("R4.6")
def test_text_and_html_say_the_same() -> None:
    message = made("error_alert").message()
    html = Tags()
    html.feed(message.html)
    for words in ("execute.create_backup", "pg_dump ended with 1.", "Look.", "126.9 MB, stored 86.1 MB", "210006"):
        assert words in message.text
        assert words in " ".join(html.words)
    assert RUN in message.text
    assert html.links == [RUN]


def test_the_text_is_aligned_and_in_order() -> None:
    lines = Notification("status_update", BACKUP, {"b": 1, "longer": "two"}).message().text.splitlines()
    assert lines[-2:] == ["b:      1", "longer: two"]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_name_can_neither_break_a_line_nor_mark_anything_up(kind: Kind) -> None:
    plain, evil = made(kind, name="x").message(), made(kind, about=EVIL, what=EVIL, mend=EVIL, name=EVIL).message()
    assert len(evil.subject.splitlines()) == 1
    assert len(evil.text.splitlines()) == len(plain.text.splitlines())
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", evil.text + evil.subject + evil.html)
    before, after = Tags(), Tags()
    before.feed(plain.html)
    after.feed(evil.html)
    assert (after.tags, after.links) == (before.tags, before.links)
    for words in evil.for_chat():
        assert "@everyone" not in words
        assert "<!channel>" not in words
        assert "](" not in words


def test_a_chat_leaves_a_command_as_it_is() -> None:
    mend = "Run `chmod 600 /a/b_c*.json | cat`, then clear the task."
    assert mend in made("error_alert", mend=mend).message().for_chat()[1]


@pytest.mark.parametrize(
    "line", ["DETAIL:  Key (email)=(ada@example.org) is there.", "CONTEXT:  COPY users, line 1: ada@x"]
)
def test_what_postgresql_quotes_of_its_data_does_not_leave_the_house(line: str) -> None:
    message = made("error_alert", what=f"ERROR: duplicate key.\n{line}\nHINT: none").message()
    assert "ada@" not in message.subject + message.text + message.html
    assert "duplicate key" in message.text


def test_an_endless_error_is_cut() -> None:
    message = made("error_alert", what="word " * 10_000).message()
    assert len(message.subject) < 250
    assert len(message.text) < 2000

"""The pages that people read on their worst day, in a real browser: as files, without Airflow around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from include.recovery.validation.page import render
from include.recovery.validation.validation import Check, Validation
from tests.browser import DESK, PHONE, Browser

NOW = datetime(2026, 11, 29, 1, 2, 3, tzinfo=UTC)
RUN = "document.title='run'"
HOSTILE = (
    f"""<script>{RUN}</script><img src=//elsewhere.example onerror="{RUN}"> &amp; "'></td></table><h1>all well</h1>"""
)
READABLE = 4.5
GOOD = Check("rows", "public.users", "1,234", "1,234", passed=True)
LONG = replace(GOOD, subject="public." + "a_table_that_was_named_long_ago_" * 4, found="f" * 64, passed=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


def shown(browser: Browser, directory: Path, *checks: Check, about: str = "a test") -> None:
    """A validation's page, opened as a file."""
    page = directory / "page.html"
    page.write_text(render(Validation("data_consistency", NOW, NOW, checks), about), encoding="utf-8")
    browser.open(page.as_uri())


@pytest.mark.requirement("R5.2")
def test_whatever_things_are_called_is_read_and_never_run(browser: Browser, tmp_path: Path) -> None:
    shown(browser, tmp_path, Check(HOSTILE, HOSTILE, HOSTILE, HOSTILE, passed=False), about=HOSTILE)
    assert browser.driver.title == f"Data consistency of {HOSTILE}"
    assert browser.words("h1") == f"Data consistency of {HOSTILE}: 1 of 1 checks failed"
    # What failed, with its name; and below the heading of its name.
    assert browser.words("td").splitlines() == [HOSTILE] * (4 + 3)
    assert browser.hosts() == set()
    assert browser.complaints() == []


@pytest.mark.requirement("R5.2")
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_read_by_night_and_on_a_phone(
    browser: Browser, tmp_path: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    browser.look(width, scheme)
    shown(browser, tmp_path, GOOD, LONG)
    assert browser.scheme() == scheme
    assert browser.sideways() == 0
    contrast, words = browser.faintest()
    assert contrast >= READABLE, words
    for words in (LONG.subject, LONG.found, LONG.expected):
        browser.sees("tr.failed td", words)

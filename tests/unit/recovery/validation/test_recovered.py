"""What a validation is given, and what it says."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from include.recovery.validation.kept import keep, newest_page, validations
from include.recovery.validation.page import render
from include.recovery.validation.recovered import Expected, NothingExpected
from include.recovery.validation.validation import Check, NotValid, Validation
from include.sources.postgres.inventory import Inventory, LargeObjects, SequenceState, TableContent

NOW = datetime(2026, 11, 29, 1, 2, 3, 4, tzinfo=UTC)


def test_what_is_expected_is_written_for_its_owner_alone_and_read_back(tmp_path: Path) -> None:
    inventory = Inventory(
        {"public.users": TableContent(3, "1 2")},
        {"public.s": SequenceState(5, True, 1, False)},
        LargeObjects(1, 2, "3 4"),
    )
    all_of_it = Expected(
        NOW,
        inventory,
        tables=("public.users",),
        objects=7,
        commit="c0ffee",
        left_out=("roles",),
        constraints=("public.users: x UNIQUE (a)",),
        unheld=("a/key",),
    )
    (tmp_path / "expected.json.part").write_text("of a try that was killed")
    for expected in (Expected(NOW), all_of_it):
        expected.write(tmp_path / "expected.json")
        assert Expected.read(tmp_path / "expected.json") == expected
    assert stat.S_IMODE((tmp_path / "expected.json").stat().st_mode) == 0o600
    with pytest.raises(NothingExpected, match=r"elsewhere\.json"):
        Expected.read(tmp_path / "elsewhere.json")


@pytest.mark.requirement("R5.2")
def test_a_validation_names_what_failed_first_and_counts_the_rest() -> None:
    good = Check("rows", "public.a", "3", "3", passed=True)
    bad = [Check("rows", f"public.<b{number}>", "3", "2", passed=False) for number in range(7)]
    validation = Validation("data_consistency", NOW, NOW, (good, *bad))
    assert Validation.from_json(validation.to_json()) == validation
    assert [line.split()[0] for line in validation.lines()] == ["FAILED"] * 7 + ["ok"]
    with pytest.raises(NotValid, match=r"7 of 8 checks.*rows of public\.<b0>: 2, not 3;.*and 2 more"):
        validation.require()
    with pytest.raises(NotValid) as told:
        validation.require()
    assert "<b5>" not in told.value.what
    page = render(validation, "a <test>")
    assert "7 of 8 checks failed" in page
    assert "public.&lt;b6&gt;" in page
    assert "<b0>" not in page
    assert "<test>" not in page
    Validation("data_consistency", NOW, NOW, (good,)).require()
    assert "nothing to look at" in render(Validation("service_health", NOW, NOW, ()), "a test")


class Bucket:
    """A bucket that is a dictionary."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def create(self, key: str, body: bytes, **_: object) -> None:
        self.held[key] = body

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.held if key.startswith(prefix))

    def read(self, key: str) -> bytes:
        return self.held[key]


@pytest.mark.requirement("R5.2")
def test_the_newest_page_of_a_task_is_shown_and_every_record_of_its_run_is_read_in_order() -> None:
    bucket, kinds = cast("Any", Bucket()), ("service_health", "data_consistency", "data_consistency")
    made = [
        Validation(cast("Any", kind), at, at, (Check("rows", f"of {number}", "3", "3", passed=True),))
        for number, kind in enumerate(kinds)
        for at in [NOW + timedelta(minutes=number)]
    ]
    for run in ("a/run", "a"):
        for each in reversed(made):
            keep(bucket, each, dag="a_dag", run=run, task=each.kind, about=f"in {run}")
    assert validations(bucket, dag="a_dag", run="a") == made
    page = newest_page(bucket, dag="a_dag", run="a/run", task="data_consistency")
    assert page
    assert b"of 2" in page
    assert b"in a/run" in page
    assert newest_page(bucket, dag="a_dag", run="a", task="run") is None

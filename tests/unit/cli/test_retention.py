"""`retention`, `hold` and `release`: shown before anything goes, and told why."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from include.cli.__main__ import main
from include.cli.place import Place
from include.repository.catalog import Catalog
from include.repository.layout import READING
from include.repository.references import references
from tests.rolling import LATE, SMALL, at, weeks

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(catalog: Catalog, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process, long after the backups were made; its exit code and what it printed."""
    monkeypatch.setattr(Place, "catalog", lambda _: catalog)
    monkeypatch.setattr(Place, "policy", lambda _: SMALL)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["synapse-backups", *arguments])
        with pytest.raises(SystemExit) as ended, at(catalog, LATE):
            main()
        printed = capfd.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_the_plan_is_shown_and_carried_out_when_told_to(catalog: Catalog, run: Run) -> None:
    made = weeks(catalog)
    before = [entry.key for entry in catalog.entries()]
    code, told, _ = run("retention")
    assert code == 0
    for each in made[:5]:
        assert each.id in told
    assert "not restorable any more: 2026-01-03 23:59:00 UTC to " in told
    assert "Nothing was deleted: add --apply." in told
    assert run("retention", "--plan")[1] == told
    assert [entry.key for entry in catalog.entries()] == before

    held = made[3].id
    assert run("hold", held, "--because", "case 17")[1].startswith(f"{held} is held.")
    code, document, _ = run("retention", "--json")
    facts = json.loads(document)
    assert [each["id"] for each in facts["goes"]] == [made[4].id, made[0].id]
    assert {"kind": "hold"}.items() <= facts["stays"][held][-2].items()
    assert facts["applied"] is None
    assert "stays: held by" in run("retention", "--why", held)[1]
    segment = next(one.key for one in references(made[3]) if one.key.startswith("wal/"))
    assert f"stays: {held} names it (named)" in run("retention", "--why", segment)[1]
    assert f"{made[0].id} goes: nothing keeps it." in run("retention", "--why", made[0].id)[1]
    code, _, wrong = run("retention", "--why", "full-20200101T000000Z")
    assert (code, "is not in" in wrong) == (1, True)

    code, told, _ = run("retention", "--apply")
    assert (code, "2 backups were deleted" in told) == (0, True)
    assert run("release", held, "--because", "closed")[1].startswith(f"{held} is released.")
    code, _, wrong = run("release", held, "--because", "closed")
    assert (code, "Nobody holds" in wrong) == (1, True)
    assert run("hold", held, "--because", " ")[0] != 0
    assert json.loads(run("retention", "--apply", "--json")[1])["applied"]["backups_deleted"] == 3


def test_nothing_that_the_last_run_saw_may_be_missing(catalog: Catalog, run: Run) -> None:
    made = weeks(catalog)
    assert run("retention", "--apply")[0] == 0
    lost = made[5]
    catalog.bucket.delete_version(lost.home, next(catalog.bucket.versions(lost.home)).version_id)
    assert lost.home in run("retention")[2]
    code, _, wrong = run("retention", "--apply")
    assert (code, lost.home in wrong, "--accept-missing" in wrong) == (1, True, True)
    assert run("retention", "--apply", "--accept-missing")[0] == 0
    assert run("retention", "--apply", "--plan")[0] != 0


def test_what_is_decrypted_is_leased_meanwhile(catalog: Catalog, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = weeks(catalog)
    seen: list[str] = []

    def read(*_: object) -> list[bytes]:
        seen.extend(catalog.bucket.keys(READING))
        return [b"content"]

    monkeypatch.setattr("include.cli.backups.OpenedBackup.read", read)
    assert run("decrypt", made[5].id, "config/environment.tar")[1] == "content"
    assert len(seen) == 1
    assert list(catalog.bucket.versions(READING)) == []

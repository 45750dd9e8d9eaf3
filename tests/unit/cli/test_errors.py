"""What the command line says when something is wrong: the names as they are, and how to go on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ProfileNotFound

from include.cli import place
from include.cli.__main__ import main
from include.errors import BackupError
from include.pipeline.keys import KEYRING_VARIABLE, Keyring
from include.repository.catalog import Catalog, Entry, NoSuchBackup

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in this process; returns its exit code and what it printed."""
    Keyring.create(tmp_path / "keyring.json")
    monkeypatch.setenv(KEYRING_VARIABLE, str(tmp_path / "keyring.json"))
    for name, value in (("ACCESS_KEY_ID", "id"), ("SECRET_ACCESS_KEY", "key"), ("DEFAULT_REGION", "eu-west-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["synapse-backups", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def raising(error: Exception) -> Callable[..., None]:
    def raise_it(*_: object, **__: object) -> None:
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (BackupError("uploads/[/b] and [red]x[/] are gone.", mend="Look at [them]."), 1, "uploads/[/b] and [red]x[/]"),
        (BackupError("A " + "long name " * 40 + "ends.", mend="Shorten it."), 1, "A " + "long name " * 40 + "ends."),
        (NoSuchBackup("full-1 is not there.", mend="See list."), 3, "full-1 is not there."),
        (PermissionError(13, "Permission denied", "/place"), 1, "Permission denied: '/place'"),
        (ProfileNotFound(profile="nobody"), 1, "nobody"),
    ],
)
def test_an_error_is_told_in_its_own_words(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, told: str
) -> None:
    monkeypatch.setattr(Catalog, "entries", raising(error))
    ended, printed, said = run("list", "--json")

    assert ended == code
    assert told in said
    assert "next:" in said
    assert printed == ""


def test_an_id_that_looks_like_markup_is_only_an_id(run: Run) -> None:
    code, _, said = run("show", "[/nonsense]")

    assert code == 1
    assert "'[/nonsense]' is not a backup's id" in said


def test_a_refused_manifest_is_listed_with_its_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("manifests/full/[x].json", None, "manifests/full/[x].json is not a signed manifest.")
    monkeypatch.setattr(Catalog, "entries", lambda *_: [entry])

    assert "manifests/full/[x].json is not a signed manifest." in run("list")[1]
    assert json.loads(run("list", "--json")[1]) == [{"key": entry.key, "refused": entry.refused}]


@pytest.mark.parametrize("port", ["five", "54 32"])
def test_a_port_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("PGPORT", port)
    with pytest.raises(BackupError, match=f"PGPORT is '{port}'"):
        place.server()


def test_the_server_is_named_by_libpqs_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOST", "db"), ("PORT", ""), ("USER", "me"), ("PASSWORD", "hidden"), ("SSLMODE", "require")):
        monkeypatch.setenv(f"PG{name}", value)
    server = place.server()

    assert (server.host, server.port, server.user, server.sslmode) == ("db", 5432, "me", "require")
    assert "hidden" not in repr(server)


@pytest.mark.parametrize(
    ("option", "variables", "expected"),
    [
        ("us-west-2", {"AWS_REGION": "eu-north-1"}, "us-west-2"),
        (None, {"AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "eu-west-3"}, "eu-north-1"),
        (None, {"AWS_DEFAULT_REGION": "eu-west-3"}, "eu-west-3"),
        (None, {}, "eu-west-1"),
    ],
)
def test_the_region_is_the_options_the_environments_or_the_policys(
    monkeypatch: pytest.MonkeyPatch, option: str | None, variables: dict[str, str], expected: str
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert place.Place(None, None, option, None).region_name() == expected


def test_a_new_keyring_is_made_once_and_its_secrets_are_not_told(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    code, printed, _ = run("keyring", "create", str(path))
    secrets = [key["key"] for key in json.loads(path.read_text())["keks"]]

    assert code == 0
    assert Keyring.load(path).current_kek in printed
    assert not [secret for secret in secrets if secret in printed]
    assert run("keyring", "create", str(path))[0] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Name a backup, or a moment with --to"),
        (["latest", "--to", "latest"], "Name a backup, or a moment with --to"),
        (["latest", "--plan"], "go with --to"),
        (["--to", "latest"], "--data-directory"),
        (["--to", "latest", "--table", "t"], "--table needs --database"),
    ],
)
def test_a_restore_is_of_a_backup_or_of_a_moment(run: Run, arguments: list[str], told: str) -> None:
    code, printed, said = run("restore", *arguments)

    assert (code, printed) == (2, "")
    assert told in " ".join(said.replace("│", " ").split())


def test_a_moment_without_an_offset_is_refused_before_anything_is_asked(run: Run) -> None:
    code, _, said = run("restore", "--to", "2026-11-22T10:37:12", "--plan")

    assert code == 1
    assert "2026-11-22T10:37:12+00:00 if it is UTC" in said

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from include.errors import BackupError
from include.sandbox.checkout import make_checkout, read_commit, read_files
from include.sandbox.lifelike import Lifelike

DATA = Lifelike(1, 0.01)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    make_checkout(tmp_path / "configuration", DATA.commits(), DATA.files())
    return tmp_path / "configuration"


def test_the_commit_depends_on_nothing_of_the_machine(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Else")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    make_checkout(tmp_path / "again", DATA.commits(), DATA.files())
    assert (
        read_commit(tmp_path / "again") == read_commit(checkout) == {"HEAD": "b3db81c1bc452f2108abed39ca30d49da69fb73c"}
    )


def test_environment_and_secrets_are_private_and_untracked(checkout: Path) -> None:
    files = read_files(checkout)
    assert files.keys() == DATA.files().keys()
    assert {file.mode for file in files.values()} == {0o600}
    assert stat.S_IMODE((checkout / "secrets").stat().st_mode) == 0o700
    assert read_commit(checkout).keys() == {"HEAD"}


def test_a_changed_tracked_file_is_named(checkout: Path) -> None:
    (checkout / "settings" / "limits.yaml").write_text("upload_megabytes: 0\n")
    assert read_commit(checkout)["settings/limits.yaml"] == " M"


def test_an_existing_directory_is_refused(checkout: Path) -> None:
    with pytest.raises(BackupError, match="exists already"):
        make_checkout(checkout, DATA.commits(), DATA.files())


def test_a_failure_of_git_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="not a git repository"):
        read_commit(tmp_path)

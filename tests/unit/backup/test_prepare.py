"""What is looked at before a backup begins, without a server (R4.1, R4.2)."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from include.backup.checks import worker
from include.backup.checks.check import NotReady, Remark
from include.backup.prepare import check_disk, check_keys, make_scratch, remove_scratch
from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.policy import load_policy

POLICY = load_policy()


def needing(size: int) -> object:
    return POLICY.model_copy(update={"preparation": POLICY.preparation.model_copy(update={"minimum_free_bytes": size})})


@pytest.mark.requirement("R4.1")
def test_a_disk_with_room_is_enough_and_one_without_is_named(tmp_path: Path) -> None:
    facts = check_disk(tmp_path / "scratch", needing(1))

    assert facts["free_bytes"] > facts["needed_bytes"] == 1
    assert list(tmp_path.iterdir()) == [], "a probe leaves nothing behind"
    with pytest.raises(NotReady, match=str(tmp_path)) as refused:
        check_disk(tmp_path, needing(1 << 62))
    assert "minimum_free_bytes" in refused.value.mend


@pytest.mark.requirement("R4.1")
def test_a_temporary_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    made = make_scratch(tmp_path / "deep", "run")
    (made / "file").write_text("left behind")
    made.chmod(0o755)
    again = make_scratch(tmp_path / "deep", "run")

    assert again == made
    assert stat.S_IMODE(made.stat().st_mode) == (0o700 if os.geteuid() else 0o711)
    remove_scratch(tmp_path / "deep", "run")
    remove_scratch(tmp_path / "deep", "run")
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.requirement("R4.2")
def test_keys_are_proved_and_a_pair_that_does_not_fit_is_found(tmp_path: Path) -> None:
    keyring, other = (Keyring.create(tmp_path / f"{name}.json") for name in ("one", "two"))
    signing = keyring.signing_keys[keyring.current_signing_key]
    mixed = replace(signing, public=other.signing_keys[other.current_signing_key].public)
    broken = replace(keyring, signing_keys={signing.id: mixed})

    assert check_keys(SimpleNamespace(keyring=keyring), POLICY)["kek"] == keyring.current_kek
    with pytest.raises(BackupError, match=signing.id):
        check_keys(SimpleNamespace(keyring=broken), POLICY)


@pytest.mark.requirement("R7.1")
def test_a_key_that_is_due_for_rotation_is_told_and_stops_no_backup(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = datetime(2025, 1, 31, tzinfo=UTC)
    keyring = Keyring.create(tmp_path / "old.json", now=made)
    year_later = made.replace(year=2026)

    assert worker.keyring_age(lambda: keyring, POLICY, now=year_later - timedelta(days=1))
    with pytest.raises(Remark, match="2026-01-31"):
        worker.keyring_age(lambda: keyring, POLICY, now=year_later)
    assert check_keys(SimpleNamespace(keyring=keyring), POLICY)["kek"] == keyring.current_kek
    assert "rotation was due" in caplog.text

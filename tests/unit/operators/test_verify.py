"""A proof that fails fails its task, and is written down (R4.5)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from include.backup import verify
from include.operators.step import BackupStep
from include.operators.verify import RestoreSample, ValidateSizes, VerifyIntegrity
from include.pipeline.sealing import StreamRefused
from include.policy import load_policy
from include.repository.catalog import Catalog
from tests.manifests import commit, make


def refuse(*_: object, **__: object) -> None:
    raise StreamRefused("Segment 7 does not decrypt.", mend="Use the replica.")


@pytest.mark.requirement("R4.5", "R6.4")
@pytest.mark.parametrize(
    ("step", "check", "title"),
    [
        (VerifyIntegrity, "check_integrity", "integrity"),
        (ValidateSizes, "check_sizes", "sizes"),
        (RestoreSample, "restore_sample", "sample of system_settings"),
    ],
)
def test_a_step_that_fails_leaves_its_record(
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    step: type[BackupStep],
    check: str,
    title: str,
) -> None:
    manifest = commit(catalog, make(artifacts=(), packs=()))  # of the repository alone: whatever the day, its turn
    monkeypatch.setattr(verify, check, refuse)
    for name in ("database_login", "bucket"):
        monkeypatch.setattr(f"include.operators.connections.{name}", lambda _: None)
    run: Any = SimpleNamespace(catalog=catalog, backup=manifest.backup, policy=load_policy(), scratch=tmp_path)

    with pytest.raises(StreamRefused, match="Segment 7") as refused:
        step(task_id="proof", backup_type="full").step(run)

    [failed] = catalog.verification(manifest).failed
    assert (failed.title, failed.what) == (title, "Segment 7 does not decrypt.")
    assert failed.home in refused.value.mend

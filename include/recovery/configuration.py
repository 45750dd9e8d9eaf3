"""The configuration, back from its bundle and tars into a checkout (R5.1)."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from include.errors import BackupError
from include.pipeline.process import child_environment
from include.recovery.objects import TargetNotEmpty
from include.recovery.opened import OpenedBackup
from include.repository.contents import REPOSITORY_BUNDLE
from include.sources.configuration import unpack

_SHA256_DIGITS = 64


class ConfigurationRefused(BackupError):
    """The configuration does not come back as it was."""


def restore_configuration(backup: OpenedBackup, target: Path) -> str:
    """Recreate the checkout at `target`, which must not exist or be empty; returns the commit that is checked out.

    It is made beside the target and renamed over it, so that a restore that fails leaves nothing there. Raises
    `TargetNotEmpty`, or `ConfigurationRefused` when the commit is not the manifest's.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise TargetNotEmpty(
            f"{target} exists and is not empty.", mend="Name another directory, or move this one away."
        )
    try:
        return _restore_beside(backup, target)
    except OSError as error:
        raise BackupError(
            f"The configuration could not be written to {target}: {error.strerror}.",
            mend="Make room there and let this user write, or name another directory.",
        ) from None


def _restore_beside(backup: OpenedBackup, target: Path) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        bundle, checkout = Path(scratch) / "bundle", Path(scratch) / "checkout"
        with bundle.open("wb") as file:
            file.writelines(backup.read(REPOSITORY_BUNDLE))
        commit = _clone(bundle, checkout, backup)
        for name in (artifact.name for artifact in backup.manifest.artifacts):
            if name.startswith("config/") and name.endswith(".tar"):
                unpack(io.BufferedReader(_Readable(backup.read(name))), checkout)
        checkout.rename(target)
    return commit


def _clone(bundle: Path, checkout: Path, backup: OpenedBackup) -> str:
    """All refs of the bundle, the branch of the time checked out, and no remote that points at a temporary file."""
    expected = backup.manifest.consistency_point.configuration_commit
    hashed = "sha256" if len(expected) == _SHA256_DIGITS else "sha1"
    _git(*("init", "--quiet", f"--object-format={hashed}", "--initial-branch=synapse-backups-none"), str(checkout))
    _git("-C", str(checkout), "fetch", "--quiet", "--update-head-ok", str(bundle), "+refs/*:refs/*")
    branch = backup.manifest.configuration.branch
    if branch:
        _git("-C", str(checkout), "symbolic-ref", "HEAD", branch)
        _git("-C", str(checkout), "reset", "--quiet", "--hard")
    else:
        _git("-C", str(checkout), "fetch", "--quiet", str(bundle), "HEAD")
        _git("-C", str(checkout), "checkout", "--quiet", "--detach", expected)
    (checkout / ".git/FETCH_HEAD").unlink(missing_ok=True)
    commit = _git("-C", str(checkout), "rev-parse", "HEAD").strip()
    if commit != expected:
        raise ConfigurationRefused(
            f"The configuration came back at {commit}, and {backup.manifest.id} was made at {expected}.",
            mend="Nothing was put in place. Use another backup, and keep this one for whoever looks into it.",
        )
    _git("-C", str(checkout), "fsck", "--no-dangling")
    return commit


class _Readable(io.RawIOBase):
    """An iterator of bytes as a file that `tarfile` can read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            if (chunk := next(self._chunks, None)) is None:
                return 0
            self._rest = chunk
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _git(*arguments: str) -> str:
    # Nobody's own settings (line endings, templates, hooks) may change what comes back.
    environment = {**child_environment(), "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, env=environment, check=False)
    if done.returncode and os.strerror(errno.ENOSPC) in done.stderr:
        raise BackupError(
            f"The configuration could not be written: `git {' '.join(arguments[:3])} …` said {done.stderr.strip()!r}.",
            mend="Nothing was put in place. Make room there, or name another directory.",
        )
    if done.returncode:
        raise ConfigurationRefused(
            f"The configuration does not come back: `git {' '.join(arguments[:3])} …` said {done.stderr.strip()!r}.",
            mend="Nothing was put in place. Try again; if it fails again, use another backup.",
        )
    return done.stdout

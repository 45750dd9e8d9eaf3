"""The application's configuration repository: a git checkout with the same commit for the same history."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from include.errors import BackupError
from include.sandbox.fingerprint import File

OPERATOR = "Synapse Operations"
UNTRACKED = ("environment/*.env", "secrets/*.key")


def make_checkout(
    directory: Path, commits: Iterable[tuple[datetime, str, Mapping[str, str]]], files: Mapping[str, str]
) -> None:
    """Make a repository of `commits` (when, message, files written), and beside them untracked `files`, mode 0600.

    Raises `BackupError` when the directory exists already or git fails.
    """
    if directory.exists():
        raise BackupError(f"{directory} exists already.", mend="Name another directory, or destroy the application.")
    _git(directory.parent, "init", "--quiet", "--initial-branch=main", str(directory))
    for when, message, written in commits:
        for name, content in written.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        _git(directory, "add", "--all")
        _git(directory, "commit", "--quiet", f"--message={message}", when=when)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, mode=0o600)) as file:
            file.write(content)


def read_commit(directory: Path) -> dict[str, str]:
    """The commit at HEAD, and each path whose content is not the commit's."""
    state = {"HEAD": _git(directory, "rev-parse", "HEAD").strip()}
    changed = _git(directory, "status", "--porcelain", "-z").split("\0")
    return state | {line[3:]: line[:2] for line in changed if line}


def read_files(directory: Path) -> dict[str, File]:
    """The environment and secret files: path to content and mode."""
    return {
        str(path.relative_to(directory)): File(
            hashlib.sha256(path.read_bytes()).hexdigest(), stat.S_IMODE(path.stat().st_mode)
        )
        for pattern in UNTRACKED
        for path in directory.glob(pattern)
    }


def _git(directory: Path, *arguments: str, when: datetime | None = None) -> str:
    """Run git as nobody in particular: no configuration or variable of the machine may change a commit."""
    program = shutil.which("git")
    if program is None:
        raise BackupError("There is no git.", mend="Install it with the system's packages.")
    moment = when.isoformat() if when else ""
    person = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", OPERATOR), ("EMAIL", "operations@synapse.example"), ("DATE", moment))
        if value
    }
    environment = {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C",
        "HOME": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        **person,
    }
    done = subprocess.run(
        [program, *arguments], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BackupError(f"git {arguments[0]} failed in {directory}: {done.stderr.strip()}", mend="See git's words.")
    return done.stdout

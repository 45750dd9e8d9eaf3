"""The configuration, back from its bundle and tars into a checkout (R5.1)."""

from __future__ import annotations

import errno
import filecmp
import io
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from include.errors import BackupError
from include.pipeline.process import child_environment
from include.recovery.objects import TargetNotEmpty, WouldOverwrite
from include.recovery.opened import OpenedBackup
from include.recovery.selection import choose, known_components, some_of
from include.repository.contents import REPOSITORY_BUNDLE
from include.repository.manifest import Manifest
from include.sources.configuration import unpack

log = logging.getLogger(__name__)

_SHA256_DIGITS = 64


class ConfigurationRefused(BackupError):
    """The configuration does not come back as it was."""


@dataclass(frozen=True)
class ReturnedFiles:
    """What was done with each file that was asked for, as of which commit.

    A file was `written`, or `unchanged`: there already, and the same. What the `replaced` ones were is below `kept_in`.
    """

    commit: str
    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    replaced: tuple[str, ...]
    kept_in: Path | None


def restore_configuration(
    backup: OpenedBackup, target: Path, *, keep_as: Path | None = None, files: OpenedBackup | None = None
) -> str:
    """Recreate the checkout at `target`, which must not exist or be empty; returns the commit that is checked out.

    The files beside the repository are those of `files`, where that is another backup than the repository's.

    It is made beside the target and renamed over it, so that a restore that fails leaves nothing there. What is there
    is left alone, unless `keep_as` says what to call it. Raises `TargetNotEmpty`, or `ConfigurationRefused` when the
    commit is not the manifest's.
    """
    taken = require_place(target, keep_as=keep_as)
    try:
        return _restore_beside(backup, files or backup, target, keep_as if taken else None)
    except OSError as error:
        raise BackupError(
            f"The configuration could not be written to {target}: {error.strerror}.",
            mend="Make room there and let this user write, or name another directory.",
        ) from None


def require_place(target: Path, *, keep_as: Path | None) -> bool:
    """Whether something is there already; raises `TargetNotEmpty` unless it may be kept as `keep_as`."""
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken and keep_as is None:
        raise TargetNotEmpty(
            f"{target} exists and is not empty.",
            mend="Name another directory; or say --overwrite: the one that is there is then kept, renamed.",
        )
    return taken


def _restore_beside(backup: OpenedBackup, files: OpenedBackup, target: Path, keep_as: Path | None) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        checkout = Path(scratch) / "checkout"
        commit, _ = _recreate(backup, files, Path(scratch) / "bundle", checkout)
        if keep_as is not None:
            log.warning("%s is replaced, and kept as %s.", target, keep_as)
            target.rename(keep_as)
            try:
                checkout.rename(target)
            except OSError:
                keep_as.rename(target)
                raise
        else:
            checkout.rename(target)
    return commit


def return_files(
    backup: OpenedBackup,
    target: Path,
    *,
    patterns: Sequence[str] = (),
    components: Sequence[str] = (),
    keep_in: Path | None = None,
    files: OpenedBackup | None = None,
) -> ReturnedFiles:
    """Put some files of the configuration below `target`, as they were: tracked ones as of the backup's commit.

    `patterns` are paths, or shell globs over them; `files` is as in `restore_configuration`. A file appears whole or
    not at all, with its mode; root gives it to whoever owns the one that was there, or the directory. One that is there
    with other content is replaced only where `keep_in`, a new directory, says where to keep a copy; nothing is written
    before that is known of every file. Raises `NothingMatches` or `WouldOverwrite`.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".synapse-backups-", dir=target) as scratch:
        checkout = Path(scratch) / "checkout"
        commit, held = _recreate(backup, files or backup, Path(scratch) / "bundle", checkout)
        for path in _tracked(backup, held):
            _take_mode(checkout / path, target / path)
        known = {path: (path,) for paths in held.values() for path in paths}
        chosen = choose(known, patterns, what="configuration file")
        for component in known_components(components, list(held), what="files"):
            chosen |= set(held[component])
        unchanged = tuple(sorted(path for path in chosen if _same(checkout / path, target / path)))
        others = tuple(sorted(path for path in chosen - {*unchanged} if os.path.lexists(target / path)))
        if others:
            _may_be_replaced(target, others, keep_in)
        written = tuple(sorted(chosen - {*unchanged}))
        for path in written:
            _put_in_place(checkout / path, target / path, keep_in / path if keep_in and path in others else None)
    return ReturnedFiles(commit, written, unchanged, others, keep_in if others else None)


def _same(restored: Path, present: Path) -> bool:
    if restored.is_symlink() or present.is_symlink():
        return restored.is_symlink() and present.is_symlink() and restored.readlink() == present.readlink()
    return (
        present.is_file()
        and stat.S_IMODE(restored.stat().st_mode) == stat.S_IMODE(present.stat().st_mode)
        and filecmp.cmp(restored, present, shallow=False)
    )


def _tracked(backup: OpenedBackup, held: dict[str, list[str]]) -> set[str]:
    """The paths that come from git alone."""
    repository = next(one.component for one in backup.manifest.artifacts if one.name == REPOSITORY_BUNDLE)
    beside = {path for component, paths in held.items() if component != repository for path in paths}
    return {*held[repository]} - beside


def _take_mode(restored: Path, present: Path) -> None:
    """Of a mode git knows only whether a file can be executed: for the rest, the one that is there counts."""
    if restored.is_symlink() or present.is_symlink() or not present.is_file():
        return
    mode = stat.S_IMODE(present.stat().st_mode)
    if bool(mode & stat.S_IXUSR) == bool(restored.stat().st_mode & stat.S_IXUSR):
        restored.chmod(mode)


def _may_be_replaced(target: Path, others: Sequence[str], keep_in: Path | None) -> None:
    if keep_in is None:
        raise WouldOverwrite(
            f"{len(others)} files are there with other content or another mode, and would be replaced: "
            f"{some_of(others)} in {target}.",
            mend="Restore them to another directory, or say --overwrite: copies are then kept. Nothing was written.",
        )
    for path in others:
        if (target / path).is_dir() and not (target / path).is_symlink():
            raise WouldOverwrite(f"{target / path} is a directory.", mend="Move it away. Nothing was written.")
    log.warning("%d files are replaced, and copies kept in %s: %s.", len(others), keep_in, some_of(others))
    keep_in.mkdir(mode=0o700)


def _put_in_place(restored: Path, path: Path, copy_to: Path | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if copy_to is not None:
        copy_to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy_to, follow_symlinks=False)
    if os.geteuid() == 0:
        owner = path.lstat() if os.path.lexists(path) else path.parent.stat()
        os.chown(restored, owner.st_uid, owner.st_gid, follow_symlinks=False)
    restored.rename(path)


def _recreate(
    backup: OpenedBackup, files: OpenedBackup, bundle: Path, checkout: Path
) -> tuple[str, dict[str, list[str]]]:
    """The whole configuration, as it was; returns its commit, and the paths of each component."""
    with bundle.open("wb") as file:
        file.writelines(backup.read(REPOSITORY_BUNDLE))
    commit, held = _clone(bundle, checkout, _checked_out(backup, files)), {}
    tracked = _git("-C", str(checkout), "ls-files", "-z").split("\0")
    held[backup.manifest.artifact(REPOSITORY_BUNDLE).component] = [path for path in tracked if path]
    for artifact in files.manifest.artifacts:
        if artifact.name.startswith("config/") and artifact.name.endswith(".tar"):
            tar = io.BufferedReader(Readable(files.read(artifact.name)))
            held[artifact.component] = [str(path) for path in unpack(tar, checkout)]
    return commit, held


def _checked_out(backup: OpenedBackup, files: OpenedBackup) -> Manifest:
    """Which of the two says what was checked out: the later one, if no ref had moved, and a branch was."""
    told = files.manifest.configuration
    same = told.refs_sha256 is not None and told.refs_sha256 == backup.manifest.configuration.refs_sha256
    return files.manifest if same and told.branch else backup.manifest


def _clone(bundle: Path, checkout: Path, manifest: Manifest) -> str:
    """All refs of the bundle, the branch of the time checked out, and no remote that points at a temporary file."""
    expected = manifest.consistency_point.configuration_commit
    hashed = "sha256" if len(expected) == _SHA256_DIGITS else "sha1"
    _git(*("init", "--quiet", f"--object-format={hashed}", "--initial-branch=synapse-backups-none"), str(checkout))
    _git("-C", str(checkout), "fetch", "--quiet", "--update-head-ok", str(bundle), "+refs/*:refs/*")
    branch = manifest.configuration.branch
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
            f"The configuration came back at {commit}, and {manifest.id} was made at {expected}.",
            mend="Nothing was put in place. Use another backup, and keep this one for whoever looks into it.",
        )
    _git("-C", str(checkout), "fsck", "--no-dangling")
    return commit


class Readable(io.RawIOBase):
    """An iterator of bytes as a file that `tarfile` can read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """What comes next, at most as much as fits; 0 at the end."""
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

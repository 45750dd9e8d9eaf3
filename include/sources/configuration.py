"""The configuration (R2.3): every ref as of the consistency point, as a git bundle, and the files beside it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from include.errors import BackupError
from include.pipeline.process import child_environment

_GIT_SECONDS = 60
_READ_BYTES = 1 << 20


class ConfigurationError(BackupError):
    """The configuration repository cannot be read."""


@dataclass(frozen=True)
class ConfigurationPoint:
    """What the repository said at one moment: the commit, the branch that was checked out, and where each ref stood."""

    commit: str
    branch: str | None
    refs: dict[str, str] = field(repr=False)

    @property
    def refs_sha256(self) -> str:
        """One digest of the branch that was checked out, the commit, and of every ref and where it stood."""
        lines = (f"{commit} {ref}\n" for ref, commit in sorted(self.refs.items()))
        return hashlib.sha256(f"{self.branch} {self.commit}\n{''.join(lines)}".encode()).hexdigest()


@dataclass(frozen=True)
class Configuration:
    """A checkout of the configuration, read and never written."""

    checkout: Path

    def point(self) -> ConfigurationPoint:
        """Where HEAD and every ref stand now; milliseconds.

        Raises `ConfigurationError`, also for a checkout without a commit, and for one whose history was cut short.
        """
        refs: dict[str, str] = {}
        branch: str | None = None
        # One process, so one moment: the branch that is checked out and the refs cannot disagree.
        for line in self._git("for-each-ref", "--format=%(HEAD) %(objectname) %(refname)").splitlines():
            head, commit, ref = line[0], *line[2:].split(" ", 1)
            refs[ref] = commit
            if head == "*":
                branch = ref
        if not refs:
            raise ConfigurationError(
                f"{self.checkout} has no commits: there is no configuration to back up.",
                mend="Commit what is there, or correct the path of the checkout.",
            )
        if self._path("shallow").exists():
            raise ConfigurationError(
                f"{self.checkout} is a shallow clone: most of its history is not there, and no bundle could hold it.",
                mend="Fetch the rest with `git fetch --unshallow`, or back up a whole clone.",
            )
        commit = refs[branch] if branch else self._git("rev-parse", "--verify", "HEAD^{commit}").strip()
        return ConfigurationPoint(commit=commit, branch=branch, refs=refs)

    @contextlib.contextmanager
    def bundle_command(self, point: ConfigurationPoint, scratch: Path) -> Iterator[list[str]]:
        """The command that writes a bundle of exactly `point` to its standard output.

        The refs are laid out in an empty repository that borrows the checkout's objects: the checkout itself is never
        written to, and what was committed since the point stays out.
        """
        with tempfile.TemporaryDirectory(prefix="configuration-", dir=scratch) as directory:
            mirror = Path(directory) / "mirror.git"
            hashed = self._git("rev-parse", "--show-object-format").strip()  # SHA-1, or SHA-256 where somebody chose it
            _run(
                *("git", "init", "--quiet", "--bare", f"--object-format={hashed}"),
                *("--initial-branch=synapse-backups-none", str(mirror)),
            )
            (mirror / "objects/info/alternates").write_text(f"{self._path('objects').resolve()}\n")
            updates = "".join(f"create {ref} {commit}\n" for ref, commit in point.refs.items())
            _run("git", f"--git-dir={mirror}", "update-ref", "--stdin", feed=updates)
            if point.branch:
                _run("git", f"--git-dir={mirror}", "symbolic-ref", "HEAD", point.branch)
            else:
                _run("git", f"--git-dir={mirror}", "update-ref", "--no-deref", "HEAD", point.commit)
            yield ["git", f"--git-dir={mirror}", "bundle", "create", "--quiet", "-", "--all", "HEAD"]

    def files(self, globs: Sequence[str]) -> list[Path]:
        """The files that the globs name below the checkout, sorted, relative to it. A symbolic link is one too."""
        found = {path for glob in globs for path in self.checkout.glob(glob) if path.is_symlink() or path.is_file()}
        return sorted(path.relative_to(self.checkout) for path in found)

    def tar(self, files: Sequence[Path]) -> Iterator[bytes]:
        """The files as a POSIX tar, with their modes and times, without their owners.

        A link within the checkout stays a link; of one that leads out of it, what it leads to is taken, because a
        restore puts nothing there. Raises `ConfigurationError` for a file that cannot be read.
        """
        for file in files:
            try:
                yield from self._member(file)
            except OSError as error:
                raise _unreadable(self.checkout / file, error) from None
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _member(self, file: Path) -> Iterator[bytes]:
        path, member = self.checkout / file, tarfile.TarInfo(str(file))
        if path.is_symlink() and self._stays_inside(path):
            member.type, member.linkname, member.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
            yield _header(member)
            return
        with path.open("rb") as content:
            state = os.fstat(content.fileno())
            member.size, member.mode, member.mtime = state.st_size, stat.S_IMODE(state.st_mode), state.st_mtime
            yield _header(member)
            left = member.size
            while left and (chunk := content.read(min(left, _READ_BYTES))):
                left -= len(chunk)
                yield chunk
        if left:
            raise ConfigurationError(f"{path} was cut while it was read.", mend="The run is retried.")
        yield bytes(-member.size % tarfile.BLOCKSIZE)

    def _stays_inside(self, link: Path) -> bool:
        try:
            return not link.readlink().is_absolute() and link.resolve().is_relative_to(self.checkout.resolve())
        except (OSError, RuntimeError):  # it leads back to itself, which opening it says better
            return False

    def require_readable(self, files: Sequence[Path]) -> None:
        """Prove that each of the files can be opened; raises `ConfigurationError` for the first that cannot."""
        for file in files:
            path = self.checkout / file
            if path.is_symlink() and self._stays_inside(path):
                continue
            try:
                path.open("rb").close()
            except OSError as error:
                raise _unreadable(path, error) from None

    def _path(self, name: str) -> Path:
        """Where the repository keeps something: not below the checkout's `.git` when it is a worktree."""
        return self.checkout / self._git("rev-parse", "--git-path", name).strip()

    def _git(self, *arguments: str) -> str:
        # A worker is often not the owner of the checkout: git would refuse it, and reading is all that is done here.
        return _run("git", "-c", f"safe.directory={self.checkout.resolve()}", "-C", str(self.checkout), *arguments)


def unpack(tar: IO[bytes], directory: Path) -> list[Path]:
    """Unpack a tar of `Configuration.tar` below `directory`, modes and times included; returns what it held.

    Files and links are put nowhere else: a name or a link that leads out of `directory` raises `ConfigurationError`.
    (PEP 706's filters would do, and Debian 12's Python does not have them.)
    """
    root, names = directory.resolve(), []
    with tarfile.open(mode="r|", fileobj=tar) as archive:
        for member in archive:
            path = root / member.name
            link = path.parent / member.linkname if member.issym() else path.parent
            if not all(place.resolve().is_relative_to(root) for place in (path.parent, link)) or path.name == "..":
                raise ConfigurationError(
                    f"{member.name} would be put outside of {directory}.",
                    mend="Do not restore it: nobody's backup holds that.",
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if member.issym():
                path.symlink_to(member.linkname)
            else:
                _write(path, member, archive)
            names.append(Path(member.name))
    return names


def _write(path: Path, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    content = archive.extractfile(member)
    if content is None:
        raise ConfigurationError(f"{member.name} is neither a file nor a link.", mend="Do not restore it.")
    # Never open to others, not even for the moment before its mode is set: most of these files are secrets.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        shutil.copyfileobj(content, file)
    path.chmod(member.mode & 0o777)
    os.utime(path, (member.mtime, member.mtime))


def git_version() -> tuple[int, ...]:
    """The version of git, as in `(2, 39, 5)`; raises `ConfigurationError` when there is none."""
    said = _run("git", "--version").split()[2]  # "git version 2.39.5", and on macOS more behind it
    return tuple(int(part) for part in said.split(".") if part.isdecimal())


def _unreadable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be read: {error.strerror}.",
        mend="Let this user read it, mend the link, or take it out of the component's files in the policy.",
    )


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _run(*argv: str, feed: str | None = None) -> str:
    environment = {**child_environment(), "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            argv, input=feed, capture_output=True, text=True, timeout=_GIT_SECONDS, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(
            f"git could not be run: {error}.", mend="Install git, and look at the repository's disk."
        ) from None
    if done.returncode:
        raise ConfigurationError(
            f"`git {' '.join(argv[1:4])} …` failed: {done.stderr.strip() or 'it said nothing'}",
            mend="Check that the path is a git checkout that this user may read.",
        )
    return done.stdout

"""A cluster's files, back from the tar of its base backup, straight into place.

The tar is a row of segments that each open alone, and `database/base.files.jsonl` says where in its raw stream every
file's content lies: so several segments are fetched, decrypted and unpacked side by side, and nothing is written twice.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from include.errors import BackupError
from include.pipeline.account import Account
from include.policy import Pipeline
from include.recovery.cluster.room import ROOM
from include.recovery.opened import OpenedBackup
from include.repository.contents import BASE, BASE_FILES, tablespace_tar
from include.sources.postgres.basebackup import FileEntry

log = logging.getLogger(__name__)

TABLESPACES = "tablespaces"
_LINKS = "pg_tblspc"
_MAP = "tablespace_map"
_ZEROS = bytes(1 << 20)
_DIRECTORY_MODE, _FILE_MODE = 0o750, 0o640
_OTHER = "Do not recover from it: use the replica's copy or another backup."


class BaseRefused(BackupError):
    """A base backup whose table of files does not fit its tar, or names a place outside of the data directory."""


def unpack_base(
    opened: OpenedBackup, directory: Path, *, policy: Pipeline, account: Account | None = None
) -> tuple[Path, ...]:
    """Unpack the base into `directory`, which appears whole and proved, or not at all; returns its tablespaces.

    A tablespace goes to `directory/../tablespaces/<oid>`, and every link to it is made to lead there, also the one that
    PostgreSQL would make itself: the place where it was may be that of a living server. With `account` the files belong
    to it. Nothing is synced: what a crash of the machine loses here is unpacked again, and who keeps the recovered
    directory syncs all of it once, when it is finished.
    Raises `BaseRefused`, `StreamRefused` naming the segment, and `BackupError` for a full disk.
    """
    beside = directory.with_name(f".{directory.name}.unproved")
    tablespaces = directory.parent / TABLESPACES
    for place in (directory, beside, tablespaces):
        if place.exists():
            raise BackupError(f"{place} exists already.", mend="Recover to a fresh directory.")
    oids = tuple(tablespace.oid for tablespace in (opened.manifest.base.tablespaces if opened.manifest.base else ()))
    spaces = {oid: tablespaces / str(oid) for oid in oids}
    roots = {BASE: beside} | {tablespace_tar(oid): place for oid, place in spaces.items()}
    try:
        with _telling_of_a_full_disk(directory.parent):
            layout = _Layout(roots, spaces, account)
            layout.make(parse_files(opened.read(BASE_FILES)))
            for tar in roots:
                _place_tar(opened, tar, layout.contents[tar], policy)
            layout.write_map()
            beside.rename(directory)
    except BaseException:
        for place in (beside, tablespaces):
            shutil.rmtree(place, ignore_errors=True)
        raise
    return tuple(spaces.values())


def parse_files(chunks: Iterable[bytes]) -> Iterator[tuple[str, FileEntry]]:
    """The table of files, line by line, each with the artifact whose tar it is in; raises `BaseRefused`."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from map(_entry, lines)
    if rest:
        yield _entry(rest)


def _entry(line: bytes) -> tuple[str, FileEntry]:
    try:
        fields = json.loads(line)
        return fields.pop("tar"), FileEntry(**fields)
    except (ValueError, TypeError, KeyError):
        raise BaseRefused(f"A line of {BASE_FILES} cannot be read: {line[:80]!r}.", mend=_OTHER) from None


class _Contents:
    """Where the files of one tar lie in its stream, in order. There may be millions, so each is few bytes."""

    def __init__(self) -> None:
        self.starts, self._sizes, self._paths = array("Q"), array("Q"), list[str]()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> tuple[int, int, str]:
        """Where one begins, where it ends, and its path."""
        start = self.starts[number]
        return start, start + self._sizes[number], self._paths[number]

    @property
    def end(self) -> int:
        """Where the last one ends."""
        return self[-1][1] if self._paths else 0

    def add(self, start: int, size: int, path: str) -> bool:
        """One more, behind the others; False where it is not."""
        if start < self.end:
            return False
        self.starts.append(start)
        self._sizes.append(size)
        self._paths.append(path)
        return True


class _Layout:
    """The directories and files of a base, made before their content comes."""

    def __init__(self, roots: dict[str, Path], spaces: dict[int, Path], account: Account | None) -> None:
        self._roots, self._spaces, self._account = roots, spaces, account
        self._root = roots[BASE]
        self.contents = {tar: _Contents() for tar in roots}
        self._made = {root: {root} for root in roots.values()}

    def make(self, entries: Iterable[tuple[str, FileEntry]]) -> None:
        """Make everything, files at their full length and empty."""
        for parent in {place.parent for place in self._spaces.values()}:
            self._directory(parent)
        for root in self._roots.values():
            self._directory(root)
        for tar, entry in entries:
            self._make_one(tar, entry)
        self._lead_here()

    def write_map(self) -> None:
        """Write the map of tablespaces anew, by which PostgreSQL makes the links itself, over whatever is there."""
        if (self._root / _MAP).exists():
            lines = (f"{oid} {_escaped(str(place))}\n" for oid, place in self._spaces.items())
            (self._root / _MAP).write_text("".join(lines))

    def _lead_here(self) -> None:
        """Make the links to the tablespaces, which a tar has only as a map."""
        if self._spaces and self._root / _LINKS not in self._made[self._root]:
            raise BaseRefused(f"The base has tablespaces, and no {_LINKS}.", mend=_OTHER)
        for oid, place in self._spaces.items():
            link = self._root / _LINKS / str(oid)
            link.symlink_to(place)
            self._own(link)

    def _make_one(self, tar: str, entry: FileEntry) -> None:
        root = self._roots.get(tar)
        if root is None:
            raise BaseRefused(f"{BASE_FILES} names the artifact {tar}, which is no part of it.", mend=_OTHER)
        parts = PurePosixPath(entry.name).parts
        if entry.kind == "directory" and parts in ((), (".",)):
            return
        if not parts or parts[0] == "/" or ".." in parts or "\0" in entry.name:
            raise BaseRefused(f"{entry.name!r} in {BASE_FILES} leads out of the data directory.", mend=_OTHER)
        path = root.joinpath(*parts)
        if path.parent not in self._made[root]:  # so no way leads through a link
            raise BaseRefused(f"{entry.name!r} in {BASE_FILES} lies in no directory of it.", mend=_OTHER)
        if entry.kind == "directory":
            self._directory(path, entry.mode)
            self._made[root].add(path)
        elif entry.kind == "symlink":
            # A tar has none: its links are the map's, and where one leads may be a living server's.
            raise BaseRefused(f"{entry.name!r} in {BASE_FILES} is a link.", mend=_OTHER)
        else:
            self._file(path, entry.mode, entry.size)
            if entry.size and not self.contents[tar].add(entry.offset, entry.size, str(path)):
                raise BaseRefused(f"{entry.name!r} lies in {tar} where another file is.", mend=_OTHER)

    def _directory(self, path: Path, mode: int = 0o700) -> None:
        try:
            path.mkdir(mode=mode & _DIRECTORY_MODE)
        except FileExistsError:
            raise self._twice(path) from None
        self._own(path)

    def _file(self, path: Path, mode: int, size: int) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & _FILE_MODE)
        except FileExistsError:
            raise self._twice(path) from None
        try:
            os.ftruncate(descriptor, size)
            if self._account:
                os.fchown(descriptor, *self._account)
        finally:
            os.close(descriptor)

    def _own(self, path: Path) -> None:
        if self._account:
            os.chown(path, *self._account, follow_symlinks=False)

    @staticmethod
    def _twice(path: Path) -> BaseRefused:
        return BaseRefused(f"{path.name} is in {BASE_FILES} twice.", mend=_OTHER)


def _place_tar(opened: OpenedBackup, tar: str, contents: _Contents, policy: Pipeline) -> None:
    """Write the content of every file of one tar, segments side by side; each segment is proved at its end."""
    if contents.end > opened.manifest.artifact(tar).raw_bytes:
        raise BaseRefused(f"{BASE_FILES} names files behind the end of {tar}.", mend=_OTHER)
    given_up = threading.Event()

    def place(number: int, position: int) -> None:
        # The file that the segment begins in, if any, is the last that begins at or before it.
        writer = _Writer(contents, max(bisect_right(contents.starts, position) - 1, 0))
        try:
            for chunk in opened.read_segment(tar, number):
                if given_up.is_set():
                    return
                writer.put(position, chunk)
                position += len(chunk)
        finally:
            writer.close()

    position, work = 0, []
    pool = ThreadPoolExecutor(policy.streams_at_once, thread_name_prefix="unpack")
    try:
        for number, segment in enumerate(opened.manifest.artifact(tar).segments):
            work.append(pool.submit(place, number, position))
            position += segment.raw_bytes
        done, _ = wait(work, return_when=FIRST_EXCEPTION)
        for each in done:
            each.result()
    finally:
        given_up.set()
        pool.shutdown(wait=True, cancel_futures=True)


class _Writer:
    """Writes a part of a tar's stream, in order, to the files that lie in it; what lies between them is left out."""

    def __init__(self, contents: _Contents, first: int) -> None:
        self._contents, self._next = contents, first
        self._descriptor: int | None = None

    def put(self, position: int, chunk: bytes) -> None:
        """Take the bytes that are at `position` of the stream."""
        after, view = position + len(chunk), memoryview(chunk)
        while self._next < len(self._contents):
            start, end, path = self._contents[self._next]
            if start >= after:
                return
            if end > position:
                first, last = max(start, position), min(end, after)
                self._write(path, view[first - position : last - position], first - start)
                if end > after:
                    return
            self.close()
            self._next += 1

    def close(self) -> None:
        """Be done with the present file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, path: str, content: memoryview, offset: int) -> None:
        if content[0] == 0 and content.tobytes() == _ZEROS[: len(content)]:
            return  # the file has its length already: a hole reads as zeros
        if self._descriptor is None:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        while content:
            written = os.pwrite(self._descriptor, content, offset)
            content, offset = content[written:], offset + written


def _escaped(path: str) -> str:
    return re.sub(r"([\n\r\\])", r"\\\1", path)


@contextmanager
def _telling_of_a_full_disk(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupError(
            f"The base could not be unpacked in {place}: {error.strerror} ({Path(error.filename or place).name}).",
            mend=ROOM,
        ) from error

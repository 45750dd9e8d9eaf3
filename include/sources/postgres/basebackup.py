"""A base backup: `pg_basebackup` as a stream, and what the stream says of itself while it passes.

https://www.postgresql.org/docs/current/app-pgbasebackup.html. One tar to stdout, with `backup_label` as its first
member and `backup_manifest` as its last; a cluster with tablespaces can only go to a directory, one tar a tablespace,
and the manifest is a file beside them. The links to the tablespaces are in no tar: `tablespace_map` tells them, and a
server that recovers makes them from it. The tar is ustar as PostgreSQL's `tarCreateHeader` writes it (src/port/tar.c):
files, directories and symbolic links, with names and targets of at most 99 bytes (a longer one fails the backup on the
server), sizes of 8 GiB and more in base 256, no extended headers. Anything else is refused: a member that is not
understood would not be restored.

WAL is not in it (`-X none`): from `start_lsn` on it is a window of its own. With `archive_mode` on, the server ends
such a backup only when its archiver has taken that WAL: where archiving is broken, the end never comes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from include.errors import BackupError
from include.repository.lsn import Lsn

if TYPE_CHECKING:
    from include.sources.postgres.tools import PostgresTools

BLOCK = 512
LABEL = "backup_label"
TABLESPACE_MAP = "tablespace_map"
MANIFEST = "backup_manifest"

Kind = Literal["file", "directory", "symlink"]

_KINDS: dict[bytes, Kind] = {b"0": "file", b"\0": "file", b"5": "directory", b"2": "symlink"}
_KEPT_BYTES = 1 << 20  # of the manifest, its end, which says which WAL the backup needs
_RANGES = b'"WAL-Ranges"'
_END_BLOCKS = 2
_BASE_256 = 0x80


class BaseBackupRefused(BackupError):
    """What came is no base backup, or not all of one."""


@dataclass(frozen=True)
class FileEntry:
    """A member of a tar: `offset` is where its content begins in the raw stream; `mode` are its permissions, `mtime`
    whole seconds since 1970; `link` is what a symbolic link leads to. A directory's name has no slash at its end."""

    name: str
    kind: Kind
    mode: int
    size: int
    mtime: int
    offset: int
    link: str | None = None


@dataclass(frozen=True)
class BaseRange:
    """The WAL that makes a base backup consistent: `[start_lsn, stop_lsn)`, ending on `timeline`."""

    start_lsn: Lsn
    stop_lsn: Lsn
    timeline: int


def base_backup_command(tools: PostgresTools, directory: Path | None = None) -> list[str]:
    """The command line of a base backup: to stdout, or of a cluster with tablespaces into `directory`, which is empty.

    Run it with `DatabaseLogin.environment()`. It begins with an immediate checkpoint. Its standard error tells its
    progress, which also ends it soon after a parent that died: it has somebody to talk to, or it is killed by SIGPIPE.
    """
    return [
        *(tools.pg_basebackup, f"--pgdata={directory or '-'}", "--format=tar", "--wal-method=none"),
        *("--checkpoint=fast", "--label=synapse-backups", "--no-password", "--no-sync", "--progress", "--verbose"),
    ]


class TarScanner:
    """Reads the headers of a tar as its bytes pass, in chunks of any size, and keeps none of the content but what says
    which WAL the backup needs.

    `record` is called for each member, in the order of the stream.
    """

    def __init__(self, record: Callable[[FileEntry], None]) -> None:
        self._record = record
        self._header = bytearray()
        self._skip = 0  # bytes of content and padding until the next header
        self._read = 0  # bytes of the stream that were fed
        self._zeros = 0
        self._kept: bytearray | None = None
        self._kept_left = 0
        self._files = {name: bytearray() for name in (LABEL, TABLESPACE_MAP, MANIFEST)}

    def passing(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks; raises `BaseBackupRefused` at their end when the tar has not ended."""
        for chunk in chunks:
            self.feed(chunk)
            yield chunk
        self.finish()

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes. Raises `BaseBackupRefused` at what PostgreSQL does not write."""
        at, length = 0, len(chunk)
        while at < length:
            if self._skip:
                step = min(self._skip, length - at)
                if self._kept is not None:
                    self._keep(chunk[at : at + step])
                self._skip -= step
            else:
                step = min(BLOCK - len(self._header), length - at)
                self._header += chunk[at : at + step]
                if len(self._header) == BLOCK:
                    self._member(bytes(self._header), self._read + at + step)
                    self._header.clear()
            at += step
        self._read += length

    def finish(self) -> None:
        """Say that the stream has ended. Raises `BaseBackupRefused` unless the tar has, too."""
        if self._skip or self._header or self._zeros < _END_BLOCKS:
            raise BaseBackupRefused(
                f"The base backup's tar breaks off after {self._read} bytes.",
                mend="Start the backup again; if it happens again, read what pg_basebackup said.",
            )

    @property
    def label(self) -> str:
        """`backup_label`; empty in a tablespace's tar."""
        return self._files[LABEL].decode()

    @property
    def tablespace_map(self) -> str:
        """`tablespace_map`: a line for each tablespace, its oid, a space and its directory; empty without any."""
        return self._files[TABLESPACE_MAP].decode()

    @property
    def wal(self) -> BaseRange:
        """Which WAL the backup needs, from the manifest at the end of the stream; raises `BaseBackupRefused`."""
        return wal_range(bytes(self._files[MANIFEST]))

    def _member(self, header: bytes, offset: int) -> None:
        if not any(header):
            self._zeros += 1
            return
        if self._zeros:
            raise _refused("has members after its end", offset)
        entry = _entry(header, offset)
        self._skip = -(-entry.size // BLOCK) * BLOCK
        self._kept = self._files.get(entry.name)
        self._kept_left = entry.size
        self._record(entry)

    def _keep(self, content: bytes) -> None:
        assert self._kept is not None  # noqa: S101 - asked by the caller
        self._kept += content[: self._kept_left]  # not its padding
        self._kept_left -= min(len(content), self._kept_left)
        del self._kept[:-_KEPT_BYTES]


def wal_range(manifest: bytes) -> BaseRange:
    """Which WAL a base backup needs, from its `backup_manifest` or the end of it; raises `BaseBackupRefused`."""
    try:
        ranges: list[dict[str, Any]] = json.loads(b"{" + manifest[manifest.rindex(_RANGES) :])["WAL-Ranges"]
        found = [
            BaseRange(Lsn.parse(item["Start-LSN"]), Lsn.parse(item["End-LSN"]), int(item["Timeline"]))
            for item in ranges
        ]
        return BaseRange(
            min(item.start_lsn for item in found),
            max(item.stop_lsn for item in found),
            max(item.timeline for item in found),
        )
    except (ValueError, KeyError, TypeError):
        raise BaseBackupRefused(
            "The base backup's manifest does not say which WAL it needs.",
            mend="Check that pg_basebackup is of the server's version or newer, and start the backup again.",
        ) from None


def _entry(header: bytes, offset: int) -> FileEntry:
    kind = _KINDS.get(header[156:157])
    if kind is None or header[257:262] != b"ustar" or any(header[345:500]):
        raise _refused(f"has a member of a kind that PostgreSQL does not write ({header[156:157]!r})", offset)
    if _number(header[148:156], offset) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise _refused("has a damaged header", offset)
    return FileEntry(
        name=_text(header[:100]).rstrip("/"),
        kind=kind,
        mode=_number(header[100:108], offset) & 0o7777,
        size=_number(header[124:136], offset) if kind == "file" else 0,
        mtime=_number(header[136:148], offset),
        offset=offset,
        link=_text(header[157:257]) if kind == "symlink" else None,
    )


def _text(field: bytes) -> str:
    """A name as Python's file functions take it: bytes that are no UTF-8 are surrogates."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes, offset: int) -> int:
    if field[0] & _BASE_256:
        return int.from_bytes(bytes([field[0] & ~_BASE_256]) + field[1:], "big")
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]+", digits):
        raise _refused("has a damaged header", offset)
    return int(digits, 8)


def _refused(why: str, offset: int) -> BaseBackupRefused:
    return BaseBackupRefused(
        f"The base backup's tar {why}, before byte {offset}.",
        mend="Check that pg_basebackup is of the server's version or newer, and start the backup again.",
    )

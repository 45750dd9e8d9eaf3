"""What only the replication protocol tells.

https://www.postgresql.org/docs/current/protocol-replication.html. Its commands are no SQL: they go as simple queries.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import pq

from include.errors import BackupError
from include.repository.lsn import Lsn
from include.sources.postgres.sessions import APPLICATION

if TYPE_CHECKING:
    from include.sources.postgres.login import DatabaseLogin

_UNDEFINED_FILE = b"58P01"


class ReplicationRefused(BackupError):
    """The server did not answer a command of the replication protocol."""


class HistoryMissing(ReplicationRefused):
    """The server has no history of that timeline: it was never on it, or the file is gone."""


@dataclass(frozen=True)
class ReplicationIdentity:
    """A cluster as a replication session sees it; `flushed` is how far its WAL is on its disk. Standbys answer too."""

    system_identifier: str
    timeline: int
    flushed: Lsn


def identify_system(login: DatabaseLogin) -> ReplicationIdentity:
    """Ask the cluster who it is. Raises `DatabaseUnreachable`, `ReplicationRefused`."""
    system, timeline, flushed, _database = _ask(login, "IDENTIFY_SYSTEM")
    return ReplicationIdentity(system.decode(), int(timeline), Lsn.parse(flushed.decode()))


def timeline_history(login: DatabaseLogin, timeline: int) -> str | None:
    """The content of a timeline's history file, None for the first timeline, which has none.

    Raises `HistoryMissing`, `DatabaseUnreachable`, `ReplicationRefused`.
    """
    if timeline == 1:
        return None
    _name, content = _ask(login, f"TIMELINE_HISTORY {timeline:d}")
    return content.decode()


def _ask(login: DatabaseLogin, command: str) -> list[bytes]:
    """The one row that answers a command."""
    with closing(login.connect(application_name=APPLICATION, autocommit=True, replication=True)) as session:
        answer = session.pgconn.exec_(command.encode())
        if answer.status != pq.ExecStatus.TUPLES_OK or answer.ntuples != 1:
            gone = answer.error_field(pq.DiagnosticField.SQLSTATE) == _UNDEFINED_FILE
            said = answer.error_message.decode(errors="replace").strip()
            raise (HistoryMissing if gone else ReplicationRefused)(
                f"{command} as {login}: {said or 'the server answered nothing'}.",
                mend="Check that the connection leads to the cluster that was backed up."
                if gone
                else "Give the login the attribute REPLICATION, and an entry for it in pg_hba.conf.",
            )
        return [answer.get_value(0, column) or b"" for column in range(answer.nfields)]

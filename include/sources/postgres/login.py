"""How a PostgreSQL server is reached, for our own sessions and for PostgreSQL's tools.

A login is a plain value: operators build it from an Airflow connection, the command line from `PG*` variables. The
password leaves it in two ways only: to libpq in this process, and in the environment of a child process
(https://www.postgresql.org/docs/current/libpq-envars.html); never on a command line, in a repr or in an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from include.errors import BackupError

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

CONNECT_TIMEOUT_SECONDS = 10

# A peer that vanished without a word is noticed within a minute, also by a session that only waits
# (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-KEEPALIVES).
KEEPALIVES: dict[str, Any] = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}

# A database or a role may have set for its users what psycopg cannot read.
_READABLE = "-c DateStyle=ISO -c IntervalStyle=postgres"

# The server's or libpq's words, and what a person does about them. Other words (another language, another fault) get
# the general advice.
_MENDS = (
    ("password authentication failed", "Correct the user or the password of this connection."),
    ("no password supplied", "Give this connection a password."),
    ("no pg_hba.conf entry", "Let this user and address in, in the server's pg_hba.conf, and reload it."),
    ("is not permitted to log in", "Run include/sources/postgres/grants.sql, which makes the three logins."),
    ("does not exist", "Correct the database or the user, or create it (grants.sql makes the three logins)."),
    ("start walsender", "Give this user the attribute REPLICATION, as include/sources/postgres/grants.sql does."),
    ("start WAL sender", "Give this user the attribute REPLICATION, as include/sources/postgres/grants.sql does."),
    ("does not support SSL", "Turn TLS on in the server, or relax sslmode for this connection."),
    ("certificate", "Give sslrootcert the authority that signed the server's certificate, and its name as host."),
    ("too many clients", "Free a connection slot on the server, or raise max_connections."),
    ("remaining connection slots", "Free a connection slot on the server, or raise max_connections."),
)
_MEND = "Check that the server runs, that host and port are right, and that no firewall stands between."


class DatabaseUnreachable(BackupError):
    """A session could not be opened. The message names host, port, database and user, never the password."""


@dataclass(frozen=True)
class DatabaseLogin:
    """One user's way into one database.

    `host` is a name, an address or the directory of a Unix socket. `sslmode` and `sslrootcert` are libpq's own
    (https://www.postgresql.org/docs/current/libpq-ssl.html). `options` are server settings for every session made
    through this login, as in `-c statement_timeout=5s`. An empty password leaves libpq to its own means (passfile,
    peer, certificate).
    """

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    dbname: str
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    options: str = ""

    def __str__(self) -> str:
        return f"{self.user} at {self.host}:{self.port}/{self.dbname}"

    def with_database(self, name: str) -> DatabaseLogin:
        """The same login into another database of the same server."""
        return replace(self, dbname=name)

    def environment(self, application_name: str | None = None) -> dict[str, str]:
        """The libpq variables for a child process; what the child needs besides (PATH, locale) is not in it.

        `PGOPTIONS` and `PGHOSTADDR` are always set, if only to nothing, so that values inherited from the worker
        cannot bend the child towards another server or other settings.
        """
        variables = {
            "PGHOST": self.host,
            "PGHOSTADDR": "",
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": self.dbname,
            "PGSSLMODE": self.sslmode,
            "PGOPTIONS": self.options,
            "PGCONNECT_TIMEOUT": str(CONNECT_TIMEOUT_SECONDS),
        }
        optional = {"PGPASSWORD": self.password, "PGSSLROOTCERT": self.sslrootcert, "PGAPPNAME": application_name}
        return variables | {name: value for name, value in optional.items() if value}

    def connect(
        self, *, application_name: str, autocommit: bool = False, replication: bool = False
    ) -> psycopg.Connection[TupleRow]:
        """Open a session; one of `replication` speaks only that protocol's commands, through its `pgconn`.

        Raises `DatabaseUnreachable` when the server is away or refuses.
        """
        import psycopg  # noqa: PLC0415 - a quarter of a second, which a DAG file that names a login does not pay

        try:
            return psycopg.connect(
                host=self.host,
                hostaddr="",
                port=self.port,
                user=self.user,
                password=self.password or None,
                dbname=self.dbname,
                sslmode=self.sslmode,
                sslrootcert=self.sslrootcert,
                options=f"{_READABLE} {self.options}",
                client_encoding="UTF8",
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                application_name=application_name,
                autocommit=autocommit,
                replication="true" if replication else None,
                **KEEPALIVES,
            )
        except psycopg.OperationalError as error:
            said = " ".join(str(error).split())
            raise DatabaseUnreachable(
                f"No database session for {self}: {said.rstrip('.?')}.", mend=_mend(said)
            ) from None


def _mend(said: str) -> str:
    return next((mend for words, mend in _MENDS if words in said), _MEND)

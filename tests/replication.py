"""A server of a test's own, that may be crashed, with the replication login of grants.sql."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from include.repository.lsn import Lsn, segment_end, segment_name
from include.sandbox.postgres import PostgresServer
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.tools import PostgresTools, find_tools

GRANTS = Path("include/sources/postgres/grants.sql")
SEGMENT = 16 << 20


class Cluster:
    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.run(GRANTS.read_text(), "ALTER ROLE synapse_backup_replication PASSWORD 'r'")
        self.run("CREATE TABLE filler (body text)", "CHECKPOINT")

    @property
    def login(self) -> DatabaseLogin:
        return self.server.login("synapse_backup_replication", "r")

    @property
    def tools(self) -> PostgresTools:
        return find_tools(self.server.major)

    def run(self, *statements: str) -> list[tuple]:
        """As the superuser."""
        with self.server.superuser.connect(application_name="test", autocommit=True) as session:
            for statement in statements:
                cursor = session.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str):
        return self.run(statement)[0][0]

    @contextmanager
    def session(self) -> Iterator[psycopg.Connection]:
        """As the replication login."""
        session = self.login.connect(application_name="test", autocommit=True)
        try:
            yield session
        finally:
            session.close()

    def position(self) -> Lsn:
        return Lsn.parse(self.value("SELECT pg_current_wal_insert_lsn()::text"))

    def fill(self, megabytes: float) -> None:
        """Write about that much WAL."""
        self.run(
            f"INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, {int(megabytes * 980)})",
            "TRUNCATE filler",
        )

    def switch(self) -> Lsn:
        """End the segment, and return the boundary behind it; of a segment without a record the server ends nothing."""
        self.run("SELECT pg_create_restore_point('switch')")
        return segment_end(Lsn.parse(self.value("SELECT pg_switch_wal()::text")), SEGMENT)

    def segment(self, lsn: Lsn, timeline: int = 1) -> str:
        return segment_name(timeline, lsn, SEGMENT)

    def slots(self) -> set[str]:
        return {name for (name,) in self.run("SELECT slot_name FROM pg_replication_slots")}

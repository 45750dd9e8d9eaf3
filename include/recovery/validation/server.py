"""Whether the server that holds what came back serves: it is no standby, and takes a write (R5.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import psycopg

from include.recovery.database import undisturbed_login
from include.recovery.scratch import APPLICATION
from include.recovery.validation.validation import Check

if TYPE_CHECKING:
    from include.recovery.validation.recovered import Recovered


def check_server(recovered: Recovered) -> Iterator[Check]:
    """A read, and a write of which nothing stays; nothing where no database came back."""
    if recovered.database is None:
        return
    login = undisturbed_login(recovered.database)
    with login.connect(application_name=APPLICATION, autocommit=True) as session:
        (standby,) = session.execute("SELECT pg_is_in_recovery()").fetchone() or (True,)
        yield Check("role", login.dbname, "primary", "standby" if standby else "primary", not standby)
        said = "taken"
        try:
            with session.transaction(force_rollback=True):
                session.execute("CREATE SCHEMA synapse_backups_probe")
                session.execute("CREATE TABLE synapse_backups_probe.probe AS SELECT 1 AS n")
        except psycopg.Error as error:
            said = f"refused: {error.diag.message_primary or type(error).__name__}"
        yield Check("a write", login.dbname, "taken", said, said == "taken")

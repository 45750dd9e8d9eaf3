"""A login is a value, and its password goes nowhere it is not needed."""

from __future__ import annotations

import socket

import pytest

from include.sources.postgres.login import DatabaseLogin, DatabaseUnreachable

LOGIN = DatabaseLogin("db.example", 5433, "dump", "s3cret", "synapse", sslmode="verify-full", sslrootcert="/ca.pem")


@pytest.mark.requirement("R7.2")
def test_environment_is_complete() -> None:
    assert LOGIN.environment("full-1.S") == {
        "PGHOST": "db.example",
        "PGHOSTADDR": "",
        "PGPORT": "5433",
        "PGUSER": "dump",
        "PGPASSWORD": "s3cret",
        "PGDATABASE": "synapse",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/ca.pem",
        "PGOPTIONS": "",
        "PGCONNECT_TIMEOUT": "10",
        "PGAPPNAME": "full-1.S",
    }


def test_what_is_not_given_is_not_set() -> None:
    variables = DatabaseLogin("h", 1, "u", "", "d").environment()
    assert {"PGPASSWORD", "PGSSLROOTCERT", "PGAPPNAME"}.isdisjoint(variables)


def test_the_password_is_in_no_repr() -> None:
    assert "s3cret" not in repr(LOGIN)
    assert str(LOGIN) == "dump at db.example:5433/synapse"


def test_with_database_changes_nothing_else() -> None:
    other = LOGIN.with_database("scratch")
    assert (other.dbname, other.password, other.sslrootcert) == ("scratch", "s3cret", "/ca.pem")


@pytest.mark.requirement("R4.2")
def test_an_unreachable_server_is_named_without_the_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, never listening: refused
        port = unused.getsockname()[1]
        with pytest.raises(DatabaseUnreachable) as caught:
            DatabaseLogin("127.0.0.1", port, "dump", "s3cret", "synapse").connect(application_name="test")
    assert f"dump at 127.0.0.1:{port}/synapse" in str(caught.value)
    assert "Check that the server runs" in caught.value.mend
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None

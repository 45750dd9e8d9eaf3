"""Airflow's connections, read without Airflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from include.backup.checks.check import Unseen
from include.cli.connections import Connections, ConnectionUnusable
from include.errors import BackupError

SECRET = "p@ss/w:rd"
POSTGRES = {"conn_type": "postgres", "host": "db", "port": 5433, "login": "me", "password": SECRET, "schema": "synapse"}
AWS = {"conn_type": "aws", "login": "AKIA", "password": SECRET}


def given(connection: object, name: str = "one") -> Connections:
    text = connection if isinstance(connection, str) else json.dumps(connection)
    return Connections.read(None, {f"AIRFLOW_CONN_{name.upper()}": text, "PATH": "/bin"})


@pytest.mark.parametrize(
    "connection",
    [
        POSTGRES | {"extra": {"sslmode": "verify-full"}},
        POSTGRES | {"extra": '{"sslmode": "verify-full"}'},
        "postgres://me:p%40ss%2Fw%3Ard@db:5433/synapse?sslmode=verify-full",
        "postgres://me:p%40ss%2Fw%3Ard@db:5433/synapse?__extra__=%7B%22sslmode%22%3A+%22verify-full%22%7D",
    ],
)
def test_a_login_is_read_as_airflow_reads_it(connection: object) -> None:
    login = given(connection).login("one")

    assert (login.host, login.port, login.user, login.password, login.dbname) == ("db", 5433, "me", SECRET, "synapse")
    assert login.sslmode == "verify-full"


def test_a_bucket_has_its_own_name_and_region_before_those_of_the_policy() -> None:
    own = {"region_name": "us-west-2", "service_config": {"s3": {"bucket_name": "mine"}}, "endpoint_url": "http://s3:1"}
    bucket, plain = given(AWS | {"extra": own}).bucket("one", called="policys"), given(AWS)

    assert (bucket.name, bucket.client.meta.region_name, bucket.endpoint_url) == ("mine", "us-west-2", "http://s3:1")
    assert plain.bucket("one", called="policys", region="eu-west-1").name == "policys"
    with pytest.raises(ConnectionUnusable, match="bucket_name"):
        plain.bucket("one")


def test_what_the_environment_lacks_may_be_elsewhere_and_what_the_file_lacks_is_missing(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("airflow: {connections: [{conn_id: two, conn_type: aws}]}")

    with pytest.raises(Unseen, match="AIRFLOW_CONN_TWO"):
        given(POSTGRES).login("two")
    with pytest.raises(ConnectionUnusable, match=r"one in .*settings\.yaml"):
        Connections.read(settings, {"AIRFLOW_CONN_ONE": json.dumps(POSTGRES)}).login("one")


@pytest.mark.parametrize(
    ("connection", "error", "word"),
    [
        (POSTGRES | {"host": ""}, ConnectionUnusable, "host"),
        (POSTGRES | {"extra": {"iam": True}}, Unseen, "iam"),
        (POSTGRES | {"extra": {"role_arn": "arn:aws:iam::1:role/x"}}, Unseen, "role_arn"),
    ],
)
def test_what_cannot_be_used_here_is_said(connection: object, error: type[BackupError], word: str) -> None:
    with pytest.raises(error, match=word) as told:
        given(connection).login("one")
    assert SECRET not in str(told.value)


@pytest.mark.parametrize("text", ['{"password": "hidden', "postgres://me:hidden@db:port/x", '{"a": 1} hidden'])
def test_what_is_no_connection_is_refused_without_its_text(text: str) -> None:
    with pytest.raises(ConnectionUnusable, match="AIRFLOW_CONN_ONE") as told:
        given(text)
    assert "hidden" not in str(told.value)


def test_a_repr_shows_no_secret() -> None:
    assert SECRET not in repr(given(POSTGRES))
